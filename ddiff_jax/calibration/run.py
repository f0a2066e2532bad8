"""Run a solver on problems whose posteriors are known, and measure how well its samples reproduce them."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ddiff_jax._runs import repeated
from ddiff_jax._solve import Progress, solve
from ddiff_jax.calibration import metrics
from ddiff_jax.calibration.cell import Cell
from ddiff_jax.calibration.findings import FEWEST, Findings, measure
from ddiff_jax.noise import Stream, image_keys, stream_key
from ddiff_jax.problem import Problem, simulate
from ddiff_jax.solvers import Cost, Solver, aim_of
from ddiff_jax.types import PRNGKey

NUMBERS_AT_A_TIME = 1 << 22  # of images that are computed together: 16 MiB in float32, some ten times this in all
TRUTHS, REFERENCE, PROBLEMS, EXACT = range(4)  # what the key is for


@dataclasses.dataclass(frozen=True)
class Exact:
    """The posterior's own sampler in the place of a solver: what the measures show where nothing is wrong."""

    aim = "posterior"


@dataclasses.dataclass(frozen=True)
class Draws:
    """Problems of a cell, and what is known of them: the same for every solver that meets them.

    Args:
        cell: what they are problems of.
        key: they were drawn from.
        truths: N images.
        y: their measurements.
        keys: one per problem, for its runs.
        means: of the posteriors.
        variances: traces of their covariances.
        exact: m samples of every posterior.
    """

    cell: Cell
    key: PRNGKey
    truths: Float[np.ndarray, "N ..."]
    y: jax.Array
    keys: jax.Array
    means: Float[np.ndarray, "N ..."]
    variances: Float[np.ndarray, " N"]
    exact: Float[np.ndarray, "N m ..."]


def draw(cell: Cell, key: PRNGKey, num_problems: int | None = None, num_samples: int = 19) -> Draws:
    """Draw problems of a cell, and exact samples of their posteriors.

    Args:
        cell: what to draw.
        key: root of all random numbers.
        num_problems: N; None is as many as the cell asks for.
        num_samples: m, of every problem: 19, 39, 59 and so on.

    Raises:
        ValueError: too few problems, or another number of samples.
    """
    num_problems = cell.num_problems if num_problems is None else num_problems
    metrics.check_num_samples(num_samples)
    if num_problems < FEWEST:
        raise ValueError(f"calibration needs at least {FEWEST} problems, better 100; got {num_problems}")
    truths = jnp.asarray(cell.posterior.truths(jax.random.fold_in(key, TRUTHS), num_problems))
    keys = image_keys(jax.random.fold_in(key, PROBLEMS), jnp.arange(num_problems))

    def measured(x: Any, key: Any) -> Any:
        return simulate(cell.operator, x, cell.sigma_y, stream_key(key, Stream.MEASUREMENT))

    y = jax.jit(jax.vmap(measured))(truths, keys)
    exact = cell.posterior.samples(jax.random.fold_in(key, REFERENCE), y, num_samples)
    return Draws(
        cell=cell,
        key=key,
        truths=np.asarray(truths),
        y=y,
        keys=keys,
        means=np.asarray(cell.posterior.mean(y)),
        variances=np.asarray(cell.posterior.variance(y), np.float64),
        exact=np.asarray(exact),
    )


