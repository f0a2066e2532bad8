"""What solvers share that know nothing of images but their shape: the classical baselines."""

from typing import cast

import jax.numpy as jnp
import numpy as np

from ddiff_jax.levels import Schedule
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import LinearOperator, Operator
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.solvers.base import Cost, Needs, StepInfo
from ddiff_jax.types import Column, Image, float_type


@pytree_dataclass
class Iterations:
    """A table that only counts the steps, since they are all alike."""

    number: Column


@pytree_dataclass
class Estimated:
    """The image so far."""

    x: Image


def iterations(count: int) -> Iterations:
    """Tabulate so many steps."""
    return Iterations(np.arange(count, dtype=np.float64))


def first_image(prior: Prior, problem: Problem, x_init: Image | None) -> Image:
    """Start at `x_init`, or at mid-grey."""
    return jnp.zeros(prior.image_shape, float_type(problem.y)) if x_init is None else x_init


def linear(problem: Problem) -> LinearOperator:
    """See a problem's operator as the linear one that `needs` asked for."""
    return cast(LinearOperator, problem.operator)


class Iterated:
    """Base of the estimates by `num_steps` equal iterations, each an evaluation of the operator and of its adjoint."""

    num_steps: int
    aim = "estimate"
    needs = Needs(("adjoint",))

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(operator_gradients=1)

    def grid(self, schedule: Schedule) -> Iterations:
        """Tabulate the iterations, whatever the schedule."""
        return iterations(self.num_steps)


class OneStep:
    """Base of the estimates by one formula, x = x_init + B (y - A x_init), with x_init = 0 unless it is given."""

    aim = "estimate"
    needs = Needs()

    def grid(self, schedule: Schedule) -> Iterations:
        """Tabulate the one step, whatever the schedule."""
        return iterations(1)

    def init(
        self, prior: Prior, problem: Problem, point: Iterations, noise: Noise, x_init: Image | None = None
    ) -> Estimated:
        """Start at mid-grey, or at `x_init`."""
        return Estimated(first_image(prior, problem, x_init))

    def cost(self, operator: Operator) -> Cost:
        """Declare what the step costs."""
        raise NotImplementedError

    def correction(self, problem: Problem, x: Image) -> Image:
        """Compute B (y - A x)."""
        raise NotImplementedError

    def step(
        self, prior: Prior, problem: Problem, state: Estimated, point: Iterations, noise: Noise
    ) -> tuple[Estimated, StepInfo]:
        """Make the step; it reports the misfit of what comes of it."""
        x = state.x + self.correction(problem, state.x)
        return Estimated(x), StepInfo(problem.misfit(x))

    def estimate(self, state: Estimated) -> Image:
        """Read the image off a state."""
        return state.x
