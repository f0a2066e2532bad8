"""Weights of EDM's SongUNet (DDPM++ and NCSN++), from NVIDIA, deepinv and InverseBench."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from convert_weights import edm
from convert_weights.edm import FLAGS, alternatives, card_fields, examine, skips
from convert_weights.mapping import CONV, LINEAR, SAME, Layout, Shape, Target

__all__ = [
    "ANCHORS",
    "FILES",
    "FLAGS",
    "KIND",
    "LEFT_OPEN",
    "NAME",
    "WORDS",
    "alternatives",
    "card_fields",
    "examine",
    "infer",
    "recognises",
    "skips",
    "targets",
]

NAME, KIND = "EDM's SongUNet", "song_unet"
FILES = (
    "NVIDIA's `edm-*.pkl` and `baseline-*.pkl` (CIFAR-10, FFHQ, AFHQv2), deepinv's `NCSNpp` files, "
    "InverseBench's black hole"
)
LEFT_OPEN = "preconditioning and sigma_data, and nothing in a `.pkl`: as published for these shapes, or by the probe"
WORDS = frozenset("enc dec map_layer0 map_layer1 affine conv0 norm0".split())
"""Parts of names that occur in all such networks."""
ANCHORS = ("map_layer0.weight",)
"""Names that find the network in a file."""


def recognises(shapes: Mapping[str, Shape]) -> bool:
    """Tell whether these keys are those of a SongUNet."""
    return "map_layer0.weight" in shapes and any(key.endswith("_aux_conv.weight") for key in shapes)


def _has(shapes: Mapping[str, Shape], what: str) -> bool:
    return any(what in key for key in shapes)


def infer(shapes: Mapping[str, Shape], *, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Infer the fields of `ddiff_jax.models.SongUNet` from the names and shapes of a checkpoint's tensors.

    Args:
        shapes: key to shape.
        about: what else is known; its `prefix` tells how the groups of norms were chosen.

    Raises:
        ValueError: the tensors are not those of a SongUNet that is a prior.
    """
    side = edm.sides(shapes)[0]
    edm.in_out(shapes)
    base = shapes[f"enc.{side}x{side}_conv.weight"][0]
    filters = {shape[-1] for key, shape in shapes.items() if key.endswith(".resample_filter")}
    if filters not in (set(), {2}, {4}):
        raise ValueError(f"it resamples with filters of length {sorted(filters)}; known are [1, 1] and [1, 3, 3, 1]")
    encoder = "residual" if _has(shapes, "_aux_residual.") else "skip" if _has(shapes, "_aux_skip.") else "standard"
    results = sum(key.endswith("_aux_conv.weight") for key in shapes)
    return {
        **edm.infer(shapes, base, about or {}),
        "noise_width": shapes["map_layer0.weight"][1],
        "fourier": "map_noise.freqs" in shapes,
        "smooth": filters == {4},
        "encoder": encoder,
        "decoder": "skip" if results > 1 else "standard",
        "num_classes": shapes["map_label.weight"][1] if "map_label.weight" in shapes else None,
    }


def targets(
    fields: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    *,
    about: Mapping[str, Any] | None = None,
    precond: str | None = None,
) -> dict[str, Target]:
    """Name the parameter of `ddiff_jax.models.SongUNet` that every tensor of a checkpoint belongs to.

    Args:
        fields: of the module.
        shapes: key to shape, for the sides in the names.
        about: as for `infer`.
        precond: a network with "ve" predicts the negative of the noise.
    """
    last = edm.last_layouts(shapes, about or {}, precond)
    return dict(_targets(fields, edm.sides(shapes), *last))


def _targets(
    fields: Mapping[str, Any], levels: list[int], kernel_out: Layout, bias_out: Layout
) -> Iterator[tuple[str, Target]]:
    yield from edm.trunk(fields, levels, dhariwal=False)
    if fields["fourier"]:
        yield "map_noise.freqs", (("frequencies",), SAME)
    if fields["num_classes"] is not None:
        yield from edm.layer("map_label", ("label",), LINEAR)
    for level, side in enumerate(levels):
        if level and fields["encoder"] == "residual":
            kernel = _filtered(edm.FILTERS[4 if fields["smooth"] else 2])
            yield from edm.layer(f"enc.{side}x{side}_aux_residual", (f"down_{level}_image",), kernel)
        elif level and fields["encoder"] == "skip":
            yield from edm.layer(f"enc.{side}x{side}_aux_skip", (f"down_{level}_image",))
        if not level or fields["decoder"] == "skip":
            yield from edm.norm(f"dec.{side}x{side}_aux_norm", (f"out_{level}_norm",))
            yield from edm.layer(f"dec.{side}x{side}_aux_conv", (f"out_{level}",), kernel_out, bias_out)


def _filtered(row: tuple[int, ...]) -> Layout:
    """Read a kernel whose convolution a filter follows, as the kernel of both."""
    taps = np.asarray(row, np.float64) / sum(row)

    def convert(a: np.ndarray) -> np.ndarray:
        kernel, longer = a.astype(np.float64), len(taps) - 1
        whole = np.zeros((*a.shape[:2], a.shape[2] + longer, a.shape[3] + longer))
        for i, down in enumerate(taps):
            for j, right in enumerate(taps):
                whole[:, :, i : i + a.shape[2], j : j + a.shape[3]] += down * right * kernel
        return CONV.convert(whole)

    return Layout(convert, lambda s: (s[3], s[2], s[0] - len(taps) + 1, s[1] - len(taps) + 1))
