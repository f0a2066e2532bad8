"""PnP-Flow: gradient steps on the data and a flow as the denoiser, averaged over noises (ICLR 2025)."""

from typing import Literal

import jax
import jax.numpy as jnp

from ddiff_jax.levels import Schedule
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Needs, StepInfo, check_choice, coerce, derivative_norm, norm, ratio, wide
from ddiff_jax.solvers.straight import OnPath, straight_path
from ddiff_jax.types import Column, Image, Scalar, float_type


@pytree_dataclass
class Grid(OnPath):
    """The numbers of every step."""

    lr: Column


@pytree_dataclass
class State:
    """The estimate."""

    x: Image


@pytree_dataclass
class PnPFlow:
    """Alternate a gradient step on the data, noising along a flow's path, and the flow's denoiser.

    The path is z_t = t z + (1 - t) n. For t = 0, 1 / K, ..., 1 - 1 / K:

    1. z = x - lr (1 - t)^alpha s g, with g = J^T (A(x) - y), J the operator's derivative at x, and

       - "line": s = ||g||^2 / ||J g||^2, which at lr = 1 goes to the least misfit along g;
       - "published": s = 1, which is the same for masks and decimation, short for an operator that transmits little,
         such as a mean over pixels, and diverges where lr (1 - t)^alpha ||A||^2 exceeds 2.

    2. x = mean over n_1, ..., n_M ~ N(0, I) of E[x_0 | z_t], not clipped: z_t + (1 - t) v(z_t, t) with the velocity
       v = E[x_0 - n | z_t] of a flow.

    The first step knows noise alone: neither the start nor its own data step count. sigma_y plays no part; lr and alpha
    say how far the data are trusted.

    Any prior serves, not only flows: it is asked at the level of the same noise-to-signal ratio.

    Aim: one image: a denoised one that the data pull at. Runs hardly differ where M is large.

    Args:
        lr: factor on the data's gradient; 1 as published. With "line", steps above 2 diverge.
        alpha: how early the steps shrink. Published: 0.8 for denoising, 0.5 for boxes, 0.3 for super-resolution, 0.01
            for blurs and for pixels missing at random.
        num_samples: M, network evaluations per step.
        num_steps: K.
        length: "line" or "published", see step 1.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Martin et al. 2025 and its released code, whose factor of sigma_y^2 on lr cancels that of the likelihood.
    Differs: Laplace noise is left out. A prior that does not know noise alone, as at t = 0, is asked at the noisiest
    level that it knows.
    """

    lr: Scalar = 1.0
    alpha: Scalar = 0.3
    num_samples: int = static_field(default=5)
    num_steps: int = static_field(default=100)
    length: Literal["line", "published"] = static_field(default="line")

    def __post_init__(self):
        coerce(self, lr="positive", alpha="non-negative")
        check_choice(self, length=("line", "published"))
        for name in ("num_samples", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"PnPFlow.{name} must be at least 1; got {getattr(self, name)}")

    aim = "map"
    needs = Needs(gaussian_noise=True)

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        return Cost(
            network_evaluations=self.num_samples,
            operator_evaluations=1 if self.length == "line" else 0,
            operator_gradients=1,
            normal_draws=self.num_samples,
        )

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate step lengths over the path."""
        path = straight_path(schedule, self.num_steps)
        return Grid(path.t, path.level, path.gain, lr=wide(self.lr) * (1 - path.t) ** wide(self.alpha))

    def init(self, prior: Prior, problem: Problem, point: Grid, noise: Noise, x_init: Image | None = None) -> State:
        """Start at 0, or at `x_init`: the first step forgets it."""
        return State(jnp.zeros(prior.image_shape, float_type(problem.y)) if x_init is None else x_init)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make steps 1 and 2."""
        misfit, g = problem.misfit_and_gradient(state.x)
        if self.length == "line":
            g = ratio(jnp.sum(g**2), derivative_norm(problem, state.x, g)) * g
        z = state.x - point.lr * g
        noises = jnp.stack([noise.draw(i, z.shape) for i in range(self.num_samples)])
        denoised = jax.vmap(lambda n: point.denoise(prior, point.t * z + (1 - point.t) * n))(noises)
        x = jnp.mean(denoised, axis=0)
        return State(x), StepInfo(misfit, gap=norm(z - x))

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x
