"""Units of the data: one affine map between their numbers and [-1, 1], for images, measurements and noise levels."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from ddiff_jax.files import Notes, Unusable
from ddiff_jax.linearity import linearity_at_random
from ddiff_jax.noise import root_key
from ddiff_jax.operators import Operator
from ddiff_jax.ranges import OVERSHOOT
from ddiff_jax.types import ImageShape


@dataclasses.dataclass(frozen=True)
class Units:
    """v = centre + half x, for numbers v of the data and x in [-1, 1].

    It applies to arrays; pictures say by their levels what is black and white, which stand for `low` and `high`. Of
    complex images it maps real and imaginary part alike: give them -s and s. An operator acts on images in the
    data's units then, so that its measurements are y = A(v), and for A(x) = L x + c they are half (L x) + A(centre).

    Args:
        low: the number that is -1 here, black.
        high: the number that is 1 here, white.
        of_noise: whether the noise level was given in these units too, so that measurements must have them.

    Raises:
        ValueError: they are not finite, or not one below the other.
    """

    low: float
    high: float
    of_noise: bool = False

    def __post_init__(self):
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"--data-range takes the numbers that are black and white, the smaller one first; got {self.low:g} "
                f"{self.high:g}"
            )

    @property
    def half(self) -> float:
        """How much of the data's units is 1 here."""
        return (self.high - self.low) / 2

    @property
    def centre(self) -> float:
        """Which number of the data is 0 here."""
        return (self.high + self.low) / 2

    def of_image(self, path: Path, v: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Map a clean image into [-1, 1].

        Raises:
            Unusable: it leaves the range, so that every PSNR would be wrong.
        """
        x = ((v.astype(np.float64) - self.centre) / self.half).astype(np.float32)
        if np.max(np.abs(x), initial=0) > 1 + OVERSHOOT:
            raise Unusable(
                f"{path} holds values from {v.min():.6g} to {v.max():.6g}; --data-range {self.low:g} {self.high:g} "
                "does not hold them: widen it, or clip the image first"
            )
        return x

    def to_data(self, x: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Map an image into the data's units; what leaves [-1, 1] is not clipped."""
        return (x.astype(np.float64) * self.half + self.centre).astype(np.float32)

    def difference_to_data(self, d: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Map a difference of images, or their standard deviation, into the data's units."""
        return (d.astype(np.float64) * self.half).astype(np.float32)

    def sigma(self, given: float) -> float:
        """Map a noise level of measurements."""
        return given / self.half

    def of_measurement(self, operator: Operator, y: Shaped[np.ndarray, "..."], shape: ImageShape) -> np.ndarray:
        """Map a measurement: (y - A(centre)) / half + A(0).

        Args:
            operator: A, linear or affine.
            y: the measurement of an image in the data's units.
            shape: image shape.
        """
        of_centre, of_zero = self._ends(operator, shape)
        kind = np.complex64 if np.iscomplexobj(y) else np.float32
        return ((_wide(y) - of_centre) / self.half + of_zero).astype(kind)

    def measurement_to_data(self, operator: Operator, y: Shaped[np.ndarray, "..."], shape: ImageShape) -> np.ndarray:
        """Undo `of_measurement`."""
        of_centre, of_zero = self._ends(operator, shape)
        kind = np.complex64 if np.iscomplexobj(y) else np.float32
        return ((_wide(y) - of_zero) * self.half + of_centre).astype(kind)

    def _ends(self, operator: Operator, shape: ImageShape) -> tuple[np.ndarray, np.ndarray]:
        zero = jnp.zeros(shape, jnp.float32)
        of_zero = _wide(np.asarray(_forward(operator, zero)))
        if self.centre == 0:
            return of_zero, of_zero
        # By the image of ones, not of the centre, whose size float32 would round.
        slope = _wide(np.asarray(_forward(operator, zero + 1))) - of_zero
        return of_zero + self.centre * slope, of_zero

    def why_not(self, operator: Operator, shape: ImageShape) -> str | None:
        """Say why numbers of a measurement cannot be in the data's units; None if they can."""
        kind = linearity_at_random(operator, shape, root_key(0))
        if kind != "nonlinear":
            return None
        return (
            "--data-range maps measurements and their noise by the linearity of the operator, and this one is not "
            "linear: leave --data-range out and state images in [-1, 1]"
        )

    def note(self) -> Notes:
        """Say what the map does."""
        return [f"numbers of arrays from {self.low:g} (black) to {self.high:g} (white) are -1 to 1"]


def _wide(y: Shaped[np.ndarray, "..."]) -> np.ndarray:
    return y.astype(np.complex128 if np.iscomplexobj(y) else np.float64)


@jax.jit
@jax.default_matmul_precision("highest")
def _forward(operator: Operator, x: Any) -> jax.Array:
    return operator.forward(x)
