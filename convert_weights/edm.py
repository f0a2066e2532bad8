"""What SongUNet and DhariwalUNet share: names that say the sides of images, preconditionings, published files."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from convert_weights import published, schedules
from convert_weights.edm_published import PUBLISHED, Settings
from convert_weights.mapping import CONV, LINEAR, SAME, Layout, Shape, Target
from ddiff_jax.limits import MOST_BLOCKS
from ddiff_jax.names import check_name
from ddiff_jax.priors.network import SIGMA_DATA

FLAGS = frozenset(
    "image_size precond sigma_data image_range noise_schedule num_timesteps beta_range".split()  # of the last three: u
)
"""Settings of `convert_weights.convert` that say something of these networks."""

PRECONDS = ("edm", "vp", "ve", "iddpm")
ENTRY = re.compile(r"(enc|dec)\.(\d{1,6})x(\d{1,6})_([a-z_]+)(\d{0,6})\.")
MOST_GROUPS = 128  # channels up to which the two rules for the groups of norms differ
FILTERS = {2: (1, 1), 4: (1, 3, 3, 1)}  # by their length

Fields = Mapping[str, Any]
Shapes = Mapping[str, Shape]


def _signature(shapes: Shapes) -> str:
    """Sum up names and shapes as NVIDIA's files have them."""
    channels, outputs = in_out(shapes)
    buffer = {"u": (1001,)} if outputs == 2 * channels else {}
    return published.signature({f"model.{name}": shape for name, shape in shapes.items()} | buffer)


def find(shapes: Shapes) -> Settings | None:
    """Find the published network that has exactly these names and shapes."""
    return PUBLISHED.get(_signature(shapes))


def skips(key: str) -> bool:
    """Tell of tensors that are no parameters: of the resampling, and of the augmentation in training."""
    return key.endswith(".resample_filter") or key == "map_augment.weight"


def sides(shapes: Shapes) -> list[int]:
    """Read the sides of the images at every level off the names of the encoder, finest first.

    Raises:
        ValueError: they do not halve from level to level.
    """
    found = {(int(m[2]), int(m[3])) for key in shapes if (m := ENTRY.match(key)) and m[1] == "enc"}
    ordered = sorted((height for height, _ in found), reverse=True)
    halves = all(height == width == ordered[0] >> level for level, (height, width) in enumerate(sorted(found)[::-1]))
    if not ordered or not halves or ordered[-1] < 1:
        raise ValueError(f"the names of its encoder must give sides that halve from level to level; got {ordered[:10]}")
    return ordered


def in_out(shapes: Shapes) -> tuple[int, int]:
    """Count the channels that go in and that come out."""
    side = sides(shapes)[0]
    last = "out_conv.weight" if "out_conv.weight" in shapes else f"dec.{side}x{side}_aux_conv.weight"
    first = f"enc.{side}x{side}_conv.weight"
    for name in (first, last):
        if len(shapes.get(name, ())) != 4:
            raise ValueError(f"half of the network is missing, or damaged: it has no {name} with four axes")
    return shapes[first][1], shapes[last][0]


