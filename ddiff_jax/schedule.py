"""The noise schedule of a variance-preserving diffusion and the sub-sequences that solvers walk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ddiff_jax.pytree import pytree_dataclass


@pytree_dataclass
class NoiseSchedule:
    """Noise levels of x_t = sqrt(alpha_bar[t]) x_0 + sqrt(noise_var[t]) eps, for t = 0 (least noise) to T - 1.

    Build it from `alpha_bar` alone. `noise_var` is 1 - alpha_bar, formed in float64 before both are stored as
    float32, because the difference loses four digits at t = 0 when it is formed in float32.

    Args:
        alpha_bar: decreasing cumulative products in (0, 1); give float64.

    Raises:
        ValueError: alpha_bar is not a decreasing sequence in (0, 1).
    """

    alpha_bar: Float[jax.Array | np.ndarray, " T"]
    noise_var: Float[jax.Array, " T"] = dataclasses.field(init=False)

    def __post_init__(self):
        table = np.asarray(self.alpha_bar, np.float64)
        ordered = table.ndim == 1 and table.size > 0 and np.all(np.diff(table) < 0)
        if not (ordered and 0 < table[-1] and table[0] < 1):
            raise ValueError(
                "alpha_bar must be one decreasing sequence inside (0, 1), least noise first; "
                f"got shape {table.shape} with values {table.ravel()[:3]}..."
            )
        object.__setattr__(self, "alpha_bar", jnp.asarray(table, jnp.float32))
        object.__setattr__(self, "noise_var", jnp.asarray(1 - table, jnp.float32))

    @property
    def num_timesteps(self) -> int:
        """T, the number of noise levels."""
        return self.alpha_bar.shape[0]

    def posterior_std(self, t: jax.Array, t_prev: jax.Array) -> jax.Array:
        """Standard deviation s of x_{t_prev} given x_t and x_0 (the DDPM posterior), for -1 <= t_prev < t.

        s^2 = (1 - ab_prev) / (1 - ab_t) * (1 - ab_t / ab_prev).
        """
        (_, v), (_, v_prev) = self.levels(t), self.levels(t_prev)
        return jnp.sqrt(v_prev / v * self.beta(t, t_prev))

    def beta(self, t: jax.Array, t_prev: jax.Array) -> jax.Array:
        """Variance 1 - ab_t / ab_prev that the step from t_prev to t > t_prev adds."""
        (ab, v), (ab_prev, v_prev) = self.levels(t), self.levels(t_prev)
        # ab_prev - ab, from whichever of the two tables has small entries there: that difference keeps its digits.
        return jnp.where(v < 0.5, v - v_prev, ab_prev - ab) / ab_prev

    def levels(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Look up alpha_bar and 1 - alpha_bar.

        Args:
            t: integers from -1, the clean image, to T - 1; or fractions, between whose neighbours the logarithm of
                the signal-to-noise ratio is interpolated.
        """
        if jnp.issubdtype(t.dtype, jnp.floating):
            log_ratio = jnp.interp(t, jnp.arange(self.num_timesteps, dtype=t.dtype), self._log_ratio())
            return jax.nn.sigmoid(-log_ratio), jax.nn.sigmoid(log_ratio)
        is_clean = t < 0
        return jnp.where(is_clean, 1.0, self.alpha_bar[t]), jnp.where(is_clean, 0.0, self.noise_var[t])

    def timestep(self, sigma_ve: jax.Array) -> jax.Array:
        """Find the fractional timestep at which x_t / sqrt(ab) = x_0 + sigma_ve n; the inverse of `levels`."""
        return jnp.interp(2 * jnp.log(sigma_ve), self._log_ratio(), jnp.arange(self.num_timesteps, dtype=jnp.float32))

    def _log_ratio(self) -> jax.Array:
        return jnp.log(self.noise_var) - jnp.log(self.alpha_bar)


def linear_schedule(num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
    """Build the schedule with beta rising linearly from `beta_start` to `beta_end` (both included).

    Source: Ho et al. 2020; guided-diffusion's "linear" schedule, that of the FFHQ and 256x256 ImageNet checkpoints.

    Raises:
        ValueError: fewer than one level, or betas outside 0 < beta_start <= beta_end < 1.
    """
    if num_timesteps < 1 or not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            "a linear schedule needs num_timesteps >= 1 and 0 < beta_start <= beta_end < 1; "
            f"got {num_timesteps}, {beta_start}, {beta_end}"
        )
    betas = np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64)
    return NoiseSchedule(np.cumprod(1 - betas))


