"""The law of what a linear sampler returns under a Gaussian prior, carried through the solver's own steps.

Such a step is an affine map plus normal draws: x' = F x + G y + Q n. So the law given y stays N(M y, V), and no sample
need be drawn.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

import ddiff_jax as dd
from ddiff_jax.operators import DecomposableOperator, Decomposition
from ddiff_jax.pytree import static_field

SIGMA_Y = 0.05
SIDE = 8
SIZE = SIDE * SIDE


@dd.pytree_dataclass
class Matrix(DecomposableOperator):
    """A dense matrix on every channel of images [N, C], with its decomposition."""

    matrix: jax.Array
    u: jax.Array
    s: jax.Array
    vt: jax.Array
    image_shape: tuple[int, ...] = static_field()

    def forward(self, x):
        return self.matrix @ x

    def svd(self):
        return Decomposition(self.s[:, None], lambda x: self.vt @ x, lambda c: self.vt.T @ c, lambda y: self.u.T @ y)


def matrix_operator(matrix, channels=1):
    """Make an operator of a matrix, in JAX's default type."""
    u, s, vt = map(jnp.asarray, np.linalg.svd(matrix, full_matrices=False))
    return Matrix(jnp.asarray(matrix), u, s, vt, (matrix.shape[1], channels))


@dd.pytree_dataclass
class StructuredPrior:
    """N(0, basis diag(variances) basis^T) on images [N, 1]."""

    basis: Any
    variances: Any
    schedule: Any = static_field()

    @property
    def image_shape(self):
        return (len(self.basis), 1)

    def denoise(self, x_t, level):
        a, b = (jnp.asarray(value, x_t.dtype) for value in (level.signal, level.sigma))
        gain = a * self.variances / (a**2 * self.variances + b**2)
        return self.basis @ (gain[:, None] * (self.basis.T @ x_t))


def structured_prior(schedule, n=SIDE):
    """Make the Gaussian of smooth pictures: DCT coefficients of variance falling with frequency, 0.25 per pixel."""
    k = np.arange(n)
    rows = np.sqrt(2 / n) * np.cos(np.pi * (k[:, None] + 0.5) * k / n)
    rows[:, 0] /= np.sqrt(2)
    variances = (1 + (k[:, None] ** 2 + k**2) / 4) ** -1.5
    variances *= 0.25 * n**2 / variances.sum()
    return StructuredPrior(np.kron(rows, rows), variances.ravel(), schedule)


def sampled_pixels():
    """Keep half of the pixels, as rows of the identity."""
    order = np.argsort((np.arange(SIZE) + 1) * 0.6180339887498949 % 1)
    return np.eye(SIZE)[np.sort(order[: SIZE // 2])]


def output_law(solver, prior, operator, draws):
    """Carry the law of x = M y + N(0, V) from x ~ N(0, I) through all steps.

    Args:
        solver: its steps must be affine.
        prior: likewise.
        operator: of `matrix_operator`.
        draws: shape of every draw of a step.
    """
    grid = jax.tree.map(jnp.asarray, solver.grid(prior.schedule))
    mean, covariance = _carry(solver, prior, operator, grid, draws)
    return np.asarray(mean), np.asarray(covariance)


@functools.partial(jax.jit, static_argnames="draws")
def _carry(solver, prior, operator, grid, draws):
    num_measured = operator.matrix.shape[0]
    blind = jnp.zeros(num_measured)
    ends = np.cumsum([np.prod(shape) for shape in draws])

    def apply(point, x, y, flat):
        parts = jnp.split(flat, ends[:-1])
        noise = dd.TapeNoise(tuple(part.reshape(shape) for part, shape in zip(parts, draws, strict=True)))
        problem = dd.Problem(operator, y[:, None], SIGMA_Y)
        state = solver.init(prior, problem, point, noise, x[:, None])
        state, _ = solver.step(prior, problem, state, point, noise)
        return solver.estimate(state)[:, 0]

    def body(law, point):
        mean, covariance = law
        still = jnp.zeros(ends[-1])
        moved = jax.vmap(lambda x: apply(point, x, blind, still))
        mean = jax.vmap(lambda x, y: apply(point, x, y, still), (1, 0), 1)(mean, jnp.eye(num_measured))
        added = jax.vmap(lambda n: apply(point, jnp.zeros(SIZE), blind, n), out_axes=1)(jnp.eye(ends[-1]))
        return (mean, moved(moved(covariance).T) + added @ added.T), None

    law, _ = jax.lax.scan(body, (jnp.zeros((SIZE, num_measured)), jnp.eye(SIZE)), grid)
    return law


def judge(mean, covariance, prior, operator):
    """Compare with the exact posterior: MMSE gap in dB, spread, and coverage of central 50 and 90% intervals."""
    matrix = np.asarray(operator.matrix)
    prior_covariance = prior.basis @ np.diag(prior.variances) @ prior.basis.T
    of_data = matrix @ prior_covariance @ matrix.T + SIGMA_Y**2 * np.eye(len(matrix))
    exact = prior_covariance @ matrix.T @ np.linalg.inv(of_data)
    posterior = prior_covariance - exact @ matrix @ prior_covariance
    excess = (mean - exact) @ of_data @ (mean - exact).T
    gap = 10 * np.log10(1 + np.trace(excess) / np.trace(posterior))
    spread = np.sqrt(np.trace(covariance) / np.trace(posterior))
    of_std = np.sqrt(np.diag(covariance) / np.diag(posterior + excess))
    return gap, spread, *(np.mean(2 * norm.cdf(norm.ppf((1 + share) / 2) * of_std) - 1) for share in (0.5, 0.9))
