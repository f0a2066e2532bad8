"""The solvers without a prior, against reference implementations, optimality and what they promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddiff_jax as dd
from ddiff_jax import operators, solvers
from ddiff_jax.operators import LinearOperator
from ddiff_jax.solvers import PseudoInverse, RichardsonLucy, Tikhonov, TotalVariation, ZeroFilled
from ddiff_jax.solvers.total_variation import differences, differences_adjoint

pytestmark = pytest.mark.once

VALUE, IMAGE = 5e-5, 2e-3  # after 1000 iterations in float32
SHAPE = (14, 11, 1)


@dd.pytree_dataclass
class Matrix(LinearOperator):
    """A dense matrix on an image as a vector."""

    matrix: jax.Array
    image_shape: tuple = dd.static_field()

    def forward(self, x):
        return self.matrix @ x.ravel()


@functools.partial(jax.jit, static_argnames="shape")
def restore(solver, operator, y, sigma_y, shape):
    return dd.solve_one(solver, dd.NoPrior(shape), dd.Problem(operator, y, sigma_y), jax.random.key(0))


@pytest.fixture(scope="module")
def recorded():
    from conftest import GOLDEN

    with np.load(GOLDEN / "classical.npz") as file:
        return dict(file)


def variation(x):
    return np.sqrt(np.sum(np.asarray(differences(jnp.asarray(x))) ** 2, axis=(-2, -1))).sum()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("coupling", ["joint", "channels"])
def test_total_variation_denoises_as_the_references(recorded, channels, coupling):
    noisy, lam = recorded[f"denoise{channels}_f"], float(recorded[f"denoise{channels}_lam"])
    operator = operators.blur(noisy.shape, kernel=np.ones((1, 1)))
    solver = TotalVariation(lam, coupling)
    x = np.asarray(restore(solver, operator, jnp.asarray(noisy, jnp.float32), 0.1, noisy.shape).x)
    np.testing.assert_allclose(x, recorded[f"denoise{channels}_x_{coupling}"], atol=IMAGE)
    if coupling == "joint":
        value = 0.5 * np.sum((x - noisy) ** 2) + lam * variation(x)
        np.testing.assert_allclose(value, recorded[f"denoise{channels}_value_joint"], rtol=VALUE)
    else:  # what scikit-image means by channel_axis
        np.testing.assert_allclose(x, recorded[f"denoise{channels}_skimage"], atol=IMAGE)


def test_total_variation_with_an_operator_ends_at_the_recorded_optimum(recorded):
    matrix, y, lam = recorded["op_A"], recorded["op_y"], float(recorded["op_lam"])
    operator, want = Matrix(jnp.asarray(matrix, jnp.float32), SHAPE), recorded["op_x"]
    given = restore(TotalVariation(lam), operator, jnp.asarray(y, jnp.float32), 0.1, SHAPE)
    x = np.asarray(given.x)
    value = 0.5 * np.sum((matrix @ x.ravel() - y) ** 2) + lam * variation(x)
    np.testing.assert_allclose(value, recorded["op_value"], rtol=VALUE)
    np.testing.assert_allclose(x, want, atol=IMAGE)
    np.testing.assert_allclose(given.info.misfit[-1], np.mean((matrix @ x.ravel() - y) ** 2), rtol=1e-3)

    # Told the noise that this optimum leaves, it finds the same image without its lam.
    sigma = np.sqrt(np.mean((matrix @ want.ravel() - y) ** 2))
    found = restore(TotalVariation(), operator, jnp.asarray(y, jnp.float32), sigma, SHAPE)
    np.testing.assert_allclose(np.asarray(found.x), want, atol=IMAGE)
    # The units of a measurement do not matter.
    far = Matrix(50 * operator.matrix, SHAPE)
    scaled = restore(TotalVariation(), far, jnp.asarray(50 * y, jnp.float32), 50 * sigma, SHAPE)
    np.testing.assert_allclose(np.asarray(scaled.x), want, atol=IMAGE)


def test_differences_and_their_adjoint(x64):
    for shape in ((5, 2), (4, 3, 2), (3, 4, 2, 1)):
        x, p = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate((shape, (*shape, len(shape) - 1))))
        np.testing.assert_allclose(jnp.vdot(differences(x), p), jnp.vdot(x, differences_adjoint(p)), rtol=1e-12)


def test_richardson_lucy_is_that_of_scikit_image(recorded):
    """The reference convolves with zeros around and takes A^T 1 for 1: a "full" convolution, dark outside."""
    image, psf, (height, width) = recorded["rl_image"], recorded["rl_psf"], SHAPE[:2]
    grid = np.arange(height * width)
    matrix = np.zeros((height + 2, width + 2, height * width))
    for i in range(3):
        for j in range(3):
            matrix[grid // width + i, grid % width + j, grid] = psf[i, j]
    matrix = matrix.reshape(-1, height * width)
    operator = Matrix(jnp.asarray(matrix, jnp.float32), SHAPE)
    y = 2 * np.pad(image, 1).ravel() - matrix.sum(axis=1)
    solver = RichardsonLucy("never", int(recorded["rl_iterations"]))
    x = np.asarray(restore(solver, operator, jnp.asarray(y, jnp.float32), 0.1, SHAPE).x)
    np.testing.assert_allclose((x[..., 0] + 1) / 2, recorded["rl_result"], atol=1e-5)


@pytest.fixture(scope="module")
def blurred():
    shape = (16, 16, 3)
    operator = operators.gaussian_blur(shape, size=5, std=1.2)
    x = np.zeros(shape, np.float32)
    x[3:9, 4:12], x[10:14, 2:7] = (0.8, -0.2, 0.1), -0.7
    return operator, jnp.asarray(x), dd.simulate(operator, jnp.asarray(x), 0.05, jax.random.key(1))


@pytest.mark.parametrize("solver", [Tikhonov(), TotalVariation(), RichardsonLucy()], ids=lambda s: type(s).__name__)
def test_the_noise_level_decides_how_far_to_fit(blurred, solver):
    operator, truth, y = blurred
    found = restore(solver, operator, y, 0.05, truth.shape)
    misfit = float(dd.Problem(operator, y, 0.05).misfit(found.x))
    np.testing.assert_allclose(misfit, 0.05**2, rtol=0.1 if isinstance(solver, RichardsonLucy) else 2e-3)
    rough = restore(PseudoInverse(), operator, y, 0.05, truth.shape)
    assert jnp.mean((found.x - truth) ** 2) < jnp.mean((rough.x - truth) ** 2)


def test_tikhonov_with_a_number_is_one_least_squares_problem(blurred):
    operator, _, y = blurred
    found = restore(Tikhonov(0.03), operator, y, 0.05, y.shape)
    np.testing.assert_allclose(found.x, operator.prox(jnp.zeros_like(y), y, 0.03), atol=1e-6)
    assert found.info.misfit.shape == (1,) and found.cost.operator_solves == 1
    np.testing.assert_allclose(found.info.misfit[0], dd.Problem(operator, y, 0.05).misfit(found.x), rtol=1e-5)


def test_tikhonov_stays_finite_where_no_lam_fits(blurred):
    operator, _, y = blurred
    smooth = restore(Tikhonov(num_steps=30), operator, y, 5.0, y.shape).x  # the noise explains everything
    assert jnp.abs(smooth).max() < 1e-3
    exact = restore(Tikhonov(num_steps=30), operator, y, 0.0, y.shape)
    assert bool(exact.finite) and exact.info.misfit[-1] < 0.05**2 / 3
    flat = restore(Tikhonov(), operator, jnp.zeros_like(y), 0.05, y.shape)
    np.testing.assert_array_equal(flat.x, 0)


def test_the_formulas(blurred):
    operator, _, y = blurred
    np.testing.assert_allclose(
        restore(PseudoInverse(), operator, y, 0.0, y.shape).x, operator.pseudo_inverse(y), atol=1e-5
    )
    fourier = operators.undersampled_fourier((16, 16, 1), jax.random.key(0))
    z = fourier.forward(jax.random.uniform(jax.random.key(3), (16, 16, 1)))
    np.testing.assert_allclose(restore(ZeroFilled(), fourier, z, 0.0, (16, 16, 1)).x, fourier.adjoint(z), atol=1e-5)


def test_a_start_is_what_they_begin_with(blurred):
    operator, truth, y = blurred
    for solver in (PseudoInverse(), ZeroFilled()):
        exact = dd.solve_one(
            *(solver, dd.NoPrior(y.shape), dd.Problem(operator, operator.forward(truth), 0.05)),
            jax.random.key(0),
            x_init=truth,
        )
        np.testing.assert_allclose(exact.x, truth, atol=1e-5)


def test_nothing_is_drawn_and_no_prior_is_asked(blurred):
    operator, _, y = blurred
    problem, keys = dd.Problem(operator, jnp.stack([y, y]), 0.05), dd.image_keys(jax.random.key(0), jnp.arange(2))
    found = dd.solve(TotalVariation(num_steps=30), dd.NoPrior(y.shape), problem, keys)
    np.testing.assert_array_equal(found.x[0], found.x[1])
    assert found.cost.network_evaluations == found.cost.normal_draws == 0
    with pytest.raises(ValueError, match=r"NoPrior cannot denoise: .* load_prior"):
        dd.solve(solvers.DDiff(num_steps=2), dd.NoPrior(y.shape), problem, keys)


def test_richardson_lucy_refuses_complex_measurements():
    operator = operators.undersampled_fourier((16, 16, 1), jax.random.key(0))
    y = jnp.zeros(jax.eval_shape(operator.forward, jnp.zeros((16, 16, 1))).shape, jnp.complex64)
    with pytest.raises(ValueError, match="needs a measurement of brightness"):
        restore(RichardsonLucy(), operator, y, 0.05, (16, 16, 1))


def test_one_image_of_any_rank():
    for shape in ((12, 1), (4, 5, 6, 1)):
        operator = operators.from_function(lambda x: 0.5 * x, shape)
        y = jax.random.normal(jax.random.key(0), shape)
        if not isinstance(operator, LinearOperator):
            operator = Matrix(0.5 * jnp.eye(int(np.prod(shape))), shape)
            y = y.ravel()
        x = restore(TotalVariation(num_steps=300), operator, y, 0.2, shape).x
        np.testing.assert_allclose(dd.Problem(operator, y, 0.2).misfit(x), 0.04, rtol=0.02)
