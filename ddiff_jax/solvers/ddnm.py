"""DDNM+: denoising diffusion null-space model (Wang et al., ICLR 2023)."""

from typing import cast

import jax.numpy as jnp

from ddiff_jax.levels import Level, Schedule, walk
from ddiff_jax.likelihood import sum_of_squares
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import DecomposableOperator
from ddiff_jax.priors.base import Prior, predict
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import StepInfo, coerce, root
from ddiff_jax.solvers.walking import NoisyState, SpectralWalker
from ddiff_jax.types import Column, Scalar


@pytree_dataclass
class Grid:
    """The numbers of every step."""

    level: Level
    next_signal: Column
    next_sigma_t: Column


@pytree_dataclass
class DDNM(SpectralWalker):
    r"""Sample with the range of A taken from the data and its null space from the prior.

    A = U diag(s) V^T is linear. Every step goes from a level x_t = a x_0 + b n to the next one (a', b'), the last one
    to the clean image:

    1. x0_hat = (x_t - b eps) / a, not clipped.
    2. x = x0_hat - V diag(lambda) V^T A^+ (A x0_hat - y): the data step. In direction i, A^+ y has the noise
       sigma_y / s_i, and a' x must not have more than belongs to the next level: lambda_i = 1 where
       a' sigma_y / s_i <= b', else lambda_i = sqrt(1 - eta^2) b' s_i / (a' sigma_y).
    3. gamma_i^2 = b'^2 - (a' lambda_i sigma_y / s_i)^2: the noise that is missing; b'^2 where s_i = 0.
    4. x_t' = a' x + V diag(gamma) V^T e, where e = n ~ N(0, I) in the directions with lambda_i < 1 and
       e = eta n + sqrt(1 - eta^2) eps in all others.

    Without noise lambda = 1, and the result fits y exactly.

    Aim: the posterior: samples of the prior whose range is that of the data.

    Derivatives: the noise of a coefficient jumps where its lambda begins to fall below 1, as sigma_y or the singular
    values move. Which of these count as zero is taken for granted. At eta = 1 an infinite slope counts as 0.

    Args:
        eta: share of fresh noise in step 4, in [0, 1]; the rest is the predicted noise.
        num_steps: updates, that is network evaluations: every T / num_steps-th level; None is all of them.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: the paper's equations 12 to 19, with lambda and gamma for every singular value as in its appendix and in
    the released code; eta and the number of steps are those of the released configurations.
    Differs: (paper) no travels back in time. (code) with noise, e = n there in every direction that y shows, which
    makes it DDRM but for the timesteps; and its `Lambda_noise` weighs n and eps without bringing them into the
    directions of V first, V diag(gamma) e instead of V diag(gamma) V^T e. That changes nothing for n, whose
    distribution V^T keeps, nor for masks, whose V only sorts pixels; eps it turns by V.
    """

    eta: Scalar = 0.85
    num_steps: int | None = static_field(default=100)

    def __post_init__(self):
        coerce(self, eta="fraction")

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate the chosen levels."""
        level, cleaner = walk(schedule, self.num_steps, "strided")
        return Grid(level, cleaner.signal, cleaner.sigma)

    def step(
        self, prior: Prior, problem: Problem, state: NoisyState, point: Grid, noise: Noise
    ) -> tuple[NoisyState, StepInfo]:
        """Make steps 1 to 4."""
        x_t, operator = state.x_t, cast(DecomposableOperator, problem.operator)
        parts = operator.svd()
        inverse = parts.inverse().astype(x_t.dtype)
        x0_hat, eps = predict(prior, x_t, point.level)

        noise_of_inverse = point.next_signal * problem.sigma_y * inverse
        is_clean = point.next_sigma_t >= noise_of_inverse
        keep = root(1 - self.eta**2)
        lam = jnp.where(is_clean, 1.0, keep * point.next_sigma_t / jnp.where(is_clean, 1.0, noise_of_inverse))
        residual = problem.residual(x0_hat)
        x = x0_hat - parts.to_image(lam * inverse * parts.from_measurement(residual))

        n = noise.draw(0, x_t.shape)
        e = self.eta * n + keep * eps
        sigma, known = point.next_sigma_t, lam * noise_of_inverse
        gamma = root((sigma - known) * (sigma + known))
        e_bar, n_bar = parts.from_image(e), parts.from_image(n)
        filled = jnp.where(is_clean, gamma * e_bar, gamma * n_bar)
        e = sigma * e + parts.to_image(filled - sigma * e_bar)  # in this form also where no coefficient reaches
        return NoisyState(point.next_signal * x + e), StepInfo(sum_of_squares(residual) / problem.num_observed)
