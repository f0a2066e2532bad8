"""What a calibration finds: every measure of one solver on one cell, and the word that they add up to."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from ddiff_jax.calibration import metrics
from ddiff_jax.restoration.records import finite

# What a solver may be on a cell, in the order in which it is asked. A word is never one for a solver: it is said with
# the cells on which it was measured.
LABELS = {
    "point": "its samples hardly differ: spread below 0.3",
    "posterior": "coverage within 2.6 standard errors of 50 and 90%, gap below 0.1 dB",
    "wrong modes": "gap above 0.5 dB where there are several modes, by a solver that is right on all Gaussian cells",
    "overconfident": "covers less than 80% instead of 90, or spread below 0.85",
    "diffuse": "covers more than 97% instead of 90, and spread above 1.1",
    "approximate": "coverage off by less than these, or not in the same way; gap below 0.1 dB: its mean is right",
    "biased": "gap of 0.1 dB or more and none of these: its mean is off",
    "diverged": "too few of its samples are finite",
    "not run": "it cannot be used there",
}
POINT, GAP, WRONG_GAP = 0.3, 0.1, 0.5  # spread, and dB
LOW, HIGH = 0.8, 0.97  # coverages at 90%
NARROW, WIDE = 0.85, 1.1  # spreads
ERRORS = 2.6  # standard errors: 1% of all by chance
GAUSSIAN = "G"  # families of cells are named by a letter and a size
FEWEST = 10  # problems that must be left to judge by


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How often the truth lies in regions that should hold 50 and 90% of the posterior, as `metrics.SHARES`.

    Args:
        values: measured.
        errors: standard errors.
    """

    values: tuple[float, float]
    errors: tuple[float, float]

    @property
    def is_right(self) -> bool:
        """Whether both are within 2.6 standard errors."""
        pairs = zip(self.values, metrics.SHARES, self.errors, strict=True)
        return all(abs(value - share) <= ERRORS * error for value, share, error in pairs)


@dataclasses.dataclass(frozen=True)
class Measures:
    """The measures of `metrics`, over the problems all of whose samples are finite.

    Args:
        density: coverage by regions of highest posterior density, with the standard errors of exact samples; None
            where the posterior has no density.
        coordinate: coverage by the central interval of every number of the image, which alone misleads.
        density_ranks: how often so many samples had a higher density than the truth, [m + 1]; None as above.
        coordinate_curve: coverage by coordinate at the shares 2 / (m + 1), 4 / (m + 1), ..., 1.
        tarp_ranks: how often so many samples lay closer to the reference than the truth, [m + 1].
        tarp: largest deviation of their distribution from the uniform one.
        tarp_p_value: that exact samples deviate as much.
        sbc_counts: ranks of eight projections, in bins.
        sbc_p_value: that the ranks of exact samples are as uneven: the least of eight, times eight.
        gap: loss of the samples' mean, in mean squared error against the posterior's mean, in dB.
        gap_error: its standard error.
        raw_gap: without the correction for the number of samples.
        published_gap: the mean ratio of errors per problem, in dB, without the correction.
        spread: standard deviation of the samples over that of the posterior.
        energy: energy distance to exact samples over the posterior's standard deviation, 0 on average for exact ones.
        energy_error: its standard error.
    """

    density: Coverage | None
    coordinate: Coverage
    density_ranks: tuple[int, ...] | None
    coordinate_curve: tuple[float, ...]
    tarp_ranks: tuple[int, ...]
    tarp: float
    tarp_p_value: float
    sbc_counts: tuple[tuple[int, ...], ...]
    sbc_p_value: float
    gap: float
    gap_error: float
    raw_gap: float
    published_gap: float
    spread: float
    energy: float
    energy_error: float

    @property
    def coverage(self) -> Coverage:
        """What labels go by: the coverage by density, or by coordinate where there is none."""
        return self.coordinate if self.density is None else self.density


@dataclasses.dataclass(frozen=True)
class Findings:
    """What `calibrate` finds.

    Args:
        solver: its name.
        cell: name of the cell.
        aim: what the solver says that it aims at, a key of `solvers.AIMS`; None if it does not say.
        num_problems: N.
        num_samples: m.
        num_diverged: problems with a sample that is not finite, which are left out.
        evaluations: evaluations of the network per sample.
        gradients: passes backwards through it.
        seconds: of computing all samples, without compiling.
        wrong_modes: whether the cell is one on which samplers settle in the wrong modes.
        measures: None where the solver could not be used, or too few problems are left.
        why: what kept the solver from being used.
    """

    solver: str
    cell: str
    aim: str | None
    num_problems: int
    num_samples: int
    num_diverged: int = 0
    evaluations: int = 0
    gradients: int = 0
    seconds: float = 0.0
    wrong_modes: bool = False
    measures: Measures | None = None
    why: str = ""

    @property
    def label(self) -> str:
        """The label of these findings alone, which are never "wrong modes": that takes the Gaussian cells, `labels`."""
        return self.label_given(gaussian_right=False)

    def label_given(self, *, gaussian_right: bool) -> str:
        """Find the label.

        Args:
            gaussian_right: whether the solver gives samples of the posterior on all Gaussian cells.
        """
        found = self.measures
        if found is None:
            return "not run" if self.why else "diverged"
        if found.spread < POINT:
            return "point"
        if found.coverage.is_right and found.gap < GAP:
            return "posterior"
        if self.wrong_modes and gaussian_right and found.gap > WRONG_GAP:
            return "wrong modes"
        ninety = found.coverage.values[1]
        if ninety < LOW or found.spread < NARROW:
            return "overconfident"
        if ninety > HIGH and found.spread > WIDE:
            return "diffuse"
        return "approximate" if found.gap < GAP else "biased"

    def as_dict(self) -> dict[str, Any]:
        """Write it as JSON can hold it; numbers that are not finite become null."""
        return finite(dataclasses.asdict(self))

    @staticmethod
    def of(record: Mapping[str, Any]) -> "Findings":
        """Read what `as_dict` wrote."""
        values = dict(record)
        measured = values.pop("measures")
        return Findings(**values, measures=None if measured is None else _measures(measured))


