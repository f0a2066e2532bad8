"""TDS: the twisted diffusion sampler, particles that are guided and weighed (Wu et al., NeurIPS 2023)."""

import functools
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddiff_jax.levels import Level, Schedule, walk
from ddiff_jax.likelihood import sum_of_squares
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import LinearOperator, Operator
from ddiff_jax.priors.base import Prior, predict
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Needs, StepInfo, check_choice, coerce, count_steps, noise_std, wide
from ddiff_jax.types import Column, Image, Scalar, float_type


@pytree_dataclass
class Grid:
    """The numbers of every step."""

    level: Level
    w_z: Column
    w_x: Column
    std: Column  # s
    lead: Column  # factor on g, b^2 / a
    r2: Column  # r_t^2
    is_last: Column


@pytree_dataclass
class State:
    """Particles with their weights, and the one of them that stands for all.

    Args:
        particles: [P, *image_shape], at the level of the step; clean images after the last one.
        log_weights: [P], of which the exponentials add up to 1; NaN when every particle has diverged.
        x: the clean image of a particle that was drawn by its weight.
    """

    particles: Float[Array, "P ..."]
    log_weights: Float[Array, " P"]
    x: Image


@pytree_dataclass
class TDS:
    r"""Walk particles down the levels, guided by the data, and weigh them so that their law is the posterior's.

    The P particles of an image start at noise with equal weights. Every step goes from a level x_t = a x_0 + b n to the
    next one (a', b'), for every particle on its own but for 2:

    1. x0_hat and the twist l = log N(y; A x0_hat, C_t), C_t = sigma_y^2 I + r_t^2 A A^T with
       r_t^2 = var b^2 / (a^2 var + b^2); and g, the gradient of l with respect to x_t, by a pass backwards through the
       network.
    2. W ~ exp(log w + l). If 1 / sum W^2 < ess_threshold P, or if a particle has diverged, resample, systematically
       with one uniform number, and log w = 0; else log w <- log w + l.
    3. x_t' = mu + s n, where mu and s are those of the DDPM posterior given x0_hat + (b^2 / a) g, clipped to [-1, 1].
       With mu_0, the mean given x0_hat itself, clipped as well:
       log w <- log w + (||x_t' - mu||^2 - ||x_t' - mu_0||^2) / (2 s^2) - l.
    4. In the last step, to the clean image, instead of 3: x_t' = x0_hat, clipped, without g, and
       log w <- log w + log N(y; A x_t', sigma_y^2 I) - l.

    The result is one particle drawn by its weight, so that runs are samples, as those of other methods are. Whoever
    drives `step` finds all particles and weights in the state, and may take means over them.

    Aim: the posterior, which it reaches with ever more particles and steps. Few particles are biased towards what the
    guidance alone finds, and the number needed grows exponentially with that of informative measurements: where every
    step reports that about one of them is effective, the weights no longer correct anything.

    Derivatives are those of the particle's path, with all choices between particles held fixed. None pass through
    clipped pixels. To sigma_y below 1e-4 they are 0.

    Args:
        num_particles: P.
        num_steps: evaluations of the network for every particle: every T / num_steps-th level; None is all of them.
        var: variance of the pixels of clean images, for r_t^2.
        ess_threshold: resample where the effective number of particles is below this share of them: 1 is in every step,
            as published, 0 hardly ever. Of two modes of one pixel, one with a probability of 0.7425 after 100 steps, 4
            particles gave it 0.723 with 0.5 and 0.716 with 1, 16 particles 0.740 with either (+-0.002).
        twist: which C_t: "exact" is the one above, by the operator's `prox`; "isotropic" is
            (sigma_y^2 + gain r_t^2) I, for any operator, by its gradient; "auto" is exact where the operator has a
            `prox`, else isotropic. The weights make up for any choice: better ones waste fewer particles.
        gain: mean squared length of the rows of A, for the isotropic twist: 1 for inpainting, 1 / n for the mean of n.
        clip: clip in 3 and 4. Networks need it: without, the packaged one's particles diverged within 25 steps. Off for
            images that leave the range, such as those of a Gaussian prior, which would be sampled as if they did not.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Wu et al. 2023 and its released code, for inpainting with P = 4.
    Differs: the variance of the steps is that of the DDPM posterior, where the released code takes the network's;
    sigma_y is at least 1e-4.
    """

    var: Scalar = 1.0
    ess_threshold: Scalar = 0.5
    gain: Scalar = 1.0
    num_particles: int = static_field(default=4)
    num_steps: int | None = static_field(default=100)
    twist: Literal["auto", "exact", "isotropic"] = static_field(default="auto")
    clip: bool = static_field(default=True)

    def __post_init__(self):
        coerce(self, var="positive", ess_threshold="fraction", gain="positive")
        check_choice(self, twist=("auto", "exact", "isotropic"))
        if self.num_particles < 1:
            raise ValueError(f"TDS.num_particles must be at least 1; got {self.num_particles}")

    aim = "posterior"

    @property
    def needs(self) -> Needs:
        """Assume Gaussian noise: the twist is that of a Gaussian x_0 given x_t."""
        return Needs(("prox",) if self.twist == "exact" else (), gaussian_noise=True)

    def _is_exact(self, operator: Operator) -> bool:
        return hasattr(operator, "prox") if self.twist == "auto" else self.twist == "exact"

    def _costs(self, operator: Operator) -> tuple[Cost, Cost, Cost]:
        """Give what every step costs, what every step but the last, and what only the last."""
        count = self.num_particles
        if self._is_exact(operator):
            data = {"operator_evaluations": count + 1, "operator_solves": count}
        else:
            data = {"operator_evaluations": 1, "operator_gradients": count}
        every = Cost(network_evaluations=count, network_gradients=count, **data)
        return every, Cost(normal_draws=count), Cost(operator_evaluations=count)

    def cost(self, operator: Operator) -> Cost:
        """Declare the most that a step costs: as every other one, with what the last step does in place of draws."""
        return functools.reduce(Cost.__add__, self._costs(operator))

    def total_cost(self, operator: Operator, schedule: Schedule, num_steps: int) -> Cost:
        """Add up what the first steps of a run cost."""
        every, early, last = self._costs(operator)
        num_last = int(num_steps == count_steps(self, schedule))
        return every * num_steps + early * (num_steps - num_last) + last * num_last

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate steps 1 and 3 over the chosen levels."""
        level, cleaner = walk(schedule, self.num_steps, "strided")
        a, b = level.signal, level.sigma
        w_z = cleaner.signal * level.step_variance(cleaner) / b**2
        is_last = cleaner.sigma == 0
        return Grid(
            level,
            w_z,
            w_x=a / cleaner.signal * (cleaner.sigma / b) ** 2,
            std=np.where(is_last, 1.0, level.posterior_std(cleaner)),  # nobody asks in the last step
            lead=b**2 / a,
            r2=level.clean_variance(wide(self.var)),
            is_last=is_last,
        )

    def init(self, prior: Prior, problem: Problem, point: Grid, noise: Noise, x_init: Image | None = None) -> State:
        """Start at noise, or with every particle at `x_init` taken as the noisy state."""
        shape = (self.num_particles, *prior.image_shape)
        if x_init is None:
            particles = point.level.scale * noise.draw(0, shape)
        else:
            particles = jnp.broadcast_to(x_init, shape)
        equal = jnp.full(self.num_particles, -np.log(self.num_particles), float_type(problem.y))
        return State(particles, equal, particles[0])

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make steps 1 to 3, or 4."""
        count = self.num_particles
        twisted = jax.vmap(functools.partial(self._twist, prior, problem, point))(state.particles)
        log_weights = _normalised(state.log_weights + twisted[0])
        effective = 1 / jnp.sum(jnp.exp(2 * log_weights))
        # NaN, of particles that all diverged, compares with nothing: they stay.
        resample = (effective < self.ess_threshold * count) | jnp.any(log_weights == -jnp.inf)
        first = jax.scipy.special.ndtr(noise.draw(0, ()))
        parents = _pick(log_weights, (first + jnp.arange(count, dtype=first.dtype)) / count)
        parents = jnp.where(resample, parents, jnp.arange(count, dtype=parents.dtype))
        log_weights = jnp.where(resample, 0.0, log_weights)
        x_t, twist, z, g = jax.tree.map(lambda rows: rows[parents], (state.particles, *twisted))
        led = z + point.lead * g
        if self.clip:
            z, led = jnp.clip(z, -1, 1), jnp.clip(led, -1, 1)

        def go_on() -> tuple[Float[Array, "P ..."], Float[Array, " P"]]:
            n = noise.draw(1, x_t.shape)
            particles = point.w_z * led + point.w_x * x_t + point.std * n
            # Of (||s n||^2 - ||s n + d||^2) / (2 s^2) with d = mu - mu_0, without the squares that cancel.
            pushed = point.w_z / point.std * (led - z)
            return particles, -jnp.sum(pushed * (n + pushed / 2), axis=tuple(range(1, n.ndim)))

        def finish() -> tuple[Float[Array, "P ..."], Float[Array, " P"]]:
            return z, -jax.vmap(problem.half_squared_residual)(z) / noise_std(problem) ** 2

        particles, gained = jax.lax.cond(point.is_last, finish, go_on)
        log_weights = _normalised(log_weights + gained - twist)
        chosen = _pick(log_weights, jax.scipy.special.ndtr(noise.draw(2, ())))
        x = jnp.where(jnp.isnan(log_weights[0]), jnp.nan, z[chosen])
        return State(particles, log_weights, x), StepInfo(problem.misfit(x), effective_particles=effective)

    def _twist(self, prior: Prior, problem: Problem, point: Grid, x_t: Image) -> tuple[Float[Array, ""], Image, Image]:
        """Compute the twist up to a constant, x0_hat and the twist's gradient for one particle."""
        z, pull = jax.vjp(lambda x_t: predict(prior, x_t, point.level)[0], x_t)
        variance = noise_std(problem) ** 2
        if self._is_exact(problem.operator):
            # The twist is the least value over x of the two squares below, and its gradient follows from where.
            x = cast(LinearOperator, problem.operator).prox(z, problem.y, variance / point.r2)
            twist = -(sum_of_squares(problem.residual(x)) / variance + sum_of_squares(x - z) / point.r2) / 2
            (g,) = pull((x - z) / point.r2)
        else:
            variance = variance + self.gain * point.r2
            half, slope = jax.value_and_grad(problem.half_squared_residual)(z)
            twist = -half / variance
            (g,) = pull(-slope / variance)
        return twist, z, g

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x


def _normalised(log_weights: Float[Array, " P"]) -> Float[Array, " P"]:
    """Let the exponentials add up to 1. A particle that diverged has no weight; NaN is left where all did."""
    log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, jax.lax.stop_gradient(log_weights))
    return log_weights - jax.nn.logsumexp(log_weights)


def _pick(log_weights: Float[Array, " P"], positions: Float[Array, "..."]) -> Int[Array, "..."]:
    """Find the particles that lie at these positions, in [0, 1], of the interval that they share by their weights."""
    reached = jnp.cumsum(jnp.exp(log_weights))
    below_one = jnp.minimum(positions, 1 - jnp.finfo(positions.dtype).epsneg)  # one without weight has no place
    found = jnp.searchsorted(reached / reached[-1], below_one, side="right")
    return jnp.minimum(found, log_weights.shape[0] - 1)
