"""One HTML page for an evaluation: tables, pictures, curves and settings, with nothing outside the file."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ddiff_jax import image_files
from ddiff_jax.evaluation import Evaluation, Group, Mean, Summary
from ddiff_jax.evaluation.ledger import Ledger
from ddiff_jax.evaluation.plan import file_name
from ddiff_jax.evaluation.rows import CHOSEN, SINGLE
from ddiff_jax.metrics import METRICS, Metric
from ddiff_jax.report import curves
from ddiff_jax.report.gallery import Gallery, Scene, open_picture
from ddiff_jax.report.parts import CURVE_SCALE, data_uri, picture, style, template
from ddiff_jax.report.pictures import MOSAIC_IMAGES, caption, mosaic, strips
from ddiff_jax.safe_text import html_text, script_json
from ddiff_jax.solvers import AIMS

PICTURE_BUDGET = 20e6  # bytes of single pictures in a page; the mosaics show more
VIEWER_IMAGES = 8
COARSE_SIDE = 200  # pixels; smaller pictures are shown with visible pixels


def write_report(found: Evaluation, title: str = "Evaluation", ledger: Ledger | None = None) -> Path:
    """Write report.html, and its pictures and curves as files in `figures/`.

    Args:
        found: the evaluation.
        title: head of the page.
        ledger: where the evaluation is a study of the paper, ours beside the published numbers.

    Returns:
        The page. Curves are left out, and the page says so, where matplotlib is missing.
    """
    gallery = Gallery(found)
    folder = found.folder / "figures"
    folder.mkdir(exist_ok=True)
    summary = found.summary
    statuses = [row.status for row in found.rows]
    bad = {status: statuses.count(status) for status in dict.fromkeys(statuses) if status != "ok"}
    text = template("ddiff_jax.report").substitute(
        style=style(),
        title=html_text(title),
        subtitle=html_text(_subtitle(summary)),
        facts=_facts(found),
        warning=_warning(found, bad),
        ledger="" if ledger is None else _ledger(ledger),
        viewer=_viewer(gallery),
        tables="".join(_table(summary, *place) for place in _places(summary)),
        aims=html_text("; ".join(f"{name}: {AIMS[name]}" for name in AIMS if name in {g.aim for g in summary.groups})),
        differences=_differences(summary),
        differences_open=" open" if len(summary.paired) <= 40 else "",
        figures=_figures(gallery, folder),
        settings="\n".join(map(html_text, _settings(summary).split("\n"))),
        commands="\n".join(html_text(cell.command) for cell in summary.cells),
        pictures=_pictures(gallery),
    )
    path = found.folder / "report.html"
    image_files.write_text(path, text)
    return path


def _subtitle(summary: Summary) -> str:
    plan = summary.plan
    counts = {"image": summary.images, "task": plan.tasks, "solver": plan.solvers, "seed": plan.seeds}
    parts = [f"{len(v)} {k}{'s' * (len(v) > 1)}" for k, v in counts.items()]
    return f"prior {plan.prior}; {', '.join(parts)}; written {summary.written}"


def _facts(found: Evaluation) -> str:
    environments = found.summary.environments
    devices = sorted({e["device"] for e in environments})
    versions = environments[0] if environments else {}
    facts = {
        "rows": len(found.rows),
        "good": len(found.rows) - found.num_bad,
        "marked": found.num_bad,
        "device": ", ".join(devices) or "none",
        "ddiff_jax": versions.get("ddiff_jax", ""),
        "jax": versions.get("jax", ""),
    }
    mixed = "<li><b>mixed environments</b>: see settings</li>" if len(environments) > 1 else ""
    return "".join(f"<li><b>{k}</b> {html_text(v)}</li>" for k, v in facts.items()) + mixed


def _warning(found: Evaluation, bad: dict[str, int]) -> str:
    if not bad:
        return ""
    counted = ", ".join(f"{count} {status}" for status, count in bad.items())
    names = ("task", "solver", "image", "status", "message")
    rows = "".join(
        f"<tr>{''.join(f'<td class=long>{html_text(getattr(row, n))}</td>' for n in names)}</tr>"
        for row in found.summary.bad
    )
    head = "".join(f'<th class="text">{name}</th>' for name in names)
    return (
        f'<div class="warning"><b>{found.num_bad} of {len(found.rows)} rows are marked:</b> {html_text(counted)}.'
        f"<details><summary>Which</summary><table><tr>{head}</tr>{rows}</table></details></div>"
    )


def _ledger(ledger: Ledger) -> str:
    """Set ours beside what is published; the whole ledger is in ledger.md."""
    rows = []
    for entry in (entry for entry in ledger.entries if entry.published is not None):
        metric, half_width = METRICS[entry.metric], entry.published_half_width
        published = f"{entry.published:g}" + ("" if half_width is None else f" ± {half_width:g}")
        span = "" if entry.interval is None else metric.span(entry.interval)
        cells = [entry.task, entry.solver, metric.title, published]
        cells += ["" if entry.ours is None else metric.number(entry.ours), span, str(entry.images)]
        cells += ["; ".join(filter(None, (entry.verdict, entry.note)))]
        rows.append(f"<tr>{''.join(f'<td>{html_text(cell)}</td>' for cell in cells)}</tr>")
    head = ("task", "solver", "metric", "published", "ours", "95% interval", "images", "verdict")
    table = f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{''.join(rows)}</table>" if rows else ""
    differences = "".join(f"<li>{html_text(difference)}</li>" for difference in ledger.differences)
    return (
        "<h2>Beside the published numbers</h2>"
        f'<p class="faint">{html_text(ledger.source)}. It has {ledger.published_known} of the {len(ledger.entries)} '
        "numbers here; ledger.md lists them all.</p>"
        + (f"<p>What differs from the paper:</p><ul>{differences}</ul>" if differences else "")
        + f'<div class="scroll">{table}</div>'
    )


def _places(summary: Summary) -> Iterable[tuple[str, str]]:
    """List the tables: one per task, and one more for another way to choose among restarts."""
    return dict.fromkeys((group.task, group.pick) for group in summary.groups)


def _table(summary: Summary, task: str, pick: str) -> str:
    groups = [g for g in summary.groups if (g.task, g.pick) == (task, pick)]
    groups.sort(key=_variant)  # what is compared stands together
    plan = summary.plan
    sweeps = {"sigma_y": ("noise", plan.sigmas), "steps": ("steps", plan.steps)}
    swept = {name: label for name, (label, values) in sweeps.items() if len(values) > 1}
    shown = [metric for metric in METRICS.values() if any(metric.name in group.metrics for group in groups)]
    kinds = [metric for metric in METRICS.values() if metric.principal or not metric.general]
    gaps = [metric for metric in kinds if any(metric.name in group.oracle_gaps for group in groups)]
    best = {metric: _best(groups, metric) for metric in shown}
    head = ["solver", "aim", *swept.values(), *(metric.title for metric in shown)]
    head += [f"oracle gap, {metric.title}" for metric in gaps]
    head += ["evaluations", "gradients", "seconds", "images"]
    rows = []
    for i, group in enumerate(groups):
        cells = [f"<td>{html_text(name)}</td>" for name in (group.solver, group.aim or "")]
        levels = [getattr(group, name) for name in swept]
        cells += [f"<td>{level if level is not None else 'preset'}</td>" for level in levels]
        for metric in shown:
            cells.append(_number(group.metrics.get(metric.name), metric, bold=i in best[metric]))
        cells += [_number(group.oracle_gaps.get(metric.name), metric, bold=False) for metric in gaps]
        for name, form in {"network_evaluations": "{:.0f}", "network_gradients": "{:.0f}", "seconds": "{:.3g}"}.items():
            value = getattr(group, name)
            cells.append("<td></td>" if value is None else f"<td>{form.format(value)}</td>")
        good = group.statuses.get("ok", 0)
        total = sum(group.statuses.values())
        cells.append(f"<td>{group.images if good == total else f'{good} of {total} rows'}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    chosen = ", ".join(filter(None, (task.replace("_", " "), CHOSEN[pick])))
    power = {g.sigma_y for g in groups}
    noise = f"noise {next(iter(power)):g}" if len(power) == 1 and None not in power else "several noise levels"
    return (
        f"<h3>{html_text(chosen)} "
        f'<span class="faint">({noise})</span></h3><div class="scroll"><table><tr>'
        f"{''.join(f'<th>{h}</th>' for h in head)}</tr>{''.join(rows)}</table></div>"
    )


def _variant(group: Group) -> tuple[float | int, float | int]:
    return group.sigma_y or 0, group.steps or 0


def _best(groups: Sequence[Group], metric: Metric) -> set[int]:
    """Find the best solver of every variant."""
    better, found = metric.higher_is_better, set()
    if better is None:
        return found
    for variant in {_variant(group) for group in groups}:
        means = {i: g.mean(metric.name) for i, g in enumerate(groups) if _variant(g) == variant}
        known = {i: mean for i, mean in means.items() if mean is not None}
        if len(known) > 1:
            top = max(known.values()) if better else min(known.values())
            found |= {i for i, mean in known.items() if mean == top}
    return found


def _number(found: Mean | None, metric: Metric, *, bold: bool) -> str:
    if found is None:
        return "<td></td>"
    if found.mean is None:
        why = html_text(found.reason).replace("-", "&#8209;")  # flags stay in one piece
        return f'<td class="none">{why}</td>'
    small = "" if found.interval is None else f"<small>{metric.span(found.interval)}</small>"
    return f"<td{' class=best' * bold}>{metric.number(found.mean)}{small}</td>"


def _differences(summary: Summary) -> str:
    if not summary.paired:
        return '<p class="faint">There is one solver only.</p>'
    head = ("task", "noise", "steps", "first", "minus", "metric", "mean difference", "95% interval", "images", "")
    rows = []
    for d in summary.paired:
        metric, mean, span = METRICS[d.metric], d.mean.mean, d.mean.interval
        if not metric.principal or mean is None:
            continue
        told = "" if span is None else "not told apart" if span[0] <= 0 <= span[1] else "different"
        cells = [
            *(d.task + (f" ({d.pick})" if d.pick != SINGLE else ""), d.sigma_y, d.steps or "preset"),
            *(d.solver, d.minus, metric.title, f"{mean:+.4g}"),
            *("one image" if span is None else metric.span(span), d.mean.n, told),
        ]
        rows.append(f"<tr>{''.join(f'<td>{html_text(c)}</td>' for c in cells)}</tr>")
    return f'<div class="scroll"><table><tr>{"".join(f"<th>{h}</th>" for h in head)}</tr>{"".join(rows)}</table></div>'


def _embed(path: Path) -> str:
    return data_uri(path.read_bytes())


def _figures(gallery: Gallery, folder: Path) -> str:
    parts = []
    for task in dict.fromkeys(scene.task for scene in gallery.scenes):
        scenes = [scene for scene in gallery.scenes if scene.task == task]
        images = gallery.images[: MOSAIC_IMAGES if len(scenes) == 1 else 1]
        parts.append(f"<h2>{html_text(task.replace('_', ' '))}</h2>")
        path = folder / f"{file_name(task)}_grid.png"
        image_files.save_png(path, mosaic(gallery, scenes, images))
        parts.append(_picture(path, "measurement, every solver and the truth, with PSNR (paper) in the corner"))
        longest = max(scenes, key=lambda scene: scene.steps or 0)  # the first where steps are not swept
        strip = strips(gallery, longest)
        if strip is not None:
            image_files.save_png(folder / f"{file_name(task)}_trajectories.png", strip)
            parts.append("<h3>Estimates on the way</h3>")
            parts.append(
                _picture(folder / f"{file_name(task)}_trajectories.png", "estimates at eight moments of a run")
            )
        parts += _curves(gallery, longest, folder)
    return "".join(parts)


def _curves(gallery: Gallery, scene: Scene, folder: Path) -> list[str]:
    """Draw what can be drawn of a scene's task, and how the scene converged, or say why nothing is drawn."""
    task = scene.task
    drawn: dict[str, Callable[[], Any]] = {
        x: lambda x=x: curves.against(gallery, task, x) for x in curves.swept(gallery)
    }
    drawn["traces"] = lambda: curves.traces(gallery, scene)
    titles = {
        "sigma_y": "Quality against noise",
        "network_evaluations": "Quality against cost",
        "seconds": "Quality against time",
        "traces": "Convergence",
    }
    parts = []
    for name, draw in drawn.items():
        try:
            figure = draw()
        except ImportError as error:
            return [f'<p class="faint">No curves: {html_text(error)}.</p>']
        if figure is None:
            continue
        path = folder / f"{file_name(task)}_{name}.png"
        curves.save(figure, path)
        parts += [f"<h3>{titles[name]}</h3>", _picture(path, titles[name], CURVE_SCALE)]
    return parts


