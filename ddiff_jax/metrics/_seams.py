"""Whether windows show: how an image jumps at their borders, compared with how it jumps nearby."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.types import Image

NEARBY = (2, 3, 4)  # pixels from a line, on either side of it


def seam_ratio(x: Image, lines: Sequence[Sequence[int]]) -> Float[Array, ""]:
    """Compare the steps of an image across given lines with the steps close by.

    The step at b is the mean of |x[b] - x[b - 1]| over the line between pixels b - 1 and b. The ratio is the mean step
    over all lines, divided by the mean step 2 to 4 pixels beside them. A picture without seams has about 1, by chance
    more or less: compare with the ratio of the true image at the same lines. Windows that are put side by side show
    from about 1.2 on.

    Args:
        x: one image, channels last.
        lines: for every axis but the channels, the places b in it, such as `WindowedPrior.seams`.

    Returns:
        The ratio; NaN where nothing nearby steps at all.

    Raises:
        ValueError: there is no line, or one does not lie inside of the image.
    """
    if len(lines) != x.ndim - 1 or not any(map(len, lines)):
        raise ValueError(
            f"the lines must be places along {x.ndim - 1} axes, at least one; got {tuple(map(tuple, lines))}: an image "
            "of one window has none"
        )
    at, beside = [], []
    for axis, places in enumerate(lines):
        n = x.shape[axis]
        if any(not 0 < b < n for b in places):
            raise ValueError(f"lines along axis {axis} must lie between two of its {n} pixels; got {tuple(places)}")
        others = tuple(a for a in range(x.ndim) if a != axis)
        steps = jnp.mean(jnp.abs(jnp.diff(x, axis=axis)), axis=others)  # the step at b is number b - 1
        near = [b + sign * d for b in places for d in NEARBY for sign in (-1, 1)]
        at.append(steps[np.asarray([b - 1 for b in places], int)])
        beside.append(steps[np.asarray([b - 1 for b in near if 0 < b < n], int)])
    return jnp.mean(jnp.concatenate(at)) / jnp.mean(jnp.concatenate(beside))
