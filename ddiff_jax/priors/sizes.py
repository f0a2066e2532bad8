"""Priors for images of another size than those that they were trained on."""

import dataclasses
from typing import Any, Literal, get_args

import jax.numpy as jnp

from ddiff_jax.levels import Level, Schedule
from ddiff_jax.operators._cropped import cropped, middle
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Latent, Prior, denoise_with_variance, predict
from ddiff_jax.priors.derived import _Derived
from ddiff_jax.priors.network import DiffusionPrior
from ddiff_jax.priors.windows import Taper, WindowedPrior
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape

How = Literal["windows", "whole"]
HOWS: tuple[How, ...] = get_args(How)


@pytree_dataclass
class EmbeddedPrior(_Derived):
    """A prior for images smaller than those of another prior: they are the middle of its images.

    What is unknown is an image of the prior's size, of which the middle is measured and returned; the prior fills the
    rest as it likes. So no border is made up that its network would take for an image. `solve` and `solve_one` see to
    both; x_init and noise have the prior's size.

    Args:
        prior: of the larger images.
        shape: of the smaller ones, channels last.

    Raises:
        ValueError: the shape is not inside of the prior's, or the prior's images are decoded.
    """

    prior: Prior
    shape: ImageShape = static_field()

    def __post_init__(self):
        shape, outer = tuple(map(int, self.shape)), tuple(self.prior.image_shape)
        if isinstance(self.prior, Latent):
            raise ValueError("the images of this prior are decoded: crop what its decoder returns instead")
        fits = len(shape) == len(outer) and shape[-1] == outer[-1]
        if not fits or not all(1 <= n <= p for n, p in zip(shape, outer, strict=True)):
            raise ValueError(
                f"images of shape {shape} do not lie inside of those of the prior, {outer}: take "
                "ddiff_jax.priors.with_shape for those that are larger along some axis"
            )
        object.__setattr__(self, "shape", shape)

    @property
    def schedule(self) -> Schedule:
        """The noise levels of the prior."""
        return self.prior.schedule

    def decode(self, z: Image) -> Image:
        """Cut the middle out."""
        return z[middle(self.prior.image_shape, self.shape)]

    def see(self, operator: Operator) -> Operator:
        """See an operator on the smaller images as one on the prior's; it keeps all that it can do."""
        return cropped(operator, self.shape, tuple(self.prior.image_shape))


@pytree_dataclass
class PaddedPrior:
    """A prior for images somewhat smaller than those of another prior: x_t is mirrored at its end, and cut off again.

    For networks that take any multiple of a number of pixels. The mirrored rows hold noise that they have in common
    with the image, which no network has seen in training: they should be few. See `EmbeddedPrior` for many.

    Args:
        prior: of the larger images.
        shape: of the smaller ones, channels last: at least half as long along every axis.

    Raises:
        ValueError: the shape is not as above.
    """

    prior: Prior
    shape: ImageShape = static_field()

    def __post_init__(self):
        shape, outer = tuple(map(int, self.shape)), tuple(self.prior.image_shape)
        fits = len(shape) == len(outer) and shape[-1] == outer[-1]
        if not fits or not all(n <= p < 2 * n for n, p in zip(shape, outer, strict=True)):
            raise ValueError(
                f"images of shape {shape} cannot be mirrored into those of the prior, {outer}: they must have its "
                "channels and more than half of its length along every axis"
            )
        object.__setattr__(self, "shape", shape)

    @property
    def image_shape(self) -> ImageShape:
        """Shape of the smaller images."""
        return self.shape

    @property
    def schedule(self) -> Schedule:
        """The noise levels of the prior."""
        return self.prior.schedule

    def denoise(self, x_t: Image, level: Level) -> Image:
        """Estimate E[x_0 | x_t]."""
        return self._cut(self.prior.denoise(self._mirrored(x_t), level))

    def predict(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Estimate E[x_0 | x_t] and the noise."""
        x_0, eps = predict(self.prior, self._mirrored(x_t), level)
        return self._cut(x_0), self._cut(eps)

    def denoise_with_variance(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Estimate E[x_0 | x_t], and v as the prior has learned it."""
        x_0, v = denoise_with_variance(self.prior, self._mirrored(x_t), level)
        return self._cut(x_0), self._cut(v)

    def _mirrored(self, x: Image) -> Image:
        return jnp.pad(x, [(0, p - n) for n, p in zip(self.shape, self.prior.image_shape, strict=True)], "reflect")

    def _cut(self, x: Image) -> Image:
        return x[tuple(slice(n) for n in self.shape)]


def with_shape(
    prior: Any,
    shape: ImageShape,
    *,
    how: How = "windows",
    overlap: int | tuple[int, ...] | None = None,
    taper: Taper = "cosine",
    shift: bool = False,
    seed: int = 0,
    block: int | None = None,
) -> Any:
    """Make a prior for images of another shape than those that it was trained on.

    Args:
        prior: any; one of this shape is returned as it is.
        shape: of the images, channels last, of the same rank and channels.
        how: "windows": along axes that are longer than the prior's, windows of its size are blended (`WindowedPrior`);
            those that are shorter are embedded into it (`EmbeddedPrior`). "whole": the network sees the whole image at
            once, padded where its levels do not divide it (`PaddedPrior`). That is one evaluation instead of many, but
            of a size that it was not trained on: convolutions take it, norms and attention see other statistics, and
            the memory of attention grows with the square of the pixels.
        overlap: as for `WindowedPrior`.
        taper: as for `WindowedPrior`.
        shift: as for `WindowedPrior`.
        seed: as for `WindowedPrior`.
        block: as for `WindowedPrior`.

    Raises:
        ValueError: the shape does not fit, or the network does not take images of any size.
    """
    shape, own = tuple(map(int, shape)), tuple(prior.image_shape)
    if how not in HOWS:
        raise ValueError(f"how must be one of {', '.join(HOWS)}; got {how!r}")
    if len(shape) != len(own) or shape[-1] != own[-1] or min(shape) < 1:
        raise ValueError(f"the shape must have the rank and the channels of the prior's, {own}; got {shape}")
    if shape == own:
        return prior
    if how == "whole":
        return _whole(prior, shape)
    canvas = tuple(max(n, p) for n, p in zip(shape, own, strict=True))
    if canvas != own:
        prior = WindowedPrior(prior, canvas, overlap, taper, shift, seed, block)
    return prior if canvas == shape else EmbeddedPrior(prior, shape)


def _whole(prior: Any, shape: ImageShape) -> Any:
    multiple = getattr(prior.module, "size_multiple", None) if isinstance(prior, DiffusionPrior) else None
    if multiple is None:
        raise ValueError(
            'how="whole" is for the networks of ddiff_jax.models, which tell what sizes they take; of one of your own '
            "make a prior for this shape by dataclasses.replace(prior, image_shape=...), or take windows"
        )
    padded = (*(-(-n // multiple) * multiple for n in shape[:-1]), shape[-1])
    prior = dataclasses.replace(prior, image_shape=padded)
    return prior if padded == shape else PaddedPrior(prior, shape)
