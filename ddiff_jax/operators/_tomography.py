"""Computed tomography: line integrals along parallel rays, at few angles."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from ddiff_jax.operators._back_projection import Rays, Scan
from ddiff_jax.operators.base import check_shape
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement


@pytree_dataclass
class Tomography(Scan):
    """Radon transform with parallel rays, per channel.

    With s = column cos + row sin, all from the centre of the image, a ray of a steep angle (|cos| >= |sin|) meets a
    row at column u - row tan, where u = s / cos. So a projection is: shift every row by row * tan, add up the rows,
    read the sum at the detectors' u, and multiply by 1 / |cos|, the length of a ray in a row. For a flat angle the same
    holds for the transposed image with cot instead of tan. One product shifts both images by all slopes: evenly spaced
    angles, even in number, need nearly every slope twice, once for each image.

    Everything is a product of real matrices. Columns become frequencies, where a shift is a product with
    exp(-i omega shift). Columns, and rows, at the same distance from the centre have conjugate factors: their sum meets
    the cosine alone, their difference the sine alone. Lines are read off the summed spectra twice per pixel.

    Args:
        to_spectra: cosine, for sums, and -sine, for differences, of omega * column, for columns from the centre on.
        shear: cosine, for sums, and sine, for differences, of omega * slope * row, for rows from the centre on.
        to_lines: from the real and imaginary part of a spectrum to points half a pixel apart.
        line: which line an angle reads, of all slopes' for the image, then for its transpose.
        place: the last point before every detector.
        weights: linear interpolation between that point and the next, with length and units; 0 outside of the image.
        angles: of the scan, in degrees, for filtered back-projection; `forward` does not read them.
        image_shape: (H, W, C) of the input.
    """

    to_spectra: Float[Array, "2 K half"]
    shear: Float[Array, "K size U"]
    to_lines: Float[Array, "K 2 P"]
    line: Int[Array, "T 1"]
    place: Int[Array, "T D"]
    weights: Float[Array, "2 T D"]
    angles: Float[Array, " T"]
    image_shape: ImageShape = static_field()
    period = 180.0

    def rays(self, dtype: jnp.dtype) -> Rays:
        """Tell how the rays lie."""
        return Rays(jnp.deg2rad(self.angles.astype(dtype)), jnp.ones((), dtype), jnp.zeros((), dtype))

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, C] to [T, D, C]: angles, detectors, channels."""
        product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        tables = self.to_spectra, self.shear, self.to_lines, self.weights
        to_spectra, shear, to_lines, weights = (table.astype(x.dtype) for table in tables)
        size, (height, width, channels) = shear.shape[1], x.shape
        square = jnp.pad(x, ((0, size - height), (0, size - width), (0, 0)))
        quarters = _mirrored(_mirrored(square, 0), 2)  # [columns summed or not, rows summed or not, row, column, C]
        pictures = [quarters.transpose(0, 3, 1, 2, 4), quarters.transpose(1, 2, 0, 3, 4)]  # the image and its transpose
        real, imaginary = product("pkw,pwsrnc->pksrnc", to_spectra, jnp.stack(pictures, 4))
        # The factor of a difference of rows is -i sine: it swaps the parts.
        reals = jnp.concatenate([real[:, 0], imaginary[:, 1]], 1)
        imaginaries = jnp.concatenate([imaginary[:, 0], -real[:, 1]], 1)
        summed = product("krqnc,kru->kqncu", jnp.stack([reals, imaginaries], 2), shear)
        lines = jnp.moveaxis(product("kqncu,kql->ncul", summed, to_lines), 1, 3).reshape(-1, channels)
        first = self.line * to_lines.shape[2] + self.place
        return lines[first] * weights[0, ..., None] + lines[first + 1] * weights[1, ..., None]


def _mirrored(x: Float[Array, "..."], axis: int) -> Float[Array, "2 ..."]:
    """Stack sum and difference of the entries at the same distance from the middle, from there on."""
    before, after = jnp.split(x, 2, axis)
    before = jnp.flip(before, axis)
    return jnp.stack([after + before, after - before])


