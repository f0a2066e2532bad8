"""Computed tomography as scanners make it: rays from a point source to a flat detector, around the object."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from ddiff_jax.operators._back_projection import Rays, Scan
from ddiff_jax.operators.base import check_shape
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement, Scalar


@pytree_dataclass
class FanBeam(Scan):
    """Line integrals along the rays of a fan, per channel, by Joseph's method.

    A steep ray, closer to the columns than to the rows, is sampled once in every row, between two neighbouring pixels;
    a flat one once in every column, which is the same in the transposed image. The position of the sample is linear in
    the row, so that a few numbers per ray do instead of a table over the pixels. They come in two parts: the first, in
    multiples of 2^-12, is exact in float32 in all that is computed with it, the second is what it lacks.

    Args:
        centre: where a ray crosses the middle row (column, if it is flat), in pixels from the first column (row).
        slope: by how much that moves from one row (column) to the next, at most 1 either way.
        length: of the ray in one row, divided by the longer side of the image.
        is_flat: whether the ray is.
        angles: of the scan, in degrees. These and the following say what the rays were made of, for filtered
            back-projection; `forward` does not read them.
        source_distance: from the source to the centre, in units of `pixel`.
        detector_distance: from the centre to the detector.
        spacing: of the detector's cells.
        pixel: side of a pixel.
        image_shape: (H, W, C) of the input.
    """

    centre: Float[Array, "2 T D"]
    slope: Float[Array, "2 T D"]
    length: Float[Array, "T D"]
    is_flat: Bool[Array, "T D"]
    angles: Float[Array, " T"]
    source_distance: Float[Array, ""]
    detector_distance: Float[Array, ""]
    spacing: Float[Array, ""]
    pixel: Float[Array, ""]
    image_shape: ImageShape = static_field()
    period = 360.0

    def rays(self, dtype: jnp.dtype) -> Rays:
        """Tell how the rays lie."""
        lengths = (self.source_distance, self.detector_distance, self.spacing, self.pixel)
        source, detector, spacing, pixel = (value.astype(dtype) for value in lengths)
        angles = jnp.deg2rad(self.angles.astype(dtype))
        return Rays(angles, spacing / pixel * source / (source + detector), pixel / source)

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, C] to [T, D, C]: angles, detector cells, channels."""
        height, width, channels = x.shape
        size = max(height, width)
        square = jnp.pad(x, ((0, size - height), (0, size - width), (0, 0)))
        # A row and the column of the same number side by side, each between two zeros: what lies outside is 0.
        lines = jnp.concatenate(
            [jnp.pad(picture, ((0, 0), (2, 2), (0, 0))) for picture in (square, square.transpose(1, 0, 2))], 1
        )
        centre, slope, length = (table.astype(x.dtype) for table in (self.centre, self.slope, self.length))
        origin = (size + 4) * self.is_flat.astype(jnp.int32) + 2

        # Row by row, and positions computed once more for the derivative: a row and its sums stay in the processor's
        # cache, which is several times faster than gathering from the whole image through tables.
        @jax.checkpoint
        def add(total: Measurement, row: tuple[Array, Array]) -> tuple[Measurement, None]:
            pixels, along = row
            whole, rest = centre + slope * along
            before = jnp.floor(whole + rest)
            share = (whole - before + rest)[..., None]
            first = origin + jnp.clip(before, -2, size).astype(jnp.int32)
            left, right = (pixels.at[place].get(mode="promise_in_bounds") for place in (first, first + 1))
            return total + (1 - share) * left + share * right, None

        along = jnp.arange(size, dtype=x.dtype) - (size - 1) / 2
        nothing = jnp.zeros_like(x, shape=(*self.length.shape, channels))
        total, _ = jax.lax.scan(add, nothing, (lines, along))
        return length[..., None] * total


