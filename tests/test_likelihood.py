import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.solvers import DDiff, Fixed

pytestmark = pytest.mark.once

SHAPE = (8, 8, 3)


def nll(clean, y, photons):
    mean, count = (photons * (v.astype(np.float64) + 1) / 2 for v in (clean, y))
    return np.sum(mean - (count + 5) * np.log(mean + 5))


def test_poisson_counts_have_their_mean_and_variance():
    operator = operators.from_function(lambda x: x, (64, 64, 1))
    for level in (-1.0, -0.5, 1.0):
        x = jnp.full((64, 64, 1), level, jnp.float32)
        y = np.asarray(dd.simulate(operator, x, 0.05, jax.random.key(1), dd.Poisson(20.0)), np.float64)
        mean = 20 * (level + 1) / 2
        counts = 20 * (y + 1) / 2
        np.testing.assert_allclose(counts, np.round(counts), atol=1e-4)
        # The mean of 4096 counts has the standard error sqrt(mean / 4096), their variance about mean sqrt(2 / 4096)
        # and a little more for a small mean; gates at five and six of them.
        assert abs(counts.mean() - mean) <= 5 * np.sqrt(mean / 4096)
        assert abs(counts.var() - mean) <= 6 * np.sqrt((2 * mean**2 + mean) / 4096)


def test_poisson_likelihood_is_its_formula_where_photons_are_expected():
    operator = operators.super_resolution(SHAPE, factor=2)
    x = jax.random.uniform(jax.random.key(0), SHAPE, minval=-0.6, maxval=0.9)
    y = dd.simulate(operator, x, 0.05, jax.random.key(1), dd.Poisson(50.0))
    problem = dd.Problem(operator, y, 0.05, dd.Poisson(50.0))
    other = jax.random.uniform(jax.random.key(2), SHAPE, minval=-0.6, maxval=0.9)
    got = float(problem.nll(x) - problem.nll(other))
    a, b = (np.asarray(operator.forward(v)) for v in (x, other))
    np.testing.assert_allclose(got, nll(a, np.asarray(y), 50) - nll(b, np.asarray(y), 50), rtol=1e-3)
    misfit, gradient = problem.misfit_and_gradient(x)
    np.testing.assert_allclose(misfit, problem.misfit(x), rtol=1e-6)
    np.testing.assert_allclose(gradient, problem.grad(x), rtol=1e-5, atol=1e-5)


def test_poisson_likelihood_continues_smoothly_below_black(x64):
    # One pixel with two photons of ten: value, slope and curvature are continuous at black, the least value is where
    # two photons are expected, and darkness below zero costs more and more.
    def term(v):
        return dd.Poisson(10.0).data_term(jnp.asarray([v]), jnp.asarray([-0.6], jnp.float64))

    for derivative in (term, jax.grad(term), jax.grad(jax.grad(term))):
        below, above = (float(derivative(jnp.float64(-1 + h))) for h in (-1e-7, 1e-7))
        np.testing.assert_allclose(below, above, rtol=1e-4, atol=1e-5)
    assert abs(float(jax.grad(term)(jnp.float64(-0.6)))) < 1e-6
    values = [float(term(jnp.float64(v))) for v in (-0.6, -0.99, -1.0, -1.5, -3.0)]
    assert np.all(np.diff(values) > 0)


def test_a_small_offset_is_the_exact_likelihood(x64):
    y, clean = jnp.asarray([-0.8, 0.3, 0.7], jnp.float64), jnp.asarray([-0.5, 0.2, 0.9], jnp.float64)
    gradient = jax.grad(dd.Poisson(10.0, offset=1e-6).data_term)(clean, y)
    np.testing.assert_allclose(gradient, 5 * (1 - (np.asarray(y) + 1) / (np.asarray(clean) + 1)), rtol=1e-4)


def test_the_truth_is_the_likeliest():
    operator = operators.from_function(lambda x: x, (32, 32, 3))
    x = jax.random.uniform(jax.random.key(0), (32, 32, 3), minval=-0.5, maxval=0.9)
    y = dd.simulate(operator, x, 0.05, jax.random.key(1), dd.Poisson(100.0))
    problem = dd.Problem(operator, y, 0.05, dd.Poisson(100.0))
    assert problem.nll(x) < min(problem.nll(0.8 * x), problem.nll(x + 0.1), problem.nll(x - 0.1))


def test_solve_takes_the_noise_model_and_equals_solve_one():
    operator = operators.super_resolution(SHAPE, factor=2)
    keys = dd.image_keys(jax.random.key(0), jnp.arange(2))
    x = jax.random.uniform(jax.random.key(1), (2, *SHAPE), minval=-0.8, maxval=0.8)
    noise = dd.Poisson(30.0)
    y = jax.vmap(lambda x, key: dd.simulate(operator, x, 0.2, key, noise))(x, keys)
    solver, prior = DDiff(Fixed(20.0), num_steps=8), gaussian_prior(SHAPE)
    counted = dd.solve(solver, prior, dd.Problem(operator, y, 0.2, noise), keys)
    one = jax.jit(dd.solve_one)(solver, prior, dd.Problem(operator, y[1], 0.2, noise), keys[1])
    np.testing.assert_allclose(counted.x[1], one.x, atol=1e-5)
    gaussian = dd.solve(solver, prior, dd.Problem(operator, y, 0.2), keys)
    assert float(jnp.max(jnp.abs(gaussian.x - counted.x))) > 1e-3


@pytest.mark.parametrize("photons", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_counts_are_refused(photons):
    with pytest.raises(ValueError, match="photons, the expected count at white, must be positive"):
        dd.Poisson(photons)
    with pytest.raises(ValueError, match="offset, the counts added to it, must be positive"):
        dd.Poisson(30.0, offset=photons)


def test_complex_measurements_have_no_photons():
    operator = operators.undersampled_fourier((16, 16, 1), jax.random.key(0))
    with pytest.raises(ValueError, match="needs a real measurement"):
        dd.simulate(operator, jnp.zeros((16, 16, 1)), 0.05, jax.random.key(0), dd.Poisson(10.0))
