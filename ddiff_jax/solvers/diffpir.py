"""DiffPIR: half-quadratic splitting with a proximal data step inside a diffusion sampler (CVPRW 2023)."""

from typing import Literal, cast

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddiff_jax.levels import HasTimesteps, Schedule, walk
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import LinearOperator, Operator
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import (
    Cost,
    Needs,
    StepInfo,
    check_choice,
    coerce,
    derivative_norm,
    norm,
    ratio,
    root,
    wide,
)
from ddiff_jax.solvers.walking import NoisyState, Renoising, Walker
from ddiff_jax.types import Column, Image, Scalar

# The published code bounds the noise level from below by 0.001 for images in [0, 1], where it is half of ours.
LEAST_SIGMA = 0.001


@pytree_dataclass
class Grid(Renoising):
    """The numbers of every step."""

    variance: Column  # (b / a)^2


@pytree_dataclass
class DiffPIR(Walker):
    """Alternate a denoiser and a data step, then noise the result to the next level.

    Every step goes from a level x_t = a x_0 + b n to the next one (a', b'), the last one to the least noisy:

    1. z = denoise(x_t), clipped if the prior clips.
    2. x = argmin ||y - A x||^2 + rho_t ||x - z||^2, with rho_t = lam (sigma_y / 2)^2 a^2 / b^2.
    3. eps_hat = (x_t - a x) / b.
    4. x_t' = a' x + sqrt(1 - zeta) (sqrt(b'^2 - s^2) eps_hat + s n) + sqrt(zeta) b' n', with
       s = eta b' / b sqrt(beta_t), where beta_t is the variance that a table's own step up to t adds (not that from
       the next level; for schedules without a table it is); one draw stands for both n and n'.

    Aim: one image (MAP), by half-quadratic splitting; the noise that the steps add lets it wander and makes it no
    sampler of the posterior.

    Derivatives: none pass through clipped pixels of z. At zeta = 1 and at zeta = eta = 0 a root has an infinite slope,
    which counts as 0. To sigma_y below 0.002 the derivative is 0.

    Args:
        lam: lambda, weight of the prior in the published units: the halved sigma_y in rho_t is the noise level of
            images in [0, 1], where the published codes state it.
        zeta: share of new noise, in [0, 1].
        eta: noise inside the share of old noise, in [0, 1].
        num_steps: updates, that is network evaluations. The published 20 and 100 timesteps are 19 and 99 updates;
            the last evaluation changes nothing there and is left out.
        spacing: as released: "quad", dense at low noise, for up to 500 steps; or "uniform", every
            floor(T / num_steps)-th timestep down from the noisiest and then 0, which makes the last stride the longer
            the less num_steps divides T; for up to 500 steps, or all 999.
        data_step: "prox" solves step 2, for linear operators; "line" takes one gradient step of the length that is
            exact along the line, ||g||^2 / (||J g||^2 + rho ||g||^2); "gradient" takes the published length 1 / rho,
            which overshoots until rho > ||A||^2 / 2; "auto" is prox where the operator has one, else line.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Zhu et al. 2023 and its released code.
    Differs: the start is N(0, I) instead of a noised guess, which at t = 999 has 0.6% of the amplitude; the guidance
    scale and the inner repeats, both 1 in every published configuration, are left out.
    """

    lam: Scalar = 7.0
    zeta: Scalar = 0.3
    eta: Scalar = 0.0
    num_steps: int = static_field(default=99)
    spacing: Literal["quad", "uniform"] = static_field(default="quad")
    data_step: Literal["auto", "prox", "line", "gradient"] = static_field(default="auto")

    def __post_init__(self):
        coerce(self, lam="positive", zeta="fraction", eta="fraction")
        check_choice(self, spacing=("quad", "uniform"), data_step=("auto", "prox", "line", "gradient"))

    aim = "map"

    @property
    def needs(self) -> Needs:
        """Assume Gaussian noise: rho_t weighs the prior against a noise level."""
        return Needs(("prox",) if self.data_step == "prox" else (), gaussian_noise=True)

    def _data_step_for(self, operator: Operator) -> str:
        if self.data_step == "auto":
            return "prox" if hasattr(operator, "prox") else "line"
        return self.data_step

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs with this operator."""
        data = {
            "prox": {"operator_evaluations": 1, "operator_solves": 1},
            "line": {"operator_evaluations": 1, "operator_gradients": 1},
            "gradient": {"operator_gradients": 1},
        }[self._data_step_for(operator)]
        return Cost(network_evaluations=1, normal_draws=1, **data)

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate steps 2 to 4 over the chosen levels."""
        level, cleaner = walk(schedule, self.num_steps, self.spacing, to_clean=False)
        numbered = isinstance(schedule, HasTimesteps)
        below = schedule.at_time(level.time / schedule.time_scale - 1) if numbered else cleaner
        share, new = wide(self.zeta), cleaner.sigma**2
        old = wide(self.eta) ** 2 * new / level.sigma**2 * level.step_variance(below)
        return Grid(
            level,
            variance=level.ratio**2,
            next_signal=cleaner.signal,
            w_eps=root((1 - share) * (new - old)),
            w_n=root((1 - share) * old + share * new),
        )

    def step(
        self, prior: Prior, problem: Problem, state: NoisyState, point: Grid, noise: Noise
    ) -> tuple[NoisyState, StepInfo]:
        """Make steps 1 to 4."""
        x_t = state.x_t
        z = prior.denoise(x_t, point.level)
        rho = self.lam * jnp.maximum(problem.sigma_y / 2, LEAST_SIGMA) ** 2 / point.variance
        misfit, x = self._step_to_data(problem, z, rho)
        eps_hat = point.level.eps(x_t, x)
        x_t = point.renoise(x, eps_hat, noise.draw(0, x_t.shape))
        return NoisyState(x_t), StepInfo(misfit, gap=norm(x - z))

    def _step_to_data(self, problem: Problem, z: Image, rho: Scalar) -> tuple[Float[Array, ""], Image]:
        kind = self._data_step_for(problem.operator)
        if kind == "prox":
            return problem.misfit(z), cast(LinearOperator, problem.operator).prox(z, problem.y, rho)
        misfit, g = problem.misfit_and_gradient(z)
        if kind == "gradient":
            return misfit, z - g / rho
        squared = jnp.sum(g**2)
        return misfit, z - ratio(squared, derivative_norm(problem, z, g) + rho * squared) * g
