"""Phase retrieval: only the amplitude of the Fourier transform is measured."""

import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from ddiff_jax.operators.base import check_shape
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement

RANGES = ((-1, 1), (0, 1))


@pytree_dataclass
class PhaseRetrieval:
    """y = |F(P x)| per channel: P pads with zeros on all sides, F is orthonormal, zero frequency in the middle.

    Args:
        pads: rows above and below, columns left and right.
        image_range: (-1, 1) transforms x as it is: grey (0) is what surrounds the image, and x and -x measure the
            same. (0, 1) transforms (x + 1) / 2: the surround is black, and the sign is determined.
        image_shape: (H, W, C) of the input.
    """

    pads: tuple[int, int] = static_field()
    image_range: tuple[int, int] = static_field()
    image_shape: ImageShape = static_field()

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, C] to [H + 2 pad, W + 2 pad, C], real."""
        if self.image_range == (0, 1):
            x = (x + 1) / 2
        rows, cols = self.pads
        padded = jnp.pad(x, ((rows, rows), (cols, cols), (0, 0)))
        # Where the padded image has its origin only changes the phase, so no shift is needed before the transform. The
        # image is real: the other half of the columns holds the same amplitudes at the opposite frequencies.
        half = _amplitude(jnp.fft.rfft2(padded, axes=(0, 1), norm="ortho"))
        others = half[:, 1 : (padded.shape[1] + 1) // 2]
        opposite = jnp.roll(others[::-1, ::-1], 1, axis=0)
        return jnp.fft.fftshift(jnp.concatenate([half, opposite], axis=1), axes=(0, 1))

    def equivalents(self, x: Image) -> Float[Array, "E H W C"]:
        """List images that measure the same: x, x turned by 180 degrees, and the negatives where the sign is open."""
        turned = x[::-1, ::-1]
        return jnp.stack([x, turned] if self.image_range == (0, 1) else [x, turned, -x, -turned])


def _amplitude(z: Complex[Array, "H w C"]) -> Float[Array, "H w C"]:
    """Compute |z| with the derivative 0 at z = 0; XLA's own guards against overflow and takes twice the time."""
    power = jnp.real(z) ** 2 + jnp.imag(z) ** 2
    is_positive = power > 0
    return jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, power, 1)), 0)


def phase_retrieval(
    shape: ImageShape, *, oversample: float = 2.0, image_range: tuple[int, int] = (-1, 1)
) -> PhaseRetrieval:
    """Build phase retrieval from Fourier amplitudes.

    Args:
        shape: image shape (H, W, C).
        oversample: int(oversample / 8 * side) zeros are added on both ends of every side, so that the published 2.0
            makes each side 1.5 times as long.
        image_range: (-1, 1) as in DDiff, DPS, RED-diff and InverseBench, or (0, 1) as in DAPS. The image itself is in
            [-1, 1] in both cases; with (0, 1) the same sigma_y is twice the noise in units of the image.

    Returns:
        Operator; input [H, W, C] in [-1, 1], measurement [H + 2 pad, W + 2 pad, C], at least 0 without noise.

    Raises:
        ValueError: oversample is negative or not finite, or the range is another one.

    Source: `PhaseRetrievalOperator` in guided_diffusion/measurements.py of DPS, `forward` in ddiff_sample.py of DDiff;
    `PhaseRetrieval` in forward_operator/__init__.py of DAPS for (0, 1).
    """
    height, width, _ = shape = check_shape(shape)
    if not 0 <= oversample < float("inf"):
        raise ValueError(f"oversample must be at least 0 and finite; got {oversample}")
    if tuple(image_range) not in RANGES:
        raise ValueError(f"the range of the transformed image must be (-1, 1) or (0, 1); got {image_range}")
    low, high = map(int, image_range)
    return PhaseRetrieval((int(oversample / 8 * height), int(oversample / 8 * width)), (low, high), shape)
