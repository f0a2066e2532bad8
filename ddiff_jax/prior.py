"""Diffusion priors: predicted noise and denoised image at a noise level."""

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import NoiseSchedule
from ddiff_jax.types import Image, Params, Timestep, to_type


@runtime_checkable
class Prior(Protocol):
    """What a solver needs to know of the distribution of clean images."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images."""
        ...

    def eps(self, x_t: Image, t: Timestep) -> Image:
        """Predict the noise in x_t."""
        ...

    def denoise(self, x_t: Image, t: Timestep) -> Image:
        """Estimate E[x_0 | x_t]."""
        ...


@runtime_checkable
class Denoising(Protocol):
    """A network as a value: hashable, and pure in its weights."""

    def apply(self, variables: dict[str, Params], x: Array, t: Array, /) -> Array:
        """Map x [N, H, W, C] and t [N] to [N, H, W, C or 2 C]; the first C channels are the noise."""
        ...


def tweedie(schedule: NoiseSchedule, x_t: Image, eps: Image, t: Timestep, *, clip: bool) -> Image:
    """Turn predicted noise into x0_hat = (x_t - sqrt(1 - ab_t) eps) / sqrt(ab_t), clipped to [-1, 1] on demand.

    Args:
        schedule: the noise levels.
        x_t: the noisy image.
        eps: the noise in it.
        t: as in `NoiseSchedule.levels`: whole or fractional, and -1 gives back x_t.
        clip: whether to clip.
    """
    alpha_bar, noise_var = to_type(schedule.levels(jnp.asarray(t)), x_t.dtype)
    x0_hat = (x_t - jnp.sqrt(noise_var) * eps) / jnp.sqrt(alpha_bar)
    return jnp.clip(x0_hat, -1, 1) if clip else x0_hat


@functools.partial(jax.jit, static_argnames="module")
def _apply(module: Denoising, params: Params, x: Array, t: Array, **labels: Array) -> Array:
    # Compiled into whatever calls it. A program traces its steps several times; this remembers the network's trace,
    # which takes a second.
    return module.apply({"params": params}, x, t, **labels)


@pytree_dataclass
class DiffusionPrior:
    """A pretrained network with its weights and its noise schedule.

    Args:
        params: weights, a nested dict of arrays.
        schedule: the noise levels that the network was trained on.
        module: hashable object with `apply({"params": params}, x [N, H, W, C], t [N])`, for example
            `ddiff_jax.models.UNet`. Its output has C channels, or 2 C when it also predicts a variance.
        image_shape: (H, W, C) of the images that the network was trained on.
        label: class index for a class-conditional network, else None.
        clip: clip the denoised image to [-1, 1], as all published pixel-space solvers but DAPS do.
    """

    params: Params
    schedule: NoiseSchedule
    module: Denoising = static_field()
    image_shape: tuple[int, int, int] = static_field()
    label: Int[Array, ""] | None = None
    clip: bool = static_field(default=True)

    def eps(self, x_t: Image, t: Timestep) -> Image:
        """Predict the noise in x_t."""
        return self._output(x_t, t)[..., : x_t.shape[-1]]

    def _output(self, x_t: Image, t: Timestep) -> Float[Array, "H W D"]:
        # The network sees a batch of one; under vmap XLA merges the two batch axes into one batched convolution.
        labels = {} if self.label is None else {"y": self.label[None]}
        is_wide = any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(self.params))
        own = jnp.float64 if is_wide else jnp.float32
        x, t = to_type((x_t[None], jnp.asarray(t)[None]), own)
        return _apply(self.module, self.params, x, t, **labels)[0].astype(x_t.dtype)

    def denoise(self, x_t: Image, t: Timestep) -> Image:
        """Estimate E[x_0 | x_t] by Tweedie's formula."""
        return tweedie(self.schedule, x_t, self.eps(x_t, t), t, clip=self.clip)

    def with_label(self, label: int | None) -> "DiffusionPrior":
        """Condition a class-conditional network on a class; None leaves the prior as it is."""
        return self if label is None else dataclasses.replace(self, label=jnp.int32(label))

    def denoise_with_variance(self, x_t: Image, t: Timestep) -> tuple[Image, Image]:
        """Estimate E[x_0 | x_t], and read off the same evaluation where the variance of a step lies.

        Returns:
            z as `denoise` does, and v: the logarithm of the step's variance lies (v + 1) / 2 of the way from the
            posterior's to beta. 0, half the way, if the network does not predict it.
        """
        out, channels = self._output(x_t, t), x_t.shape[-1]
        v = out[..., channels:] if out.shape[-1] == 2 * channels else jnp.zeros_like(x_t)
        return tweedie(self.schedule, x_t, out[..., :channels], t, clip=self.clip), v


@pytree_dataclass
class GaussianPrior:
    """Independent Gaussian pixels, x_0 ~ N(mean, var): a prior whose every quantity is known in closed form.

    Args:
        mean: scalar or array that broadcasts to the image.
        var: the same; positive.
        schedule: noise levels.
        image_shape: (H, W, C).
        clip: clip the denoised image to [-1, 1]; off by default, since a Gaussian image has no bounds.
    """

    mean: float | Float[Array, "..."]
    var: float | Float[Array, "..."]
    schedule: NoiseSchedule
    image_shape: tuple[int, int, int] = static_field()
    clip: bool = static_field(default=False)

    def __post_init__(self):
        object.__setattr__(self, "mean", jnp.asarray(self.mean, float))
        object.__setattr__(self, "var", jnp.asarray(self.var, float))

    def eps(self, x_t: Image, t: Timestep) -> Image:
        """Return E[eps | x_t] = sqrt(1 - ab) (x_t - sqrt(ab) mean) / (ab var + 1 - ab)."""
        levels = self.schedule.levels(jnp.asarray(t))
        (alpha_bar, noise_var), mean, var = to_type((levels, self.mean, self.var), x_t.dtype)
        centred = x_t - jnp.sqrt(alpha_bar) * mean
        return jnp.sqrt(noise_var) * centred / (alpha_bar * var + noise_var)

    def denoise(self, x_t: Image, t: Timestep) -> Image:
        """Return E[x_0 | x_t]."""
        return tweedie(self.schedule, x_t, self.eps(x_t, t), t, clip=self.clip)
