"""Priors made of other priors: on another schedule, over the slices of a volume, behind a decoder."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddiff_jax.levels import Level, Schedule
from ddiff_jax.priors.base import Latent, Prior, denoise_with_variance, predict
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape


class _Derived:
    """What a prior of other levels, or of other pictures, has from the prior that it is made of."""

    prior: Prior

    @property
    def image_shape(self) -> ImageShape:
        """Shape of the images, those of the other prior."""
        return self.prior.image_shape

    def denoise(self, x_t: Image, level: Level) -> Image:
        """Estimate E[x_0 | x_t]."""
        return self.prior.denoise(x_t, level)

    def predict(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Estimate E[x_0 | x_t] and the noise."""
        return predict(self.prior, x_t, level)

    def denoise_with_variance(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Estimate E[x_0 | x_t], and v as the prior has learned it."""
        return denoise_with_variance(self.prior, x_t, level)


@pytree_dataclass
class OnSchedule(_Derived):
    """A prior whose solvers walk the levels of another schedule than its own.

    Args:
        prior: serves levels of any schedule.
        schedule: the levels to walk.
    """

    prior: Prior
    schedule: Schedule = static_field()


@pytree_dataclass
class SlicePrior:
    """A prior for volumes that denoises every slice by a prior for pictures, independently of its neighbours.

    Args:
        prior: of the slices.
        count: number of slices.
        axis: which axis of the volume counts them.
        block: slices that are denoised at a time; None takes all. Less memory, the same result.

    Raises:
        ValueError: count or block is below 1, or the axis is none of the volume's before its channels.
    """

    prior: Prior
    count: int = static_field()
    axis: int = static_field(default=0)
    block: int | None = static_field(default=None)

    def __post_init__(self):
        if self.count < 1 or (self.block is not None and self.block < 1):
            raise ValueError(f"a volume needs at least one slice, in blocks of at least one; got {self}")
        last = len(self.prior.image_shape) - 1
        if not 0 <= self.axis <= last:
            raise ValueError(f"the axis must lie between 0 and {last}, before the channels; got {self.axis}")

    @property
    def image_shape(self) -> ImageShape:
        """Shape of the volume."""
        shape = self.prior.image_shape
        return (*shape[: self.axis], self.count, *shape[self.axis :])

    @property
    def schedule(self) -> Schedule:
        """The noise levels of the slices' prior."""
        return self.prior.schedule

    def denoise(self, x_t: Image, level: Level) -> Image:
        """Estimate E[x_0 | x_t] slice by slice."""
        return self._over_slices(lambda x: self.prior.denoise(x, level), x_t)

    def predict(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Estimate E[x_0 | x_t] and the noise slice by slice."""
        return self._over_slices(lambda x: predict(self.prior, x, level), x_t)

    def denoise_with_variance(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Estimate E[x_0 | x_t] slice by slice, and v as the prior has learned it."""
        return self._over_slices(lambda x: denoise_with_variance(self.prior, x, level), x_t)

    def _over_slices(self, function: Callable[[Image], Any], volume: Image) -> Any:
        slices = jnp.moveaxis(volume, self.axis, 0)
        if self.block is None or self.block >= self.count:
            made = jax.vmap(function)(slices)
        else:
            made = jax.lax.map(function, slices, batch_size=self.block)
        return jax.tree.map(lambda stack: jnp.moveaxis(stack, 0, self.axis), made)


@pytree_dataclass
class LatentPrior(_Derived):
    """A prior over latents whose images are decoded before an operator measures them.

    `solve` and `solve_one` compose operator and decoder and return decoded pictures; x_init and noise are latents.

    Args:
        prior: of the latents; with `clip=False` unless latents lie in [-1, 1].
        decoder: maps one latent to one picture, or (params, latent) where there are weights.
        params: weights of the decoder, any pytree of arrays; None if it has none.
    """

    prior: Prior
    decoder: Callable[..., Any] = static_field()
    params: Any = None

    @property
    def schedule(self) -> Schedule:
        """The noise levels of the latents' prior."""
        return self.prior.schedule

    def decode(self, z: Image) -> Image:
        """Turn a latent into a picture."""
        return self.decoder(z) if self.params is None else self.decoder(self.params, z)


@pytree_dataclass
class Decoder:
    """The decoder of a latent prior as an operator: the first half of every measurement.

    Args:
        prior: whose images are decoded.
    """

    prior: Latent

    def forward(self, x: Image) -> Image:
        """Turn a latent into a picture."""
        return self.prior.decode(x)


def picture_shape(prior: Prior) -> ImageShape:
    """Find the shape of the pictures that operators measure: the prior's images, decoded where they are latents."""
    if not isinstance(prior, Latent):
        return tuple(prior.image_shape)
    return jax.eval_shape(prior.decode, jax.ShapeDtypeStruct(tuple(prior.image_shape), jnp.float32)).shape