def infer(shapes: Shapes, base: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the fields that both networks have.

    Args:
        shapes: key to shape.
        base: model_channels.
        about: what else is known, see `Contents`; `prefix` is what the names began with.

    Raises:
        ValueError: the tensors are not those of such a network.
    """
    levels, (channels, outputs) = sides(shapes), in_out(shapes)
    if outputs not in (channels, 2 * channels):
        raise ValueError(
            f"it takes {channels} channels and gives {outputs}: a prior gives as many as it takes, or twice as many"
        )
    first = f"enc.{levels[0]}x{levels[0]}_block"
    num_blocks = len({m[0] for key in shapes if (m := ENTRY.match(key)) and m[0].startswith(first)})
    if not 0 < num_blocks * len(levels) <= MOST_BLOCKS:
        raise ValueError(
            f"it has {num_blocks} blocks in each of {len(levels)} levels; up to {MOST_BLOCKS} in all are known"
        )
    widths = [shapes[f"enc.{side}x{side}_block0.conv1.weight"][0] for side in levels]
    attended = [level for level, side in enumerate(levels) if f"enc.{side}x{side}_block0.qkv.weight" in shapes]
    return {
        "in_channels": channels,
        "out_channels": outputs,
        "model_channels": base,
        "channel_mult": tuple(width // base if width % base == 0 else width / base for width in widths),
        "num_res_blocks": num_blocks,
        "attention_levels": tuple(attended),
        "emb_width": shapes["map_layer0.weight"][0],
        "group_width": 4 if _has_model(about) else 1,
    }


def _has_model(about: Mapping[str, Any]) -> bool:
    """Tell whether the network was an attribute `model` of a preconditioning, as it is everywhere but in deepinv."""
    return about.get("prefix", "").endswith("model.")


def examine(tensors: Mapping[str, np.ndarray]) -> None:
    """Check the filters that images are resampled with, of which shapes tell the length alone.

    Raises:
        ValueError: one is another filter.
    """
    for name, tensor in tensors.items():
        if name.endswith(".resample_filter"):
            row = np.asarray(FILTERS.get(tensor.shape[-1], (math.nan,)), np.float64)
            wanted = np.outer(row, row) / row.sum() ** 2
            got = tensor.astype(np.float64)
            if got.shape != (1, 1, *wanted.shape) or not np.allclose(got, wanted, atol=1e-3):
                raise ValueError(f"its {name} is neither [1, 1] nor [1, 3, 3, 1] along both axes")


def _qkv(heads: int) -> Layout:
    """Read rows that run head by head, channel by channel, each with its q, k and v; ours run q, k, v by channel."""

    def convert(a: np.ndarray) -> np.ndarray:
        rows = a.reshape(heads, -1, 3, *a.shape[1:]).swapaxes(1, 2).reshape(a.shape)
        return rows if a.ndim == 1 else CONV.convert(rows)

    return Layout(convert, lambda s: s if len(s) == 1 else CONV.file_shape(s))


def last_layouts(shapes: Shapes, about: Mapping[str, Any], precond: str | None) -> tuple[Layout, Layout]:
    """Find how the kernel and the bias of the last layer are stored: "ve" networks give the negative of the noise."""
    name, _ = precondition(shapes, about, precond)
    return (_negated(CONV), _negated(SAME)) if name == "ve" else (CONV, SAME)


def _negated(layout: Layout) -> Layout:
    """Store the negative of what the file has."""
    return Layout(lambda a: -layout.convert(a), layout.file_shape)


def layer(
    prefix: str, path: tuple[str, ...], kernel: Layout = CONV, bias: Layout = SAME, name: str = "kernel"
) -> Iterator[tuple[str, Target]]:
    """Name the parameters of one layer."""
    yield f"{prefix}.weight", ((*path, name), kernel)
    yield f"{prefix}.bias", ((*path, "bias"), bias)


def norm(prefix: str, path: tuple[str, ...]) -> Iterator[tuple[str, Target]]:
    """Name the parameters of a norm."""
    return layer(prefix, path, SAME, name="scale")


def _block(
    prefix: str, name: str, *, skip: bool, heads: int, attention: str | None = None
) -> Iterator[tuple[str, Target]]:
    """Name the parameters of a block: called `name`, and its attention by that or another name."""
    yield from norm(f"{prefix}.norm0", (name, "norm_1"))
    yield from layer(f"{prefix}.conv0", (name, "conv_1"))
    yield from layer(f"{prefix}.affine", (name, "emb"), LINEAR)
    yield from norm(f"{prefix}.norm1", (name, "norm_2"))
    yield from layer(f"{prefix}.conv1", (name, "conv_2"))
    if skip:
        yield from layer(f"{prefix}.skip", (name, "skip"))
    if heads:
        attention = f"{attention or name}_attention"
        yield from norm(f"{prefix}.norm2", (attention, "norm"))
        yield from layer(f"{prefix}.qkv", (attention, "qkv"), _qkv(heads), _qkv(heads))
        yield from layer(f"{prefix}.proj", (attention, "out"))


def trunk(fields: Fields, levels: list[int], *, dhariwal: bool) -> Iterator[tuple[str, Target]]:
    """Name the parameters of the embedding, the encoder and the decoder, as far as both networks have them.

    Args:
        fields: of the module.
        levels: sides of the images at every level.
        dhariwal: DhariwalUNet: heads of 64 channels, the first convolution as wide as the first level, kernels in
            skips only where the width changes, attention after all blocks going up.
    """
    widths = [int(mult * fields["model_channels"]) for mult in fields["channel_mult"]]
    last = len(widths) - 1

    def heads(width: int) -> int:
        return width // 64 if dhariwal else 1

    yield from layer("map_layer0", ("time_1",), LINEAR)
    yield from layer("map_layer1", ("time_2",), LINEAR)
    yield from layer(f"enc.{levels[0]}x{levels[0]}_conv", ("conv_in",))
    width = widths[0] if dhariwal else fields["model_channels"]
    skips = [width]
    for level, side in enumerate(levels):
        if level:
            yield from _block(f"enc.{side}x{side}_down", f"down_{level - 1}_resample", skip=not dhariwal, heads=0)
            skips.append(width)
        for i in range(fields["num_res_blocks"]):
            attended = heads(widths[level]) if level in fields["attention_levels"] else 0
            skip = width != widths[level]
            yield from _block(f"enc.{side}x{side}_block{i}", f"down_{level}_{i}", skip=skip, heads=attended)
            width = widths[level]
            skips.append(width)
    for level, side in reversed(list(enumerate(levels))):
        if level == last:
            middle = heads(width) if fields.get("middle_attention", True) else 0
            yield from _block(f"dec.{side}x{side}_in0", "middle_0", skip=False, heads=middle, attention="middle")
            yield from _block(f"dec.{side}x{side}_in1", "middle_1", skip=False, heads=0)
        else:
            yield from _block(f"dec.{side}x{side}_up", f"up_{level + 1}_resample", skip=not dhariwal, heads=0)
        for i in range(fields["num_res_blocks"] + 1):
            here = level in fields["attention_levels"] and (dhariwal or i == fields["num_res_blocks"])
            skip = width + skips.pop() != widths[level]
            attended = heads(widths[level]) if here else 0
            yield from _block(f"dec.{side}x{side}_block{i}", f"up_{level}_{i}", skip=skip, heads=attended)
            width = widths[level]


def precondition(
    shapes: Shapes, about: Mapping[str, Any], precond: str | None
) -> tuple[str, Literal["flag", "file", "shapes", "published", "assumed"]]:
    """Find the preconditioning: as the file says, as a flag says, as published, or assumed; and say which.

    Raises:
        ValueError: the flag is unknown, or what is known contradicts it.
    """
    channels, outputs = in_out(shapes)
    if precond is not None:
        check_name("preconditioning", precond, PRECONDS)
    said = about.get("precond")
    if said is not None and precond not in (None, said):
        raise ValueError(
            f"the file says that its preconditioning is {said} ({about.get('class_name')}); leave --precond out"
        )
    chosen, has_variance = said or precond, outputs == 2 * channels
    if chosen is not None and (chosen == "iddpm") != has_variance:
        cure = "leave --precond out" if has_variance else f"give another of {', '.join(PRECONDS[:3])}"
        raise ValueError(
            f"a network with the preconditioning {chosen} gives {'as many' if has_variance else 'twice the'} channels "
            f"{'as' if has_variance else 'that'} it takes, and this one takes {channels} and gives {outputs}; {cure}"
        )
    if chosen is not None:
        return chosen, "flag" if said is None else "file"
    if has_variance:
        return "iddpm", "shapes"
    known = find(shapes)
    return (known.precond, "published") if known is not None else ("edm", "assumed")


def card_fields(
    fields: Fields,
    shapes: Shapes,
    table: tuple[str, np.ndarray] | None = None,
    *,
    about: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    precond: str | None = None,
    sigma_data: float | None = None,
    image_range: tuple[float, float] | None = None,
    **schedule: Any,
) -> dict[str, Any]:
    """Fill in a card: architecture, image shape, preconditioning, and what was taken for granted.

    Args:
        fields: of the module.
        shapes: key to shape, of the file.
        table: name and numbers of a buffer that states the noise schedule.
        about: what else is known, see `Contents`.
        image_size: side of the training images, which the names of the tensors say; another one is refused.
        precond: preconditioning, one of `PRECONDS`.
        sigma_data: standard deviation of clean images, in units of the network's images; None is what the file says,
            or 0.5.
        image_range: what the training images had for black and white; None is -1 and 1.
        schedule: flags of the noise schedule, for "iddpm" alone.

    Raises:
        ValueError: a flag contradicts the file, or another one.
    """
    about, side = about or {}, sides(shapes)[0]
    known, (name, source) = find(shapes), precondition(shapes, about, precond)
    if image_size not in (None, side):
        raise ValueError(
            f"the names of its tensors say that images are {side}x{side}; leave --image-size {image_size} out"
        )
    if name != "edm" and sigma_data is not None:
        raise ValueError(f"a network with the preconditioning {name} has no --sigma-data; leave it out")
    if name != "edm" and image_range not in (None, (-1, 1)):
        raise ValueError(
            f"a network with the preconditioning {name} is served with images in [-1, 1] alone; leave --image-range out"
        )
    if name != "iddpm" and schedule:
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in schedule)
        raise ValueError(f"a network with the preconditioning {name} has no {flags}; leave it out")
    if name != "iddpm" and table is not None and table[0].rpartition(".")[2] == "u":
        raise ValueError(f"it has the noise levels of an iddpm network as {table[0]}; leave --precond {name} out")
    low, high = image_range or (-1.0, 1.0)
    if not low < high:
        raise ValueError(f"the image range must rise, black first; got {low} and {high}")
    notes = [*_told(known, name, source, side), *_groups(fields, about)]
    card: dict[str, Any] = {
        "architecture": dict(fields),
        "image_shape": (side, side, fields["in_channels"]),
        "prediction": "edm" if name == "edm" else "eps",
        "image_range": (float(low), float(high)),
        "clip": known.clip if known is not None else fields["in_channels"] != 2,
    }
    if known is not None and known.scale:
        notes.append(known.scale)
    elif not card["clip"]:
        notes.append("two channels taken for the real and the imaginary part of complex images; not clipped")
    if name == "edm":
        # In units of our images, whose range is 2 wide.
        ours = 2 / (high - low)
        given = sigma_data if sigma_data is not None else _number(about, "sigma_data", SIGMA_DATA)
        if not 0 < given < math.inf:
            raise ValueError(f"sigma_data must be above 0; got {given}")
        card["sigma_data"] = ours * given
        ends = {"sigma_max": _number(about, "sigma_max", 80.0), "sigma_min": _number(about, "sigma_min", 0.002)}
        card["schedule"] = {"name": "edm", **{end: ours * value for end, value in ends.items()}, "reference": ours}
        if sigma_data is None and "sigma_data" not in about and known is None:
            notes.append(f"sigma_data {given} assumed, as published; --sigma-data changes it")
        if image_range is None and not _has_model(about):
            notes.append(
                "images taken to be in [-1, 1], as in the published weights of deepinv; those of a network that "
                "deepinv trained are in [0, 1] unless told otherwise: then give --image-range 0 1"
            )
    elif name == "vp":
        steps = _number(about, "M", 1000.0)
        betas = {"beta_d": _number(about, "beta_d", 19.9), "beta_min": _number(about, "beta_min", 0.1)}
        card["schedule"] = {"name": "vp_sde", **betas, "time_scale": steps - 1}
    elif name == "ve":
        card["schedule"] = {"name": "edm", "sigma_max": 100.0, "sigma_min": 0.02, "time_scale": 1.0, "reference": 2.0}
        notes.append("the network predicts the negative of the noise: its last layer negated")
    else:
        cosine = published.Settings("", side, noise_schedule="cosine")
        card["schedule"], said = schedules.choose(table, cosine, **schedule)
        if table is None and not schedule:
            said = (
                "no noise levels (u) in the file: the cosine schedule of 1000 steps taken, which they are as published"
            )
        notes += [said] if said else []
    return {**card, "notes": notes}


def _number(about: Mapping[str, Any], name: str, default: float) -> float:
    """Look up a number; 0 and infinity stand for no bound."""
    value = about.get(name, default)
    return float(value) if isinstance(value, int | float) and 0 < value < math.inf else default


def _told(known: Settings | None, precond: str, source: str, side: int) -> Iterator[str]:
    if known is not None:
        yield (f"the shapes are those of {known.files}: preconditioning {precond} (--precond), images of {side}x{side}")
    if source == "file":
        yield f"preconditioning {precond}, as the file says"
    elif source == "shapes" and known is None:
        yield "preconditioning iddpm, since it gives twice the channels that it takes"
    elif source == "assumed":
        yield f"preconditioning {precond} assumed, as in most networks of this kind; --precond vp or ve changes it"


def _groups(fields: Fields, about: Mapping[str, Any]) -> Iterator[str]:
    if fields["model_channels"] * min(1, *fields["channel_mult"]) < MOST_GROUPS:
        has_model = _has_model(about)
        rule = "up to 32 groups of at least 4 channels" if has_model else "32 groups"
        yield (
            f"norms taken to have {rule}, since names begin with{'' if has_model else 'out'} model.; this matters for "
            f"layers of less than {MOST_GROUPS} channels"
        )


def alternatives(
    fields: Fields,
    shapes: Shapes,
    table: tuple[str, np.ndarray] | None,
    given: Mapping[str, Any],
    *,
    about: Mapping[str, Any],
    everything: bool = False,
) -> list[tuple[str, list[dict[str, Any]]]]:
    """List what else could be meant where shapes do not tell, for a probe.

    Args:
        fields: of the module as assumed.
        shapes: key to shape, of the file.
        table: name and numbers of a buffer that states the noise schedule.
        given: flags; what they say is not open.
        about: what else is known.
        everything: also what is known of a published network with these shapes.
    """
    name, source = precondition(shapes, about, given.get("precond"))
    axes: list[tuple[str, list[dict[str, Any]]]] = []
    if source == "assumed" or (everything and source == "published" and name != "iddpm"):
        axes.append(("preconditioning", [{"precond": other} for other in PRECONDS[:3] if other != name]))
    if name == "edm" and not _has_model(about) and "image_range" not in given:
        axes.append(("range of images", [{"image_range": (0.0, 1.0)}]))
    return axes
