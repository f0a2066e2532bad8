"""What a prior is, what it may offer besides, and how any of them is asked."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ddiff_jax.levels import Level, Schedule
from ddiff_jax.types import Image, ImageShape


@runtime_checkable
class Prior(Protocol):
    """What a solver needs to know of the distribution of clean images: a pytree with a denoiser.

    A prior whose `denoise` clips, or that predicts the noise itself, should also be a `PredictsNoise`; one that has
    learned the variance of a sampler's step a `LearnedVariance`; one whose images must be decoded a `Latent`.
    """

    @property
    def image_shape(self) -> ImageShape:
        """Shape of the images, channels last: [H, W, C] pictures, [L, C] signals, [D, H, W, C] volumes."""
        ...

    @property
    def schedule(self) -> Schedule:
        """The noise levels that solvers walk."""
        ...

    def denoise(self, x_t: Image, level: Level) -> Image:
        """Estimate E[x_0 | x_t], for a level of any schedule."""
        ...


@runtime_checkable
class PredictsNoise(Protocol):
    """A prior that also tells the noise, without the detour over the denoised image that costs digits or clips."""

    def predict(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Estimate E[x_0 | x_t], never clipped, and the noise E[n | x_t]."""
        ...


@runtime_checkable
class LearnedVariance(Protocol):
    """A prior whose network also predicts where the variance of a sampler's step lies."""

    def denoise_with_variance(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Estimate E[x_0 | x_t] as `denoise` does, and from the same evaluation v.

        The logarithm of the step's variance lies (v + 1) / 2 of the way from the posterior's to beta; v = 0, half the
        way, says nothing.
        """
        ...


@runtime_checkable
class Latent(Protocol):
    """A prior whose images become pictures by a decoder."""

    def decode(self, z: Image) -> Image:
        """Turn an image of the prior into a picture, which is what operators measure."""
        ...


def predict(prior: Prior, x_t: Image, level: Level) -> tuple[Image, Image]:
    """Estimate the clean image and the noise in x_t with any prior.

    Args:
        prior: asked for both if it is a `PredictsNoise`, else for the denoised image, which gives the noise.
        x_t: noisy image at `level`.
        level: its noise level, not the clean one.

    Returns:
        x0_hat, not clipped if the prior can tell it so, and eps with x_t = signal x0_hat + sigma eps.
    """
    if isinstance(prior, PredictsNoise):
        return prior.predict(x_t, level)
    x0_hat = prior.denoise(x_t, level)
    return x0_hat, level.eps(x_t, x0_hat)


def denoise_with_variance(prior: Prior, x_t: Image, level: Level) -> tuple[Image, Image]:
    """Estimate the clean image and the place v of a step's variance with any prior.

    Args:
        prior: asked for both if it is a `LearnedVariance`, else for the denoised image.
        x_t: noisy image at `level`.
        level: its noise level.

    Returns:
        x_0 as `denoise` gives it, and v, which is 0 if the prior has not learned it.
    """
    if isinstance(prior, LearnedVariance):
        return prior.denoise_with_variance(x_t, level)
    return prior.denoise(x_t, level), jnp.zeros_like(x_t)


def to_schedule(schedule: Schedule, x_t: Image, level: Level) -> tuple[Image, Level]:
    """Rescale a noisy image to the level of a schedule that has the same noise-to-signal ratio.

    Args:
        schedule: where to.
        x_t: noisy image at `level`.
        level: of any schedule; one of `schedule` itself is left as it is.

    Returns:
        The image and its level in `schedule`. Beyond the noisiest level there, it is that one, with the same noise.
    """
    if level.schedule == schedule:
        return x_t, level
    own = jax.tree.map(lambda column: jnp.asarray(column, x_t.dtype), schedule.at(jnp.asarray(level.ratio)))
    noisy = level.sigma > level.signal  # by the noise there, since the signal may be 0, and the other way round
    factor = jnp.where(noisy, own.sigma, own.signal) / jnp.where(noisy, level.sigma, level.signal)
    return jnp.asarray(factor, x_t.dtype) * x_t, own
