"""Operators by name: those of `OPERATORS`, and anybody's own as MODULE:NAME. All look-ups by name go through here."""

import dataclasses
import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddiff_jax.names import UnknownName, nearest
from ddiff_jax.operators import GIVEN_FORMS, OPERATOR_TYPES, OPERATORS, Function, Operator, known_image_shape
from ddiff_jax.operators.tracing import diagnosis
from ddiff_jax.own_code import current_folder, imported, is_path
from ddiff_jax.pytree import check_registered
from ddiff_jax.types import ImageShape, PRNGKey


@dataclasses.dataclass(frozen=True)
class Maker:
    """What makes an operator, found by its name.

    Args:
        name: in `OPERATORS`, or MODULE:NAME.
        factory: called with the image shape, a key where it has an argument of this name, and its other arguments by
            name.
        made: type of what it makes; None where only the making tells.
        given: name of the factory that takes as an array what this one makes up; see `GIVEN_FORMS`.
        sha256: hash of the source files of an operator of one's own; empty for those of `OPERATORS`.
        image_shape: of all images that it takes, where it is one object that says so.
    """

    name: str
    factory: Callable[..., Any]
    made: type | None
    given: str | None = None
    sha256: str = ""
    image_shape: ImageShape | None = None

    def build(self, shape: ImageShape, key: PRNGKey | int | None = None, **arguments: Any) -> Operator:
        """Make the operator.

        Args:
            shape: image shape, channels last.
            key: for a factory that draws something; of some a number names a published draw.
            arguments: what else the factory takes.

        Raises:
            ValueError: the factory raises something, or what it makes is no operator for such images.
        """
        if key is None and self.sha256:
            return _built(self, tuple(shape), _Arguments(arguments))
        return self._build(shape, {**arguments, **({} if key is None else {"key": key})})

    def _build(self, shape: ImageShape, arguments: Mapping[str, Any]) -> Operator:
        if not self.sha256:
            return self.factory(shape, **arguments)
        try:
            with current_folder():
                made = self.factory(shape, **arguments)
        except Exception as error:  # whatever the stranger's code raises
            raise ValueError(
                f"{self.name}, called with the image shape {shape}, raises {type(error).__name__}: {error}"
            ) from error
        if isinstance(made, Operator) and not inspect.isclass(made):
            return made if "key" in arguments else registered(made, shape)
        if callable(made) and not inspect.isclass(made):
            if isinstance(arguments.get("key"), jax.Array):
                raise ValueError(
                    f"{self.name} draws with a key and makes a function, whose arrays are constants of a program; make "
                    "an object whose fields are the arrays (ddiff_jax.pytree_dataclass), so that images differ in them"
                )
            return Function(made, shape)
        kind = "a class; name an object of it" if inspect.isclass(made) else f"a {type(made).__name__}"
        raise ValueError(
            f"{self.name} must make a function of one image or an object with a method forward: got {kind}"
        )

    def check(self, operator: Operator, shape: ImageShape, whose: str) -> None:
        """Refuse an operator of one's own that does not fit the images, before anything runs.

        Args:
            operator: what `build` made.
            shape: of the images.
            whose: what has such images, for the message.

        Raises:
            ValueError: it is no pytree, takes other images, cannot be traced, or makes no array of floats.
        """
        if not self.sha256:
            return
        try:
            check_registered("operator", operator)
        except TypeError as error:
            raise ValueError(f"{self.name}: {error}") from error
        sized = f"images of {list(shape)} ({whose})"
        known = known_image_shape(operator)
        if known is not None and tuple(known) != tuple(shape):
            raise ValueError(f"{self.name} takes images of {list(known)}, and there are {sized}; build it for these")
        try:
            made = jax.eval_shape(operator.forward, jax.ShapeDtypeStruct(shape, jnp.float32))
        except Exception as error:  # whatever the stranger's code raises
            raise ValueError(
                f"{self.name} does not take {sized}: it {diagnosis(error, shape)}; `ddiff check {self.name}` tells more"
            ) from error
        if not isinstance(made, jax.ShapeDtypeStruct) or made.dtype not in (jnp.float32, jnp.complex64):
            got = f"{made.dtype}{list(made.shape)}" if isinstance(made, jax.ShapeDtypeStruct) else type(made).__name__
            raise ValueError(f"{self.name} must measure one array of float32 or complex64; it makes {got}")


class _Arguments(dict[str, Any]):
    """Arguments that are compared by what they are, arrays by their bytes."""

    def _token(self) -> Hashable:
        def frozen(value: Any) -> Hashable:
            if isinstance(value, np.ndarray):
                return value.shape, value.dtype.str, hashlib.sha256(value.tobytes()).digest()
            return type(value), value if isinstance(value, Hashable) else repr(value)

        return tuple((name, frozen(value)) for name, value in sorted(self.items()))

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a dict has none
        return hash(self._token())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Arguments) and self._token() == other._token()


@functools.lru_cache(maxsize=8)  # the same function again, which JAX does not compile again
def _built(maker: Maker, shape: ImageShape, arguments: _Arguments) -> Operator:
    return maker._build(shape, arguments)


def registered(made: Operator, shape: ImageShape) -> Operator:
    """Take the method `forward` of a plain object for a function, if nothing of what the object offers is lost."""
    offers = ("adjoint", "observed", "equivalents", "measures_picture", "counts", "weighted")
    if not jax.tree_util.all_leaves([made]) or any(hasattr(made, name) for name in offers):
        return made
    return Function(made.forward, known_image_shape(made) or shape)


def maker(name: str) -> Maker:
    """Find what makes an operator.

    Args:
        name: in `OPERATORS`; or MODULE:NAME, looked up from the current folder first. NAME is a function of one image,
            an object with a method `forward`, or a factory: a function or class whose first argument is called
            `shape`, and that makes one of these.

    Raises:
        UnknownName: it is not in `OPERATORS`; the nearest is in the message.
        ValueError: there is no such module or NAME in it, or it is nothing of these.
    """
    if name in OPERATORS:
        return Maker(name, OPERATORS[name], OPERATOR_TYPES[name], GIVEN_FORMS.get(name))
    if not is_path(name):
        raise UnknownName(f"unknown operator {name!r}; {nearest(name, OPERATORS)}; your own is named MODULE:NAME")
    return _own(name, os.getcwd())


@functools.cache  # the hash is that of the file as it was imported
def _own(name: str, folder: str) -> Maker:
    """Import an operator of one's own, for a process in this folder."""
    name, found, sha256 = imported(name, "an operator", "camera:blur for blur in camera.py")
    if isinstance(found, Operator) and not inspect.isclass(found):
        return Maker(name, lambda shape: found, type(found), None, sha256, known_image_shape(found))
    if callable(found) and _first_argument(found) == "shape":
        return Maker(name, found, None, None, sha256)
    if inspect.isclass(found) or not callable(found):
        kind = "a class; name an object of it" if inspect.isclass(found) else f"a {type(found).__name__}"
        raise ValueError(
            f"{name} must be a function of one image, an object with a method forward, or a factory whose first "
            f"argument is called shape; it is {kind}"
        )
    return Maker(name, lambda shape: found, Function, None, sha256)


def _first_argument(function: Callable[..., Any]) -> str | None:
    try:
        return next(iter(inspect.signature(function).parameters), None)
    except (TypeError, ValueError):  # some that are written in C do not tell
        return None
