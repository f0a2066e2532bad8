"""Measures of calibration: how samples that a method gives compare with the posterior that they should come from.

Plain functions of arrays, computed in float64. There are N problems with one truth and m samples each, and an image is
a row of d numbers: truths are [N, d] and samples [N, m, d]. Ranks count samples, from 0 to m, and are uniform where the
samples have the law of the truth; so where m + 1 is a multiple of 20, the coverages at 50 and 90% have no bias from the
number of samples, however small it is.

All samples count alike. One published benchmark weighs them by their posterior density before it draws its regions, and
finds 5% where it should find 90%, of samples that are exact.
"""

import math

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

Truths = Float[np.ndarray, "N d"]
Draws = Float[np.ndarray, "N m d"]

SHARES = (0.5, 0.9)  # the coverages that are reported
WHOLE = 20  # m + 1 must be a multiple of this, so that the intervals of these shares end between two samples
PROJECTIONS = 8  # directions whose ranks are tested
BINS = 10  # of these ranks
DIRECTIONS = 64  # of the sliced distance
TINY = 1e-6  # the least ratio that is put in decibel: a gap of -60 dB
RESOLUTION = 1e-6  # of float32: numbers closer to each other than this share of the largest one are ties


def check_num_samples(num_samples: int) -> None:
    """Refuse a number of samples for which the coverages would be biased.

    Raises:
        ValueError: it is not 19, 39, 59, ...
    """
    if num_samples < 1 or (num_samples + 1) % WHOLE:
        raise ValueError(
            "the number of samples must be 19, 39, 59 and so on, so that the regions of 50 and 90% end between two of "
            f"them; got {num_samples}"
        )


def ranks(truths: Float[np.ndarray, "N ..."], samples: Float[np.ndarray, "N m ..."], seed: int = 0) -> np.ndarray:
    """Count the samples below each number of the truth, [N, ...].

    Ties, which happen where the law has atoms, are broken at random: the ranks are uniform there, too.

    Args:
        truths: one value, or a row of them, per problem.
        samples: m of each.
        seed: breaks ties.
    """
    truths, samples = np.asarray(truths, np.float64)[:, None], np.asarray(samples, np.float64)
    is_tied = np.abs(samples - truths) <= RESOLUTION * np.max(np.abs(truths), initial=0.0)
    below = np.sum((samples < truths) & ~is_tied, axis=1)
    return below + np.random.default_rng(seed).integers(0, np.sum(is_tied, axis=1) + 1)


def interval(num_samples: int, share: float) -> tuple[int, int]:
    """Find the ranks of the central interval that holds a share of all: from the first to the last, without that."""
    inside = round(share * (num_samples + 1))
    low = (num_samples + 1 - inside) // 2
    return low, num_samples + 1 - low


def central_coverage(found: Int[np.ndarray, "N d"], num_samples: int, share: float) -> tuple[float, float]:
    """Measure how often a number of the truth lies in the central interval of its samples.

    Args:
        found: ranks of all numbers.
        num_samples: m.
        share: of the interval, at best one of `SHARES`.

    Returns:
        The share, and its standard error: numbers of one problem are not independent, problems are.
    """
    low, high = interval(num_samples, share)
    of_problems = np.mean((low <= found) & (found < high), axis=1)
    return float(np.mean(of_problems)), standard_error(of_problems)