def calibrate(
    solver: Solver | Exact,
    cell: Cell | Draws,
    key: PRNGKey | None = None,
    num_problems: int | None = None,
    num_samples: int = 19,
    *,
    name: str | None = None,
    block: int | None = None,
    on_chunk: Callable[[Progress], object] | None = None,
) -> Findings:
    """Measure how well a solver's samples reproduce posteriors that are known.

    1. Truths x_i ~ p(x) and measurements y_i are drawn.
    2. The solver runs m times on every y_i, from other noise.
    3. Where it samples the posterior, x_i and its m samples have one law, and every rank of x_i among them is uniform:
       that is tested by density, by coordinate, by projections and by distances. Its mean and its spread are compared
       with the posterior's own.

    Args:
        solver: the method with its hyper-parameters, or `Exact()`.
        cell: what to solve; or the `draw` of a cell, which serves many solvers, and says key and numbers itself.
        key: root of all random numbers.
        num_problems: N; None is as many as the cell asks for.
        num_samples: m: 19, 39, 59 and so on.
        name: of the solver; None is that of its class.
        block: problems that are computed together, to bound the memory; the results do not depend on it, up to
            rounding. None chooses.
        on_chunk: called as by `solve`, for every block; what it returns stops nothing.

    Raises:
        ValueError: the numbers are out of range, or the solver cannot be used on the cell.
        TypeError: there is no key, or the solver is none.
    """
    if isinstance(cell, Draws):
        drawn = cell
    elif key is None:
        raise TypeError("calibrate needs a key to draw the problems of a cell, such as jax.random.key(0)")
    else:
        drawn = draw(cell, key, num_problems, num_samples)
    cell, num_samples = drawn.cell, drawn.exact.shape[1]
    if isinstance(solver, Exact):
        started, cost = time.monotonic(), Cost()
        x = np.asarray(cell.posterior.samples(jax.random.fold_in(drawn.key, EXACT), drawn.y, num_samples))
        seconds = time.monotonic() - started
    else:
        x, cost, seconds = _solved(solver, drawn, num_samples, block, on_chunk)
    num_problems = len(x)
    is_good = np.all(np.isfinite(x), axis=tuple(range(1, x.ndim)))
    return Findings(
        solver=name or type(solver).__name__,
        cell=cell.name,
        aim=aim_of(solver),
        num_problems=num_problems,
        num_samples=num_samples,
        num_diverged=int(np.sum(~is_good)),
        evaluations=cost.network_evaluations,
        gradients=cost.network_gradients,
        seconds=seconds,
        wrong_modes=cell.wrong_modes,
        measures=_measured(drawn, x, is_good) if np.sum(is_good) >= FEWEST else None,
    )


def _solved(
    solver: Solver, drawn: Draws, num_samples: int, block: int | None, on_chunk: Any
) -> tuple[np.ndarray, Cost, float]:
    """Run the solver on all problems; returns all samples, what each cost, and the seconds without compiling."""
    cell, num_problems = drawn.cell, len(drawn.truths)
    if block is None:
        block = max(1, NUMBERS_AT_A_TIME // (num_samples * math.prod(cell.prior.image_shape)))
    num_blocks = math.ceil(num_problems / block)
    size = math.ceil(num_problems / num_blocks)  # of all blocks, so that one program serves them
    filled = np.arange(num_blocks * size) % num_problems
    parts, cost, seconds, started = [], Cost(), 0.0, time.monotonic()

    def heard(progress: Progress) -> None:
        nonlocal started
        if progress.step == 0:
            started = time.monotonic()  # it is compiled by now
        if on_chunk is not None:
            on_chunk(progress)

    for rows in filled.reshape(num_blocks, size):
        problem, keys = repeated(
            Problem(cell.operator, drawn.y[rows], cell.sigma_y), drawn.keys[rows], range(num_samples)
        )
        chunks = 1 if on_chunk is None else 20
        solution = solve(solver, cell.prior, problem, keys, num_chunks=chunks, on_chunk=heard)
        x = np.asarray(solution.x)
        seconds += time.monotonic() - started
        parts.append(x.reshape(size, num_samples, *x.shape[1:]))
        cost = solution.cost
    return np.concatenate(parts)[:num_problems], cost, seconds


def _measured(drawn: Draws, x: np.ndarray, is_good: np.ndarray) -> Any:
    densities = _densities(drawn, x[is_good], is_good)

    def flat(images: np.ndarray, axes: int) -> np.ndarray:
        images = images[is_good].astype(np.float64)
        return images.reshape(*images.shape[:axes], -1)

    return measure(
        flat(x, 2),
        truths=flat(drawn.truths, 1),
        means=flat(drawn.means, 1),
        variances=drawn.variances[is_good],
        exact=flat(drawn.exact, 2),
        densities=densities,
    )


def _densities(drawn: Draws, x: np.ndarray, is_good: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    together = np.concatenate([drawn.truths[is_good][:, None], x], axis=1)
    found = drawn.cell.posterior.log_density(jnp.asarray(together), drawn.y[is_good])
    if found is None:
        return None
    found = np.asarray(found, np.float64)
    return found[:, 0], found[:, 1:]
