"""Least squares with linear operators, against dense linear algebra in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddiff_jax import operators

pytestmark = pytest.mark.once

SHAPE = (12, 8, 2)
EXACT = 2e-5  # relative; float32 factors
ITERATED = 2e-4  # relative; conjugate gradients stop at a residual of 1e-6, the matrix has a condition near 100

OPERATORS = {
    "separable": (lambda: operators.super_resolution(SHAPE, factor=4), EXACT),
    "diagonal": (lambda: operators.random_inpainting(SHAPE, jax.random.key(0), fraction=0.5), EXACT),
    "per pixel": (lambda: operators.Colourisation(jnp.asarray([0.3, 0.8]), SHAPE), EXACT),
    "fourier": (lambda: operators.fourier(SHAPE, np.random.RandomState(0).rand(*SHAPE[:2]) < 0.6), EXACT),
    "iterated": (lambda: operators.blur(SHAPE, kernel=[[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]]), ITERATED),
}


@pytest.fixture(scope="module", params=OPERATORS)
def case(request):
    build, tolerance = OPERATORS[request.param]
    operator = build()
    size = int(np.prod(SHAPE))
    images = jnp.eye(size, dtype=jnp.float32).reshape(size, *SHAPE)
    matrix = real(jax.vmap(operator.forward)(images)).reshape(size, -1).T
    y = operator.forward(jax.random.normal(jax.random.key(1), SHAPE))
    y = y + 0.1 * jax.random.normal(jax.random.key(2), y.shape, y.dtype)
    return operator, matrix, y, tolerance


def real(y):
    """Lay the imaginary parts of a measurement beside the real ones: A is a real matrix then."""
    parts = [np.real(y), np.imag(y)] if np.iscomplexobj(y) else [y]
    return np.stack(parts, axis=-1).astype(np.float64)


def relative(a, b):
    return np.linalg.norm(np.asarray(a, np.float64).ravel() - b) / np.linalg.norm(b)


@pytest.mark.parametrize("rho", [1e-2, 1.0, 100.0])
def test_prox_is_the_minimiser(case, rho):
    operator, matrix, y, tolerance = case
    z = jax.random.normal(jax.random.key(3), SHAPE)
    left = matrix.T @ matrix + rho * np.eye(matrix.shape[1])
    right = matrix.T @ real(y).ravel() + rho * np.asarray(z, np.float64).ravel()
    assert relative(jax.jit(operator.prox)(z, y, rho), np.linalg.solve(left, right)) < tolerance


def test_pseudo_inverse_is_the_dense_one(case):
    operator, matrix, y, tolerance = case
    want = np.linalg.pinv(matrix, rcond=3.5e-4) @ real(y).ravel()
    assert relative(jax.jit(operator.pseudo_inverse)(y), want) < tolerance


def test_spectral_norm_approaches_the_largest_singular_value(case):
    operator, matrix, _, _ = case
    estimate = float(operators.spectral_norm(operator, jax.random.key(4), num_iterations=100))
    truth = np.linalg.svd(matrix, compute_uv=False)[0]
    assert 0.99 * truth < estimate < truth * (1 + 1e-5)


def test_spectral_norm_of_a_nonlinear_operator_is_that_of_its_derivative():
    from ddiff_jax import pytree_dataclass

    @pytree_dataclass
    class Square:
        gain: jax.Array

        def forward(self, x):
            return self.gain * x**2

    at = jnp.asarray([0.1, -0.7, 0.3]).reshape(1, 1, 3)
    estimate = operators.spectral_norm(Square(jnp.float32(2.0)), jax.random.key(0), at=at)
    np.testing.assert_allclose(estimate, 2 * 2 * 0.7, rtol=1e-4)


def test_pseudo_inverse_does_not_amplify_what_the_blur_removed():
    operator = operators.gaussian_blur((32, 32, 1), size=31, std=3.0)
    y = operator.forward(jnp.ones((32, 32, 1)))
    x = operator.pseudo_inverse(y)
    np.testing.assert_allclose(operator.forward(x), y, atol=1e-3)
    assert np.linalg.norm(np.asarray(x)) <= 32  # of all images that fit, none is smaller, the ones included


@pytest.mark.parametrize("shape", [SHAPE, (5, 6, 3)])
@pytest.mark.parametrize("kind", ["separable", "diagonal", "per pixel", "fourier"])
def test_singular_value_decomposition(kind, shape):
    build = {
        "separable": lambda: operators.gaussian_blur(shape, size=5, std=1.0),
        "diagonal": lambda: operators.random_inpainting(shape, jax.random.key(0), fraction=0.5),
        "per pixel": lambda: operators.Colourisation(jnp.asarray([0.3, 0.8, 0.5][: shape[2]]), shape),
        "fourier": lambda: operators.fourier(shape, np.random.RandomState(0).rand(*shape[:2]) < 0.6),
    }[kind]
    operator, key = build(), jax.random.key(1)
    parts = operator.svd()
    x = jax.random.normal(key, shape)
    c = parts.from_image(x)
    y = operator.forward(jax.random.normal(jax.random.key(2), shape))
    y = y + jax.random.normal(jax.random.key(3), y.shape, y.dtype)
    # V is orthogonal, A = U diag(s) V^T maps to the measurement and A^H = V diag(s) U^T back.
    np.testing.assert_allclose(parts.from_image(parts.to_image(c)), c, atol=2e-6)
    np.testing.assert_allclose(parts.from_measurement(operator.forward(x)), parts.s * c, atol=2e-6)
    np.testing.assert_allclose(operator.adjoint(y), parts.to_image(parts.s * parts.from_measurement(y)), atol=5e-6)
