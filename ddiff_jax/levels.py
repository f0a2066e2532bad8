"""Noise levels as values, what a schedule of them is, and how solvers walk one."""

import dataclasses
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Column, Image

Spacing = Literal["even", "strided", "uniform", "quad"]


@runtime_checkable
class Schedule(Protocol):
    """The noise levels that a prior knows, and what its network is told at each.

    A schedule is a hashable value (a frozen dataclass of numbers): it is part of a program's structure, and another
    one compiles another program. One whose levels are numbered timesteps should also be a `HasTimesteps`.
    """

    @property
    def num_levels(self) -> int:
        """How many levels a solver walks that asks for all of them."""
        ...

    def levels(self, num_steps: int | None, spacing: Spacing = "even") -> "Level":
        """List the levels of a walk, noisiest first: num_steps + 1 rows, of which the last is the clean image."""
        ...

    def at(self, ratio: Any) -> "Level":
        """Find the level at which sigma / signal is `ratio`; ratios beyond the noisiest level give that one."""
        ...


@runtime_checkable
class HasTimesteps(Protocol):
    """A schedule that was made step by step: its levels have numbers, and between two of them lies a step's noise."""

    @property
    def time_scale(self) -> float | int:
        """The network is told the number times this."""
        ...

    def at_time(self, t: Any) -> "Level":
        """Find level number t, 0 the least noisy; -1 is the clean image."""
        ...


@pytree_dataclass
class Level:
    """One noise level, or a column of K of them: x_t = signal x_0 + sigma n with n ~ N(0, I).

    Args:
        signal: factor of the clean image; 0 at most at the noisiest level.
        sigma: standard deviation of the noise; 0 is the clean image.
        time: what the network is told, in the units of `schedule`.
        schedule: whose time that is. A prior with another schedule rescales x_t and finds its own time by the ratio
            sigma / signal; None always makes it do so.
    """

    signal: Column
    sigma: Column
    time: Column
    schedule: Schedule | None = static_field(default=None)

    def __getitem__(self, rows: Any) -> "Level":
        return jax.tree.map(lambda column: column[rows], self)

    @property
    def ratio(self) -> Column:
        """Noise to signal, sigma / signal: the noise level of x_t / signal = x_0 + ratio n."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.sigma / self.signal

    @property
    def scale(self) -> Column:
        """Root mean square of x_t for images of unit variance: 1 for variance-preserving levels.

        Published step lengths that belong to x_t are stated for such levels; times this they serve any others.
        """
        both = (self.signal, self.sigma)
        return np.hypot(*both) if isinstance(self.signal, np.ndarray | float) else jnp.hypot(*both)

    def eps(self, x_t: Image, x_0: Image) -> Image:
        """Compute the noise that x_t holds if the clean image is x_0."""
        return (x_t - self.signal * x_0) / self.sigma

    def x_0(self, x_t: Image, eps: Image) -> Image:
        """Compute the clean image if the noise in x_t is eps."""
        return (x_t - self.sigma * eps) / self.signal

    def score(self, x_t: Image, x0_hat: Image) -> Image:
        """Compute the gradient of log p(x_t), given x0_hat = E[x_0 | x_t] (Tweedie)."""
        return (self.signal * x0_hat - x_t) / self.sigma**2

    def velocity(self, x_t: Image, x0_hat: Image) -> Image:
        """Compute E[n - x_0 | x_t], the velocity of the straight path from image to noise."""
        return self.eps(x_t, x0_hat) - x0_hat

    def step_variance(self, cleaner: "Level") -> Column:
        """Compute the variance sigma^2 - (signal / signal')^2 sigma'^2 that leads from a cleaner level to this one.

        For variance-preserving levels it is beta = 1 - ab / ab'.
        """
        ratio, cleaner_ratio = self.ratio, cleaner.ratio
        return self.signal**2 * (ratio - cleaner_ratio) * (ratio + cleaner_ratio)

    def clean_variance(self, var: Any) -> Column:
        """Compute the variance of x_0 given x_t, for independent Gaussian pixels of variance var."""
        a, b = self.signal, self.sigma
        return var * b**2 / (a**2 * var + b**2)

    def posterior_std(self, cleaner: "Level") -> Column:
        """Compute the standard deviation of x_t' at the cleaner level, given x_t and x_0 (the DDPM posterior)."""
        return cleaner.sigma / self.sigma * self.step_variance(cleaner) ** 0.5


def spaced(first: Any, last: Any, share: Any, power: float = 7.0) -> Any:
    """Place noise-to-signal ratios between two, evenly in their root, as EDM does with the seventh.

    Args:
        first: where share is 0.
        last: where it is 1.
        share: numbers in [0, 1], an array; in float64 NumPy, as are its ends, the result is that too.
        power: of the root; more of it puts more of them at little noise.
    """
    traced = any(isinstance(value, jax.Array) for value in (first, last, share))
    library, dtype = (jnp, jnp.result_type(share)) if traced else (np, np.float64)
    first, last = (library.asarray(ratio, dtype) ** (1 / power) for ratio in (first, last))
    return (first + share * (last - first)) ** power


def walk(
    schedule: Schedule, num_steps: int | None, spacing: Spacing = "even", *, to_clean: bool = True
) -> tuple[Level, Level]:
    """List where every step of a solver starts and where it ends.

    Args:
        schedule: whose levels.
        num_steps: K, updates and so evaluations of the network; None is all levels.
        spacing: as in `levels`.
        to_clean: end at the clean image. False ends at the least noisy level: the evaluation there, which changes
            nothing in such solvers, is left out, and as many steps as there are levels are one less. The state there
            is what they return: as an image, in units of levels with signal^2 + sigma^2 = 1, whatever the schedule's.

    Returns:
        Two columns of K levels, noisiest first.

    Raises:
        ValueError: num_steps is not between 1 and the number of levels.
    """
    if to_clean:
        rows = schedule.levels(num_steps, spacing)
    else:
        total = schedule.num_levels
        num_steps = total - 1 if num_steps is None or num_steps == total else num_steps
        if num_steps < 1:  # would be one level, which is no step
            schedule.levels(num_steps, spacing)
        rows = schedule.levels(num_steps + 1, spacing)[:-1]
        signal, sigma, scale = rows.signal.copy(), rows.sigma.copy(), rows.scale[-1]
        signal[-1], sigma[-1] = signal[-1] / scale, sigma[-1] / scale
        rows = dataclasses.replace(rows, signal=signal, sigma=sigma)
    return rows[:-1], rows[1:]
