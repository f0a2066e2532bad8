"""Nonlinear blur without weights: motion mixes light, the picture is light behind a camera's response curve."""

from typing import ClassVar

import jax.numpy as jnp

from ddiff_jax.operators._motion_blur import motion_blur
from ddiff_jax.operators.base import LinearOperator
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.types import Image, ImageShape, Measurement, PRNGKey

# The response curve of sRGB (IEC 61966-2-1): linear near black, an offset power law above. The standard rounds the
# place where they meet (0.0031308, slope 12.92); these are the values before rounding, for which curve and slope are
# continuous: the power law's tangent through the origin.
OFFSET, EXPONENT = 0.055, 2.4
KNEE = OFFSET / (EXPONENT - 1)  # in the picture, 0.0393
SLOPE = KNEE / ((KNEE + OFFSET) / (1 + OFFSET)) ** EXPONENT  # picture per light, 12.923


@pytree_dataclass
class CameraBlur:
    """y = response(B(response^-1(x))) with the response curve of sRGB and a blur B of linear light.

    Light below black (x < -1) and above white (x > 1) follows the same curves: mirrored about black, as in the
    extended-range variant of the standard (IEC 61966-2-2), and continued above white. The derivative is finite and
    positive everywhere.

    Args:
        blur: B, a `Blur` or any other linear operator from images to images; weights that sum to 1 keep black black
            and white white.
    """

    blur: LinearOperator
    measures_picture: ClassVar[bool] = True

    @property
    def image_shape(self) -> ImageShape:
        """(H, W, C) of the input."""
        return self.blur.image_shape

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, C] to the shape of the blur's measurement."""
        return 2 * from_light(self.blur.forward(to_light((x + 1) / 2))) - 1


def to_light(picture: Measurement) -> Measurement:
    """Invert the response curve: 0 is black, 1 is white on both sides."""
    size = jnp.abs(picture)
    power = _power((size + OFFSET) / (1 + OFFSET), EXPONENT)
    return jnp.where(size <= KNEE, picture / SLOPE, jnp.sign(picture) * power)


def from_light(light: Measurement) -> Measurement:
    """Apply the response curve: 0 is black, 1 is white on both sides."""
    size = jnp.abs(light)
    # The root has an infinite slope at 0, which would turn the zero cotangent of the branch not taken into NaN.
    root = _power(jnp.maximum(size, KNEE / SLOPE), 1 / EXPONENT)
    return jnp.where(size <= KNEE / SLOPE, SLOPE * light, jnp.sign(light) * ((1 + OFFSET) * root - OFFSET))


def _power(base: Measurement, exponent: float) -> Measurement:
    """Compute base^exponent for base > 0, several times as fast as XLA's own on a CPU, where it is not vectorised."""
    return jnp.exp(exponent * jnp.log(base))


def camera_blur(
    shape: ImageShape, key: PRNGKey | int, *, intensity: float = 0.5, size: int = 61, binning: int = 1
) -> CameraBlur:
    """Build a motion blur that happens in light, before the camera's response curve.

    A nonlinear deblurring task that needs no trained network. For another kernel write
    `CameraBlur(blur(shape, kernel=kernel))`.

    Args:
        shape: image shape (H, W, C).
        key: draws the motion, as in `motion_blur`.
        intensity: as in `motion_blur`.
        size: as in `motion_blur`.
        binning: as in `motion_blur`.

    Returns:
        Operator; input and measurement [H, W, C] in [-1, 1].

    Raises:
        ValueError: a parameter is out of range, or the kernel reaches past the mirrored image.
        TypeError: the key is traced.

    Source: the model of blur of Tai et al., "Nonlinear camera response functions and image deblurring" (PAMI 2013)
    and of the GoPro data set (Nah et al., CVPR 2017, eq. 2), with the standard curve of sRGB for the response.
    """
    return CameraBlur(motion_blur(shape, key, intensity=intensity, size=size, binning=binning))
