"""What an operator is, and what linear ones add."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ddiff_jax.types import Image, Measurement

ImageShape = tuple[int, int, int]


@runtime_checkable
class Operator(Protocol):
    """A noiseless, deterministic and differentiable map from one image to its measurement.

    Any object with this method serves, as long as it is a pytree (`ddiff_jax.pytree_dataclass` makes it one).
    """

    def forward(self, x: Image) -> Measurement:
        """Map one image [H, W, C] in [-1, 1] to its measurement."""
        ...


class LinearOperator:
    """Base of the linear operators: adds the adjoint, by transposing `forward`.

    Subclasses are pytree dataclasses with a static field `image_shape`.
    """

    image_shape: ImageShape

    def forward(self, x: Image) -> Measurement:
        """Map one image [H, W, C] to its measurement."""
        raise NotImplementedError

    def adjoint(self, y: Measurement) -> Image:
        """Apply A^T (A^H for a complex measurement), so that <A x, y> = <x, A^H y> for real images x."""
        x = jax.ShapeDtypeStruct(self.image_shape, jnp.finfo(y.dtype).dtype)
        (x_adjoint,) = jax.linear_transpose(self.forward, x)(jnp.conj(y))
        return x_adjoint


def dot_test(operator: LinearOperator, x: Image, y: Measurement) -> jax.Array:
    """Measure |<A x, y> - <x, A^H y>| / (||A x|| ||y||): rounding error for a true adjoint."""
    forward, adjoint = operator.forward(x), operator.adjoint(y)
    inner = jnp.real(jnp.vdot(forward, y))
    scale = jnp.linalg.norm(forward.ravel()) * jnp.linalg.norm(y.ravel())
    return jnp.abs(inner - jnp.vdot(x, adjoint)) / scale


def check_shape(shape: ImageShape) -> ImageShape:
    """Return an image shape as three positive integers.

    Raises:
        ValueError: it is anything else.
    """
    if len(shape) != 3 or any(int(n) != n or n < 1 for n in shape):
        raise ValueError(f"the image shape must be three positive integers (H, W, C); got {shape}")
    height, width, channels = map(int, shape)
    return height, width, channels
