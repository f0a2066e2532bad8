"""What the maker of an operator can be told: numbers, or files that hold its arrays."""

import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from ddiff_jax.operators.named import maker

REQUIRED = inspect.Parameter.empty


def scalar_type(hint: Any) -> Any:
    """Reduce an annotation to what text can say: float, int, bool, str, a Literal or a tuple, None allowed or not.

    Returns:
        The type, or None if the annotation wants an array.
    """
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if bytes in choices:  # numpy's ArrayLike, which lists every scalar type as well
        return None
    found = [c for c in choices if get_origin(c) in (Literal, tuple)] or [
        c for c in (float, int, bool, str) if c in choices
    ]
    if not found:
        return None
    kind = int | str if {int, str} <= set(found) else found[0]  # a seed, or the name of a file
    return kind | None if type(None) in choices else kind


def takes_files(kind: Any) -> bool:
    """Tell whether a type of `operator_parameters` may be an array, which comes from a file."""
    return kind is None or Path in get_args(kind)


def operator_parameters(operator: str) -> dict[str, tuple[Any, Any]]:
    """List the type (None for an array) and the default (or `REQUIRED`) of a factory's arguments.

    Left out are the shape, and a key that must be a JAX key. One that may be an integer fixes a published draw for
    all images; None draws one for each. An argument without annotation has the type of its default; without either
    it is a number, or a file that holds an array.

    Args:
        operator: a name that `ddiff_jax.operators.named.maker` knows.

    Raises:
        ValueError: there is no such operator.
    """
    factory = maker(operator).factory
    hints, found = _hints(factory), {}
    for name, parameter in _named(factory).items():
        kind = scalar_type(hints[name]) if name in hints else _type_of(parameter.default)
        if name == "key" and is_random(operator, {}):
            if name not in hints or kind is None:
                continue
            found[name] = kind | None, None
        else:
            found[name] = kind, parameter.default
    return found if "key" not in found else {**{n: v for n, v in found.items() if n != "key"}, "key": found["key"]}


def is_random(operator: str, arguments: Mapping[str, Any]) -> bool:
    """Tell whether an operator is drawn for each image anew: its factory takes a JAX key that nobody gave."""
    factory = maker(operator).factory
    return "key" in _named(factory) and "key" not in arguments and _hints(factory).get("key") is not int


def files_of(operator: str) -> list[str]:
    """List the arguments of an operator that are arrays, and come from files."""
    return [name for name, (kind, _) in operator_parameters(operator).items() if kind is None]


def _named(factory: Any) -> dict[str, inspect.Parameter]:
    """List the arguments that can be given by name, but for the shape."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(factory).parameters.items()
    return {name: p for name, p in parameters if name != "shape" and p.kind in kinds}


def _hints(factory: Any) -> dict[str, Any]:
    """Read the annotations; those of a stranger may name what is not there."""
    try:
        return typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except Exception:
        return {}


def _type_of(default: Any) -> Any:
    """Take the type of an argument from its default, where nothing else tells."""
    if default is REQUIRED or default is None:
        return int | float | Path
    if isinstance(default, tuple) and default and len({type(v) for v in default}) == 1:
        return tuple[type(default[0]), ...] if isinstance(default[0], bool | int | float | str) else None
    return type(default) if isinstance(default, bool | int | float | str) else None
