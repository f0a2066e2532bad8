"""Instruments that see intensities: linear but for what they measure of the grey image 0."""

from jaxtyping import Array, Bool, Float, Shaped

from ddiff_jax.operators._masked import Masked, masked
from ddiff_jax.operators.base import (
    LinearOperator,
    Operator,
    equivalent_images,
    measures_picture,
    observed_entries,
    own_counts,
)
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.types import Image, ImageShape, Measurement


@pytree_dataclass
class Affine:
    """y = linear(x) + offset.

    An intensity I in [0, 1] is (x + 1) / 2 of an image x in [-1, 1]: what is linear in I is affine in x. Under Gaussian
    noise solvers see `linear` and y - offset, which is the same problem, so that all of them run on it.

    Args:
        linear: L.
        offset: what is measured of x = 0.
    """

    linear: LinearOperator
    offset: Measurement

    @property
    def image_shape(self) -> ImageShape:
        """(H, W, C) of the input."""
        return self.linear.image_shape

    @property
    def measures_picture(self) -> bool:
        """Whether the linear part does."""
        return measures_picture(self.linear)

    def forward(self, x: Image) -> Measurement:
        """Measure."""
        y = self.linear.forward(x)
        return y + self.offset.astype(y.dtype)

    def observed(self) -> Bool[Array, "..."] | None:
        """Tell what the linear part observes."""
        return observed_entries(self.linear)

    def counts(self) -> Float[Array, "..."] | None:
        """Count entries as the linear part does."""
        return own_counts(self.linear)

    def equivalents(self, x: Image) -> Shaped[Array, "E ..."]:
        """List what the linear part cannot tell apart."""
        return equivalent_images(self.linear, x)


def affine(linear: LinearOperator, offset: Measurement) -> Affine:
    """Add to what a linear operator measures what it measures of the grey image 0.

    Args:
        linear: L.
        offset: real or complex as L's measurement is, of its shape.

    Returns:
        Operator x -> L x + offset.

    Raises:
        TypeError: the operator is not linear.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddiff_jax.operators import gaussian_blur
        >>> soft = gaussian_blur((8, 8, 1), size=5, std=1.0)
        >>> counts = affine(soft, jnp.full((8, 8, 1), 10.0))  # a camera with a dark level
        >>> float(counts.forward(jnp.zeros((8, 8, 1)))[0, 0, 0])
        10.0
    """
    if not isinstance(linear, LinearOperator):
        raise TypeError(
            f"the operator must be linear; got {type(linear).__name__}: derive it from LinearOperator, or wrap a "
            "linear function by from_function(function, shape, linear=True)"
        )
    return Affine(linear, offset)


def linear_part(operator: Operator) -> tuple[Operator, Measurement | None]:
    """Split an operator into its linear part and what it measures of 0; None where it is not known to be affine."""
    if isinstance(operator, Affine):
        return operator.linear, operator.offset
    if isinstance(operator, Masked) and isinstance(operator.operator, Affine):
        return masked(operator.operator.linear, operator.mask), operator.operator.offset
    return operator, None
