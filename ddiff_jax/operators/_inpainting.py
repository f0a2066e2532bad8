"""Inpainting: some pixels are not observed."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from ddiff_jax.operators.base import DecomposableOperator, Decomposition, check_mask, check_shape
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement, PRNGKey


@pytree_dataclass
class Inpainting(DecomposableOperator):
    """y = mask * x, equal over channels; hidden pixels measure 0.

    Args:
        mask: 1 where a pixel is observed, 0 where it is hidden. Other weights, which noise that differs between pixels
            and derivatives ask for, are taken as they are; hidden pixels stay hidden.
        image_shape: (H, W, C) of the input.
    """

    mask: Float[Array, "H W c"]
    image_shape: ImageShape = static_field()
    measures_picture: ClassVar[bool] = True

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, C] to [H, W, C]."""
        return self.mask.astype(x.dtype) * x

    def observed(self) -> Bool[Array, "H W c"]:
        """Tell which pixels are observed."""
        return self.mask > 0

    def weighted(self, root: Float[Array, "H W C"]) -> "Inpainting":
        """Weight the pixels, by their channels too."""
        return Inpainting(self.mask.astype(root.dtype) * root, self.image_shape)

    def svd(self) -> Decomposition:
        """Decompose: pixels are singular vectors, the mask holds their singular values."""

        def from_measurement(y: Measurement) -> Image:
            return jnp.where(self.mask != 0, y, 0.0)  # not times the mask, whose entries may be weighted or varied

        return Decomposition(self.mask, lambda x: x, lambda c: c, from_measurement)


def inpainting(shape: ImageShape, mask: ArrayLike) -> Inpainting:
    """Build inpainting with a given mask.

    Args:
        shape: image shape (H, W, C).
        mask: [H, W] or [H, W, 1], boolean or numbers 0 and 1; true or 1 where a pixel is observed.

    Raises:
        ValueError: the mask has another shape, other values than 0 and 1, or is all 0 or all 1.
    """
    shape = check_shape(shape)
    values = check_mask(mask, shape, "mask")
    if values.all():
        raise ValueError(
            "the mask hides no pixel: nothing to inpaint; in a mask 1 (white) means observed and 0 (black) hidden"
        )
    return Inpainting(jnp.asarray(values), shape)


def box_inpainting(shape: ImageShape, key: PRNGKey, *, size: int, margin: int) -> Inpainting:
    """Build inpainting that hides one square at a random place.

    Args:
        shape: image shape (H, W, C).
        key: draws the position; the same key gives the same box on every device.
        size: side of the box in pixels.
        margin: smallest distance from the box to the border in pixels.

    Returns:
        Operator; input and measurement [H, W, C] in [-1, 1].

    Raises:
        ValueError: the box and its margins do not fit into the image.

    Source: paper section A.4; `mask_gen` in ddiff_sample.py of DDiff, after `random_sq_bbox` in util/img_utils.py of
    DPS (size 128 and margin 16 at 256x256; DAPS has margin 32).
    Differs: the position comes from `key`; the released code reseeds NumPy for every image, so that all images
    share the box that `released_box_mask` returns.
    """
    height, width, _ = shape = check_shape(shape)
    room = (height - size - 2 * margin, width - size - 2 * margin)
    if size < 1 or margin < 0 or min(room) < 0:
        raise ValueError(
            f"a box of side {size} with a margin of {margin} pixels does not fit into {height}x{width}: "
            "size must be at least 1, margin at least 0, and size + 2 * margin at most the smaller side"
        )
    row_key, col_key = jax.random.split(key)
    # The upper end is exclusive as in the released code, unless that would leave no place at all.
    top = jax.random.randint(row_key, (), margin, margin + max(room[0], 1))
    left = jax.random.randint(col_key, (), margin, margin + max(room[1], 1))
    rows, cols = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    hidden = (rows >= top) & (rows < top + size) & (cols >= left) & (cols < left + size)
    return Inpainting((~hidden)[..., None].astype(jnp.float32), shape)


def random_inpainting(shape: ImageShape, key: PRNGKey, *, fraction: float) -> Inpainting:
    """Build inpainting that hides a random set of pixels.

    Args:
        shape: image shape (H, W, C).
        key: draws the set.
        fraction: share of the pixels that are hidden, in [0, 1]; exactly round(fraction * H * W) of them are.

    Returns:
        Operator; input and measurement [H, W, C] in [-1, 1].

    Raises:
        ValueError: fraction lies outside [0, 1].

    Source: `mask_gen` in ddiff_sample.py of DDiff; `mask_generator` in forward_operator/__init__.py of DAPS.
    Differs: the published codes draw the fraction too, between 0.70 and 0.71; see `released_random_mask`.
    """
    height, width, _ = shape = check_shape(shape)
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction of hidden pixels must lie in [0, 1]; got {fraction}")
    num_hidden = round(fraction * height * width)
    order = jax.random.permutation(key, height * width)
    return Inpainting((order >= num_hidden).reshape(height, width, 1).astype(jnp.float32), shape)


def released_box_mask(side: int = 256, *, size: int = 128, margin: int = 16, seed: int = 0) -> np.ndarray:
    """Reproduce the box of the released DDiff code (NumPy's legacy generator, seed 0: row 60, column 63).

    Args:
        side: of the image.
        size: side of the hidden box.
        margin: pixels that the box keeps from every border.
        seed: of the generator.

    Returns:
        Mask [side, side] of 0 and 1 for `inpainting`.
    """
    generator = np.random.RandomState(seed)
    top, left = generator.randint(margin, side - margin - size, 2)
    mask = np.ones((side, side), np.float32)
    mask[top : top + size, left : left + size] = 0
    return mask


def released_random_mask(side: int = 256, *, seed: int = 0) -> np.ndarray:
    """Reproduce the random mask of the released DDiff code (seed 0 at 256x256: 46234 pixels hidden).

    Returns:
        Mask [side, side] of 0 and 1 for `inpainting`.
    """
    generator = np.random.RandomState(seed)
    fraction = generator.uniform(0.70, 0.71)
    hidden = generator.permutation(side * side)[: int(fraction * side * side)]
    mask = np.ones(side * side, np.float32)
    mask[hidden] = 0
    return mask.reshape(side, side)
