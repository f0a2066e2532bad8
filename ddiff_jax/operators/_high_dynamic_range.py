"""High dynamic range: the sensor saturates."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddiff_jax.operators.base import check_shape
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement


@pytree_dataclass
class HighDynamicRange:
    """y = clip(scale x, -1, 1).

    Args:
        scale: gain before saturation.
        image_shape: (H, W, C) of the input.
    """

    scale: Float[Array, ""]
    image_shape: ImageShape = static_field()
    measures_picture: ClassVar[bool] = True

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, C] to [H, W, C] in [-1, 1]."""
        scaled = self.scale.astype(x.dtype) * x
        # Not jnp.clip: its derivative at the ends themselves is another one than in the published (PyTorch) codes,
        # where it is still `scale`. Images are clipped to [-1, 1] on the way, so the ends do occur.
        return jnp.where(jnp.abs(scaled) <= 1, scaled, jnp.sign(scaled))


def high_dynamic_range(shape: ImageShape, *, scale: float = 2.0) -> HighDynamicRange:
    """Build a saturating sensor.

    Args:
        shape: image shape (H, W, C).
        scale: gain before saturation; 2 loses the outer half of the range.

    Returns:
        Operator; input and measurement [H, W, C] in [-1, 1].

    Raises:
        ValueError: the scale is not positive and finite.

    Source: `HighDynamicRange` in forward_operator/__init__.py of DAPS and `forward` in ddiff_sample.py of DDiff,
    scale 2 in both.
    """
    if not 0 < scale < float("inf"):
        raise ValueError(f"the scale of high_dynamic_range must be positive and finite; got {scale}")
    return HighDynamicRange(jnp.asarray(scale, float), check_shape(shape))