def standard_error(values: Float[np.ndarray, " N"]) -> float:
    """Compute the standard error of the mean; NaN of a single value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def density_ranks(of_truths: Float[np.ndarray, " N"], of_samples: Float[np.ndarray, "N m"]) -> Int[np.ndarray, " N"]:
    """Count the samples of higher posterior density than the truth.

    Args:
        of_truths: logarithms of the posterior density at the truths, up to a constant of the problem.
        of_samples: those at the samples.
    """
    return np.sum(np.asarray(of_samples, np.float64) > np.asarray(of_truths, np.float64)[:, None], axis=1)


def covered(found: Int[np.ndarray, " N"], num_samples: int, share: float) -> float:
    """Measure how often a rank is among the lowest: the coverage of the regions that it numbers from the inside.

    Of `density_ranks` these are the regions of highest posterior density, of `tarp_ranks` balls around the references.
    """
    return float(np.mean(found < round(share * (num_samples + 1))))


def binomial_error(num_problems: int, share: float) -> float:
    """Compute the standard error that a share of so many problems has where all is well."""
    return math.sqrt(share * (1 - share) / num_problems)


def histogram(found: Int[np.ndarray, "..."], num_samples: int) -> Int[np.ndarray, " R"]:
    """Count how often every rank from 0 to m was found: R = m + 1 numbers."""
    return np.bincount(np.ravel(found), minlength=num_samples + 1)


def projections(size: int) -> Float[np.ndarray, "8 d"]:
    """Tabulate the directions whose ranks are tested: cosines of rising frequency over the flat image."""
    frequency, place = np.arange(PROJECTIONS)[:, None], np.arange(size)
    return np.cos(np.pi * (place + 0.5) * frequency / size)


def sbc_counts(found: Int[np.ndarray, "N q"], num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort ranks into bins.

    Args:
        found: ranks of q functions of the image.
        num_samples: m.

    Returns:
        How many of the N ranks fell into each bin, [q, bins], and how many do on average where all is well, [bins].
    """
    bins = min(BINS, num_samples + 1)
    place = np.arange(num_samples + 1) * bins // (num_samples + 1)
    counts = np.stack([np.bincount(place[column], minlength=bins) for column in np.asarray(found).T])
    return counts, np.bincount(place, minlength=bins) * len(found) / (num_samples + 1)


def sbc_p_values(found: Int[np.ndarray, "N q"], num_samples: int) -> Float[np.ndarray, " q"]:
    """Test whether ranks are uniform: Pearson's chi-square over `sbc_counts`.

    Source: Talts et al. 2018, "Validating Bayesian inference algorithms with simulation-based calibration".
    """
    counts, expected = sbc_counts(found, num_samples)
    squared = np.sum((counts - expected) ** 2 / expected, axis=1)
    return stats.chi2.sf(squared, len(expected) - 1)


def tarp_ranks(truths: Truths, samples: Draws, references: Truths) -> Int[np.ndarray, " N"]:
    """Count the samples that lie closer to a point than the truth does.

    Args:
        truths: of all problems.
        samples: of all problems.
        references: a point for every problem, independent of its truth and samples.

    Source: Lemos et al. 2023, "Sampling-based accuracy testing of posterior estimators for general inference".
    Differs: numbers are taken as they are, not scaled by the range of the truths; an image has one unit.
    """
    references = np.asarray(references, np.float64)
    of_truths = np.linalg.norm(truths - references, axis=-1)
    of_samples = np.linalg.norm(samples - references[:, None], axis=-1)
    return np.sum(of_samples < of_truths[:, None], axis=1)


