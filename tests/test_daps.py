"""DAPS with its own likelihood and width against a float64 loop and the exact posterior; more is in test_solvers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.solvers import DAPS

pytestmark = pytest.mark.once

SHAPE = (4, 4, 1)
MEAN, VAR, SIGMA_Y = 0.1, 0.2, 0.1
ORACLE = 1e-5  # relative; a short run in float32 against float64
# The full jump of the probability flow, the true width and the true noise: exact for a Gaussian prior as lr goes to 0.
# sigma_min is where the measurement has decided everything but the noise it leaves.
EXACT: dict[str, Any] = {
    "tau": None,
    "var": VAR,
    "variant": "published",
    "ode_steps": 1,
    "sigma_min": 0.5,
    "timestep": "table",
}


def measured():
    """Make an operator, its matrix and a measurement."""
    operator = operators.super_resolution(SHAPE, factor=2)
    images = jnp.eye(16, dtype=jnp.float32).reshape(16, *SHAPE)
    matrix = np.asarray(jax.vmap(operator.forward)(images), np.float64).reshape(16, -1).T
    return operator, matrix, operator.forward(0.5 * jax.random.normal(jax.random.key(1), SHAPE))


def test_own_likelihood_and_width_equal_a_float64_loop():
    operator, matrix, y = measured()
    steps, walk = 6, 5
    solver = DAPS(lr=3e-3, num_steps=steps, langevin_steps=walk, **EXACT)
    tape = jax.random.normal(jax.random.key(2), (steps, walk + 1, *SHAPE))
    x_init = 100 * jax.random.normal(jax.random.key(3), SHAPE)
    prior = gaussian_prior(SHAPE, MEAN, VAR, clip=False)
    problem = dd.Problem(operator, y, SIGMA_Y)
    got = jax.jit(dd.solve_one)(solver, prior, problem, jax.random.key(0), tape, x_init).x

    y, x, tape = (np.asarray(a, np.float64) for a in (y, x_init, tape))
    y, x, tape = y.ravel(), x.ravel(), tape.reshape(steps, walk + 1, -1)
    levels = (100 ** (1 / 7) + np.arange(steps) / (steps - 1) * (0.5 ** (1 / 7) - 100 ** (1 / 7))) ** 7
    for i, sigma in enumerate(levels):
        x_0 = (VAR * x + sigma**2 * MEAN) / (VAR + sigma**2)  # the mean of x_0 given x = x_0 + sigma n
        width = VAR * sigma**2 / (VAR + sigma**2)
        lr = 3e-3 * (1 - 0.99 * i / steps)
        w = x_0
        for j in range(walk):
            force = -matrix.T @ (matrix @ w - y) / SIGMA_Y**2 + (x_0 - w) / width
            w = w + lr * force + np.sqrt(2 * lr) * tape[i, j]
        x = w + (levels[i + 1] if i + 1 < steps else 0.0) * tape[i, walk]
    assert np.linalg.norm(np.asarray(got).ravel() - x) / np.linalg.norm(x) < ORACLE


@pytest.mark.parametrize("momentum", [None, 0.6], ids=["langevin", "hamiltonian"])
def test_samples_have_the_mean_and_the_covariance_of_the_posterior(momentum, optimised):
    operator, matrix, y = measured()
    count = 4000
    lr = 1e-3 if momentum is None else 4e-4  # a momentum m makes every step 1 / (1 - m) as long
    solver = DAPS(lr=lr, lr_min_ratio=1.0, momentum=momentum, num_steps=8, langevin_steps=150, **EXACT)
    prior = gaussian_prior(SHAPE, MEAN, VAR, clip=False)
    problem = dd.Problem(operator, y, SIGMA_Y)
    keys = jax.random.split(jax.random.key(5), count)
    run = jax.jit(jax.vmap(lambda key: dd.solve_one(solver, prior, problem, key).x))
    x = np.asarray(run(keys), np.float64).reshape(count, -1)

    covariance = np.linalg.inv(matrix.T @ matrix / SIGMA_Y**2 + np.eye(16) / VAR)
    mean = covariance @ (matrix.T @ np.asarray(y, np.float64).ravel() / SIGMA_Y**2 + MEAN / VAR)
    # Along the principal axes of the posterior, so that every variance is compared with its own size.
    variances, axes = np.linalg.eigh(covariance)
    x, mean, std = x @ axes, mean @ axes, np.sqrt(variances)
    covariance, scale = np.diag(variances), np.outer(std, std)
    # 5 standard errors, and 2% for steps that are not infinitely short.
    assert np.max(np.abs(x.mean(0) - mean) / std) < 5 / np.sqrt(count) + 0.02
    error = np.sqrt((scale**2 + covariance**2) / count)
    assert np.max(np.abs(np.cov(x.T) - covariance) - 5 * error - 0.02 * scale) < 0


def test_other_noise_models_need_their_own_likelihood():
    operator, _, y = measured()
    prior, problem = gaussian_prior(SHAPE), dd.Problem(operator, y, SIGMA_Y, dd.Poisson(30.0))
    short: dict[str, Any] = {"num_steps": 2, "langevin_steps": 2}
    with pytest.raises(ValueError, match="assumes Gaussian noise"):
        dd.solve_one(DAPS(lr=1e-4, **short), prior, problem, jax.random.key(0))
    assert bool(dd.solve_one(DAPS(lr=1e-4, tau=None, **short), prior, problem, jax.random.key(0)).finite)
