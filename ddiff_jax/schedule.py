"""The schedules that list noise levels: variance preserving, variance exploding and flow.

Schedules hold few numbers, are hashable, and answer in float64 NumPy outside of any trace: per-step tables lose nothing
to rounding before they are stored in the type that a run computes in.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ddiff_jax.levels import Level, Spacing
from ddiff_jax.types import Column

LEAST_RATIO = 1e-12  # of noise to signal: stands for none where a logarithm is taken
MOST_NOISE = 60.0  # logarithm of 1 + the square of the noise-to-signal ratio; its exponential fits into float32


def _check_num_steps(num_steps: int, most: float | int, what: str) -> None:
    if not 1 <= num_steps <= most:
        raise ValueError(f"the number of steps must lie between 1 and {most}, the length of {what}; got {num_steps}")


def _positions(num_steps: int, spacing: Spacing) -> np.ndarray:
    """Place the noisy levels of a walk between the noisiest, 0, and the least noisy, 1."""
    k = np.arange(num_steps, dtype=np.float64)
    if spacing == "strided":
        return (k + 1) / num_steps
    share = k / max(num_steps - 1, 1)
    return np.sqrt(share) if spacing == "quad" else share


def _library(values: Any) -> Any:
    return jnp if isinstance(values, jax.Array) else np


@dataclasses.dataclass(frozen=True)
class VPSchedule:
    """Variance-preserving levels from a table: x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) n, t = 0 (least noise) to T - 1.

    Args:
        alpha_bar: the table ab, decreasing cumulative products in (0, 1); give float64.
        time_scale: the network is told t times this: 1000 / T for networks trained with rescaled timesteps.

    Raises:
        ValueError: alpha_bar is not a decreasing sequence in (0, 1), or time_scale is not positive.
    """

    alpha_bar: Sequence[float]
    time_scale: float | int = 1.0

    def __post_init__(self):
        table = np.asarray(self.alpha_bar, np.float64)
        ordered = table.ndim == 1 and table.size > 0 and np.all(np.diff(table) < 0)
        if not (ordered and 0 < table[-1] and table[0] < 1):
            raise ValueError(
                "alpha_bar must be one decreasing sequence inside (0, 1), least noise first; "
                f"got shape {table.shape} with values {table.ravel()[:3]}..."
            )
        _check_positive("time_scale", self.time_scale)
        object.__setattr__(self, "alpha_bar", tuple(table.tolist()))

    def __repr__(self) -> str:
        ends = f"{self.alpha_bar[0]:.6g}, ..., {self.alpha_bar[-1]:.6g}"
        return f"VPSchedule(alpha_bar=[{ends}] of {self.num_levels}, time_scale={self.time_scale:g})"

    @property
    def num_levels(self) -> int:
        """T."""
        return len(self.alpha_bar)

    @functools.cached_property
    def _log_ratio(self) -> np.ndarray:
        table = np.asarray(self.alpha_bar)
        return 0.5 * (np.log1p(-table) - np.log(table))

    def _rows(self, t: Any) -> Level:
        """Look up integer timesteps; -1 is the clean image."""
        table = np.append(np.asarray(self.alpha_bar), 1.0)  # index -1
        alpha_bar = table[t]
        return Level(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), t * float(self.time_scale), self)

    def at_time(self, t: Any) -> Level:
        """Find the level of timestep t.

        Args:
            t: 0 (least noise) to T - 1; -1 is the clean image. Between whole numbers the logarithm of the
                noise-to-signal ratio is interpolated.
        """
        if not isinstance(t, jax.Array) and np.all(np.asarray(t) == np.round(t)):
            return self._rows(np.clip(np.asarray(t, np.int64), -1, self.num_levels - 1))
        library = _library(t)
        t = library.asarray(t, library.result_type(float))
        index = library.arange(self.num_levels, dtype=t.dtype)
        ratio = library.exp(library.interp(t, index, library.asarray(self._log_ratio, t.dtype)))
        level = dataclasses.replace(self.at(ratio), time=t * self.time_scale)
        clean = (library.ones_like(t), library.zeros_like(t))
        signal, sigma = (library.where(t <= -1, a, b) for a, b in zip(clean, (level.signal, level.sigma), strict=True))
        return dataclasses.replace(level, signal=signal, sigma=sigma)

    def levels(self, num_steps: int | None, spacing: Spacing = "even") -> Level:
        """List the levels of a walk from the noisiest timestep to the clean image.

        Args:
            num_steps: K, how many levels hold noise; None is all T.
            spacing: "even" spreads whole timesteps from T - 1 to 0; "strided" takes every T / K-th up from 0, as the
                codes of RED-diff and DDRM do (990, 980, ..., 0 for 100 of 1000); "uniform" every floor(T / (K - 1))-th
                down from T - 1 and then 0, and "quad" lies densely at low noise, both as in DiffPIR's code.

        Returns:
            K + 1 levels, the last one clean.

        Raises:
            ValueError: num_steps is not between 1 and T, or so large that timesteps repeat.
        """
        total, count = self.num_levels, self.num_levels if num_steps is None else num_steps
        _check_num_steps(count, total, f"the noise schedule, {total} levels")
        if spacing == "even":
            t = np.round(np.linspace(total - 1, 0, count))
        elif spacing == "strided":
            t = np.arange(count)[::-1] * total // count
        elif spacing == "uniform":
            stride = total // max(count - 1, 1) if count < total else 1
            t = np.append(total - 1 - stride * np.arange(count - 1), 0)
        else:
            t = total - 1 - np.minimum(np.floor(total * np.sqrt(np.linspace(0, 1, count))), total - 1)
        skips = spacing == "uniform" and count < total and total // max(count - 1, 1) == 1  # strides of 1, then a leap
        if skips or np.any(np.diff(t) >= 0):
            raise ValueError(
                f"{count} {spacing} levels of a schedule of {total} repeat timesteps; take at most about {total // 2}"
            )
        return self._rows(np.append(t, -1).astype(np.int64))

    def at(self, ratio: Any) -> Level:
        """Find the level at which sigma / signal is `ratio`; its time is fractional, by interpolation of log ratio.

        Args:
            ratio: at least 0; beyond the noisiest level of the table it counts as that level's. Below the least noisy
                one the level is as asked for, and the network is told 0.
        """
        library = _library(ratio)
        table = library.asarray(self._log_ratio, library.result_type(float))
        ratio = library.minimum(library.asarray(ratio, table.dtype), library.exp(table[-1]))
        index = library.arange(self.num_levels, dtype=table.dtype)
        t = library.interp(library.log(library.maximum(ratio, LEAST_RATIO)), table, index)
        signal = 1 / library.sqrt(1 + ratio**2)
        return Level(signal, ratio * signal, t * self.time_scale, self)


class _Continuous:
    """Base of the schedules without a table, whose levels can lie anywhere between the noisiest and the least noisy."""

    num_levels: int

    def _between(self, share: np.ndarray) -> Level:
        """Find the levels that lie so far, from 0 to 1, between the noisiest and the least noisy one."""
        raise NotImplementedError

    def levels(self, num_steps: int | None, spacing: Spacing = "even") -> Level:
        """List num_steps + 1 levels from the noisiest to the least noisy one, and then the clean image.

        Args:
            num_steps: K, how many levels hold noise; None is `num_levels`.
            spacing: "even", in the parameter that the schedule is evenly spaced in; "strided" leaves out the noisiest
                level, "quad" lies more densely at low noise.

        Raises:
            ValueError: num_steps is below 1.
        """
        count = self.num_levels if num_steps is None else num_steps
        _check_num_steps(count, math.inf, "any walk")
        noisy = self._between(_positions(count, spacing))
        time = np.append(noisy.time, noisy.time[-1])
        return Level(np.append(noisy.signal, 1.0), np.append(noisy.sigma, 0.0), time, noisy.schedule)


@dataclasses.dataclass(frozen=True)
class EDMSchedule(_Continuous):
    """Variance-exploding levels x_t = x_0 + sigma n, spaced evenly in sigma^(1/rho).

    Args:
        sigma_max: noisiest level.
        sigma_min: least noisy one.
        rho: 7 crowds the levels at low noise as EDM does; 1 spaces them evenly.
        conditioning: what the network is told: "log" is time_scale ln(sigma / reference), "sigma" is time_scale sigma.
        time_scale: EDM's networks take ln(sigma) / 4, OpenAI's 250 ln(sigma), plain denoisers D(x, sigma) sigma.
        num_levels: how many levels a solver walks that asks for all.
        reference: the sigma of which a network by "log" is told 0.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max, or another number is not positive.

    Source: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", equation 5.
    """

    sigma_max: float | int = 80.0
    sigma_min: float | int = 0.002
    rho: float | int = 7.0
    conditioning: Literal["log", "sigma"] = "log"
    time_scale: float | int = 0.25
    num_levels: int = 1000
    reference: float | int = 1.0

    def __post_init__(self):
        for name in ("sigma_min", "rho", "time_scale", "num_levels", "reference"):
            _check_positive(name, getattr(self, name))
        _check_ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)
        if self.conditioning not in ("log", "sigma"):
            raise ValueError(f"conditioning must be log or sigma; got {self.conditioning!r}")

    def _level(self, sigma: Any) -> Level:
        library = _library(sigma)
        is_log = self.conditioning == "log"
        told = library.log(library.maximum(sigma, LEAST_RATIO) / self.reference) if is_log else sigma
        return Level(library.ones_like(sigma), sigma, self.time_scale * told, self)

    def _between(self, share: np.ndarray) -> Level:
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return self._level((first + share * (last - first)) ** self.rho)

    def at(self, ratio: Any) -> Level:
        """Find the level sigma = `ratio`; above sigma_max it is that one."""
        library = _library(ratio)
        return self._level(library.minimum(library.asarray(ratio, library.result_type(float)), self.sigma_max))


@dataclasses.dataclass(frozen=True)
class VPSDESchedule(_Continuous):
    """Variance-preserving levels of a continuous time t, spaced evenly in t from 1 to t_min.

    x_t = signal (x_0 + r n) with signal = 1 / sqrt(1 + r^2) and r^2 = exp(beta_d t^2 / 2 + beta_min t) - 1; the network
    is told time_scale t.

    Args:
        beta_d: how fast the rate of noise rises.
        beta_min: the rate at t = 0.
        t_min: of the least noisy level.
        time_scale: M - 1 for networks trained with M steps.
        num_levels: how many levels a solver walks that asks for all.

    Raises:
        ValueError: t_min is not below 1, or a number is not positive.

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential equations", in the form
        of table 1 of Karras et al. 2022.
    """

    beta_d: float | int = 19.9
    beta_min: float | int = 0.1
    t_min: float | int = 1e-3
    time_scale: float | int = 999.0
    num_levels: int = 1000

    def __post_init__(self):
        for name in ("beta_d", "beta_min", "t_min", "time_scale", "num_levels"):
            _check_positive(name, getattr(self, name))
        _check_ordered("t_min", self.t_min, "1, the noisiest level,", 1.0)
        if self.beta_d / 2 + self.beta_min > MOST_NOISE:
            raise ValueError(f"beta_d / 2 + beta_min of a noise schedule must be at most {MOST_NOISE}")

    def _ratio(self, t: Any) -> Any:
        return np.sqrt(np.expm1(self.beta_d / 2 * t**2 + self.beta_min * t))

    def _level(self, ratio: Any, t: Any) -> Level:
        signal = 1 / _library(ratio).sqrt(1 + ratio**2)
        return Level(signal, ratio * signal, self.time_scale * t, self)

    def _between(self, share: np.ndarray) -> Level:
        t = 1 + share * (self.t_min - 1)
        return self._level(self._ratio(t), t)

    def at(self, ratio: Any) -> Level:
        """Find the level at which sigma / signal is `ratio`; above that of t = 1 it is that one."""
        library = _library(ratio)
        ratio = library.minimum(library.asarray(ratio, library.result_type(float)), float(self._ratio(1.0)))
        log = library.log1p(ratio**2)
        # The positive root of a quadratic equation, in the form that takes no difference of nearly equal numbers.
        root = library.sqrt(self.beta_min**2 + 2 * self.beta_d * log)
        return self._level(ratio, 2 * log / (root + self.beta_min))


@dataclasses.dataclass(frozen=True)
class FlowSchedule(_Continuous):
    """Levels of the straight path x_t = (1 - s) x_0 + s n, evenly spaced in s from 0, the image, to 1, noise alone.

    Args:
        s_max: noisiest level; below 1, where no signal is left and the noise-to-signal ratio is infinite.
        s_min: least noisy one.
        time_scale: the network is told s times this; 1000 for networks trained with diffusers.
        num_levels: how many levels a solver walks that asks for all.

    Raises:
        ValueError: not 0 < s_min < s_max < 1, or another number is not positive.

    Source: Lipman et al. 2023, "Flow matching for generative modeling"; Liu et al. 2023, "Flow straight and fast".
    """

    s_max: float | int = 0.999
    s_min: float | int = 0.001
    time_scale: float | int = 1.0
    num_levels: int = 1000

    def __post_init__(self):
        for name in ("s_min", "time_scale", "num_levels"):
            _check_positive(name, getattr(self, name))
        _check_ordered("s_min", self.s_min, "s_max", self.s_max)
        _check_ordered("s_max", self.s_max, "1, where no signal is left,", 1.0)

    def _between(self, share: np.ndarray) -> Level:
        s = self.s_max + share * (self.s_min - self.s_max)
        return Level(1 - s, s, s * self.time_scale, self)

    def at(self, ratio: Any) -> Level:
        """Find the level s = ratio / (1 + ratio); above s_max it is that one."""
        library = _library(ratio)
        ratio = library.minimum(library.asarray(ratio, library.result_type(float)), self.s_max / (1 - self.s_max))
        signal = 1 / (1 + ratio)
        return Level(signal, ratio * signal, ratio * signal * self.time_scale, self)


def _check_positive(name: str, value: float | int) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} of a noise schedule must be positive and finite; got {value}")


def _check_ordered(lesser: str, low: float | int, greater: str, high: float | int) -> None:
    if not low < high < math.inf:
        raise ValueError(f"{lesser} of a noise schedule must lie below {greater}; got {low} and {high}")


def linear_schedule(
    num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, time_scale: float | int = 1.0
) -> VPSchedule:
    """Build the schedule with beta rising linearly from `beta_start` to `beta_end` (both included).

    Args:
        num_timesteps: T.
        beta_start: variance that the first step adds.
        beta_end: variance that the last step adds.
        time_scale: as in `VPSchedule`.

    Source: Ho et al. 2020; guided-diffusion's "linear" schedule, that of the FFHQ and 256x256 ImageNet checkpoints.

    Raises:
        ValueError: fewer than one level, or betas outside 0 < beta_start <= beta_end < 1.
    """
    _check_betas("linear", num_timesteps, beta_start, beta_end)
    betas = np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64)
    return VPSchedule(np.cumprod(1 - betas).tolist(), time_scale)


def _check_betas(what: str, num_timesteps: int, beta_start: float, beta_end: float) -> None:
    if num_timesteps < 1 or not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"a {what} schedule needs num_timesteps >= 1 and 0 < beta_start <= beta_end < 1; "
            f"got {num_timesteps}, {beta_start}, {beta_end}"
        )


def cosine_schedule(num_timesteps: int = 1000, time_scale: float | int = 1.0) -> VPSchedule:
    """Build the schedule whose alpha_bar falls like a squared cosine, with no beta above 0.999.

    beta[t] = min(1 - f((t + 1) / T) / f(t / T), 0.999) with f(u) = cos^2((u + 0.008) / 1.008 * pi / 2).

    Args:
        num_timesteps: T.
        time_scale: as in `VPSchedule`.

    Source: Nichol and Dhariwal 2021; the "cosine" schedule of improved-diffusion and guided-diffusion, and
        "squaredcos_cap_v2" elsewhere.

    Raises:
        ValueError: fewer than one level.
    """
    if num_timesteps < 1:
        raise ValueError(f"a cosine schedule needs num_timesteps >= 1; got {num_timesteps}")
    squares = np.cos((np.arange(num_timesteps + 1) / num_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - squares[1:] / squares[:-1], 0.999)
    return VPSchedule(np.cumprod(1 - betas).tolist(), time_scale)


def scaled_linear_schedule(
    num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, time_scale: float | int = 1.0
) -> VPSchedule:
    """Build the schedule with the root of beta rising linearly from that of `beta_start` to that of `beta_end`.

    Args:
        num_timesteps: T.
        beta_start: variance that the first step adds.
        beta_end: variance that the last step adds.
        time_scale: as in `VPSchedule`.

    Source: "scaled_linear" of diffusers, with the same defaults; latent diffusion has 0.00085 and 0.012.

    Raises:
        ValueError: fewer than one level, or betas outside 0 < beta_start <= beta_end < 1.
    """
    _check_betas("scaled linear", num_timesteps, beta_start, beta_end)
    roots = np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), num_timesteps)
    return VPSchedule(np.cumprod(1 - roots**2).tolist(), time_scale)


PUBLISHED = linear_schedule()


def published_time(level: Level) -> Column:
    """Find the timesteps of the published schedule (linear, T = 1000) with the same noise-to-signal ratios.

    Published thresholds such as DDiff's t0 and t_gamma are timesteps of that schedule; this carries them over to every
    other one, and is exact for levels of its own.

    Args:
        level: traced or not.

    Returns:
        Fractional timesteps, whole where the level is one of the schedule's; -1 for the clean image.
    """
    library = _library(level.sigma)
    ratio = library.asarray(level.ratio, library.result_type(float))
    index = library.arange(PUBLISHED.num_levels, dtype=ratio.dtype)
    log_ratio = library.log(library.maximum(ratio, LEAST_RATIO))
    t = library.round(library.interp(log_ratio, library.asarray(PUBLISHED._log_ratio, ratio.dtype), index), 6)
    return library.where(level.sigma == 0, -1.0, t)
