"""What the maker of an operator can be told: numbers, or files that hold its arrays."""

import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from ddiff_jax.operators import OPERATORS

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


def operator_parameters(operator: str) -> dict[str, tuple[Any, Any]]:
    """List the type (None for an array) and the default (or `REQUIRED`) of a factory's arguments.

    Left out are the shape, and a key that must be a JAX key. One that may be an integer fixes a published draw for
    all images; None draws one for each.
    """
    hints = typing.get_type_hints(OPERATORS[operator])
    parameters = inspect.signature(OPERATORS[operator]).parameters.values()
    found = {p.name: (scalar_type(hints[p.name]), p.default) for p in parameters if p.name != "shape"}
    kind, _ = found.pop("key", (None, None))
    return found if kind is None else {**found, "key": (kind | None, None)}


def is_random(operator: str, arguments: Mapping[str, Any]) -> bool:
    """Tell whether an operator is drawn for each image anew."""
    return "key" in inspect.signature(OPERATORS[operator]).parameters and "key" not in arguments


def files_of(operator: str) -> list[str]:
    """List the arguments of an operator that are arrays, and come from files."""
    return [name for name, (kind, _) in operator_parameters(operator).items() if kind is None]
