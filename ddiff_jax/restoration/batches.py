"""Items stacked into batches of one shape, so that one compiled program serves them all, and their scores."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddiff_jax.likelihood import Gaussian, Likelihood
from ddiff_jax.metrics import DIRECTED, METRICS, measure, oracle_gaps
from ddiff_jax.operators import Operator
from ddiff_jax.problem import Problem
from ddiff_jax.restarts import Restarts
from ddiff_jax.restoration.jobs import Job
from ddiff_jax.restoration.reading import Item, Reader


@dataclasses.dataclass(frozen=True)
class Batch:
    """Items stacked for `solve`; the last one is repeated until the batch is full.

    Args:
        index: number of the batch, from 0.
        num_before: inputs in the batches before, failed ones included.
        items: the items without repetitions.
        operator: one operator, or a stack.
        operator_axis: as in `Problem`.
        y: measurements.
        sigma_y: noise levels.
        keys: keys.
    """

    index: int
    num_before: int
    items: list[Item]
    operator: Operator
    operator_axis: int | None
    y: jax.Array
    sigma_y: jax.Array
    keys: jax.Array

    def problem(self, likelihood: Likelihood | None = None) -> Problem:
        """Make the problem for `solve`; without a noise model it is Gaussian."""
        noise = Gaussian() if likelihood is None else likelihood
        return Problem(self.operator, self.y, self.sigma_y, noise, operator_axis=self.operator_axis)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images."""
        return self.items[0].shape

    @property
    def truths(self) -> np.ndarray | None:
        """Stack the clean images, one per row of y, with a stand-in for those not known; None if none is."""
        known = [item.truth for item in self.items if item.truth is not None]
        if not known:
            return None
        of_items = [known[0] if item.truth is None else item.truth for item in self.items]
        return np.stack(of_items + of_items[-1:] * (len(self.y) - len(of_items)))


def _stack(items: list[Item], size: int, index: int, num_before: int, *, per_image: bool) -> Batch:
    """Make a batch of `size`, so that one compiled program serves all batches."""
    full = items + items[-1:] * (size - len(items))
    operator = full[0].operator
    if per_image:
        operator = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(item.operator for item in full))
    y, keys = jnp.stack([item.y for item in full]), jnp.stack([item.key for item in full])
    levels = [item.sigma_y if item.levels is None else item.levels for item in full]  # all of one kind
    sigma_y = jnp.asarray(np.stack(levels), jnp.float32)
    return Batch(index, num_before, items, operator, 0 if per_image else None, y, sigma_y, keys)


def batches(reader: Reader, jobs: Sequence[Job], size: int, on_failure: Callable[[Job, str], None]) -> Iterator[Batch]:
    """Read jobs into batches of one shape; a job that cannot be read is reported and left out.

    Images of another size than the prior's go one by one, or one to a device: their windows are a batch already. So
    their results do not depend on which others of their size there are.
    """
    waiting: dict[tuple[int, int, int], list[Item]] = {}
    index = num_before = 0

    def full(shape: tuple[int, int, int]) -> int:
        return size if shape == reader.usual_shape else min(size, jax.local_device_count())

    for job in jobs:
        try:
            item = reader.read(job)
        except (ValueError, TypeError, OSError) as error:
            on_failure(job, str(error))
            num_before += 1
            continue
        items = waiting.setdefault(item.shape, [])
        items.append(item)
        if len(items) == full(item.shape):
            yield _stack(waiting.pop(item.shape), len(items), index, num_before, per_image=reader.per_image)
            index, num_before = index + 1, num_before + len(items)
    for shape, items in waiting.items():
        yield _stack(items, full(shape), index, num_before, per_image=reader.per_image)
        index, num_before = index + 1, num_before + len(items)


@jax.jit
def _residual(problem: Problem, x: Any) -> Any:
    return problem.map(lambda problem, x: jnp.abs(problem.residual(x)), x)


KEYS = {
    **{"psnr": "psnr_standard", "ssim": "ssim_standard", "misfit": "misfit", "misfit_excess": "misfit_excess"},
    "psnr_resolved": "psnr_resolved",
}
"""What metrics.json calls the metrics, since it has one protocol only: to names in `METRICS`."""
GAPS = {f"oracle_gap_{ours}": name for ours, name in KEYS.items() if name in DIRECTED}
"""What metrics.json calls their gaps to a pick among restarts by the truth, see `metrics.oracle_gaps`."""


@dataclasses.dataclass(frozen=True)
class Score:
    """How good one restoration is.

    Args:
        residual: |A(x) - y| where observed, in the shape of the measurement.
        metrics: `Problem.misfit`, its excess over the noise's power, and with a truth
            PSNR and SSIM in the protocol "standard"; None where SSIM's window does not fit. The names are those of
            `KEYS`, and of several restarts those of `GAPS`.
    """

    residual: np.ndarray
    metrics: dict[str, float | None]


def tell(metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    """Say metrics in one line: those of these `KEYS` that are there."""
    return ", ".join(METRICS[KEYS[name]].say(metrics[name]) for name in names if metrics.get(name) is not None)


def score(
    batch: Batch,
    x: jax.Array | np.ndarray,
    likelihood: Likelihood | None = None,
    restarts: Restarts | None = None,
) -> list[Score]:
    """Score the restorations of a batch, without its repetitions.

    Args:
        batch: what was restored.
        x: the restorations.
        likelihood: the noise model; without one it is Gaussian.
        restarts: where x was chosen among several and a truth is known, all of them, on the host.
    """
    truths, problem = batch.truths, batch.problem(likelihood)
    found = measure(problem, x, truths)
    residual = jax.device_get(_residual(problem, x))
    names = {
        ours: name for ours, name in KEYS.items() if name in found or (truths is not None and METRICS[name].general)
    }
    gaps = [{} for _ in batch.items] if restarts is None else _gaps(batch, problem, restarts)
    return [
        Score(
            residual[i],
            {ours: float(found[name][i]) if name in found else None for ours, name in names.items()} | gaps[i],
        )
        for i in range(len(batch.items))
    ]


def _gaps(batch: Batch, problem: Problem, restarts: Restarts) -> list[dict[str, float | None]]:
    """Find what picking among restarts by the truth would have added; nothing for images without one."""
    of_runs = [measure(problem, restarts.x[:, k], batch.truths) for k in range(restarts.x.shape[1])]
    found = []
    for i, item in enumerate(batch.items):
        runs = [{name: float(values[i]) for name, values in run.items()} for run in of_runs]
        gaps = {} if item.truth is None else oracle_gaps(runs, int(restarts.chosen[i]))
        found.append({ours: gaps[name] for ours, name in GAPS.items() if name in gaps})
    return found
