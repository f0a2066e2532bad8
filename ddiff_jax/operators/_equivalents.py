"""Which of the images that an operator cannot tell apart a comparison with the truth should take."""

import jax.numpy as jnp

from ddiff_jax.operators.base import Operator, equivalent_images
from ddiff_jax.types import Image


def nearest_equivalent(operator: Operator, x: Image, truth: Image) -> Image:
    """Choose, among the images that measure the same as x, the one nearest to the truth.

    Fourier amplitudes of a picture surrounded by grey are those of its negative, and of the picture turned by 180
    degrees: no solver can know which it was, and a comparison with the truth should not depend on it. Operators that
    are `Ambiguous` say so; for all others x is returned. Shifts, which zero padding leaves open too, are not
    undone: a shifted picture shows its padding inside the frame, where the prior does not expect it.

    Args:
        operator: A.
        x: restored image.
        truth: the clean image.
    """
    candidates = equivalent_images(operator, x)
    errors = jnp.sum((candidates - truth[None]) ** 2, axis=tuple(range(1, candidates.ndim)))
    return candidates[jnp.argmin(errors)]