def _measures(values: Mapping[str, Any]) -> Measures:
    read = {name: math.nan if value is None else _frozen(value) for name, value in values.items()}
    density = values["density"]
    return Measures(
        **{
            **read,
            "density": None if density is None else _coverage(density),
            "coordinate": _coverage(values["coordinate"]),
            "density_ranks": None if density is None else read["density_ranks"],
        }
    )


def _coverage(values: Mapping[str, Any]) -> Coverage:
    return Coverage(*(_pair(math.nan if v is None else v for v in values[name]) for name in ("values", "errors")))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def labels(all_findings: Iterable[Findings]) -> dict[tuple[str, str], str]:
    """Label every solver on every cell: (solver, cell) to a key of `LABELS`."""
    all_findings = list(all_findings)
    on_gaussian: dict[str, list[bool]] = {}
    for found in all_findings:
        if found.cell.startswith(GAUSSIAN):
            on_gaussian.setdefault(found.solver, []).append(found.label == "posterior")
    right = {solver for solver, cells in on_gaussian.items() if all(cells)}
    return {(f.solver, f.cell): f.label_given(gaussian_right=f.solver in right) for f in all_findings}


def measure(
    samples: metrics.Draws,
    *,
    truths: metrics.Truths,
    means: metrics.Truths,
    variances: Float[np.ndarray, " N"],
    exact: metrics.Draws,
    densities: tuple[Float[np.ndarray, " N"], Float[np.ndarray, "N m"]] | None = None,
) -> Measures:
    """Measure how samples compare with the posterior that they should come from.

    Args:
        samples: m of every problem, all finite; m + 1 is a multiple of 20.
        truths: the images that were measured.
        means: of the posteriors.
        variances: traces of their covariances.
        exact: samples of the posteriors, any number of at least 2.
        densities: logarithms of the posterior density at the truths and at the samples; None where there is none.
    """
    count, num_problems = samples.shape[1], len(samples)
    metrics.check_num_samples(count)
    found = metrics.ranks(truths, samples)
    central = [metrics.central_coverage(found, count, share) for share in metrics.SHARES]
    curve = [metrics.central_coverage(found, count, 2 * k / (count + 1))[0] for k in range(1, (count + 1) // 2 + 1)]
    by_density, density_ranks = None, None
    if densities is not None:
        inside = metrics.density_ranks(*densities)
        by_density = Coverage(
            values=_pair(metrics.covered(inside, count, share) for share in metrics.SHARES),
            errors=_pair(metrics.binomial_error(num_problems, share) for share in metrics.SHARES),
        )
        density_ranks = _counts(metrics.histogram(inside, count))
    closer = metrics.tarp_ranks(truths, samples, metrics.others(truths))
    directions = metrics.projections(truths.shape[1])
    projected = metrics.ranks(truths @ directions.T, samples @ directions.T)
    gap, gap_error = metrics.gap(metrics.excess(samples, means), variances)
    raw_gap, _ = metrics.gap(metrics.excess(samples, means, corrected=False), variances)
    scale = math.sqrt(float(np.mean(variances)))
    energies = metrics.energy_distances(samples, exact) / scale
    return Measures(
        density=by_density,
        coordinate=Coverage(values=_pair(value for value, _ in central), errors=_pair(error for _, error in central)),
        density_ranks=density_ranks,
        coordinate_curve=tuple(curve),
        tarp_ranks=_counts(metrics.histogram(closer, count)),
        tarp=metrics.deviation(closer, count),
        tarp_p_value=metrics.uniformity_p_value(closer, count),
        sbc_counts=tuple(map(_counts, metrics.sbc_counts(projected, count)[0])),
        sbc_p_value=min(1.0, len(directions) * float(np.min(metrics.sbc_p_values(projected, count)))),
        gap=gap,
        gap_error=gap_error,
        raw_gap=raw_gap,
        published_gap=metrics.published_gap(samples, truths, means),
        spread=metrics.spread(samples, variances),
        energy=float(np.mean(energies)),
        energy_error=metrics.standard_error(energies),
    )


def _pair(values: Iterable[float]) -> tuple[float, float]:
    first, second = values
    return first, second


def _counts(values: np.ndarray) -> tuple[int, ...]:
    return tuple(values.tolist())
