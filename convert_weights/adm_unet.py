"""Weights of guided-diffusion's UNetModel: read the architecture off the tensors, and name every parameter."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from convert_weights import published, schedules
from convert_weights.mapping import CONV, CONV_1D, LINEAR, SAME, Layout, Shape, Target
from ddiff_jax.limits import MOST_BLOCKS

NAME, KIND = "OpenAI's UNetModel", "adm_unet"
FILES = "guided-diffusion, improved-diffusion, DPS's FFHQ, and networks trained with such code, in whatever wrapper"
LEFT_OPEN = (
    "heads, order of attention, noise schedule, prediction: as published for these shapes, from buffers, or by "
    "the probe"
)
FLAGS = frozenset(
    (
        "image_size attention_order head_width num_heads noise_schedule num_timesteps beta_range rescale_timesteps "
        "prediction"
    ).split()
)
"""Settings of `convert_weights.convert` that say something of this kind of network."""

WORDS = frozenset("input_blocks middle_block output_blocks time_embed in_layers emb_layers out_layers".split())
"""Parts of names that occur in all such networks."""
ANCHORS = ("time_embed.0.weight",)
"""Names that find the network in a file."""


def recognises(shapes: Mapping[str, Shape]) -> bool:
    """Tell whether these keys are those of a UNetModel."""
    return "time_embed.0.weight" in shapes and "input_blocks.0.0.weight" in shapes and not attends_in_2d(shapes)


def attends_in_2d(shapes: Mapping[str, Shape]) -> bool:
    """Tell whether its attention layers have kernels [D, C, 1, 1], as those of consistency_models, not [D, C, 1]."""
    return any(len(shape) == 4 for name, shape in shapes.items() if name.endswith("qkv.weight"))


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    """Count numbered children; numbers without tensors (pooling) count when a later one has some."""
    numbers = [int(m[1]) for key in shapes if (m := re.match(re.escape(prefix) + r"\.(\d{1,18})\.", key))]
    count = 1 + max(numbers, default=-1)
    if count > MOST_BLOCKS:
        raise ValueError(f"it has a {prefix}.{count - 1}, and no network has more than {MOST_BLOCKS} {prefix}")
    return count


def infer(
    shapes: Mapping[str, Shape],
    *,
    attention_order: str | None = None,
    head_width: int | None = None,
    num_heads: int | None = None,
) -> dict[str, Any]:
    """Infer the fields of `ddiff_jax.models.UNet` from the names and shapes of a checkpoint's tensors.

    Args:
        shapes: key to shape.
        attention_order: "legacy" or "new": how q, k and v are laid out, which shapes cannot tell; None means that of
            the published network with these shapes, and legacy for others.
        head_width: channels per attention head, which shapes cannot tell either; None means the published network's,
            and 64 for others, or four heads for those with plain resampling.
        num_heads: heads per attention layer, instead of a head width.

    Raises:
        ValueError: the tensors are not those of a UNetModel that is a prior, or the head width or count does not fit.
    """
    if head_width is not None and num_heads is not None:
        raise ValueError("give the head width or the number of heads, not both")
    if any(number is not None and number < 1 for number in (head_width, num_heads)):
        raise ValueError("the head width and the number of heads are whole numbers above 0")
    if attention_order not in (None, "legacy", "new"):
        raise ValueError(f"the attention order must be legacy or new; got {attention_order!r}")
    channels, outputs = shapes["input_blocks.0.0.weight"][1], shapes.get("out.2.weight", (0,))[0]
    if channels == 6:
        raise ValueError(
            "it takes six channels: an upsampler, which needs a small image beside the noisy one and is no prior of "
            "images by itself; give a network that makes whole images"
        )
    base = shapes["time_embed.0.weight"][1]
    blocks = _count(shapes, "output_blocks")
    if not blocks or "middle_block.0.in_layers.0.weight" not in shapes:
        raise ValueError(
            "half of the network is missing: a UNet has input_blocks, middle_block and output_blocks, and this file "
            f"lacks {'output_blocks' if not blocks else 'middle_block'}; is it a classifier or an encoder?"
        )
    if outputs not in (channels, 2 * channels):
        raise ValueError(
            f"it takes {channels} channels and gives {outputs}: a prior gives as many as it takes, or twice as many"
        )
    # A decoder block with an upsampling layer at its end closes its level; that layer is one more child with tensors
    # that is no attention. Levels that upsample without convolution show as blocks of the encoder without tensors.
    closing = [b for b in range(blocks) if _upsamples(shapes, b)]
    gaps = [b for b in range(_count(shapes, "input_blocks")) if not _has(shapes, f"input_blocks.{b}.")]
    levels = 1 + (len(closing) or len(gaps))
    if blocks % levels:
        raise ValueError(f"cannot tell the levels apart: {blocks} decoder blocks in {levels} levels")
    per_level = blocks // levels  # residual blocks going up: one more than going down
    starts = [1 + per_level * level for level in range(levels)]
    widths = [shapes.get(f"input_blocks.{b}.0.out_layers.3.weight", (base,))[0] for b in starts]
    width_mults = [_multiple(width, base) for width in widths]
    attention = tuple(level for level, b in enumerate(starts) if f"input_blocks.{b}.1.qkv.weight" in shapes)
    by_blocks = levels > 1 and f"input_blocks.{per_level}.0.in_layers.0.weight" in shapes
    known = published.find(shapes)
    if head_width is None and num_heads is None:
        # improved-diffusion, whose networks resample between their blocks, has four heads unless told otherwise.
        head_width, num_heads = (known.head_width, known.num_heads) if known else (64, None) if by_blocks else (None, 4)
    fields: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": outputs,
        "model_channels": base,
        "channel_mult": tuple(width_mults),
        "num_res_blocks": per_level - 1,
        "attention_levels": attention,
        "head_width": head_width or 64,
        "num_heads": num_heads,
        "scale_shift_norm": shapes.get("input_blocks.1.0.emb_layers.1.weight", (0,))[0] == 2 * widths[0],
        "resblock_updown": by_blocks,
        "conv_resample": not gaps,
        "num_classes": shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
        "attention_order": attention_order or (known.attention_order if known else "legacy"),
    }
    attended = [width for level, width in enumerate(widths) if level in attention] + [widths[-1]]
    divisor = fields["num_heads"] or fields["head_width"]
    if any(width % divisor for width in attended):
        what = "number of heads" if num_heads else "head width"
        raise ValueError(
            f"the {what} {divisor} does not divide the attention layers' {sorted(set(attended))} channels, and shapes "
            "cannot tell it; give the right --head-width or --num-heads"
        )
    return fields


def _has(shapes: Mapping[str, Shape], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in shapes)


def _upsamples(shapes: Mapping[str, Shape], block: int) -> bool:
    children = range(1, 3)
    prefix = f"output_blocks.{block}"
    return any(_has(shapes, f"{prefix}.{c}.in_layers.") or _has(shapes, f"{prefix}.{c}.conv.") for c in children)


def _multiple(width: int, base: int) -> float:
    return width // base if width % base == 0 else width / base


def _conv(prefix: str, path: tuple[str, ...], layout: Layout = CONV) -> Iterator[tuple[str, Target]]:
    yield f"{prefix}.weight", ((*path, "kernel"), layout)
    yield f"{prefix}.bias", ((*path, "bias"), SAME)


def _norm(prefix: str, path: tuple[str, ...]) -> Iterator[tuple[str, Target]]:
    yield f"{prefix}.weight", ((*path, "scale"), SAME)
    yield f"{prefix}.bias", ((*path, "bias"), SAME)


def _res(prefix: str, name: str, *, skip: bool) -> Iterator[tuple[str, Target]]:
    yield from _norm(f"{prefix}.in_layers.0", (name, "norm_1"))
    yield from _conv(f"{prefix}.in_layers.2", (name, "conv_1"))
    yield from _conv(f"{prefix}.emb_layers.1", (name, "emb"), LINEAR)
    yield from _norm(f"{prefix}.out_layers.0", (name, "norm_2"))
    yield from _conv(f"{prefix}.out_layers.3", (name, "conv_2"))
    if skip:
        yield from _conv(f"{prefix}.skip_connection", (name, "skip"))


def _attention(prefix: str, name: str, layout: Layout) -> Iterator[tuple[str, Target]]:
    yield from _norm(f"{prefix}.norm", (name, "norm"))
    yield from _conv(f"{prefix}.qkv", (name, "qkv"), layout)
    yield from _conv(f"{prefix}.proj_out", (name, "out"), layout)


def targets(fields: Mapping[str, Any], attention: Layout = CONV_1D) -> dict[str, Target]:
    """Name the parameter of `ddiff_jax.models.UNet` that every tensor of a checkpoint belongs to.

    Args:
        fields: of the module.
        attention: layout of the kernels in attention layers.
    """
    return dict(_targets(fields, attention))


def _targets(fields: Mapping[str, Any], attention: Layout) -> Iterator[tuple[str, Target]]:
    widths = [int(mult * fields["model_channels"]) for mult in fields["channel_mult"]]
    levels, num_res_blocks = len(widths), fields["num_res_blocks"]
    attended, by_blocks = fields["attention_levels"], fields["resblock_updown"]
    yield from _conv("time_embed.0", ("time_1",), LINEAR)
    yield from _conv("time_embed.2", ("time_2",), LINEAR)
    if fields["num_classes"] is not None:
        yield "label_emb.weight", (("label",), SAME)
    yield from _conv("input_blocks.0.0", ("conv_in",))
    block, width, skips = 1, widths[0], [widths[0]]
    for level in range(levels):
        for i in range(num_res_blocks):
            name, prefix = f"down_{level}_{i}", f"input_blocks.{block}"
            yield from _res(f"{prefix}.0", name, skip=width != widths[level])
            if level in attended:
                yield from _attention(f"{prefix}.1", f"{name}_attention", attention)
            width = widths[level]
            skips.append(width)
            block += 1
        if level != levels - 1:
            name, prefix = f"down_{level}_resample", f"input_blocks.{block}.0"
            if by_blocks:
                yield from _res(prefix, name, skip=False)
            elif fields["conv_resample"]:
                yield from _conv(f"{prefix}.op", (name, "conv"))
            skips.append(width)
            block += 1
    yield from _res("middle_block.0", "middle_0", skip=False)
    yield from _attention("middle_block.1", "middle_attention", attention)
    yield from _res("middle_block.2", "middle_1", skip=False)
    block = 0
    for level in reversed(range(levels)):
        for i in range(num_res_blocks + 1):
            name, prefix = f"up_{level}_{i}", f"output_blocks.{block}"
            yield from _res(f"{prefix}.0", name, skip=width + skips.pop() != widths[level])
            width, child = widths[level], 1
            if level in attended:
                yield from _attention(f"{prefix}.1", f"{name}_attention", attention)
                child = 2
            if level != 0 and i == num_res_blocks:
                name, prefix = f"up_{level}_resample", f"{prefix}.{child}"
                if by_blocks:
                    yield from _res(prefix, name, skip=False)
                elif fields["conv_resample"]:
                    yield from _conv(f"{prefix}.conv", (name, "conv"))
            block += 1
    yield from _norm("out.0", ("norm_out",))
    yield from _conv("out.2", ("conv_out",))


def card_fields(
    fields: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    table: tuple[str, np.ndarray] | None = None,
    *,
    image_size: int | None = None,
    rescale_timesteps: bool | None = None,
    prediction: str | None = None,
    attention_order: str | None = None,
    head_width: int | None = None,
    num_heads: int | None = None,
    **schedule: Any,
) -> dict[str, Any]:
    """Fill in a card: architecture, image shape, noise schedule, and what was taken for granted.

    Args:
        fields: of the module.
        shapes: key to shape, of the file.
        table: name and numbers of a buffer that states the noise schedule.
        image_size: side of the training images; None means the published network's, and what the levels suggest for
            others.
        rescale_timesteps: the network is given t * 1000 / T; None means as published, and as the training code of this
            kind of network does for others.
        prediction: what the network predicts, "eps", "v" or "x0"; None means the noise, as published.
        attention_order: as given by a flag; None if `infer` chose it. So are the next two.
        head_width: see attention_order.
        num_heads: see attention_order.
        schedule: flags of the noise schedule, see `schedules.choose`.

    Raises:
        ValueError: the network cannot take images of this size, or the flags do not make a schedule.
    """
    known, levels, notes = published.find(shapes), len(fields["channel_mult"]), []
    chosen, said = schedules.choose(table, known, **schedule)
    count = len(chosen["alpha_bar"]) if chosen["name"] == "table" else chosen["num_timesteps"]
    heads = f"{fields['num_heads']} heads" if fields["num_heads"] else f"heads {fields['head_width']} channels wide"
    if known is not None:
        size = known.image_size if image_size is None else image_size
        rescale = known.rescale_timesteps if rescale_timesteps is None else rescale_timesteps
        scaled = f"{', rescaled to 1000' * rescale}" if count != 1000 else ""
        notes.append(
            f"the {len(shapes)} shapes are those of {known.files}, whose settings hold where no flag or buffer says "
            f"otherwise: {schedules.in_words(chosen)} (--noise-schedule){scaled}, prediction of the noise "
            f"(--prediction), attention with {heads} (--num-heads, --head-width) in the {fields['attention_order']} "
            f"order (--attention-order), images of {size}x{size} (--image-size)"
        )
    else:
        size = 8 * 2 ** (levels - 1) if image_size is None else image_size
        rescale = not fields["resblock_updown"] if rescale_timesteps is None else rescale_timesteps
        if image_size is None:
            notes.append(f"image size {size} assumed from the number of levels, {levels}; --image-size changes it")
        if head_width is None and num_heads is None:
            notes.append(
                f"attention with {heads} assumed, as in most networks of this kind; --num-heads or --head-width"
            )
        if attention_order is None:
            notes.append(
                f"{fields['attention_order']} order of the attention layers assumed; --attention-order changes it"
            )
        if prediction is None:
            notes.append("the network assumed to predict the noise; --prediction changes it")
        if rescale_timesteps is None and count != 1000:
            done = "" if rescale else "not "
            notes.append(f"timesteps assumed {done}to be rescaled to 1000; --rescale-timesteps changes it")
    if size < 1 or size % 2 ** (levels - 1):
        raise ValueError(f"the image size must be a multiple of {2 ** (levels - 1)} for {levels} levels; got {size}")
    return {
        "architecture": fields,
        "prediction": prediction or "eps",
        "image_shape": (size, size, fields["in_channels"]),
        "schedule": {**chosen, "time_scale": 1000 / count} if rescale and count != 1000 else chosen,
        "notes": [*notes, said] if said else notes,
    }


def alternatives(
    fields: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    table: tuple[str, np.ndarray] | None,
    given: Mapping[str, Any],
    *,
    everything: bool = False,
) -> list[tuple[str, list[dict[str, Any]]]]:
    """List what else could be meant where shapes do not tell, for a probe.

    Args:
        fields: of the module as assumed.
        shapes: key to shape, of the file.
        table: name and numbers of a buffer that states the noise schedule.
        given: flags; what they say is not open.
        everything: also what is known of a published network with these shapes.
    """
    if published.find(shapes) is not None and not everything:
        return []
    widths = {int(mult * fields["model_channels"]) for mult in fields["channel_mult"]}
    heads = {width: fields["num_heads"] or width // fields["head_width"] for width in widths}
    axes: list[tuple[str, list[dict[str, Any]]]] = []
    if not {"head_width", "num_heads"} & given.keys():
        others = [{"num_heads": n} for n in (1, 2, 4, 8) if n != fields["num_heads"]]
        others += [{"head_width": n} for n in (32, 64, 128) if fields["num_heads"] or n != fields["head_width"]]
        axes.append(("number of attention heads", others))
    if "attention_order" not in given and any(number > 1 for number in heads.values()):
        axes.append(("order of attention", [{"attention_order": "legacy" if _is_new(fields) else "new"}]))
    if table is None and not {"noise_schedule", "num_timesteps", "beta_range"} & given.keys():
        names = [{"noise_schedule": name} for name in ("linear", "cosine")]
        scale = {"rescale_timesteps": False} if "rescale_timesteps" not in given else {}
        axes.append(("noise schedule", [*names, *({**name, "num_timesteps": 4000, **scale} for name in names)]))
    if "prediction" not in given and fields["out_channels"] == fields["in_channels"]:
        axes.append(("prediction", [{"prediction": "v"}, {"prediction": "x0"}]))
    return axes


def _is_new(fields: Mapping[str, Any]) -> bool:
    return fields["attention_order"] == "new"
