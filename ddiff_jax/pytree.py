"""Frozen dataclasses that are JAX pytrees."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

T = TypeVar("T")


def static_field(**kwargs: Any) -> Any:
    """Declare a dataclass field that is part of the tree's structure, not one of its leaves.

    Static fields must be hashable; a change of a static field compiles a new program.
    """
    return dataclasses.field(metadata={"static": True}, **kwargs)


def _show(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray) and value.ndim > 0:
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return f"{{{len(jax.tree.leaves(value))} arrays}}"
    return repr(value)


@dataclass_transform(frozen_default=True, field_specifiers=(static_field, dataclasses.field))
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and register it as a pytree.

    Unflattening bypasses `__init__` and `__post_init__`: transformations put tracers, stacked arrays and
    placeholders into the fields, which a constructor that validates would refuse. So validation belongs into
    `__post_init__` and runs when a person builds the object; batched objects come from `jax.tree.map` or a
    vmapped factory. Two objects are equal when their structures and all their leaves are.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType] - it is one since the line above
    static = tuple(f.name for f in fields if f.metadata.get("static", False))
    data = tuple(f.name for f in fields if f.name not in static)

    def flatten_with_keys(obj: Any) -> Any:
        children = [(jax.tree_util.GetAttrKey(name), getattr(obj, name)) for name in data]
        return children, tuple(getattr(obj, name) for name in static)

    def flatten(obj: Any) -> Any:
        return [getattr(obj, name) for name in data], tuple(getattr(obj, name) for name in static)

    def unflatten(aux: Any, children: Any) -> T:
        obj = object.__new__(cls)
        for name, value in zip(data + static, (*children, *aux), strict=True):
            object.__setattr__(obj, name, value)
        return obj

    def equal(self: Any, other: Any) -> Any:
        if type(self) is not type(other):
            return NotImplemented
        leaves, structure = jax.tree.flatten(self)
        other_leaves, other_structure = jax.tree.flatten(other)
        return structure == other_structure and all(map(np.array_equal, leaves, other_leaves))

    def show(self: Any) -> str:
        body = ", ".join(f"{f.name}={_show(getattr(self, f.name))}" for f in fields if f.repr)
        return f"{cls.__name__}({body})"

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    for name, method in (("__eq__", equal), ("__repr__", show), ("__hash__", None)):
        setattr(cls, name, method)
    return cls


def check_pytree(what: str, value: Any) -> None:
    """Refuse an object that a compiled program cannot take as an argument.

    Args:
        what: its role in messages.
        value: the object.

    Raises:
        TypeError: its class is no pytree, a static field is an array, or a leaf is none.
    """
    check_registered(what, value)
    name = type(value).__name__
    for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
        held = getattr(value, field.name, None)
        if field.metadata.get("static") and isinstance(held, jax.Array | np.ndarray):
            raise TypeError(
                f".{field.name} of the {what}, of type {name}, is an array in a static field, where it would have to "
                "be compared with that of every other: declare the field without static_field()"
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU":
            given = f"an array of {leaf.dtype}"
        elif isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
            continue
        else:
            given = f"a {type(leaf).__name__}"
        raise TypeError(
            f"{jax.tree_util.keystr(path)} of the {what}, of type {name}, is {given}, not an array: declare the field "
            "with ddiff_jax.static_field()"
        )


def check_registered(what: str, value: Any) -> None:
    """Refuse an object whose class is no pytree: transformations would take it for one opaque leaf.

    Raises:
        TypeError: it is none.
    """
    if jax.tree_util.all_leaves([value]):
        raise TypeError(
            f"the {what} is of type {type(value).__name__}, which is no pytree: put @ddiff_jax.pytree_dataclass on the "
            "class, its arrays in fields, and all that is no array in fields with ddiff_jax.static_field()"
        )
