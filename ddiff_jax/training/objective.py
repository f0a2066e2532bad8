"""What a network learns at which noise levels: its input, stratified levels, the learned variance."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.levels import HasTimesteps, Level, Schedule
from ddiff_jax.priors.network import Prediction
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.schedule import EDMSchedule
from ddiff_jax.types import Column, PRNGKey

# ln(sigma) of the levels that EDM trains on is normal with this mean and standard deviation.
EDM_MEAN, EDM_STD = -1.2, 1.2


def input_scale(prediction: Prediction, level: Level, sigma_data: float) -> Array | float:
    """Compute c_in, by which a network sees x_t."""
    if prediction != "edm":
        return 1.0
    return (level.sigma**2 + (level.signal * sigma_data) ** 2) ** -0.5


def stratified(key: PRNGKey, count: int) -> Float[Array, " N"]:
    """Draw numbers in (0, 1), one in each of `count` equal parts, in random order: every update sees every level."""
    order, place = jax.random.split(key)
    uniform = jax.random.uniform(place, (count,), jnp.float32)
    return (jax.random.permutation(order, count).astype(jnp.float32) + uniform) / count


@pytree_dataclass
class Steps:
    """What belongs to a sampler's step from each level to the next cleaner one, for a schedule of timesteps.

    Args:
        log_beta: logarithm of the variance that the step would add, the upper bound of the step's own.
        log_posterior: that of the posterior of the cleaner image, the lower bound; at the first timestep, where it is
            a point, that of the second.
        gain: factor of x_0 in the posterior's mean.
        is_first: whether the step ends at the clean image.
    """

    log_beta: Column
    log_posterior: Column
    gain: Column
    is_first: Column


@functools.lru_cache(maxsize=8)
def _tables(schedule: Schedule) -> tuple[Level, Steps | None]:
    """List the noisy levels of a schedule, least noisy first, and the steps from them, in float32."""
    rows = schedule.levels(None)
    level, cleaner = rows[:-1][::-1], rows[1:][::-1]
    steps = None
    if isinstance(schedule, HasTimesteps) and level.signal.size > 1:
        beta = level.step_variance(cleaner)
        posterior = level.posterior_std(cleaner) ** 2
        posterior[0] = posterior[1]
        gain = cleaner.signal * beta / level.sigma**2
        steps = Steps(np.log(beta), np.log(posterior), gain, np.arange(beta.size) == 0)
    return jax.tree.map(lambda c: c if c.dtype == bool else np.asarray(c, np.float32), (level, steps))


def draw_levels(schedule: Schedule, key: PRNGKey, count: int) -> tuple[Level, Steps | None]:
    """Draw the levels of a batch: uniform over a schedule's own levels; over ln(sigma) as EDM does for its schedule.

    Returns:
        Columns of `count` levels, and of the steps from them if the schedule has timesteps.
    """
    u = stratified(key, count)
    if isinstance(schedule, EDMSchedule):
        ratio = jnp.exp(EDM_MEAN + EDM_STD * jax.scipy.special.ndtri(jnp.clip(u, 1e-6, 1 - 1e-6)))
        return schedule.at(jnp.clip(ratio, schedule.sigma_min, schedule.sigma_max)), None
    tables = _tables(schedule)
    size = tables[0].signal.size
    index = jnp.minimum((u * size).astype(jnp.int32), size - 1)
    return jax.tree.map(lambda column: jnp.asarray(column)[index], tables)


def variance_loss(
    x_0: Float[Array, "N ..."], estimate: Float[Array, "N ..."], v: Float[Array, "N ..."], steps: Steps
) -> Float[Array, " N"]:
    """Compute the variational bound that teaches v, the place of a step's log variance between its bounds, in bits.

    Args:
        x_0: clean images.
        estimate: of them, by the network; no gradient passes.
        v: the network's second output, see `LearnedVariance`.
        steps: one per image, as columns that broadcast against images.

    Source: Nichol and Dhariwal 2021, equations 4 to 6 and 15: the divergence of a step's posterior from the model's
        step; at the first timestep the likelihood of 8-bit pixels.
    """
    estimate = jax.lax.stop_gradient(jnp.clip(estimate, -1, 1))
    log_variance = 0.5 * ((1 + v) * steps.log_beta + (1 - v) * steps.log_posterior)
    # The part of both means that is linear in x_t is the same.
    squares = (steps.gain * (x_0 - estimate)) ** 2
    behind = log_variance - steps.log_posterior
    divergence = 0.5 * (behind - 1 + jnp.exp(-behind) + squares * jnp.exp(-log_variance))
    coded = -_log_likelihood(x_0, estimate, log_variance)
    axes = tuple(range(1, x_0.ndim))
    return jnp.where(steps.is_first, coded, divergence).mean(axes) / math.log(2)


def _log_likelihood(x: Array, mean: Array, log_variance: Array) -> Array:
    """Compute the log probability that a normal variable rounds to the 8-bit level x; the outer levels have tails."""
    scale = jnp.exp(-0.5 * log_variance)
    upper = jnp.where(x > 0.999, 1.0, jax.scipy.stats.norm.cdf((x - mean + 1 / 255) * scale))
    lower = jnp.where(x < -0.999, 0.0, jax.scipy.stats.norm.cdf((x - mean - 1 / 255) * scale))
    return jnp.log(jnp.maximum(upper - lower, 1e-12))