def fan_beam_tomography(
    shape: ImageShape,
    *,
    angles: ArrayLike,
    source_distance: Scalar | None = None,
    detector_distance: Scalar | None = None,
    num_detectors: int | None = None,
    spacing: Scalar | None = None,
    pixel: Scalar = 1.0,
) -> FanBeam:
    """Build fan-beam computed tomography at given angles, with a flat detector.

    From the centre of the image, x along the columns to the right and y along the rows downwards, the detector of angle
    t runs along (cos t, sin t), and the central ray along (sin t, -cos t), from the source through the centre to the
    middle of the detector. So at angle 0 the source is below the image and detector cell d over column d; at 90 degrees
    the source is on the left and cells run down the rows: with the source far away it is `tomography`. A ray goes from
    the source to the middle of a cell. ASTRA's `fanflat` has the same geometry with the opposite sign of the angle.

    Every argument but the shape and the number of cells may be traced: `jax.vmap` over this function makes a stack of
    operators with a geometry for every image, and derivatives with respect to the geometry are exact. Where numbers are
    known, rays are computed from them in float64.

    Args:
        shape: image shape (H, W, C); every channel is measured on its own.
        angles: one row of angles in degrees; a full scan covers 360.
        source_distance: from the source to the centre, in the unit of `pixel`; above half of the image's diagonal. None
            is 2.5 times the longer side of the image.
        detector_distance: from the centre to the detector, at least 0; 0 is a virtual detector at the centre. None is
            1.6 times the longer side.
        num_detectors: cells; None is 1.6 times the longer side in pixels, which sees the whole image with the other
            defaults.
        spacing: from cell to cell; None is the size that a pixel at the centre has on the detector.
        pixel: side of a pixel, in any unit of length.

    Returns:
        Operator; input [H, W, C] in [-1, 1], measurement [angles, num_detectors, C]: line integrals divided by the
        longer side of the image, so that an image of ones measures 1 along its longer side and at most sqrt(2). The
        adjoint is exact. On a GPU it adds up in any order, so that its last digit may change from run to run, unless
        XLA_FLAGS holds --xla_gpu_deterministic_ops=true.

    Raises:
        ValueError: the angles are not one row of finite numbers, a distance is outside of its range, or num_detectors
            is not a whole number above 0.

    Source: Joseph, "An improved algorithm for reprojecting rays through pixel images", IEEE TMI 1982.

    Example:
        >>> scan = fan_beam_tomography((128, 128, 1), angles=range(0, 360, 6), pixel=0.05)  # cm
        >>> jax.eval_shape(scan.forward, jax.ShapeDtypeStruct((128, 128, 1), jnp.float32)).shape
        (60, 205, 1)
    """
    height, width, _ = shape = check_shape(shape)
    size = max(height, width)
    num_detectors = math.ceil(1.6 * size) if num_detectors is None else num_detectors
    if int(num_detectors) != num_detectors or num_detectors < 1:
        raise ValueError(f"num_detectors must be a whole number above 0; got {num_detectors}")
    unit: Any = size * pixel
    source: Any = 2.5 * unit if source_distance is None else source_distance
    detector: Any = 1.6 * unit if detector_distance is None else detector_distance
    if spacing is None:
        spacing = (source + detector) / source * pixel if _is_positive(source) else pixel
    lengths = (source, detector, spacing, pixel)
    is_traced = any(isinstance(leaf, Tracer) for leaf in (*_leaves(angles), *lengths))
    if not is_traced:
        _check(shape, np.asarray(angles), *lengths)
    # Known numbers stay on the host, in all their digits.
    xp: Any = jnp if is_traced else np
    turns, source, detector, step, side = (xp.asarray(value, float) for value in (angles, *lengths))

    theta = turns[:, None] * (np.pi / 180)
    cos, sin = xp.cos(theta), xp.sin(theta)
    u = (np.arange(num_detectors)[None] - (num_detectors - 1) / 2) * step
    x, y = -source * sin, source * cos  # the source; the detector's middle is at the opposite of it
    dx, dy = cos * u + (source + detector) * sin, sin * u - (source + detector) * cos
    is_flat = xp.abs(dx) > xp.abs(dy)
    across, along = xp.where(is_flat, dy, dx), xp.where(is_flat, dx, dy)
    slope = across / along
    crossing = (x * dy - y * dx) / xp.where(is_flat, -dx, dy) / side  # of the axis through the centre
    # The square that `forward` pads the image to begins where the image does.
    offset_across, offset_along = (xp.where(is_flat, one, other) for one, other in ((height, width), (width, height)))
    centre = crossing + (offset_across - 1) / 2 + slope * ((size - 1) / 2 - (offset_along - 1) / 2)
    leaves = {
        "centre": _in_two_parts(centre, xp),
        "slope": _in_two_parts(slope, xp),
        "length": xp.sqrt(1 + slope**2) / size,
        "angles": turns,
        "source_distance": source,
        "detector_distance": detector,
        "spacing": step,
        "pixel": side,
    }
    return FanBeam(
        **{name: jnp.asarray(value, float) for name, value in leaves.items()},
        is_flat=jnp.asarray(is_flat),
        image_shape=shape,
    )


