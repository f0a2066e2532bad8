"""Means with honest intervals. The unit is the image: its seeds are averaged first, since they are not independent."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Mean:
    """One number per image, summed up.

    Args:
        n: images that have a number.
        mean: None where it is not defined: no image, or infinite numbers.
        std: the sample standard deviation; None for fewer than two images.
        interval: the 95% confidence interval of the mean by Student's t; None where std is.
        why: why no image has a number; empty where some do.
    """

    n: int
    mean: float | None = None
    std: float | None = None
    interval: tuple[float, float] | None = None
    why: str = ""

    @property
    def half_width(self) -> float | None:
        """Half of the interval."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2

    @property
    def reason(self) -> str:
        """Say why there is no mean."""
        return self.why or "not finite"

    def as_dict(self) -> dict[str, Any]:
        """Spell it out in plain types."""
        if self.why:
            return {"n": self.n, "why": self.why}
        interval = None if self.interval is None else list(self.interval)
        return {"n": self.n, "mean": self.mean, "std": self.std, "interval": interval}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Mean":
        """Take back what `as_dict` gave."""
        interval = values.get("interval")
        return cls(**{**values, "interval": None if interval is None else tuple(interval)})


def interval(values: Sequence[float]) -> Mean:
    """Sum up one number per image."""
    n = len(values)
    mean = math.fsum(values) / n if n and all(map(math.isfinite, values)) else None
    if n < 2 or mean is None:
        return Mean(n, mean)
    from scipy.special import stdtrit

    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * std / math.sqrt(n)
    return Mean(n, mean, std, (mean - half, mean + half))


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Mean:
    """Sum up the differences ours - theirs over the images that both have; see `interval`."""
    return interval([ours[name] - theirs[name] for name in sorted(ours.keys() & theirs.keys())])
