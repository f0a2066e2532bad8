"""Curves of a training: its loss, and what its judgements say of it over time. Needs matplotlib."""

import io
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from ddiff_jax.denoising import Errors
from ddiff_jax.report.curves import COLOURS, MARKERS, figure_of, logarithmic
from ddiff_jax.training.judgement import Judgement
from ddiff_jax.training.log import Line
from ddiff_jax.training.trials import METRIC

PALE, DARK = (0.76, 0.86, 0.93), (0.0, 0.24, 0.42)  # the first and the last judgement: one hue, and readable in grey
LINEAR, MEAN, BAD = COLOURS[1], COLOURS[6], "#b3261e"
SHOWN = 6  # judgements in one figure
MOST_POINTS = 2000  # of a curve; no screen shows more
SMOOTHING = 40  # the smooth curve averages over this share of the points
T = TypeVar("T")

WIDE = 3.0  # between the ends of an axis from which on it is logarithmic


def over_time(lines: Sequence[Line], judgements: Sequence[Judgement]) -> Any | None:
    """Draw the losses, and the PSNR of the restorations; None where there is neither.

    Raises:
        ImportError: there is no matplotlib.
    """
    losses = {name: line for name in loss_names(lines) if (line := _curve(lines, name)) is not None}
    judged = [judgement for judgement in judgements if _when(judgement) is not None]
    panels = bool(losses) + bool(judged)
    if not panels:
        return None
    figure, axes = figure_of(panels, "")
    if losses:
        _draw_losses(axes[0], losses)
        axes[0].set_xlabel(_time_label(any("images_seen" in line for line in lines)), fontsize=9)
    if judged:
        _draw_psnr(axes[-1], judged)
        axes[-1].set_xlabel(_time_label(any(j.images_seen is not None for j in judged)), fontsize=9)
    return figure


def denoising(judgements: Sequence[Judgement]) -> Any | None:
    """Draw the denoising errors against the noise level, and how they compare with the linear filter; None for none.

    Raises:
        ImportError: there is no matplotlib.
    """
    if not judgements:
        return None
    chosen = spread(judgements, SHOWN)
    shades = np.linspace(0, 1, len(chosen)) if len(chosen) > 1 else np.ones(1)
    figure, (errors_axis, ratio_axis) = figure_of(2, "")
    last = chosen[-1].errors
    shown = np.isfinite(last.ratio) & (last.ratio > 0)
    errors_axis.plot(last.ratio[shown], last.mean[shown], color=MEAN, linestyle=(0, (1, 1.5)), label="mean image")
    errors_axis.plot(last.ratio[shown], last.linear[shown], color=LINEAR, linestyle=(0, (4, 2)), label="linear filter")
    ratio_axis.axhline(1, color=LINEAR, linestyle=(0, (4, 2)), linewidth=1.5)
    for judgement, shade in zip(chosen, shades, strict=True):
        style: Any = {"color": (1 - shade) * np.array(PALE) + shade * np.array(DARK), "linewidth": 1.4 + 0.6 * shade}
        errors, label = judgement.errors, f"network, {when(judgement)}"
        errors_axis.plot(errors.ratio, errors.network, label=label, **style)
        ratio_axis.plot(errors.ratio, errors.network / errors.linear, **style)
    lost = chosen[-1].loses
    ratio_axis.plot(last.ratio[lost], (last.network / last.linear)[lost], "o", color=BAD, markersize=4)
    compared = np.concatenate([[1.0], *(j.errors.network / j.errors.linear for j in chosen)])
    low, high = np.nanmin(compared), np.nanmax(compared)
    if high > WIDE * low:
        logarithmic(ratio_axis.yaxis)
    room = (high / low) ** 0.05 * 1.02
    ratio_axis.axhspan(1, high * room, color=BAD, alpha=0.06, linewidth=0)
    ratio_axis.set_ylim(low / room, high * room)
    for axis in (errors_axis, ratio_axis):
        axis.set_xlim(last.ratio[shown].min() / 1.3, last.ratio[shown].max() * 1.3)  # where all others are NaN, too
        logarithmic(axis.xaxis, _ticks(last))
        axis.set_xlabel("noise level, sigma / signal", fontsize=9)
    logarithmic(errors_axis.yaxis)
    errors_axis.set_ylabel("root mean squared error", fontsize=9)
    ratio_axis.set_ylabel("error of the network / of the linear filter", fontsize=9)
    errors_axis.legend(fontsize=8, frameon=False)
    return figure


