"""Any operator on a part of a larger image: what lies around it is not measured."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ddiff_jax.operators.base import (
    DecomposableOperator,
    Decomposition,
    LinearOperator,
    Operator,
    equivalent_images,
    measures_picture,
    observed_entries,
    own_counts,
)
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement, Scalar


def middle(outer: ImageShape, inner: ImageShape) -> tuple[slice, ...]:
    """Find the middle of an array: slices of the inner shape, half a pixel nearer to the origin where it is uneven."""
    return tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(outer, inner, strict=True))


@pytree_dataclass
class Cropped:
    """y = operator(middle of x).

    Args:
        operator: what measures.
        inner_shape: shape of the images that it takes.
        image_shape: shape of the larger images, of the same rank; no axis is shorter.
    """

    operator: Operator
    inner_shape: ImageShape = static_field()
    image_shape: ImageShape = static_field()

    def crop(self, x: Image) -> Image:
        """Cut the middle out."""
        return x[middle(self.image_shape, self.inner_shape)]

    def put(self, x: Image, inner: Image) -> Image:
        """Replace the middle."""
        return x.at[middle(self.image_shape, self.inner_shape)].set(inner)

    def embed(self, inner: Image) -> Image:
        """Surround an inner image by zeros."""
        around = [(at.start, n - at.stop) for at, n in zip(self._middle, self.image_shape, strict=True)]
        return jnp.pad(inner, around)

    @property
    def _middle(self) -> tuple[slice, ...]:
        return middle(self.image_shape, self.inner_shape)

    def forward(self, x: Image) -> Measurement:
        """Measure the middle."""
        return self.operator.forward(self.crop(x))

    def observed(self) -> Bool[Array, "..."] | None:
        """Tell which entries were observed, as the operator says."""
        return observed_entries(self.operator)

    def counts(self) -> Float[Array, "..."] | None:
        """Count entries as the operator does."""
        return own_counts(self.operator)

    @property
    def measures_picture(self) -> bool:
        """Whether the operator does."""
        return measures_picture(self.operator)

    def equivalents(self, x: Image) -> Shaped[Array, "E ..."]:
        """List what the operator cannot tell apart, in the same surroundings."""
        return jax.vmap(lambda inner: self.put(x, inner))(equivalent_images(self.operator, self.crop(x)))


@pytree_dataclass
class LinearCropped(Cropped, LinearOperator):
    """The same of a linear operator: least squares are its own in the middle, and what lies around stays as it was."""

    def adjoint(self, y: Measurement) -> Image:
        """Apply A^T, which is 0 around the middle."""
        return self.embed(self._linear.adjoint(y))

    def prox(self, z: Image, y: Measurement, rho: Scalar) -> Image:
        """Minimise ||A x - y||^2 + rho ||x - z||^2 over x, for rho > 0."""
        return self.put(z, self._linear.prox(self.crop(z), y, rho))

    def pseudo_inverse(self, y: Measurement) -> Image:
        """Find the image of least norm among those that minimise ||A x - y||, 0 around the middle."""
        return self.embed(self._linear.pseudo_inverse(y))

    @property
    def _linear(self) -> Any:
        return self.operator


@pytree_dataclass
class DecomposableCropped(LinearCropped, DecomposableOperator):
    """The same of an operator with a singular value decomposition: this one's, with its singular images embedded."""

    def svd(self) -> Decomposition:
        """Decompose the operator."""
        parts = self._linear.svd()
        return Decomposition(
            s=parts.s,
            from_image=lambda x: parts.from_image(self.crop(x)),
            to_image=lambda c: self.embed(parts.to_image(c)),
            from_measurement=parts.from_measurement,
        )


def cropped(operator: Operator, inner_shape: ImageShape, shape: ImageShape) -> Cropped:
    """See an operator as one on larger images, of which it measures the middle.

    Args:
        operator: linear or not.
        inner_shape: shape of the images that it takes.
        shape: shape of the larger images.

    Returns:
        Operator; linear, and with a singular value decomposition, if the given one is and has.
    """
    kind = LinearCropped if isinstance(operator, LinearOperator) else Cropped
    kind = DecomposableCropped if isinstance(operator, DecomposableOperator) else kind
    return kind(operator, tuple(inner_shape), tuple(shape))
