"""What lies in the bodies of phantoms, or in the air: one function a kind."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ddiff_jax.phantoms.canvas import Waves
from ddiff_jax.phantoms.drawing import Drawing, angular, any_shape, block, organic, oval
from ddiff_jax.phantoms.shapes import Shape, box, disc, ellipse, stroke

THINNEST = 0.006  # width of a vessel; a pixel is 0.031 wide where there are 64


def _ellipse(drawing: Drawing) -> None:
    drawing.add(oval(drawing, drawing.radius(0.05, 0.5)))


def _organ(drawing: Drawing) -> None:
    """Paint a smooth outline; half of them have a wall, or something in them."""
    rng = drawing.rng
    shape = organic(drawing, drawing.radius(0.12, 0.6), 0.4)
    drawing.add(shape, soft=shape.reach * 0.3 * max(0.0, float(rng.uniform(-2.0, 1.0))))
    inner = rng.random()
    if inner < 0.25:
        drawing.add(shape.shrunk(shape.reach * float(rng.uniform(0.05, 0.25))))
    elif inner < 0.5:
        where = complex(shape.x, shape.y) + 0.3 * shape.reach * complex(*rng.uniform(-1, 1, 2))
        drawing.add(organic(drawing, shape.reach * float(rng.uniform(0.15, 0.5)), 0.4, where))


def _lungs(drawing: Drawing) -> None:
    """Paint two large dark shapes that face each other, with vessels in them, and something between."""
    rng, (a, b) = drawing.rng, drawing.half
    where = complex(-a * rng.uniform(0.45, 0.55), b * rng.uniform(-0.2, 0.1))
    shape = organic(drawing, b * float(rng.uniform(0.6, 0.95)), 0.25, where)
    narrow = float(rng.uniform(0.45, 0.65)) * a / max(shape.reach, 0.01)
    squeezed = dataclasses.replace(shape, depth=lambda x, y: shape.depth(x / np.float32(min(narrow, 1.0)), y))
    dark = float(rng.uniform(0.0, 0.25))
    for side in (squeezed, squeezed.mirrored()):
        lung = drawing.canvas.whole(drawing.canvas.cover(side)) * drawing.within
        drawing.paint(lung, dark)
        level, hilum = dark + float(rng.uniform(0.1, 0.5)), complex(side.x * 0.5, side.y)
        for _ in range(int(rng.integers(0, 6))):
            away = 0.7 * b * np.exp(1j * rng.normal()) * (1 if side.x > 0 else -1)
            drawing.paint(drawing.canvas.cover(stroke(hilum, hilum + away, 0.02)), level, within=lung)
    heart = complex(a * rng.uniform(-0.1, 0.25), b * rng.uniform(-0.2, 0.2))
    drawing.add(
        organic(drawing, b * float(rng.uniform(0.3, 0.55)), 0.25, heart), (float(rng.uniform(0.35, 0.65)), False)
    )


def _ribs(drawing: Drawing) -> None:
    """Paint bones around the inside, as far apart as ribs are."""
    rng, (a, b) = drawing.rng, drawing.half
    count, bright, depth = int(rng.integers(4, 10)), float(rng.uniform(0.75, 1.0)), float(rng.uniform(0.86, 0.94))
    long, thick = float(rng.uniform(0.05, 0.16)), float(rng.uniform(0.02, 0.04))
    for turn in np.pi * (np.arange(count) + rng.uniform(-0.2, 0.2, count)) / count - 0.5 * np.pi:
        c, s = math.cos(turn), math.sin(turn)
        along = math.atan2(b * c, -a * s)
        for side in (-1, 1):
            drawing.add(ellipse(side * depth * a * c, depth * b * s, long, thick, side * along), (bright, False))


def _spine(drawing: Drawing) -> None:
    """Paint a vertebra in the middle of the lower half: a shell, what it holds, two arms and the canal behind."""
    rng, (_, b) = drawing.rng, drawing.half
    size, where = b * float(rng.uniform(0.16, 0.26)), 1j * b * float(rng.uniform(0.35, 0.6))
    body, bright = organic(drawing, size * 1.2, 0.15, where), float(rng.uniform(0.75, 1.0))
    back = where + 1.3j * size
    for side in (-1, 1):
        arm = complex(side * rng.uniform(0.9, 1.8), 0.3) * size
        drawing.add(stroke(back, back + arm, size * 0.35), (bright, False))
    drawing.add(disc(0.0, back.imag, size * 0.75), (bright, False))
    drawing.add(body, (bright, False))
    drawing.add(body.shrunk(size * 0.2), (bright * float(rng.uniform(0.6, 0.95)), False))
    drawing.add(disc(0.0, back.imag, size * 0.45), (float(rng.uniform(0.2, 0.5)), False))


def _polygon(drawing: Drawing) -> None:
    """Paint a polygon or a rectangle; two of five have a hole."""
    rng = drawing.rng
    shape = (angular if rng.random() < 0.65 else block)(drawing, drawing.radius(0.12, 0.55))
    if rng.random() < 0.4:
        size = 0.7 * min(shape.half) * float(rng.uniform(0.5, 1.0))
        shape = shape.without((angular if rng.random() < 0.5 else oval)(drawing, size, complex(shape.x, shape.y)))
    drawing.add(shape)


def _holes(drawing: Drawing) -> None:
    """Paint what is drilled: one hole, several on a circle, or several in a row."""
    rng = drawing.rng
    kind, count, turn = rng.integers(3), int(rng.integers(3, 10)), float(rng.uniform(-np.pi, np.pi))
    tint, share, reach = drawing.tint(), float(rng.uniform(0.2, 0.8)), drawing.radius(0.3, 0.85)
    centre = drawing.place(1.2 * reach) if rng.random() < 0.5 else 0j
    if kind == 0:
        drawing.add(any_shape(drawing, 0.5 * reach), tint)
        return
    if kind == 1:
        places, most = reach * np.exp(2j * np.pi * np.arange(count) / count), reach * math.sin(math.pi / count)
    else:
        places, most = reach * np.linspace(-1, 1, count) + 0j, reach / (count - 1)
    for where in centre + places * np.exp(1j * turn):
        drawing.add(disc(where.real, where.imag, min(share * most, 0.15)), tint)


def _bars(drawing: Drawing) -> None:
    """Paint groups of three parallel bars, each finer than the one before."""
    rng = drawing.rng
    width, half, turn = drawing.radius(0.03, 0.1), drawing.radius(0.15, 0.4), float(rng.uniform(-np.pi, np.pi))
    centre, length, tint = drawing.place(half), half * float(rng.uniform(0.5, 1.0)), drawing.tint()
    across, direction = -half, complex(math.cos(turn), math.sin(turn))
    while across < half:
        for _ in range(3):
            where = centre + direction * (across + width / 2)
            drawing.add(box(where.real, where.imag, width / 2, length / 2, turn), tint)
            across += 2 * width
        across += width
        width = max(0.75 * width, 0.012)


def _bubbles(drawing: Drawing) -> None:
    """Paint discs side by side, of one density or of many."""
    rng = drawing.rng
    region, alike, tint = drawing.region(0.3, 0.8), rng.random() < 0.6, drawing.tint()
    count, largest, gap = int(rng.integers(15, 70)), drawing.radius(0.06, 0.2), float(rng.uniform(0.0, 0.05))
    places = np.array([drawing.place(0.0) for _ in range(count)])
    radii = np.sort(largest * rng.uniform(0.25, 1.0, count))[::-1]
    meets = np.abs(places[:, None] - places) < radii[:, None] + radii + gap
    kept = np.zeros(count, bool)
    for i in range(count):
        kept[i] = not np.any(meets[i] & kept)
    bubbles = [
        disc(where.real, where.imag, float(r)) for where, r in zip(places[kept].tolist(), radii[kept], strict=True)
    ]
    groups = [bubbles] if alike else [bubbles[i::5] for i in range(5)]
    for i, group in enumerate(groups):
        value, is_added = tint if i == 0 else drawing.tint()
        drawing.paint(drawing.canvas.union(group), value, add=is_added, within=region)


def _cells(drawing: Drawing) -> None:
    """Paint cells with thin walls: hollow ones, or each with a density of its own."""
    rng = drawing.rng
    region, (wall, is_added), inside = drawing.region(0.4, 0.9), drawing.tint(), drawing.level()
    count, width = int(rng.integers(8, 40)), 0.008 * 5 ** float(rng.random())
    seeds = np.array([drawing.place(0.0) for _ in range(count)])
    spread, kind = float(rng.uniform(0.05, 0.4)), rng.integers(3)
    levels = np.clip(inside + spread * rng.uniform(-1, 1, count), 0, 1) if kind else np.full(count, inside)
    owner, walls = drawing.canvas.cells(seeds, width)
    if kind < 2 or is_added:
        drawing.paint(region, levels.astype(np.float32)[owner], within=region)
    drawing.paint(walls, wall, add=is_added, within=region)


def _gradient(drawing: Drawing) -> None:
    """Fill a part with a smooth field, or add one to it."""
    rng = drawing.rng
    region, waves, strength = drawing.region(0.3, 0.8), Waves.draw(rng, 0.3, 2.0, 6), float(rng.uniform(0.04, 0.2))
    mean, add = np.float32(drawing.level()), bool(rng.random() < 0.5)
    plane = drawing.canvas.field(waves) * np.float32(strength)
    drawing.paint(region, plane if add else np.clip(plane + mean, 0, 1), add=add, within=region)


def _blob(drawing: Drawing) -> None:
    """Paint something without an edge."""
    rng = drawing.rng
    is_oval, radius = rng.random() < 0.5, drawing.radius(0.1, 0.4)
    shape = oval(drawing, radius) if is_oval else organic(drawing, radius, 0.4)
    drawing.add(shape, soft=shape.reach * float(rng.uniform(0.5, 1.2)))


def _folds(drawing: Drawing) -> None:
    """Paint where a random field is high, or near to 0, which winds as the folds of a brain do."""
    rng = drawing.rng
    region, (value, is_added), periods = drawing.region(0.5, 0.95), drawing.tint(), float(rng.uniform(2.5, 6.0))
    waves, band, narrow = Waves.draw(rng, periods, 1.6 * periods, 16), float(rng.uniform(0.25, 0.8)), rng.integers(2)
    height = drawing.canvas.field(waves)
    depth = (np.float32(band) - np.abs(height) if narrow else height) * np.float32(1 / waves.slope)
    drawing.paint(drawing.canvas.soften(depth), value, add=is_added, within=region)


def _vessels(drawing: Drawing) -> None:
    """Paint a tree of strokes that fork and grow thinner."""
    rng, (value, is_added) = drawing.rng, drawing.tint()
    step = drawing.radius(0.08, 0.2)
    ends = [(drawing.place(0.0), float(rng.uniform(-np.pi, np.pi)), 0.012 * 7 ** float(rng.random()))]
    strokes: list[Shape] = []
    for _ in range(int(rng.integers(8, 40))):
        start, turn, width = ends.pop(0)
        turn += 0.4 * float(rng.normal())
        end = start + step * complex(math.cos(turn), math.sin(turn))
        strokes.append(stroke(start, end, width))
        forks = ((0.5, 0.75), (-0.5, 0.75)) if rng.random() < 0.35 else ((0.0, 0.9),)
        ends += [(end, turn + angle, max(thinner * width, THINNEST)) for angle, thinner in forks]
    drawing.paint(drawing.canvas.union(strokes), value, add=is_added)


def _wire(drawing: Drawing) -> None:
    """Paint a straight wire or rod."""
    start, end = drawing.place(0.0), drawing.place(0.0)
    drawing.add(stroke(start, end, 0.01 * 8 ** float(drawing.rng.random())))


def _rim(drawing: Drawing) -> None:
    """Paint a ring, of any shape."""
    shape = any_shape(drawing, drawing.radius(0.12, 0.5))
    drawing.add(shape.rim(0.012 * 7 ** float(drawing.rng.random())))


def _grains(drawing: Drawing) -> None:
    """Paint a heap of small grains, most of them as dense as stone."""
    rng = drawing.rng
    level, is_stone = drawing.level(), rng.random() < 0.6
    centre, spread = drawing.place(0.1), drawing.radius(0.03, 0.2)
    for _ in range(int(rng.integers(2, 14))):
        where = centre + spread * complex(*rng.normal(size=2))
        radius = 0.01 * 4 ** float(rng.random())
        if abs(where) < drawing.border - radius:
            drawing.add(disc(where.real, where.imag, radius), (1.0 if is_stone else level, False))


CONTENTS: dict[str, Callable[[Drawing], None]] = {
    "bars": _bars,
    "blob": _blob,
    "bubbles": _bubbles,
    "cells": _cells,
    "ellipse": _ellipse,
    "folds": _folds,
    "gradient": _gradient,
    "grains": _grains,
    "holes": _holes,
    "lungs": _lungs,
    "organ": _organ,
    "polygon": _polygon,
    "ribs": _ribs,
    "rim": _rim,
    "spine": _spine,
    "vessels": _vessels,
    "wire": _wire,
}
