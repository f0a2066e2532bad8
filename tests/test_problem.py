import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddiff_jax as dd
from ddiff_jax import operators

SHAPE = (8, 6, 3)


def test_likelihood_gradient_and_misfit_are_what_their_formulas_say():
    operator = operators.super_resolution((8, 8, 3), factor=2)
    x = jax.random.normal(jax.random.key(0), (8, 8, 3))
    y = jax.random.normal(jax.random.key(1), (4, 4, 3))
    problem = dd.Problem(operator, y, 0.1)
    r = np.asarray(operator.forward(x) - y, np.float64)
    np.testing.assert_allclose(problem.nll(x), np.sum(r**2) / (2 * 0.1**2), rtol=1e-5)
    np.testing.assert_allclose(problem.misfit(x), np.mean(r**2), rtol=1e-5)
    want = operator.adjoint(jnp.asarray(r, jnp.float32)) / 0.1**2
    np.testing.assert_allclose(problem.grad(x), want, rtol=1e-4, atol=1e-3)
    misfit, gradient = problem.misfit_and_gradient(x)
    np.testing.assert_allclose(misfit, problem.misfit(x), rtol=1e-6)
    np.testing.assert_allclose(gradient / 0.1**2, problem.grad(x), rtol=1e-4, atol=1e-3)


def test_simulated_noise_has_its_level_everywhere_and_comes_from_the_key():
    mask = np.zeros((64, 64))
    mask[:, :32] = 1
    operator = operators.inpainting((64, 64, 3), mask)
    x = jnp.full((64, 64, 3), 0.5)
    y = dd.simulate(operator, x, 0.2, jax.random.key(0))
    n = np.asarray(y - operator.forward(x))
    # 6144 draws on each side: the standard error of the estimate is 0.2 / sqrt(2 * 6144); gate at five of them.
    gate = 5 * 0.2 / np.sqrt(2 * 6144)
    assert abs(n[:, :32].std() - 0.2) < gate
    assert abs(n[:, 32:].std() - 0.2) < gate
    np.testing.assert_array_equal(y, dd.simulate(operator, x, 0.2, jax.random.key(0)))
    assert not np.array_equal(y, dd.simulate(operator, x, 0.2, jax.random.key(1)))


def test_complex_measurements_are_fitted_by_modulus():
    @dd.pytree_dataclass
    class Fourier:
        scale: jax.Array

        def forward(self, x):
            return jnp.fft.fft2(x, axes=(0, 1), norm="ortho") * self.scale

    operator = Fourier(jnp.complex64(1.0))
    x = jax.random.normal(jax.random.key(0), SHAPE)
    y = dd.simulate(operator, x, 0.1, jax.random.key(1))
    assert jnp.iscomplexobj(y)
    problem = dd.Problem(operator, y, 0.1)
    # Two numbers per entry, each with noise of variance 0.01: 288 squares, gate at five standard errors.
    assert problem.num_observed == 288
    assert abs(float(problem.misfit(x)) - 0.01) < 5 * 0.01 * np.sqrt(2 / 288)
    gradient = problem.grad(x)
    assert gradient.dtype == jnp.float32
    residual = np.real(np.fft.ifft2(np.asarray(operator.forward(x) - y), axes=(0, 1), norm="ortho")) / 0.01
    np.testing.assert_allclose(gradient, residual, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("sigma_y", [-0.1, float("nan"), float("inf")])
def test_bad_noise_levels_are_refused(sigma_y):
    operator = operators.super_resolution((8, 8, 3), factor=2)
    with pytest.raises(ValueError, match="finite and at least 0"):
        dd.Problem(operator, jnp.zeros((4, 4, 3)), sigma_y)
    with pytest.raises(ValueError, match="finite and at least 0"):
        dd.simulate(operator, jnp.zeros((8, 8, 3)), sigma_y, jax.random.key(0))
