"""Tikhonov regularisation: least squares with a penalty on the image's energy, without a learned prior."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddiff_jax.levels import Schedule
from ddiff_jax.likelihood import sum_of_squares
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import TINY, Cost, Needs, StepInfo, coerce
from ddiff_jax.solvers.without_prior import Iterations, first_image, iterations, linear
from ddiff_jax.types import Image, Scalar

# Where lambda is looked for, in units of the curvature of ||A x - y||^2 / 2 along its gradient, which is some ||A||^2.
LEAST, FIRST, MOST = 1e-6, 1e-2, 1e4


@pytree_dataclass
class State:
    """The image so far, and where the logarithm of lambda is looked for."""

    x: Image
    centre: Image
    log_lam: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]


@pytree_dataclass
class Tikhonov:
    """Minimise ||A x - y||^2 + lam ||x - x_m||^2, with x_m mid-grey.

    With a number for lam this is one least-squares problem. Without, lam is chosen by the discrepancy: the misfit of x
    must be that of the noise, ||A x - y||^2 = m sigma_y^2 with m observed numbers. It rises with lam; every step

    1. solves the problem for lam, x = prox(x_m, y, lam), with the slope of ln misfit in ln lam;
    2. narrows the interval that must hold the wanted lam;
    3. goes on with Newton's step in ln lam, or to the middle of the interval where that would leave it.

    Where the noise explains even x_m, or not even least squares fit down to it, lam ends at the last or first value
    that is looked at, 1e4 and 1e-6 times the squared gain of the operator.

    Aim: an estimate without a learned prior: the most probable image, and the posterior's mean, of a Gaussian one.

    No network is evaluated and nothing is drawn. Derivatives are those of the chosen lam as well, up to the last
    step's change of it.

    Args:
        lam: weight of the penalty; None chooses it by the noise level.
        num_steps: values of lam that are tried, if it is to be chosen.

    Raises:
        ValueError: lam is not positive.

    Source: Tikhonov 1963; the discrepancy principle, Morozov 1966.
    """

    lam: Scalar | None = None
    num_steps: int = static_field(default=12)

    def __post_init__(self):
        coerce(self, lam="positive")

    aim = "estimate"
    needs = Needs(("adjoint", "prox"))

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs: the slope is one more least-squares problem."""
        if self.lam is not None:
            return Cost(operator_evaluations=1, operator_solves=1)
        return Cost(operator_evaluations=2, operator_solves=2)

    def grid(self, schedule: Schedule) -> Iterations:
        """Tabulate the steps, whatever the schedule."""
        return iterations(self.num_steps if self.lam is None else 1)

    def init(
        self, prior: Prior, problem: Problem, point: Iterations, noise: Noise, x_init: Image | None = None
    ) -> State:
        """Start at mid-grey, or at `x_init`; that is x_m, too."""
        centre = first_image(prior, problem, x_init)
        if self.lam is not None:
            log_lam = jnp.log(jnp.asarray(self.lam, centre.dtype))
            return State(centre, centre, log_lam, log_lam, log_lam)
        direction = linear(problem).adjoint(problem.residual(centre))
        gain = sum_of_squares(linear(problem).forward(direction))
        squared = jnp.sum(direction**2)
        is_flat = (gain <= TINY) | (squared <= TINY)  # x_m fits exactly
        unit = jnp.log(jnp.where(is_flat, 1.0, gain)) - jnp.log(jnp.where(is_flat, 1.0, squared))
        low, log_lam, high = (unit + jnp.log(jnp.asarray(part, centre.dtype)) for part in (LEAST, FIRST, MOST))
        return State(centre, centre, log_lam, low, high)

    def step(
        self, prior: Prior, problem: Problem, state: State, point: Iterations, noise: Noise
    ) -> tuple[State, StepInfo]:
        """Make steps 1 to 3."""

        def solved(log_lam: Float[Array, ""]) -> tuple[Float[Array, ""], Image]:
            x = linear(problem).prox(state.centre, problem.y, jnp.exp(log_lam))
            return problem.misfit(x), x

        if self.lam is not None:
            misfit, x = solved(state.log_lam)
            return State(x, state.centre, state.log_lam, state.low, state.high), StepInfo(misfit)
        (misfit, x), (slope, _) = jax.jvp(solved, (state.log_lam,), (jnp.ones_like(state.log_lam),))
        excess = jnp.log(jnp.maximum(misfit, TINY)) - jnp.log(jnp.maximum(problem.sigma_y**2, TINY))
        low = jnp.where(excess < 0, state.log_lam, state.low)
        high = jnp.where(excess < 0, state.high, state.log_lam)
        slope = jax.lax.stop_gradient(slope / jnp.maximum(misfit, TINY))  # its own change does not matter at the root
        newton = state.log_lam - excess / jnp.where(slope <= TINY, TINY, slope)
        is_inside = (low <= newton) & (newton <= high)
        log_lam = jnp.where(is_inside, newton, (low + high) / 2)
        return State(x, state.centre, log_lam, low, high), StepInfo(misfit)

    def estimate(self, state: State) -> Image:
        """Read the image off a state."""
        return state.x
