"""Signals with independent increments: a prior that is exact on a lattice."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.fft import next_fast_len

from ddiff_jax.calibration.draws import generator, images
from ddiff_jax.calibration.laws import Law
from ddiff_jax.calibration.sparse import Signals
from ddiff_jax.levels import Level, Schedule
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import PUBLISHED
from ddiff_jax.types import Image, ImageShape, PRNGKey

WINDOW = 8.0  # standard deviations of the noise on either side


@pytree_dataclass
class LevyPrior:
    """x_k = u_0 + ... + u_k with independent increments of one law: a Markov chain, denoised forward and backward.

    Every x_k lives on 2 h + 1 points of a lattice, around x_t / signal or, if there is more noise than signals have
    range, around 0. Messages run along the chain and back; their product is the law of x_k given x_t. Between two
    points lies the mass of the increments in a cell, less a 24th of its second difference: the cell's own variance,
    which would add to that of the increments. Increments of exactly 0 are shifts by whole cells.

    Args:
        law: of the increments.
        half_points: h; 256 gives four digits at every level, 64 two to three.
        reach: half the range of signals.
        image_shape: (L, 1).
        schedule: noise levels.
    """

    law: Law = static_field()
    half_points: int = static_field()
    reach: float = static_field()
    image_shape: ImageShape = static_field()
    schedule: Schedule = static_field()

    def denoise(self, x_t: Image, level: Level) -> Image:
        """Return E[x_0 | x_t]."""
        return self.predict(x_t, level)[0]

    def predict(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Return E[x_0 | x_t] and E[n | x_t]."""
        a, b = (jnp.asarray(value, x_t.dtype) for value in (level.signal, level.sigma))
        step, centres, steps = self._lattice(x_t.ravel(), a, b)
        share = self._shares(x_t.ravel(), a, b)
        offset = share @ steps * step
        left = x_t.ravel() - a * step * centres
        x_0, eps = step * centres + offset, (left - a * offset) / b
        return x_0.reshape(x_t.shape), eps.reshape(x_t.shape)

    def mean_variance(self, x_t: Image, level: Level) -> Float[Array, ""]:
        """Compute the mean over k of Var[x_k | x_t]."""
        a, b = (jnp.asarray(value, x_t.dtype) for value in (level.signal, level.sigma))
        step, _, steps = self._lattice(x_t.ravel(), a, b)
        share = self._shares(x_t.ravel(), a, b)
        return step**2 * jnp.mean(share @ steps**2 - (share @ steps) ** 2)

    def _lattice(
        self, x_t: Float[Array, " L"], a: Array, b: Array
    ) -> tuple[Float[Array, ""], Float[Array, " L"], Float[Array, " G"]]:
        """Place the points of x_k at step (centre_k + steps), with whole numbers centre_k and steps from -h to h."""
        tiny = jnp.asarray(jnp.finfo(x_t.dtype).tiny, x_t.dtype)
        wide = WINDOW * b >= self.reach * a
        half = jnp.where(wide, self.reach, WINDOW * b / jnp.maximum(a, tiny))
        step = jax.lax.stop_gradient(half / self.half_points)
        centres = jnp.where(wide, 0.0, jnp.round(x_t / jnp.maximum(a * step, tiny)))
        steps = jnp.arange(-self.half_points, self.half_points + 1, dtype=x_t.dtype)
        return step, jax.lax.stop_gradient(centres), steps

    def _shares(self, x_t: Float[Array, " L"], a: Array, b: Array) -> Float[Array, "L G"]:
        """Compute the law of every x_k given x_t on its points."""
        step, centres, steps = self._lattice(x_t, a, b)
        tiny = jnp.asarray(jnp.finfo(x_t.dtype).tiny, x_t.dtype)
        off = ((x_t - a * step * centres)[:, None] - a * step * steps[None]) / b
        logs = -0.5 * off**2
        likelihoods = jnp.exp(logs - logs.max(1, keepdims=True))
        points, size = steps.shape[0], next_fast_len(4 * self.half_points + 1, real=True)
        spectra = jnp.fft.rfft(self._kernels(step, jnp.diff(centres, prepend=0.0)), size)
        reach = points - 1

        def move(message: Array, spectrum: Array) -> Array:
            moved = jnp.fft.irfft(jnp.fft.rfft(message, size) * spectrum, size)
            return jnp.maximum(moved[reach : reach + points], 0.0)

        def forward(before: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
            likelihood, spectrum = row
            message = likelihood * move(before, spectrum)
            message = message / jnp.maximum(message.sum(), tiny)
            return message, message

        def backward(after: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
            likelihood, spectrum = row
            message = move((likelihood * after)[::-1], spectrum)[::-1]
            return message / jnp.maximum(message.sum(), tiny), after

        start = (steps == 0).astype(x_t.dtype)  # x_-1 = 0
        _, forwards = jax.lax.scan(forward, start, (likelihoods, spectra))
        _, backwards = jax.lax.scan(backward, jnp.ones_like(start), (likelihoods, spectra), reverse=True)
        product = forwards * backwards
        return product / jnp.maximum(product.sum(1, keepdims=True), tiny)

    def _kernels(self, step: Array, shifts: Float[Array, " L"]) -> Float[Array, "L cells"]:
        """Compute how probable it is, up to a factor, to go 2 h cells down to 2 h up, given how the windows shift."""
        reach = 2 * self.half_points + 1
        return kernel(self.law, shifts[:, None] + jnp.arange(-reach, reach + 1, dtype=step.dtype)[None], step)


def levy_prior(law: Law, length: int) -> LevyPrior:
    """Build the prior of signals [length, 1] whose increments have a law, with errors below a thousandth."""
    return LevyPrior(law, 32, 4.0, (length, 1), PUBLISHED)


def kernel(law: Law, cells: Any, step: Any) -> Any:
    """Compute how probable it is, up to a factor, that an increment makes so many steps of a lattice.

    Args:
        law: of the increment.
        cells: [..., C + 2], whole numbers in a row, in NumPy or JAX.
        step: of the lattice.

    Returns:
        [..., C], without the first and the last.
    """
    library = jnp if isinstance(cells, jax.Array) else np
    logs = law.log_cell_masses(cells * step, step)
    zero = library.where(cells == 0, 1 - law.p, 0.0).astype(cells.dtype)
    top = library.where((zero > 0).any(-1, keepdims=True), 0.0, logs.max(-1, keepdims=True))
    masses = library.exp(logs - top)
    bent = masses[..., 2:] - 2 * masses[..., 1:-1] + masses[..., :-2]
    return law.p * library.maximum(masses[..., 1:-1] - bent / 24, 0.0) + zero[..., 1:-1]


@dataclasses.dataclass(frozen=True)
class ChainPosterior(Signals):
    """The posterior where T is the cumulative sum and every row of A takes one entry of x: of a Markov chain.

    The lattice is the same for every x_k, and fine against sigma_y. Samples are points of it.

    Args:
        half_points: the lattice has this many points on either side of 0.
        reach: half the range of signals.
    """

    half_points: int = 1024
    reach: float = 6.0

    @functools.cached_property
    def _step(self) -> float:
        return self.reach / self.half_points

    @functools.cached_property
    def _points(self) -> Float[np.ndarray, " G"]:
        return self._step * np.arange(-self.half_points, self.half_points + 1)

    @functools.cached_property
    def _kernel(self) -> Float[np.ndarray, " cells"]:
        cells = 2 * self.half_points + 1
        return kernel(self.law, np.arange(-cells, cells + 1.0), self._step)

    def _move(self, messages: Float[np.ndarray, "N G"]) -> Float[np.ndarray, "N G"]:
        """Apply the law of an increment, which is symmetric: forward and backward are the same."""
        points = len(self._points)
        size = next_fast_len(len(self._kernel), real=True)
        spectrum = np.fft.rfft(self._kernel, size)
        moved = np.fft.irfft(np.fft.rfft(messages, size) * spectrum, size)
        return np.maximum(moved[:, points - 1 : 2 * points - 1], 0.0)

    def _likelihoods(self, y: Any) -> Float[np.ndarray, "L N G"]:
        y = self.measured(y)
        where = self.matrix.argmax(1)
        logs = np.zeros((self.matrix.shape[1], len(y), len(self._points)))
        np.add.at(logs, where, -0.5 * ((y.T[:, :, None] - self._points) / self.sigma_y) ** 2)
        return np.exp(logs - logs.max(-1, keepdims=True))

    def _forward(self, likelihoods: Float[np.ndarray, "L N G"]) -> Float[np.ndarray, "L N G"]:
        before = np.zeros_like(likelihoods[0])
        before[:, self.half_points] = 1.0
        messages = np.empty_like(likelihoods)
        for k, likelihood in enumerate(likelihoods):
            messages[k] = likelihood * self._move(before)
            messages[k] /= messages[k].sum(-1, keepdims=True)
            before = messages[k]
        return messages

    def _moments(self, y: Any) -> tuple[Float[np.ndarray, "N L"], Float[np.ndarray, "N L"]]:
        likelihoods = self._likelihoods(y)
        forward, after = self._forward(likelihoods), np.ones_like(likelihoods[0])
        means, variances = np.empty((2, *forward.shape[:2]))
        for k in reversed(range(len(forward))):
            share = forward[k] * after
            share /= share.sum(-1, keepdims=True)
            means[k] = share @ self._points
            variances[k] = (share * (self._points - means[k][:, None]) ** 2).sum(-1)
            after = self._move(likelihoods[k] * after)
            after /= after.sum(-1, keepdims=True)
        return means.T, variances.T

    def mean(self, y: Any) -> Float[np.ndarray, "N ..."]:
        """Compute E[x | y]."""
        return images(self._moments(y)[0], self.image_shape)

    def variance(self, y: Any) -> Float[np.ndarray, " N"]:
        """Compute the trace of the posterior covariance."""
        return self._moments(y)[1].sum(-1)

    def samples(self, key: PRNGKey, y: Any, count: int) -> Float[np.ndarray, "N count ..."]:
        """Draw exactly from p(x | y) on the lattice: the last entry, then every one given the next."""
        random = generator(key)
        draws = []
        for forward in np.moveaxis(self._forward(self._likelihoods(y)), 1, 0):
            chain = np.empty((count, len(forward)), int)
            share = np.broadcast_to(forward[-1], (count, len(self._points)))
            for k in reversed(range(len(forward))):
                bounds = np.cumsum(share, -1)
                uniform = random.random((count, 1)) * bounds[:, -1:]
                chain[:, k] = (bounds[:, :-1] < uniform).sum(-1)
                if k:
                    share = forward[k - 1] * self._windows[chain[:, k]]
            draws.append(self._points[chain])
        return images(np.stack(draws), self.image_shape)

    @functools.cached_property
    def _windows(self) -> Float[np.ndarray, "G G"]:
        """View the kernel as a matrix: the probability of coming from any point, for every point gone to."""
        return np.lib.stride_tricks.sliding_window_view(self._kernel, len(self._points))[::-1]