def others(truths: Truths) -> Truths:
    """Choose as the reference of a problem the truth of the one that is half of all further on."""
    return np.roll(truths, -(len(truths) // 2), axis=0)


def tarp_curve(found: Int[np.ndarray, " N"], num_samples: int, bins: int) -> Float[np.ndarray, " B"]:
    """Compute the expected coverage at the shares 0, 1 / bins, ..., 1, as published implementations define it."""
    counts, _ = np.histogram(np.asarray(found, np.float64) / num_samples, bins=bins, range=(0.0, 1.0))
    return np.concatenate([[0.0], np.cumsum(counts) / len(found)])


def deviation(found: Int[np.ndarray, " N"], num_samples: int) -> float:
    """Measure how far the share of ranks below k is from k / (m + 1), at the worst k."""
    share = np.cumsum(histogram(found, num_samples)) / len(found)
    return float(np.max(np.abs(share - np.arange(1, num_samples + 2) / (num_samples + 1))))


def uniformity_p_value(found: Int[np.ndarray, " N"], num_samples: int, seed: int = 0) -> float:
    """Test whether ranks are uniform: Kolmogorov and Smirnov's test of (rank + u) / (m + 1), with u uniform on [0, 1].

    Args:
        found: the ranks.
        num_samples: m.
        seed: draws u.
    """
    spread = np.random.default_rng(seed).uniform(size=len(found))
    return float(stats.kstest((found + spread) / (num_samples + 1), "uniform").pvalue)


def sample_variances(samples: Draws) -> Float[np.ndarray, " N"]:
    """Compute the trace of the samples' covariance, problem by problem."""
    return np.sum(np.var(np.asarray(samples, np.float64), axis=1, ddof=1), axis=-1)


def excess(samples: Draws, means: Truths, *, corrected: bool = True) -> Float[np.ndarray, " N"]:
    """Measure how far the mean of the samples lies from that of the posterior: squared distances, problem by problem.

    Args:
        samples: of all problems.
        means: of the posteriors.
        corrected: take off what the mean of m samples is off by chance, so that exact samples give 0 on average.
    """
    samples = np.asarray(samples, np.float64)
    squared = np.sum((np.mean(samples, axis=1) - means) ** 2, axis=-1)
    return squared - sample_variances(samples) / samples.shape[1] if corrected else squared


def decibel(ratio: Float[np.ndarray, "*axes"] | float) -> np.ndarray:
    """Put a ratio of powers in decibel."""
    return np.asarray(10 * np.log10(np.maximum(ratio, TINY)))


def gap(of_problems: Float[np.ndarray, " N"], variances: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """Measure by how much the samples' mean loses to the posterior's in mean squared error, in decibel.

    Args:
        of_problems: `excess`.
        variances: traces of the posteriors' covariances, the least mean squared error that there is.

    Returns:
        The gap, 10 log10(1 + mean excess / mean variance), and its standard error.
    """
    scale = float(np.mean(variances))
    share = float(np.mean(of_problems)) / scale
    slope = 10 / math.log(10) / max(1 + share, TINY)
    return float(decibel(1 + share)), slope * standard_error(of_problems) / scale


def published_gap(samples: Draws, truths: Truths, means: Truths) -> float:
    """Measure the gap as benchmarks publish it: the mean, in decibel, of the ratio of squared errors per problem.

    Its value for exact samples is not 0: the mean of m samples is off by chance.
    """
    ours = np.sum((np.mean(np.asarray(samples, np.float64), axis=1) - truths) ** 2, axis=-1)
    best = np.sum((np.asarray(means, np.float64) - truths) ** 2, axis=-1)
    return float(np.mean(decibel(ours / best)))


def spread(samples: Draws, variances: Float[np.ndarray, " N"]) -> float:
    """Compare the standard deviation of the samples with the posterior's: 1 where they agree, 0 for a point."""
    return math.sqrt(float(np.mean(sample_variances(samples)) / np.mean(variances)))


def energy_distances(a: Draws, b: Float[np.ndarray, "N k d"]) -> Float[np.ndarray, " N"]:
    """Measure the energy distance between two sets of samples without bias, problem by problem.

    2 E|a - b| - E|a - a'| - E|b - b'|, with means over different samples; 0 on average where both have one law.

    Source: Székely and Rizzo 2013, "Energy statistics: a class of statistics based on distances".
    """
    between = np.mean(_distances(a, b), axis=(1, 2))
    return 2 * between - _mean_apart(a) - _mean_apart(b)


def _mean_apart(a: Draws) -> Float[np.ndarray, " N"]:
    count = a.shape[1]
    return np.sum(_distances(a, a), axis=(1, 2)) / (count * (count - 1))


def _distances(a: Draws, b: Float[np.ndarray, "N k d"]) -> Float[np.ndarray, "N m k"]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    squared = np.sum(a**2, axis=-1)[:, :, None] + np.sum(b**2, axis=-1)[:, None] - 2 * a @ b.swapaxes(-1, -2)
    if a is b:
        squared[:, np.arange(a.shape[1]), np.arange(a.shape[1])] = 0.0  # of which rounding would leave a root
    return np.sqrt(np.maximum(squared, 0.0))


def sliced_distance(a: Float[np.ndarray, "m d"], b: Float[np.ndarray, "m d"], seed: int = 0) -> float:
    """Measure the sliced Wasserstein distance W2 between two sets of as many samples of one problem.

    Its value for two sets of one law is far from 0 unless there are thousands: compare it with that.

    Args:
        a: samples.
        b: as many.
        seed: draws the directions.
    """
    directions = np.random.default_rng(seed).standard_normal((DIRECTIONS, a.shape[-1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    projected = [np.sort(np.asarray(x, np.float64) @ directions.T, axis=0) for x in (a, b)]
    return math.sqrt(float(np.mean((projected[0] - projected[1]) ** 2)))