def png(figure: Any) -> bytes:
    """Draw a figure as a PNG."""
    memory = io.BytesIO()
    figure.savefig(memory, format="png")
    return memory.getvalue()


def loss_names(lines: Sequence[Line]) -> list[str]:
    """Name the losses of a log, in the order in which they appear."""
    return list(dict.fromkeys(name for line in lines for name in line if "loss" in name))


def spread(things: Sequence[T], most: int) -> list[T]:
    """Choose some of them, evenly, among them the last and if possible the first."""
    chosen = np.unique(np.round(np.linspace(len(things) - 1, 0, most)).astype(int)) if things else []
    return [things[i] for i in chosen]


def when(judgement: Judgement) -> str:
    """Say when a judgement was made."""
    if judgement.images_seen is not None:
        return f"{short(judgement.images_seen)} images"
    return "step unknown" if judgement.step is None else f"step {judgement.step}"


def short(number: float | int) -> str:
    """Write a large number in a few characters."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def _when(judgement: Judgement) -> int | None:
    return judgement.step if judgement.images_seen is None else judgement.images_seen


def _time_label(has_images: bool) -> str:
    return "images seen" if has_images else "step"


def _ticks(errors: Errors) -> tuple[int, ...]:
    """Label fewer numbers of a wide axis."""
    ratio = errors.ratio[np.isfinite(errors.ratio)]
    return (1,) if ratio.max(initial=1.0) > 1e3 * ratio.min(initial=1.0) else (1, 2, 5)


def _curve(lines: Sequence[Line], name: str) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]] | None:
    found = [line for line in lines if name in line]
    if not found:
        return None
    time = "images_seen" if all("images_seen" in line for line in found) else "step"
    return np.array([line[time] for line in found], np.float64), np.array([line[name] for line in found], np.float64)


def _draw_losses(axis: Any, losses: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for i, (name, (time, values)) in enumerate(losses.items()):
        colour, every = COLOURS[i % len(COLOURS)], -(-len(values) // MOST_POINTS)
        window = len(values) // SMOOTHING
        label = name.replace("_", " ")
        if window > 1:
            axis.plot(time[::every], values[::every], color=colour, alpha=0.25, linewidth=0.8)
            axis.plot(time[::every], _smooth(values, window)[::every], color=colour, linewidth=1.6, label=label)
        else:
            axis.plot(
                time, values, color=colour, linewidth=1.6, marker=MARKERS[i % len(MARKERS)], markersize=3, label=label
            )
    finite = np.concatenate([values[np.isfinite(values)] for _, values in losses.values()])
    if finite.size and finite.min() > 0 and finite.max() > WIDE * finite.min():
        logarithmic(axis.yaxis)
    _count_in_thousands(axis)
    axis.set_ylabel("loss", fontsize=9)
    axis.legend(fontsize=8, frameon=False)


def _smooth(values: Float[np.ndarray, " K"], window: int) -> Float[np.ndarray, " K"]:
    """Average over a window around every point, as far as there are points, and those that are finite."""
    good = np.isfinite(values)
    sums = np.cumsum(np.concatenate([[0.0], np.where(good, values, 0.0)]))
    counts = np.cumsum(np.concatenate([[0], good]))
    centre = np.arange(len(values))
    low, high = np.maximum(centre - window // 2, 0), np.minimum(centre + window // 2 + 1, len(values))
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)


def _draw_psnr(axis: Any, judgements: Sequence[Judgement]) -> None:
    time = [_when(judgement) for judgement in judgements]
    for i, task in enumerate(dict.fromkeys(task for judgement in judgements for task in judgement.psnr)):
        values = np.array([judgement.mean_psnr.get(task, np.nan) for judgement in judgements])
        style: Any = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axis.plot(time, values, label=task.replace("_", " "), linewidth=1.6, markersize=4.5, **style)
        images = max(len(judgement.psnr.get(task, ())) for judgement in judgements)
        for image in range(images):
            single = [_of_image(judgement, task, image) for judgement in judgements]
            axis.plot(time, single, color=style["color"], alpha=0.25, linewidth=0.8)
    _count_in_thousands(axis)
    axis.set_ylabel(f"{METRIC.quantity}, {METRIC.unit} (higher is better)", fontsize=9)
    axis.legend(fontsize=8, frameon=False)


def _of_image(judgement: Judgement, task: str, image: int) -> float:
    values = judgement.psnr.get(task, ())
    return float(values[image]) if image < len(values) else float("nan")


def _count_in_thousands(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
