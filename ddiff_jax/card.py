"""The card of a set of weights: what is known of them, read strictly, and the noise schedule that it names."""

import dataclasses
import inspect
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ddiff_jax.files import quote
from ddiff_jax.levels import Schedule
from ddiff_jax.limits import LARGEST, most_bytes
from ddiff_jax.names import check_keys, check_name
from ddiff_jax.priors.network import SIGMA_DATA, Prediction
from ddiff_jax.schedule import (
    EDMSchedule,
    FlowSchedule,
    VPSchedule,
    VPSDESchedule,
    cosine_schedule,
    linear_schedule,
    scaled_linear_schedule,
)

FORMAT = 2
DTYPES = ("float32", "int16")
LATER_FIELDS = ("image_range", "clip", "linear_rank", "family")  # which cards of this format did not have at first


# Name on a card to what builds the schedule from the card's other entries; "table" lists `alpha_bar` itself.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear_schedule,
    "cosine": cosine_schedule,
    "scaled_linear": scaled_linear_schedule,
    "table": VPSchedule,
    "edm": EDMSchedule,
    "flow": FlowSchedule,
    "vp_sde": VPSDESchedule,
}


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known of a set of weights.

    Args:
        kind: which network, a key of `ddiff_jax.architecture.MODULES`.
        architecture: the fields of its module.
        image_shape: (H, W, C) of the images it was trained on.
        schedule: "name", a key of `SCHEDULES`, and the arguments of what it names; empty for networks that are no
            prior.
        dtype: type of the stored numbers.
        num_parameters: how many there are.
        source: name and SHA-256 of the file the weights came from.
        licence: under which terms they may be used.
        prediction: what the network predicts, see `DiffusionPrior`; None for networks that are no prior.
        sigma_data: of `DiffusionPrior`.
        image_range: what the network's training images had for -1 and 1 of ours; (0, 1) for a network of images in
            [0, 1]. The schedule and sigma_data are in our units all the same.
        clip: of `DiffusionPrior`; False for images that are no pictures and have no range.
        linear_rank: principal directions of the linear denoiser that lies beside the network's weights, to which its
            output is added (`linear` of `DiffusionPrior`); 0 where there is none.
        family: where such networks come from, in words.
        notes: what else a user should know, such as assumptions made on conversion.
        files: SHA-256 of every weight file, by its path inside the folder.
        format: version of this layout.
    """

    kind: str
    architecture: dict[str, Any]
    image_shape: tuple[int, int, int]
    schedule: dict[str, Any]
    dtype: str
    num_parameters: int
    source: dict[str, str]
    licence: str
    prediction: Prediction | None = None
    sigma_data: float = SIGMA_DATA
    image_range: tuple[float, float] = (-1.0, 1.0)
    clip: bool = True
    linear_rank: int = 0
    family: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    format: int = FORMAT


def parse_card(text: str) -> Card:
    """Read a card.

    Raises:
        ValueError: it is no JSON, of another version, or an entry is unknown, missing or of another type.
    """
    values = json.loads(text, parse_constant=_refuse)
    if not isinstance(values, dict):
        raise ValueError(f"a card is a mapping; got {type(values).__name__}")
    if (version := values.get("format")) != FORMAT:
        raise ValueError(
            f"it has format {quote(repr(version))}, this version of ddiff_jax reads {FORMAT}; convert again"
        )
    check_keys("a card", values, (field.name for field in dataclasses.fields(Card)))
    for field in dataclasses.fields(Card):
        if field.name not in (*values, *LATER_FIELDS):
            raise ValueError(f"it lacks {field.name}")
    check_types(values, get_type_hints(Card))
    for name in ("architecture", "schedule", "image_shape", "sigma_data", "image_range"):
        _check_numbers(name, values.get(name))
    height, width, channels = values["image_shape"]
    if min(height, width, channels) < 1 or height * width * channels * 4 > most_bytes():
        raise ValueError(f"image_shape must be that of an image; got {values['image_shape']}")
    if not 0 <= values["num_parameters"] < 2**63:
        raise ValueError(f"num_parameters must be a count; got {quote(repr(values['num_parameters']))}")
    if not 0 <= values.get("linear_rank", 0) <= LARGEST:
        raise ValueError(f"linear_rank must be a count; got {quote(repr(values['linear_rank']))}")
    if not values.get("sigma_data", SIGMA_DATA) > 0:
        raise ValueError(f"sigma_data must be above 0; got {values['sigma_data']}")
    low, high = values.get("image_range", (-1, 1))
    if not low < high:
        raise ValueError(f"image_range must rise; got {low} and {high}")
    if values["dtype"] not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {quote(repr(values['dtype']))}")
    for name in values["files"]:
        path = PurePosixPath(name)
        if path.is_absolute() or {"..", "."} & {*path.parts} or set("\\\0") & {*name} or str(path) != name:
            raise ValueError(f"it lists {quote(repr(name))}, which is no path inside the folder")
    pairs = {name: tuple(values[name]) for name in ("image_shape", "image_range") if name in values}
    return Card(**{**values, **pairs})


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no number")


def _check_numbers(name: str, value: Any) -> None:
    """Refuse numbers that nothing of this kind has: they would be computed with before anything is found wrong."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(key, inner)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(name, inner)
    elif isinstance(value, int | float) and not (abs(value) <= LARGEST and math.isfinite(value)):
        raise ValueError(f"{quote(name)} must be at most {LARGEST}; got {quote(repr(value))}")


def build_schedule(values: Mapping[str, Any]) -> Schedule:
    """Build the noise schedule of a card.

    Raises:
        ValueError: the name is unknown, or what it names cannot be built from the other entries.
    """
    arguments = {**values}
    name = arguments.pop("name", None)
    check_name("noise schedule", str(name), SCHEDULES)
    build = SCHEDULES[str(name)]
    check_keys(f"noise schedule {name}", arguments, inspect.signature(build).parameters)
    check_types(arguments, get_type_hints(build))
    try:
        return build(**arguments)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"the noise schedule {name} cannot be built: {quote(error)}") from error


def check_types(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Check values read from JSON, in which tuples are lists, against annotations.

    Raises:
        ValueError: one is of another type.
    """
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            wanted = hints[name].__name__ if isinstance(hints[name], type) else hints[name]
            raise ValueError(f"{name} must be {wanted}; got {repr(value)[:60]}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is dict:
        return isinstance(value, dict) and all(_fits(inner, arguments[1]) for inner in value.values())
    if origin is tuple and arguments[-1] is not Ellipsis:
        return _fits(value, list[Any]) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(inner, arguments[0]) for inner in value)
    if hint is int:
        return type(value) is int
    if hint is float:
        return type(value) in (int, float)
    return isinstance(value, hint)
