"""The numbers that the paper prints, read strictly from configs/published.yaml."""

import dataclasses
import math
import re
from typing import Any

from ddiff_jax.config import config_folder, presets, read_yaml
from ddiff_jax.metrics import METRICS
from ddiff_jax.names import check_keys, check_name
from ddiff_jax.solvers import SOLVERS

TABLES = ("table1", "table2")
WITH_INTERVAL = re.compile(r"(\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)")


@dataclasses.dataclass(frozen=True)
class Published:
    """One number of the paper.

    Args:
        table: one of `TABLES`.
        dataset: of the images.
        task: name of the preset.
        solver: name in `SOLVERS`.
        metric: name in `METRICS`.
        value: the mean over images.
        half_width: half of its 95% interval; None where the paper gives none.
        not_comparable: why it may not mean the same as ours; empty where it does.
    """

    table: str
    dataset: str
    task: str
    solver: str
    metric: str
    value: float
    half_width: float | None = None
    not_comparable: str = ""


def published() -> tuple[str, list[Published]]:
    """Read what the paper prints: the source and the numbers.

    Raises:
        ValueError: the file names something unknown, names something twice, or holds what is no number.
    """
    path = config_folder() / "published.yaml"
    return parse(path.read_text(encoding="utf-8"), str(path))


def parse(text: str, where: str) -> tuple[str, list[Published]]:
    """Read the source and the numbers from yaml.

    Args:
        text: in the form of configs/published.yaml.
        where: its place, for messages.

    Raises:
        ValueError: as in `published`.
    """
    document = read_yaml(text, where)
    known = ("source", "columns", "not_comparable", "tables")
    check_keys(where, document, known)
    if len(document) != len(known):
        raise ValueError(f"{where} must hold {', '.join(known)}; got {', '.join(document)}")
    columns, reasons = document["columns"], document["not_comparable"]
    check_keys(f"{where}, columns", columns, METRICS)
    check_keys(f"{where}, not_comparable", reasons, columns)
    check_keys(f"{where}, tables", document["tables"], TABLES)
    entries = []
    for table, datasets in document["tables"].items():
        for dataset, tasks in datasets.items():
            check_name(f"dataset in {where}, {table}:", dataset, presets())
            for task, solvers in tasks.items():
                check_name(f"task in {where}, {table}, {dataset}:", task, presets()[dataset])
                for solver, row in solvers.items():
                    check_name(f"solver in {where}, {table}, {dataset}, {task}:", solver, SOLVERS)
                    place = f"{where}: {table}, {dataset}, {task}, {solver}"
                    if not isinstance(row, list) or len(row) != len(columns):
                        raise ValueError(f"{place} must hold one value each for {', '.join(columns)}; got {row!r}")
                    for metric, cell in zip(columns, row, strict=True):
                        number = _number(cell, f"{place}, {metric}")
                        entries.append(
                            Published(table, dataset, task, solver, metric, *number, reasons.get(metric, ""))
                        )
    return document["source"], entries


def _number(cell: Any, place: str) -> tuple[float, float | None]:
    """Read a value, and half of its interval if there is one."""
    if isinstance(cell, int | float) and not isinstance(cell, bool) and math.isfinite(cell):
        return float(cell), None
    found = WITH_INTERVAL.fullmatch(cell) if isinstance(cell, str) else None
    if found is None:
        raise ValueError(f'{place}: a value must be a number, or like "30.07 ± 0.41"; got {cell!r}')
    return float(found[1]), float(found[2])
