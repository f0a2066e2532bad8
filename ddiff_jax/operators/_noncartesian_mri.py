"""Magnetic resonance imaging off the grid: radial, spiral and any other trajectory, by the exact transform."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex
from numpy.typing import ArrayLike

from ddiff_jax.operators._coils import check_maps, from_channels
from ddiff_jax.operators._mri_sampling import radial_trajectory
from ddiff_jax.operators._separable_dft import phases, separable_dft
from ddiff_jax.operators.base import LinearOperator, check_shape
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement


@pytree_dataclass
class NonCartesianMRI(LinearOperator):
    """y_c[m] = (H W)^-1/2 sum over r, c of (s_c x)[r, c] rows[m, r] columns[m, c], complex, for the coils c.

    Args:
        maps: s_c, how coil c sees every pixel.
        rows: exp(-2 pi i k_y (r - H//2) / H) for every sample.
        columns: exp(-2 pi i k_x (c - W//2) / W).
        image_shape: (H, W, 2): the real and the imaginary part of the image are its channels.
    """

    maps: Complex[Array, "N H W"]
    rows: Complex[Array, "M H"]
    columns: Complex[Array, "M W"]
    image_shape: ImageShape = static_field()

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, 2] to [N, M], complex."""
        z = from_channels(x)
        y = separable_dft(self.maps.astype(z.dtype) * z[None], self.rows, self.columns)
        return y / jnp.asarray(math.sqrt(z.size), y.dtype)


def noncartesian_mri(shape: ImageShape, *, trajectory: ArrayLike, maps: ArrayLike | None = None) -> NonCartesianMRI:
    """Build magnetic resonance imaging along a given trajectory.

    Args:
        shape: (H, W, 2): the real and the imaginary part of a complex image are its channels.
        trajectory: [M, 2], (k_y, k_x) of every sample in cycles per field of view, from -H/2 to H/2 and from -W/2 to
            W/2; k_y is along the height. On whole numbers it measures what `mri` does.
        maps: as in `mri`.

    Returns:
        Operator; input [H, W, 2], complex measurement [N, M]; its tables take 8 M (H + W) bytes, and it costs N M H W
        complex multiplications: milliseconds for some thousand samples at 128x128 on a processor; at 320x320 with
        60000 samples and 8 coils it wants a graphics card.

    Raises:
        ValueError: the image has not two channels, the trajectory is no list of pairs within these bounds, or the
            maps do not fit, see `mri`.
    """
    height, width, channels = shape = check_shape(shape)
    if channels != 2:
        raise ValueError(
            f"MRI measures complex images: the image shape must be (H, W, 2), real and imaginary part; got {shape}"
        )
    k = np.asarray(trajectory, np.float64)
    if k.ndim != 2 or k.shape[1] != 2 or not len(k):
        raise ValueError(f"the trajectory must list (k_y, k_x) of every sample, shape (M, 2); got {k.shape}")
    if not np.all(np.abs(k) <= np.array([height, width]) / 2):  # not so of NaN either
        raise ValueError(
            f"the trajectory must be in cycles per field of view, within {height / 2:g} and {width / 2:g} of zero "
            f"frequency; it reaches {np.abs(k).max(0)}: multiply one in [-pi, pi] by (H, W) / (2 pi)"
        )
    coils = np.ones((1, height, width), np.complex64) if maps is None else check_maps(maps, shape)
    rows = phases(k[:, 0] / height, np.arange(height) - height // 2)
    columns = phases(k[:, 1] / width, np.arange(width) - width // 2)
    return NonCartesianMRI(jnp.asarray(coils), jnp.asarray(rows), jnp.asarray(columns), shape)


def radial_mri(
    shape: ImageShape, *, num_spokes: int, num_samples: int | None = None, maps: ArrayLike | None = None
) -> NonCartesianMRI:
    """Build radial magnetic resonance imaging with golden angles.

    Args:
        shape: (H, W, 2): the real and the imaginary part of a complex image are its channels.
        num_spokes: diameters through zero frequency, see `radial_trajectory`.
        num_samples: on each; None takes the longer side of the image.
        maps: as in `mri`.

    Returns:
        Operator as from `noncartesian_mri`, spoke by spoke.

    Raises:
        ValueError: as in `radial_trajectory` and `noncartesian_mri`.
    """
    trajectory = radial_trajectory(shape, num_spokes=num_spokes, num_samples=num_samples)
    return noncartesian_mri(shape, trajectory=trajectory, maps=maps)
