"""What picking among several runs by the truth would add to picking by what a user can know."""

import math
from collections.abc import Mapping, Sequence

from ddiff_jax.metrics._table import METRICS

DIRECTED = tuple(name for name, metric in METRICS.items() if metric.higher_is_better is not None)
"""Metrics of which one direction is better, and by which a truth could pick."""


def oracle_gaps(runs: Sequence[Mapping[str, float | str | None]], kept: int) -> dict[str, float]:
    """Tell how much better the best of an image's runs is than the one that is kept, metric by metric.

    A gap is stated in the metric's better direction, so it is 0 where the kept run is the best, and above 0 elsewhere:
    in dB for PSNR, as a loss of distance for LPIPS.

    Args:
        runs: what was measured of every run that did not diverge.
        kept: which of them is kept.

    Returns:
        Name of a metric in `DIRECTED` to its gap, where there is more than one run and the kept one has a number.
    """
    found = {}
    for name in DIRECTED if len(runs) > 1 else ():
        values = [_number(run.get(name)) for run in runs]
        known = [value for value in values if not math.isnan(value)]
        if not math.isnan(values[kept]):
            best = max(known) if METRICS[name].higher_is_better else min(known)
            found[name] = 0.0 if best == values[kept] else abs(best - values[kept])
    return found


def _number(value: float | str | None) -> float:
    return math.nan if value is None or isinstance(value, str) else value
