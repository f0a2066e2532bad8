"""DDRM: denoising diffusion restoration models, in the coordinates of the singular vectors (NeurIPS 2022)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import Decomposition, ImageShape, Operator
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
    next_signal: Float[Array, " K"]  # sqrt(ab_s)
    next_sigma_ve: Float[Array, " K"]  # sqrt((1 - ab_s) / ab_s)


@pytree_dataclass
class State:
    """The noisy state."""

    x_t: Image


@pytree_dataclass
class DDRM:
    """Sample every singular direction of A = U diag(s) V^T with as much data or prior as its noise level calls for.

    Every step goes from timestep t to the next one, whose noise level in units of x_0 + sigma n is sigma; the last one
    has sigma = 0. With ybar_i = (U^T y)_i / s_i, X = V^T x0_hat(x_t), not clipped, and e = V^T eps:

    - s_i = 0, what A does not see:   X_i + sqrt(1 - eta^2) sigma e_i + eta sigma n
    - 0 < s_i sigma < sigma_y:        X_i + sqrt(1 - eta^2) sigma s_i (ybar_i - X_i) / sigma_y + eta sigma n
    - s_i sigma > sigma_y:            (1 - eta_b) X_i + eta_b ybar_i + sqrt(sigma^2 - eta_b^2 sigma_y^2 / s_i^2) n

    Args:
        eta: new noise where the data say little, in [0, 1].
        eta_b: trust in the data where they are less noisy than the state, in [0, 1].
        cutoff: singular values up to this count as 0.
        num_steps: network evaluations, every T / num_steps-th timestep.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Kawar et al. 2022 and its released code.
    Differs: one draw per step serves all cases. The cut-off is on the singular values of A: the released code puts
    0.03 on those of the factors of a blur, so that 0.03^2 is the least that it keeps.
    """

    eta: Scalar = 0.85
    eta_b: Scalar = 1.0
    cutoff: Scalar = 9e-4
    num_steps: int | None = static_field(default=20)

    def __post_init__(self):
        coerce(self, eta="fraction", eta_b="fraction", cutoff="non-negative")

    needs = ("svd",)

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(network_evaluations=1, operator_evaluations=1, operator_solves=1, normal_draws=1)

    def grid(self, schedule: NoiseSchedule) -> Grid:
        """Tabulate the noise levels of the chosen timesteps."""
        timesteps = jnp.asarray(strided_timesteps(schedule.num_timesteps, self.num_steps))
        alpha_bar, noise_var = schedule.levels(timesteps[1:])
        return Grid(timesteps[:-1], jnp.sqrt(alpha_bar), jnp.sqrt(noise_var / alpha_bar))

    def init(
        self, prior: Prior, problem: Problem, shape: ImageShape, noise: Noise, x_init: Image | None = None
    ) -> State:
        """Start at the data plus the noise that is missing where they are the less noisy, or at `x_init`."""
        if x_init is not None:
            return State(x_init)
        t = int(strided_timesteps(prior.schedule.num_timesteps, self.num_steps)[0])
        sigma = jnp.sqrt(prior.schedule.noise_var[t] / prior.schedule.alpha_bar[t])
        n = sigma * noise.draw(0, shape)
        parts = _decompose(problem.operator)
        s, ybar = self._data(problem, parts)
        c = parts.from_image(n)
        missing = jnp.sqrt(jnp.maximum(sigma**2 - (problem.sigma_y / s) ** 2, 0.0))
        seen = jnp.where(s * sigma > problem.sigma_y, ybar + missing / sigma * c, c)
        return State((n + self._where_seen(parts, seen - c)) / sigma)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make the update from t to s."""
        eps = prior.eps(state.x_t, point.t)
        x0_hat = tweedie(prior.schedule, state.x_t, eps, point.t, clip=False)
        sigma, sigma_y, n = point.next_sigma_ve, problem.sigma_y, noise.draw(0, eps.shape)
        old, new = jnp.sqrt(1 - self.eta**2) * sigma, self.eta * sigma
        unseen = x0_hat + old * eps + new * n

        parts = _decompose(problem.operator)
        s, ybar = self._data(problem, parts)
        x, e, c = jax.vmap(parts.from_image)(jnp.stack([x0_hat, eps, n]))
        is_noisy, is_clear = s * sigma < sigma_y, s * sigma > sigma_y
        noisy = x + old * s * (ybar - x) / jnp.where(is_noisy, sigma_y, 1.0) + new * c
        left = jnp.sqrt(jnp.maximum(sigma**2 - (self.eta_b * sigma_y / s) ** 2, 0.0))
        clear = (1 - self.eta_b) * x + self.eta_b * ybar + left * c
        coefficients = x + old * e + new * c
        seen = jnp.where(is_noisy, noisy, jnp.where(is_clear, clear, coefficients))
        x_0 = unseen + self._where_seen(parts, seen - coefficients)
        return State(point.next_signal * x_0), StepInfo(problem.misfit(x0_hat))

    def _data(self, problem: Problem, parts: Decomposition) -> tuple[Array, Array]:
        """Give s (1 where nothing is seen) and ybar."""
        s = jnp.where(parts.s > self.cutoff, parts.s, 1.0)
        return s, parts.from_measurement(problem.y) / s

    def _where_seen(self, parts: Decomposition, change: Array) -> Image:
        return parts.to_image(jnp.where(parts.s > self.cutoff, change, 0.0))

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x_t


def _decompose(operator: Operator) -> Decomposition:
    return operator.svd()  # pyright: ignore[reportAttributeAccessIssue] - the driver has checked `needs`