def _picture(path: Path, text: str, scale: float = 1.0) -> str:
    width = round(open_picture(path).width * scale)
    return picture(path.read_bytes(), text, width)


def _viewer(gallery: Gallery) -> str:
    if not gallery.scenes:
        return "<p>No image was restored.</p>"
    fields = {"scene": "task", "image": "image", "left": "left", "right": "right"}
    selects = "".join(f'<label for="{k}">{v}</label><select id="{k}"></select>' for k, v in fields.items())
    return (
        '<div class="viewer"><div><div class="stage" id="stage"><img id="picture-right" alt="right picture">'
        '<img id="picture-left" class="over" alt="left picture"><div class="rule"></div>'
        '<span class="tag left" id="tag-left"></span><span class="tag right" id="tag-right"></span></div>'
        '<input id="cut" type="range" min="0" max="100" value="50" aria-label="where the pictures meet"></div>'
        f'<div class="fields">{selects}</div></div>'
    )


def _pictures(gallery: Gallery) -> str:
    """Embed single pictures for the viewer, of as many images as the budget holds."""
    chosen, truths, scenes, spent = [], {}, [{"title": s.title, "pictures": {}} for s in gallery.scenes], 0.0
    for image in gallery.images[:VIEWER_IMAGES]:
        if chosen and spent > PICTURE_BUDGET:
            break
        chosen.append(image)
        truth = gallery.truth(image)
        if truth is not None:
            truths[image] = _embed(truth)
        for scene, entry in zip(gallery.scenes, scenes, strict=True):
            found = {}
            measured = gallery.measurement(scene, image)
            if measured is not None:
                found["measurement"] = {"source": _embed(measured), "text": ""}
            for solver, rows in scene.rows.items():
                if image in rows:
                    source = _embed(gallery.restored(scene, solver, image))
                    found[solver] = {"source": source, "text": caption(rows[image])}
            if found:
                entry["pictures"][image] = found
            spent += sum(len(value["source"]) for value in found.values())
    side = gallery.found.summary.prior["image_shape"][0]
    document = {"scenes": [s for s in scenes if s["pictures"]], "truths": truths, "coarse": side < COARSE_SIDE}
    return script_json(document)


def _settings(summary: Summary) -> str:
    values = summary.as_dict()
    names = ("plan", "prior", "lpips", "batch_size", "environments", "images")
    return json.dumps({name: values[name] for name in names}, indent=1, default=str)
