"""Colourisation: only the brightness of a colour image is measured."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.operators.base import DecomposableOperator, Decomposition, check_shape
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement

# Weights of red, green and blue in the luma of gamma-encoded pictures: ITU-R BT.601-7 section 2.5.1, BT.709-6 item 3.2.
LUMA = {"rec601": (0.299, 0.587, 0.114), "rec709": (0.2126, 0.7152, 0.0722)}


@pytree_dataclass
class Colourisation(DecomposableOperator):
    """y = weighted sum of the channels.

    Args:
        weights: one per channel.
        image_shape: (H, W, C) of the input.
    """

    weights: Float[Array, " C"]
    image_shape: ImageShape = static_field()
    measures_picture: ClassVar[bool] = True

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, C] to [H, W, 1]."""
        weights = self.weights.astype(x.dtype)
        return jnp.einsum("hwc,c->hw", x, weights, precision=jax.lax.Precision.HIGHEST)[..., None]

    def svd(self) -> Decomposition:
        """Decompose: every pixel has one singular vector, the direction of the weights."""
        s = jnp.linalg.norm(self.weights)
        return Decomposition(
            s=s[None, None, None],
            from_image=lambda x: self.forward(x) / s.astype(x.dtype),
            to_image=lambda c: c * (self.weights / s).astype(c.dtype)[None, None],
            from_measurement=lambda y: y,
        )


def colourisation(shape: ImageShape, *, standard: Literal["rec601", "rec709"] = "rec601") -> Colourisation:
    """Build the measurement of luma, from which the colours are to be restored.

    Args:
        shape: image shape (H, W, 3), red, green and blue.
        standard: whose weights: "rec601" as in JPEG and most programs that convert to grey, or "rec709".

    Returns:
        Operator; input [H, W, 3] and measurement [H, W, 1] in [-1, 1].

    Raises:
        ValueError: the image does not have three channels, or the standard is not known.
    """
    shape = check_shape(shape)
    if shape[2] != 3:
        raise ValueError(f"colourisation needs images with 3 channels, red, green and blue; got shape {shape}")
    if standard not in LUMA:
        raise ValueError(f"the standard of the luma weights must be one of {', '.join(LUMA)}; got {standard!r}")
    return Colourisation(jnp.asarray(np.array(LUMA[standard])), shape)