def respaced_timesteps(num_timesteps: int, num_steps: int | None) -> np.ndarray:
    """Choose the timesteps of a run, from the noisiest to 0, evenly spaced and rounded to integers.

    Args:
        num_timesteps: T, the number of levels in the schedule.
        num_steps: number of updates, that is of network evaluations. None, T - 1 and T all mean every
            timestep: the T-th evaluation, at t = 0, changes nothing and is not made.

    Returns:
        Integers of shape [num_steps + 1], strictly decreasing from T - 1 to 0.

    Raises:
        ValueError: num_steps is not between 1 and T.
    """
    if num_steps is None or num_steps == num_timesteps:
        num_steps = num_timesteps - 1
    _check_num_steps(num_steps, num_timesteps - 1, num_timesteps)
    return np.round(np.linspace(num_timesteps - 1, 0, num_steps + 1)).astype(np.int32)


def timesteps_to_clean(num_timesteps: int, num_steps: int | None) -> np.ndarray:
    """Choose the timesteps of a run that evaluates the network at t = 0 too and ends at the clean image, -1.

    Args:
        num_timesteps: T, the number of levels in the schedule.
        num_steps: number of network evaluations, spread evenly from T - 1 to 0; None is all T.

    Returns:
        Integers of shape [num_steps + 1], strictly decreasing from T - 1 to -1.

    Raises:
        ValueError: num_steps is not between 1 and T.
    """
    num_steps = num_timesteps if num_steps is None else num_steps
    _check_num_steps(num_steps, num_timesteps, num_timesteps)
    return np.append(np.round(np.linspace(num_timesteps - 1, 0, num_steps)), -1).astype(np.int32)


def _check_num_steps(num_steps: int, most: int, num_timesteps: int) -> None:
    if not 1 <= num_steps <= most:
        raise ValueError(
            f"the number of steps must lie between 1 and {num_timesteps}, the length of the noise schedule; "
            f"got {num_steps}"
        )


def strided_timesteps(num_timesteps: int, num_steps: int | None) -> np.ndarray:
    """Choose every T / num_steps-th timestep up from 0, as the codes of RED-diff and DDRM do, and then the clean image.

    Args:
        num_timesteps: T, the number of levels in the schedule.
        num_steps: number of network evaluations; None is all T.

    Returns:
        Integers of shape [num_steps + 1], strictly decreasing to 0 and -1: 990, 980, ..., 0, -1 for 100 of 1000.

    Raises:
        ValueError: num_steps is not between 1 and T.
    """
    num_steps = num_timesteps if num_steps is None else num_steps
    _check_num_steps(num_steps, num_timesteps, num_timesteps)
    return np.append(np.arange(num_steps)[::-1] * num_timesteps // num_steps, -1).astype(np.int32)


def cosine_schedule(num_timesteps: int = 1000) -> NoiseSchedule:
    """Build the schedule whose alpha_bar falls like a squared cosine, with no beta above 0.999.

    beta[t] = min(1 - f((t + 1) / T) / f(t / T), 0.999) with f(u) = cos^2((u + 0.008) / 1.008 * pi / 2).

    Source: Nichol and Dhariwal 2021; the "cosine" schedule of improved-diffusion and guided-diffusion, and
        "squaredcos_cap_v2" elsewhere.

    Raises:
        ValueError: fewer than one level.
    """
    if num_timesteps < 1:
        raise ValueError(f"a cosine schedule needs num_timesteps >= 1; got {num_timesteps}")
    squares = np.cos((np.arange(num_timesteps + 1) / num_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
    return NoiseSchedule(np.cumprod(1 - np.minimum(1 - squares[1:] / squares[:-1], 0.999)))


def scaled_linear_schedule(
    num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> NoiseSchedule:
    """Build the schedule with the root of beta rising linearly from that of `beta_start` to that of `beta_end`.

    Source: "scaled_linear" of diffusers, with the same defaults; latent diffusion has 0.00085 and 0.012.

    Raises:
        ValueError: fewer than one level, or betas outside 0 < beta_start <= beta_end < 1.
    """
    if num_timesteps < 1 or not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            "a scaled linear schedule needs num_timesteps >= 1 and 0 < beta_start <= beta_end < 1; "
            f"got {num_timesteps}, {beta_start}, {beta_end}"
        )
    roots = np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), num_timesteps)
    return NoiseSchedule(np.cumprod(1 - roots**2))
