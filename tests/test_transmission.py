import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from test_op_fan_beam import close, image, scan

import ddiff_jax as dd
from ddiff_jax import operators, solvers

pytestmark = pytest.mark.once

NLL = 1e-6  # relative, float32 against float64
GRADIENT = 1e-4
POST_LOG = 1e-5


@pytest.fixture(params="ab")
def measured(request, golden):
    """Load a golden file, its operator and the problem that it states."""
    data = np.load(golden(f"instruments/transmission_{request.param}.npz"))
    geometry = scan(np.load(golden(f"instruments/fan_{data['fan']}.npz")))
    length = float(geometry.pixel) * max(data["x"].shape)
    operator = operators.transmission(geometry, length=length, water=float(data["mu_water"]))
    noise = dd.Counts(float(data["I0"]), float(data["background"]))
    return data, operator, dd.Problem(operator, image(data["counts"]), 50.0, noise)


def test_counts_and_their_likelihood(measured):
    data, operator, problem = measured
    x, x0 = image(data["x"]), image(data["x0"])
    close(operator.attenuation(x), data["path"], 1e-6)
    close(problem.expected(x), data["mean"], 1e-6)
    np.testing.assert_allclose(problem.nll(x0), data["nll_at_x0"], rtol=NLL)
    close(problem.grad(x0), data["gradient_at_x0"], GRADIENT)
    misfit, gradient = jax.jit(dd.Problem.misfit_and_gradient)(problem, x0)
    np.testing.assert_array_equal(misfit, jax.jit(dd.Problem.misfit)(problem, x0))
    close(gradient, data["gradient_at_x0"], GRADIENT)
    # The residual is one of counts: at the truth its mean square is their mean variance.
    assert 0.8 < float(problem.misfit(x)) / data["mean"].mean() < 1.3


def test_the_logarithm_and_its_weights(measured):
    data, operator, problem = measured
    y, sigma = operators.post_log(operator, problem.y, float(data["I0"]), float(data["background"]))
    air = operator.geometry.forward(jnp.ones(operator.image_shape))
    close((y + air) * operator.scale, data["postlog"], POST_LOG)
    close(1 / (sigma * operator.scale) ** 2, data["weight"], POST_LOG)
    linear = dd.Problem(operator.geometry, y, sigma)
    np.testing.assert_allclose(linear.nll(image(data["x0"])), data["wls_at_x0"], rtol=POST_LOG)
    assert 0.9 < float(linear.chi_square(image(data["x"]))) < 1.2


def test_no_photon_says_little_and_nothing_infinite():
    operator = operators.transmission(operators.sparse_fan_beam_tomography((8, 8, 1), num_angles=3), length=5.0)
    counts = jnp.zeros((3, 13, 1)).at[0].set(100.0).at[1].set(3.0)
    y, sigma = operators.post_log(operator, counts, 1e4, background=5.0)
    assert np.isfinite(y).all() and np.isfinite(sigma).all()
    assert float(sigma[1:].min()) > 50 * float(sigma[0].max())
    with pytest.raises(ValueError, match=r"one measurement, \(3, 13, 1\); got shape \(13, 1\)"):
        operators.post_log(operator, counts[0], 1e4)


def test_counts_have_the_mean_and_variance_of_poisson_noise():
    noise = dd.Counts(jnp.asarray([[50.0], [400.0]]), 2.0)
    clean = jnp.broadcast_to(jnp.asarray([[0.9], [0.05]]), (2, 4096))
    counts = np.asarray(noise.sample(clean, 1.0, jax.random.key(0)), np.float64)
    np.testing.assert_array_equal(counts, np.round(counts))
    for got, mean in zip(counts, (47.0, 22.0), strict=True):
        # Standard errors as in test_likelihood.py, gates at five and six of them.
        assert abs(got.mean() - mean) <= 5 * np.sqrt(mean / 4096)
        assert abs(got.var() - mean) <= 6 * np.sqrt((2 * mean**2 + mean) / 4096)
    y = dd.simulate(
        operators.from_function(lambda x: jnp.exp(-x), (16, 16, 1)),
        jnp.zeros((16, 16, 1)),
        1.0,
        jax.random.key(1),
        dd.Counts(1e4),
    )
    assert abs(float(y.mean()) - 1e4) < 5 * np.sqrt(1e4 / 256)


def test_gradient_equals_a_central_difference(x64):
    shape = (9, 7, 2)
    operator = operators.transmission(
        operators.sparse_fan_beam_tomography(shape, num_angles=5), length=4.0, window=(-1000.0, 3000.0)
    )
    x, direction, truth = (jax.random.uniform(jax.random.key(i), shape, jnp.float64, -0.9, 0.9) for i in range(3))
    noise = dd.Counts(200.0, 1.5)
    y = dd.simulate(operator, truth, 1.0, jax.random.key(3), noise)
    problem = dd.Problem(operator, y, 10.0, noise)
    slope, h = jnp.vdot(jax.jit(jax.grad(problem.nll))(x), direction), 1e-6
    quotient = (problem.nll(x + h * direction) - problem.nll(x - h * direction)) / (2 * h)
    np.testing.assert_allclose(slope, quotient, rtol=1e-5)
    images = jnp.stack([x, truth])
    np.testing.assert_allclose(jax.vmap(operator.forward)(images)[1], operator.forward(truth), rtol=1e-12)


