"""The table of an evaluation: one row per image, or where there are several runs one for each way to choose."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ddiff_jax.metrics import METRICS
from ddiff_jax.restoration.store import Record

# How the run was chosen where there are several: by PSNR against the truth, which only a test set has, as the paper
# does for phase retrieval; or by the misfit, which everybody has.
ORACLE, RESIDUAL, SINGLE = "oracle", "residual", "single"

COLUMNS = (
    *("task", "solver", "sigma_y", "steps", "seed", "image", "pick", "run", "status"),
    *(name for name, metric in METRICS.items() if metric.general),
    *("network_evaluations", "network_gradients", "seconds", "input_sha256", "message"),
    *(name for name, metric in METRICS.items() if not metric.general),
)
VARYING = ("seconds",)
"""Columns that differ between two runs of one evaluation; all others are the same."""
MARKED = ("task", "solver", "sigma_y", "steps", "seed", "image", "status", "message")
"""Columns that a summary repeats of the rows that are not "ok"."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What one cell made of one image.

    Args:
        task: name of the preset.
        solver: name in `SOLVERS`.
        sigma_y: noise level; None where nothing says it.
        steps: step count; None is that of the solver's preset.
        seed: root of the random numbers.
        image: its name.
        pick: how the run was chosen.
        run: the chosen one; None where there was none.
        status: "ok", or what went wrong.
        metrics: name to a number, to the reason why there is none, or to None where the status says it.
        network_evaluations: of all runs, whichever is kept: all are paid for.
        network_gradients: likewise.
        seconds: likewise.
        input_sha256: of the image's file.
        message: what went wrong, for people.
    """

    task: str
    solver: str
    sigma_y: float | None
    steps: int | None
    seed: int
    image: str
    pick: str = SINGLE
    run: int | None = None
    status: str = "ok"
    metrics: Mapping[str, float | str | None] = dataclasses.field(default_factory=dict)
    network_evaluations: int | None = None
    network_gradients: int | None = None
    seconds: float | None = None
    input_sha256: str = ""
    message: str = ""

    @property
    def is_restored(self) -> bool:
        """Whether there is a restored image that counts, compared with a truth or not."""
        return self.status in ("ok", "no truth")

    def number(self, metric: str) -> float | None:
        """Look up a metric; None where it has no number, NaN included."""
        value = self.metrics.get(metric)
        return None if value is None or isinstance(value, str) or math.isnan(value) else value

    def as_dict(self) -> dict[str, Any]:
        """Spell it out, in the order of `COLUMNS`."""
        return {name: self.metrics.get(name) if name in METRICS else getattr(self, name) for name in COLUMNS}


def pick(records: Sequence[Record]) -> dict[str, int]:
    """Choose among the runs of one image: how to the number of the run. The first wins where two are equal."""
    if len(records) == 1:
        return {SINGLE: 0}
    usable = [i for i, record in enumerate(records) if record.status != "diverged"] or [0]
    found = {RESIDUAL: min(usable, key=lambda i: _number(records[i], "misfit", math.inf))}
    if all("psnr_paper" in records[i].metrics for i in usable):
        found = {ORACLE: max(usable, key=lambda i: _number(records[i], "psnr_paper", -math.inf)), **found}
    return found


def _number(record: Record, name: str, worst: float) -> float:
    value = record.metrics.get(name)
    return worst if value is None or math.isnan(value) else value


def rows_of(start: Row, records: Sequence[Record], absent: Mapping[str, str]) -> list[Row]:
    """Make the rows of one image.

    Args:
        start: what they have in common.
        records: of the image's runs.
        absent: metrics that nobody could measure, and why.
    """
    return [
        dataclasses.replace(
            start,
            pick=how,
            run=run,
            status=records[run].status,
            metrics={name: records[run].metrics.get(name, absent.get(name)) for name in METRICS},
            network_evaluations=sum(r.network_evaluations for r in records),
            network_gradients=sum(r.network_gradients for r in records),
            seconds=sum(r.seconds or 0.0 for r in records),
            message=records[run].message,
        )
        for how, run in pick(records).items()
    ]
