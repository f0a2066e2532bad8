"""DAPS: decoupled annealing posterior sampling (CVPR 2025)."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddiff_jax.levels import Level, Schedule, spaced
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Prior, predict
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import PUBLISHED
from ddiff_jax.solvers.base import Cost, Needs, StepInfo, check_choice, coerce, root, wide
from ddiff_jax.types import Image, Scalar

# The continuous process of Song et al. whose noise levels DAPS hands to the network.
BETA_MIN, BETA_RANGE = 0.1, 19.9


@pytree_dataclass
class Grid:
    """The numbers of every annealing step; noise levels are those of x_0 + sigma n."""

    sigma_ve: Float[Array, " K"]
    next_sigma_ve: Float[Array, " K"]
    lr: Float[Array, " K"]
    nodes: Float[Array, "K nodes"]  # noise levels of the probability flow
    level: Level  # for which the prior takes the first J nodes
    gain: Float[Array, "K J"]  # gain (x_0 + sigma n) is what it takes


@pytree_dataclass
class State:
    """The noisy state x_0 + sigma n, and the last estimate."""

    x_t: Image
    x: Image


@pytree_dataclass
class DAPS:
    """Anneal: denoise along the probability flow, walk to the data by Langevin dynamics, and noise again.

    For noise levels sigma_0 = 100 > ... > sigma_(K-1), then 0:

    1. w = x_t. Over nodes tau_0 = sigma_i > ... > tau_J: w <- w + (tau_(j+1) - tau_j) / tau_j (w - D(w, tau_j)), with
       D the denoiser, not clipped: w - tau eps(w / sqrt(1 + tau^2), t(tau)) for the published networks. Call the
       result x_0.
    2. Langevin: w <- w + lr_i s + sqrt(2 lr_i) n, with s = -c / tau^2 J^T (A(w) - y) + (x_0 - w) / r_i^2, where
       r_i = sigma_i. With a momentum m instead, from a normal velocity:
       v <- m v + sqrt(lr_i) s + sqrt(2 (1 - m)) n, w <- w + sqrt(lr_i) v.
    3. x_t = w + sigma_(i+1) n.

    "current" is the released main branch: c = 2 (the gradient of the plain sum of squares), lowest level never
    reached, nodes down to 0.01. "published" is its legacy branch of the paper's time: c = 1, lowest level reached, a
    last node at 0.

    Derivatives: t(tau) falls between two rows of the schedule, so that those to sigma_max and sigma_min have a kink at
    every row, with a network's own derivative to t in between. At momentum = 1 an infinite slope counts as 0.

    As released these are not samples of the posterior, not even of a Gaussian prior: x_0 is taken for the mean of
    p(x_0 | x_t) and sigma_i^2 for its variance, and tau is not sigma_y. With `tau=None`, `var`, `ode_steps=1` and
    `variant="published"` they are, for that prior, up to the length of the dynamics' steps.

    Aim: the posterior, as far as the paragraph above goes.

    Args:
        lr: step size of the dynamics at the first level, in squared units of the image.
        lr_min_ratio: what is left of it at the last.
        tau: standard deviation that the dynamics take for the measurement's (over sqrt(2) in the current variant).
            sigma_y plays no part: noisy data are trusted more than they deserve, by design. None takes the problem's
            own likelihood instead, whose noise need not be Gaussian then.
        var: variance of the pixels of clean images, for r_i^2 = var sigma_i^2 / (var + sigma_i^2), the variance of
            p(x_0 | x_t); None is r_i = sigma_i.
        momentum: None for Langevin dynamics, a number in [0, 1] for Hamiltonian ones.
        sigma_max: first noise level.
        sigma_min: last noise level.
        num_steps: K, annealing steps; each evaluates the network ode_steps times.
        ode_steps: J.
        langevin_steps: steps of the dynamics per annealing step.
        variant: "current" or "published".
        timestep: t(tau) with the published schedule: "continuous" as published, from the continuous process, up to 3
            steps off; "table" inverts the schedule. With all other schedules it is inverted in any case.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Zhang et al. 2025 and its released code, main and legacy branch.
    Differs: NaN is not replaced by zeros.
    """

    lr: Scalar
    lr_min_ratio: Scalar = 0.01
    tau: Scalar | None = 0.01
    var: Scalar | None = None
    momentum: Scalar | None = None
    sigma_max: Scalar = 100.0
    sigma_min: Scalar = 0.1
    num_steps: int = static_field(default=200)
    ode_steps: int = static_field(default=5)
    langevin_steps: int = static_field(default=100)
    variant: Literal["current", "published"] = static_field(default="current")
    timestep: Literal["continuous", "table"] = static_field(default="continuous")

    def __post_init__(self):
        coerce(self, lr="positive", lr_min_ratio="positive", tau="positive", var="positive", momentum="fraction")
        coerce(self, sigma_max="positive", sigma_min="positive")
        check_choice(self, variant=("current", "published"), timestep=("continuous", "table"))
        for name in ("num_steps", "ode_steps", "langevin_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"DAPS.{name} must be at least 1; got {getattr(self, name)}")

    aim = "posterior"

    @property
    def needs(self) -> Needs:
        """Assume Gaussian noise where tau takes the place of the likelihood."""
        return Needs(gaussian_noise=self.tau is not None)

    def cost(self, operator: Operator) -> Cost:
        """Declare what one annealing step costs."""
        draws = self.langevin_steps + (1 if self.momentum is None else 2)
        return Cost(network_evaluations=self.ode_steps, operator_gradients=self.langevin_steps, normal_draws=draws)

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate noise levels, step sizes and nodes."""
        is_current = self.variant == "current"
        k, j = jnp.arange(self.num_steps, dtype=float), jnp.arange(self.ode_steps + 1, dtype=float)
        sigma_ve = spaced(wide(self.sigma_max), wide(self.sigma_min), k / max(self.num_steps - (not is_current), 1))
        ratio = k / (self.num_steps + is_current)
        nodes = spaced(sigma_ve[:, None], 0.01, j[None] / max(self.ode_steps - (not is_current), 1))
        if not is_current:
            nodes = nodes.at[:, -1].set(0.0)
        level = schedule.at(nodes[:, :-1])
        gain = level.signal
        if self.timestep == "continuous" and schedule == PUBLISHED:
            exponent = jnp.log1p(nodes[:, :-1] ** 2)
            t = (jnp.sqrt(BETA_MIN**2 + 2 * BETA_RANGE * exponent) - BETA_MIN) / BETA_RANGE
            level = PUBLISHED.at_time((schedule.num_levels - 1) * t)
        return Grid(
            sigma_ve=sigma_ve,
            next_sigma_ve=jnp.append(sigma_ve[1:], 0.0),
            lr=wide(self.lr) * (1 + ratio * (wide(self.lr_min_ratio) - 1)),
            nodes=nodes,
            level=level,
            gain=gain,
        )

    def init(self, prior: Prior, problem: Problem, point: Grid, noise: Noise, x_init: Image | None = None) -> State:
        """Start at sigma_max n, or at `x_init` taken as the noisy state in units of x_0 + sigma n."""
        x_t = point.sigma_ve * noise.draw(0, prior.image_shape) if x_init is None else x_init
        return State(x_t, x_t)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make one annealing step: 1 to 3."""
        renoise = noise.draw(self.langevin_steps, state.x_t.shape)
        x_0 = self._flow(prior, state.x_t, point)
        misfit, w = self._walk(problem, x_0, point, noise)
        return State(w + point.next_sigma_ve * renoise, w), StepInfo(misfit)

    def _flow(self, prior: Prior, x_t: Image, point: Grid) -> Image:
        def body(w: Image, node: tuple[Array, Array, Level, Array]) -> tuple[Image, None]:
            tau, next_tau, level, gain = node
            _, eps = predict(prior, gain * w, level)
            return w + (next_tau - tau) * eps, None  # (w - D) / tau is eps

        w, _ = jax.lax.scan(body, x_t, (point.nodes[:-1], point.nodes[1:], point.level, point.gain))
        return w

    def _walk(self, problem: Problem, x_0: Image, point: Grid, noise: Noise) -> tuple[Float[Array, ""], Image]:
        lr, m = point.lr, self.momentum
        if self.tau is None:
            data_weight = problem.likelihood.precision(problem.sigma_y)
        else:
            data_weight = (2.0 if self.variant == "current" else 1.0) / self.tau**2
        width = point.sigma_ve**2
        if self.var is not None:
            width = self.var * width / (self.var + width)

        def body(carry: tuple[Image, Image], i: Array) -> tuple[tuple[Image, Image], Float[Array, ""]]:
            w, v = carry
            misfit, g = problem.misfit_and_gradient(w)
            force = (x_0 - w) / width - data_weight * g
            n = noise.draw(i, w.shape)
            if m is None:
                return (w + lr * force + jnp.sqrt(2 * lr) * n, v), misfit
            v = m * v + jnp.sqrt(lr) * force + root(2 * (1 - m)) * n
            return (w + jnp.sqrt(lr) * v, v), misfit

        v = jnp.zeros_like(x_0) if m is None else noise.draw(self.langevin_steps + 1, x_0.shape)
        (w, _), misfits = jax.lax.scan(body, (x_0, v), jnp.arange(self.langevin_steps))
        return misfits[-1], w

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x
