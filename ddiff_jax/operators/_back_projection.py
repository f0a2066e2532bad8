"""Filtered back-projection: what tomography makes of complete data without any prior."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ddiff_jax.operators.base import LinearOperator
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.types import Image, ImageShape, Measurement, Scalar


@pytree_dataclass
class Rays:
    """A scan in pixels.

    Args:
        angles: in radian.
        spacing: of the detector's cells, as far apart as their rays are at the centre.
        nearness: 1 / distance of the source from the centre; 0 for parallel rays.
    """

    angles: Float[Array, " T"]
    spacing: Float[Array, ""]
    nearness: Float[Array, ""]


class Scan(LinearOperator):
    """Base of the operators that measure line integrals, [H, W, C] to [T, D, C], divided by the longer side.

    `angles`, in degrees, has T rows that cover `period` degrees.
    """

    angles: Float[Array, " T"]
    image_shape: ImageShape
    period: float

    def rays(self, dtype: jnp.dtype) -> Rays:
        """Tell how the rays lie."""
        raise NotImplementedError

    def check_angles(self) -> None:
        """Refuse angles that filtered back-projection cannot take, where they are known.

        Raises:
            ValueError: they do not cover the period evenly, each as often as all others.
        """
        if isinstance(self.angles, jax.Array | np.ndarray) and not isinstance(self.angles, Tracer):
            _check_even(np.asarray(self.angles, np.float64), self.period)

    def filtered_back_projection(self, y: Measurement, *, outside: Scalar | None = None) -> Image:
        """Reconstruct an image by filtering its projections with a ramp and smearing them back along their rays.

        The classical inverse of complete, clean data: many angles, evenly spaced over the circle (half of it will do
        for parallel rays), and a detector that sees the whole object. Few angles leave streaks, and the ramp amplifies
        noise.

        Args:
            y: measurement [T, D, C].
            outside: what surrounds the image, in its units; -1 where that is air and the image is in Hounsfield units.
                The image's own edge is then no jump for the filter. None is 0, as for `forward`.

        Returns:
            Image [H, W, C]; linear in y, but for `outside`.

        Raises:
            ValueError: y has another shape than the operator measures, or the angles are not evenly spaced.

        Source: Kak and Slaney, "Principles of Computerized Tomographic Imaging", 1988, sections 3.3 and 3.4.2.
        """
        ones = jnp.ones(self.image_shape, y.dtype)
        if y.shape != (made := jax.eval_shape(self.forward, ones).shape):
            raise ValueError(
                f"y must be one measurement of the operator, {made}; got shape {y.shape}: vmap over a batch"
            )
        self.check_angles()
        if outside is None:
            return _back_projected(self.rays(y.dtype), y, self.image_shape)
        background = jnp.asarray(outside, y.dtype)
        return _back_projected(self.rays(y.dtype), y - background * self.forward(ones), self.image_shape) + background


def _back_projected(rays: Rays, y: Measurement, image_shape: ImageShape) -> Image:
    height, width, channels = image_shape
    count, num_detectors, _ = y.shape
    s = (jnp.arange(num_detectors, dtype=y.dtype) - (num_detectors - 1) / 2) * rays.spacing
    weighted = y * (max(height, width) / jnp.sqrt(1 + (s * rays.nearness) ** 2))[None, :, None]
    ramp = jnp.asarray(_ramp(num_detectors), y.dtype) / rays.spacing
    filtered = jnp.einsum("de,tec->tdc", ramp, weighted, precision=jax.lax.Precision.HIGHEST)
    right = (jnp.arange(width, dtype=y.dtype) - (width - 1) / 2)[None]
    down = (jnp.arange(height, dtype=y.dtype) - (height - 1) / 2)[:, None]

    def smear(total: Image, one: tuple[Array, Array]) -> tuple[Image, None]:
        theta, projection = one
        cos, sin = jnp.cos(theta), jnp.sin(theta)
        nearer = 1 + rays.nearness * (right * sin - down * cos)  # than the centre is to the source, or farther
        place = (right * cos + down * sin) / (nearer * rays.spacing) + (num_detectors - 1) / 2
        # Cells of 0 beyond either end; farther out the same is read there.
        padded = jnp.pad(projection, ((1, 2), (0, 0)))
        place = jnp.clip(place, -1, num_detectors)
        before = jnp.floor(place)
        share = (place - before)[..., None]
        first = before.astype(jnp.int32) + 1
        return total + ((1 - share) * padded[first] + share * padded[first + 1]) / nearer[..., None] ** 2, None

    total, _ = jax.lax.scan(smear, jnp.zeros_like(y, shape=(height, width, channels)), (rays.angles, filtered))
    return total * (np.pi / count)


def _check_even(angles: np.ndarray, period: float) -> None:
    turns = np.sort(np.mod(np.round(angles, 3), period))
    distinct, times = np.unique(turns, return_counts=True)
    gaps = np.diff(np.append(distinct, distinct[0] + period))
    # Angles in float32 have 1e-5 degrees; a hundredth of a step is too little to see.
    if np.ptp(gaps) > max(0.01 * gaps.mean(), 0.003) or np.ptp(times) > 0:
        raise ValueError(
            f"filtered back-projection needs angles evenly spaced over {period:g} degrees; their steps are between "
            f"{gaps.min():.4g} and {gaps.max():.4g}: take the operator's pseudo_inverse or prox, or the solver Tikhonov"
        )


def _ramp(num_detectors: int) -> np.ndarray:
    """Tabulate the convolution with the ramp filter, times the spacing: band-limited, sampled where it is exact."""
    lag = np.abs(np.subtract.outer(np.arange(num_detectors), np.arange(num_detectors)))
    odd = lag % 2 == 1
    return np.where(odd, -1 / (np.pi * np.where(odd, lag, 1)) ** 2, np.where(lag == 0, 0.25, 0.0))
