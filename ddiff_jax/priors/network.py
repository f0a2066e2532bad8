"""A pretrained network as a prior, whatever it predicts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ddiff_jax.levels import Level, Schedule
from ddiff_jax.priors.base import to_schedule
from ddiff_jax.priors.linear import LinearDenoiser
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Params, to_type

SIGMA_DATA = 0.5  # of the published EDM networks


@runtime_checkable
class Denoising(Protocol):
    """A network as a value: hashable, and pure in its weights."""

    def apply(self, variables: dict[str, Params], x: Array, t: Array, /) -> Array:
        """Map x [N, ...] and times t [N] to [N, ..., C or 2 C]; the first C channels are the prediction."""
        ...


@functools.partial(jax.jit, static_argnames="module")
def _apply(module: Denoising, params: Params, x: Array, t: Array, **labels: Array) -> Array:
    # Compiled into whatever calls it. A program traces its steps several times; this remembers the network's trace,
    # which takes a second.
    return module.apply({"params": params}, x, t, **labels)


def takes_all(module: Denoising, params: Params, image_shape: ImageShape) -> bool:
    """Tell whether the network takes every one of the parameters, and remember the trace for `DiffusionPrior`.

    Args:
        module: a network without classes.
        params: its parameters, or their shapes and types.
        image_shape: shape of the images that it will denoise.

    Raises:
        Exception: the network wants other parameters; Flax says which.
    """
    inputs = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    jaxpr = _apply.trace(module, params, *inputs).jaxpr.jaxpr
    taken = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    return all(id(variable) in taken for variable in jaxpr.invars[: len(jax.tree.leaves(params))])


Prediction = Literal["eps", "v", "x0", "edm", "flow"]
Estimates = tuple[Image, Image]  # x_0 and eps

# What a network's output F says of the clean image and of the noise in x = a x_0 + b n, at its own level (a, b) and
# with standard deviation s of clean images. In this form, with a beside b, nothing divides by a signal that may be 0
# but where the prediction itself leaves x_0 open.
PREDICTIONS: dict[str, Callable[[Image, Image, Level, float], Estimates]] = {
    "eps": lambda F, x, level, s: (level.x_0(x, F), F),
    "v": lambda F, x, level, s: _from_v(F, x, level),
    "x0": lambda F, x, level, s: (F, level.eps(x, F)),
    "edm": lambda F, x, level, s: _from_edm(F, x, level, s),
    "flow": lambda F, x, level, s: _from_velocity(F, x, level),
}


# The same read the other way: what the output is for a clean image x_0 and a noise n at a level. The unweighted squared
# error of each is what its authors train with.
TARGETS: dict[str, Callable[[Image, Image, Level, float], Image]] = {
    "eps": lambda x_0, n, level, s: n,
    "v": lambda x_0, n, level, s: (level.signal * n - level.sigma * x_0) / level.scale,
    "x0": lambda x_0, n, level, s: x_0,
    "edm": lambda x_0, n, level, s: _edm(x_0, n, level, s),
    "flow": lambda x_0, n, level, s: n - x_0,
}


def _from_v(F: Image, x: Image, level: Level) -> Estimates:
    """Read v = (a n - b x_0) / sqrt(a^2 + b^2)."""
    a, b, r = level.signal, level.sigma, level.scale
    return (a * x / r - b * F) / r, (b * x / r + a * F) / r


def _from_velocity(F: Image, x: Image, level: Level) -> Estimates:
    """Read n - x_0."""
    a, b = level.signal, level.sigma
    return (x - b * F) / (a + b), (x + a * F) / (a + b)


def _from_edm(F: Image, x: Image, level: Level, s: float) -> Estimates:
    """Read x_0 = c_skip x / a + c_out F, with sigma = b / a."""
    a, b = level.signal, level.sigma
    total = b**2 + (s * a) ** 2
    x_0 = s**2 * a / total * x + s * b * total**-0.5 * F
    # The noise in a form that does not take the difference of two nearly equal images.
    return x_0, b / total * x - s * a * total**-0.5 * F


def _edm(x_0: Image, n: Image, level: Level, s: float) -> Image:
    a, b = level.signal, level.sigma
    return (b * x_0 - s**2 * a * n) / (s * (b**2 + (s * a) ** 2) ** 0.5)


def linear_output(linear: LinearDenoiser, prediction: str, x: Image, level: Level, sigma_data: float) -> Image:
    """Compute what a network's output is added to: its share of what would say the same as the linear denoiser."""
    known = TARGETS[prediction](*linear.estimate(x, level), level, sigma_data)
    return jnp.asarray(linear.share(level), x.dtype) * known


