"""The ledger of a study: our numbers beside the published ones, with verdicts."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddiff_jax import image_files
from ddiff_jax.evaluation.formats import to_markdown
from ddiff_jax.evaluation.published import Published, published
from ddiff_jax.evaluation.reproduction import STUDIES, Reproduction
from ddiff_jax.evaluation.rows import ORACLE, RESIDUAL
from ddiff_jax.evaluation.summary import Group
from ddiff_jax.metrics import METRICS
from ddiff_jax.statistics import Mean

BY_THE_TRUTH = "run picked by the truth, as in the paper"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One number of ours, and what the paper has in its place.

    Args:
        task: name of the preset.
        solver: name in `SOLVERS`.
        sigma_y: noise level.
        steps: network evaluations asked for; None is the published number of steps.
        pick: how one of several runs was chosen.
        metric: name in `METRICS`.
        published: the paper's mean; None where it has none.
        published_half_width: half of its 95% interval; None where the paper gives none.
        ours: our mean; None where there is none.
        interval: its 95% interval; None where there is none.
        images: how many the mean is of.
        network_evaluations: per image.
        seconds: per image.
        difference: ours minus the published one, where they mean the same.
        difference_half_width: half of its 95% interval.
        verdict: in words.
        note: why the published number may not mean the same as ours, and who picked among the runs.
        oracle_gap: what picking by the truth would have added where the misfit picked; None elsewhere.
        oracle_gap_interval: its 95% interval.
    """

    task: str
    solver: str
    sigma_y: float | None
    steps: int | None
    pick: str
    metric: str
    published: float | None
    published_half_width: float | None
    ours: float | None
    interval: tuple[float, float] | None
    images: int
    network_evaluations: float | None
    seconds: float | None
    difference: float | None
    difference_half_width: float | None
    verdict: str
    note: str
    oracle_gap: float | None = None
    oracle_gap_interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Ledger:
    """All numbers of a study.

    Args:
        study: key of `STUDIES`.
        title: of the study.
        dataset: of the images.
        source: of the published numbers.
        differences: what differs from the paper, in words.
        entries: the numbers.
    """

    study: str
    title: str
    dataset: str
    source: str
    differences: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def published_known(self) -> int:
        """How many of the numbers the paper has."""
        return sum(entry.published is not None for entry in self.entries)

    def as_dict(self) -> dict[str, Any]:
        """Spell it out in plain types."""
        head = {name: getattr(self, name) for name in ("study", "title", "dataset", "source")}
        return {
            **head,
            "differences": list(self.differences),
            "published_known": self.published_known,
            "rows": [dataclasses.asdict(entry) for entry in self.entries],
        }

    def write(self, folder: Path) -> Path:
        """Write ledger.json and ledger.md; returns the latter."""
        image_files.write_text(folder / "ledger.json", json.dumps(self.as_dict(), indent=1) + "\n")
        image_files.write_text(folder / "ledger.md", as_markdown(self))
        return folder / "ledger.md"


def compare(made: Reproduction, groups: Sequence[Group]) -> Ledger:
    """Set our numbers beside the published ones.

    Args:
        made: what was run.
        groups: of the evaluation's summary.
    """
    source, numbers = published()
    theirs = {(n.table, n.dataset, n.task, n.solver, n.metric): n for n in numbers}
    study = STUDIES[made.study]
    entries = []
    for group in groups:
        for metric in study.metrics:
            found = group.metrics[metric]
            number = theirs.get((made.study, made.dataset, group.task, group.solver, metric))
            if group.pick == RESIDUAL:
                number = None  # the paper picks the best of several runs by the truth
            notes = ["" if number is None else number.not_comparable, BY_THE_TRUTH if group.pick == ORACLE else ""]
            gap = group.oracle_gaps.get(metric)
            difference, half_width = _difference(found, number)
            entries.append(
                Entry(
                    *(group.task, group.solver, group.sigma_y, group.steps, group.pick, metric),
                    published=None if number is None else number.value,
                    published_half_width=None if number is None else number.half_width,
                    ours=found.mean,
                    interval=found.interval,
                    images=found.n,
                    network_evaluations=group.network_evaluations,
                    seconds=group.seconds,
                    difference=difference,
                    difference_half_width=half_width,
                    verdict=_verdict(found, number, made.same_protocol),
                    note="; ".join(filter(None, notes)),
                    oracle_gap=None if gap is None else gap.mean,
                    oracle_gap_interval=None if gap is None else gap.interval,
                )
            )
    return Ledger(made.study, study.title, made.dataset, source, made.differences, tuple(entries))


