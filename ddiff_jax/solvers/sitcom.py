"""SITCOM: optimise the network's input at every level until the data are met to their noise (ICML 2025)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.levels import Level, Schedule, walk
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Prior, predict
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Needs, StepInfo, coerce, start
from ddiff_jax.types import Column, Image, Scalar

FIRST, SECOND = 0.9, 0.999  # decay of Adam's two moments
ADAM_EPS = 1e-8
FLAT = 1e-30  # under the root of Adam, where a gradient that is zero has no derivative otherwise; moves no number


@pytree_dataclass
class Grid:
    """The numbers of every step: a row for every step of Adam, those of one level in a row."""

    level: Level
    cleaner: Level  # the next one; the last is followed by itself
    first_bias: Column  # what Adam's moments have gathered of their full size
    second_bias: Column
    is_last: Column  # of its level


@pytree_dataclass
class State:
    """The iterates between two steps of Adam.

    Args:
        v: the network's input, in units of levels with signal^2 + sigma^2 = 1.
        first: Adam's mean of the gradients.
        second: Adam's mean of their squares.
        z: the image that the network made of the last input.
    """

    v: Image
    first: Image
    second: Image
    z: Image


@pytree_dataclass
class SITCOM:
    """Move the network's input by Adam until its output meets the data, noise that output to the next level, repeat.

    At every level x_t = a x_0 + b n, from v = x_t and with Adam's moments at 0:

    1. z = x0_hat(v), clamped to [-1, 1], and L = ||A(z) - y||^2 over the m numbers that were observed.
    2. If L < (sigma_y + delta)^2 m, v stays. Else one step of Adam (beta 0.9 and 0.999, epsilon 1e-8) along the
       gradient of L with respect to v: through operator, clamp and network.
    3. After adam_steps times 1 and 2: x_t' = a' z + b' n at the next level (a', b'), with the z that was made last.

    The result is the last z. As written this is for levels with a^2 + b^2 = 1; for others v is scaled to such units, so
    that lr means the same.

    Steps of Adam that follow after v has come to rest are made all the same, without effect, so that every image of a
    batch takes as long as every other: the misfits that are reported tell after how many a level was done with.

    Aim: one image (MAP): one that meets the data and that the network makes of one input. How far the input moves costs
    nothing, and the noise of the last levels is small.

    Derivatives: none pass through clamped pixels of z. Adam's first step is nearly the sign of the gradient: its
    derivative is nearly 0, and up to lr / 1e-8 for numbers that are nearly 0. To sigma_y and to delta it is 0: they
    decide when v rests, and nothing else.

    Args:
        lr: step size of Adam.
        delta: margin over the noise level, in units of y.
        num_steps: N, levels, every T / N-th down to the least noisy.
        adam_steps: K, steps of Adam at every level; so N K evaluations of the network, with as many passes backwards.
        clip: clamp z, as published.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Alkhouri et al. 2025 and its released code, the script for noisy data.
    Differs: the result is the last z, where the released code keeps the one of highest PSNR against the truth. It also
    draws a second noise at every level and drops it, and pastes the data, with their noise, into what inpainting
    observed: neither here. (paper) The penalty on the distance of v from x_t is absent from the code, and here.
    """

    lr: Scalar = 0.02
    delta: Scalar = 0.001
    num_steps: int | None = static_field(default=20)
    adam_steps: int = static_field(default=30)
    clip: bool = static_field(default=True)

    def __post_init__(self):
        coerce(self, lr="positive", delta="non-negative")
        if self.adam_steps < 1:
            raise ValueError(f"SITCOM.adam_steps must be at least 1; got {self.adam_steps}")

    aim = "map"
    needs = Needs()

    def cost(self, operator: Operator) -> Cost:
        """Declare what the last step of a level costs; the others draw nothing."""
        return Cost(network_evaluations=1, network_gradients=1, operator_gradients=1, normal_draws=1)

    def total_cost(self, operator: Operator, schedule: Schedule, num_steps: int) -> Cost:
        """Add up what the first steps of a run cost."""
        each = Cost(network_evaluations=1, network_gradients=1, operator_gradients=1) * num_steps
        return each + Cost(normal_draws=1) * (num_steps // self.adam_steps)

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate steps 2 and 3 over the chosen levels."""
        level, _ = walk(schedule, self.num_steps, "strided")
        count = len(level.signal)
        of_levels = np.repeat(np.arange(count), self.adam_steps)
        j = np.tile(np.arange(1, self.adam_steps + 1), count)
        return Grid(
            level[of_levels],
            level[np.minimum(of_levels + 1, count - 1)],
            first_bias=1 - FIRST**j,
            second_bias=1 - SECOND**j,
            is_last=j == self.adam_steps,
        )

    def init(self, prior: Prior, problem: Problem, point: Grid, noise: Noise, x_init: Image | None = None) -> State:
        """Start at noise, or at `x_init` taken as the noisy state."""
        x_t = start(prior, point.level, noise) if x_init is None else x_init
        return _fresh(x_t, point.level, x_t)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make steps 1 and 2, and at the end of a level step 3."""

        def loss(v: Image) -> tuple[Float[Array, ""], Image]:
            z, _ = predict(prior, point.level.scale * v, point.level)
            z = jnp.clip(z, -1, 1) if self.clip else z
            return 2 * problem.half_squared_residual(z), z

        (squares, z), gradient = jax.value_and_grad(loss, has_aux=True)(state.v)
        misfit = squares / problem.num_observed
        first = FIRST * state.first + (1 - FIRST) * gradient
        second = SECOND * state.second + (1 - SECOND) * gradient**2
        change = self.lr * (first / point.first_bias) / (jnp.sqrt(second / point.second_bias + FLAT) + ADAM_EPS)
        # Once it rests it rests: the same v gives the same misfit, and the moments no longer matter.
        v = jnp.where(misfit < (problem.sigma_y + self.delta) ** 2, state.v, state.v - change)

        def renoise() -> State:
            x_t = point.cleaner.signal * z + point.cleaner.sigma * noise.draw(0, z.shape)
            return _fresh(x_t, point.cleaner, z)

        state = jax.lax.cond(point.is_last, renoise, lambda: State(v, first, second, z))
        return state, StepInfo(misfit)

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.z


def _fresh(x_t: Image, level: Level, z: Image) -> State:
    """Begin a level."""
    return State(x_t / level.scale, jnp.zeros_like(x_t), jnp.zeros_like(x_t), z)