@pytree_dataclass
class DiffusionPrior:
    """A pretrained network with its weights, what it predicts, and the noise levels that it knows.

    The network sees c_in x_t and the level's time, where x_t is scaled as `schedule` has it and c_in is 1 but for
    "edm", where it is 1 / sqrt(sigma^2 + sigma_data^2). Its output F means:

    | prediction | F |
    |---|---|
    | eps | the noise n |
    | v | signal n - sigma x_0 |
    | x0 | the clean image |
    | edm | x_0 = s^2 / (sigma^2 + s^2) x + sigma s / sqrt(sigma^2 + s^2) F with s = sigma_data |
    | flow | n - x_0 |

    With `linear` F is added to its share of what would say the same as that denoiser: at high noise, where the share is
    nearly all, a network of zeros is this denoiser.

    A level of another schedule is served too: x_t is rescaled, and the network's time follows from sigma / signal.

    Args:
        params: weights, a nested dict of arrays.
        schedule: the noise levels that the network was trained on.
        module: hashable object with `apply({"params": params}, x [N, ...], t [N])`, for example
            `ddiff_jax.models.UNet`. Its output has C channels, or 2 C when it also predicts a variance.
        image_shape: shape of the images that the network was trained on, channels last.
        label: class index for a class-conditional network, else None.
        clip: clip the denoised image to [-1, 1], as all published pixel-space solvers but DAPS do.
        prediction: what the network's output means.
        sigma_data: standard deviation of clean images that an "edm" network was scaled with.
        linear: denoiser of the network's images that its output is added to, or None.
        shift: what the network's images have that ours have not: 1 for a network of images in [0, 1], which are half
            of ours plus this. The schedule and sigma_data are in units of ours.

    Raises:
        ValueError: the prediction is unknown.
    """

    params: Params
    schedule: Schedule = static_field()
    module: Denoising = static_field()
    image_shape: ImageShape = static_field()
    label: Int[Array, ""] | None = None
    linear: LinearDenoiser | None = None
    clip: bool = static_field(default=True)
    prediction: Prediction = static_field(default="eps")
    sigma_data: float = static_field(default=SIGMA_DATA)
    shift: float = static_field(default=0.0)

    def __post_init__(self):
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}; got {self.prediction!r}")

    def denoise(self, x_t: Image, level: Level) -> Image:
        """Estimate E[x_0 | x_t], clipped to [-1, 1] if `clip` says so."""
        return self._clipped(self._estimates(x_t, level)[0])

    def predict(self, x_t: Image, level: Level) -> Estimates:
        """Estimate E[x_0 | x_t], not clipped, and the noise."""
        return self._estimates(x_t, level)[:2]

    def denoise_with_variance(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Estimate E[x_0 | x_t] as `denoise` does, and v as `LearnedVariance` has it: 0 if it is not predicted."""
        z, _, v = self._estimates(x_t, level)
        return self._clipped(z), v

    def _clipped(self, x_0: Image) -> Image:
        return jnp.clip(x_0, -1, 1) if self.clip else x_0

    def _estimates(self, x_t: Image, level: Level) -> tuple[Image, Image, Image]:
        x, own = to_schedule(self.schedule, x_t, level)
        x = x + own.signal * self.shift if self.shift else x
        c_in = 1.0 if self.prediction != "edm" else (own.sigma**2 + (own.signal * self.sigma_data) ** 2) ** -0.5
        # The network keeps the type of its weights (a function without any takes that of the image), and sees a batch
        # of one; under vmap XLA merges the two batch axes into one batched convolution.
        is_wide = any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(self.params) or [x])
        seen = to_type(((c_in * x)[None], jnp.asarray(own.time)[None]), jnp.float64 if is_wide else jnp.float32)
        labels = {} if self.label is None else {"y": self.label[None]}
        out = _apply(self.module, self.params, *seen, **labels)[0].astype(x.dtype)
        channels = x.shape[-1]
        v = out[..., channels:] if out.shape[-1] == 2 * channels else jnp.zeros_like(x)
        F = out[..., :channels]
        if self.linear is not None:
            F = F + linear_output(self.linear, self.prediction, x, own, self.sigma_data)
        x_0, eps = PREDICTIONS[self.prediction](F, x, own, self.sigma_data)
        return x_0 - self.shift if self.shift else x_0, eps, v

    def with_label(self, label: int | None) -> "DiffusionPrior":
        """Condition a class-conditional network on a class; None leaves the prior as it is."""
        return self if label is None else dataclasses.replace(self, label=jnp.int32(label))
