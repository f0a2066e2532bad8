"""The summary of an evaluation: means of what differs in image and seed only, differences between solvers, origins."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddiff_jax import image_files
from ddiff_jax.evaluation.plan import Plan
from ddiff_jax.evaluation.rows import MARKED, Row
from ddiff_jax.metrics import DIRECTED, METRICS
from ddiff_jax.restoration.records import finite
from ddiff_jax.statistics import Mean, interval, paired

GROUP = ("task", "sigma_y", "steps", "solver", "pick")
"""What the rows of a group have in common."""
MEANS = ("metrics", "oracle_gaps")
"""Fields of a group that hold means by metric."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that differ in image and seed only.

    Args:
        task: name of the preset.
        sigma_y: noise level; None where nothing says it.
        steps: step count; None is that of the solver's preset.
        solver: name in `SOLVERS`.
        pick: how one of several runs was chosen, see `ddiff_jax.evaluation.rows`.
        images: number of images.
        statuses: status to the number of rows that have it.
        metrics: name to the mean over images. What `METRICS` calls general is always there, the rest where measured.
        network_evaluations: mean over rows; None where nothing was restored.
        network_gradients: likewise.
        seconds: likewise, without compiling.
        aim: of the solver, a key of `solvers.AIMS`; None where it does not say.
        oracle_gaps: metric to the mean over images of what picking by the truth would have added; empty where the
            truth did pick, or there is one run or no truth.
    """

    task: str
    sigma_y: float | None
    steps: int | None
    solver: str
    pick: str
    images: int
    statuses: dict[str, int]
    metrics: dict[str, Mean]
    network_evaluations: float | None
    network_gradients: float | None
    seconds: float | None
    aim: str | None = None
    oracle_gaps: dict[str, Mean] = dataclasses.field(default_factory=dict)

    def mean(self, metric: str) -> float | None:
        """Look up the mean of a metric; None where there is none."""
        found = self.metrics.get(metric)
        return None if found is None else found.mean

    def as_dict(self) -> dict[str, Any]:
        """Spell it out in plain types."""
        means = {name: getattr(self, name) for name in MEANS}
        return {**_fields(self), **{k: {name: m.as_dict() for name, m in v.items()} for k, v in means.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Group":
        """Take back what `as_dict` gave, of an earlier version too."""
        means = {k: {name: Mean.from_dict(m) for name, m in values[k].items()} for k in MEANS if k in values}
        return cls(**{**values, **means})


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two solvers compared, image by image, in one metric.

    Args:
        task: name of the preset.
        sigma_y: noise level.
        steps: step count.
        pick: how one of several runs was chosen.
        solver: the first.
        minus: the other.
        metric: name in `METRICS`.
        mean: of the differences, over the images that both restored.
    """

    task: str
    sigma_y: float | None
    steps: int | None
    pick: str
    solver: str
    minus: str
    metric: str
    mean: Mean

    def as_dict(self) -> dict[str, Any]:
        """Spell it out in plain types."""
        return {**{k: v for k, v in _fields(self).items() if k != "mean"}, **self.mean.as_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Difference":
        """Take back what `as_dict` gave."""
        own = {field.name for field in dataclasses.fields(cls)} - {"mean"}
        mean = Mean.from_dict({k: v for k, v in values.items() if k not in own})
        return cls(**{k: v for k, v in values.items() if k in own}, mean=mean)


@dataclasses.dataclass(frozen=True)
class Setup:
    """How a cell was set up.

    Args:
        cell: its path.
        command: what repeats its first run.
        settings: all of them, as `Settings.as_dict` gives them.
    """

    cell: str
    command: str
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Summary:
    """All of an evaluation but the single images.

    Args:
        groups: the means.
        paired: differences between every two solvers.
        bad: rows whose status is not "ok"; of those read from a file only `MARKED` is known.
        plan: what was asked for.
        cells: those that could be set up.
        prior: its name, and the fields of its card.
        lpips: backbone to the place of its weights and their hash.
        images: name of an image to the hash of its file.
        batch_size: images restored together.
        environments: versions and devices of all runs that made the records.
        written: when.
    """

    groups: tuple[Group, ...]
    paired: tuple[Difference, ...]
    bad: tuple[Row, ...]
    plan: Plan
    cells: tuple[Setup, ...]
    prior: dict[str, Any]
    lpips: dict[str, dict[str, str]]
    images: dict[str, str]
    batch_size: int
    environments: tuple[dict[str, Any], ...]
    written: str

    def as_dict(self) -> dict[str, Any]:
        """Spell it out in plain types; numbers that are not finite become None."""
        parts = {
            "groups": [group.as_dict() for group in self.groups],
            "paired": [difference.as_dict() for difference in self.paired],
            "bad": [{name: getattr(row, name) for name in MARKED} for row in self.bad],
            "plan": self.plan.as_dict(),
            "cells": [_fields(cell) for cell in self.cells],
        }
        return finite({**_fields(self), **parts})

    def write(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        image_files.write_text(path, json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Summary":
        """Read what `write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        parts = {
            "groups": tuple(Group.from_dict(group) for group in values["groups"]),
            "paired": tuple(Difference.from_dict(difference) for difference in values["paired"]),
            "bad": tuple(Row(**row) for row in values["bad"]),
            "plan": Plan.from_dict(values["plan"]),
            "cells": tuple(Setup(**cell) for cell in values["cells"]),
            "environments": tuple(values["environments"]),
        }
        return cls(**{**values, **parts})


def _fields(value: Any) -> dict[str, Any]:
    """List the fields of a dataclass as they are."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def summarise(rows: Sequence[Row]) -> tuple[tuple[Group, ...], tuple[Difference, ...]]:
    """Sum up rows: by groups, and the differences between the solvers of these."""
    members: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        members.setdefault(tuple(getattr(row, name) for name in GROUP), []).append(row)
    groups = tuple(_group(key, of_key) for key, of_key in members.items())
    return groups, tuple(_differences({key: _restored(of_key) for key, of_key in members.items()}))


def _restored(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.is_restored]


def _group(key: tuple[Any, ...], rows: Sequence[Row]) -> Group:
    good = _restored(rows)
    statuses = [row.status for row in rows]
    per_image = {name: _per_image(good, name) for name in METRICS}
    gaps = {name: _by_image((row.image, row.oracle_gaps.get(name)) for row in good) for name in DIRECTED}
    return Group(
        **dict(zip(GROUP, key, strict=True)),
        images=len({row.image for row in rows}),
        statuses={status: statuses.count(status) for status in dict.fromkeys(statuses)},
        metrics={
            name: interval(list(values.values())) if values else Mean(0, why=_reason(rows, name))
            for name, values in per_image.items()
            if values or METRICS[name].general
        },
        network_evaluations=_mean([row.network_evaluations for row in good]),
        network_gradients=_mean([row.network_gradients for row in good]),
        seconds=_mean([row.seconds for row in good]),
        aim=rows[0].aim,
        oracle_gaps={name: interval(list(values.values())) for name, values in gaps.items() if values},
    )


def _per_image(rows: Sequence[Row], metric: str) -> dict[str, float]:
    return _by_image((row.image, row.number(metric)) for row in rows)


def _by_image(numbers: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Average an image's seeds; what could not be measured is left out."""
    found: dict[str, list[float]] = {}
    for image, value in numbers:
        if value is not None:
            found.setdefault(image, []).append(value)
    return {image: math.fsum(values) / len(values) for image, values in found.items()}


def _reason(rows: Sequence[Row], metric: str) -> str:
    reasons = {reason for row in rows if isinstance(reason := row.metrics.get(metric), str)}
    return "; ".join(sorted(reasons or {row.status for row in rows}))


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _differences(groups: Mapping[tuple[Any, ...], Sequence[Row]]) -> list[Difference]:
    """Compare every two solvers on the images that both restored, task by task."""
    found = []
    for (a, ours), (b, theirs) in itertools.combinations(groups.items(), 2):
        first, second = dict(zip(GROUP, a, strict=True)), dict(zip(GROUP, b, strict=True))
        minus = second.pop("solver")
        if {**first, **second} != first:
            continue
        for name in METRICS:
            one, other = _per_image(ours, name), _per_image(theirs, name)
            if one.keys() & other.keys():
                found.append(Difference(**first, minus=minus, metric=name, mean=paired(one, other)))
    return found
