"""How well a restoration explains what was measured.

The paper's residual metric is not defined in the released code, and Tables 1 and 2 of the paper use different scales
for it. What is computed here says what it is: the mean squared misfit over the observed entries, and
its excess over what the noise alone would leave.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddiff_jax.operators.base import Operator
from ddiff_jax.types import Image, Measurement, Scalar


def observed(operator: Operator, y: Measurement) -> Float[Array, "..."]:
    """Weigh the entries of a measurement: 1 where it was taken, 0 where a mask hides it.

    A mask is the operator's own field `mask`, or that of the operator applied last in a composition.
    """
    last = operator
    while hasattr(last, "outer"):
        last = last.outer  # pyright: ignore[reportAttributeAccessIssue] - tested in the line above
    mask = getattr(last, "mask", None)
    return jnp.ones(y.shape, jnp.float32) if mask is None else jnp.broadcast_to(mask, y.shape).astype(jnp.float32)


def misfit(operator: Operator, x: Image, y: Measurement) -> Float[Array, ""]:
    """Compute mean |A(x) - y|^2 over the observed entries.

    Hidden entries measure nothing: y holds noise there, or whatever the file shows, and A(x) holds 0.

    Args:
        operator: A.
        x: the restored image, not clipped.
        y: the measurement.
    """
    weight = observed(operator, y)
    residual = operator.forward(x) - y
    return jnp.sum(weight * jnp.real(residual * jnp.conj(residual))) / jnp.sum(weight)


def noise_power(y: Measurement, sigma_y: Scalar) -> Float[Array, ""]:
    """Compute the expected misfit of the true image: sigma_y^2, twice that where real and imaginary part have noise."""
    return jnp.asarray(sigma_y, jnp.float32) ** 2 * (2 if jnp.iscomplexobj(y) else 1)
