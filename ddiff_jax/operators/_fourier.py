"""Undersampled Fourier measurements, as in magnetic resonance imaging with a single coil."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from ddiff_jax.operators.base import DecomposableOperator, Decomposition, check_mask, check_shape
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement, PRNGKey


@pytree_dataclass
class Fourier(DecomposableOperator):
    """y = mask * F x per channel, complex; F is orthonormal, with the centre of image and spectrum at [H//2, W//2].

    Args:
        mask: 1 where a frequency is sampled, 0 where it is not, or other weights; zero frequency at [H//2, W//2].
        image_shape: (H, W, C) of the input.
    """

    mask: Float[Array, "H W c"]
    image_shape: ImageShape = static_field()

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, C] to [H, W, C], complex; frequencies that are not sampled measure 0."""
        axes = (0, 1)
        spectrum = jnp.fft.fftshift(jnp.fft.fft2(jnp.fft.ifftshift(x, axes), axes=axes, norm="ortho"), axes)
        return self.mask.astype(spectrum.dtype) * spectrum

    def observed(self) -> Bool[Array, "H W c"]:
        """Tell which frequencies are sampled."""
        return self.mask > 0

    def weighted(self, root: Float[Array, "H W C"]) -> "Fourier":
        """Weight the frequencies, by channels too."""
        return Fourier(self.mask.astype(root.dtype) * root, self.image_shape)

    def svd(self) -> Decomposition:
        """Decompose over real images, whose singular vectors are those of the Hartley transform.

        A real image has opposite frequencies conjugate: a pair that is sampled on both sides is measured twice. So
        the squared singular values are the mean of the squared mask and its mirror image: 0, 1/2 or 1 without weights.
        """
        power = (self.mask**2 + _opposite(self.mask) ** 2) / 2
        is_seen = power > 0
        s = jnp.where(is_seen, jnp.sqrt(jnp.where(is_seen, power, 1.0)), 0.0)
        inverse = jnp.where(is_seen, 1 / jnp.where(is_seen, s, 1.0), 0.0)

        def from_measurement(y: Measurement) -> Array:
            # U^T y = V^T A^H y / s, with the division by s kept harmless where it is 0.
            spectrum = self.mask.astype(y.dtype) * y
            symmetric = (spectrum + jnp.conj(_opposite(spectrum))) / 2
            return inverse.astype(symmetric.real.dtype) * (symmetric.real - symmetric.imag)

        return Decomposition(s, from_image=_hartley, to_image=_hartley, from_measurement=from_measurement)


def _opposite(spectrum: Array) -> Array:
    """Put at every frequency what stood at the opposite one; zero frequency is at [H//2, W//2]."""
    height, width = spectrum.shape[:2]
    return jnp.roll(spectrum[::-1, ::-1], (1 - height % 2, 1 - width % 2), (0, 1))


def _hartley(x: Array) -> Array:
    """Apply the orthonormal Hartley transform, which is its own inverse, with both centres at [H//2, W//2]."""
    axes = (0, 1)
    spectrum = jnp.fft.fftshift(jnp.fft.fft2(jnp.fft.ifftshift(x, axes), axes=axes, norm="ortho"), axes)
    return spectrum.real - spectrum.imag


def fourier(shape: ImageShape, mask: ArrayLike) -> Fourier:
    """Build Fourier measurements on a given sampling pattern.

    Args:
        shape: image shape (H, W, C); every channel is measured on its own.
        mask: [H, W] or [H, W, 1], boolean or numbers 0 and 1; true or 1 where a frequency is sampled. Zero frequency
            is in the middle, at [H//2, W//2] (as `numpy.fft.fftshift` puts it).

    Returns:
        Operator; input [H, W, C] in [-1, 1], complex measurement [H, W, C]. Noise of standard deviation sigma_y goes
        on the real and on the imaginary part.

    Raises:
        ValueError: the mask has another shape, other values than 0 and 1, or is all 0.

    Source: the convention of fastMRI (Zbontar et al. 2018), `fft2c`.
    """
    shape = check_shape(shape)
    values = check_mask(mask, shape, "sampling mask")
    return Fourier(jnp.asarray(values), shape)


def undersampled_fourier(
    shape: ImageShape, key: PRNGKey, *, acceleration: float = 4.0, centre_fraction: float = 0.08
) -> Fourier:
    """Build Fourier measurements on random columns: Cartesian sampling, phase encoding along the width.

    Args:
        shape: image shape (H, W, C).
        key: draws the columns; the same key gives the same columns on every device.
        acceleration: round(W / acceleration) of the W columns are sampled.
        centre_fraction: round(W * centre_fraction) of them are the lowest frequencies.

    Returns:
        Operator as from `fourier`.

    Raises:
        ValueError: acceleration is below 1, centre_fraction outside [0, 1], more columns in the centre than are
            sampled in all, or none sampled.

    Source: fastMRI (Zbontar et al. 2018): acceleration 4 with centre fraction 0.08, 8 with 0.04.
    Differs: fastMRI keeps each outer column with a fixed probability, so that only the expected number is given.
    """
    height, width, _ = shape = check_shape(shape)
    if not 1 <= acceleration < float("inf") or not 0 <= centre_fraction <= 1:
        raise ValueError(
            f"acceleration must be at least 1 and centre_fraction in [0, 1]; got {acceleration} and {centre_fraction}"
        )
    num_lines, num_centre = round(width / acceleration), round(width * centre_fraction)
    if not max(num_centre, 1) <= num_lines:
        raise ValueError(
            f"acceleration {acceleration} samples {num_lines} of {width} columns, centre_fraction {centre_fraction} "
            f"wants {num_centre} in the centre; lower one of the two"
        )
    first = (width - num_centre + 1) // 2
    centre = np.arange(first, first + num_centre)
    outside = jax.random.permutation(key, np.delete(np.arange(width), centre))[: num_lines - num_centre]
    sampled = jnp.zeros(width, jnp.float32).at[centre].set(1).at[outside].set(1)
    return Fourier(jnp.broadcast_to(sampled[None, :, None], (height, width, 1)), shape)
