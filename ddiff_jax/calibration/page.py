"""One HTML page for a calibration: labels, tables, coverage curves and ranks, with nothing outside the file."""

from collections.abc import Sequence
from pathlib import Path

from ddiff_jax import image_files
from ddiff_jax.calibration import drawings, table
from ddiff_jax.calibration.findings import LABELS, Findings
from ddiff_jax.report.parts import style, template
from ddiff_jax.safe_text import html_text

PAGE = "report.html"


def write_page(all_findings: Sequence[Findings], words: table.Words, folder: Path, title: str = "Calibration") -> Path:
    """Write report.html.

    Args:
        all_findings: of all solvers and cells.
        words: their labels.
        folder: where to.
        title: head of the page.

    Returns:
        The page.

    Raises:
        OSError: it cannot be written.
    """
    shades = {solver: drawings.colour(i) for i, solver in enumerate(dict.fromkeys(f.solver for f in all_findings))}
    cells = table.cells_of(all_findings)
    text = template("ddiff_jax.calibration").substitute(
        style=style(),
        title=html_text(title),
        subtitle=html_text(
            f"{_count(len(shades), 'solver')} on {_count(len(cells), 'cell')}, problems whose posteriors are known; a "
            "label is measured, and holds for the cell that it was measured on."
        ),
        warning=_warning(all_findings, words),
        summary=_summary(all_findings, words, shades),
        cells="".join(_cell(cell, rows, words, shades) for cell, rows in cells.items()),
        meaning=_meaning(words),
    )
    path = folder / PAGE
    image_files.write_text(path, text)
    return path


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _warning(all_findings: Sequence[Findings], words: table.Words) -> str:
    """Say so where exact samples fail: then the suite is at fault, or chance."""
    wrong = [f for f in all_findings if f.solver == "exact" and words[f.solver, f.cell] != "posterior"]
    if not wrong:
        return ""
    where = ", ".join(f.cell for f in wrong)
    return (
        f'<div class="warning">Exact samples do not pass on {html_text(where)}: by chance, which happens on some of a '
        "hundred cells, or because these problems are too few.</div>"
    )


def _summary(all_findings: Sequence[Findings], words: table.Words, shades: dict[str, str]) -> str:
    """Put the labels side by side: solvers down, cells across."""
    cells = list(table.cells_of(all_findings))
    aims = {found.solver: found.aim or "unsaid" for found in all_findings}
    head = "".join(f"<th class=text>{html_text(name)}</th>" for name in ("solver", "aims at", *cells))
    rows = [
        f"<tr><td>{_dot(shade)}{html_text(solver)}</td><td class=text>{html_text(aims[solver])}</td>"
        + "".join(_label(words.get((solver, cell), "")) for cell in cells)
        + "</tr>"
        for solver, shade in shades.items()
    ]
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _dot(shade: str) -> str:
    return f'<i style="background: {shade}"></i>'


def _label(word: str) -> str:
    kind = "right" if word == "posterior" else "label"
    return f'<td class="{kind}" title="{html_text(LABELS.get(word, ""))}">{html_text(word)}</td>'


def _cell(cell: str, rows: Sequence[Findings], words: table.Words, shades: dict[str, str]) -> str:
    measured = [found for found in rows if found.measures is not None]
    texts = [" class=text"] * table.TEXTS
    kinds = [*texts, *[""] * (len(table.HEAD) - len(texts))]
    head = "".join(f"<th{kind}>{html_text(name)}</th>" for kind, name in zip(kinds, table.HEAD, strict=True))
    body = []
    for found in rows:
        first, word, *others = table.cells(found, words[found.solver, cell])
        numbers = "".join(f"<td>{html_text(text)}</td>" for text in others)
        body.append(f"<tr><td>{_dot(shades[found.solver])}{html_text(first)}</td>{_label(word)}{numbers}</tr>")
    notes = "".join(f'<p class="faint">{html_text(note)}</p>' for note in table.notes(rows))
    problems = f"{rows[0].num_problems} problems, {rows[0].num_samples} samples of each by every solver"
    return (
        f'<h2>{html_text(cell)}</h2><p class="faint">{html_text(problems)}.</p>'
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>{notes}'
        f'<div class="plots">{_plots(measured, shades)}</div>{_key(measured, shades)}{_ranks(measured, shades)}'
    )


def _plots(rows: Sequence[Findings], shades: dict[str, str]) -> str:
    """Draw coverage by density, by coordinate and by distance."""
    density, coordinate, distance = {}, {}, {}
    for solver in shades:
        found = next((f.measures for f in rows if f.solver == solver), None)
        ranks = None if found is None else found.density_ranks
        density[solver] = [] if ranks is None else drawings.coverage_of(ranks)
        curve = () if found is None else (0.0, *found.coordinate_curve)
        coordinate[solver] = [(i / max(len(curve) - 1, 1), value) for i, value in enumerate(curve)]
        distance[solver] = [] if found is None else drawings.coverage_of(found.tarp_ranks)
    if not rows:
        return ""
    count = rows[0].num_problems
    plots = [drawings.coverage_plot("by highest posterior density", density, count)] * any(density.values())
    plots.append(drawings.coverage_plot("by coordinate", coordinate, None))
    plots.append(drawings.coverage_plot("by distance to a random point (TARP)", distance, count))
    return "".join(plots)


def _key(rows: Sequence[Findings], shades: dict[str, str]) -> str:
    entries = "".join(f"<li>{_dot(shades[found.solver])}{html_text(found.solver)}</li>" for found in rows)
    return f'<ul class="key">{entries}</ul>' if entries else ""


def _ranks(rows: Sequence[Findings], shades: dict[str, str]) -> str:
    figures = []
    for found in rows:
        measures, shade = found.measures, shades[found.solver]
        if measures is None:
            continue
        drawn = [drawings.rank_histogram("projection 0", measures.sbc_counts[0], shade)]
        drawn.append(drawings.rank_histogram("projection 1", measures.sbc_counts[1], shade))
        drawn.append(drawings.rank_histogram("distance", measures.tarp_ranks, shade))
        if measures.density_ranks is not None:
            drawn.insert(0, drawings.rank_histogram("density", measures.density_ranks, shade))
        figures.append(
            f'<figure><figcaption>{html_text(found.solver)}</figcaption><div class="several">{"".join(drawn)}</div>'
            "</figure>"
        )
    if not figures:
        return ""
    return f"<details><summary>Ranks of the truths among the samples</summary>{''.join(figures)}</details>"


def _meaning(words: table.Words) -> str:
    used = set(words.values())
    entries = "".join(
        f"<tr><td>{html_text(word)}</td><td class=long>{html_text(meaning)}</td></tr>"
        for word, meaning in LABELS.items()
        if word in used
    )
    return (
        f"<p>{html_text(table.MEANING)}</p><p>Bands: where exact samples stay in 99% of all cases, point by point. "
        "Coverage by coordinate alone misleads: every coordinate may be right where regions of the whole "
        "image are not.</p>"
        f'<table class="narrow">{entries}</table>'
    )
