"""One HTML page for a training: facts, curves, samples and restorations, with nothing outside the file."""

import bisect
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from ddiff_jax import image_files
from ddiff_jax.files import Unusable, opened, read_text
from ddiff_jax.report.parts import CURVE_SCALE, data_uri, picture, style, template
from ddiff_jax.safe_text import html_text, script_json
from ddiff_jax.training import curves, log
from ddiff_jax.training.judgement import RESTORATIONS, SAMPLES, Judgement
from ddiff_jax.training.trials import METRIC

PAGE, JUDGEMENTS, SETTINGS = "report.html", "judgements", "run.json"
MOST_GRIDS = 8  # earlier grids of samples that the page holds
PICTURE_BUDGET = 20e6  # bytes of all of them
ENLARGED = 1.35  # how much larger curves are than elsewhere: there are few of them
MINUTE, HOUR, DAY = 60, 3600, 86_400


@dataclasses.dataclass(frozen=True)
class Run:
    """What a folder knows of a training.

    Args:
        folder: the folder.
        lines: of the log.
        judgements: by step, without their pictures, and none beyond the end of the log: a run that goes on from an
            earlier checkpoint leaves those behind.
        places: folders of the judgements.
        settings: what run.json holds; None without it.
        notes: what could not be read.
    """

    folder: Path
    lines: list[log.Line]
    judgements: list[Judgement]
    places: list[Path]
    settings: dict[str, Any] | None
    notes: list[str]

    @staticmethod
    def read(folder: Path) -> "Run":
        """Read log.jsonl, run.json and judgements/; what is damaged is noted and left out."""
        notes: list[str] = []
        lines: list[log.Line] = []
        try:
            lines, damaged = log.read_log(folder / log.FILE)
            notes += [f"damaged lines of {log.FILE}: {damaged}"] * bool(damaged)
        except Unusable as error:
            notes.append(str(error))
        found = []
        for place in sorted(path.parent for path in (folder / JUDGEMENTS).glob("*/judgement.json")):
            try:
                found.append((Judgement.load(place, pictures=False), place))
            except Unusable as error:
                notes.append(str(error))
        last = lines[-1]["step"] if lines else np.inf
        found = [(judgement, place) for judgement, place in found if (judgement.step or 0) <= last]
        found.sort(key=lambda pair: pair[0].step or 0)
        judgements = _with_images([judgement for judgement, _ in found], lines)
        settings = None
        if (folder / SETTINGS).exists():
            try:
                settings = json.loads(read_text(folder / SETTINGS))
            except (ValueError, RecursionError) as error:
                notes.append(f"{SETTINGS}: {error}")
        settings = settings if isinstance(settings, dict) else None
        return Run(folder, lines, judgements, [place for _, place in found], settings, notes)

    def latest(self, name: str) -> float | int | None:
        """Find the last number of this name in the log."""
        return next((line[name] for line in reversed(self.lines) if name in line), None)


def _with_images(judgements: Sequence[Judgement], lines: Sequence[log.Line]) -> list[Judgement]:
    """Look up in the log how many images had been seen, where a judgement does not say it."""
    seen = [(line["step"], line["images_seen"]) for line in lines if "images_seen" in line]
    steps = [step for step, _ in seen]
    made = []
    for judgement in judgements:
        place = 0 if judgement.step is None else bisect.bisect_right(steps, judgement.step)
        if judgement.images_seen is None and place:
            judgement = dataclasses.replace(judgement, images_seen=int(seen[place - 1][1]))
        made.append(judgement)
    return made


def write_page(folder: Path, title: str) -> Path:
    """Write report.html from log.jsonl, run.json and judgements/ alone.

    Args:
        folder: of the run.
        title: head of the page.

    Returns:
        The page. Curves are left out, and the page says so, where matplotlib is missing.

    Raises:
        OSError: it cannot be written.
    """
    run = Run.read(folder)
    last = run.judgements[-1] if run.judgements else None
    grids = _grids(run)
    text = template("ddiff_jax.training").substitute(
        style=style(),
        title=html_text(title),
        subtitle=html_text(_subtitle(run)),
        facts=_facts(run),
        warning=_warning(run, last),
        curves=_curves(run),
        samples=_samples(grids),
        grids=script_json(grids),
        restorations=_restorations(run),
        tables=_tables(last),
        settings=_settings(run),
    )
    path = folder / PAGE
    image_files.write_text(path, text)
    return path


def _subtitle(run: Run) -> str:
    if not run.judgements:
        return "not judged yet"
    count = len(run.judgements)
    return f"judged {count} time{'s' * (count > 1)}, last at {curves.when(run.judgements[-1])}"


def _facts(run: Run) -> str:
    """List what is known of: step, images, time, learning rate, losses, parameters."""
    settings = run.settings or {}
    count = settings.get("num_parameters")
    facts: dict[str, Any] = {
        "step": _whole(run.latest("step")),
        "images seen": _whole(run.latest("images_seen")),
        "time": _duration(run.latest("seconds")),
        "learning rate": _few(run.latest("learning_rate")),
        **{name.replace("_", " "): _few(run.latest(name)) for name in curves.loss_names(run.lines)},
        "parameters": _whole(count if isinstance(count, int | float) else None),
    }
    return "".join(f"<li><b>{html_text(k)}</b> {html_text(v)}</li>" for k, v in facts.items() if v is not None)


def _whole(number: float | int | None) -> str | None:
    return None if number is None or not np.isfinite(number) else f"{number:,.0f}"


def _few(number: float | int | None) -> str | None:
    return None if number is None else f"{number:.4g}" if np.isfinite(number) else "not finite"


