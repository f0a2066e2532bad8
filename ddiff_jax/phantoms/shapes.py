"""Plane shapes by how deep a point lies in them.

The frame is [-1, 1] x [-1, 1], x to the right and y downwards, whatever the number of pixels is. Depth is the distance
to the edge in units of the frame, positive inside and negative outside; far from the edge it is only roughly that.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Complex, Float

Plane = Float[np.ndarray, "H W"]
Depth = Callable[[Plane, Plane], Plane]

TINY = np.float32(1e-6)  # keeps the centre of a shape from being divided by


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape.

    Args:
        x: its centre.
        y: its centre.
        reach: no point of it is farther from the centre.
        half: half its width and half its height, roughly.
        depth: of points, whose coordinates count from the centre.
        thickness: twice the largest depth; what is thinner than a pixel covers no more of it than that.
    """

    x: float
    y: float
    reach: float
    half: tuple[float, float]
    depth: Depth
    thickness: float

    def mirrored(self) -> "Shape":
        """Give its mirror image in the other half of the frame."""
        return dataclasses.replace(self, x=-self.x, depth=lambda x, y: self.depth(-x, y))

    def without(self, hole: "Shape") -> "Shape":
        """Cut another shape out."""
        across, down = np.float32(self.x - hole.x), np.float32(self.y - hole.y)
        return dataclasses.replace(
            self, depth=lambda x, y: np.minimum(self.depth(x, y), -hole.depth(x + across, y + down))
        )

    def shrunk(self, inset: float) -> "Shape":
        """Take so much off along the edge."""
        return dataclasses.replace(self, depth=lambda x, y: self.depth(x, y) - np.float32(inset))

    def rim(self, width: float) -> "Shape":
        """Keep a band of this width along the edge."""
        half = np.float32(width / 2)
        return dataclasses.replace(self, depth=lambda x, y: half - np.abs(self.depth(x, y) - half), thickness=width)


def turned(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    """Give coordinates along axes that are turned by an angle."""
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return c * x + s * y, c * y - s * x


def _box_of(a: float, b: float, angle: float) -> tuple[float, float]:
    c, s = math.cos(angle), math.sin(angle)
    return math.hypot(a * c, b * s), math.hypot(a * s, b * c)


def ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0) -> Shape:
    """Make an ellipse with half axes a and b, the first turned by an angle."""

    def depth(px: Plane, py: Plane) -> Plane:
        u, v = turned(px, py, angle)
        u, v = u * np.float32(1 / a), v * np.float32(1 / b)
        size = np.sqrt(u * u + v * v)
        slope = np.sqrt(np.square(u * np.float32(1 / a)) + np.square(v * np.float32(1 / b)))
        return (size + TINY) * (1 - size) / (slope + TINY * np.float32(1 / min(a, b)))

    return Shape(x, y, max(a, b), _box_of(a, b, angle), depth, 2 * min(a, b))


def disc(x: float, y: float, radius: float) -> Shape:
    """Make a disc."""

    def depth(px: Plane, py: Plane) -> Plane:
        return np.float32(radius) - np.sqrt(px * px + py * py)

    return Shape(x, y, radius, (radius, radius), depth, 2 * radius)


def box(x: float, y: float, a: float, b: float, angle: float = 0.0, corner: float = 0.0) -> Shape:
    """Make a rectangle with half sides a and b, the first turned by an angle; its corners have a radius."""

    def depth(px: Plane, py: Plane) -> Plane:
        u, v = turned(px, py, angle)
        u, v = np.abs(u) - np.float32(a - corner), np.abs(v) - np.float32(b - corner)
        beyond = np.sqrt(np.square(np.maximum(u, 0)) + np.square(np.maximum(v, 0)))
        return np.float32(corner) - beyond - np.minimum(np.maximum(u, v), 0)

    return Shape(x, y, math.hypot(a, b), _box_of(a, b, angle), depth, 2 * min(a, b))


def outline(x: float, y: float, radius: float, harmonics: Complex[np.ndarray, " K"]) -> Shape:
    """Make a smooth outline, which in direction t is radius (1 + Re sum_k harmonics_k e^{i k t}) away, k from 1.

    Args:
        x: its centre.
        y: its centre.
        radius: the mean one.
        harmonics: their sizes must add up to less than 1.
    """
    factors = [np.complex64(factor) for factor in harmonics[::-1]]
    total = float(np.abs(harmonics).sum())

    def depth(px: Plane, py: Plane) -> Plane:
        distance = np.sqrt(px * px + py * py)
        direction = (px + np.complex64(1j) * py) / (distance + TINY)
        waves = np.zeros_like(direction)
        for factor in factors:  # Horner's rule
            waves = (waves + factor) * direction
        return np.float32(radius) * (1 + waves.real) - distance

    return Shape(x, y, radius * (1 + total), (radius, radius), depth, 2 * radius)


def polygon(x: float, y: float, corners: Complex[np.ndarray, " K"]) -> Shape:
    """Make a polygon that is seen whole from its centre.

    Args:
        x: its centre.
        y: its centre.
        corners: x + i y of the corners from there, at least 3, around it; no two neighbours may be half a turn apart.
    """
    corners = corners[np.argsort(np.angle(corners))]
    edges = np.roll(corners, -1) - corners
    normals = -1j * edges / np.abs(edges)
    distances = np.real(normals.conj() * corners)
    angles = np.angle(corners).astype(np.float32)
    across, down, away = (part.astype(np.float32) for part in (np.real(normals), np.imag(normals), distances))

    def depth(px: Plane, py: Plane) -> Plane:
        edge = np.searchsorted(angles, np.arctan2(py, px)) - 1  # before the first corner it is the last edge, -1
        return away[edge] - across[edge] * px - down[edge] * py

    half = float(np.ptp(np.real(corners))) / 2, float(np.ptp(np.imag(corners))) / 2
    return Shape(x, y, float(np.abs(corners).max()), half, depth, 2 * float(np.abs(corners).max()))


def stroke(start: complex, end: complex, width: float) -> Shape:
    """Make a straight stroke with round ends."""
    along, centre = end - start, (start + end) / 2
    half_length, angle = np.float32(abs(along) / 2), math.atan2(along.imag, along.real)

    def depth(px: Plane, py: Plane) -> Plane:
        u, v = turned(px, py, angle)
        beyond = np.maximum(np.abs(u) - half_length, 0)
        return np.float32(width / 2) - np.sqrt(beyond * beyond + v * v)

    a, b = (abs(along) + width) / 2, width / 2
    return Shape(centre.real, centre.imag, a, _box_of(a, b, angle), depth, width)