def tomography(shape: ImageShape, *, angles: ArrayLike, num_detectors: int | None = None) -> Tomography:
    """Build parallel-beam computed tomography at given angles.

    The detectors are one pixel apart and centred. At angle 0 the rays run along the columns and detector d sees
    column d; at 90 degrees they run along the rows, top row first. A ray takes one sample per row (steep rays) or per
    column (flat rays), as in Joseph's method, but from the band-limited image instead of by linear interpolation:
    nothing is lost at high frequencies, and angles 0 and 90 add up columns and rows exactly.

    Args:
        shape: image shape (H, W, C); every channel is measured on its own.
        angles: one row of angles in degrees.
        num_detectors: None takes as many as the diagonal of the image is long.

    Returns:
        Operator; input [H, W, C] in [-1, 1], measurement [angles, num_detectors, C]: line integrals divided by the
        longer side of the image, so that an image of ones measures 1 along its longer side and at most sqrt(2).
        Its tables take about 4 S^2 bytes per slope (half the number of angles if they are evenly spaced and even in
        number), S the longer side: 6 MB for 30 angles at 256x256, 107 MB for 180 angles at 512x512.

    Raises:
        ValueError: the angles are not one row of finite numbers, or num_detectors is not a whole number above 0.

    Source: Joseph, "An improved algorithm for reprojecting rays through pixel images", IEEE TMI 1982; the shift of
    rows in the Fourier domain, instead of gathering pixels ray by ray, is ours.
    """
    height, width, _ = shape = check_shape(shape)
    theta = np.deg2rad(np.asarray(angles, np.float64))
    if theta.ndim != 1 or theta.size == 0 or not np.all(np.isfinite(theta)):
        raise ValueError(f"the angles must be one row of finite numbers, in degrees; got shape {theta.shape}")
    diagonal = math.ceil(math.hypot(height, width))
    num_detectors = diagonal if num_detectors is None else num_detectors
    if int(num_detectors) != num_detectors or num_detectors < 1:
        raise ValueError(f"num_detectors must be a whole number above 0; got {num_detectors}")
    cos, sin = np.cos(theta)[:, None], np.sin(theta)[:, None]
    flat = np.abs(cos) < np.abs(sin)
    across, along = np.where(flat, sin, cos), np.where(flat, cos, sin)
    # Angles mirrored at the diagonal have the same slope, but for rounding.
    slopes, slope = np.unique(np.round(along / across, 12), return_inverse=True)

    size = 2 * math.ceil(max(height, width) / 2)
    # Sheared rows reach this far from the centre, and one pixel more to fade out; then nothing wraps around.
    reach = math.ceil((size - 1) / 2 * (1 + np.max(np.abs(slopes)))) + 1
    omega = np.pi / reach * np.arange(reach + 1)
    halves = np.arange(size // 2) + 0.5
    points = np.arange(4 * reach + 2) / 2 - reach
    # A real signal has every frequency twice, with positive and negative sign, but for the first and the last.
    share = np.where(np.arange(reach + 1) % reach > 0, 2, 1) / (2 * reach)
    columns = np.exp(-1j * omega[:, None] * halves)
    rows = np.exp(1j * omega[:, None, None] * halves[:, None] * slopes)
    lines = share[:, None] * np.exp(-1j * omega[:, None] * points)

    s = np.arange(num_detectors) - (num_detectors - 1) / 2
    s = s + cos * (width - size) / 2 + sin * (height - size) / 2  # from the centre of the padded square
    u = s / across
    exact = 2 * (u + reach)
    place = np.floor(exact)
    weights = np.stack([place + 1 - exact, exact - place])
    weights *= (np.abs(u) <= reach) / (np.abs(across) * max(height, width))
    return Tomography(
        to_spectra=jnp.asarray([columns.real, columns.imag], float),
        shear=jnp.asarray(np.concatenate([rows.real, rows.imag], 1), float),
        to_lines=jnp.asarray(np.stack([lines.real, lines.imag], 1), float),
        line=jnp.asarray(slope.reshape(-1, 1) + len(slopes) * flat, jnp.int32),
        place=jnp.asarray(np.clip(place, 0, 4 * reach), jnp.int32),
        weights=jnp.asarray(weights, float),
        angles=jnp.asarray(angles, float),
        image_shape=shape,
    )


def sparse_tomography(shape: ImageShape, *, num_angles: int, num_detectors: int | None = None) -> Tomography:
    """Build parallel-beam computed tomography at a few angles, evenly spaced over 180 degrees from 0 on.

    Args:
        shape: image shape (H, W, C).
        num_angles: how many.
        num_detectors: as in `tomography`.

    Returns:
        Operator as from `tomography`.

    Raises:
        ValueError: num_angles or num_detectors is not a whole number above 0.
    """
    if int(num_angles) != num_angles or num_angles < 1:
        raise ValueError(f"num_angles must be a whole number above 0; got {num_angles}")
    return tomography(shape, angles=np.arange(num_angles) * 180 / num_angles, num_detectors=num_detectors)
