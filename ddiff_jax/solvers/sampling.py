"""DDIM and DDPM: images from the prior alone, in the same loop as the restorations."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import ImageShape, Operator
from ddiff_jax.prior import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import NoiseSchedule, timesteps_to_clean
from ddiff_jax.solvers.base import Cost, StepInfo, coerce, root
from ddiff_jax.types import Image, Measurement, Scalar


@pytree_dataclass
class Unmeasured:
    """The operator that measures nothing."""

    image_shape: ImageShape = static_field()

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, C] to no numbers at all."""
        return x.reshape(-1)[:0]


@pytree_dataclass
class Grid:
    """The numbers of every step from t to s."""

    t: Int[Array, " K"]
    signal: Float[Array, " K"]  # sqrt(ab_t)
    sigma_t: Float[Array, " K"]  # sqrt(1 - ab_t)
    next_signal: Float[Array, " K"]  # sqrt(ab_s)
    w_eps: Float[Array, " K"]
    w_n: Float[Array, " K"]


@pytree_dataclass
class State:
    """The noisy state."""

    x_t: Image


@pytree_dataclass
class Sampler:
    """Walk from noise to an image of the prior; what was measured plays no part.

    Every step goes from timestep t to the next one s, the last one to the clean image (ab = 1):

    1. z = denoise(x_t), clipped to [-1, 1], and eps_hat = (x_t - sqrt(ab_t) z) / sqrt(1 - ab_t).
    2. x_s = sqrt(ab_s) z + sqrt(1 - ab_s - w^2) eps_hat + w n, with w = eta times the standard deviation of the DDPM
       posterior.

    Derivatives: none pass through clipped pixels of z.

    Args:
        eta: share of new noise, in [0, 1]: 0 is DDIM, a function of the start; 1 is DDPM (small variance).
        num_steps: network evaluations, spread evenly over the schedule; None is every timestep.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Ho et al. 2020; Song, Meng and Ermon 2021, equation 12; the clipping as in guided-diffusion.
    """

    eta: Scalar = 1.0
    num_steps: int | None = static_field(default=None)

    def __post_init__(self):
        coerce(self, eta="fraction")

    needs = ()

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(network_evaluations=1, normal_draws=1)

    def grid(self, schedule: NoiseSchedule) -> Grid:
        """Tabulate step 2 over the chosen timesteps."""
        timesteps = jnp.asarray(timesteps_to_clean(schedule.num_timesteps, self.num_steps))
        alpha_bar, noise_var = schedule.levels(timesteps)
        w_n = self.eta * schedule.posterior_std(timesteps[:-1], timesteps[1:])
        return Grid(
            t=timesteps[:-1],
            signal=jnp.sqrt(alpha_bar[:-1]),
            sigma_t=jnp.sqrt(noise_var[:-1]),
            next_signal=jnp.sqrt(alpha_bar[1:]),
            w_eps=root(noise_var[1:] - w_n**2),
            w_n=w_n,
        )

    def init(
        self, prior: Prior, problem: Problem, shape: ImageShape, noise: Noise, x_init: Image | None = None
    ) -> State:
        """Start at x_T ~ N(0, I), or at `x_init` taken as the noisy state."""
        return State(noise.draw(0, shape) if x_init is None else x_init)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make the update from t to s, steps 1 and 2."""
        z = prior.denoise(state.x_t, point.t)
        eps_hat = (state.x_t - point.signal * z) / point.sigma_t
        x_t = point.next_signal * z + point.w_eps * eps_hat + point.w_n * noise.draw(0, z.shape)
        return State(x_t), StepInfo(misfit=jnp.zeros((), z.dtype))

    def estimate(self, state: State) -> Image:
        """Read the image off a state."""
        return state.x_t


def nothing(prior: Prior, keys: Key[Array, " N"]) -> tuple[Unmeasured, Float[Array, "N 0"], float]:
    """Make operator, measurements and noise level of a problem without data: `solve(Sampler(), prior, *..., keys)`."""
    return Unmeasured(prior.image_shape), jnp.zeros((keys.shape[0], 0), jnp.float32), 0.0
