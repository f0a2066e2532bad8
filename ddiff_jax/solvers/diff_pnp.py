"""Diff-PnP-ADMM and Diff-PnP-HQS: DDiff without new noise, the denoiser applied to the clean-looking variable."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import ImageShape, Operator
from ddiff_jax.prior import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import NoiseSchedule, respaced_timesteps
from ddiff_jax.solvers.base import Cost, StepInfo, check_choice, coerce, norm
from ddiff_jax.solvers.ddiff import data_step
from ddiff_jax.types import Image, Scalar


@pytree_dataclass
class Grid:
    """The numbers of every step."""

    t: Int[Array, " K"]
    gamma: Float[Array, " K"]
    gain: Float[Array, " K"]  # what w is multiplied with before the network sees it


@pytree_dataclass
class State:
    """The iterates between two steps."""

    w: Image  # x + u
    u: Image
    x: Image


@pytree_dataclass
class DiffPnPADMM:
    """Plug-and-play ADMM with a diffusion model's denoiser at falling noise levels, and no noise added back.

    At every timestep t, from w ~ N(0, I) and u = 0:

    1. z = denoise(w, t), clipped to [-1, 1]: the network takes w for a noisy state of timestep t.
    2. v = z - u.
    3. x = v - gamma_t g, with g the normalised gradient of ||y - A(v)||^2 / 2, as in DDiff.
    4. u <- u + x - z, and w = x + u.

    Derivatives: as of `DDiff`.

    Args:
        gamma: as in `DDiff`.
        a: as in `DDiff`.
        b: as in `DDiff`.
        t_gamma: as in `DDiff`.
        num_steps: as in `DDiff`.
        reading: "literal" hands w to the network as it is, as the paper's text has it; "matched" scales it by
            sqrt(ab_t) first, to the signal that the network expects at t.
        dual: keep the dual variable.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: the text of the DDiff paper; there is no released code, and both readings give the poor pictures that the
    paper reports.
    """

    gamma: Scalar
    a: Scalar = 3.3
    b: Scalar = 0.1
    t_gamma: Scalar = 90.0
    num_steps: int | None = static_field(default=None)
    reading: Literal["literal", "matched"] = static_field(default="literal")
    dual: bool = static_field(default=True)

    def __post_init__(self):
        coerce(self, gamma="positive", a="positive", b="positive", t_gamma="non-negative")
        check_choice(self, reading=("literal", "matched"))

    needs = ()

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(network_evaluations=1, operator_gradients=1)

    def grid(self, schedule: NoiseSchedule) -> Grid:
        """Tabulate the timesteps of DDiff and their step lengths."""
        t = jnp.asarray(respaced_timesteps(schedule.num_timesteps, self.num_steps)[:-1])
        gain = jnp.sqrt(schedule.alpha_bar[t])
        return Grid(
            t=t,
            gamma=self.gamma * jnp.where(t.astype(gain.dtype) > self.t_gamma, self.a, self.b),
            gain=jnp.ones_like(gain) if self.reading == "literal" else gain,
        )

    def init(
        self, prior: Prior, problem: Problem, shape: ImageShape, noise: Noise, x_init: Image | None = None
    ) -> State:
        """Start at w ~ N(0, I), or at `x_init`, with u = 0."""
        w = noise.draw(0, shape) if x_init is None else x_init
        return State(w, jnp.zeros_like(w), w)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make steps 1 to 4."""
        u = state.u
        z = prior.denoise(point.gain * state.w, point.t)
        misfit, x = data_step(problem, z - u, point.gamma)
        if self.dual:
            u = u + x - z
        return State(x + u, u, x), StepInfo(misfit, gap=norm(x - z), dual=norm(u) if self.dual else None)

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x


@pytree_dataclass
class DiffPnPHQS(DiffPnPADMM):
    """The same without dual variable: half-quadratic splitting. The hyper-parameters are those of `DiffPnPADMM`."""

    dual: bool = static_field(default=False)
