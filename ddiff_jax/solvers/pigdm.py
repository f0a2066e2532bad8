"""PiGDM: pseudoinverse-guided diffusion (Song et al., ICLR 2023)."""

from typing import Literal, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import ImageShape, LinearOperator, Operator
from ddiff_jax.prior import Prior, tweedie
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import NoiseSchedule, strided_timesteps
from ddiff_jax.solvers.base import Cost, StepInfo, check_choice, coerce, root
from ddiff_jax.types import Image, Scalar, to_type


@pytree_dataclass
class Grid:
    """The numbers of every step."""

    t: Int[Array, " K"]
    next_signal: Float[Array, " K"]  # sqrt(ab_t')
    c1: Float[Array, " K"]
    c2: Float[Array, " K"]
    r2: Float[Array, " K"]  # r_t^2
    guidance: Float[Array, " K"]  # factor on g


@pytree_dataclass
class PiGDM:
    r"""Sample with DDIM, guided by log p(y | x_t) under p(x_0 | x_t) = N(x0_hat, r_t^2 I) and a linear A.

    The start is sqrt(ab_T) A^+ y + sqrt(1 - ab_T) n. Every step goes from timestep t to the next one t', the last
    one to t' = -1 where ab = 1:

    1. x0_hat = (x_t - sqrt(1 - ab_t) eps) / sqrt(ab_t), not clipped.
    2. q = A^T (A A^T + (sigma_y^2 / r_t^2) I)^-1 (y - A x0_hat), with r_t^2 = var (1 - ab_t) / (ab_t var + 1 - ab_t).
    3. g = (d x0_hat / d x_t)^T q, one pass backwards through the network; so g / r_t^2 = grad log p(y | x_t).
    4. x_t' = sqrt(ab_t') x0_hat + c1 n + c2 eps + w g, where n ~ N(0, I),
       c1 = eta sqrt((1 - ab_t') / (1 - ab_t) (1 - ab_t / ab_t')), c2 = sqrt(1 - ab_t' - c1^2), and
       "published": w = weight sqrt(ab_t ab_t'), far more than the gradient of log p(y | x_t) at small t;
       "score":     w = weight (sqrt(ab_t') (1 - ab_t) / sqrt(ab_t) - c2 sqrt(1 - ab_t)) / r_t^2, the effect of
                    this gradient on x0_hat and eps: many small steps sample the posterior of a Gaussian prior
                    exactly.

    Derivatives: that to sigma_y below 1e-4 is 0.

    Args:
        eta: share of fresh noise, in [0, 1].
        weight: factor on the guidance; 1 as published.
        var: variance of the pixels of clean images; 1, as published, makes r_t^2 = 1 - ab_t.
        guidance: which w step 4 takes.
        num_steps: updates, that is network evaluations: every T / num_steps-th timestep; None is all T.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: the paper's algorithm 1 and equation 8; eta and num_steps as in all released commands.
    Differs: (code) the released code ignores sigma_y, q = A^+ y - A^+ A x0_hat; here sigma_y counts, and is at least
    1e-4. It overwrites known pixels in inpainting, scales the guidance by 1500 std(x0_hat) for high dynamic range,
    and has makeshift inverses for nonlinear operators: none of these here.
    """

    eta: Scalar = 1.0
    weight: Scalar = 1.0
    var: Scalar = 1.0
    guidance: Literal["published", "score"] = static_field(default="published")
    num_steps: int | None = static_field(default=100)

    def __post_init__(self):
        coerce(self, eta="fraction", weight="non-negative", var="positive")
        check_choice(self, guidance=("published", "score"))

    needs = ("prox", "pseudo_inverse")
    gaussian_noise_only = True

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(
            network_evaluations=1, network_gradients=1, operator_evaluations=1, operator_solves=1, normal_draws=1
        )

    def grid(self, schedule: NoiseSchedule) -> Grid:
        """Tabulate steps 2 and 4 over the chosen timesteps."""
        timesteps = strided_timesteps(schedule.num_timesteps, self.num_steps)
        t, t_next = jnp.asarray(timesteps[:-1]), jnp.asarray(timesteps[1:])
        (ab, noise_var), (ab_next, noise_var_next) = schedule.levels(t), schedule.levels(t_next)
        c1 = self.eta * schedule.posterior_std(t, t_next)
        c2 = root(noise_var_next - c1**2)
        r2 = self.var * noise_var / (ab * self.var + noise_var)
        if self.guidance == "published":
            guidance = jnp.sqrt(ab * ab_next)
        else:
            guidance = (jnp.sqrt(ab_next / ab) * noise_var - c2 * jnp.sqrt(noise_var)) / r2
        return Grid(t, jnp.sqrt(ab_next), c1, c2, r2, self.weight * guidance)

    def init(
        self, prior: Prior, problem: Problem, shape: ImageShape, noise: Noise, x_init: Image | None = None
    ) -> Image:
        """Start at the pseudo-inverse of the data with noise, or at `x_init` taken as the noisy state."""
        if x_init is not None:
            return x_init
        first = jnp.asarray(strided_timesteps(prior.schedule.num_timesteps, self.num_steps)[0])
        x = cast(LinearOperator, problem.operator).pseudo_inverse(problem.y)
        alpha_bar, noise_var = to_type(prior.schedule.levels(first), x.dtype)
        return jnp.sqrt(alpha_bar) * x + jnp.sqrt(noise_var) * noise.draw(0, shape)

    def step(self, prior: Prior, problem: Problem, state: Image, point: Grid, noise: Noise) -> tuple[Image, StepInfo]:
        """Make the update from t to t', steps 1 to 4."""

        def denoise(x_t: Image) -> tuple[Image, Image]:
            eps = prior.eps(x_t, point.t)
            return tweedie(prior.schedule, x_t, eps, point.t, clip=False), eps

        x0_hat, pull, eps = jax.vjp(denoise, state, has_aux=True)
        rho = jnp.maximum(problem.sigma_y, 1e-4) ** 2 / point.r2
        # The minimiser of ||A x - y||^2 + rho ||x - x0_hat||^2 is x0_hat + q.
        q = cast(LinearOperator, problem.operator).prox(x0_hat, problem.y, rho) - x0_hat
        (g,) = pull(q)
        n = noise.draw(0, state.shape)
        x_t = point.next_signal * x0_hat + point.c1 * n + point.c2 * eps + point.guidance * g
        return x_t, StepInfo(misfit=problem.misfit(x0_hat))

    def estimate(self, state: Image) -> Image:
        """Read the restored image off a state."""
        return state