def _duration(seconds: float | int | None) -> str | None:
    if seconds is None or not np.isfinite(seconds):
        return None
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    days, rest = divmod(int(seconds), DAY)
    parts = {"d": days, "h": rest // HOUR, "min": rest % HOUR // MINUTE}
    return " ".join(f"{value} {unit}" for unit, value in parts.items() if value)


def _warning(run: Run, last: Judgement | None) -> str:
    sentence = None if last is None else last.warning()
    said = "" if sentence is None else f'<div class="warning">{html_text(sentence[0].upper() + sentence[1:])}.</div>'
    return said + "".join(f'<p class="faint">{html_text(note)}.</p>' for note in run.notes)


def _curves(run: Run) -> str:
    drawn = {
        "Over time": (
            lambda: curves.over_time(run.lines, run.judgements),
            "Pale lines: every logged step, and every single restoration.",
        ),
        "Denoising at every noise level": (
            lambda: curves.denoising(run.judgements),
            "Root mean squared errors of clean images in [-1, 1] that the network is not trained on. Where the network "
            "is not below the linear filter, it misleads every solver.",
        ),
    }
    parts = []
    for heading, (draw, text) in drawn.items():
        try:
            figure = draw()
        except ImportError as error:
            return f'<p class="faint">No curves: {html_text(error)}.</p>'
        if figure is None:
            continue
        png = curves.png(figure)
        width = round(ENLARGED * figure.get_figwidth() * figure.dpi * CURVE_SCALE)
        parts.append(f'<h2>{heading}</h2><p class="faint">{text}</p>{picture(png, heading, width)}')
    return "".join(parts)


def _grids(run: Run) -> list[dict[str, str]]:
    """Embed grids of samples from the first to the last, evenly chosen, as many as the budget holds."""
    moments = list(zip(run.judgements, run.places, strict=True))
    pictures = []
    for most in range(MOST_GRIDS, 0, -1):
        read = [(judgement, _read(place / SAMPLES)) for judgement, place in curves.spread(moments, most)]
        pictures = [(judgement, png) for judgement, png in read if png is not None]
        if sum(len(png) for _, png in pictures) <= PICTURE_BUDGET:
            break
    return [{"source": data_uri(png), "text": curves.when(judgement)} for judgement, png in pictures]


def _read(path: Path) -> bytes | None:
    """Read a picture; None if it is not there."""
    try:
        with opened(path) as file:
            return file.read()
    except Unusable:
        return None


def _samples(grids: Sequence[dict[str, str]]) -> str:
    if not grids:
        return '<p class="faint">None yet.</p>'
    most = len(grids) - 1
    return (
        '<p class="faint">The same noise at every moment, so that each place shows one sample as it grows.</p>'
        '<div class="samples" id="samples"><img id="grid" alt="samples"><span class="tag left" id="when"></span></div>'
        f'<input id="moment" class="samples"{" hidden" * (not most)} type="range" min="0" max="{most}" value="{most}" '
        'aria-label="moment of the training">'
    )


def _restorations(run: Run) -> str:
    png = _read(run.places[-1] / RESTORATIONS) if run.places else None
    if png is None:
        return '<p class="faint">None yet.</p>'
    with Pillow.open(io.BytesIO(png)) as shown:
        width = shown.width
    return (
        '<p class="faint">Of images that the network is not trained on, by DDiff, at the last judgement.</p>'
        f"{picture(png, 'truth, measurement and restoration of several images', width)}"
    )


def _tables(last: Judgement | None) -> str:
    if last is None:
        return '<p class="faint">None yet.</p>'
    head = ("sigma / signal", "timestep", "network", "linear filter", "mean image", "network / linear filter", "")
    errors, rows = last.errors, []
    values = (errors.ratio, errors.time, errors.network, errors.linear, errors.mean, last.loses)
    for ratio, time, network, linear, mean, lost in zip(*values, strict=True):
        cells = [
            f"{ratio:.4g}",
            f"{time:.1f}",
            _error(network),
            _error(linear),
            _error(mean),
            _error(network / linear, 3),
        ]
        rows.append(_row([*cells, "lost"], bad=(2, 5, 6)) if lost else _row([*cells, ""]))
    psnr = []
    for task, values in last.psnr.items():
        each = "; ".join(METRIC.number(value) if np.isfinite(value) else "diverged" for value in values.tolist())
        psnr.append(_row([task.replace("_", " "), _error(last.mean_psnr[task], 2), each]))
    columns = ("task", "mean", "every image")
    drawn = f"{last.num_samples} samples, {last.num_diverged} of them diverged"
    return (
        f'<p class="faint">At {html_text(curves.when(last))}: {drawn}. Errors are root mean squares; "lost" is where '
        "the linear filter or the mean image is better than the network by more than 2%.</p>"
        f'<div class="scroll narrow"><table>{_row(head, tag="th")}{"".join(rows)}</table></div>'
        f"<h3>{html_text(METRIC.title)}, {html_text(METRIC.unit)}</h3>"
        f'<div class="scroll narrow"><table>{_row(columns, tag="th")}{"".join(psnr)}</table></div>'
    )


def _error(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "not finite"


def _row(cells: Sequence[str], tag: str = "td", bad: Sequence[int] = ()) -> str:
    marks = [" class=bad" * (i in bad) for i in range(len(cells))]
    made = [f"<{tag}{mark}>{html_text(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True)]
    return f"<tr>{''.join(made)}</tr>"


def _settings(run: Run) -> str:
    if run.settings is None:
        return ""
    lines = "\n".join(map(html_text, json.dumps(run.settings, indent=1, ensure_ascii=False).split("\n")))
    return f"<details><summary>Settings</summary><pre>{lines}</pre></details>"
