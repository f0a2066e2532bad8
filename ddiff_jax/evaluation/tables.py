"""From records to the table (one row per image) and its summary."""

import csv
import io as textio
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ddiff_jax.evaluation.plan import Cell
from ddiff_jax.evaluation.statistics import interval, paired
from ddiff_jax.metrics import METRICS
from ddiff_jax.restoration.store import Record

Row = dict[str, Any]

# How the run was chosen where there are several: by PSNR against the truth, which only a test set has, as the paper
# does for phase retrieval; or by the misfit, which everybody has.
ORACLE, RESIDUAL, SINGLE = "oracle", "residual", "single"

GROUP = ("task", "sigma_y", "steps", "solver", "pick")
COLUMNS = (
    *("task", "solver", "sigma_y", "steps", "seed", "image", "pick", "run", "status"),
    *METRICS,
    *("network_evaluations", "network_gradients", "seconds", "input_sha256", "message"),
)
VARYING = ("seconds",)
"""Columns that differ between two runs of one evaluation; all others are the same."""


def describe(cell: Cell, sigma_y: float | None, image: str) -> Row:
    """Begin a row."""
    return {
        **{"task": cell.task, "solver": cell.solver, "sigma_y": sigma_y, "steps": cell.steps},
        **{"seed": cell.seed, "image": image},
    }


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


def rows_of(start: Row, records: Sequence[Record], absent: dict[str, str], sha256: str) -> list[Row]:
    """Make the rows of one image: one, or where there are several runs one for each way to choose.

    Args:
        start: the row so far.
        records: of its runs.
        absent: metrics that nobody could measure, and why.
        sha256: of the image's file.
    """
    rows = []
    for how, run in pick(records).items():
        record = records[run]
        metrics = {name: record.metrics.get(name, absent.get(name)) for name in METRICS}
        rows.append(
            {
                **{**start, "pick": how, "run": run, "status": record.status, **metrics},
                # All runs are paid for, whichever is kept.
                "network_evaluations": sum(r.network_evaluations for r in records),
                "network_gradients": sum(r.network_gradients for r in records),
                "seconds": sum(r.seconds or 0.0 for r in records),
                "input_sha256": sha256,
                "message": record.message,
            }
        )
    return rows


def to_csv(rows: Iterable[Row]) -> str:
    """Write the table."""
    text = textio.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: _cell(row.get(k)) for k in COLUMNS})
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.7g}"  # float32 has no more
    return "" if value is None else value


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in GROUP)


def _per_image(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Average an image's seeds; NaN and what could not be measured is left out."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if isinstance(row.get(name), int | float) and not math.isnan(row[name]):
            found.setdefault(row["image"], []).append(row[name])
    return {image: math.fsum(values) / len(values) for image, values in found.items()}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Sum up: groups of rows that differ in image and seed only, and paired differences between solvers."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row)
    summaries, good = [], {}
    for key, members in groups.items():
        good[key] = [row for row in members if row["status"] in ("ok", "no truth")]
        counts: dict[str, int] = {}
        for row in members:
            counts[row["status"]] = counts.get(row["status"], 0) + 1
        metrics = {name: _per_image(good[key], name) for name in METRICS}
        summaries.append(
            {
                **dict(zip(GROUP, key, strict=True)),
                "images": len({row["image"] for row in members}),
                "statuses": counts,
                "metrics": {
                    name: interval(list(values.values())) if values else {"n": 0, "why": _reason(members, name)}
                    for name, values in metrics.items()
                },
                "network_evaluations": _mean(good[key], "network_evaluations"),
                "network_gradients": _mean(good[key], "network_gradients"),
                "seconds": _mean(good[key], "seconds"),
            }
        )
    return {"groups": summaries, "paired": _differences(good)}


def _reason(rows: Sequence[Row], name: str) -> str:
    reasons = {row[name] for row in rows if isinstance(row.get(name), str)}
    return "; ".join(sorted(reasons or {row["status"] for row in rows}))


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return math.fsum(values) / len(values) if values else None


def _differences(groups: dict[tuple[Any, ...], list[Row]]) -> list[dict[str, Any]]:
    """Compare every two solvers on the images that both restored, task by task."""
    found = []
    place = GROUP.index("solver")
    for (a, ours), (b, theirs) in itertools.combinations(groups.items(), 2):
        if a[:place] + a[place + 1 :] != b[:place] + b[place + 1 :]:
            continue
        common = {name: value for name, value in zip(GROUP, a, strict=True) if name != "solver"}
        for name in METRICS:
            one, other = _per_image(ours, name), _per_image(theirs, name)
            if one.keys() & other.keys():
                solvers = {"solver": a[place], "minus": b[place], "metric": name}
                found.append({**common, **solvers, **paired(one, other)})
    return found
