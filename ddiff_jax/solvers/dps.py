"""DPS: diffusion posterior sampling, guided by the gradient through the network (ICLR 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.levels import Level, Schedule, walk
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Prior, denoise_with_variance
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Needs, StepInfo, coerce, ratio, root, wide
from ddiff_jax.solvers.walking import NoisyState, Walker
from ddiff_jax.types import Column, Image, Scalar


@pytree_dataclass
class Grid:
    """The numbers of every step."""

    level: Level
    w_z: Column
    w_x: Column
    log_beta: Column
    log_posterior: Column  # of the posterior's variance
    is_noisy: Column
    zeta: Column


@pytree_dataclass
class DPS(Walker):
    """Walk the ancestral sampler, and after every step go down the gradient of the residual norm.

    Every step goes from a level x_t = a x_0 + b n to the next one (a', b'), the last one to the clean image:

    1. z = denoise(x_t), clipped if the prior clips, and v, where between its bounds the network puts the step's
       variance.
    2. x' = w_z z + w_x x_t + sigma n: the DDPM posterior's mean, w_z = a' beta / b^2 and w_x = (a / a') b'^2 / b^2,
       with log sigma^2 = f log beta + (1 - f) log beta~, f = (v + 1) / 2, beta = b^2 - (a / a')^2 b'^2 and
       beta~ = beta b'^2 / b^2. No noise in the last step.
    3. x_t' = x' - zeta grad_{x_t} ||y - A(z(x_t))||: the norm, not its square; through operator, clipping and network.

    As written this is for levels with a^2 + b^2 = 1; for others zeta and the beta of log sigma^2 are scaled to the
    units of x_t and x_t', so that the result is the same.

    Aim: the posterior, with p(x_0 | x_t) taken for a point, and a step size that no posterior knows.

    Derivatives: none pass through clipped pixels of z.

    Args:
        zeta: step size, as released. It is insensitive to sigma_y, and the values for 256x256 serve 64x64 as well:
            scaled to the same change per pixel they are too short there.
        num_steps: network evaluations, spread evenly over the schedule; None is all its levels, as published.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Chung et al. 2023 and its released code.
    Differs: an exact fit gives no step instead of NaN. The released code has noise in the pixels that inpainting hides,
    and counts it in the norm, which shortens the steps. Here what y holds there counts for nothing; m hidden numbers
    enter the norm as what they amount to on average, m sigma_y^2 under the root, so that zeta means the same.
    """

    zeta: Scalar
    num_steps: int | None = static_field(default=None)

    def __post_init__(self):
        coerce(self, zeta="non-negative")

    aim = "posterior"
    needs = Needs()

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(network_evaluations=1, network_gradients=1, operator_gradients=1, normal_draws=1)

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate steps 2 and 3 over the chosen levels."""
        level, cleaner = walk(schedule, self.num_steps)
        beta = level.step_variance(cleaner)
        is_noisy = cleaner.sigma > 0
        posterior = np.where(is_noisy, level.posterior_std(cleaner) ** 2, 1.0)  # 0 in the last step, where nobody asks
        return Grid(
            level,
            w_z=cleaner.signal * beta / level.sigma**2,
            w_x=level.signal / cleaner.signal * (cleaner.sigma / level.sigma) ** 2,
            log_beta=np.log(beta * (cleaner.scale / level.scale) ** 2),
            log_posterior=np.log(posterior),
            is_noisy=is_noisy.astype(np.float64),
            zeta=wide(self.zeta) * (level.scale * cleaner.scale),
        )

    def step(
        self, prior: Prior, problem: Problem, state: NoisyState, point: Grid, noise: Noise
    ) -> tuple[NoisyState, StepInfo]:
        """Make steps 1 to 3."""
        x_t = state.x_t

        def half_squared_residual(x_t: Image) -> tuple[Float[Array, ""], tuple[Image, Image]]:
            z, v = denoise_with_variance(prior, x_t, point.level)
            return problem.half_squared_residual(z), (z, v)

        (half, (z, v)), gradient = jax.value_and_grad(half_squared_residual, has_aux=True)(x_t)
        f = (v + 1) / 2
        std = jnp.exp(0.5 * (f * point.log_beta + (1 - f) * point.log_posterior))
        x = point.w_z * z + point.w_x * x_t + point.is_noisy * std * noise.draw(0, x_t.shape)
        step = point.zeta * ratio(gradient, root(2 * half + problem.num_hidden * problem.sigma_y**2))
        return NoisyState(x - step), StepInfo(2 * half / problem.num_observed)
