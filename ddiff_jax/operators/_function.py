"""Operators made of plain functions."""

from collections.abc import Callable
from typing import Any

import jax

from ddiff_jax.operators._affine import Affine
from ddiff_jax.operators.base import LinearOperator, Operator, check_any_shape
from ddiff_jax.operators.tracing import diagnosis
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement


@pytree_dataclass
class Function:
    """y = function(x).

    Args:
        function: maps one image to its measurement; compiled once per function object.
        image_shape: shape of the input, channels last.
    """

    function: Callable[[Any], Any] = static_field()
    image_shape: ImageShape = static_field()

    def forward(self, x: Image) -> Measurement:
        """Call the function."""
        return self.function(x)


@pytree_dataclass
class LinearFunction(LinearOperator):
    """The same for a linear function, with the adjoint and least squares that JAX derives from it."""

    function: Callable[[Any], Any] = static_field()
    image_shape: ImageShape = static_field()

    def forward(self, x: Image) -> Measurement:
        """Call the function."""
        return self.function(x)


@pytree_dataclass
class _WithoutOffset(LinearOperator):
    """The linear part of an affine function: x -> function(x) - function(0)."""

    function: Callable[[Any], Any] = static_field()
    image_shape: ImageShape = static_field()

    def forward(self, x: Image) -> Measurement:
        """Apply its derivative, which is the same everywhere."""
        # Not a difference of two measurements: a small one of two large numbers would be all rounding.
        _, change = jax.jvp(self.function, (jax.numpy.zeros_like(x),), (x,))
        return change


def from_function(
    function: Callable[[Any], Any], shape: ImageShape, *, linear: bool = False, affine: bool = False
) -> Operator:
    """Build an operator from a function.

    Arrays that the function closes over become constants of every compiled program. Where they change (a mask per
    image, a parameter to fit), write a class with `pytree_dataclass` instead. Inside of `shard_map` with its
    checks, a linear function that closes over arrays has no `prox`.

    Args:
        function: maps one image in [-1, 1], channels last, to its measurement, an array of any shape; made of
            operations that JAX can trace and differentiate.
        shape: image shape: (H, W, C), or (L, C) for signals and (D, H, W, C) for volumes.
        linear: whether it is; then solvers may use its adjoint. `check_operator` tells.
        affine: whether it is linear but for what it makes of the image 0, as instruments are that see intensities;
            then solvers may use the adjoint of its linear part.

    Raises:
        ValueError: the shape is no image shape, or the function is said to be both.
        TypeError: it is no function of one argument that JAX can trace, or does not return one array.
    """
    shape = check_any_shape(shape)
    if not callable(function):
        raise TypeError(f"a function of one image is wanted; got {type(function).__name__}")
    try:
        made = jax.eval_shape(function, jax.ShapeDtypeStruct(shape, jax.numpy.float32))
    except Exception as error:  # whatever a stranger's code raises
        raise TypeError(f"JAX cannot trace the function: it {diagnosis(error, shape)}") from error
    if not isinstance(made, jax.ShapeDtypeStruct):
        raise TypeError(f"the function must return one array; it returns {type(made).__name__}")
    if affine and linear:
        raise ValueError("linear=True and affine=True say different things of what is measured of 0: give one of them")
    if affine:
        zero = jax.numpy.zeros(shape, jax.numpy.result_type(float))
        return Affine(_WithoutOffset(function, shape), function(zero))
    return LinearFunction(function, shape) if linear else Function(function, shape)
