"""PiGDM: pseudo-inverse guided diffusion (ICLR 2023)."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import ImageShape, Operator
from ddiff_jax.prior import Prior, tweedie
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import NoiseSchedule, strided_timesteps
from ddiff_jax.solvers.base import Cost, StepInfo, check_choice, coerce
from ddiff_jax.types import Image, Scalar

LEAST_SIGMA = 1e-4  # keeps the least squares solvable without noise, as in InverseBench


@pytree_dataclass
class Grid:
    """The numbers of every step from t to s."""

    t: Int[Array, " K"]
    variance: Float[Array, " K"]  # r_t^2 = 1 - ab_t
    next_signal: Float[Array, " K"]  # sqrt(ab_s)
    c1: Float[Array, " K"]
    c2: Float[Array, " K"]
    w_g: Float[Array, " K"]


@pytree_dataclass
class State:
    """The noisy state."""

    x_t: Image


@pytree_dataclass
class PiGDM:
    """Guide a DDIM sampler by the gradient of log N(y; A x0_hat, r_t^2 A A^T + sigma_y^2), through the network.

    Every step goes from timestep t to the next one s, the last one to the clean image (ab = 1):

    1. x0_hat and eps from the network at x_t, not clipped.
    2. q = A^T (A A^T + sigma_y^2 / r_t^2)^-1 (y - A x0_hat), with r_t^2 = 1 - ab_t. It is the change that the proximal
       step argmin ||A x - y||^2 + (sigma_y / r_t)^2 ||x - x0_hat||^2 makes.
    3. g = the gradient of <q, x0_hat(x_t)> over x_t, q held constant.
    4. x_s = sqrt(ab_s) x0_hat + c1 n + c2 eps + w_g g, with c1 = eta sqrt((1 - ab_t / ab_s) (1 - ab_s) / (1 - ab_t))
       and c2 = sqrt(1 - ab_s - c1^2).

    Args:
        eta: share of new noise, in [0, 1]; 1 is the ancestral sampler.
        weight: factor on w_g.
        guidance: "published" takes w_g = sqrt(ab_s ab_t); "score" what DDIM makes of the guided score,
            w_g = sqrt(ab_s / ab_t) - c2 / sqrt(1 - ab_t), so that many steps sample the posterior of a Gaussian prior
            with variance 1 exactly.
        num_steps: network evaluations, every T / num_steps-th timestep.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Song et al. 2023; its re-implementation in RED-diff's code.
    Differs: sigma_y is used, as in the paper but not in that code; the start is N(0, I); what that code does for
    single tasks (copying known pixels, a factor for high dynamic range) is left out.
    """

    eta: Scalar = 1.0
    weight: Scalar = 1.0
    guidance: Literal["published", "score"] = static_field(default="published")
    num_steps: int | None = static_field(default=100)

    def __post_init__(self):
        coerce(self, eta="fraction", weight="non-negative")
        check_choice(self, guidance=("published", "score"))

    needs = ("prox",)

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(1, 1, operator_evaluations=1, operator_solves=1, normal_draws=1)

    def grid(self, schedule: NoiseSchedule) -> Grid:
        """Tabulate step 4 over the chosen timesteps."""
        timesteps = jnp.asarray(strided_timesteps(schedule.num_timesteps, self.num_steps))
        t, s = timesteps[:-1], timesteps[1:]
        (alpha_bar, noise_var), (next_alpha_bar, next_var) = schedule.levels(t), schedule.levels(s)
        c1 = self.eta * schedule.posterior_std(t, s)
        c2 = jnp.sqrt(jnp.maximum(next_var - c1**2, 0.0))
        if self.guidance == "published":
            w_g = jnp.sqrt(next_alpha_bar * alpha_bar)
        else:
            w_g = jnp.sqrt(next_alpha_bar / alpha_bar) - c2 / jnp.sqrt(noise_var)
        return Grid(t, noise_var, jnp.sqrt(next_alpha_bar), c1, c2, self.weight * w_g)

    def init(
        self, prior: Prior, problem: Problem, shape: ImageShape, noise: Noise, x_init: Image | None = None
    ) -> State:
        """Start at x_T ~ N(0, I), or at `x_init` taken as the noisy state."""
        return State(noise.draw(0, shape) if x_init is None else x_init)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make the update from t to s, steps 1 to 4."""

        def denoise(x_t: Image) -> tuple[Image, Image]:
            eps = prior.eps(x_t, point.t)
            return tweedie(prior.schedule, x_t, eps, point.t, clip=False), eps

        x0_hat, pull, eps = jax.vjp(denoise, state.x_t, has_aux=True)
        rho = jnp.maximum(problem.sigma_y, LEAST_SIGMA) ** 2 / point.variance
        q = problem.operator.prox(x0_hat, problem.y, rho) - x0_hat  # pyright: ignore[reportAttributeAccessIssue]
        (g,) = pull(q)
        x_t = point.next_signal * x0_hat + point.c1 * noise.draw(0, q.shape) + point.c2 * eps + point.w_g * g
        return State(x_t), StepInfo(problem.misfit(x0_hat))

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x_t
