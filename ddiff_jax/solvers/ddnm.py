"""DDNM+: the range of A from the data, its null space from the prior (ICLR 2023)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import ImageShape, Operator
from ddiff_jax.prior import Prior, tweedie
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import NoiseSchedule, strided_timesteps
from ddiff_jax.solvers.base import Cost, StepInfo, coerce
from ddiff_jax.types import Image, Scalar


@pytree_dataclass
class Grid:
    """The numbers of every step from t to s."""

    t: Int[Array, " K"]
    a: Float[Array, " K"]  # weight of x_0 in the posterior's mean
    b: Float[Array, " K"]  # weight of x_t
    std: Float[Array, " K"]  # the posterior's standard deviation


@pytree_dataclass
class State:
    """The noisy state."""

    x_t: Image


@pytree_dataclass
class DDNM:
    """Correct every denoised image by the pseudo-inverse of its residual, as far as the noise in the data allows.

    Every step goes from timestep t to the next one s, the last one to the clean image:

    1. x0_hat from the network at x_t, not clipped.
    2. x = x0_hat - l A^+ (A x0_hat - y), with l = 1 while the posterior's noise hides that of the data,
       std >= a gain sigma_y, and l = std / (a gain sigma_y) afterwards.
    3. x_s = a x + b x_t + sqrt(std^2 - (a l gain sigma_y)^2) n, with a = sqrt(ab_s) beta / (1 - ab_t),
       b = sqrt(1 - beta) (1 - ab_s) / (1 - ab_t), beta = 1 - ab_t / ab_s.

    Args:
        gain: standard deviation of the noise in A^+ y, in units of sigma_y: one over the singular values of A, 1 for
            inpainting, 4 for super-resolution by 4. The method wants them to be about equal: a blur has no such
            number.
        num_steps: network evaluations, every T / num_steps-th timestep.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Wang et al. 2023, section 3.3 (DDNM+), from the paper.
    Differs: no time travel; one gain for all directions, for which the paper's appendix takes the singular values.
    With those DDNM+ is `DDRM` but for the choice of timesteps.
    """

    gain: Scalar = 1.0
    num_steps: int | None = static_field(default=100)

    def __post_init__(self):
        coerce(self, gain="positive")

    needs = ("pseudo_inverse",)

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(network_evaluations=1, operator_evaluations=1, operator_solves=1, normal_draws=1)

    def grid(self, schedule: NoiseSchedule) -> Grid:
        """Tabulate step 3 over the chosen timesteps."""
        timesteps = jnp.asarray(strided_timesteps(schedule.num_timesteps, self.num_steps))
        t, s = timesteps[:-1], timesteps[1:]
        (_, noise_var), (next_alpha_bar, next_var) = schedule.levels(t), schedule.levels(s)
        beta = schedule.beta(t, s)
        return Grid(
            t=t,
            a=jnp.sqrt(next_alpha_bar) * beta / noise_var,
            b=jnp.sqrt(1 - beta) * next_var / noise_var,
            std=schedule.posterior_std(t, s),
        )

    def init(
        self, prior: Prior, problem: Problem, shape: ImageShape, noise: Noise, x_init: Image | None = None
    ) -> State:
        """Start at x_T ~ N(0, I), or at `x_init` taken as the noisy state."""
        return State(noise.draw(0, shape) if x_init is None else x_init)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make the update from t to s, steps 1 to 3."""
        x_t, std = state.x_t, point.std
        x0_hat = tweedie(prior.schedule, x_t, prior.eps(x_t, point.t), point.t, clip=False)
        residual = problem.operator.forward(x0_hat) - problem.y
        data_std = point.a * self.gain * problem.sigma_y
        l = jnp.where(std >= data_std, 1.0, std / jnp.where(data_std > 0, data_std, 1.0))  # noqa: E741
        x = x0_hat - l * problem.operator.pseudo_inverse(residual)  # pyright: ignore[reportAttributeAccessIssue]
        left = jnp.sqrt(jnp.maximum(std**2 - (l * data_std) ** 2, 0.0))
        x_s = point.a * x + point.b * x_t + left * noise.draw(0, x_t.shape)
        return State(x_s), StepInfo(jnp.mean(jnp.abs(residual) ** 2))

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x_t
