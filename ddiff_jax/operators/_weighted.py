"""Any operator whose measurement is weighted entry by entry: how noise that differs between entries becomes equal."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddiff_jax.operators._masked import Followed, Masked
from ddiff_jax.operators.base import LinearOperator, Operator, Weighable
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.types import Image, Measurement


@pytree_dataclass
class Weighted(Followed):
    """y = root * operator(x); what has the weight 0 is not observed.

    Args:
        operator: what measures.
        root: at least 0, of the shape of the measurement.
    """

    operator: Operator
    root: Float[Array, "..."]

    def forward(self, x: Image) -> Measurement:
        """Measure, and weight."""
        return weigh(self.root, self.operator.forward(x))

    def observed(self) -> Bool[Array, "..."]:
        """Tell which entries have a weight."""
        return self.root > 0


@pytree_dataclass
class LinearWeighted(Weighted, LinearOperator):  # pyright: ignore[reportIncompatibleVariableOverride] - read only here
    """The same of a linear operator."""


def weigh(root: Float[Array, "..."], y: Measurement) -> Measurement:
    """Multiply a measurement by weights; an entry of weight 0 becomes 0, whatever it held."""
    seen = root > 0
    # Twice where: neither a value nor a derivative of what is hidden, NaN or not, may come through.
    return jnp.where(seen, root.astype(y.dtype) * jnp.where(seen, y, jnp.zeros((), y.dtype)), jnp.zeros((), y.dtype))


def keeps_its_kind(operator: Operator) -> bool:
    """Tell whether an operator, a mask behind it aside, may take weights into itself."""
    return isinstance(_without_mask(operator), Weighable)


def _without_mask(operator: Operator) -> Operator:
    return operator.operator if isinstance(operator, Masked) else operator


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
    operator = _without_mask(operator)  # the mask is in the weights
    made = operator.weighted(root) if isinstance(operator, Weighable) else None
    if made is not None:
        return made
    return (LinearWeighted if isinstance(operator, LinearOperator) else Weighted)(operator, root)
