"""One phantom while it is drawn: what chance decides, where it is painted, and which part is the inside of the body."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from ddiff_jax.phantoms.canvas import Canvas, Patch, Waves
from ddiff_jax.phantoms.shapes import Plane, Shape, box, disc, ellipse, outline, polygon

BORDER = 0.94  # nothing is farther from the centre of the frame, which ends at 1
MOST_FAINT = 0.15  # change of density that counts as faint
ROUGHEST = 0.6  # sum of an outline's harmonics; beyond 1 it would run through its own centre

Tint = tuple[float, bool]
"""A density, and whether it is added to what is there instead of taking its place."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """A kind of picture. Densities go from 0, air, to 1; of a range both ends are given.

    Args:
        share: of all pictures, in relation to other scenes.
        bodies: names of `BODIES`, one of which is drawn; without any the contents lie in the air.
        layers: how many layers the body has around its inside.
        tissue: density of the inside.
        levels: how likely a thing has a density between which ends.
        faint: how often a thing only adds a little to what it lies on.
        contents: names of `contents.CONTENTS`, and how likely each is drawn.
        items: how many times one is drawn.
        usual: names of what is drawn before them, once, and how often it is.
        paired: how often the picture has two halves that mirror each other.
        bent: how far it may be bent at most.
        turned: whether it is turned by any angle, or by a few degrees.
        soft: how often its edges are as soft as those that a scanner blurs.
        shaded: how often a smooth field shades all of it, as the coils of a scanner do.
    """

    share: float
    bodies: tuple[str, ...]
    layers: tuple[int, int]
    tissue: tuple[float, float]
    levels: tuple[tuple[float, float, float], ...]
    faint: float
    contents: Mapping[str, float]
    items: tuple[int, int]
    usual: Mapping[str, float] = dataclasses.field(default_factory=dict)
    paired: float = 0.0
    bent: float = 0.0
    turned: bool = False
    soft: float = 0.3
    shaded: float = 0.0


def choose(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    """Choose a name, in proportion to its number."""
    ends = np.cumsum(list(shares.values()))
    return list(shares)[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))]


class Drawing:
    """One picture while it is drawn.

    Args:
        rng: where all chance comes from. What it is asked never depends on the size.
        scene: the kind of picture.
        side: its pixels.
    """

    def __init__(self, rng: np.random.Generator, scene: Scene, side: int):
        self.rng, self.scene = rng, scene
        bend = scene.bent * max(0.0, float(rng.uniform(-0.5, 1.0)))
        angle = float(rng.uniform(-np.pi, np.pi) if scene.turned else 0.06 * rng.normal())
        fields = Waves.draw(rng, 0.4, 1.5, 4), Waves.draw(rng, 0.4, 1.5, 4)
        is_soft, soft = rng.random() < scene.soft, float(rng.uniform(0.01, 0.06))
        self.paired = rng.random() < scene.paired
        self.canvas = Canvas(side, angle, bend, fields, soft * is_soft)
        self.border = BORDER - bend  # however it is bent, what is nearer to the centre stays in the circle
        self.half = (self.border, self.border)  # half the width and half the height of the inside
        self.within = self.canvas.whole(self.canvas.cover(disc(0.0, 0.0, self.border)))
        if scene.bodies:
            self._body(BODIES[scene.bodies[rng.integers(len(scene.bodies))]])

    def _body(self, kind: Callable[["Drawing", float], Shape]) -> None:
        """Paint a body with its layers; what comes after stays inside of it."""
        rng = self.rng
        shape = kind(self, self.border * float(rng.uniform(0.75, 1.0)))
        inset = 0.0
        for _ in range(rng.integers(*self.scene.layers, endpoint=True)):
            self.paint(self.canvas.cover(shape.shrunk(inset)), float(rng.uniform(0.05, 1.0)))
            inset += shape.reach * 0.02 * 6 ** float(rng.random())
        inside = self.canvas.cover(shape.shrunk(inset))
        self.paint(inside, float(rng.uniform(*self.scene.tissue)))
        self.within = self.within * self.canvas.whole(inside)
        self.half = (max(shape.half[0] - inset, 0.1), max(shape.half[1] - inset, 0.1))

    # What things have

    def radius(self, low: float, high: float) -> float:
        """Draw a size in units of the inside, small ones as likely as large ones."""
        return math.sqrt(self.half[0] * self.half[1]) * low * (high / low) ** float(self.rng.random())

    def place(self, reach: float) -> complex:
        """Draw the centre of a thing so that most of it lies inside, in the air all of it."""
        turn, distance = self.rng.uniform(-np.pi, np.pi), math.sqrt(self.rng.random())
        kept = 0.7 if self.scene.bodies else 1.0
        a, b = (max(half - kept * reach, 0.0) for half in self.half)
        return distance * complex(a * math.cos(turn), b * math.sin(turn))

    def level(self) -> float:
        """Draw a density."""
        ends = np.cumsum([share for share, _, _ in self.scene.levels])
        _, low, high = self.scene.levels[int(np.searchsorted(ends, self.rng.random() * ends[-1], side="right"))]
        return float(self.rng.uniform(low, high))

    def tint(self) -> Tint:
        """Draw what a thing is painted with."""
        if self.rng.random() < self.scene.faint:
            return float(self.rng.uniform(0.02, MOST_FAINT) * self.rng.choice((-1, 1))), True
        return self.level(), False

    # How they are painted

    def paint(
        self, cover: Patch | Plane, value: float | Plane, *, add: bool = False, within: Plane | None = None
    ) -> None:
        """Paint what is covered and inside.

        Args:
            cover: a part of the canvas, or all of it.
            value: a density, or a plane of them as large as the canvas.
            add: add it to what is there.
            within: paint only there; None is all over the inside.
        """
        patch = cover if isinstance(cover, Patch) else Patch(slice(None), slice(None), cover)
        where = patch.rows, patch.columns
        covered, under = patch.cover * (self.within if within is None else within)[where], self.canvas.density[where]
        new = value[where] if isinstance(value, np.ndarray) else np.float32(value)
        under += covered * (new if add else new - under)

    def add(self, shape: Shape, tint: Tint | None = None, soft: float = 0.0) -> None:
        """Paint a shape, and its mirror image where the picture has two halves and it lies in one of them."""
        value, is_added = self.tint() if tint is None else tint
        for each in [shape, shape.mirrored()] if self.paired and abs(shape.x) > 0.6 * shape.reach else [shape]:
            self.paint(self.canvas.cover(each, soft), value, add=is_added)

    def region(self, low: float, high: float) -> Plane:
        """Choose where something spreads: all over the inside, or in a shape of such a size."""
        everywhere, shape = self.rng.random() < 0.35, any_shape(self, self.radius(low, high))
        if everywhere and self.scene.bodies:
            return self.within
        return self.within * self.canvas.whole(self.canvas.cover(shape))


# Shapes by chance


def organic(drawing: Drawing, radius: float, rough: float, centre: complex | None = None) -> Shape:
    """Draw a smooth outline that reaches so far at most."""
    rng = drawing.rng
    count = int(rng.integers(2, 7))
    real, imaginary = rough * rng.normal(size=(2, count)) / np.arange(1, count + 1) ** 1.2
    harmonics = real + 1j * imaginary
    harmonics[0] = 0  # it would only move the shape
    harmonics *= min(1.0, ROUGHEST / float(np.abs(harmonics).sum()))
    where = drawing.place(radius) if centre is None else centre
    return outline(where.real, where.imag, radius / (1 + float(np.abs(harmonics).sum())), harmonics)


def oval(drawing: Drawing, radius: float, centre: complex | None = None) -> Shape:
    """Draw an ellipse in any direction."""
    flat, angle = float(drawing.rng.uniform(0.3, 1.0)), float(drawing.rng.uniform(-np.pi, np.pi))
    where = drawing.place(radius) if centre is None else centre
    return ellipse(where.real, where.imag, radius, radius * flat, angle)


def angular(drawing: Drawing, radius: float, centre: complex | None = None) -> Shape:
    """Draw a polygon: a regular one, an irregular one, or a jagged one."""
    rng, kind = drawing.rng, drawing.rng.integers(3)
    count = int(rng.integers(3, 8)) + 3 * (kind == 2)
    jitter, radii = rng.uniform(-0.2, 0.2, count), rng.uniform(0.45, 1.0, count)
    if kind == 0:
        jitter, radii = np.zeros(count), np.ones(count)
    angles = 2 * np.pi * (np.arange(count) + jitter) / count + rng.uniform(-np.pi, np.pi)
    where = drawing.place(radius) if centre is None else centre
    return polygon(where.real, where.imag, radius * radii * np.exp(1j * angles))


def block(drawing: Drawing, radius: float, centre: complex | None = None) -> Shape:
    """Draw a rectangle, with round corners or without."""
    rng = drawing.rng
    a, b = 0.85 * radius, radius * float(rng.uniform(0.25, 0.52))
    corner, angle = b * max(0.0, float(rng.uniform(-1.0, 1.0))), float(rng.uniform(-np.pi, np.pi))
    where = drawing.place(radius) if centre is None else centre
    return box(where.real, where.imag, a, b, angle, corner)


def any_shape(drawing: Drawing, radius: float) -> Shape:
    """Draw one of these."""
    kind = drawing.rng.integers(4)
    return organic(drawing, radius, 0.4) if kind < 2 else (oval if kind == 2 else angular)(drawing, radius)


# Bodies


def _torso(drawing: Drawing, size: float) -> Shape:
    rng = drawing.rng
    if rng.random() < 0.5:
        return ellipse(0.0, 0.0, size, size * float(rng.uniform(0.55, 0.85)))
    b = size * float(rng.uniform(0.5, 0.65))
    return box(0.0, 0.0, 0.85 * size, b, 0.0, b * float(rng.uniform(0.75, 1.0)))


def _oval(drawing: Drawing, size: float) -> Shape:
    return ellipse(0.0, 0.0, size, size * float(drawing.rng.uniform(0.55, 1.0)))


def _block(drawing: Drawing, size: float) -> Shape:
    rng = drawing.rng
    angle, corner = float(rng.uniform(0.25 * np.pi, 0.4 * np.pi)), max(0.0, float(rng.uniform(-1.0, 1.0)))
    a, b = size * math.sin(angle), size * math.cos(angle)
    return box(0.0, 0.0, a, b, 0.0, b * corner)


def _gear(drawing: Drawing, size: float) -> Shape:
    rng = drawing.rng
    teeth = int(rng.integers(8, 20))
    order = np.arange(4 * teeth)
    radii = np.where(order % 4 < 2, 1.0, rng.uniform(0.8, 0.93))
    return polygon(0.0, 0.0, size * radii * np.exp(0.5j * np.pi * (order + 0.5) / teeth))


BODIES: dict[str, Callable[[Drawing, float], Shape]] = {
    "torso": _torso,
    "head": lambda drawing, size: ellipse(0.0, 0.0, size * float(drawing.rng.uniform(0.72, 0.95)), size),
    "oval": _oval,
    "outline": lambda drawing, size: organic(drawing, size, 0.12, 0j),
    "rough": lambda drawing, size: organic(drawing, size, 0.35, 0j),
    "block": _block,
    "polygon": lambda drawing, size: angular(drawing, size, 0j),
    "disc": lambda drawing, size: disc(0.0, 0.0, size),
    "gear": _gear,
}
