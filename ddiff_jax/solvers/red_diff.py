"""RED-diff: variational inference with a diffusion model as a regulariser by denoising (ICLR 2024)."""

from typing import Any, Literal, cast

import jax
import jax.numpy as jnp

from ddiff_jax.levels import Level, Schedule, walk
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import LinearOperator, Operator
from ddiff_jax.priors.base import Prior, predict
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Needs, StepInfo, check_choice, coerce, wide
from ddiff_jax.types import Column, Image, Scalar, float_type

# Weights of the prior as functions of sigma / signal, one over the root of the signal-to-noise ratio.
WEIGHTS = {
    "linear": lambda ratio: ratio,
    "sqrt": jnp.sqrt,
    "square": jnp.square,
    "log": jnp.log1p,
    "trunc_linear": lambda ratio: jnp.minimum(ratio, 1.0),
    "power2over3": lambda ratio: ratio ** (2 / 3),
    "const": jnp.ones_like,
}
LEAST_RHO = 1e-6  # of the start, where sigma_y = 0
FLAT = 1e-30  # under the root of Adam, where a gradient that is zero has no derivative otherwise; moves no number


@pytree_dataclass
class Grid:
    """The numbers of every step."""

    level: Level
    weight: Column  # w_t


@pytree_dataclass
class State:
    """The iterates between two steps."""

    mu: Image
    adam: Any
    x: Image


@pytree_dataclass
class REDDiff:
    """Fit the mean mu of a narrow Gaussian to the posterior, by stochastic gradient descent from high to low noise.

    At every level (a, b):

    1. x = mu + sigma_x0 n0, and x_t = a x + b n.
    2. e = eps(x_t), not clipped, taken as a constant.
    3. gradient = obs_weight / m J^T (A(x) - y) + w_t / N (e - n), with m and N the numbers in y and in the image,
       w_t = lam phi(b / a): means, not sums, of measurement and image; m counts hidden entries, as published.
    4. One step of Adam (beta 0.9 and 0.99) on mu.

    The result is the x of the last step, before its update of mu.

    Aim: one image (MAP): of a narrow Gaussian that is fitted to the posterior only the mean is free.

    Derivatives of the result pass through e too. Adam's first step is nearly the sign of the gradient: its derivative
    is nearly 0, and up to lr / 1e-8 for numbers that are nearly 0. To sigma_y below 1e-3 it is 0.

    Args:
        lam: lambda, weight of the prior.
        lr: step size of Adam.
        weighting: phi, a function of the noise-to-signal ratio: "linear", "sqrt", "square", "log" (ln(1 + ratio)),
            "trunc_linear" (at most 1), "power2over3" or "const".
        obs_weight: weight of the data term.
        sigma_x0: standard deviation of the Gaussian; None is 0 and draws nothing.
        num_steps: network evaluations, every T / num_steps-th level down to the least noisy.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Mardani et al. 2024 and its released code.
    Differs: means are taken per image, not over the batch. The start is the ridge solution
    argmin ||y - A x||^2 + sigma_y^2 ||x||^2 instead of the pseudo-inverse, which explodes for blurs, and 0 for
    operators without `prox` instead of guesses made for each task.
    """

    lam: Scalar = 0.25
    lr: Scalar = 0.1
    obs_weight: Scalar = 1.0
    sigma_x0: Scalar | None = None
    weighting: Literal["linear", "sqrt", "square", "log", "trunc_linear", "power2over3", "const"] = static_field(
        default="linear"
    )
    num_steps: int | None = static_field(default=None)

    def __post_init__(self):
        coerce(self, lam="non-negative", lr="positive", obs_weight="non-negative", sigma_x0="non-negative")
        check_choice(self, weighting=tuple(WEIGHTS))

    aim = "map"
    needs = Needs()

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(network_evaluations=1, operator_gradients=1, normal_draws=1 if self.sigma_x0 is None else 2)

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate steps 1 and 3 over the chosen levels."""
        level, _ = walk(schedule, self.num_steps, "strided")
        return Grid(level, wide(self.lam) * WEIGHTS[self.weighting](wide(level.ratio)))

    def _adam(self) -> Any:
        import optax

        return optax.adam(jnp.asarray(self.lr), b1=0.9, b2=0.99, eps_root=FLAT)

    def init(self, prior: Prior, problem: Problem, point: Grid, noise: Noise, x_init: Image | None = None) -> State:
        """Start at the ridge solution, or at 0 if the operator has no `prox`, or at mu = `x_init`."""
        mu = jnp.zeros(prior.image_shape, float_type(problem.y)) if x_init is None else x_init
        if x_init is None and hasattr(problem.operator, "prox"):
            rho = jnp.maximum(problem.sigma_y**2, LEAST_RHO)
            mu = cast(LinearOperator, problem.operator).prox(mu, problem.y, rho)
        return State(mu, self._adam().init(mu), mu)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make steps 1 to 4."""
        x = state.mu
        n = noise.draw(0, x.shape)
        if self.sigma_x0 is not None:
            x = x + self.sigma_x0 * noise.draw(1, x.shape)
        _, e = predict(prior, point.level.signal * x + point.level.sigma * n, point.level)
        misfit, g = problem.misfit_and_gradient(x)
        gradient = self.obs_weight / problem.y.size * g + point.weight / x.size * (e - n)
        with jax.numpy_dtype_promotion("standard"):  # whatever our caller allows, optax relies on JAX's own
            update, adam = self._adam().update(gradient, state.adam)
        return State(state.mu + update, adam, x), StepInfo(misfit)

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x
