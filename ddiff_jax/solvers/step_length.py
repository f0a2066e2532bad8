"""How far DDiff's data step goes: a fixed length, or as far as the noise allows."""

import jax.numpy as jnp

from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import coerce, wide
from ddiff_jax.types import Column, Scalar


@pytree_dataclass
class Fixed:
    """A length that is given, and does not depend on the data: gamma times a factor for the timestep.

    Args:
        gamma: gamma_0, the base step length: the L2 length of the data step for a 256x256x3 image, in units of the
            image range [-1, 1]. Other sizes scale it by sqrt(numbers in the image / 196608), so that the change
            per pixel is the same. With `normalise=False` it multiplies the gradient and is not scaled.
        before: factor on gamma while t > t_gamma.
        after: factor on gamma from t_gamma down.
        t_gamma: timestep of the step-down, in the published schedule.
        normalise: divide the gradient by its norm. False is the paper's form, x = v - gamma_t grad nll(v).

    Raises:
        ValueError: a number is outside its range, or gamma is None.

    Source: the authors' released code, where the factors are called a and b.
    """

    gamma: Scalar
    before: Scalar = 3.3
    after: Scalar = 0.1
    t_gamma: Scalar = 90.0
    normalise: bool = static_field(default=True)

    def __post_init__(self):
        if self.gamma is None:
            raise ValueError("Fixed.gamma must be a number; a step without gamma is ToTheNoise()")
        coerce(self, gamma="positive", before="positive", after="positive", t_gamma="non-negative")

    def at(self, t: Column) -> Column:
        """Tabulate gamma_t, before it is scaled to the image's size."""
        factor = jnp.where(wide(t) > wide(self.t_gamma), wide(self.before), wide(self.after))
        return wide(self.gamma) * factor


@pytree_dataclass
class ToTheNoise:
    """The length that every step finds for itself: down to the residual that the noise explains, and no further.

    There is nothing to tune. How it is found stands in `DDiff`; it costs one more evaluation of the operator.
    """

    def at(self, t: Column) -> None:
        """Tabulate nothing: the length is known when the step is made."""


StepLength = ToTheNoise | Fixed
