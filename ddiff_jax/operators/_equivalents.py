"""Images that an operator cannot tell apart, and which of them a comparison with the truth should take."""

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from ddiff_jax.operators.base import Operator
from ddiff_jax.types import Image


def equivalent_images(operator: Operator, x: Image) -> Shaped[jax.Array, "E ..."]:
    """List images that measure the same as x, itself first; x alone if the operator knows no others."""
    if not hasattr(operator, "equivalents"):
        return x[None]
    return operator.equivalents(x)  # pyright: ignore[reportAttributeAccessIssue] - it has, see above


def nearest_equivalent(operator: Operator, x: Image, truth: Image) -> Image:
    """Choose, among the images that measure the same as x, the one nearest to the truth.

    Fourier amplitudes of a picture surrounded by grey are those of its negative, and of the picture turned by 180
    degrees: no solver can know which it was, and a comparison with the truth should not depend on it. Operators say
    so by a method `equivalents`; for all others x is returned. Shifts, which zero padding leaves open too, are not
    undone: a shifted picture shows its padding inside the frame, where the prior does not expect it.

    Args:
        operator: A.
        x: restored image.
        truth: the clean image.
    """
    candidates = equivalent_images(operator, x)
    errors = jnp.sum((candidates - truth[None]) ** 2, axis=tuple(range(1, candidates.ndim)))
    return candidates[jnp.argmin(errors)]
