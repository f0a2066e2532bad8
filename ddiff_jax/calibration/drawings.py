"""Drawings of findings as SVG, which a page holds as it is: coverage against its nominal value, and ranks."""

from collections.abc import Mapping, Sequence

import numpy as np

from ddiff_jax.report.curves import COLOURS
from ddiff_jax.safe_text import html_text

SIDE, MARGIN = 288.0, 42.0  # of a coverage plot, in pixels
WIDTH, HEIGHT = 150.0, 64.0  # of a histogram
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
ERRORS = 2.6  # standard errors that the bands show
INK, FAINT, WASH = "#181a20", "#686c76", "#eceef2"


def coverage_of(counts: Sequence[int]) -> list[tuple[float, float]]:
    """Turn counts of ranks into the points of a coverage curve: nominal and measured."""
    total = max(sum(counts), 1)
    measured = np.concatenate([[0.0], np.cumsum(counts) / total])
    return list(zip(np.linspace(0, 1, len(measured)).tolist(), measured.tolist(), strict=True))


def coverage_plot(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], num_problems: int | None) -> str:
    """Draw measured against nominal coverage.

    Args:
        title: what the regions are.
        curves: of every solver; those that are missing keep their colour for the next plot by an empty curve.
        num_problems: N, for the band in which exact samples stay at each point in 99% of all cases; None draws none.
    """
    size = SIDE + 2 * MARGIN
    parts = [
        f'<svg class="plot" viewBox="0 0 {size:g} {size:g}" width="{size:g}" height="{size:g}" role="img" '
        f'aria-label="{html_text(title)}">'
    ]
    if num_problems is not None:
        nominal = np.linspace(0, 1, 41)
        error = ERRORS * np.sqrt(nominal * (1 - nominal) / num_problems)
        high, low = np.minimum(nominal + error, 1), np.maximum(nominal - error, 0)
        edge = np.column_stack([np.append(nominal, nominal[::-1]), np.append(high, low[::-1])]).tolist()
        parts.append(f'<polygon points="{_points(edge)}" fill="{WASH}"/>')
    parts.append(
        f'<polyline points="{_points([(0.0, 0.0), (1.0, 1.0)])}" fill="none" stroke="{FAINT}" stroke-dasharray="4 3"/>'
    )
    for tick in TICKS:
        x, y = _place(tick, 0.0)
        parts.append(_text(x, y + 16, f"{tick:g}", "middle"))
        x, y = _place(0.0, tick)
        parts.append(_text(x - 6, y + 4, f"{tick:g}", "end"))
    parts.append(f'<rect x="{MARGIN}" y="{MARGIN}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#c9ccd3"/>')
    parts.append(_text(size / 2, size - 6, "nominal coverage", "middle"))
    parts.append(f'<g transform="rotate(-90 12 {size / 2})">{_text(12.0, size / 2, "measured", "middle")}</g>')
    parts.append(_text(MARGIN, MARGIN - 14, title, "start", INK, 13))
    for i, (solver, curve) in enumerate(curves.items()):
        if curve:
            parts.append(
                f'<polyline points="{_points(curve)}" fill="none" stroke="{colour(i)}" stroke-width="1.8" '
                f'stroke-linejoin="round"><title>{html_text(solver)}</title></polyline>'
            )
    return "".join([*parts, "</svg>"])


def rank_histogram(title: str, counts: Sequence[int], shade: str) -> str:
    """Draw how often every rank was found, with the band in which exact samples stay in 99% of all cases.

    Args:
        title: which ranks.
        counts: of ranks, or of bins of equally many.
        shade: colour of the bars.
    """
    total, bins = max(sum(counts), 1), len(counts)
    share = 1 / bins
    error = ERRORS * np.sqrt(share * (1 - share) / total)
    top = max(max(counts) / total, share + error) * 1.05
    width, high, low = WIDTH / bins, HEIGHT * (share + error) / top, HEIGHT * max(share - error, 0) / top
    bars = "".join(
        f'<rect x="{i * width + 0.5:.1f}" y="{HEIGHT * (1 - count / total / top):.1f}" width="{width - 1:.1f}" '
        f'height="{HEIGHT * count / total / top:.1f}" fill="{shade}"/>'
        for i, count in enumerate(counts)
    )
    height = HEIGHT + 16
    return (
        f'<svg class="ranks" viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" height="{height:g}" role="img" '
        f'aria-label="{html_text(title)}: {html_text(", ".join(map(str, counts)))}">'
        f'<rect x="0" y="{HEIGHT - high:.1f}" width="{WIDTH}" height="{high - low:.1f}" fill="{WASH}"/>{bars}'
        f'<line x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}" stroke="#c9ccd3"/>'
        f"{_text(0.0, HEIGHT + 13, title, 'start')}</svg>"
    )


def colour(i: int) -> str:
    """Choose the colour of the i-th solver."""
    return COLOURS[i % len(COLOURS)]


def _place(nominal: float, measured: float) -> tuple[float, float]:
    return MARGIN + SIDE * nominal, MARGIN + SIDE * (1 - measured)


def _points(curve: Sequence[Sequence[float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in (_place(*point) for point in curve))


def _text(x: float, y: float, text: str, anchor: str, shade: str = FAINT, size: int = 11) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{shade}">{html_text(text)}</text>'
