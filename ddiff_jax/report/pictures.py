"""Mosaics that compare solvers, and trajectory strips."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from ddiff_jax.drawing import FAINT, INK, MISSING, PAPER, fit, stamp
from ddiff_jax.evaluation.plan import digits
from ddiff_jax.evaluation.rows import ORACLE, Row
from ddiff_jax.metrics import METRICS
from ddiff_jax.report.gallery import Gallery, Scene, open_picture
from ddiff_jax.safe_text import printable

SIDE, GAP, MARGIN, HEAD, LABEL = 192, 6, 16, 30, 104  # pixels
MOSAIC_IMAGES = 6


def caption(row: Row) -> str:
    """Put a row's quality in a few characters."""
    parts = []
    psnr = row.number("psnr_paper")
    if psnr is not None:
        parts.append(f"{METRICS['psnr_paper'].number(psnr)} dB")  # the page says once what it is
    found = {name: row.number(name) for name in ("lpips_alex", "lpips_vgg")}
    parts += [METRICS[name].say(value) for name, value in found.items() if value is not None][:1]
    parts += ["picked by the truth"] if row.pick == ORACLE else []
    return ", ".join(parts)


def mosaic(gallery: Gallery, scenes: Sequence[Scene], images: Sequence[str]) -> Pillow.Image:
    """Draw what was measured, what every solver made of it, and the truth.

    Args:
        gallery: where the pictures are.
        scenes: of one task; several where something is swept.
        images: names; every scene is a row for every image.
    """
    solvers = [solver for solver in gallery.solvers if any(solver in scene.rows for scene in scenes)]
    lines = [(scene, image) for scene in scenes for image in images]
    width = 2 * MARGIN + LABEL + (len(solvers) + 2) * (SIDE + GAP)
    canvas = Pillow.new("RGB", (width, 2 * MARGIN + HEAD + len(lines) * (SIDE + GAP)), PAPER)
    draw = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(17), ImageFont.load_default(13)
    for column, title in enumerate(["measurement", *solvers, "truth"]):
        draw.text((MARGIN + LABEL + column * (SIDE + GAP), MARGIN), title, INK, large)
    for line, (scene, image) in enumerate(lines):
        top = MARGIN + HEAD + line * (SIDE + GAP)
        for i, text in enumerate(_label(scene, image, swept=len(scenes) > 1)):
            draw.text((MARGIN, top + 16 * i), text, FAINT, small)
        places: list[tuple[Path | None, str]] = [(gallery.measurement(scene, image), "")]
        for solver in solvers:
            row = scene.rows.get(solver, {}).get(image)
            places.append((None, "") if row is None else (gallery.restored(scene, solver, image), caption(row)))
        places.append((gallery.truth(image), ""))
        for column, (path, text) in enumerate(places):
            left = MARGIN + LABEL + column * (SIDE + GAP)
            if path is None:
                draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), MISSING)
                draw.text((left + SIDE // 2, top + SIDE // 2), "none", FAINT, small, anchor="mm")
                continue
            canvas.paste(fit(open_picture(path), SIDE), (left, top))
            if text:
                stamp(draw, (left + 6, top + SIDE - 6), text, small)
    return canvas


def _label(scene: Scene, image: str, *, swept: bool) -> list[str]:
    steps = [] if scene.steps is None else [f"{scene.steps} steps"]
    return [printable(image)[:16], *([f"noise {digits(scene.sigma_y)}", *steps] if swept else [])]


def strips(gallery: Gallery, scene: Scene) -> Pillow.Image | None:
    """Draw the estimates of every solver on the way, one row each; None where none were kept."""
    found = gallery.strips(scene)
    if not found:
        return None
    rows = []
    for solver in (s for s in gallery.solvers if s in found):
        strip = open_picture(found[solver])
        rows.append(
            (
                solver,
                [
                    strip.crop((i * strip.height, 0, (i + 1) * strip.height, strip.height))
                    for i in range(strip.width // strip.height)
                ],
            )
        )
    side = SIDE * 2 // 3
    frames = max(len(cells) for _, cells in rows)
    size = (2 * MARGIN + LABEL + frames * (side + GAP), 2 * MARGIN + len(rows) * (side + GAP))
    canvas = Pillow.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for line, (solver, cells) in enumerate(rows):
        top = MARGIN + line * (side + GAP)
        draw.text((MARGIN, top), solver, INK, font)
        for column, cell in enumerate(cells):
            canvas.paste(fit(cell, side), (MARGIN + LABEL + column * (side + GAP), top))
    return canvas
