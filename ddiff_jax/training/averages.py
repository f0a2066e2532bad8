"""Averages of the weights over training, and the making of any other from the few that were kept."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from ddiff_jax.types import Params, Scalar


@functools.lru_cache
def exponent(width: float) -> float:
    """Find the exponent g of the average with weights proportional to step^g whose relative width is given.

    Args:
        width: standard deviation of the weights' profile over the length of the training, in (0, 0.28).

    Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", algorithm 2.
    """
    # width^2 = (g + 1) / ((g + 2)^2 (g + 3))
    inverse = width**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(np.max(roots[np.isreal(roots)].real))


def retained(step: Any, width: float) -> Any:
    """Compute how much of an average stays when update number `step` (1, 2, ...) is taken in; 0 at the first."""
    return (1 - 1 / step) ** (exponent(width) + 1)


def take_in(average: Params, params: Params, share: Scalar) -> Params:
    """Move an average to new weights: share of the old, the rest of the new."""
    return jax.tree.map(lambda old, new: new + share * (old - new), average, params)


def coefficients(kept: Sequence[tuple[int, float]], wanted: tuple[int, float]) -> Float[np.ndarray, " K"]:
    """Find how much of each kept average makes another one, in the sense of least squares.

    Args:
        kept: step and relative width of each.
        wanted: step and relative width.

    Returns:
        Coefficients whose sum is 1.

    Source: as `exponent`, algorithm 3.
    """
    steps = np.array([step for step, _ in kept], np.float64)
    exponents = np.array([exponent(width) for _, width in kept], np.float64)
    products = _inner(steps[:, None], exponents[:, None], steps[None], exponents[None])
    right = _inner(steps, exponents, np.float64(wanted[0]), np.float64(exponent(wanted[1])))
    found = np.linalg.lstsq(products, right, rcond=None)[0]
    return found / found.sum()  # which it is but for the error of the fit


def _inner(t: Any, g: Any, other_t: Any, other_g: Any) -> Any:
    """Integrate the product of the profiles of two averages over the training, in units of 1 / the longer one."""
    least, most = np.minimum(t, other_t), np.maximum(t, other_t)
    # (g + 1) (h + 1) least^(g + h + 1) / ((g + h + 1) t^(g + 1) u^(h + 1)), without powers of large numbers
    shorter_first = t <= other_t
    later = np.where(shorter_first, other_g, g)
    return (g + 1) * (other_g + 1) / ((g + other_g + 1) * most) * (least / most) ** later
