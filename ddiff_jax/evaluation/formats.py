"""How an evaluation is written: lines for a terminal, CSV, tables in Markdown; for HTML see `ddiff_jax.report`."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from ddiff_jax.evaluation.plan import digits
from ddiff_jax.evaluation.rows import CHOSEN, COLUMNS, SINGLE, Row
from ddiff_jax.evaluation.summary import Summary
from ddiff_jax.metrics import METRICS, Metric
from ddiff_jax.safe_text import csv_cell, markdown_text
from ddiff_jax.statistics import Mean


def lines(summary: Summary) -> list[str]:
    """Tell the means in a few words each."""
    told, metric = [], METRICS["psnr_paper"]
    for group in summary.groups:
        name = f"{group.task} {group.solver}"
        variant = {"sigma_y": group.sigma_y, "steps": group.steps}
        name += "".join(f" {k} {v}" for k, v in variant.items() if v is not None)
        name += "" if group.pick == SINGLE else f", {CHOSEN[group.pick]}"
        found = group.metrics[metric.name]
        if found.mean is None:
            told.append(f"  {name}: no PSNR")
            continue
        spread = "" if found.interval is None else f" (95%: {metric.span(found.interval)})"
        gap = group.oracle_gaps.get(metric.name)
        more = "" if gap is None else f"; {tell_gap(gap, metric)}"
        told.append(f"  {name}: {metric.say(found.mean)}{spread}, {found.n} images{more}")
    return told


def tell_gap(gap: Mean, metric: Metric) -> str:
    """Say what picking by the truth would have added."""
    if gap.mean is None:
        return f"oracle gap of {metric.title}: {gap.reason}"
    spread = "" if gap.interval is None else f" (95%: {metric.span(gap.interval)})"
    added = " ".join(filter(None, (metric.number(gap.mean), metric.unit)))
    return f"picking by the truth would have added {added}{spread}"


def to_csv(rows: Iterable[Row]) -> str:
    """Write the table of images."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(name, value) for name, value in row.as_dict().items()})
    return text.getvalue()


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, float):  # what was measured is float32, which has no more digits; what was asked for may
        return digits(value) if name == "sigma_y" else f"{value:.7g}"
    return "" if value is None else csv_cell(value)


def to_markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table, without an end of line after its last row."""
    return "\n".join([_line(head), "|---" * len(head) + "|", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"