def _difference(found: Mean, number: Published | None) -> tuple[float | None, float | None]:
    """Subtract the published mean from ours, and find half of the 95% interval of that from both intervals.

    The half-widths add up as those of independent means do, which is too wide if the images are the paper's; where the
    paper has none, ours stands alone, which is too narrow. A number that means something else is not subtracted.
    """
    if number is None or number.not_comparable or found.mean is None:
        return None, None
    difference = found.mean - number.value
    return difference, None if found.half_width is None else math.hypot(found.half_width, number.half_width or 0.0)


def _verdict(found: Mean, number: Published | None, same_protocol: bool) -> str:
    """Judge in words: whether both means can be one, by both 95% intervals, and which is higher if not."""
    if found.mean is None:
        return f"not measured: {found.reason}"
    if number is None:
        return "the paper has no such number"
    if number.not_comparable:
        return "not comparable"
    if not same_protocol:
        return "not comparable: another protocol"
    difference, half_width = _difference(found, number)
    if difference is None or half_width is None:
        return "one image: no verdict"
    alone = "" if number.half_width is not None else ", by our interval alone"
    if abs(difference) <= half_width:
        return f"agrees{alone}"
    side, better = "higher" if difference > 0 else "lower", METRICS[number.metric].higher_is_better
    judged = "" if better is None else " (better)" if (side == "higher") == better else " (worse)"
    return f"{side}{judged}{alone}"


HEADINGS = (
    *("task", "solver", "noise", "steps", "pick", "metric", "published", "ours", "95% interval", "images"),
    *("evaluations", "seconds", "difference", "oracle gap", "verdict"),
)
PICKS = (
    "Pick: oracle is the best of several runs by PSNR against the truth, as the paper picked, which no user can; "
    "residual is the best by the misfit, and its oracle gap is what picking by the truth would have added."
)


def as_markdown(ledger: Ledger) -> str:
    """Write the ledger as a table for people."""
    known = f"The paper has {ledger.published_known} of these {len(ledger.entries)} numbers."
    head = [
        f"# {ledger.study} on {ledger.dataset}: {ledger.title}",
        "",
        f"Published: {ledger.source}. {known}",
        "Intervals: 95%, ours by Student's t over images, the paper's (published and difference: ±) where it has one.",
        *([PICKS] if any(entry.pick == ORACLE for entry in ledger.entries) else []),
        "Verdict: agrees where the difference is below the root of the sum of both half-widths squared.",
        *(f"Differs from the paper: {difference}." for difference in ledger.differences),
        "",
    ]
    return "\n".join([*head, to_markdown(HEADINGS, map(_cells, ledger.entries))]) + "\n"


def _cells(entry: Entry) -> list[str]:
    return [
        *(entry.task, entry.solver, _short(entry.sigma_y), _short(entry.steps), entry.pick, entry.metric),
        _with_half_width(entry.published, entry.published_half_width) or "none",
        _short(entry.ours),
        "" if entry.interval is None else f"{entry.interval[0]:.4g} to {entry.interval[1]:.4g}",
        *(str(entry.images), _short(entry.network_evaluations), _short(entry.seconds)),
        _with_half_width(entry.difference, entry.difference_half_width),
        _with_half_width(entry.oracle_gap, Mean(0, interval=entry.oracle_gap_interval).half_width),
        "; ".join(filter(None, (entry.verdict, entry.note))),
    ]


def _with_half_width(value: float | None, half_width: float | None) -> str:
    return _short(value) + ("" if half_width is None else f" ± {half_width:.2g}")


def _short(value: float | int | None) -> str:
    return "" if value is None else f"{value:.4g}"