def _in_two_parts(value: Any, xp: Any) -> Any:
    coarse = xp.round(value * 2**12) / 2**12
    return xp.stack([coarse, value - coarse])


def _leaves(angles: Any) -> list[Any]:
    return list(angles) if isinstance(angles, list | tuple) else [angles]


def _is_positive(value: Any) -> bool:
    return isinstance(value, Tracer) or bool(np.all(np.asarray(value) > 0))


def _check(shape: ImageShape, angles: np.ndarray, source: Any, detector: Any, spacing: Any, pixel: Any) -> None:
    """Refuse what is no geometry of a scanner."""
    theta = angles.astype(np.float64)
    if theta.ndim != 1 or theta.size == 0 or not np.all(np.isfinite(theta)):
        raise ValueError(f"the angles must be one row of finite numbers, in degrees; got shape {theta.shape}")
    for name, value in {"pixel": pixel, "spacing": spacing}.items():
        if not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive length; got {value}")
    reach = math.hypot(*shape[:2]) / 2 * float(pixel)
    if not (np.ndim(source) == 0 and np.isfinite(source) and source > reach):
        raise ValueError(
            f"source_distance, from the source to the centre, must be above half of the image's diagonal, {reach:.4g} "
            f"in the unit of pixel={float(pixel):.4g}; got {source}"
        )
    if not (np.ndim(detector) == 0 and np.isfinite(detector) and detector >= 0):
        raise ValueError(
            f"detector_distance, from the centre to the detector, must be at least 0 (0 is a virtual detector at the "
            f"centre); got {detector}"
        )


def sparse_fan_beam_tomography(
    shape: ImageShape,
    *,
    num_angles: int = 60,
    source_distance: Scalar | None = None,
    detector_distance: Scalar | None = None,
    num_detectors: int | None = None,
    spacing: Scalar | None = None,
    pixel: Scalar = 1.0,
) -> FanBeam:
    """Build fan-beam computed tomography at a few angles, evenly spaced over 360 degrees from 0 on.

    Args:
        shape: image shape (H, W, C).
        num_angles: how many.
        source_distance: as in `fan_beam_tomography`, like all that follow.
        detector_distance: from the centre to the detector.
        num_detectors: cells.
        spacing: from cell to cell.
        pixel: side of a pixel.

    Returns:
        Operator as from `fan_beam_tomography`.

    Raises:
        ValueError: num_angles is not a whole number above 0, or the rest is no geometry.
    """
    if int(num_angles) != num_angles or num_angles < 1:
        raise ValueError(f"num_angles must be a whole number above 0; got {num_angles}")
    return fan_beam_tomography(
        shape,
        angles=np.arange(num_angles) * 360 / num_angles,
        source_distance=source_distance,
        detector_distance=detector_distance,
        num_detectors=num_detectors,
        spacing=spacing,
        pixel=pixel,
    )
