"""Any operator whose measurement is weighted entry by entry: how noise that differs between entries becomes equal."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ddiff_jax.operators._masked import Masked
from ddiff_jax.operators.base import LinearOperator, Operator, Weighable, equivalent_images, own_counts
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.types import Image, ImageShape, Measurement


@pytree_dataclass
class Weighted:
    """y = root * operator(x); what has the weight 0 is not observed.

    Args:
        operator: what measures.
        root: at least 0, of the shape of the measurement.
    """

    operator: Operator
    root: Float[Array, "..."]

    @property
    def image_shape(self) -> ImageShape:
        """(H, W, C) of the input, where the operator says it."""
        return self.operator.image_shape  # pyright: ignore[reportAttributeAccessIssue] - else that is the error

    def forward(self, x: Image) -> Measurement:
        """Measure, and weight."""
        return weigh(self.root, self.operator.forward(x))

    def observed(self) -> Bool[Array, "..."]:
        """Tell which entries have a weight."""
        return self.root > 0

    def counts(self) -> Float[Array, "..."] | None:
        """Count entries as the operator itself does."""
        return own_counts(self.operator)

    def equivalents(self, x: Image) -> Shaped[Array, "E ..."]:
        """List what the operator itself cannot tell apart."""
        return equivalent_images(self.operator, x)


@pytree_dataclass
class LinearWeighted(Weighted, LinearOperator):  # pyright: ignore[reportIncompatibleVariableOverride] - read only here
    """The same of a linear operator."""


def weigh(root: Float[Array, "..."], y: Measurement) -> Measurement:
    """Multiply a measurement by weights; an entry of weight 0 becomes 0, whatever it held."""
    seen = root > 0
    # Twice where: neither a value nor a derivative of what is hidden, NaN or not, may come through.
    return jnp.where(seen, root.astype(y.dtype) * jnp.where(seen, y, jnp.zeros((), y.dtype)), jnp.zeros((), y.dtype))


def weighted(operator: Operator, root: Float[Array, "..."]) -> Operator:
    """Multiply what an operator measures by weights, entry by entry.

    An operator that can be weighted and stay of its kind (`Weighable`) does; any other is followed by the weights, and
    is solved by conjugate gradients if it is linear.

    Args:
        operator: linear or not.
        root: at least 0, of the shape of the measurement; 0 where an entry is not observed, which must hold for all
            that the operator itself does not observe.

    Returns:
        Operator; linear if the given one is.
    """
    if isinstance(operator, Masked):  # its mask is in the weights
        operator = operator.operator
    made = operator.weighted(root) if isinstance(operator, Weighable) else None
    if made is not None:
        return made
    return (LinearWeighted if isinstance(operator, LinearOperator) else Weighted)(operator, root)