def test_the_likelihood_stays_finite_far_from_any_image():
    operator = operators.transmission(operators.sparse_fan_beam_tomography((8, 8, 1), num_angles=3), length=50.0)
    problem = dd.Problem(operator, jnp.full((3, 13, 1), 7.0), 3.0, dd.Counts(1e4))
    assert jnp.isfinite(problem.grad(jnp.full((8, 8, 1), 30.0))).all()


def test_solvers_follow_raw_counts_and_their_logarithm():
    shape = (16, 16, 1)
    operator = operators.transmission(operators.sparse_fan_beam_tomography(shape, num_angles=24), length=8.0)
    row, column = np.mgrid[:16, :16] - 7.5
    truth = image(np.where(np.hypot(row, column) < 6, 0.2, -1.0) + np.where(np.hypot(row - 2, column) < 2, 0.5, 0.0))
    noise = dd.Counts(2e4)
    y = dd.simulate(operator, truth, 1.0, jax.random.key(0), noise)[None]
    keys, prior = dd.image_keys(jax.random.key(1), jnp.arange(1)), gaussian_prior(shape, mean=-0.3, var=0.3)
    sigma = float(jnp.sqrt(y.mean()))
    log, level = operators.post_log(operator, y[0], 2e4)
    solver = solvers.DDiff(num_steps=40, output="x")
    # The raw counts' squared residual, exponential in the image, falls more slowly than that of their logarithm. The
    # prior's mean is 0.65 away from the truth.
    for problem, share in (
        (dd.Problem(operator, y, sigma, noise), 0.1),
        (dd.Problem(operator.geometry, log[None], level[None]), 0.05),
    ):
        solution = dd.solve(solver, prior, problem, keys)
        assert solution.finite.all()
        start, end = solution.info.misfit[0, 0], solution.info.misfit[0, -1]
        assert end < share * start
        assert float(jnp.sqrt(jnp.mean((solution.x[0] - truth) ** 2))) < 0.65 / 2


def test_hounsfield_units():
    units = np.array([-1000.0, 0.0, 1000.0])
    np.testing.assert_allclose(operators.from_hounsfield(units), [-1, 0, 1])
    np.testing.assert_allclose(operators.from_hounsfield(units, (-1000.0, 3000.0)), [-1, -0.5, 0])
    for window in ((-1000.0, 1000.0), (-150.0, 250.0)):
        x = operators.from_hounsfield(units, window)
        np.testing.assert_allclose(operators.to_hounsfield(x, window), units, atol=1e-9)
    np.testing.assert_allclose(operators.hounsfield_to_attenuation(units, 0.19), [0, 0.19, 0.38])
    np.testing.assert_allclose(operators.attenuation_to_hounsfield(np.array([0.0, 0.19]), 0.19), [-1000, 0])
    with pytest.raises(ValueError, match="low < high"):
        operators.from_hounsfield(units, (100.0, 100.0))


@pytest.mark.parametrize("window", [(-1000.0, 1000.0), (-1000.0, 3000.0), (-1200.0, 800.0)])
def test_attenuation_is_that_of_the_hounsfield_units(window):
    geometry = operators.fan_beam_tomography((7, 7, 1), angles=[0.0, 90.0], num_detectors=1)
    operator = operators.transmission(geometry, length=3.0, water=0.2, window=window)
    units = np.full((7, 7, 1), 500.0)
    x = jnp.asarray(operators.from_hounsfield(units, window), jnp.float32)
    # Half as dense again as water, 3 cm of it along the central ray.
    np.testing.assert_allclose(operator.attenuation(x), np.full((2, 1, 1), 1.5 * 0.2 * 3), rtol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda g: operators.transmission(g, length=0.0), "length must be a positive"),
        (lambda g: operators.transmission(g, length=1.0, water=-0.2), "water must be a positive"),
        (lambda g: operators.transmission(g, length=1.0, window=(5, 5)), "window must be"),
        (lambda g: dd.Counts(0.0), "incident, the number of photons sent to every cell, must be positive and finite"),
        (lambda g: dd.Counts(np.inf), "incident"),
        (lambda g: dd.Counts(10.0, -1.0), "background, the counts .*, must be at least 0, and finite"),
    ],
)
def test_impossible_numbers_are_refused(make, message, unchecked):
    geometry = operators.tomography((6, 6, 1), angles=[0.0])
    with pytest.raises(ValueError, match=message):
        make(geometry)
    assert dd.Counts(10.0, 0.0).background == 0


def test_the_geometry_is_linear_and_counts_are_real(unchecked):
    with pytest.raises(TypeError, match="must be a linear operator"):
        operators.transmission(operators.high_dynamic_range((6, 6, 1)), length=1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="real measurement"):
        dd.Counts(10.0).mean(jnp.zeros(3, jnp.complex64))
