"""Linear problems with a Gaussian prior, whose posterior is known: how near every solver comes to its mean or maximum.

The problem: 8x8 pixels from N(0.1, 0.25), half of them seen with noise of 0.03. Distances are in units of what the data
change: the distance from the prior's mean to the posterior's, which is its maximum too. Bounds sit above what was
measured by the statistical error, or a quarter.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.solvers import DAPS, DPS, DDiff, DiffPIR, Fixed, REDDiff, ToTheNoise
from ddiff_jax.solvers.sampling import Sampler, without_data

pytestmark = pytest.mark.once

SHAPE = (8, 8, 1)
MEAN, VAR, SIGMA_Y = 0.1, 0.25, 0.03
TO_256 = math.sqrt(256 * 256 * 3 / 64)
ERRORS = 5  # standard errors


@functools.cache
def problem():
    """Build the problem, its posterior (mean and standard deviations) and which pixels are seen."""
    operator = operators.random_inpainting(SHAPE, jax.random.key(0), fraction=0.5)
    x = MEAN + math.sqrt(VAR) * jax.random.normal(jax.random.key(1), SHAPE)
    y = dd.simulate(operator, x, SIGMA_Y, jax.random.key(2))
    seen = np.asarray(operator.mask).ravel() > 0
    precision = seen / SIGMA_Y**2 + 1 / VAR
    mean = (np.asarray(y, np.float64).ravel() * seen / SIGMA_Y**2 + MEAN / VAR) / precision
    return dd.Problem(operator, y, SIGMA_Y), mean, 1 / np.sqrt(precision), seen


def samples(solver, count):
    prior, (here, *_) = gaussian_prior(SHAPE, MEAN, VAR, clip=False), problem()
    keys = jax.random.split(jax.random.key(5), count)
    run = jax.jit(jax.vmap(lambda key: dd.solve_one(solver, prior, here, key).x))
    return np.asarray(run(keys), np.float64).reshape(count, -1)


def distances(x):
    """Measure the distance to the posterior's mean, over seen and over unseen pixels."""
    _, mean, _, seen = problem()
    error, span = x - mean, np.linalg.norm(mean - MEAN)
    return np.linalg.norm(error[seen]) / span, np.linalg.norm(error[~seen]) / span


# Solver, runs to average, and the bounds for seen and unseen pixels. An average over runs leaves the unseen pixels with
# an error of sqrt(32 * 0.25 / runs), which is 0.08 spans for 256.
TO_THE_MAXIMUM = {
    "ddiff without gamma, without noise": (DDiff(t0=1000), 1, 0.07, 1e-3),
    "diffpir": (DiffPIR(lam=4.0, zeta=0.3), 256, 0.004, 0.11),
    "red_diff": (REDDiff(lr=0.01), 16, 0.005, 0.04),
}


@pytest.mark.parametrize("name", TO_THE_MAXIMUM)
def test_solver_approaches_the_posterior_maximum(name):
    solver, count, seen_bound, unseen_bound = TO_THE_MAXIMUM[name]
    seen, unseen = distances(samples(solver, count).mean(0))
    assert seen < seen_bound
    assert unseen < unseen_bound


def test_ddiff_with_gamma_gets_as_near_as_its_fixed_steps_are_short():
    # Large steps find the data; below t_gamma the length of a step is b gamma, and nothing weighs data against prior.
    # gamma = 1.5 covers the distance at once and ends bouncing: the error of seen pixels is of the last steps' length.
    seen, unseen = distances(samples(DDiff(Fixed(1.5 * TO_256), t0=1000), 1)[0])
    _, mean, _, _ = problem()
    assert seen < 2 * 0.1 * 1.5 / np.linalg.norm(mean - MEAN) + 0.07
    assert unseen < 1e-3


# The current variant takes tau for sqrt(2) times the noise.
VARIANTS: dict[str, dict[str, Any]] = {
    "daps published": {"variant": "published", "tau": SIGMA_Y},
    "daps current": {"variant": "current", "tau": math.sqrt(2) * SIGMA_Y},
    "daps current hamiltonian": {"variant": "current", "tau": math.sqrt(2) * SIGMA_Y, "momentum": 0.5},
}
SAMPLERS = {
    "dps": DPS(zeta=0.3, num_steps=300),
    **{
        name: DAPS(lr=5e-5, lr_min_ratio=1.0, timestep="table", num_steps=50, **options)
        for name, options in VARIANTS.items()
    },
}
SAMPLES = 512


@functools.cache
def drawn(name):
    return samples(SAMPLERS[name], SAMPLES)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_posterior_mean(name, optimised):
    x = drawn(name)
    _, mean, std, seen = problem()
    error = np.abs(x.mean(0) - mean)
    # Seen pixels: the bias of both methods, 5% of a standard deviation at most, beside the statistical error.
    assert np.max(error[seen] / std[seen]) < ERRORS / math.sqrt(SAMPLES) + 0.05
    assert np.max(error[~seen] / std[~seen]) < ERRORS / math.sqrt(SAMPLES)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name.startswith("daps")])
def test_daps_samples_have_the_posterior_covariance(name):
    x = drawn(name)
    _, _, std, seen = problem()
    # A step of 5e-5 against a curvature of 1211 makes the variance of Langevin dynamics 3% too large.
    assert np.max(np.abs(x.std(0)[seen] / std[seen] - 1)) < ERRORS / math.sqrt(2 * SAMPLES) + 0.03
    # Unseen pixels keep what few steps along the probability flow leave of the prior's spread, within a tenth.
    assert abs(np.mean(x.std(0)[~seen]) / math.sqrt(VAR) - 1) < 0.1
    correlation = np.corrcoef(x.T)
    assert np.max(np.abs(correlation - np.eye(64))) < ERRORS / math.sqrt(SAMPLES)


def test_dps_samples_are_too_sure_of_what_they_saw():
    # The fixed step holds on to the data more tightly than the noise justifies: known, and here to be noticed.
    _, _, std, seen = problem()
    assert np.mean(drawn("dps").std(0)[seen]) < 0.6 * np.mean(std[seen])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampling_draws_from_the_prior(eta):
    prior = gaussian_prior(SHAPE, MEAN, VAR, clip=False)
    keys = dd.image_keys(jax.random.key(0), jnp.arange(SAMPLES))
    x = np.asarray(dd.solve(Sampler(eta=eta, num_steps=200), prior, without_data(prior, keys), keys).x)
    assert abs(x.mean() - MEAN) < ERRORS * math.sqrt(VAR / x.size)
    # 200 steps: both samplers lose up to 2% of the spread.
    assert abs(x.std() / math.sqrt(VAR) - 1) < ERRORS / math.sqrt(2 * x.size) + 0.02


def test_a_step_without_gamma_ends_at_the_noise():
    from ddiff_jax.solvers.ddiff import data_step

    here, _, _, _ = problem()
    v = jax.random.normal(jax.random.key(3), SHAPE)
    _, x = data_step(here, v, ToTheNoise(), None)
    np.testing.assert_allclose(here.misfit(x), SIGMA_Y**2, rtol=1e-3)
    _, again = data_step(here, x + 0.0 * v, ToTheNoise(), None)
    np.testing.assert_allclose(again, x, atol=1e-4)  # what is within the noise already is left alone
