"""PiGDM: pseudoinverse-guided diffusion (Song et al., ICLR 2023)."""

from typing import Literal, cast

import jax

from ddiff_jax.levels import Level, Schedule, walk
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import LinearOperator, Operator
from ddiff_jax.priors.base import Prior, predict
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Needs, StepInfo, check_choice, coerce, noise_std, root, wide
from ddiff_jax.solvers.walking import NoisyState, Walker
from ddiff_jax.types import Column, Image, Scalar


@pytree_dataclass
class Grid:
    """The numbers of every step."""

    level: Level
    next_signal: Column
    c1: Column
    c2: Column
    r2: Column  # r_t^2
    guidance: Column  # factor on g


@pytree_dataclass
class PiGDM(Walker):
    r"""Sample with DDIM, guided by log p(y | x_t) under p(x_0 | x_t) = N(x0_hat, r_t^2 I) and a linear A.

    The start is a A^+ y + b n at the first level x_t = a x_0 + b n. Every step goes from one level to the next,
    (a', b'), the last one to the clean image:

    1. x0_hat = (x_t - b eps) / a, not clipped.
    2. q = A^T (A A^T + (sigma_y^2 / r_t^2) I)^-1 (y - A x0_hat), with r_t^2 = var b^2 / (a^2 var + b^2).
    3. g = (d x0_hat / d x_t)^T q, one pass backwards through the network; so g / r_t^2 = grad log p(y | x_t).
    4. x_t' = a' x0_hat + c1 n + c2 eps + w g, where n ~ N(0, I), c1 = eta times the standard deviation of the DDPM
       posterior, c2 = sqrt(b'^2 - c1^2), and

       - "published": w = weight a a', far more than the gradient of log p(y | x_t) at little noise;
       - "score": w = weight (a' b^2 / a - c2 b) / r_t^2, the effect of this gradient on x0_hat and eps: many small
         steps sample the posterior of a Gaussian prior exactly.

    Aim: the posterior, with p(x_0 | x_t) taken for a Gaussian of one variance.

    Derivatives: that to sigma_y below 1e-4 is 0.

    Args:
        eta: share of fresh noise, in [0, 1].
        weight: factor on the guidance; 1 as published.
        var: variance of the pixels of clean images; 1, as published, makes r_t^2 = b^2 where a^2 + b^2 = 1.
        guidance: which w step 4 takes.
        num_steps: updates, that is network evaluations: every T / num_steps-th level; None is all of them.

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

    aim = "posterior"
    needs = Needs(("prox", "pseudo_inverse"), gaussian_noise=True)

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(
            network_evaluations=1, network_gradients=1, operator_evaluations=1, operator_solves=1, normal_draws=1
        )

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate steps 2 and 4 over the chosen levels."""
        level, cleaner = walk(schedule, self.num_steps, "strided")
        a, b = level.signal, level.sigma
        c1 = wide(self.eta) * level.posterior_std(cleaner)
        c2 = root(cleaner.sigma**2 - c1**2)
        r2 = level.clean_variance(wide(self.var))
        guidance = a * cleaner.signal if self.guidance == "published" else (cleaner.signal / a * b**2 - c2 * b) / r2
        return Grid(level, cleaner.signal, c1, c2, r2, wide(self.weight) * guidance)

    def init(
        self, prior: Prior, problem: Problem, point: Grid, noise: Noise, x_init: Image | None = None
    ) -> NoisyState:
        """Start at the pseudo-inverse of the data with noise, or at `x_init` taken as the noisy state."""
        if x_init is not None:
            return NoisyState(x_init)
        x = cast(LinearOperator, problem.operator).pseudo_inverse(problem.y)
        return NoisyState(point.level.signal * x + point.level.sigma * noise.draw(0, prior.image_shape))

    def step(
        self, prior: Prior, problem: Problem, state: NoisyState, point: Grid, noise: Noise
    ) -> tuple[NoisyState, StepInfo]:
        """Make steps 1 to 4."""
        x0_hat, pull, eps = jax.vjp(lambda x_t: predict(prior, x_t, point.level), state.x_t, has_aux=True)
        rho = noise_std(problem) ** 2 / point.r2
        # The minimiser of ||A x - y||^2 + rho ||x - x0_hat||^2 is x0_hat + q.
        q = cast(LinearOperator, problem.operator).prox(x0_hat, problem.y, rho) - x0_hat
        (g,) = pull(q)
        n = noise.draw(0, state.x_t.shape)
        x_t = point.next_signal * x0_hat + point.c1 * n + point.c2 * eps + point.guidance * g
        return NoisyState(x_t), StepInfo(misfit=problem.misfit(x0_hat))
