"""The table of an evaluation: one row per image, or where there are several runs one for each way to choose."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ddiff_jax.metrics import DIRECTED, METRICS, oracle_gaps
from ddiff_jax.restoration.store import Record

# How the run was chosen where there are several: by the misfit, which everybody has; or by PSNR against the truth,
# which only a test set has. The latter is kept, beside the former, where a paper chose so.
ORACLE, RESIDUAL, SINGLE = "oracle", "residual", "single"
CHOSEN = {
    ORACLE: "best of the restarts by PSNR against the truth, which no user has",
    RESIDUAL: "best of the restarts by the misfit alone",
    SINGLE: "",
}
"""How a run was chosen, in words."""
GAPS = {f"oracle_gap_{name}": name for name in DIRECTED}
"""Column of the table to the metric of which it holds the gap."""

COLUMNS = (
    *("task", "solver", "sigma_y", "steps", "seed", "image", "pick", "run", "status"),
    *(name for name, metric in METRICS.items() if metric.general),
    *("network_evaluations", "network_gradients", "seconds", "input_sha256", "message"),
    *(name for name, metric in METRICS.items() if not metric.general),
    *("aim", *GAPS),
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
        aim: of the solver, a key of `solvers.AIMS`; None where it does not say.
        oracle_gaps: metric to what picking among the runs by the truth would have added, see `metrics.oracle_gaps`;
            empty where the truth did pick, or there is one run or no truth.
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
    aim: str | None = None
    oracle_gaps: Mapping[str, float] = dataclasses.field(default_factory=dict)

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
        measured = {**self.metrics, **{column: self.oracle_gaps.get(name) for column, name in GAPS.items()}}
        return {k: measured.get(k) if k in METRICS or k in GAPS else getattr(self, k) for k in COLUMNS}


def pick(records: Sequence[Record], *, oracle: bool = False) -> dict[str, int]:
    """Choose among the runs of one image: how to the number of the run. The first wins where two are equal.

    Args:
        records: of the runs.
        oracle: choose by the truth, too, where there is one.
    """
    if len(records) == 1:
        return {SINGLE: 0}
    usable = _usable(records)
    found = {RESIDUAL: min(usable, key=lambda i: _number(records[i], "misfit", math.inf))}
    if oracle and all("psnr_paper" in records[i].metrics for i in usable):
        found = {ORACLE: max(usable, key=lambda i: _number(records[i], "psnr_paper", -math.inf)), **found}
    return found


def _usable(records: Sequence[Record]) -> list[int]:
    return [i for i, record in enumerate(records) if record.status != "diverged"] or [0]


def _number(record: Record, name: str, worst: float) -> float:
    value = record.metrics.get(name)
    return worst if value is None or math.isnan(value) else value


def rows_of(start: Row, records: Sequence[Record], absent: Mapping[str, str], *, oracle: bool = False) -> list[Row]:
    """Make the rows of one image.

    Args:
        start: what they have in common.
        records: of the image's runs.
        absent: metrics that nobody could measure, and why.
        oracle: as in `pick`.
    """
    usable = _usable(records)

    def gaps(how: str, run: int) -> dict[str, float]:
        measured = [records[i].metrics for i in usable]
        return oracle_gaps(measured, usable.index(run)) if how == RESIDUAL else {}

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
            oracle_gaps=gaps(how, run),
        )
        for how, run in pick(records, oracle=oracle).items()
    ]
