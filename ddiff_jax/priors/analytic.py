"""Priors that are known in closed form: exact denoisers for tests, and for posteriors that are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ddiff_jax.levels import Level, Schedule
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape


def _array(value: Any) -> Array:
    """Keep the type of arrays, and take numbers in the default one."""
    return jnp.asarray(value, None if hasattr(value, "dtype") else jnp.result_type(float))


@pytree_dataclass
class GaussianPrior:
    """Independent Gaussian pixels, x_0 ~ N(mean, var): a prior whose every quantity is known in closed form.

    Args:
        mean: scalar or array that broadcasts to the image.
        var: the same; positive.
        schedule: noise levels.
        image_shape: shape of the images, channels last.
        clip: clip the denoised image to [-1, 1]; off by default, since a Gaussian image has no bounds.
    """

    mean: float | Float[Array, "..."]
    var: float | Float[Array, "..."]
    schedule: Schedule = static_field()
    image_shape: ImageShape = static_field()
    clip: bool = static_field(default=False)

    def __post_init__(self):
        object.__setattr__(self, "mean", _array(self.mean))
        object.__setattr__(self, "var", _array(self.var))

    def denoise(self, x_t: Image, level: Level) -> Image:
        """Return E[x_0 | x_t], clipped if `clip` says so."""
        x_0, _ = self.predict(x_t, level)
        return jnp.clip(x_0, -1, 1) if self.clip else x_0

    def predict(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Return E[x_0 | x_t] = mean + a var d and E[n | x_t] = b d, with d = (x_t - a mean) / (a^2 var + b^2)."""
        a, b = (jnp.asarray(value, x_t.dtype) for value in (level.signal, level.sigma))
        mean, var = self.mean.astype(x_t.dtype), self.var.astype(x_t.dtype)  # pyright: ignore[reportAttributeAccessIssue] - arrays since __post_init__
        d = (x_t - a * mean) / (a**2 * var + b**2)
        return mean + a * var * d, b * d


@pytree_dataclass
class MixturePrior:
    """A mixture of M Gaussians with independent pixels of one variance each: several modes, and a known denoiser.

    Args:
        weights: [M], non-negative with a positive sum; normalised here.
        means: [M, *image_shape].
        variances: [M], positive.
        schedule: noise levels.

    Raises:
        ValueError: the shapes disagree, or a number is out of its range.
    """

    weights: Float[Array, " M"]
    means: Float[Array, "M ..."]
    variances: Float[Array, " M"]
    schedule: Schedule = static_field()

    def __post_init__(self):
        weights, means, variances = map(_array, (self.weights, self.means, self.variances))
        count = weights.shape[0] if weights.ndim == 1 else -1
        if variances.shape != (count,) or means.ndim < 2 or means.shape[0] != count:
            raise ValueError(
                "a mixture of M Gaussians has weights [M], means [M, *image_shape] and variances [M]; got shapes "
                f"{weights.shape}, {means.shape}, {variances.shape}"
            )
        if not any(isinstance(value, Tracer) for value in (weights, variances)) and not (
            np.all(np.asarray(weights) >= 0) and np.sum(np.asarray(weights)) > 0 and np.all(np.asarray(variances) > 0)
        ):
            raise ValueError("a mixture needs weights of at least 0 with a positive sum, and positive variances")
        for name, value in {"weights": weights / weights.sum(), "means": means, "variances": variances}.items():
            object.__setattr__(self, name, value)

    @property
    def image_shape(self) -> ImageShape:
        """Shape of the images, channels last."""
        return tuple(self.means.shape[-(self.means.ndim - 1) :])

    def denoise(self, x_t: Image, level: Level) -> Image:
        """Return E[x_0 | x_t]."""
        return self.predict(x_t, level)[0]

    def predict(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Return E[x_0 | x_t] and E[n | x_t]: those of the single Gaussians, weighed by how well they explain x_t."""
        a, b = (jnp.asarray(value, x_t.dtype) for value in (level.signal, level.sigma))
        _, means, var = self._like(x_t)
        weights = jax.nn.softmax(self._log_joint(x_t, a, b)) / (a**2 * var + b**2)
        x_0 = jnp.tensordot(weights * b**2, means, 1) + jnp.sum(weights * a * var) * x_t
        eps = jnp.sum(weights * b) * x_t - jnp.tensordot(weights * a * b, means, 1)
        return x_0, eps

    def log_density(self, x: Image) -> Float[Array, ""]:
        """Compute log p(x) of a clean image."""
        return jax.nn.logsumexp(self._log_joint(x, jnp.ones((), x.dtype), jnp.zeros((), x.dtype)))

    def _like(self, x: Image) -> tuple[Array, Array, Array]:
        return self.weights.astype(x.dtype), self.means.astype(x.dtype), self.variances.astype(x.dtype)

    def _log_joint(self, x_t: Image, a: Array, b: Array) -> Float[Array, " M"]:
        weights, means, var = self._like(x_t)
        total = a**2 * var + b**2
        squared = jnp.sum((x_t[None] - a * means) ** 2, axis=tuple(range(1, means.ndim)))
        return jnp.log(weights) - 0.5 * squared / total - 0.5 * x_t.size * jnp.log(2 * jnp.pi * total)
