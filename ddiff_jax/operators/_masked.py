"""Any operator where only some entries of the measurement were observed."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from ddiff_jax.operators.base import (
    LinearOperator,
    Operator,
    as_observed,
    equivalent_images,
    measures_picture,
    observed_entries,
    own_counts,
)
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.types import Image, ImageShape, Measurement


class Followed:
    """Base of operators that do something to what another one, `operator`, measures, entry by entry."""

    operator: Operator

    @property
    def image_shape(self) -> ImageShape:
        """(H, W, C) of the input, where the operator says it."""
        return self.operator.image_shape  # pyright: ignore[reportAttributeAccessIssue] - else that is the error

    def counts(self) -> Float[Array, "..."] | None:
        """Count entries as the operator itself does."""
        return own_counts(self.operator)

    def equivalents(self, x: Image) -> Shaped[Array, "E ..."]:
        """List what the operator itself cannot tell apart."""
        return equivalent_images(self.operator, x)


@pytree_dataclass
class Masked(Followed):
    """y = operator(x) where `mask` is true, 0 elsewhere.

    Args:
        operator: what measures.
        mask: which entries were observed; broadcasts to the measurement.
    """

    operator: Operator
    mask: Bool[Array, "..."]

    @property
    def measures_picture(self) -> bool:
        """Whether the operator does."""
        return measures_picture(self.operator)

    def forward(self, x: Image) -> Measurement:
        """Measure, and hide."""
        y = self.operator.forward(x)
        return jnp.where(jnp.broadcast_to(self.mask, y.shape), y, jnp.zeros((), y.dtype))

    def observed(self) -> Bool[Array, "..."]:
        """Give the mask; it hides what the operator itself hides as well."""
        return self.mask


@pytree_dataclass
class LinearMasked(Masked, LinearOperator):  # pyright: ignore[reportIncompatibleVariableOverride] - read only here
    """The same of a linear operator; its adjoint and least squares see the observed entries only."""


def masked(operator: Operator, observed: Shaped[Array, "..."] | Shaped[np.ndarray, "..."]) -> Masked:
    """Hide some entries of what an operator measures: dead pixels of a detector, lost frames, rejected outliers.

    The result is the operator followed by a mask, so that every solver that runs on it is right, those that solve
    least squares included. Those that need a singular value decomposition refuse it: that of an operator says nothing
    about the same operator with holes.

    Args:
        operator: linear or not.
        observed: booleans that broadcast to the measurement; true where an entry was observed. Entries that the
            operator itself hides stay hidden.

    Returns:
        Operator; linear if the given one is.

    Raises:
        TypeError: not booleans.
        ValueError: the shapes do not fit.
    """
    mask, hidden = as_observed(observed, observed.shape), observed_entries(operator)
    if hidden is not None:
        shape = jnp.broadcast_shapes(mask.shape, hidden.shape)
        mask = jnp.broadcast_to(mask, shape) & jnp.broadcast_to(hidden, shape)
    if isinstance(operator, Masked):  # one mask is enough
        return type(operator)(operator.operator, mask)
    return (LinearMasked if isinstance(operator, LinearOperator) else Masked)(operator, mask)
