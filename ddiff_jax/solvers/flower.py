"""Flower: a flow's path with a Gaussian posterior step at every time (ICLR 2026)."""

from typing import Literal, cast

from ddiff_jax.levels import Level, Schedule
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import LinearOperator, Operator
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Needs, StepInfo, check_choice, coerce, draw_given_data, noise_std, norm, wide
from ddiff_jax.solvers.straight import OnPath, straight_path
from ddiff_jax.solvers.walking import NoisyState, Walker
from ddiff_jax.types import Column, Image, Scalar


@pytree_dataclass
class Grid(OnPath):
    """The numbers of every step."""

    std: Column  # nu_t
    next_signal: Column
    next_sigma: Column


@pytree_dataclass
class Flower(Walker):
    """Go from noise to the image along a flow's path, and let the data narrow down every estimate.

    The path is x_t = t x_0 + (1 - t) n; the start is x_0 = n ~ N(0, I). For t = 0, 1 / K, ..., 1 - 1 / K:

    1. x0_hat = E[x_0 | x_t], not clipped: x_t + (1 - t) v(x_t, t) with the velocity v = E[x_0 - n | x_t] of a flow.
    2. p(x_0 | x_t) is taken for N(x0_hat, nu_t^2 I), with nu_t^2 = var (1 - t)^2 / (t^2 var + (1 - t)^2), so that
       p(x_0 | x_t, y) is a Gaussian. x is a draw from it ("draw"), or its mean
       argmin ||y - A x||^2 + (sigma_y / nu_t)^2 ||x - x0_hat||^2 ("mean").
    3. x_t' = t' x + (1 - t') n with t' = t + 1 / K and n ~ N(0, I); the last step ends at x.

    Any prior serves, not only flows: it is asked at the level of the same noise-to-signal ratio.

    Of a Gaussian prior "draw" samples the posterior the closer the more steps it makes, and exactly where its pixels
    are independent, of the variance `var`; the samples of "mean" have about half of the posterior's variance. Of
    mixtures whose modes the data leave open, more steps made the modes' weights worse.

    Aim: the posterior, with p(x_0 | x_t) taken for a Gaussian of one variance.

    Derivatives: that to sigma_y below 1e-4 is 0.

    Args:
        data_step: "draw" or "mean", see step 2: `flower_cov` and `flower` of the released code.
        var: variance of the pixels of clean images; 1 as published.
        num_steps: K, network evaluations.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Pourya et al. 2026 and its released code; K = 100 as there for denoising and box inpainting.
    Differs: (code) "mean" is the default there, and its samples are averaged in fives; the least squares are solved
    by the operator's own `prox` instead of 50 iterations of conjugate gradients; sigma_y is at least 1e-4. A prior
    that does not know noise alone, as at t = 0, is asked at the noisiest level that it knows.
    """

    data_step: Literal["draw", "mean"] = static_field(default="draw")
    var: Scalar = 1.0
    num_steps: int = static_field(default=100)

    def __post_init__(self):
        coerce(self, var="positive")
        check_choice(self, data_step=("draw", "mean"))
        if self.num_steps < 1:
            raise ValueError(f"Flower.num_steps must be at least 1; got {self.num_steps}")

    aim = "posterior"
    needs = Needs(("prox",), gaussian_noise=True)

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        draws = 3 if self.data_step == "draw" else 1
        return Cost(network_evaluations=1, operator_evaluations=1, operator_solves=1, normal_draws=draws)

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate steps 2 and 3 over the path."""
        path, next_t = straight_path(schedule, self.num_steps), wide(range(1, self.num_steps + 1)) / self.num_steps
        std = Level(path.t, 1 - path.t, path.t).clean_variance(wide(self.var)) ** 0.5
        return Grid(path.t, path.level, path.gain, std, next_signal=next_t, next_sigma=1 - next_t)

    def init(
        self, prior: Prior, problem: Problem, point: Grid, noise: Noise, x_init: Image | None = None
    ) -> NoisyState:
        """Start at noise, or at `x_init` taken for it."""
        return NoisyState(noise.draw(0, prior.image_shape) if x_init is None else x_init)

    def step(
        self, prior: Prior, problem: Problem, state: NoisyState, point: Grid, noise: Noise
    ) -> tuple[NoisyState, StepInfo]:
        """Make steps 1 to 3."""
        x0_hat = point.denoise(prior, state.x_t)
        if self.data_step == "draw":
            x, n = draw_given_data(problem, x0_hat, point.std, noise, 0), noise.draw(2, x0_hat.shape)
        else:
            rho = (noise_std(problem) / point.std) ** 2
            x = cast(LinearOperator, problem.operator).prox(x0_hat, problem.y, rho)
            n = noise.draw(0, x0_hat.shape)
        x_t = point.next_signal * x + point.next_sigma * n
        return NoisyState(x_t), StepInfo(problem.misfit(x0_hat), gap=norm(x - x0_hat))
