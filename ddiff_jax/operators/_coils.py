"""Receiver coils of magnetic resonance imaging: their maps, their noise, and images that need no prior."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float
from numpy.typing import ArrayLike

from ddiff_jax.operators.base import LinearOperator
from ddiff_jax.types import Image, ImageShape, Measurement


def from_channels(x: Float[Array, "... 2"]) -> Complex[Array, "..."]:
    """Make a complex image of two channels, its real and its imaginary part."""
    return jax.lax.complex(x[..., 0], x[..., 1])


def to_channels(z: Complex[Array, "..."]) -> Float[Array, "... 2"]:
    """Lay the real and the imaginary part of a complex image side by side, as channels."""
    return jnp.stack([jnp.real(z), jnp.imag(z)], -1)


def birdcage_maps(shape: ImageShape, num_coils: int, *, radius: float = 1.5) -> Complex[np.ndarray, "N H W"]:
    """Make the maps of coils on a ring around the image; their squares add up to 1 at every pixel.

    Args:
        shape: image shape; height and width count.
        num_coils: N, evenly spaced on the ring.
        radius: of the ring, in halves of the image's sides; above sqrt(2) no coil stands on a pixel.

    Raises:
        ValueError: num_coils is no whole number above 0, or radius not a positive number.

    Source: `birdcage_maps` of sigpy (Ong and Lustig 2019), with coils in one ring.
    """
    if int(num_coils) != num_coils or num_coils < 1 or not 0 < radius < math.inf:
        raise ValueError(f"num_coils must be a whole number above 0 and radius positive; got {num_coils} and {radius}")
    height, width = shape[:2]
    angle = 2 * np.pi * np.arange(num_coils)[:, None, None] / num_coils
    across = (np.arange(width) - width / 2) / (width / 2) - radius * np.cos(angle)
    down = (np.arange(height)[:, None] - height / 2) / (height / 2) - radius * np.sin(angle)
    maps = np.exp(1j * (np.arctan2(across, -down) - angle)) / np.maximum(np.hypot(across, down), 1e-9)
    return normalised(maps)


def normalised(maps: Complex[np.ndarray, "N H W"]) -> Complex[np.ndarray, "N H W"]:
    """Divide coil maps by the root of their sum of squares, where it is not 0."""
    power = np.sqrt(np.sum(np.abs(maps) ** 2, 0))
    return maps / np.where(power > 0, power, 1)


def check_maps(maps: ArrayLike, shape: ImageShape) -> Complex[np.ndarray, "N H W"]:
    """Return coil maps for images of this shape as an array.

    Raises:
        ValueError: they are not complex, of another shape, not finite, or all 0.
    """
    values, size = np.asarray(maps), tuple(shape[:2])
    if values.ndim != 3 or values.shape[1:] != size or not len(values):
        raise ValueError(
            f"the coil maps must have the shape (coils, {size[0]}, {size[1]}), coils first; got {values.shape}: one "
            "coil is maps[None], coils last are np.moveaxis(maps, -1, 0)"
        )
    if not np.iscomplexobj(values):
        raise ValueError(
            f"the coil maps must be complex, their phase counts; got {values.dtype}: real and imaginary part in two "
            "arrays are real + 1j * imaginary, real maps maps.astype(complex)"
        )
    if not np.isfinite(values).all() or not values.any():
        raise ValueError("the coil maps must be finite, and not all 0; put 0 where a coil sees nothing")
    return values


def noise_covariance(noise: ArrayLike) -> Complex[np.ndarray, "N N"]:
    """Estimate how the noise of the coils correlates, Psi = E[n n^H], from a scan without signal.

    Args:
        noise: [N, ...], coils first; complex. N is far below the number of samples.

    Raises:
        ValueError: fewer samples than coils, with which Psi is singular.
    """
    samples = np.asarray(noise)
    samples = samples.reshape(len(samples), -1).astype(np.complex128)
    if samples.shape[1] < len(samples):
        raise ValueError(
            f"the noise of {len(samples)} coils needs as many samples at least, and far more to be known well; got "
            f"{samples.shape[1]} in shape {np.shape(noise)}: coils come first"
        )
    return samples @ samples.conj().T / samples.shape[1]


def prewhiten(y: ArrayLike, maps: ArrayLike, covariance: ArrayLike) -> tuple[Measurement, Complex[Array, "N H W"]]:
    """Mix the coils so that their noise is independent, with standard deviation 1 in real and imaginary part each.

    With Psi = L L^H both are multiplied by sqrt(2) L^-1: y = M F(s x) stays true, with sigma_y = 1. Build the operator
    with these maps as they are, not normalised.

    Args:
        y: [N, ...], coils first.
        maps: s, [N, H, W].
        covariance: Psi = E[n n^H] of the complex noise n, [N, N], Hermitian, as from `noise_covariance`. Noise of
            standard deviation sigma in real and imaginary part that does not correlate has 2 sigma^2 on the diagonal.

    Returns:
        y and maps, mixed.

    Raises:
        ValueError: the numbers of coils differ, or Psi is not Hermitian and positive definite.

    Source: Pruessmann et al. 2001, "Advances in sensitivity encoding with arbitrary k-space trajectories".
    """
    psi, coils, y = np.asarray(covariance, np.complex128), np.asarray(maps), jnp.asarray(y)
    if psi.shape != (len(coils),) * 2 or y.shape[:1] != coils.shape[:1]:
        raise ValueError(
            f"the covariance of N coils has shape (N, N), y and maps have the coils first; got {psi.shape}, {y.shape} "
            f"and {coils.shape}"
        )
    if not np.allclose(psi, psi.conj().T, rtol=1e-5, atol=1e-5 * np.abs(psi).max(initial=0)):
        raise ValueError("the covariance must be Hermitian, E[n n^H]: it is not equal to its conjugate transpose")
    try:
        mixing = math.sqrt(2) * np.linalg.inv(np.linalg.cholesky(psi))
    except np.linalg.LinAlgError as error:
        raise ValueError(
            "the covariance must be positive definite: a coil without noise, or the sum of others, has to be left out"
        ) from error
    return _mixed(mixing, y), _mixed(mixing, jnp.asarray(coils, y.dtype))


def _mixed(mixing: np.ndarray, y: Array) -> Array:
    return jnp.tensordot(jnp.asarray(mixing, y.dtype), y, 1, precision=jax.lax.Precision.HIGHEST)


def zero_filled(operator: LinearOperator, y: Measurement) -> Image:
    """Put 0 where nothing was sampled and transform back: A^H y, complex in two channels.

    Args:
        operator: of the scan.
        y: its k-space.
    """
    return operator.adjoint(y)


def mvue(operator: LinearOperator, y: Measurement) -> Image:
    """Combine the coils' images with the least variance: A^H y / sqrt(sum_c |s_c|^2), 0 where no coil sees anything.

    For maps whose squares add up to 1 it is `zero_filled`.

    Args:
        operator: as from `mri` or `noncartesian_mri`.
        y: its measurement, [N, ...].
    """
    power = jnp.sqrt(jnp.sum(jnp.abs(operator.maps) ** 2, 0))[..., None]  # pyright: ignore[reportAttributeAccessIssue]
    is_seen = power > 0
    x = operator.adjoint(y)
    return jnp.where(is_seen, x / jnp.where(is_seen, power, 1.0).astype(x.dtype), 0.0)


def mvue_scale(operator: LinearOperator, y: Measurement, *, quantile: float = 0.99) -> Float[Array, ""]:
    """Find a unit for raw data, which come in any: a quantile of the magnitudes of `mvue`.

    y and sigma_y divided by it belong to an image of magnitudes of about 1, as priors expect; 1% of the pixels lie
    above, so that a prior for such images must not clip. Multiply the result by it.

    Args:
        operator: as from `mri` or `noncartesian_mri`.
        y: its measurement.
        quantile: share of the pixels below the unit.

    Source: InverseBench (Zheng et al. 2025), where it is taken from fully sampled data, as here where y is.
    """
    return jnp.quantile(jnp.abs(from_channels(mvue(operator, y))), quantile)
