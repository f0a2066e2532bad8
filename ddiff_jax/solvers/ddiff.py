"""DDiff: dual ascent diffusion (CVPR 2026)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.levels import Level, Schedule, walk
from ddiff_jax.likelihood import sum_of_squares
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import published_time
from ddiff_jax.solvers.base import (
    Cost,
    Needs,
    StepInfo,
    check_choice,
    coerce,
    count_steps,
    derivative_norm,
    norm,
    ratio,
    root,
    size_factor,
    start,
    wide,
)
from ddiff_jax.solvers.step_length import Fixed, StepLength, ToTheNoise
from ddiff_jax.solvers.walking import Renoising
from ddiff_jax.types import Column, Image, Measurement, Scalar

FIRST_LINES = 8  # along which a walk that starts at the data goes from grey to them


@pytree_dataclass
class Grid(Renoising):
    """The numbers of every step."""

    gamma: Column | None  # a fixed step's length before it is scaled to the image's size
    memory: Column  # 0 in the first step, where there is no x to compare with yet, then 1
    climbs: Column | None  # 1 in the last steps, which climb; None where none does


@pytree_dataclass
class State:
    """The iterates between two steps."""

    x_t: Image
    u: Image
    x: Image


@pytree_dataclass
class DDiff:
    r"""Minimise ||y - A(x)||^2 / (2 sigma_y^2) - log p(x) by splitting x = z with a scaled dual variable u.

    Every step goes from a level x_t = a x_0 + b n to the next one (a', b'), the last one to the least noisy:

    1. z = denoise(x_t), clipped if the prior clips: the prior step, on the diffusion manifold.
    2. v = z - u.
    3. g = the gradient of ||y - A(v)||^2 / 2, divided by its norm: sigma_y cancels.
    4. x = v - gamma_t g: the data step.
    5. eps_hat = (x_t - a x) / b.
    6. n ~ N(0, I) while t > t0, then n = 0.
    7. x_t' = a' (x + u) + w_eps eps_hat + w_n n, where
       "full":      w_eps = 0,                   w_n = b';
       "posterior": w_eps = sqrt(b'^2 - s_t^2),  w_n = s_t, the DDPM posterior's standard deviation.
    8. u <- u + x - z.

    The length of step 4 is a value of its own, `step_length`. `Fixed(gamma)` is the published one, gamma_t.

    Steps 4 and 8 together then give u = -gamma_t g: the dual variable remembers one step and accumulates nothing. With
    `dual="off"` it stays zero (the ablation DDiff-HQS with everything else held fixed). With `dual="accumulating"` it
    is updated as in ADMM, against the next z: u <- u + x - z between steps 1 and 2, with the x of the step before.

    `ToTheNoise()` chooses every step's length and needs no tuning: the step s along -g (not normalised) that
    brings the residual of the linearised operator J down to the noise, and no further, is the smaller root of
    ||r - s J g||^2 = m sigma_y^2, with r = A(v) - y and m observed numbers; where the line does not get there, the
    step to its closest point, ||g||^2 / ||J g||^2. This costs one more evaluation of the operator, J g. Where the
    operator is ill-conditioned, as in tomography, or noise differs much between entries, one line gets nowhere near
    the noise. Then the step goes on along conjugate directions (CGLS on the linearised operator), up to `directions`
    of them, and ends where the residual meets the noise. There is no dual variable then: what it remembers acts as
    momentum, and on top of a step of full length momentum diverges.

    The walk of `levels="even"` is the published one: from pure noise, evenly in the timesteps. Half of it passes where
    noise hides all that the data say. `levels="geometric"` has the same number of steps between each noise-to-signal
    ratio and its half, from `sigma_max` to `sigma_min`, and ends in x without noise. It starts at what the data say by
    themselves, noised to the first level: grey, moved to the noise along 8 lines as in step 4 (Chung et al. 2022 start
    there too). On six of eight tasks 10 of its steps give what 20 of the even walk do (benchmarks/README.md). Where the
    last step reaches the noise every run ends at the same misfit: restarts are told apart by it in even walks alone.

    The last `climb` steps go uphill on the posterior instead: no noise is added, no dual variable is kept, and the
    ratios rho = b / a fall geometrically from where the walk has come to the least noisy level. There step 4 is

    4. x = argmin ||y - A(x)||^2 / (2 sigma_y^2) + ||x - z||^2 / (2 rho^2),

    of the linearised operator, by CGLS along `directions` lines; one line is exact where A A^T is a multiple of 1, as
    in super-resolution and inpainting. Since z = x + rho^2 grad log p_rho(x), with p_rho the prior blurred by rho
    (Tweedie), this is forward-backward splitting, and it rests where log p_rho(x) + log p(y | x) is stationary.

    Aim: one image (MAP). Without climbing it is no maximum of the posterior, but lies on the slope of one, about half
    as far below it as a sample: on mixtures of Gaussians in 64 dimensions, with three operators, 13 to 20 nats below
    and 0.4 to 0.8 standard deviations of the posterior away (a sample: 32 nats, 0.5 to 1.0). With the last 20 of 100
    steps climbing these are 0.03 to 0.4 nats and 0.04 to 0.2, with 50 of 250 steps at most 0.1 nats (median runs,
    benchmarks/maximum.py). The highest of several maxima is not preferred: runs end at each about as often as samples
    lie on its slope. How far apart the results of other noise lie is not the posterior's uncertainty.

    Derivatives: none pass through clipped pixels of z, and t0 and t_gamma, which choose among timesteps, have 0. Where
    one length of step gives way to another, there is a kink.

    Args:
        step_length: `ToTheNoise()`, or `Fixed(gamma)` with its two factors.
        t0: the last timestep without fresh noise. Like the t_gamma of `Fixed` it is one of the published schedule,
            linear with 1000 timesteps; in others it stands for the level with the same noise-to-signal ratio.
        noise_schedule: "full" (super-resolution, inpainting, phase retrieval) or "posterior" (deblurring, high
            dynamic range).
        num_steps: updates, that is network evaluations; None is as many as the schedule has levels. In an even walk
            these are all of them, as published; the evaluation at t = 0, which the released loop makes and discards, is
            left out.
        levels: "geometric", or "even" as published; None is "even" for steps of a fixed length, which are tuned for it,
            and where the last steps climb, which are to begin while there is more noise.
        sigma_max: where a geometric walk starts, in noise to signal. 5 is for images of 64x64 pixels: coarse structure
            takes as much more to be hidden as an image has more pixels along a side.
        sigma_min: where its last step starts.
        dual: what becomes of the dual variable of steps of fixed length: "released", "accumulating" as in ADMM, or
            "off"; None is "released" where the length is fixed, and "off" where it is not.
        directions: lines that a step to the noise, or one that climbs, may go along, one after the other; each costs an
            evaluation of the operator and one of its adjoint.
        output: "state" returns the state at t = 0, as released, which a dual variable and the last level's noise set
            apart from the data; "x" returns the last x of the data step, which fits them as well as that step does.
        climb: how many of the last steps climb, of fewer steps all but the first; 0 is the published walk. Gaussian
            noise is assumed then, and an ill-conditioned operator wants several `directions`: with the packaged prior
            of faces 20 of 100 steps gain 2.4 dB in motion blur along four of them, and lose 1.4 dB along one.

    Raises:
        ValueError: a hyper-parameter is outside its range, or a step to the noise is to keep a dual variable.

    Source: the authors' released code; gamma_0, t0 and the schedule of every task are in the presets.
    Differs: (paper) the paper writes the gradient without the norm, and t_gamma = 500 for box inpainting on
    ImageNet where the code has 90 throughout; (code) the norm is taken per image, a zero gradient gives a zero
    step instead of NaN, and the early stop, which cannot fire there, is absent.
    """

    step_length: StepLength = dataclasses.field(default_factory=ToTheNoise)
    t0: Scalar = 1.0
    noise_schedule: Literal["full", "posterior"] = static_field(default="full")
    num_steps: int | None = static_field(default=None)
    dual: Literal["released", "accumulating", "off"] | None = static_field(default=None)
    directions: int = static_field(default=1)
    output: Literal["state", "x"] = static_field(default="state")
    climb: int = static_field(default=0)
    levels: Literal["geometric", "even"] | None = static_field(default=None)
    sigma_max: Scalar = 5.0
    sigma_min: Scalar = 0.05

    def __post_init__(self):
        coerce(self, t0="non-negative", sigma_max="positive", sigma_min="positive")
        check_choice(self, noise_schedule=("full", "posterior"), output=("state", "x"))
        if not isinstance(self.step_length, StepLength):
            raise ValueError(
                f"{type(self).__name__}.step_length must be ToTheNoise() or Fixed(gamma); got {self.step_length!r}"
            )
        if self.dual is not None:
            check_choice(self, dual=("released", "accumulating", "off"))
        if self.levels is not None:
            check_choice(self, levels=("geometric", "even"))
        if self.climb < 0:
            raise ValueError(f"{type(self).__name__}.climb must be at least 0; got {self.climb}")
        if self.directions < 1 or (self.directions > 1 and isinstance(self.step_length, Fixed)):
            raise ValueError(
                f"{type(self).__name__}.directions must be at least 1, and is 1 for steps of a fixed length; got "
                f"{self.directions}"
            )
        if isinstance(self.step_length, ToTheNoise) and self.dual not in (None, "off"):
            raise ValueError(
                f'{type(self).__name__} has no dual variable to keep (dual="{self.dual}") in steps to the noise; '
                "give gamma a number, step_length=Fixed(gamma), or leave dual out"
            )

    aim = "map"

    @property
    def is_geometric(self) -> bool:
        """Whether the walk's levels are, and it starts at the data."""
        is_even = self.climb > 0 or isinstance(self.step_length, Fixed)
        return (self.levels or ("even" if is_even else "geometric")) == "geometric"

    @property
    def needs(self) -> Needs:
        """Assume Gaussian noise where steps climb: they weigh the data as that does."""
        return Needs(gaussian_noise=self.climb > 0)

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs; the costliest ones climb."""
        extra = self.directions if self.climb or isinstance(self.step_length, ToTheNoise) else 0
        gradients = max(extra, 1)
        return Cost(network_evaluations=1, operator_evaluations=extra, operator_gradients=gradients, normal_draws=1)

    def total_cost(self, operator: Operator, schedule: Schedule, num_steps: int) -> Cost:
        """Add up what the first steps of a run cost: of fixed length, only those that climb evaluate the operator."""
        total = self.cost(operator) * num_steps
        if not isinstance(self.step_length, ToTheNoise):
            in_all = count_steps(self, schedule)
            climbing = max(self._num_climbing(in_all) + num_steps - in_all, 0)
            total = dataclasses.replace(total, operator_evaluations=climbing)
        lines = FIRST_LINES if self.is_geometric else 0
        return total + Cost(operator_evaluations=lines, operator_gradients=lines)

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate steps 4 to 7 over the chosen levels."""
        level, cleaner = (
            self._geometric(schedule) if self.is_geometric else walk(schedule, self.num_steps, to_clean=False)
        )
        t = wide(published_time(level))  # t0 and t_gamma are floats, so that they can be swept and stacked
        if self.noise_schedule == "full":
            w_eps, w_n = 0.0 * cleaner.sigma, cleaner.sigma
        else:
            w_n = level.posterior_std(cleaner)
            w_eps = (cleaner.sigma**2 - w_n**2) ** 0.5
        grid = Grid(
            level,
            gamma=self.step_length.at(t),
            memory=(np.arange(len(t)) > 0).astype(np.float64),
            climbs=None,
            next_signal=cleaner.signal,
            w_eps=w_eps,
            w_n=jnp.where(t > wide(self.t0), w_n, 0.0),
        )
        return self._climbing(grid, schedule) if self._num_climbing(len(t)) else grid

    def _geometric(self, schedule: Schedule) -> tuple[Level, Level]:
        """List where every step starts and where it ends, the last one at the clean image."""
        count = len(walk(schedule, self.num_steps)[0].signal)  # refuses what no walk may have
        k, first = np.arange(count + 1.0), schedule.at(wide(self.sigma_max)).ratio  # the noisiest there is
        ratio = first * (wide(self.sigma_min) / first) ** np.minimum(k / max(count - 1, 1), 1.0)
        level = schedule.at((k < count).astype(np.float64) * ratio)
        return level[:-1], level[1:]

    def _num_climbing(self, num_steps: int) -> int:
        return min(self.climb, num_steps - 1)

    def _climbing(self, grid: Grid, schedule: Schedule) -> Grid:
        """Let the last steps climb: they add no noise, and end at the least noisy level."""
        first = len(grid.memory) - self._num_climbing(len(grid.memory))
        climbs = np.arange(len(grid.memory)) >= first
        from_here, least = grid.level.ratio[first], walk(schedule, self.num_steps, to_clean=False)[1][-1].ratio
        library: Any = jnp if isinstance(from_here, jax.Array) else np
        tail = schedule.at(from_here * (least / from_here) ** np.linspace(0, 1, len(grid.memory) - first))
        level = jax.tree.map(lambda walked, climbed: library.append(walked[:first], climbed), grid.level, tail)
        return dataclasses.replace(
            grid,
            level=level,
            climbs=climbs.astype(np.float64),
            next_signal=library.append(level.signal[1:], grid.next_signal[-1]),
            w_eps=library.where(climbs, 0.0, grid.w_eps),
            w_n=jnp.where(climbs, 0.0, grid.w_n),
        )

    def init(self, prior: Prior, problem: Problem, point: Grid, noise: Noise, x_init: Image | None = None) -> State:
        """Start at noise, at the data, or at `x_init` taken as the noisy state, with u = 0."""
        x_t = start(prior, point.level, noise) if x_init is None else x_init
        if x_init is None and self.is_geometric:
            _, x = _steps_to_the_noise(problem, jnp.zeros_like(x_t), FIRST_LINES)
            x_t = point.level.signal * x + point.level.sigma / point.level.scale * x_t
        return State(x_t=x_t, u=jnp.zeros_like(x_t), x=x_t)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make steps 1 to 8."""
        x_t, u = state.x_t, state.u
        z = prior.denoise(x_t, point.level)
        if self.dual == "accumulating":
            u = u + point.memory * (state.x - z)
        if point.climbs is None:
            misfit, x = data_step(problem, z - u, self.step_length, point.gamma, self.directions)
        else:
            u = (1 - point.climbs) * u
            misfit, x = jax.lax.cond(
                point.climbs > 0,
                lambda v: _step_of_the_posterior(problem, v, point.level.ratio, self.directions),
                lambda v: data_step(problem, v, self.step_length, point.gamma, self.directions),
                z - u,
            )
        eps_hat = point.level.eps(x_t, x)
        x_t = point.renoise(x + u, eps_hat, noise.draw(0, x_t.shape))
        keeps_dual = isinstance(self.step_length, Fixed) and self.dual != "off"
        if keeps_dual and self.dual != "accumulating":
            u = u + x - z
        return State(x_t, u, x), StepInfo(misfit, gap=norm(x - z), dual=norm(u) if keeps_dual else None)

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x_t if self.output == "state" else state.x


def data_step(
    problem: Problem, v: Image, length: StepLength, gamma: Scalar | None, directions: int = 1
) -> tuple[Float[Array, ""], Image]:
    """Step from v towards the data.

    Args:
        problem: what was measured.
        v: where the step starts.
        length: how the step's length is chosen.
        gamma: what `length` tabulates for this timestep.
        directions: lines that a step to the noise may go along.

    Returns:
        The misfit at v, and x.
    """
    if gamma is None or isinstance(length, ToTheNoise):
        return _step_to_the_noise(problem, v) if directions == 1 else _steps_to_the_noise(problem, v, directions)
    misfit, g = problem.misfit_and_gradient(v)
    if not length.normalise:
        return misfit, v - gamma * problem.likelihood.precision(problem.sigma_y) * g
    return misfit, v - gamma * size_factor(v) * ratio(g, norm(g))


def _step_to_the_noise(problem: Problem, v: Image) -> tuple[Float[Array, ""], Image]:
    half, g = jax.value_and_grad(problem.half_squared_residual)(v)
    excess = jnp.maximum(2 * half - problem.num_observed * problem.sigma_y**2, 0.0)
    slope, curvature = jnp.sum(g**2), derivative_norm(problem, v, g)
    return 2 * half / problem.num_observed, v - _length(excess, slope, curvature) * g


def _length(excess: Any, slope: Any, curvature: Any) -> Float[Array, ""]:
    """Choose s where excess - 2 s slope + s^2 curvature meets 0 first, or where it is least if it never does."""
    smaller = ratio(excess, slope + root(slope**2 - curvature * excess))  # the root in the form that does not cancel
    return jnp.minimum(smaller, ratio(slope, curvature))


def _steps_to_the_noise(problem: Problem, v: Image, directions: int) -> tuple[Float[Array, ""], Image]:
    """Go on where one line ends: CGLS on ||r + J d||^2 from d = 0, ended where it is the noise's."""
    target = problem.num_observed * problem.sigma_y**2
    residual, push = jax.linearize(problem.residual, v)
    pull = jax.linear_transpose(push, v)

    def descent(r: Measurement) -> Image:
        (g,) = pull(jnp.conj(r))
        return -g

    def along(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
        x, r, p, slope = carry
        change = push(p)
        curvature, excess = sum_of_squares(change), jnp.maximum(sum_of_squares(r) - target, 0.0)
        length = _length(excess, slope, curvature)  # 0 once the noise is met
        x, r = x + length * p, r + length.astype(r.dtype) * change
        steepest = descent(r)
        left = jnp.sum(steepest**2)
        return (x, r, steepest + ratio(left, slope) * p, left), None

    steepest = descent(residual)
    carry, _ = jax.lax.scan(along, (v, residual, steepest, jnp.sum(steepest**2)), None, length=directions)
    return sum_of_squares(residual) / problem.num_observed, carry[0]


def _step_of_the_posterior(problem: Problem, z: Image, std: Scalar, directions: int) -> tuple[Float[Array, ""], Image]:
    """Minimise ||r + J d||^2 / (2 sigma_y^2) + ||d||^2 / (2 std^2) over x = z + d, by CGLS from d = 0."""
    weight = (problem.sigma_y / std) ** 2
    residual, push = jax.linearize(problem.residual, z)
    pull = jax.linear_transpose(push, z)

    def descent(r: Measurement, d: Image) -> Image:
        (g,) = pull(jnp.conj(r))
        return -g - weight * d

    def along(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
        d, r, p, steepest = carry
        change = push(p)
        # To the minimum along p itself: the usual ||steepest||^2 would grow without bound once rounding is all that
        # is left, and the number of lines is fixed.
        length = ratio(jnp.sum(steepest * p), sum_of_squares(change) + weight * jnp.sum(p**2))
        d, r = d + length * p, r + length.astype(r.dtype) * change
        following = descent(r, d)
        return (d, r, following + ratio(jnp.sum(following**2), jnp.sum(steepest**2)) * p, following), None

    d = jnp.zeros_like(z)
    steepest = descent(residual, d)
    carry, _ = jax.lax.scan(along, (d, residual, steepest, steepest), None, length=directions)
    return sum_of_squares(residual) / problem.num_observed, z + carry[0]
