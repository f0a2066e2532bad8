"""Curves: quality against noise and against cost, and what the steps reported. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddiff_jax.atomic import replacing
from ddiff_jax.evaluation import Group
from ddiff_jax.evaluation.rows import ORACLE, SINGLE
from ddiff_jax.metrics import METRICS, Metric
from ddiff_jax.report.gallery import Gallery, Scene

# Colours that stay apart for colour-blind readers too; a solver keeps its own in all figures of a report.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5d5d5d", "#8c510a", "#7b3294", "#1b1b1b")
MARKERS = "osD^vP*Xph"
DPI = 180
AXES = {
    "sigma_y": "noise level",
    "network_evaluations": "network evaluations per image",
    "seconds": "seconds per image, without compiling",
}
REPORTED = {  # by the steps
    "misfit": "mean squared misfit",
    "gap": "||x - z||",
    "dual": "||u||",
    "solve_residual": "||M u - b|| / ||b||",
    "effective_particles": "effective number of particles",
}


def figure_of(num_axes: int, title: str) -> tuple[Any, list[Any]]:
    """Make a figure with so many axes, all in one style.

    Raises:
        ImportError: there is no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("curves need matplotlib; install it with: pip install 'ddiff-jax[report]'") from error
    columns = min(num_axes, 3 if num_axes == 3 else 2)
    rows = -(-num_axes // columns)
    figure = Figure(figsize=(4.2 * columns, 0.3 + 3.0 * rows), layout="constrained", dpi=DPI)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[num_axes:]:
        axis.remove()
    axes = axes[:num_axes]
    for axis in axes:
        axis.grid(color="#e3e5ea", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, list(axes)


def logarithmic(axis: Any, subs: Sequence[int] = (1, 2, 5)) -> None:
    """Make one axis logarithmic, with plain numbers at `subs` times the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    {"x": axis.axes.set_xscale, "y": axis.axes.set_yscale}[axis.axis_name]("log")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _style(gallery: Gallery, solver: str) -> dict[str, Any]:
    i = gallery.solvers.index(solver)
    return {"color": COLOURS[i % len(COLOURS)], "label": solver, "linewidth": 1.6, "markersize": 4.5}


def _drawn(gallery: Gallery, task: str, x: str, metric: Metric) -> dict[str, list[Group]]:
    """Find the points of a metric: solver to groups, from left to right."""
    groups = [g for g in gallery.found.summary.groups if g.task == task and g.pick in (SINGLE, gallery.pick)]
    points = [g for g in groups if g.mean(metric.name) is not None and getattr(g, x) is not None]
    points.sort(key=lambda group: getattr(group, x))
    of_solvers = {solver: [p for p in points if p.solver == solver] for solver in gallery.solvers}
    return {solver: mine for solver, mine in of_solvers.items() if mine}


def _label(metric: Metric) -> str:
    better = metric.higher_is_better
    arrow = "" if better is None else " (higher is better)" if better else " (lower is better)"
    return ", ".join(filter(None, (metric.title, metric.unit))) + arrow


def against(gallery: Gallery, task: str, x: str) -> Any:
    """Draw every metric against one of `AXES`, with 95% intervals.

    Raises:
        ImportError: there is no matplotlib.
    """
    groups = [g for g in gallery.found.summary.groups if g.task == task]
    metrics = [m for m in METRICS.values() if m.principal and any(g.mean(m.name) is not None for g in groups)]
    label = AXES[x]
    mark = ", best of the restarts by the truth" if any(g.pick == ORACLE == gallery.pick for g in groups) else ""
    figure, axes = figure_of(len(metrics), f"{task.replace('_', ' ')}: quality against the {label}{mark}")
    for axis, metric in zip(axes, metrics, strict=True):
        for solver, points in _drawn(gallery, task, x, metric).items():
            where = [getattr(p, x) for p in points]
            style = _style(gallery, solver)
            marker = MARKERS[gallery.solvers.index(solver) % len(MARKERS)]
            axis.plot(where, [p.mean(metric.name) for p in points], marker=marker, **style)
            spans = [p.metrics[metric.name].interval or (np.nan, np.nan) for p in points]
            low, high = zip(*spans, strict=True)
            if len(points) > 1:
                axis.fill_between(where, low, high, color=style["color"], alpha=0.12, linewidth=0)
            else:
                axis.vlines(where, low, high, color=style["color"], alpha=0.5)
        axis.set_xlabel(label, fontsize=9)
        axis.set_ylabel(_label(metric), fontsize=9)
        if x != "sigma_y":
            logarithmic(axis.xaxis)
        if metric.name == "misfit":
            logarithmic(axis.yaxis)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def traces(gallery: Gallery, scene: Scene) -> Any | None:
    """Draw what the steps reported against the network evaluations spent, the mean over images; None if nothing.

    Raises:
        ImportError: there is no matplotlib.
    """
    found = gallery.traces(scene)
    names = [name for name in dict.fromkeys(k for t in found.values() for k in t) if name not in ("step", "cost")]
    if not names:
        return None
    figure, axes = figure_of(len(names), f"{scene.title}: convergence")
    for axis, name in zip(axes, names, strict=True):
        for solver in (s for s in gallery.solvers if name in found.get(s, {})):
            axis.plot(found[solver]["cost"], found[solver][name], **_style(gallery, solver))
        if name == "misfit":
            axis.axhline(scene.sigma_y**2, color="#5d5d5d", linewidth=1, linestyle=(0, (4, 3)))
            axis.annotate(
                *("noise power", (1, scene.sigma_y**2)),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                xytext=(-2, 3),
                ha="right",
                fontsize=8,
                color="#5d5d5d",
            )
        logarithmic(axis.yaxis)
        axis.set_xlabel("network evaluations", fontsize=9)
        axis.set_ylabel(REPORTED.get(name, name.replace("_", " ")), fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format="png")


def swept(gallery: Gallery) -> Sequence[str]:
    """Tell against what something can be drawn: where at least two points exist."""
    plan = gallery.found.summary.plan
    found = ["sigma_y"] * (len(plan.sigmas) > 1) + ["network_evaluations", "seconds"] * (len(plan.steps) > 1)
    # Without a sweep the solvers themselves are points of quality against cost.
    return found or ["network_evaluations"] * (len(gallery.solvers) > 1)
