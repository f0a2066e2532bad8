"""One measurement and thousands of samples: how far their distribution is from the posterior, as a distance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ddiff_jax._solve import solve
from ddiff_jax.calibration import metrics
from ddiff_jax.calibration.cell import Cell
from ddiff_jax.calibration.run import EXACT, PROBLEMS, REFERENCE, TRUTHS, Exact
from ddiff_jax.noise import Stream, image_keys, stream_key
from ddiff_jax.problem import Problem, simulate
from ddiff_jax.solvers import Solver
from ddiff_jax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class Single:
    """What `compare` finds.

    Args:
        sliced: sliced Wasserstein distance W2 between the solver's samples and exact ones.
        null: that between two sets of exact samples, which is what chance makes of 0.
        energy: energy distance to exact samples over the posterior's standard deviation, without bias.
        num_diverged: samples that are not finite, and left out.
    """

    sliced: float
    null: float
    energy: float
    num_diverged: int

    @property
    def ratio(self) -> float:
        """The distance in units of what chance makes of 0: about 1 for exact samples."""
        return self.sliced / self.null


def compare(solver: Solver | Exact, cell: Cell, key: PRNGKey, num_samples: int = 2000) -> Single:
    """Draw one measurement of a cell, solve it many times, and measure how far the samples are from the posterior.

    Args:
        solver: the method with its hyper-parameters, or `Exact()`.
        cell: what to solve.
        key: root of all random numbers.
        num_samples: of the solver; at least 100, best thousands.

    Raises:
        ValueError: too few samples, or the solver cannot be used on the cell.
    """
    if num_samples < 100:
        raise ValueError(f"distributions are compared by at least 100 samples, best 2000; got {num_samples}")
    truth = jnp.asarray(cell.posterior.truths(jax.random.fold_in(key, TRUTHS), 1))[0]
    root = jax.random.fold_in(key, PROBLEMS)
    y = simulate(cell.operator, truth, cell.sigma_y, stream_key(root, Stream.MEASUREMENT))[None]
    exact = [
        np.asarray(cell.posterior.samples(jax.random.fold_in(key, use), y, num_samples))[0]
        for use in (REFERENCE, EXACT)
    ]
    if isinstance(solver, Exact):
        x = np.asarray(cell.posterior.samples(root, y, num_samples))[0]
    else:
        problem = Problem(cell.operator, jnp.repeat(y, num_samples, axis=0), cell.sigma_y)
        keys = image_keys(root, jnp.arange(num_samples))
        x = np.asarray(solve(solver, cell.prior, problem, keys, num_chunks=1).x)
    x, a, b = (samples.reshape(num_samples, -1).astype(np.float64) for samples in (x, *exact))
    x = x[np.all(np.isfinite(x), axis=1)]
    if len(x) < 2:
        return Single(np.inf, metrics.sliced_distance(a, b), np.inf, num_samples - len(x))
    std = float(np.sqrt(np.asarray(cell.posterior.variance(y))[0]))
    return Single(
        sliced=metrics.sliced_distance(x, a[: len(x)]),
        null=metrics.sliced_distance(b[: len(x)], a[: len(x)]),
        energy=float(metrics.energy_distances(x[None], a[None])[0]) / std,
        num_diverged=num_samples - len(x),
    )
