"""OpenAI's consistency_models: the same network, preconditioned as in EDM, and attention kernels in two dimensions."""

from collections.abc import Mapping
from typing import Any

from convert_weights import adm_unet, published
from convert_weights.mapping import CONV, Shape, Target

NAME, KIND = "OpenAI's consistency_models", "adm_unet"
FILES = "`edm_*_ema.pt` of ImageNet 64, bedrooms and cats; `cd_*` and `ct_*` are refused"
LEFT_OPEN = "nothing (heads are 64 wide)"
WORDS, ANCHORS = adm_unet.WORDS, adm_unet.ANCHORS
FLAGS = frozenset(("image_size", "head_width", "num_heads", "sigma_data"))
"""Settings of `convert_weights.convert` that say something of this kind of network."""

SIGMA_DATA = 0.5
SCHEDULE = {"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0, "time_scale": 250.0}
DISTILLED = ("cd_", "ct_")  # beginnings of the names of files whose networks leap to the end of the ODE


def recognises(shapes: Mapping[str, Shape]) -> bool:
    """Tell whether these keys and shapes are those of a network of consistency_models."""
    return "time_embed.0.weight" in shapes and adm_unet.attends_in_2d(shapes)


def infer(
    shapes: Mapping[str, Shape],
    about: Mapping[str, Any],
    *,
    head_width: int | None = None,
    num_heads: int | None = None,
) -> dict[str, Any]:
    """Infer the fields of `ddiff_jax.models.UNet`.

    Args:
        shapes: key to shape.
        about: "file" is the name of the file.
        head_width: channels per attention head; None means 64, as in all published files.
        num_heads: heads per attention layer, instead of a head width.

    Raises:
        ValueError: the file is one of a distilled model, or not of a network that makes images.
    """
    file = str(about.get("file", ""))
    if file.startswith(DISTILLED):
        raise ValueError(
            f"{file} is named like a consistency model ({' or '.join(DISTILLED)}): it leaps to the end of an ODE and "
            "does not estimate the mean of the clean image, which solvers need. Convert the EDM model that it was "
            "made from (edm_..._ema.pt); if the name misleads, rename the file"
        )
    if head_width is None and num_heads is None:
        head_width = 64
    return adm_unet.infer(shapes, attention_order="new", head_width=head_width, num_heads=num_heads)


def targets(fields: Mapping[str, Any]) -> dict[str, Target]:
    """Name the parameter of `ddiff_jax.models.UNet` that every tensor of a checkpoint belongs to."""
    return adm_unet.targets(fields, attention=CONV)


def card_fields(
    fields: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    *_: Any,
    image_size: int | None = None,
    head_width: int | None = None,
    num_heads: int | None = None,
    sigma_data: float | None = None,
) -> dict[str, Any]:
    """Fill in a card: image shape, preconditioning, and what was taken for granted.

    Raises:
        ValueError: the network cannot take images of this size, or sigma_data is not positive.
    """
    known, levels = published.find(shapes), len(fields["channel_mult"])
    size = image_size or (known.image_size if known else 8 * 2 ** (levels - 1))
    if size < 1 or size % 2 ** (levels - 1):
        raise ValueError(f"the image size must be a multiple of {2 ** (levels - 1)} for {levels} levels; got {size}")
    notes = []
    if known is not None:
        notes.append(f"the {len(shapes)} shapes are those of {known.files}: images of {size}x{size} (--image-size)")
    elif image_size is None:
        notes.append(f"image size {size} assumed from the number of levels, {levels}; --image-size changes it")
    if known is None and head_width is None and num_heads is None:
        notes.append(
            "attention with heads 64 channels wide assumed, as in all published files; --head-width changes it"
        )
    notes.append(
        "taken for an EDM network; consistency models (CD, CT) have the same shapes, leap to the end of an ODE and are "
        "no priors, and the numbers do not tell them apart"
    )
    return {
        "architecture": dict(fields),
        "prediction": "edm",
        "image_shape": (size, size, fields["in_channels"]),
        "schedule": SCHEDULE,
        "sigma_data": SIGMA_DATA if sigma_data is None else sigma_data,
        "notes": notes,
    }
