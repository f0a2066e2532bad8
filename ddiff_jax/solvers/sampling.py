"""DDIM and DDPM: images from the prior alone, in the same loop as the restorations."""

import jax.numpy as jnp
from jaxtyping import Array, Key

from ddiff_jax.levels import Schedule, walk
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Needs, StepInfo, coerce, root, wide
from ddiff_jax.solvers.walking import NoisyState, Renoising, Walker
from ddiff_jax.types import Image, ImageShape, Measurement, Scalar


@pytree_dataclass
class Unmeasured:
    """The operator that measures nothing."""

    image_shape: ImageShape = static_field()

    def forward(self, x: Image) -> Measurement:
        """Map an image to no numbers at all."""
        return x.reshape(-1)[:0]


@pytree_dataclass
class Sampler(Walker):
    """Walk from noise to an image of the prior; what was measured plays no part.

    Every step goes from a level x_t = a x_0 + b n to the next one (a', b'), the last one to the clean image:

    1. z = denoise(x_t), clipped if the prior clips, and eps_hat = (x_t - a z) / b.
    2. x_t' = a' z + sqrt(b'^2 - w^2) eps_hat + w n, with w = eta times the standard deviation of the DDPM posterior.

    Aim: the posterior of no data, which is the prior.

    Derivatives: none pass through clipped pixels of z.

    Args:
        eta: share of new noise, in [0, 1]: 0 is DDIM, a function of the start; 1 is DDPM (small variance).
        num_steps: network evaluations, spread evenly over the schedule; None is all its levels.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Ho et al. 2020; Song, Meng and Ermon 2021, equation 12; the clipping as in guided-diffusion.
    """

    eta: Scalar = 1.0
    num_steps: int | None = static_field(default=None)

    def __post_init__(self):
        coerce(self, eta="fraction")

    aim = "posterior"
    needs = Needs()

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(network_evaluations=1, normal_draws=1)

    def grid(self, schedule: Schedule) -> Renoising:
        """Tabulate step 2 over the chosen levels."""
        level, cleaner = walk(schedule, self.num_steps)
        w_n = wide(self.eta) * level.posterior_std(cleaner)
        return Renoising(level, cleaner.signal, w_eps=root(cleaner.sigma**2 - w_n**2), w_n=w_n)

    def step(
        self, prior: Prior, problem: Problem, state: NoisyState, point: Renoising, noise: Noise
    ) -> tuple[NoisyState, StepInfo]:
        """Make the update from t to s, steps 1 and 2."""
        z = prior.denoise(state.x_t, point.level)
        eps_hat = point.level.eps(state.x_t, z)
        x_t = point.renoise(z, eps_hat, noise.draw(0, z.shape))
        return NoisyState(x_t), StepInfo(misfit=jnp.zeros((), z.dtype))


def without_data(prior: Prior, keys: Key[Array, " N"]) -> Problem:
    """Make a batch of problems without data, one for each key: what `solve` takes to draw images with `Sampler`.

    Args:
        prior: says the shape of images.
        keys: as many as there will be images.
    """
    return Problem(Unmeasured(prior.image_shape), jnp.zeros((keys.shape[0], 0), jnp.float32), 0.0)
