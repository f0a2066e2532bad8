"""What solvers share that walk down the levels with the noisy image as their state."""

from typing import Any

from ddiff_jax.levels import Level
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.solvers.base import Cost, Needs, start
from ddiff_jax.types import Column, Image


@pytree_dataclass
class NoisyState:
    """The noisy state at the level of the step."""

    x_t: Image


@pytree_dataclass
class Renoising:
    """The numbers of steps that noise an estimate x to the next level: x_t' = next_signal x + w_eps eps_hat + w_n n."""

    level: Level
    next_signal: Column
    w_eps: Column
    w_n: Column

    def renoise(self, x: Image, eps_hat: Image, n: Image) -> Image:
        """Noise an estimate with the noise found in x_t and with new one."""
        return self.next_signal * x + self.w_eps * eps_hat + self.w_n * n


class Walker:
    """Base of the solvers whose state is a `NoisyState`, which is also their result."""

    def init(self, prior: Prior, problem: Problem, point: Any, noise: Noise, x_init: Image | None = None) -> NoisyState:
        """Start at noise, or at `x_init` taken as the noisy state."""
        return NoisyState(start(prior, point.level, noise) if x_init is None else x_init)

    def estimate(self, state: NoisyState) -> Image:
        """Read the image off a state."""
        return state.x_t


class SpectralWalker(Walker):
    """Base of those that draw every coefficient of the operator's singular value decomposition by itself."""

    aim = "posterior"
    needs = Needs(("svd",), gaussian_noise=True)

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(network_evaluations=1, operator_evaluations=1, operator_solves=1, normal_draws=1)
