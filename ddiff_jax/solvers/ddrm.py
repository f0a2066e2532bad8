"""DDRM: denoising diffusion restoration models (Kawar et al., NeurIPS 2022)."""

from typing import cast

import jax.numpy as jnp

from ddiff_jax.levels import Level, Schedule, walk
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import DecomposableOperator
from ddiff_jax.priors.base import Prior, predict
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import StepInfo, coerce, root
from ddiff_jax.solvers.walking import NoisyState, SpectralWalker
from ddiff_jax.types import Column, Image, Scalar


@pytree_dataclass
class Grid:
    """The numbers of every step."""

    level: Level
    next_signal: Column
    next_sigma_ve: Column  # of x_0 + sigma n


@pytree_dataclass
class DDRM(SpectralWalker):
    r"""Sample every coefficient of A = U diag(s) V^T from the prior, the data or both, whichever is less noisy.

    Let x_bar = V^T x_t / a for a level x_t = a x_0 + b n, of noise sigma_ve = b / a, and y_bar = U^T y / s, of noise
    sigma_y / s. The start has x_bar = y_bar + sqrt(sigma_ve^2 - sigma_y^2 / s^2) n where the data are less noisy
    than the first level, and sigma_ve n elsewhere. Every step goes from one level to the next, the last one to the
    clean image where sigma_ve = 0; with x0_hat the denoised image, not clipped, eps the predicted noise, X and e
    their coefficients, n ~ N(0, I) and sigma the sigma_ve of the next level:

    1. s = 0:                    x_bar' = X + sqrt(1 - eta^2) sigma e + eta sigma n.
    2. 0 < s sigma < sigma_y:    x_bar' = X + sqrt(1 - eta^2) sigma s (y_bar - X) / sigma_y + eta sigma n.
    3. s sigma >= sigma_y:       x_bar' = (1 - eta_b) X + eta_b y_bar + sqrt(sigma^2 - (eta_b sigma_y / s)^2) n.

    Without noise the result fits y exactly.

    Aim: the posterior, by the variational distribution above, whose network was trained without y.

    Derivatives: the result jumps where a coefficient changes its case, as sigma_y or the singular values move; inside
    of the cases it is smooth. Which singular values count as zero is taken for granted. At eta = 1, and where
    sigma = eta_b sigma_y / s, a root has an infinite slope, which counts as 0.

    Args:
        eta: share of fresh noise where the data are noisier than the level, in [0, 1].
        eta_b: weight of the data where they are less noisy, in [0, 1].
        num_steps: updates, that is network evaluations: every T / num_steps-th level; None is all of them.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: the paper's equations 4, 5 and, for the values, its section 5.
    Differs: (code) x_bar becomes x_t by the factor a at the start as well, where it has 1 / sigma_ve (5e-5
    less); where s sigma = sigma_y = 0, in the last step without noise, the data count, as in the paper; singular
    values below 3.5e-4 of the largest count as zero, for blurs there those below 0.03 in each factor.
    """

    eta: Scalar = 0.85
    eta_b: Scalar = 1.0
    num_steps: int | None = static_field(default=20)

    def __post_init__(self):
        coerce(self, eta="fraction", eta_b="fraction")

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate the chosen levels."""
        level, cleaner = walk(schedule, self.num_steps, "strided")
        return Grid(level, cleaner.signal, cleaner.ratio)

    def init(
        self, prior: Prior, problem: Problem, point: Grid, noise: Noise, x_init: Image | None = None
    ) -> NoisyState:
        """Start at the data with as much noise as belongs to the first level, or at `x_init`."""
        if x_init is not None:
            return NoisyState(x_init)
        n, sigma_ve = noise.draw(0, prior.image_shape), point.level.ratio
        parts = cast(DecomposableOperator, problem.operator).svd()
        inverse, n_bar = parts.inverse().astype(n.dtype), parts.from_image(n)
        missing = root(sigma_ve**2 - (problem.sigma_y * inverse) ** 2)
        x_bar = inverse * parts.from_measurement(problem.y) + missing * n_bar
        use_data = (inverse > 0) & (sigma_ve >= problem.sigma_y * inverse)
        correction = jnp.where(use_data, x_bar - sigma_ve * n_bar, 0.0)
        return NoisyState(point.level.signal * (sigma_ve * n + parts.to_image(correction)))

    def step(
        self, prior: Prior, problem: Problem, state: NoisyState, point: Grid, noise: Noise
    ) -> tuple[NoisyState, StepInfo]:
        """Make the update from one level to the next."""
        x_t, sigma_y, sigma = state.x_t, problem.sigma_y, point.next_sigma_ve
        parts = cast(DecomposableOperator, problem.operator).svd()
        inverse = parts.inverse().astype(x_t.dtype)
        (x0_hat, eps), n = predict(prior, x_t, point.level), noise.draw(0, x_t.shape)
        x_bar, n_bar = parts.from_image(x0_hat), parts.from_image(n)  # X and V^T n
        y_bar = inverse * parts.from_measurement(problem.y)
        keep = root(1 - self.eta**2)

        unseen = x0_hat + keep * sigma * eps + self.eta * sigma * n  # case 1, where no coefficient reaches as well
        is_noisier = sigma < sigma_y * inverse
        rate = jnp.where(is_noisier, 1 / jnp.where(is_noisier, sigma_y * inverse, 1.0), 0.0)  # s / sigma_y
        noisier = x_bar + keep * sigma * rate * (y_bar - x_bar) + self.eta * sigma * n_bar
        missing = root(sigma**2 - (self.eta_b * sigma_y * inverse) ** 2)
        cleaner = (1 - self.eta_b) * x_bar + self.eta_b * y_bar + missing * n_bar
        seen = jnp.where(is_noisier, noisier, cleaner)
        correction = jnp.where(inverse > 0, seen - parts.from_image(unseen), 0.0)
        x_t = point.next_signal * (unseen + parts.to_image(correction))
        return NoisyState(x_t), StepInfo(misfit=problem.misfit(x0_hat))
