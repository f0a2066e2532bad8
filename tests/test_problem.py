import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior

import ddiff_jax as dd
from ddiff_jax import operators, solvers

pytestmark = pytest.mark.once

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


def problems():
    """Three problems of one image, each with its own mask, noise level and noise model."""
    keys = dd.image_keys(jax.random.key(3), jnp.arange(3))
    masks = [operators.random_inpainting(SHAPE, key, fraction=0.4) for key in keys]
    y = jax.random.normal(jax.random.key(1), (3, *SHAPE))
    return [dd.Problem(masks[i], y[i], 0.1 * (i + 1), dd.Poisson(20.0 + i)) for i in range(3)], masks, y, keys


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def test_a_batch_is_written_or_stacked_and_every_image_gets_what_is_its_own():
    alone, masks, y, _ = problems()
    x = jax.random.normal(jax.random.key(2), (3, *SHAPE))
    seen = jax.random.bernoulli(jax.random.key(4), 0.7, (3, *SHAPE[:2], 1))
    levels = jnp.asarray([0.1, 0.2, 0.3])
    batches = {
        "stacked by tree.map": stacked(alone),
        "stacked by vmap": jax.vmap(lambda mask, y, s, p: dd.Problem(mask, y, s, dd.Poisson(p)))(
            stacked(masks), y, levels, jnp.asarray([20.0, 21.0, 22.0])
        ),
    }
    for name, batch in batches.items():
        got = batch.map(dd.Problem.nll, x)
        np.testing.assert_allclose(got, [p.nll(x[i]) for i, p in enumerate(alone)], rtol=1e-5, err_msg=name)
    alone = [dd.Problem(masks[i], y[i], levels[i], observed=seen[i]) for i in range(3)]
    shared = [dd.Problem(masks[0], y[i], 0.1, observed=seen[i]) for i in range(3)]
    pairs = {
        "a stack": (dd.Problem(stacked(masks), y, levels, observed=seen, operator_axis=0), alone),
        "vmap": (jax.vmap(lambda m, y, s, o: dd.Problem(m, y, s, observed=o))(stacked(masks), y, levels, seen), alone),
        "shared": (dd.Problem(masks[0], y, 0.1, observed=seen), shared),
        "one mask for all": (dd.Problem(masks[0], y, 0.1, observed=seen[0]), [
            dd.Problem(masks[0], y[i], 0.1, observed=seen[0]) for i in range(3)
        ]),
    }  # fmt: skip
    for name, (batch, images) in pairs.items():
        for method in (dd.Problem.nll, dd.Problem.misfit):
            want = [method(problem, x[i]) for i, problem in enumerate(images)]
            np.testing.assert_allclose(batch.map(method, x), want, rtol=1e-5, err_msg=name)
        rows, build = batch.split()
        for i, problem in enumerate(images):
            one = build([row[i] for row in rows])
            assert jax.tree.structure(one) == jax.tree.structure(problem), name
            np.testing.assert_array_equal(one.y, problem.y, err_msg=name)


def test_stacked_problems_solve_like_a_batch_that_is_written():
    _, masks, y, keys = problems()
    solver, prior = solvers.DDiff(solvers.Fixed(20.0), num_steps=3), gaussian_prior(SHAPE)
    written = dd.Problem(stacked(masks), y, jnp.full(3, 0.1), operator_axis=0)
    want = dd.solve(solver, prior, written, keys).x
    for batch in (
        jax.vmap(lambda mask, y: dd.Problem(mask, y, 0.1))(stacked(masks), y),
        stacked([dd.Problem(mask, y[i], 0.1) for i, mask in enumerate(masks)]),
    ):
        np.testing.assert_array_equal(dd.solve(solver, prior, batch, keys).x, want)


def test_a_stack_of_operators_without_arrays_is_one_operator():
    y = jnp.zeros((2, *SHAPE))
    operator = operators.from_function(lambda x: x**2, SHAPE)
    problem = dd.Problem(operator, y, 0.1, observed=y[0] == 0, operator_axis=0)
    assert problem.map(dd.Problem.misfit, y + 0.5).shape == (2,)
