"""Total variation: least squares with a penalty on the image's edges, without a learned prior."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddiff_jax.likelihood import sum_of_squares
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import LinearOperator
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import StepInfo, check_choice, coerce, norm, ratio, root
from ddiff_jax.solvers.without_prior import Iterated, Iterations, first_image, linear
from ddiff_jax.types import Image, Measurement, Scalar

POWER_ITERATIONS = 30
MARGIN = 1.05  # on the norm, which power iteration approaches from below
# Weight of the variation in the problem that is iterated, whose other term is scaled along: it moves no minimiser. With
# 0.1 the images are within 3e-4 of the limit after 1000 steps on five operators; with lam itself, 0.01, within 0.3.
WEIGHT = 0.1
SAFETY = 0.99  # of the longest step that converges


@pytree_dataclass
class State:
    """The iterates between two steps, for an operator that is divided by `gain`."""

    x: Image
    ahead: Image  # 2 x - the x before
    p: Float[Array, "..."]  # dual variable of the differences: an image for every axis, the axes last
    q: Measurement  # dual variable of the measurement
    gain: Float[Array, ""]


@pytree_dataclass
class TotalVariation(Iterated):
    """Find the image of least variation that the data allow.

    TV(x) is the sum over pixels of the length of all forward differences at the pixel, 0 beyond the last row and
    column: over the directions, and over the channels as well unless `coupling` parts them.

    With a number for lam it minimises ||A x - y||^2 / 2 + lam TV(x). Without, it minimises TV(x) among the images with
    ||A x - y||^2 <= m sigma_y^2, m the observed numbers: the same problem for the lam whose minimiser leaves as much
    misfit as the noise has power, found without a search.

    Both are solved by the primal-dual iteration of Chambolle and Pock. With A and y divided by ||A||, D the
    differences and the step 0.99 / sqrt(1 + ||D||^2), where ||D||^2 is at most 4 for every direction, from x = 0:

    1. p <- p + step D x', and where a pixel's |p| exceeds w it is shortened to w = 0.1.
    2. q <- (q + step r) / (1 + step lam / w) with r = A x' - y; or without lam
       q <- q + step r, shortened by step sqrt(m) sigma_y, or to 0.
    3. x_new = x - step (D^T p + A^T q), and x' = 2 x_new - x.

    Aim: an estimate without a learned prior: the most probable image where edges are rare.

    The misfit that it reports is that of x'. No network is evaluated and nothing is drawn. Derivatives: none pass
    through what is shortened to 0, and where it begins to be shortened there is a kink.

    Args:
        lam: weight of the variation, in units of the squared residual over those of the image; None chooses it by the
            noise level.
        coupling: "joint" keeps the edges of all channels together, and treats the two parts of a complex image alike
            whatever its phase; "channels" is the variation of every channel on its own.
        num_steps: iterations; after 200 pixels are within 0.01 to 0.1 of the limit, after 1000 within some 3e-4.

    Raises:
        ValueError: lam is not positive, or an unknown coupling.

    Source: Rudin, Osher and Fatemi 1992; Chambolle and Pock 2011, algorithm 1. Their problem is scaled by w / lam here,
    which changes how fast the iterates move and not where to.
    """

    lam: Scalar | None = None
    coupling: Literal["joint", "channels"] = static_field(default="joint")
    num_steps: int = static_field(default=1000)

    def __post_init__(self):
        coerce(self, lam="positive")
        check_choice(self, coupling=("joint", "channels"))

    def init(
        self, prior: Prior, problem: Problem, point: Iterations, noise: Noise, x_init: Image | None = None
    ) -> State:
        """Start at mid-grey, or at `x_init`, and measure the norm of the operator."""
        x = first_image(prior, problem, x_init)
        gain = MARGIN * _norm(linear(problem), problem.y)
        gain = jnp.where(gain <= 0, 1.0, gain)  # not so of NaN, which stays visible
        return State(x, x, jnp.zeros((*x.shape, x.ndim - 1), x.dtype), jnp.zeros_like(problem.y), gain)

    def step(
        self, prior: Prior, problem: Problem, state: State, point: Iterations, noise: Noise
    ) -> tuple[State, StepInfo]:
        """Make steps 1 to 3."""
        ahead, gain = state.ahead, state.gain
        step = SAFETY / math.sqrt(1 + 4 * (ahead.ndim - 1))
        residual = problem.residual(ahead)
        p = state.p + step * differences(ahead)
        together = (-1,) if self.coupling == "channels" else (-2, -1)
        length = root(jnp.sum(p**2, axis=together, keepdims=True))
        is_long = length > WEIGHT
        p = p * jnp.where(is_long, WEIGHT / jnp.where(is_long, length, 1.0), 1.0)

        q = state.q + step * residual / gain.astype(residual.dtype)
        if self.lam is None:
            size = root(sum_of_squares(q))
            allowed = step * root(problem.num_observed * (problem.sigma_y / gain) ** 2)
            q = q * ratio(jnp.maximum(size - allowed, 0.0), size).astype(q.dtype)
        else:
            q = q / (1 + step * self.lam / (WEIGHT * gain**2)).astype(q.dtype)

        x = state.x - step * (differences_adjoint(p) + linear(problem).adjoint(q) / gain)
        misfit = sum_of_squares(residual) / problem.num_observed
        return State(x, 2 * x - state.x, p, q, gain), StepInfo(misfit)

    def estimate(self, state: State) -> Image:
        """Read the image off a state."""
        return state.x


def differences(x: Image) -> Float[Array, "..."]:
    """Compute the forward differences along every axis but the channels, 0 at the last entry; their axis is last."""
    axes = range(x.ndim - 1)
    return jnp.stack([jnp.diff(x, axis=axis, append=jax.lax.slice_in_dim(x, -1, None, axis=axis)) for axis in axes], -1)


def differences_adjoint(p: Float[Array, "..."]) -> Image:
    """Apply the transpose of `differences`."""
    total = jnp.zeros(p.shape[:-1], p.dtype)
    for axis in range(p.shape[-1]):
        inner = jax.lax.slice_in_dim(p[..., axis], 0, -1, axis=axis)
        before, after = ([(0, 0)] * inner.ndim for _ in range(2))
        before[axis], after[axis] = (1, 0), (0, 1)
        total = total + jnp.pad(inner, before) - jnp.pad(inner, after)
    return total


def _norm(operator: LinearOperator, y: Measurement) -> Float[Array, ""]:
    """Compute ||A|| by power iteration, from a direction that is always the same: an estimate draws nothing."""
    nothing = 0 * operator.adjoint(y)  # inside of `shard_map` the direction varies over the same devices as y
    v = jax.random.normal(jax.random.key(0), nothing.shape, jnp.float32).astype(nothing.dtype) + nothing

    def iterate(v: Image, _: None) -> tuple[Image, None]:
        return ratio(v := operator.adjoint(operator.forward(v)), norm(v)), None

    v, _ = jax.lax.scan(iterate, ratio(v, norm(v)), None, length=POWER_ITERATIONS)
    return root(sum_of_squares(operator.forward(v)))
