"""Richardson-Lucy: multiplicative iterations for images that are not negative, without a learned prior."""

from typing import Literal

import jax.numpy as jnp

from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import observed_entries
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import StepInfo, check_choice
from ddiff_jax.solvers.without_prior import Iterated, Iterations, first_image, linear
from ddiff_jax.types import Image, Measurement

DARK = 1e-6  # least brightness to divide by: float32 rounds a brightness of 1 to 1e-7


@pytree_dataclass
class State:
    """The image so far, and what the operator makes of white."""

    u: Image  # in [0, 1]
    white: Measurement  # A 1
    seen: Image  # A^T 1, how often every pixel was seen


@pytree_dataclass
class RichardsonLucy(Iterated):
    """Maximise the likelihood of photon counts over images that are not negative, and stop before the noise is fitted.

    In u = (x + 1) / 2, which is 0 for black and 1 for white, and with b = (y + A 1) / 2, which is A u without noise,
    from u = 1/2:

        u <- u A^T (b / A u) / A^T 1.

    A is linear, and non-negative as all cameras and projections are: bicubic super-resolution is only nearly so. What
    is negative in b or in u counts as 0. A maximum is not what one wants: with noise the image gets worse from some
    iteration on. So it stops where the misfit falls to the noise's, sigma_y^2.

    Aim: an estimate without a learned prior: of greatest likelihood, if it did not stop before.

    No network is evaluated and nothing is drawn. Derivatives: there is a jump where the last iteration changes.

    Args:
        stop: "noise" keeps the image once its misfit is down to sigma_y^2; "never" makes all iterations.
        num_steps: iterations at most.

    Raises:
        ValueError: an unknown way to stop; when it runs, a complex measurement.

    Source: Richardson 1972; Lucy 1974; as expectation maximisation for tomography, Shepp and Vardi 1982.
    Differs: (scikit-image) A^T 1 is divided by, where `richardson_lucy` takes it for 1, which darkens the border.
    """

    stop: Literal["noise", "never"] = static_field(default="noise")
    num_steps: int = static_field(default=100)

    def __post_init__(self):
        check_choice(self, stop=("noise", "never"))

    def init(
        self, prior: Prior, problem: Problem, point: Iterations, noise: Noise, x_init: Image | None = None
    ) -> State:
        """Start at mid-grey, or at `x_init`."""
        if jnp.iscomplexobj(problem.y):
            raise ValueError(
                f"RichardsonLucy needs a measurement of brightness, real and not negative; "
                f"{type(problem.operator).__name__} measures complex numbers: take ZeroFilled, Tikhonov or "
                "TotalVariation"
            )
        x = first_image(prior, problem, x_init)
        entries = observed_entries(problem.operator, problem.y.shape)
        ones = jnp.ones_like(problem.y)
        seen = linear(problem).adjoint(ones if entries is None else jnp.where(entries, ones, 0.0))
        return State(jnp.maximum((x + 1) / 2, 0.0), problem.measured(jnp.ones_like(x)), seen)

    def step(
        self, prior: Prior, problem: Problem, state: State, point: Iterations, noise: Noise
    ) -> tuple[State, StepInfo]:
        """Make one iteration, unless the image is good enough."""
        u, white, seen = state.u, state.white, state.seen
        clean, residual = problem.measured(2 * u - 1), problem.residual(2 * u - 1)
        brightness = jnp.maximum((problem.y + white) / 2, 0.0)
        fitted = jnp.maximum((clean + white) / 2, DARK)
        is_seen = seen > DARK
        factor = linear(problem).adjoint(brightness / fitted) / jnp.where(is_seen, seen, 1.0)
        brighter = jnp.maximum(jnp.where(is_seen, u * factor, u), 0.0)
        misfit = jnp.sum(residual**2) / problem.num_observed
        if self.stop == "noise":
            brighter = jnp.where(misfit <= problem.sigma_y**2, u, brighter)
        return State(brighter, white, seen), StepInfo(misfit)

    def estimate(self, state: State) -> Image:
        """Read the image off a state."""
        return 2 * state.u - 1
