"""A canvas on which shapes are painted: the same ones make the same picture at every size."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Complex, Float, Int

from ddiff_jax.phantoms.shapes import Plane, Shape, turned

OVERSAMPLING = 2  # fine pixels along the side of a pixel; the edge in each of them is as soft as it is wide


@dataclasses.dataclass(frozen=True)
class Waves:
    """A smooth random field: a sum of plane waves, of mean 0 and variance 1 over their phases.

    Args:
        across: angular frequencies in x.
        down: angular frequencies in y.
        phases: in radians.
        sizes: amplitudes.
    """

    across: Float[np.ndarray, " K"]
    down: Float[np.ndarray, " K"]
    phases: Float[np.ndarray, " K"]
    sizes: Float[np.ndarray, " K"]

    @staticmethod
    def draw(rng: np.random.Generator, lowest: float, highest: float, count: int) -> "Waves":
        """Draw so many waves with between so many periods over the frame; long ones are higher than short ones."""
        periods = lowest * (highest / lowest) ** rng.random(count)
        angles, phases = 2 * np.pi * rng.random((2, count))
        sizes = 1 / periods
        sizes *= math.sqrt(2 / float(np.sum(sizes**2)))
        return Waves(np.pi * periods * np.cos(angles), np.pi * periods * np.sin(angles), phases, sizes)

    @property
    def slope(self) -> float:
        """The root mean square of its gradient."""
        return math.sqrt(float(np.sum(self.sizes**2 * (self.across**2 + self.down**2)) / 2))

    def at(self, axis: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N N"]:
        """Compute the field where rows and columns lie; the cosine of a sum is a product of two thin matrices."""
        rows = axis[:, None] * self.down.astype(np.float32)
        columns = self.across.astype(np.float32)[:, None] * axis + self.phases.astype(np.float32)[:, None]
        sizes = self.sizes.astype(np.float32)[:, None]
        left = np.concatenate([np.cos(rows), -np.sin(rows)], axis=1)
        return left @ np.concatenate([sizes * np.cos(columns), sizes * np.sin(columns)])


@dataclasses.dataclass(frozen=True)
class Patch:
    """A part of the canvas, and how much of each of its fine pixels is covered, from 0 to 1."""

    rows: slice
    columns: slice
    cover: Plane


class Canvas:
    """Densities in fine pixels, 0 in the beginning, that are painted over.

    Args:
        side: pixels of the picture along its side.
        angle: what is painted is turned by it around the centre.
        bend: how far points are displaced at most.
        fields: what displaces them in x and in y.
        soft: width of every edge, at least that of a fine pixel.
    """

    def __init__(self, side: int, angle: float, bend: float, fields: tuple[Waves, Waves], soft: float = 0.0):
        count = side * OVERSAMPLING
        self.side, self.step, self.angle, self.bend = side, 2 / count, angle, bend
        self.edge = max(soft, self.step)
        self.axis = ((np.arange(count) + 0.5) * self.step - 1).astype(np.float32)
        self.density = np.zeros((count, count), np.float32)
        x, y = np.broadcast_arrays(self.axis[None], self.axis[:, None])
        if bend:
            # Fields of variance 1 seldom leave [-2, 2], and are held there, so that each part is 1 / sqrt(2) at most.
            along, down = (np.clip(field.at(self.axis), -2, 2) * np.float32(bend / math.sqrt(8)) for field in fields)
            x, y = x + along, y + down
        self.x, self.y = turned(x, y, angle)

    def field(self, waves: Waves) -> Plane:
        """Compute a field in every fine pixel."""
        return waves.at(self.axis)

    def soften(self, depth: Plane, width: float = 0.0) -> Plane:
        """Turn depths into what is covered, over an edge at least so wide."""
        cover = depth * np.float32(1 / max(width, self.edge))
        cover += np.float32(0.5)
        np.maximum(cover, 0, out=cover)  # half as long as np.clip, and most of the time goes here
        return np.minimum(cover, 1, out=cover)

    def cover(self, shape: Shape, soft: float = 0.0) -> Patch:
        """Find what a shape covers.

        Args:
            shape: the shape.
            soft: width of its edge, where that is more than of all edges.
        """
        c, s = math.cos(self.angle), math.sin(self.angle)
        reach = shape.reach + soft / 2 + self.bend
        rows, columns = self._range(c * shape.y + s * shape.x, reach), self._range(c * shape.x - s * shape.y, reach)
        depth = shape.depth(self.x[rows, columns] - np.float32(shape.x), self.y[rows, columns] - np.float32(shape.y))
        cover = self.soften(depth, soft)
        if shape.thickness < self.edge:
            cover -= self.soften(depth - np.float32(shape.thickness))
        return Patch(rows, columns, cover)

    def _range(self, centre: float, reach: float) -> slice:
        first, last = math.floor((centre - reach + 1) / self.step) - 1, math.ceil((centre + reach + 1) / self.step) + 1
        return slice(max(first, 0), max(last, 0))

    def whole(self, patch: Patch) -> Plane:
        """Spread a part over the canvas."""
        plane = np.zeros_like(self.density)
        plane[patch.rows, patch.columns] = patch.cover
        return plane

    def union(self, shapes: Iterable[Shape]) -> Plane:
        """Find what several shapes cover together."""
        plane = np.zeros_like(self.density)
        for patch in map(self.cover, shapes):
            part = plane[patch.rows, patch.columns]
            np.maximum(part, patch.cover, out=part)
        return plane

    def cells(self, seeds: Complex[np.ndarray, " K"], width: float) -> tuple[Int[np.ndarray, "N N"], Plane]:
        """Divide the canvas among seeds (Voronoi).

        Args:
            seeds: x + i y.
            width: of the walls.

        Returns:
            To which seed a fine pixel is nearest, and how much of it is wall.
        """
        nearest, second = (np.full_like(self.density, np.inf) for _ in range(2))
        owner = np.zeros(self.density.shape, np.int16)
        for i, seed in enumerate(seeds):
            squared = np.square(self.x - np.float32(seed.real)) + np.square(self.y - np.float32(seed.imag))
            owner[squared < nearest] = i
            np.minimum(second, np.maximum(nearest, squared), out=second)
            np.minimum(nearest, squared, out=nearest)
        # Half the difference of the distances: that to the wall, times the cosine of how far the seeds lie aside.
        depth = np.float32(width / 2) - (np.sqrt(second) - np.sqrt(nearest)) / 2
        cover = self.soften(depth)
        return owner, cover - self.soften(depth - np.float32(width)) if width < self.edge else cover

    def picture(self) -> Float[np.ndarray, "S S 1"]:
        """Average fine pixels to pixels, and map densities from [0, 1] to [-1, 1], clipping the others."""
        fine, total = np.clip(self.density, 0, 1), np.zeros((self.side, self.side), np.float32)
        for first in np.ndindex(OVERSAMPLING, OVERSAMPLING):
            total += fine[first[0] :: OVERSAMPLING, first[1] :: OVERSAMPLING]
        return (total * np.float32(2 / OVERSAMPLING**2) - 1)[..., None]
