"""One operator after another."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ddiff_jax.operators._affine import Affine
from ddiff_jax.operators.base import (
    LinearOperator,
    Operator,
    equivalent_images,
    known_image_shape,
    measures_picture,
    observed_entries,
    own_counts,
)
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement


@pytree_dataclass
class Composition:
    """y = outer(inner(x)).

    Args:
        outer: applied last.
        inner: applied first.
        image_shape: (H, W, C) of the input.
    """

    outer: Operator
    inner: Operator
    image_shape: ImageShape = static_field()

    def forward(self, x: Image) -> Measurement:
        """Apply both."""
        return self.outer.forward(self.inner.forward(x))

    def observed(self) -> Bool[Array, "..."] | None:
        """Tell which entries were observed: what the outer operator says, which makes the measurement."""
        return observed_entries(self.outer)

    def counts(self) -> Float[Array, "..."] | None:
        """Count entries as the outer operator does."""
        return own_counts(self.outer)

    @property
    def measures_picture(self) -> bool:
        """Whether the outer operator does."""
        return measures_picture(self.outer)

    def equivalents(self, x: Image) -> Shaped[Array, "E ..."]:
        """List what the inner operator cannot tell apart, which nothing behind it can."""
        return equivalent_images(self.inner, x)


@pytree_dataclass
class LinearComposition(Composition, LinearOperator):
    """The same when both are linear; has an adjoint."""


def compose(outer: Operator, inner: Operator) -> Composition | Affine:
    """Chain two operators, for example a saturating sensor behind a blur.

    Args:
        outer: applied last; built for images of the shape that `inner` measures.
        inner: applied first; says the image shape.

    Returns:
        Operator with the input of `inner` and the measurement of `outer`; linear when both are, affine where an affine
        one follows a linear one.

    Raises:
        ValueError: `inner` does not say its image shape, or the two do not fit.

    Example:
        >>> from ddiff_jax.operators import blur, high_dynamic_range
        >>> soft = blur((8, 8, 3), kernel=[[0.25, 0.5, 0.25]])
        >>> compose(high_dynamic_range((8, 8, 3)), soft).image_shape
        (8, 8, 3)
    """
    shape = known_image_shape(inner)
    if shape is None:
        raise ValueError(
            f"the inner operator must say what images it takes; give {type(inner).__name__} a static field image_shape"
        )
    middle = jax.eval_shape(inner.forward, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
    wanted = known_image_shape(outer)
    if wanted is not None and tuple(wanted) != middle:
        raise ValueError(
            f"the inner operator measures shape {middle}, the outer one is for images of shape {tuple(wanted)}; "
            f"build the outer one with shape {middle}"
        )
    if isinstance(outer, Affine) and isinstance(inner, LinearOperator):
        return Affine(LinearComposition(outer.linear, inner, shape), outer.offset)
    linear = isinstance(outer, LinearOperator) and isinstance(inner, LinearOperator)
    return (LinearComposition if linear else Composition)(outer, inner, shape)
