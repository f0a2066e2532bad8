"""Weights of EDM's DhariwalUNet, from NVIDIA, deepinv and InverseBench: the UNet of guided-diffusion by other names."""

from collections.abc import Iterator, Mapping
from typing import Any

from convert_weights import edm
from convert_weights.edm import FLAGS, alternatives, card_fields, examine, skips
from convert_weights.mapping import LINEAR, Layout, Shape, Target

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

NAME, KIND = "EDM's DhariwalUNet", "adm_unet"
FILES = "NVIDIA's `edm-imagenet-64x64-cond-adm.pkl`, deepinv's `ADMUNet` files, InverseBench's fields and MRI"
LEFT_OPEN = "as above"
WORDS = frozenset("enc dec map_layer0 map_layer1 affine out_conv out_norm".split())
"""Parts of names that occur in all such networks."""
ANCHORS = ("map_layer0.weight",)
"""Names that find the network in a file."""


def recognises(shapes: Mapping[str, Shape]) -> bool:
    """Tell whether these keys are those of a DhariwalUNet."""
    return "map_layer0.weight" in shapes and "out_conv.weight" in shapes


def infer(shapes: Mapping[str, Shape], *, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Infer the fields of `ddiff_jax.models.UNet` from the names and shapes of a checkpoint's tensors.

    Args:
        shapes: key to shape.
        about: what else is known; its `prefix` tells how the groups of norms were chosen.

    Raises:
        ValueError: the tensors are not those of a DhariwalUNet that is a prior.
    """
    coarsest = edm.sides(shapes)[-1]
    edm.in_out(shapes)
    fields = edm.infer(shapes, shapes["map_layer0.weight"][1], about or {})
    if any(shape[-1] != 2 for key, shape in shapes.items() if key.endswith(".resample_filter")):
        raise ValueError("it resamples with another filter than [1, 1], which no DhariwalUNet does")
    return {
        **fields,
        "head_width": 64,
        "middle_attention": f"dec.{coarsest}x{coarsest}_in0.qkv.weight" in shapes,
        "num_classes": shapes["map_label.weight"][1] if "map_label.weight" in shapes else None,
    }


def targets(
    fields: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    *,
    about: Mapping[str, Any] | None = None,
    precond: str | None = None,
) -> dict[str, Target]:
    """Name the parameter of `ddiff_jax.models.UNet` that every tensor of a checkpoint belongs to.

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
    yield from edm.trunk(fields, levels, dhariwal=True)
    if fields["num_classes"] is not None:
        yield "map_label.weight", (("label",), LINEAR)
    yield from edm.norm("out_norm", ("norm_out",))
    yield from edm.layer("out_conv", ("conv_out",), kernel_out, bias_out)
