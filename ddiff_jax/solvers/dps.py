"""DPS: diffusion posterior sampling, guided by the gradient through the network (ICLR 2023)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import ImageShape, Operator
from ddiff_jax.prior import DiffusionPrior, Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import NoiseSchedule, timesteps_to_clean
from ddiff_jax.solvers.base import Cost, StepInfo, coerce, ratio, root
from ddiff_jax.types import Image, Scalar


@pytree_dataclass
class Grid:
    """The numbers of every step from t to s."""

    t: Int[Array, " K"]
    w_z: Float[Array, " K"]
    w_x: Float[Array, " K"]
    log_beta: Float[Array, " K"]
    log_posterior: Float[Array, " K"]  # of the posterior's variance
    is_noisy: Float[Array, " K"]


@pytree_dataclass
class State:
    """The noisy state."""

    x_t: Image


@pytree_dataclass
class DPS:
    """Walk the ancestral sampler, and after every step go down the gradient of the residual norm.

    Every step goes from timestep t to the next one s, the last one to the clean image (ab = 1):

    1. z = denoise(x_t), clipped to [-1, 1], and v, where between its bounds the network puts the step's variance.
    2. x' = w_z z + w_x x_t + sigma n: the DDPM posterior's mean, w_z = sqrt(ab_s) beta / (1 - ab_t) and
       w_x = sqrt(1 - beta) (1 - ab_s) / (1 - ab_t), with log sigma^2 = f log beta + (1 - f) log beta~, f = (v + 1) / 2,
       beta = 1 - ab_t / ab_s and beta~ = beta (1 - ab_s) / (1 - ab_t). No noise in the last step.
    3. x_s = x' - zeta grad_{x_t} ||y - A(z(x_t))||: the norm, not its square; through operator, clipping and network.

    Derivatives: none pass through clipped pixels of z.

    Args:
        zeta: step size, as released. It is insensitive to sigma_y, and the values for 256x256 serve 64x64 as well:
            scaled to the same change per pixel they are too short there.
        num_steps: network evaluations, spread evenly over the schedule; None is every timestep, as published.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Chung et al. 2023 and its released code.
    Differs: an exact fit gives no step instead of NaN. With inpainting, noise of the hidden pixels counts in the norm
    as it does there.
    """

    zeta: Scalar
    num_steps: int | None = static_field(default=None)

    def __post_init__(self):
        coerce(self, zeta="non-negative")

    needs = ()

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(network_evaluations=1, network_gradients=1, operator_gradients=1, normal_draws=1)

    def grid(self, schedule: NoiseSchedule) -> Grid:
        """Tabulate step 2 over the chosen timesteps."""
        timesteps = timesteps_to_clean(schedule.num_timesteps, self.num_steps)
        t, s = jnp.asarray(timesteps[:-1]), jnp.asarray(timesteps[1:])
        (_, noise_var), (next_alpha_bar, next_var) = schedule.levels(t), schedule.levels(s)
        beta = schedule.beta(t, s)
        is_noisy = s >= 0
        posterior = jnp.where(is_noisy, beta * next_var / noise_var, 1.0)  # 0 in the last step, where nobody asks
        return Grid(
            t=t,
            w_z=jnp.sqrt(next_alpha_bar) * beta / noise_var,
            w_x=jnp.sqrt(1 - beta) * next_var / noise_var,
            log_beta=jnp.log(beta),
            log_posterior=jnp.log(posterior),
            is_noisy=is_noisy.astype(beta.dtype),
        )

    def init(
        self, prior: Prior, problem: Problem, shape: ImageShape, noise: Noise, x_init: Image | None = None
    ) -> State:
        """Start at x_T ~ N(0, I), or at `x_init` taken as the noisy state."""
        return State(noise.draw(0, shape) if x_init is None else x_init)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make the update from t to s, steps 1 to 3."""
        x_t = state.x_t

        def half_squared_residual(x_t: Image) -> tuple[Float[Array, ""], tuple[Image, Image]]:
            z, v = _denoise_with_variance(prior, x_t, point.t)
            return problem.half_squared_residual(z), (z, v)

        (half, (z, v)), gradient = jax.value_and_grad(half_squared_residual, has_aux=True)(x_t)
        f = (v + 1) / 2
        std = jnp.exp(0.5 * (f * point.log_beta + (1 - f) * point.log_posterior))
        x = point.w_z * z + point.w_x * x_t + point.is_noisy * std * noise.draw(0, x_t.shape)
        return State(x - self.zeta * ratio(gradient, root(2 * half))), StepInfo(2 * half / problem.y.size)

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x_t


def _denoise_with_variance(prior: Prior, x_t: Image, t: Array) -> tuple[Image, Image]:
    if isinstance(prior, DiffusionPrior):
        return prior.denoise_with_variance(x_t, t)
    return prior.denoise(x_t, t), jnp.zeros_like(x_t)
