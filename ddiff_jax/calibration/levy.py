"""Signals with independent increments: a prior that is exact on a lattice."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddiff_jax.calibration.laws import Law
from ddiff_jax.levels import Level, Schedule
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape

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
        off = ((x_t - a * step * centres)[:, None] - a * step * steps) / b
        logs = -0.5 * off**2
        likelihoods = jnp.exp(logs - logs.max(1, keepdims=True))
        kernels = self._kernels(step, jnp.diff(centres, prepend=0.0))
        points = steps.shape[0]
        gather = jnp.arange(points)[:, None] - jnp.arange(points) + points - 1

        def forward(before: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
            likelihood, kernel = row
            message = likelihood * (kernel[gather] @ before)
            message = message / message.sum()
            return message, message

        def backward(after: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
            likelihood, kernel = row
            message = (likelihood * after) @ kernel[gather]
            message = message / message.sum()
            return message, after

        start = (steps == 0).astype(x_t.dtype)  # x_-1 = 0
        _, forwards = jax.lax.scan(forward, start, (likelihoods, kernels))
        _, backwards = jax.lax.scan(backward, jnp.ones_like(start), (likelihoods, kernels), reverse=True)
        product = forwards * backwards
        return product / product.sum(1, keepdims=True)

    def _kernels(self, step: Array, shifts: Float[Array, " L"]) -> Float[Array, "L cells"]:
        """Compute how probable it is, up to a factor, to go 2 h cells down to 2 h up, given how the windows shift."""
        reach = 2 * self.half_points + 1
        cells = shifts[:, None] + jnp.arange(-reach, reach + 1, dtype=step.dtype)
        logs = self.law.log_cell_masses(cells * step, step)
        rest = jnp.where(cells == 0, 1 - self.law.p, 0.0)
        top = jnp.where((rest > 0).any(1, keepdims=True), 0.0, logs.max(1, keepdims=True))
        masses = jnp.exp(logs - top)
        bent = masses[:, 2:] - 2 * masses[:, 1:-1] + masses[:, :-2]
        return self.law.p * jnp.maximum(masses[:, 1:-1] - bent / 24, 0.0) + rest[:, 1:-1]
