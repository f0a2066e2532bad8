"""Diff-PnP-ADMM and Diff-PnP-HQS: DDiff without new noise, the denoiser applied to the clean-looking variable."""

import jax.numpy as jnp

from ddiff_jax.levels import Level, Schedule, walk
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import published_time
from ddiff_jax.solvers.base import Cost, Needs, StepInfo, norm
from ddiff_jax.solvers.ddiff import data_step
from ddiff_jax.solvers.step_length import Fixed
from ddiff_jax.types import Column, Image


@pytree_dataclass
class Grid:
    """The numbers of every step."""

    level: Level
    gamma: Column
    gain: Column  # what w is multiplied with before the network sees it


@pytree_dataclass
class State:
    """The iterates between two steps."""

    w: Image  # x + u
    u: Image
    x: Image


@pytree_dataclass
class DiffPnPADMM:
    """Plug-and-play ADMM with a diffusion model's denoiser at falling noise levels, and no noise added back.

    At every level x_t = a x_0 + b n, from w ~ N(0, I) and u = 0:

    1. z = denoise(w), clipped if the prior clips: the network takes w, times sqrt(a^2 + b^2), which is 1 in the
       published schedule, for a noisy state of this level.
    2. v = z - u.
    3. x = v - gamma_t g, with g the normalised gradient of ||y - A(v)||^2 / 2, as in DDiff.
    4. u <- u + x - z, and w = x + u.

    Aim: one image (MAP), as `DDiff`.

    Derivatives: as of `DDiff`.

    Args:
        step_length: `Fixed(gamma)`, as in `DDiff`.
        num_steps: as in `DDiff`.
        dual: keep the dual variable.

    Raises:
        ValueError: a hyper-parameter is outside its range, or the step has no fixed length.

    Source: the text of the DDiff paper; there is no released code. It leaves open whether w is scaled by a first, to
    the signal that the network expects: the pictures that this makes are as poor, as the paper reports.
    """

    step_length: Fixed
    num_steps: int | None = static_field(default=None)
    dual: bool = static_field(default=True)

    def __post_init__(self):
        if not isinstance(self.step_length, Fixed):
            raise ValueError(f"{type(self).__name__}.step_length must be Fixed(gamma); got {self.step_length!r}")

    aim = "map"
    needs = Needs()

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(network_evaluations=1, operator_gradients=1)

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate the levels of DDiff and their step lengths."""
        level, _ = walk(schedule, self.num_steps, to_clean=False)
        return Grid(level, self.step_length.at(published_time(level)), level.scale)

    def init(self, prior: Prior, problem: Problem, point: Grid, noise: Noise, x_init: Image | None = None) -> State:
        """Start at w ~ N(0, I), or at `x_init`, with u = 0."""
        w = noise.draw(0, prior.image_shape) if x_init is None else x_init
        return State(w, jnp.zeros_like(w), w)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make steps 1 to 4."""
        u = state.u
        z = prior.denoise(point.gain * state.w, point.level)
        misfit, x = data_step(problem, z - u, self.step_length, point.gamma)
        if self.dual:
            u = u + x - z
        return State(x + u, u, x), StepInfo(misfit, gap=norm(x - z), dual=norm(u) if self.dual else None)

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x


@pytree_dataclass
class DiffPnPHQS(DiffPnPADMM):
    """The same without dual variable: half-quadratic splitting. Aim: one image (MAP). Hyper-parameters as there."""

    dual: bool = static_field(default=False)
