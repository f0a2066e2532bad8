"""Is an operator linear, or linear but for an offset? Asked of its values, whatever its class says."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from ddiff_jax.operators.base import Operator
from ddiff_jax.types import Image, PRNGKey

TOLERANCE = 1e-5  # relative to the measurements whose sum is compared

Linearity = Literal["linear", "affine", "nonlinear"]


@jax.jit
@jax.default_matmul_precision("highest")
def _defects(operator: Operator, x: Image, v: Image) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    sum_, of_x, of_v, of_0 = (operator.forward(image) for image in (x + v, x, v, jnp.zeros_like(x)))

    def size(values: Any) -> jax.Array:
        return jnp.linalg.norm(values.ravel())

    return size(sum_ - of_x - of_v + of_0), size(of_0), size(of_x - of_0) + size(of_v - of_0), size(of_x) + size(of_v)


def linearity(operator: Operator, x: Image, v: Image) -> tuple[Linearity, float]:
    """Compare A(x + v) - A(0) with the sum of A(x) - A(0) and A(v) - A(0), to relative rounding errors.

    Args:
        operator: A, as a pytree.
        x: an image, smooth for an answer about photographs.
        v: another one, such as noise.

    Returns:
        What it is, and the size of A(0) relative to A(x) - A(0).
    """
    defect, offset, moved, whole = map(float, _defects(operator, x, v))
    if not defect <= TOLERANCE * (moved + whole):  # NaN is not
        return "nonlinear", float("nan")
    return ("linear" if offset <= TOLERANCE * moved else "affine"), offset / max(moved, 1e-30)


def linearity_at_random(operator: Operator, shape: tuple[int, ...], key: PRNGKey) -> Linearity:
    """Ask the same with images that a key draws: one in [-1, 1] and white noise."""
    one, other = jax.random.split(key)
    x = jax.random.uniform(one, shape, jnp.float32, -0.8, 0.8)
    return linearity(operator, x, jax.random.normal(other, shape, jnp.float32))[0]
