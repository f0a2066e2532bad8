"""Means with honest intervals. The unit is the image: its seeds are averaged first, since they are not independent."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Sum up one number per image.

    Returns:
        "n"; "mean"; "std", the sample standard deviation; "interval", the 95% confidence interval of the mean by
        Student's t. The last two are None where they are not defined: fewer than two images, or infinite numbers.
    """
    n = len(values)
    mean = math.fsum(values) / n if n and all(map(math.isfinite, values)) else None
    if n < 2 or mean is None:
        return {"n": n, "mean": mean, "std": None, "interval": None}
    from scipy.special import stdtrit

    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * std / math.sqrt(n)
    return {"n": n, "mean": mean, "std": std, "interval": [mean - half, mean + half]}


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, Any]:
    """Sum up the differences ours - theirs over the images that both have; see `interval`."""
    return interval([ours[name] - theirs[name] for name in sorted(ours.keys() & theirs.keys())])
