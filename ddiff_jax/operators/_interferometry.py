"""Radio interferometry: every pair of telescopes measures one Fourier coefficient of the sky, a visibility."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Complex
from numpy.typing import ArrayLike

from ddiff_jax.operators._affine import Affine
from ddiff_jax.operators._separable_dft import phases, separable_dft
from ddiff_jax.operators.base import LinearOperator, check_shape
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement, Scalar

Pulse = Literal["triangle", "rectangle", "delta"]
POWERS: dict[str, int] = {"triangle": 2, "rectangle": 1, "delta": 0}  # of sinc(f p), what a pixel's shape multiplies by


@pytree_dataclass
class Visibilities(LinearOperator):
    """y[m] = sum over r and c of rows[m, r] x[r, c] columns[m, c]: Fourier coefficients at any frequencies, exactly.

    Args:
        rows: phases of the rows for every baseline, with all constant factors.
        columns: phases of the columns.
        image_shape: (H, W, 1) of the input.
    """

    rows: Complex[Array, "M H"]
    columns: Complex[Array, "M W"]
    image_shape: ImageShape = static_field()

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, 1] to [M], complex."""
        return separable_dft(x[..., 0], self.rows, self.columns)


def interferometry(
    shape: ImageShape,
    *,
    u: ArrayLike | Array,
    v: ArrayLike | Array,
    pixel: Scalar,
    pulse: Pulse = "triangle",
    scale: Scalar = 1.0,
) -> Affine:
    """Build the visibilities of a brightness distribution at given baselines.

    The sky is I = scale (x + 1) / 2 of the image x: black, -1, is empty and white, 1, has the flux `scale` in a pixel.
    Row 0 is north and column 0 is east, as one sees the sky. With pixel centres east = ((W - 1) / 2 - c) pixel and
    north = ((H - 1) / 2 - r) pixel,

        V(u, v) = P(u) P(v) sum over r and c of I[r, c] exp(+2 pi i (u east + v north)),

    where P(f) = sinc(f pixel)^k, sinc(a) = sin(pi a) / (pi a), is the transform of a pixel's shape. So V(0, 0) is the
    total flux, and V(-u, -v) the conjugate of V(u, v).

    The phases are computed in double precision on the host. Where u, v, pixel or scale are traced, by `jax.jit` or
    `jax.grad`, JAX computes them in their type, and derivatives with respect to them are exact; in float32 visibilities
    are then known to some 1e-5 only.

    Args:
        shape: image shape (H, W, 1).
        u: [M], eastward baselines in wavelengths.
        v: [M], northward baselines in wavelengths.
        pixel: side of a pixel, in radian (a micro-arcsecond is 4.848e-12).
        pulse: shape of a pixel: "triangle" (bilinear interpolation, k = 2), "rectangle" (k = 1) or "delta" (k = 0).
        scale: flux of a white pixel, in the units of the visibilities, such as Jy.

    Returns:
        Operator; input [H, W, 1] in [-1, 1], complex measurement [M]. It is affine: `linear` is the part that is
        linear in x, `offset` the visibilities of x = 0. Noise of standard deviation sigma_y, a number or one per
        baseline [M], goes on the real and on the imaginary part.

    Raises:
        ValueError: more than one channel, u and v are not two rows of finite numbers of one length, or pixel or scale
            is not positive and finite.

    Source: the convention of ehtim (Chael et al. 2018), whose default is the triangle, and of the black-hole problem of
    InverseBench, whose scale is the largest pixel of a reference image.
    Differs: no grid and no matrix [M, H W]; the transform is separable, so two tables [M, H] and [M, W] hold it all.
    """
    height, width, channels = shape = check_shape(shape)
    if channels != 1:
        raise ValueError(
            f"an interferometer sees one brightness per pixel: the image shape must be (H, W, 1); got {shape}. Give "
            "every frequency or polarisation an operator of its own"
        )
    if pulse not in POWERS:
        raise ValueError(f"pulse, the shape of a pixel, must be one of {', '.join(POWERS)}; got {pulse!r}")
    traced = any(isinstance(value, Tracer) for value in (u, v, pixel, scale))
    east, north = _baselines(u, v, traced)
    for name, value in {"pixel": pixel, "scale": scale}.items():
        if not isinstance(value, Tracer) and not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite; got {value}")
    table = _traced_table if traced else _table
    power = POWERS[pulse]
    rows, columns = table(north * pixel, height, power, scale / 2), table(east * pixel, width, power, 1.0)
    rows, columns, offset = (jnp.asarray(a, complex) for a in (rows, columns, rows.sum(1) * columns.sum(1)))
    return Affine(Visibilities(rows, columns, shape), offset)


def _baselines(u: Any, v: Any, traced: bool) -> tuple[Any, Any]:
    """Return both coordinates as rows of one length, on the host in float64 unless they are traced."""
    if traced:
        u, v = jnp.asarray(u), jnp.asarray(v)
    else:
        u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
    if u.ndim != 1 or u.shape != v.shape or u.size == 0:
        raise ValueError(
            f"u and v must be two rows of one length, one number per baseline; got shapes {u.shape} and {v.shape}"
        )
    if not traced and not (np.all(np.isfinite(u)) and np.all(np.isfinite(v))):
        raise ValueError("u and v must be finite; leave flagged baselines out, with their visibilities")
    return u, v


def _places(side: int) -> np.ndarray:
    """List where pixels are, from the middle of the image, in pixels: north or east first."""
    return (side - 1) / 2 - np.arange(side)


def _table(turns: np.ndarray, side: int, power: int, factor: Any) -> np.ndarray:
    """Tabulate factor sinc(turns)^power exp(2 pi i turns place)."""
    return factor * np.sinc(turns)[:, None] ** power * phases(turns, _places(side), sign=1)


def _traced_table(turns: Array, side: int, power: int, factor: Scalar) -> Array:
    """Do the same in the type of the argument, with derivatives."""
    angles = turns[:, None] * jnp.asarray(_places(side)[None], turns.dtype)
    angles = 2 * np.pi * (angles - jnp.round(angles))  # whole turns change nothing and cost digits
    size = factor * jnp.sinc(turns)[:, None] ** power
    return jax.lax.complex(size * jnp.cos(angles), size * jnp.sin(angles))
