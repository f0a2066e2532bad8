"""DiffPIR: half-quadratic splitting with a proximal data step inside a diffusion sampler (CVPRW 2023)."""

from typing import Literal, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import ImageShape, LinearOperator, Operator
from ddiff_jax.prior import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import NoiseSchedule
from ddiff_jax.solvers.base import Cost, StepInfo, check_choice, coerce, derivative_norm, norm, ratio, root
from ddiff_jax.types import Image, Scalar

# The published code bounds the noise level from below by 0.001 for images in [0, 1], where it is half of ours.
LEAST_SIGMA = 0.001


@pytree_dataclass
class Grid:
    """The numbers of every step from t to s."""

    t: Int[Array, " K"]
    variance: Float[Array, " K"]  # (1 - ab_t) / ab_t
    signal: Float[Array, " K"]  # sqrt(ab_t)
    sigma_t: Float[Array, " K"]  # sqrt(1 - ab_t)
    next_signal: Float[Array, " K"]  # sqrt(ab_s)
    w_eps: Float[Array, " K"]
    w_n: Float[Array, " K"]


@pytree_dataclass
class State:
    """The noisy state."""

    x_t: Image


@pytree_dataclass
class DiffPIR:
    """Alternate a denoiser and a data step, then noise the result to the next level.

    Every step goes from timestep t to the next one s, with ab the cumulative products of the schedule:

    1. z = denoise(x_t), clipped to [-1, 1].
    2. x = argmin ||y - A x||^2 + rho_t ||x - z||^2, with rho_t = lam (sigma_y / 2)^2 ab_t / (1 - ab_t).
    3. eps_hat = (x_t - sqrt(ab_t) x) / sqrt(1 - ab_t).
    4. x_s = sqrt(ab_s) x + sqrt(1 - zeta) (sqrt(1 - ab_s - s^2) eps_hat + s n) + sqrt(zeta (1 - ab_s)) n', with
       s = eta sqrt((1 - ab_s) / (1 - ab_t) beta_t); one draw stands for both n and n'.

    Derivatives: none pass through clipped pixels of z. At zeta = 1 and at zeta = eta = 0 a root has an infinite slope,
    which counts as 0. To sigma_y below 0.002 the derivative is 0.

    Args:
        lam: lambda, weight of the prior in the published units: the halved sigma_y in rho_t is the noise level of
            images in [0, 1], where the published codes state it.
        zeta: share of new noise, in [0, 1].
        eta: noise inside the share of old noise, in [0, 1].
        num_steps: updates, that is network evaluations. The published 20 and 100 timesteps are 19 and 99 updates;
            the last evaluation changes nothing there and is left out.
        spacing: "quad", dense at low noise, for up to 500 steps; or "uniform".
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

    gaussian_noise_only = True  # rho_t weighs the prior against a noise level

    @property
    def needs(self) -> tuple[str, ...]:
        """Name what the operator must have besides `forward`."""
        return ("prox",) if self.data_step == "prox" else ()

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

    def grid(self, schedule: NoiseSchedule) -> Grid:
        """Tabulate steps 2 to 4 over the chosen timesteps."""
        timesteps = self._timesteps(schedule.num_timesteps)
        t, s = jnp.asarray(timesteps[:-1]), jnp.asarray(timesteps[1:])
        noise_var, next_var = schedule.noise_var[t], schedule.noise_var[s]
        variance_n = self.eta**2 * next_var / noise_var * schedule.beta(t, t - 1)
        return Grid(
            t=t,
            variance=noise_var / schedule.alpha_bar[t],
            signal=jnp.sqrt(schedule.alpha_bar[t]),
            sigma_t=jnp.sqrt(noise_var),
            next_signal=jnp.sqrt(schedule.alpha_bar[s]),
            w_eps=root((1 - self.zeta) * (next_var - variance_n)),
            w_n=root((1 - self.zeta) * variance_n + self.zeta * next_var),
        )

    def _timesteps(self, total: int) -> np.ndarray:
        """Choose num_steps + 1 timesteps from the noisiest to 0."""
        fractions = np.linspace(0, 1, self.num_steps + 1) if self.num_steps > 0 else np.zeros(2)
        if self.spacing == "quad":
            places = np.minimum(np.floor(total * np.sqrt(fractions)), total - 1)
        else:
            places = np.round((total - 1) * fractions)
        if np.any(np.diff(places) < 1):
            raise ValueError(
                f"num_steps of DiffPIR must be at least 1, and few enough that no timestep of {total} repeats: with "
                f"quad spacing up to about {total // 2}, with uniform up to {total - 1}; got {self.num_steps}"
            )
        return (total - 1 - places).astype(np.int32)

    def init(
        self, prior: Prior, problem: Problem, shape: ImageShape, noise: Noise, x_init: Image | None = None
    ) -> State:
        """Start at x_T ~ N(0, I), or at `x_init` taken as the noisy state."""
        return State(noise.draw(0, shape) if x_init is None else x_init)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make the update from t to s, steps 1 to 4."""
        x_t = state.x_t
        z = prior.denoise(x_t, point.t)
        rho = self.lam * jnp.maximum(problem.sigma_y / 2, LEAST_SIGMA) ** 2 / point.variance
        misfit, x = self._step_to_data(problem, z, rho)
        eps_hat = (x_t - point.signal * x) / point.sigma_t
        x_t = point.next_signal * x + point.w_eps * eps_hat + point.w_n * noise.draw(0, x_t.shape)
        return State(x_t), StepInfo(misfit, gap=norm(x - z))

    def _step_to_data(self, problem: Problem, z: Image, rho: Scalar) -> tuple[Float[Array, ""], Image]:
        kind = self._data_step_for(problem.operator)
        if kind == "prox":
            return problem.misfit(z), cast(LinearOperator, problem.operator).prox(z, problem.y, rho)
        misfit, g = problem.misfit_and_gradient(z)
        if kind == "gradient":
            return misfit, z - g / rho
        squared = jnp.sum(g**2)
        return misfit, z - ratio(squared, derivative_norm(problem, z, g) + rho * squared) * g

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x_t
