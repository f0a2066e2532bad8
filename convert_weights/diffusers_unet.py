"""Weights of diffusers' UNet2DModel: its settings say what the network is, and what a file lacks no shape can tell."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from convert_weights import diffusers_schedulers
from convert_weights.mapping import CONV, LINEAR, POINT, SAME, Layout, Shape, Target
from ddiff_jax.card import check_types
from ddiff_jax.files import quote
from ddiff_jax.limits import LARGEST

NAME, KIND = "diffusers' UNet2DModel", "diffusers_unet"
FILES = (
    "folders of UNet2DModel pipelines (google/ddpm-*), or `hf:OWNER/MODEL`; text-to-image and latent ones are refused"
)
LEFT_OPEN = "all: `config.json` and the scheduler's beside the weights are read, and needed"
WORDS = frozenset("down_blocks mid_block up_blocks time_embedding resnets conv_in conv_norm_out".split())
"""Parts of names that occur in all such networks."""
ANCHORS = ("time_embedding.linear_1.weight",)
FLAGS = frozenset("image_size noise_schedule num_timesteps beta_range prediction".split())
"""Settings of `convert_weights.convert` that say something of this kind of network."""

# What `config.json` may say: type and what holds where it says nothing.
CONFIG: dict[str, tuple[Any, Any]] = {
    "sample_size": (int | list[int] | None, None),
    "in_channels": (int, 3),
    "out_channels": (int, 3),
    "center_input_sample": (bool, False),
    "time_embedding_type": (str, "positional"),
    "time_embedding_dim": (int | None, None),
    "freq_shift": (int | float, 0),
    "flip_sin_to_cos": (bool, True),
    "down_block_types": (list[str], ["DownBlock2D", *["AttnDownBlock2D"] * 3]),
    "mid_block_type": (str | None, "UNetMidBlock2D"),
    "up_block_types": (list[str], [*["AttnUpBlock2D"] * 3, "UpBlock2D"]),
    "block_out_channels": (list[int], [224, 448, 672, 896]),
    "layers_per_block": (int, 2),
    "mid_block_scale_factor": (int | float, 1),
    "downsample_padding": (int, 1),
    "downsample_type": (str, "conv"),
    "upsample_type": (str, "conv"),
    "act_fn": (str, "silu"),
    "attention_head_dim": (int | None, 8),
    "norm_num_groups": (int, 32),
    "attn_norm_num_groups": (int | None, None),
    "norm_eps": (int | float, 1e-5),
    "resnet_time_scale_shift": (str, "default"),
    "add_attention": (bool, True),
    "class_embed_type": (str | None, None),
    "num_class_embeds": (int | None, None),
}
LEAST = {"downsample_padding": 0, "freq_shift": 0, "norm_eps": 0, "mid_block_scale_factor": 1e-6}  # 1 of all others
SILENT = ("dropout", "num_train_timesteps")  # fields that say nothing of the network as it is used
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu", "mish": "mish"}
# Kind of block, without its direction: attention after its blocks, and what resamples; None is for a field to say.
BLOCKS: dict[str, tuple[bool, str | None]] = {
    **{name: (False, "conv") for name in ("DownBlock2D", "UpBlock2D")},
    **{name: (True, None) for name in ("AttnDownBlock2D", "AttnUpBlock2D")},
    **{name: (False, "block") for name in ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")},
}
RESAMPLING = {"conv": "conv", "resnet": "block"}
OLD_PREFIX = "UNetRes"  # of the names of blocks in 2022


def recognises(shapes: Mapping[str, Shape]) -> bool:
    """Tell whether these keys are those of a UNet of diffusers."""
    return ANCHORS[0] in shapes and "conv_in.weight" in shapes


def infer(shapes: Mapping[str, Shape], about: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields of `ddiff_jax.models.UNet2D` off the settings beside the weights.

    Args:
        shapes: key to shape; says nothing that is not in the settings.
        about: "config" is what `config.json` says.

    Raises:
        ValueError: there are no settings, they are of a network that is not known, or no network is like this.
    """
    config = about.get("config")
    if config is None:
        raise ValueError(
            "the weights of diffusers' UNet2DModel come without its config.json; networks with the same shapes "
            "compute different functions, so nothing is guessed: give the folder that holds both"
        )
    said = _said(config)
    _refuse_unknown(said)
    widths, count = said["block_out_channels"], len(said["block_out_channels"])
    down = _blocks("down_block_types", said["down_block_types"], "Down", count, said["downsample_type"])
    up = _blocks("up_block_types", said["up_block_types"], "Up", count, said["upsample_type"])[::-1]
    groups = said["attn_norm_num_groups"]
    if groups is None and said["resnet_time_scale_shift"] != "default":
        groups = 0
    return {
        "in_channels": said["in_channels"],
        "out_channels": said["out_channels"],
        "widths": tuple(widths),
        "num_res_blocks": said["layers_per_block"],
        "down_attention": tuple(i for i, (attends, _) in enumerate(down) if attends),
        "up_attention": tuple(i for i, (attends, _) in enumerate(up) if attends),
        "down_resample": tuple(how for _, how in down[:-1]),
        "up_resample": tuple(how for _, how in up[1:]),
        "uneven": said["downsample_padding"] == 0,
        "middle": said["mid_block_type"] is not None,
        "middle_attention": said["add_attention"],
        "middle_groups": groups,
        "middle_divisor": said["mid_block_scale_factor"],
        "head_width": said["attention_head_dim"],
        "groups": said["norm_num_groups"],
        "epsilon": said["norm_eps"],
        "scale_shift_norm": said["resnet_time_scale_shift"] == "scale_shift",
        "wave_order": "cos" if said["flip_sin_to_cos"] else "sin",
        "wave_shift": said["freq_shift"],
        "emb_width": said["time_embedding_dim"],
        "activation": ACTIVATIONS[said["act_fn"]],
        "num_classes": said["num_class_embeds"],
        "centred": said["center_input_sample"],
    }


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a configuration does not say.

    Raises:
        ValueError: an entry is of another type, or a number that no network has.
    """
    known = {name: value for name, value in config.items() if name in CONFIG}
    try:
        check_types(known, {name: hint for name, (hint, _) in CONFIG.items()})
        for name, value in known.items():
            least = LEAST.get(name, 1)
            for number in value if isinstance(value, list) else [value]:
                if type(number) in (int, float) and not least <= number <= LARGEST:
                    raise ValueError(f"{name} must be from {least} to {LARGEST}; got {quote(repr(number))}")
    except ValueError as error:
        raise ValueError(f"config.json describes no network: {error}") from error
    return {name: known.get(name, default) for name, (_, default) in CONFIG.items()}


def _refuse_unknown(said: Mapping[str, Any]) -> None:
    """Refuse kinds of networks that UNet2D is not."""
    embedding = said["time_embedding_type"]
    if embedding != "positional":
        raise ValueError(
            f"time_embedding_type {quote(repr(embedding))} is that of a network that is told random features or a "
            "learned table of the noise (NCSN++ and others); positional ones are converted"
        )
    if said["class_embed_type"] is not None:
        raise ValueError(
            f"class_embed_type {quote(repr(said['class_embed_type']))} takes labels that are no numbers of classes; "
            "networks with a table of classes (null) are converted"
        )
    choices = {
        "mid_block_type": ("UNetMidBlock2D", None),
        "downsample_padding": (0, 1),
        "downsample_type": RESAMPLING,
        "upsample_type": RESAMPLING,
        "act_fn": ACTIVATIONS,
        "resnet_time_scale_shift": ("default", "scale_shift"),
    }
    for name, known in choices.items():
        if said[name] not in known:
            listed = ", ".join(str(choice) for choice in known)
            raise ValueError(f"{name} {quote(repr(said[name]))} is not converted; known: {listed}")
    inputs, outputs = said["in_channels"], said["out_channels"]
    if outputs not in (inputs, 2 * inputs):
        raise ValueError(
            f"it takes {inputs} channels and gives {outputs}, so it needs another image beside the noisy one; a prior "
            "gives as many as it takes, or twice as many"
        )


def _blocks(field: str, names: Sequence[str], way: str, count: int, how: str) -> list[tuple[bool, str]]:
    """Read a list of blocks: whether they attend, and how they resample."""
    if len(names) != count:
        raise ValueError(f"{field} has {len(names)} entries and block_out_channels {count}")
    found = []
    for name in names:
        plain = name.removeprefix(OLD_PREFIX)
        if plain not in BLOCKS or way not in plain:
            known = ", ".join(block for block in BLOCKS if way in block)
            raise ValueError(f"{field} has {quote(repr(name))}, which is not converted; known: {known}")
        attends, resample = BLOCKS[plain]
        found.append((attends, resample or RESAMPLING[how]))
    return found


def targets(fields: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Target]:
    """Name the parameter of `ddiff_jax.models.UNet2D` that every tensor of a checkpoint belongs to.

    Args:
        fields: of the module.
        shapes: key to shape; layers of attention had other names, and maybe shapes, before 2023.
    """
    return dict(_targets(fields, shapes))


def _targets(fields: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Target]]:
    widths, count = fields["widths"], fields["num_res_blocks"]
    last = len(widths) - 1
    yield from _layer("conv_in", "conv_in")
    yield from _layer("time_embedding.linear_1", "time_1", LINEAR)
    yield from _layer("time_embedding.linear_2", "time_2", LINEAR)
    if fields["num_classes"] is not None:
        yield "class_embedding.weight", (("label",), SAME)
    width, skips = widths[0], [widths[0]]
    for level, wide in enumerate(widths):
        block = f"down_blocks.{level}"
        for i in range(count):
            yield from _residual(f"{block}.resnets.{i}", f"down_{level}_{i}", skip=width != wide)
            if level in fields["down_attention"]:
                yield from _attention(f"{block}.attentions.{i}", f"down_{level}_{i}_attention", shapes)
            width = wide
            skips.append(width)
        if level < last:
            how = fields["down_resample"][level]
            yield from _resampling(f"{block}.downsamplers.0", f"down_{level}_resample", how)
            skips.append(width)
    if fields["middle"]:
        yield from _residual("mid_block.resnets.0", "middle_0")
        if fields["middle_attention"]:
            norm = fields["middle_groups"] != 0
            yield from _attention("mid_block.attentions.0", "middle_attention", shapes, norm=norm)
        yield from _residual("mid_block.resnets.1", "middle_1")
    for level in reversed(range(len(widths))):
        block = f"up_blocks.{last - level}"
        for i in range(count + 1):
            skip = width + skips.pop() != widths[level]
            yield from _residual(f"{block}.resnets.{i}", f"up_{level}_{i}", skip=skip)
            if level in fields["up_attention"]:
                yield from _attention(f"{block}.attentions.{i}", f"up_{level}_{i}_attention", shapes)
            width = widths[level]
        if level > 0:
            how = fields["up_resample"][level - 1]
            yield from _resampling(f"{block}.upsamplers.0", f"up_{level}_resample", how)
    yield from _norm("conv_norm_out", "norm_out")
    yield from _layer("conv_out", "conv_out")


def _layer(prefix: str, *path: Any) -> Iterator[tuple[str, Target]]:
    """Map weight and bias of a layer; a Layout at the end of its path is that of the weight."""
    layout = path[-1] if isinstance(path[-1], Layout) else CONV
    names = tuple(part for part in path if isinstance(part, str))
    yield f"{prefix}.weight", ((*names, "kernel"), layout)
    yield f"{prefix}.bias", ((*names, "bias"), SAME)


def _norm(prefix: str, *path: str) -> Iterator[tuple[str, Target]]:
    yield f"{prefix}.weight", ((*path, "scale"), SAME)
    yield f"{prefix}.bias", ((*path, "bias"), SAME)


def _residual(prefix: str, name: str, *, skip: bool = False) -> Iterator[tuple[str, Target]]:
    yield from _norm(f"{prefix}.norm1", name, "norm_1")
    yield from _layer(f"{prefix}.conv1", name, "conv_1")
    yield from _layer(f"{prefix}.time_emb_proj", name, "emb", LINEAR)
    yield from _norm(f"{prefix}.norm2", name, "norm_2")
    yield from _layer(f"{prefix}.conv2", name, "conv_2")
    if skip:
        yield from _layer(f"{prefix}.conv_shortcut", name, "skip")


def _resampling(prefix: str, name: str, how: str) -> Iterator[tuple[str, Target]]:
    if how == "block":
        yield from _residual(prefix, name)
    else:
        yield from _layer(f"{prefix}.conv", name, "conv")


def _attention(
    prefix: str, name: str, shapes: Mapping[str, Shape], *, norm: bool = True
) -> Iterator[tuple[str, Target]]:
    if norm:
        yield from _norm(f"{prefix}.group_norm", name, "norm")
    old = f"{prefix}.query.weight" in shapes
    layers = ("query", "key", "value", "proj_attn") if old else ("to_q", "to_k", "to_v", "to_out.0")
    for layer, part in zip(layers, ("q", "k", "v", "out"), strict=True):
        layout = CONV if len(shapes.get(f"{prefix}.{layer}.weight", ())) == 4 else POINT
        yield from _layer(f"{prefix}.{layer}", name, part, layout)


def card_fields(
    fields: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    table: tuple[str, np.ndarray] | None = None,
    *,
    about: Mapping[str, Any],
    image_size: int | None = None,
    prediction: str | None = None,
    **schedule: Any,
) -> dict[str, Any]:
    """Fill in a card: image shape, noise schedule and prediction as the settings say.

    Args:
        fields: of the module.
        shapes: key to shape, of the file.
        table: name and numbers of a buffer that states the noise schedule.
        about: "config" and "scheduler" are the settings, "notes" what was said of the folder already.
        image_size: side of the training images; None is `sample_size` of the settings.
        prediction: what the network predicts, "eps", "v" or "x0"; None as the scheduler says.
        schedule: flags of the noise schedule, see `schedules.choose`; without any the scheduler's.

    Raises:
        ValueError: neither settings nor flags say what is needed, or the network cannot take images of this size.
    """
    config = about["config"]
    said, notes = _said(config), [*about.get("notes", ())]
    odd = sorted(name for name in config if name not in (*CONFIG, *SILENT) and not name.startswith("_"))
    if odd:
        listed = ", ".join(quote(name)[:40] for name in odd[:5]) + (f" and {len(odd) - 5} more" if odd[5:] else "")
        notes.append(f"fields of config.json that say nothing of the network ignored: {listed}")
    size = said["sample_size"] if image_size is None else image_size
    if size is None:
        raise ValueError("sample_size in config.json is null; give --image-size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    multiple = 2 ** (len(fields["widths"]) - 1)
    if not all(isinstance(side, int) and side > 0 and side % multiple == 0 for side in (height, width)):
        raise ValueError(
            f"the image size must be a multiple of {multiple} for {len(fields['widths'])} levels; got "
            f"{quote(repr(size))}"
        )
    chosen, more = diffusers_schedulers.choose(about.get("scheduler"), table, prediction=prediction, **schedule)
    notes += more
    if fields["out_channels"] != fields["in_channels"]:
        notes.append("the second half of the channels that the network gives is taken for the variance of a step")
    return {"image_shape": (height, width, fields["in_channels"]), "notes": notes, **chosen}
