"""Priors made of plain functions."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddiff_jax.levels import Schedule
from ddiff_jax.priors.network import SIGMA_DATA, DiffusionPrior, Prediction
from ddiff_jax.schedule import EDMSchedule, FlowSchedule, linear_schedule
from ddiff_jax.types import ImageShape, Params


@dataclasses.dataclass(frozen=True)
class PlainNetwork:
    """A function of one image as a network.

    Args:
        function: (image, time) to image, or (params, image, time) to image where there are weights.
        has_params: which of the two.
    """

    function: Callable[..., Any]
    has_params: bool

    def apply(self, variables: dict[str, Params], x: Array, t: Array, /) -> Array:
        """Map a batch of images."""
        weights = (variables["params"],) if self.has_params else ()
        return jax.vmap(lambda x, t: self.function(*weights, x, t))(x, t)


# What the function of `from_denoiser` is: its prediction, and the schedule that it has unless one is given.
KINDS: dict[str, tuple[Prediction, Callable[[], Schedule]]] = {
    "denoiser": ("x0", lambda: EDMSchedule(conditioning="sigma", time_scale=1.0)),
    "eps": ("eps", linear_schedule),
    "v": ("v", linear_schedule),
    "x0": ("x0", linear_schedule),
    "edm": ("edm", EDMSchedule),
    "velocity": ("flow", FlowSchedule),
}


def from_denoiser(
    function: Callable[..., Any],
    *,
    kind: Literal["denoiser", "eps", "v", "x0", "edm", "velocity"],
    image_shape: ImageShape,
    schedule: Schedule | None = None,
    params: Any = None,
    clip: bool = True,
    sigma_data: float = SIGMA_DATA,
) -> DiffusionPrior:
    """Make a prior of a plain function of one image.

    Args:
        function: maps one noisy image and what the schedule tells, a scalar, to one image; with `params` it takes
            these first. Made of operations that JAX can trace. Arrays that it closes over become constants of every
            compiled program; give large weights as `params`.
        kind: what the function is.
            "denoiser": D(x_0 + sigma n, sigma), the clean image.
            "eps", "v", "x0": of x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) n and the timestep t: the noise,
            v = sqrt(ab_t) n - sqrt(1 - ab_t) x_0, or the clean image.
            "edm": the raw network of EDM, of (x_0 + sigma n) / sqrt(sigma^2 + sigma_data^2) and ln(sigma) / 4.
            "velocity": n - x_0 of x_s = (1 - s) x_0 + s n and s. Codes with the image at time 1 predict x_0 - n:
            give `lambda x, s: -velocity(x, 1 - s)`.
        image_shape: shape of the images, channels last.
        schedule: the noise levels of the function, and in which units it is told them; None is EDM's from 80 to 0.002,
            the linear one of 1000 timesteps, or s from 0.999 to 0.001.
        params: weights, any pytree of arrays.
        clip: clip denoised images to [-1, 1].
        sigma_data: of "edm".

    Raises:
        ValueError: the kind is unknown.
        TypeError: the function is not callable, cannot be traced, or does not return one image of this shape.

    Example:
        >>> prior = from_denoiser(lambda x, sigma: x / (1 + sigma**2), kind="denoiser", image_shape=(8, 8, 1))
        >>> prior.denoise(jnp.ones((8, 8, 1)), prior.schedule.at(1.0)).max().item()
        0.5
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if not callable(function):
        raise TypeError(f"a function of an image and a time is wanted; got {type(function).__name__}")
    prediction, default = KINDS[kind]
    network = PlainNetwork(function, has_params=params is not None)
    weights = {} if params is None else params
    number = jnp.result_type(float)
    x, time = jax.ShapeDtypeStruct((1, *image_shape), number), jax.ShapeDtypeStruct((1,), number)
    try:
        made = jax.eval_shape(lambda p, x, t: network.apply({"params": p}, x, t), weights, x, time)
    except Exception as error:
        raise TypeError(
            f"the function cannot be traced with an image {list(image_shape)} and a scalar: "
            f"{type(error).__name__}: {error}"
        ) from error
    shape = getattr(made, "shape", None)
    if shape is None or shape[:-1] != x.shape[:-1] or shape[-1] not in (image_shape[-1], 2 * image_shape[-1]):
        got = type(made).__name__ if shape is None else list(shape[1:])
        raise TypeError(f"the function must map an image {list(image_shape)} to one of this shape; it returns {got}")
    return DiffusionPrior(
        weights,
        schedule or default(),
        network,
        tuple(image_shape),
        clip=clip,
        prediction=prediction,
        sigma_data=sigma_data,
    )
