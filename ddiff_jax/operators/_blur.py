"""Blur with any kernel, through the fast Fourier transform."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from ddiff_jax.operators.base import LinearOperator, check_shape
from ddiff_jax.operators.separable import check_reflection
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement


@pytree_dataclass
class Blur(LinearOperator):
    """Cross-correlation of every channel with one kernel, reflection padding (edge pixel not repeated).

    Args:
        kernel: odd height and width; not flipped.
        image_shape: (H, W, C) of the input.
    """

    kernel: Float[Array, "kh kw"]
    image_shape: ImageShape = static_field()
    measures_picture: ClassVar[bool] = True

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, C] to [H, W, C]."""
        from scipy.fft import next_fast_len  # here, since it takes as long to import as all the rest of us

        height, width, _ = x.shape
        kernel_height, kernel_width = self.kernel.shape
        pads = (kernel_height // 2, kernel_width // 2)
        # Channels come first, since transforms run along the last axes.
        padded = jnp.pad(jnp.moveaxis(x, 2, 0), ((0, 0), (pads[0],) * 2, (pads[1],) * 2), mode="reflect")
        # The linear correlation at the H x W places that matter only needs a circular one of the padded size:
        # what wraps around lands outside of them. A direct 61x61 convolution would cost a hundred times more.
        size: Any = tuple(next_fast_len(side, real=True) for side in padded.shape[1:])
        kernel_spectrum = jnp.fft.rfft2(self.kernel.astype(x.dtype), size)
        product = jnp.fft.rfft2(padded, size) * jnp.conj(kernel_spectrum)[None]
        return jnp.moveaxis(jnp.fft.irfft2(product, size), 0, 2)[:height, :width]


def blur(shape: ImageShape, *, kernel: ArrayLike) -> Blur:
    """Build a blur with a given kernel.

    Args:
        shape: image shape (H, W, C).
        kernel: [kh, kw], both odd, real and finite. It is used as given: not flipped (cross-correlation, as in the
            published codes) and not normalised; a kernel that sums to 1 keeps the mean of the image.

    Returns:
        Operator; input and measurement [H, W, C].

    Raises:
        ValueError: the kernel is not a 2-D array of odd sides, holds values that are not finite, is all zero, or
            reaches past the mirrored image.

    Source: `Blurkernel` in util/img_utils.py of DPS, which DDiff shares: `ReflectionPad2d`, then a depthwise `Conv2d`.
    """
    height, width, _ = shape = check_shape(shape)
    values = np.asarray(kernel)
    if values.ndim != 2 or not all(side % 2 for side in values.shape):
        raise ValueError(
            f"a blur kernel must be a 2-D array with odd sides, so that it has a centre; got shape {values.shape}: "
            "pad it with a row or column of zeros, or average the channels of a colour picture"
        )
    if not np.isrealobj(values) or not np.all(np.isfinite(values)) or not np.any(values):
        raise ValueError("a blur kernel must hold real, finite numbers that are not all zero")
    check_reflection(max(values.shape) // 2, (height, width))
    return Blur(jnp.asarray(values, float), shape)
