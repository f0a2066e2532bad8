"""Weights of BKSE's KernelWizard: read the sizes off the tensors, and name every parameter of its blurring half."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from convert_weights.mapping import CONV, SAME, Layout, Path, Shape, Target
from ddiff_jax.operators._nonlinear_blur import NUM_LEVELS, STRIDE


def _split(a: np.ndarray) -> np.ndarray:
    """Split the taps 4x4 of a kernel of stride 2 into pairs and parities."""
    return a.reshape(*a.shape[:2], 2, 2, 2, 2)


HALVE = Layout(lambda a: _split(a).transpose(2, 4, 3, 5, 1, 0), lambda s: (s[5], s[4], 4, 4))
DOUBLE = Layout(lambda a: _split(a).transpose(0, 2, 4, 3, 5, 1), lambda s: (s[0], s[5], 4, 4))

FIRST = "feature_extractor.0.weight"
NAME, KIND = "BKSE's KernelWizard", "kernel_wizard"
FILES = "`GOPRO_wVAE.pth` and its kin, a measurement: `nonlinear_blur`"
LEFT_OPEN = "nothing"
FLAGS = frozenset(("image_size",))
"""Settings of `convert_weights.convert` that say something of this kind of network."""
WORDS = frozenset("feature_extractor adapter recon_trunk submodule".split())
"""Parts of names that occur in all such networks."""
ANCHORS = (FIRST,)
"""Names that find the network in a file."""
DEEPEST_DOWN = f"adapter.model{'.submodule' * (NUM_LEVELS - 1)}.down.1.weight"
DEEPEST_UP = f"adapter.model{'.submodule' * (NUM_LEVELS - 1)}.up.1.weight"


def skips(key: str) -> bool:
    """Tell whether a tensor belongs to the network that finds kernel codes in pictures, which blurring needs not."""
    return key.startswith("kernel_extractor.")


def recognises(shapes: Mapping[str, Shape]) -> bool:
    """Tell whether these keys are those of a KernelWizard."""
    return FIRST in shapes and DEEPEST_UP in shapes


def infer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Infer the fields of `ddiff_jax.models.kernel_wizard.KernelWizard` from the names and shapes of the tensors.

    Raises:
        ValueError: the tensors are not those of a KernelWizard.
    """
    missing = [key for key in (FIRST, DEEPEST_DOWN, DEEPEST_UP) if key not in shapes]
    if missing:
        raise ValueError(
            f"these are not the weights of a BKSE KernelWizard: {', '.join(missing)} missing; the file begins with "
            f"{', '.join(list(shapes)[:3])}"
        )
    return {
        "num_features": shapes[FIRST][0],
        # The bottleneck's upward half reads the features that come down, and the code next to them.
        "kernel_dim": shapes[DEEPEST_UP][0] - shapes[DEEPEST_DOWN][0],
        "num_front_blocks": _count_blocks(shapes, "feature_extractor"),
        "num_back_blocks": _count_blocks(shapes, "recon_trunk"),
    }


def card_fields(fields: Mapping[str, Any], *_: Any, image_size: int | None = None) -> dict[str, Any]:
    """Fill in what a card says beside the architecture: image shape, and what was assumed.

    Raises:
        ValueError: the network cannot take images of this size.
    """
    notes = []
    if image_size is None:
        image_size = 256
        notes.append("image size 256 assumed, that of the published weights")
    if image_size < 1 or image_size % STRIDE:
        raise ValueError(f"the image size of a KernelWizard must be a multiple of {STRIDE}; got {image_size}")
    notes.append(f"a network of a measurement, not a prior: kernel codes have {fields['kernel_dim']} channels")
    return {"image_shape": (image_size, image_size, 3), "schedule": {}, "notes": notes}


def _count_blocks(shapes: Mapping[str, Shape], part: str) -> int:
    return sum(re.fullmatch(rf"{part}\.\d+\.conv1\.weight", key) is not None for key in shapes)


def _conv(prefix: str, *path: str) -> Iterator[tuple[str, Target]]:
    yield f"{prefix}.weight", ((*path, "kernel"), CONV)
    yield f"{prefix}.bias", ((*path, "bias"), SAME)


def _blocks(part: str, first: int, count: int) -> Iterator[tuple[str, Target]]:
    for i in range(count):
        for conv in ("conv1", "conv2"):
            yield from _conv(f"{part}.{first + i}.{conv}", part, f"block_{i}", conv)


def _adapter() -> Iterator[tuple[str, Target]]:
    for level in range(NUM_LEVELS):
        prefix = "adapter.model" + ".submodule" * level
        down: Path = ("adapter", f"down_{level}", "kernel")
        yield f"{prefix}.down.{min(level, 1)}.weight", (down, HALVE)
        yield f"{prefix}.up.1.weight", (("adapter", f"up_{level}", "kernel"), DOUBLE)
    yield "adapter.model.up.1.bias", (("adapter", "up_0", "bias"), SAME)


def targets(fields: Mapping[str, Any]) -> dict[str, Target]:
    """Name the parameter of the module that every tensor of a checkpoint belongs to."""
    return dict(_targets(fields["num_front_blocks"], fields["num_back_blocks"]))


def _targets(num_front: int, num_back: int) -> Iterator[tuple[str, Target]]:
    # Numbers are places in PyTorch's Sequential, which counts activations and pixel shuffles as well.
    for i in range(3):
        yield from _conv(f"feature_extractor.{2 * i}", "feature_extractor", f"conv_{i}")
    yield from _blocks("feature_extractor", 6, num_front)
    yield from _adapter()
    yield from _blocks("recon_trunk", 0, num_back)
    for place, name in {0: "up_0", 3: "up_1", 6: "conv_0", 8: "conv_1"}.items():
        yield from _conv(f"recon_trunk.{num_back + place}", "recon_trunk", name)
