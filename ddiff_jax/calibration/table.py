"""Findings as tables of text and Markdown, and the sentences that sum them up."""

import math
from collections.abc import Mapping, Sequence

from ddiff_jax.calibration.findings import LABELS, Coverage, Findings
from ddiff_jax.evaluation.formats import to_markdown

HEAD = (
    *("solver", "label", "HPD 50", "HPD 90", "coordinate 50", "coordinate 90", "gap, dB", "spread", "energy"),
    *("p SBC", "p TARP", "evaluations", "ms a sample"),
)
MEANING = (
    "HPD and coordinate: share of truths in regions of highest posterior density, and in central intervals, that "
    "hold 50 and 90%; gap: loss of the samples' mean against the posterior's; spread: standard deviation over the "
    "posterior's; energy: distance to exact samples, 0 on average where there is none; p: chance of such ranks by "
    "exact samples; evaluations of the network a sample. Brackets: standard error of the last digits."
)
TEXTS = 2  # columns of texts, before those of numbers
NONE = "-"
MARK = "*"  # of a solver that does not aim at the posterior
Words = Mapping[tuple[str, str], str]


def cells_of(all_findings: Sequence[Findings]) -> dict[str, list[Findings]]:
    """Sort findings by cell, in their order."""
    cells: dict[str, list[Findings]] = {}
    for found in all_findings:
        cells.setdefault(found.cell, []).append(found)
    return cells


def cells(found: Findings, word: str) -> list[str]:
    """Write the cells of a row, as `HEAD` names them."""
    name = found.solver + MARK * (found.aim != "posterior")
    measures = found.measures
    if measures is None:
        return [name, word, *[NONE] * (len(HEAD) - TEXTS)]
    density = [NONE] * 2 if measures.density is None else _coverage(measures.density)
    return [
        *(name, word, *density, *_coverage(measures.coordinate)),
        with_error(measures.gap, measures.gap_error),
        f"{measures.spread:.2f}",
        with_error(measures.energy, measures.energy_error, 3),
        p_value(measures.sbc_p_value),
        p_value(measures.tarp_p_value),
        f"{found.evaluations}" + (f" + {found.gradients} back" if found.gradients else ""),
        f"{1e3 * found.seconds / (found.num_problems * found.num_samples):.2g}",
    ]


def _coverage(coverage: Coverage) -> list[str]:
    return [with_error(value, error) for value, error in zip(coverage.values, coverage.errors, strict=True)]


def with_error(value: float, error: float, digits: int = 2) -> str:
    """Write a number with its standard error in units of the last digit, as 0.87(3)."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:.{digits}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return f"{text}({max(round(error * 10**digits), 1)})" if math.isfinite(error) else text


def p_value(value: float) -> str:
    """Write a probability with one digit that counts, and none of the tiny ones."""
    return f"{value:.2f}" if value >= 0.01 else f"{value:.3f}" if value >= 0.001 else "<.001"


def to_text(all_findings: Sequence[Findings], words: Words) -> str:
    """Write a table for a terminal.

    Args:
        all_findings: of every solver and cell.
        words: the label of each by (solver, cell), from `labels`.
    """
    parts = []
    for cell, rows in cells_of(all_findings).items():
        table = [HEAD, *(cells(found, words[found.solver, cell]) for found in rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        parts.append(_title(cell, rows))
        for row in table:
            padded = zip(row, widths, strict=True)
            texts = [text.ljust(width) if i < TEXTS else text.rjust(width) for i, (text, width) in enumerate(padded)]
            parts.append(f"  {'  '.join(texts)}".rstrip())
        parts += [*(f"  {note}" for note in notes(rows)), ""]
    return "\n".join([*parts, *sentences(all_findings, words)])


def to_document(all_findings: Sequence[Findings], words: Words) -> str:
    """Write a page of Markdown: the sentences, a table per cell, and what the words mean.

    Args:
        all_findings: of every solver and cell.
        words: the label of each by (solver, cell), from `labels`.
    """
    parts = ["# Calibration", "", *(f"- {line}" for line in sentences(all_findings, words)), "", MEANING]
    for cell, rows in cells_of(all_findings).items():
        table = to_markdown(HEAD, [cells(found, words[found.solver, cell]) for found in rows])
        parts += ["", f"## {_title(cell, rows)}", "", table, *(f"\n{note}" for note in notes(rows))]
    used = set(words.values())
    parts += ["", "## Labels", "", *(f"- {word}: {meaning}" for word, meaning in LABELS.items() if word in used)]
    return "\n".join(parts) + "\n"


def _title(cell: str, rows: Sequence[Findings]) -> str:
    return f"{cell}: {rows[0].num_problems} problems, {rows[0].num_samples} samples of each"


def notes(rows: Sequence[Findings]) -> list[str]:
    """Tell what was left out of a table, and why."""
    told = [f"{found.solver}: {found.why}" for found in rows if found.why]
    told += [
        f"{found.solver}: {found.num_diverged} of {found.num_problems} problems are left out, with samples not finite"
        for found in rows
        if found.num_diverged
    ]
    if any(found.aim != "posterior" for found in rows):
        told.append(f"{MARK} does not aim at the posterior")
    return told


def sentences(all_findings: Sequence[Findings], words: Words) -> list[str]:
    """Sum up every solver: each label with the cells on which it was measured.

    Args:
        all_findings: of every solver and cell.
        words: the label of each by (solver, cell), from `labels`.
    """
    of_solvers: dict[str, dict[str, list[str]]] = {}
    for found in all_findings:
        word = words[found.solver, found.cell]
        of_solvers.setdefault(found.solver, {}).setdefault(word, []).append(found.cell)
    return [
        f"{solver}: " + "; ".join(f"{word} on {', '.join(found[word])}" for word in LABELS if word in found)
        for solver, found in of_solvers.items()
    ]
