"""Operators that act on rows and columns one after the other: super-resolution and Gaussian blur."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.operators.base import DecomposableOperator, Decomposition, check_shape
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement


@pytree_dataclass
class Svd:
    """A thin singular value decomposition, matrix = u diag(s) v^T."""

    u: Float[Array, "m r"]
    s: Float[Array, " r"]
    v: Float[Array, "n r"]


def _svd(matrix: np.ndarray) -> Svd:
    u, s, v_transposed = np.linalg.svd(matrix, full_matrices=False)
    return Svd(*(jnp.asarray(part) for part in (u, s, v_transposed.T)))


def _sandwich(rows: Array, x: Array, cols: Array) -> Array:
    """Compute rows x cols^T in every channel, in the type of x."""
    # The backend's default for float32 products may be TF32 or bfloat16: right for a network, wrong for physics.
    return jnp.einsum(
        "ab,bdc,ed->aec", rows.astype(x.dtype), x, cols.astype(x.dtype), precision=jax.lax.Precision.HIGHEST
    )


@pytree_dataclass
class Separable(DecomposableOperator):
    """A X = R X C^T in every channel, with small dense factors R and C.

    A is a Kronecker product: its singular vectors are products of those of R and C, its singular values all the
    products s_i t_j. So least squares with A are exact and cost four small matrix products. The factors and their
    decompositions are separate arrays: to learn a kernel, take `Blur`, where one array is all there is.

    Args:
        row_factor: R, acts along the height.
        col_factor: C, acts along the width.
        row_svd: decomposition of R.
        col_svd: decomposition of C.
        image_shape: (H, W, C) of the input.
    """

    row_factor: Float[Array, "h H"]
    col_factor: Float[Array, "w W"]
    row_svd: Svd
    col_svd: Svd
    image_shape: ImageShape = static_field()
    measures_picture: ClassVar[bool] = True

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, C] to [h, w, C]."""
        return _sandwich(self.row_factor, x, self.col_factor)

    def singular_values(self) -> Float[Array, "r q"]:
        """List the singular values s_i t_j of A; every channel has the same."""
        return self.row_svd.s[:, None] * self.col_svd.s[None, :]

    def svd(self) -> Decomposition:
        """Decompose by decomposing the factors."""
        rows, cols = self.row_svd, self.col_svd
        return Decomposition(
            s=self.singular_values()[..., None],
            from_image=lambda x: _sandwich(rows.v.T, x, cols.v.T),
            to_image=lambda c: _sandwich(rows.v, c, cols.v),
            from_measurement=lambda y: _sandwich(rows.u.T, y, cols.u.T),
        )


def _separable(rows: np.ndarray, cols: np.ndarray, shape: ImageShape) -> Separable:
    return Separable(jnp.asarray(rows), jnp.asarray(cols), _svd(rows), _svd(cols), shape)


def _bicubic(d: np.ndarray) -> np.ndarray:
    """Evaluate Keys' cubic kernel with a = -1/2."""
    d = np.abs(d)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d <= 1, near, np.where(d <= 2, far, 0.0))


def _downsampling_factor(size: int, factor: int) -> np.ndarray:
    """Build the [size / factor, size] matrix of antialiased bicubic downsampling."""
    # Widening the kernel by the factor is the antialiasing: support 4 * factor input pixels.
    offsets = np.arange(-2 * factor, 2 * factor) + (factor + 1) // 2
    out = np.arange(size // factor)
    centres = (out + 0.5) * factor - 0.5
    taps_at = factor * out[:, None] + offsets[None, :]
    weights = _bicubic((taps_at - centres[:, None]) / factor)
    weights /= weights.sum(axis=1, keepdims=True)
    # Half-sample symmetric border: the edge pixel is repeated, with period 2 * size.
    wrapped = taps_at % (2 * size)
    source = np.where(wrapped < size, wrapped, 2 * size - 1 - wrapped)
    matrix = np.zeros((size // factor, size))
    np.add.at(matrix, (out[:, None], source), weights)
    return matrix


def super_resolution(shape: ImageShape, *, factor: int) -> Separable:
    """Build antialiased bicubic downsampling by an integer factor.

    Args:
        shape: image shape (H, W, C).
        factor: how many input pixels make one output pixel, per axis.

    Returns:
        Operator; input [H, W, C] in [-1, 1], measurement [H / factor, W / factor, C].

    Raises:
        ValueError: the factor is not an integer above 0 or does not divide the height and the width.

    Source: `Resizer` in util/resizer.py of DPS, which DAPS and DDiff share: the kernel of Keys, "Cubic convolution
    interpolation for digital image processing" (1981), with a = -1/2, widened by the factor; mirrored border. Note that
    a plain mean of factor x factor pixels (DDRM, RED-diff) is another operator.
    """
    height, width, _ = shape = check_shape(shape)
    if int(factor) != factor or factor < 1:
        raise ValueError(f"the super-resolution factor must be a whole number above 0; got {factor}")
    if height % factor or width % factor:
        raise ValueError(
            f"factor {factor} does not divide the image size {height}x{width}; "
            "crop the image or choose a factor that divides both sides"
        )
    rows, cols = (_downsampling_factor(n, int(factor)) for n in (height, width))
    return _separable(rows, cols, shape)


def _blur_factor(length: int, taps: np.ndarray) -> np.ndarray:
    """Build the [length, length] matrix of a 1-D correlation with reflection padding (edge not repeated)."""
    radius = len(taps) // 2
    padded = np.pad(np.eye(length), ((radius, radius), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(taps), axis=0)
    return windows @ taps


def gaussian_blur(shape: ImageShape, *, size: int, std: float) -> Separable:
    """Build a Gaussian blur with reflection padding.

    Args:
        shape: image shape (H, W, C).
        size: side of the kernel in pixels, odd. Taps further than 4 standard deviations (rounded) are zero, as
            in scipy's filter: the published 61x61 kernel of std 3 has a support of 25x25.
        std: standard deviation in pixels.

    Returns:
        Operator; input and measurement [H, W, C] in [-1, 1].

    Raises:
        ValueError: size is even or below 1, std is not positive, or the kernel reaches past the mirrored image.

    Source: `Blurkernel` in util/img_utils.py of DPS, which DAPS and DDiff share, with size 61 and std 3.
    """
    height, width, _ = shape = check_shape(shape)
    if int(size) != size or size < 1 or size % 2 == 0:
        raise ValueError(f"the kernel size must be an odd whole number of pixels; got {size}")
    if not std > 0:
        raise ValueError(f"the standard deviation of the blur must be positive (in pixels); got {std}")
    offsets = np.arange(size) - size // 2
    taps = np.where(np.abs(offsets) <= int(4 * std + 0.5), np.exp(-0.5 * (offsets / std) ** 2), 0.0)
    check_reflection(int(size) // 2, (height, width))
    taps /= taps.sum()
    rows, cols = (_blur_factor(n, taps) for n in (height, width))
    return _separable(rows, cols, shape)


def check_reflection(radius: int, sides: tuple[int, int]) -> None:
    """Refuse a kernel that would reach past the mirrored image.

    Raises:
        ValueError: the radius is not smaller than both sides.
    """
    if radius >= min(sides):
        raise ValueError(
            f"a kernel of size {2 * radius + 1} needs an image of more than {radius} pixels per side for reflection "
            f"padding; got {sides[0]}x{sides[1]}: use a smaller kernel or a larger image"
        )
