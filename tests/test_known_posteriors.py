"""Problems with known posteriors: the specification's numbers, priors against posteriors, samplers against moments."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ddiff_jax as dd
from ddiff_jax.calibration import CELLS, DEFAULT, FULL
from ddiff_jax.calibration.gaussians import gaussian_components, mixture_components, spectral_problem
from ddiff_jax.calibration.gibbs import GibbsPosterior
from ddiff_jax.calibration.laws import Law, posterior_shares, shrink
from ddiff_jax.calibration.levy import ChainPosterior, LevyPrior, levy_prior
from ddiff_jax.calibration.matrices import (
    dct_basis,
    haar_basis,
    matrix_operator,
    picture_matrix,
    signal_matrix,
)
from ddiff_jax.calibration.sparse import CoefficientPosterior, sparse_prior
from ddiff_jax.operators import dot_test
from ddiff_jax.pytree import check_pytree
from ddiff_jax.schedule import PUBLISHED

pytestmark = pytest.mark.once

ENTRIES = np.arange(64)
WAVE = np.sqrt(2) * np.sin(0.9 * (ENTRIES + 1))
MIXTURE = mixture_components(8)
GAUSSIAN = gaussian_components(8)
STEP_VARIANCE = 0.5 / 65
COEFFICIENTS = {
    "laplace": Law("laplace", 0.25),
    "bernoulli": Law("laplace", 0.25, 0.1),
    "bernoulli-gauss": Law("gauss", 0.25, 0.1),
    "student": Law("student3", 0.25),
    "gauss": Law("gauss", 0.25),
}
INCREMENTS = {
    "laplace": Law("laplace", STEP_VARIANCE),
    "bernoulli": Law("laplace", STEP_VARIANCE, 0.1),
    "student": Law("student3", STEP_VARIANCE),
    "gauss": Law("gauss", STEP_VARIANCE),
}
SUM = np.tril(np.ones((64, 64)))
HAAR = haar_basis(64)
SHOWN = [0, 1, 2, 31, 63]
SE = 5  # standard errors that a Monte Carlo mean may be off


def numbers(text):
    return np.array(text.split(), float)


def level(sigma, dtype="float64"):
    return dd.Level(np.dtype(dtype).type(1), np.dtype(dtype).type(sigma), 0.0)


def measured(matrix, x, sigma_y):
    """Measure with the specification's noise."""
    return (matrix @ x + sigma_y * np.sqrt(2) * np.sin(1.7 * (np.arange(len(matrix)) + 1)))[None]


def quantiles(law, q):
    if law.kind == "laplace":
        return law.scale * np.sign(q - 0.5) * -np.log1p(-2 * abs(q - 0.5))
    return law.scale * (stats.t.ppf(q, 3) if law.kind == "student3" else stats.norm.ppf(q))


def signal_of(name):
    law = INCREMENTS[name]
    u = quantiles(law, ((ENTRIES + 1) * 0.6180339887498949 + 0.25) % 1)
    return np.cumsum(np.where(((ENTRIES + 1) * 0.4142135623730951) % 1 < law.p, u, 0.0))


def test_bases_and_matrices_are_those_of_the_specification():
    for basis in (dct_basis(8), HAAR):
        np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis)), atol=1e-14)
    np.testing.assert_allclose(GAUSSIAN[2][0].ravel()[:4], [2.28482643, 1.63488871, 0.80780813, 0.38996728], atol=5e-9)
    assert GAUSSIAN[2].min() == pytest.approx(0.0177436492, abs=5e-11)
    _, posterior = spectral_problem(GAUSSIAN, picture_matrix("identity", 8), 0.05)
    variances = np.diagonal(posterior.covariances[0]).reshape(8, 8)
    np.testing.assert_allclose([variances[0, 0], variances[3, 3]], [0.45938921, 0.17777398], atol=5e-9)
    kept = numbers("1 3 4 6 9 11 12 14 16 17 19 22 24 25 27 30 32 33 35 37 38 40 43 45 46 48 51 53 56 58 59 61")
    np.testing.assert_array_equal(np.nonzero(picture_matrix("sample", 8))[1], kept)
    assert set(np.nonzero(picture_matrix("sample8", 8))[1]) < set(kept)
    for matrix in (signal_matrix("fourier"), picture_matrix("sample", 8), signal_matrix("sample")):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-14)
    np.testing.assert_allclose(picture_matrix("blur", 8).sum(0), 1)
    np.testing.assert_allclose(picture_matrix("quadrants", 8) @ np.ones(64), 1)


@pytest.mark.parametrize("name", ["quadrants", "blur"])
def test_a_matrix_is_a_decomposable_operator(name, x64):
    matrix = picture_matrix(name, 4)
    operator = matrix_operator(matrix, (4, 4, 1))
    random = np.random.default_rng(0)
    x, y = jnp.asarray(random.standard_normal((4, 4, 1))), jnp.asarray(random.standard_normal(16))
    rows = len(matrix)
    np.testing.assert_allclose(operator.forward(x)[:rows], matrix @ x.ravel(), atol=1e-14)
    assert not operator.forward(x)[rows:].any() and operator.observed().sum() == rows
    assert dot_test(operator, x, y) < 1e-14
    parts = operator.svd()
    np.testing.assert_allclose(parts.s * parts.from_image(x), parts.from_measurement(operator.forward(x)), atol=1e-14)
    np.testing.assert_allclose(parts.to_image(parts.from_image(x)), x, atol=1e-14)
    expected = np.linalg.solve(matrix.T @ matrix + 0.3 * np.eye(16), matrix.T @ y[:rows] + 0.3 * x.ravel())
    np.testing.assert_allclose(operator.prox(x, y.at[rows:].set(0.0), 0.3).ravel(), expected, atol=1e-13)


def test_unfit_matrices_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="16 columns and at most as many rows; got shape"):
        matrix_operator(np.ones((2, 5)), (4, 4, 1))
    with pytest.raises(ValueError, match="operators on pictures are identity"):
        picture_matrix("sampel", 8)
    with pytest.raises(ValueError, match="even; got 5"):
        picture_matrix("blur", 5)
    with pytest.raises(ValueError, match="operators on signals"):
        signal_matrix("blur")


GAUSSIAN_NUMBERS = {  # variance per pixel and log evidence at sigma_y = .05, then at .2
    "sample": "0.06299278 -12.71769 0.08256285 -12.94225",
    "blur": "0.05048076 75.10927 0.09466024 -1.91346",
    "identity": "0.00241089 -19.82728 0.02715438 -28.40683",
}


@pytest.mark.parametrize("name", GAUSSIAN_NUMBERS)
def test_gaussian_posterior_has_the_specified_numbers(name):
    matrix, found = picture_matrix(name, 8), []
    pixels = np.kron(dct_basis(8), dct_basis(8))
    x = pixels @ (np.sqrt(GAUSSIAN[2][0].ravel()) * WAVE)
    for sigma_y in (0.05, 0.2):
        _, posterior = spectral_problem(GAUSSIAN, matrix, sigma_y)
        y = measured(matrix, x, sigma_y)
        found += [posterior.variance(y)[0] / 64, posterior.log_evidence(y)[0]]
    np.testing.assert_allclose(found[::2], numbers(GAUSSIAN_NUMBERS[name])[::2], atol=5e-9)
    np.testing.assert_allclose(found[1::2], numbers(GAUSSIAN_NUMBERS[name])[1::2], atol=5e-6)
    if name == "sample":
        _, posterior = spectral_problem(GAUSSIAN, matrix, 0.05)
        mean = posterior.mean(measured(matrix, x, 0.05)).ravel()
        expected = numbers("0.452138 0.439684 0.642625 0.732658 12.167474 12.053716")
        np.testing.assert_allclose([*mean[:4], mean.sum(), (mean**2).sum()], expected, atol=5e-7)


@pytest.mark.parametrize(
    ("n", "name", "expected"),
    [(16, "sample", 0.02511390), (16, "blur", 0.02576348), (16, "identity", 0.00230840), (32, "sample", 0.01131840)],
)
def test_larger_gaussians_have_the_specified_variance(n, name, expected):
    _, posterior = spectral_problem(gaussian_components(n), picture_matrix(name, n), 0.05)
    assert posterior.variance(np.zeros((1, n**2)))[0] / n**2 == pytest.approx(expected, abs=6e-9)


def test_spectral_priors_have_the_specified_numbers(x64):
    gaussian, _ = spectral_problem(GAUSSIAN, np.eye(64), 0.05)
    x = gaussian.denoise(jnp.asarray(WAVE).reshape(8, 8, 1), level(0.3)).ravel()
    expected = numbers("1.158374 1.107413 0.370957 -0.653786 1.299789")
    np.testing.assert_allclose([*x[:4], x.sum()], expected, atol=6e-7)
    mixture, _ = spectral_problem(MIXTURE, np.eye(64), 0.05)
    x_t = jnp.asarray(0.5 * WAVE).reshape(8, 8, 1)
    x = mixture.denoise(x_t, level(0.5)).ravel()
    np.testing.assert_allclose([*x[:4], x.sum()], numbers("0.458192 0.288802 -0.035155 -0.359431 .352772"), atol=6e-7)
    expected = numbers(".00478823 .956491 .0000532 .0386674")
    np.testing.assert_allclose(mixture.responsibilities(x_t, level(0.5)), expected, atol=5e-7)
    for sigma, total, trace in ((0.5, 0.352772, 1.494821), (0.1, 0.660505, 0.424831), (2.0, 0.312969, 7.341759)):
        _, posterior = spectral_problem(MIXTURE, np.eye(64), sigma)
        y = 0.5 * WAVE[None]
        assert mixture.denoise(x_t, level(sigma)).sum() == pytest.approx(total, abs=6e-7)
        assert posterior.variance(y)[0] == pytest.approx(trace, abs=6e-7)
        if sigma == 0.5:
            assert posterior.log_evidence(y)[0] == pytest.approx(-54.974251, abs=6e-7)


@pytest.mark.parametrize(
    ("name", "sigma_y", "weights", "mean", "variance", "log_evidence"),
    [
        (
            *("quadrants", 0.3, ".41294545 .32438307 .17890748 .08376400"),
            *("0.256565 0.203577 0.186981 0.156042", 0.11492959, -0.722084),
        ),
        (
            *("sample8", 1.0, ".03332769 .94983796 .00970149 .00713286"),
            *("0.477639 0.301808 -0.025131 -0.341370", 0.03221508, -11.559944),
        ),
    ],
)
def test_mixture_posterior_has_the_specified_numbers(name, sigma_y, weights, mean, variance, log_evidence):
    matrix = picture_matrix(name, 8)
    _, posterior = spectral_problem(MIXTURE, matrix, sigma_y)
    x = 0.5 * (posterior.means[0] + posterior.means[1]) + 0.2 * WAVE
    y = measured(matrix, x, sigma_y)
    np.testing.assert_allclose(posterior.components(y)[0][0], numbers(weights), atol=6e-9)
    np.testing.assert_allclose(posterior.mean(y).ravel()[:4], numbers(mean), atol=6e-7)
    assert posterior.variance(y)[0] / 64 == pytest.approx(variance, abs=6e-9)
    assert posterior.log_evidence(y)[0] == pytest.approx(log_evidence, abs=6e-7)


def test_modes_of_a_mixture_are_maxima(x64):
    matrix = picture_matrix("quadrants", 8)
    _, posterior = spectral_problem(MIXTURE, matrix, 0.3)
    y = posterior.truths(jax.random.key(0), 5).reshape(5, 64) @ matrix.T
    modes, heights = posterior.modes(y)
    random = np.random.default_rng(0)
    near = modes[:, :, None] + 1e-3 * random.standard_normal((5, 4, 6, 8, 8, 1))
    around = posterior.log_density(near.reshape(5, 24, 64), y).reshape(5, 4, 6)
    assert (around < heights[..., None]).all()
    moved = [posterior.log_density(modes + s * near[:, :, 0] - s * modes, y) for s in (-1, 1)]
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-5)  # no slope
    best = posterior.maximum(y)
    assert (posterior.log_density(best[:, None], y)[:, 0] >= heights.max(1) - 1e-9).all()
    assert (posterior.log_density(posterior.samples(jax.random.key(1), y, 50), y).max(1) < heights.max(1)).all()


SCALAR_NUMBERS = {  # d(.3; .1), d(.3; .3), d(.3; 1), d(1.5; .3) | MMSE at .05, .1, .3 | log p(.3) at .3
    "laplace": ".27187445 .16719978 .04931757 1.24544767 .00245725 .00941203 .06264674 -.44809250",
    "bernoulli": ".13464735 .01097742 .01015578 1.41897951 .00036276 .00166193 .01707376 -.27531083",
    "bernoulli-gauss": ".11436843 .00940277 .01238298 1.44747434 .00033244 .00153922 .01794582 -.28731646",
    "student": ".26856811 .15674249 .03876917 1.24662545 .00245156 .00928847 .05692521 -.39099632",
    "gauss": ".28846154 .22058824 .06 1.10294118 .00247525 .00961538 .06617647 -.51188664",
}


@pytest.mark.parametrize("name", SCALAR_NUMBERS)
def test_scalar_denoisers_have_the_specified_numbers(name, x64):
    weights, variances = COEFFICIENTS[name].scale_mixture()
    found = []
    for z, sigma in ((0.3, 0.1), (0.3, 0.3), (0.3, 1.0), (1.5, 0.3)):
        arguments = (jnp.float64(1), jnp.float64(sigma), jnp.asarray(weights), jnp.asarray(variances))
        found.append(jax.jit(shrink)(jnp.array([z]), *arguments)[0][0])
    for sigma in (0.05, 0.1, 0.3):
        t = np.linspace(-9, 9, 4001)
        z = 0.01 * np.sinh(t)
        share, gain, evidence = posterior_shares(z, sigma, weights, variances)
        first = share @ gain
        variance = sigma**2 * first + z**2 * (share * (gain - first[:, None]) ** 2).sum(-1)
        found.append(np.sum(variance * np.exp(evidence) * 0.01 * np.cosh(t)) * (t[1] - t[0]))
    found.append(posterior_shares(np.array(0.3), 0.3, weights, variances)[2])
    expected = numbers(SCALAR_NUMBERS[name])
    np.testing.assert_allclose(found[:4], expected[:4], atol=1e-8)
    # The specification's own integral for Student's heavy tail stops at six digits.
    np.testing.assert_allclose(found[4:7], expected[4:7], atol=1e-7 if name == "student" else 6e-9)
    np.testing.assert_allclose(found[7], expected[7], atol=1e-8)


def test_sparse_posterior_has_the_specified_numbers():
    law = COEFFICIENTS["laplace"]
    x = HAAR @ quantiles(law, ((ENTRIES + 1) * 0.6180339887498949 + 0.25) % 1)
    posterior = CoefficientPosterior(law, HAAR, np.eye(64), 0.05)
    mean = posterior.mean(measured(np.eye(64), x, 0.05)).ravel()
    expected = numbers("0.322324 0.072713 -0.296858 -0.296712 0.610512")
    np.testing.assert_allclose(mean[SHOWN], expected, atol=6e-7)


LATTICE_NUMBERS = {  # five entries and the mean variance
    ("laplace", 0.1): "0.0584280 0.0332285 0.0014575 0.1936749 0.1715664 .00382123",
    ("laplace", 0.5): "0.0193870 0.0191961 0.0221130 0.2450409 0.1771509 .02102088",
    ("bernoulli", 0.1): "-0.0004870 -0.0037030 -0.0067746 -0.2010950 -0.5632472 .00174434",
    ("bernoulli", 0.5): "-0.0005554 -0.0037056 -0.0063323 -0.1335128 -0.3367821 .01271866",
    ("student", 0.1): "0.0433146 0.0256812 0.0055474 0.2064483 0.1348656 .00337184",
}


@functools.cache
def lattice_denoiser(name, half_points):
    prior = LevyPrior(INCREMENTS[name], half_points, 12.0 if name == "student" else 6.0, (64, 1), PUBLISHED)
    return jax.jit(lambda x, at: (prior.denoise(x, at).ravel(), prior.mean_variance(x, at)))


@pytest.mark.parametrize(("name", "sigma"), LATTICE_NUMBERS)
def test_lattice_denoiser_has_the_specified_numbers(name, sigma, x64):
    z = signal_of(name) + sigma * np.sqrt(2) * np.sin(1.7 * (ENTRIES + 1))
    x, variance = lattice_denoiser(name, 128)(jnp.asarray(z)[:, None], level(sigma))
    expected = numbers(LATTICE_NUMBERS[name, sigma])
    np.testing.assert_allclose(x[np.array(SHOWN)], expected[:5], atol=1e-6 if sigma < 0.5 else 1e-5)
    assert variance == pytest.approx(expected[5], abs=2e-8 if sigma < 0.5 else 4e-6)


CHAIN_NUMBERS = {
    "gauss": "0.119947 0.091724 0.063501 0.180748 0.097513 .00389479",
    "laplace": "0.101526 0.076181 0.050836 0.215859 0.078714 .00346436",
    "bernoulli": "0.000709 -0.006277 -0.013263 -0.138723 -0.737142 .00222321",
    "student": "0.079861 0.061818 0.043775 0.221059 0.050455 .00286637",
}


def chain(name, operator="sample", sigma_y=0.05, half_points=1024):
    reach = 12.0 if name == "student" else 6.0
    return ChainPosterior(INCREMENTS[name], SUM, signal_matrix(operator), sigma_y, half_points, reach)


@pytest.mark.parametrize("name", CHAIN_NUMBERS)
def test_chain_posterior_has_the_specified_numbers(name):
    posterior = chain(name)
    y = measured(posterior.matrix, signal_of(name), 0.05)
    expected = numbers(CHAIN_NUMBERS[name])
    np.testing.assert_allclose(posterior.mean(y).ravel()[SHOWN], expected[:5], atol=3e-6)
    assert posterior.variance(y)[0] / 64 == pytest.approx(expected[5], abs=2e-7)


def prior_and_posterior(family, sigma):
    """Take the prior of a family, and its posterior given all pixels with noise."""
    if family in ("G", "M"):
        return spectral_problem(GAUSSIAN if family == "G" else MIXTURE, np.eye(64), sigma)
    law = family.removeprefix("S-").removeprefix("L-")
    if family[0] == "S":
        coefficients = COEFFICIENTS[law]
        return sparse_prior(coefficients, HAAR), CoefficientPosterior(coefficients, HAAR, np.eye(64), sigma)
    return levy_prior(INCREMENTS[law], 64), chain(law, "identity", sigma)


@functools.cache
def compiled(family, dtype):
    prior, _ = prior_and_posterior(family, 1.0)

    def both(x_t, at):
        pull = jax.vjp(lambda x: prior.denoise(x, at), x_t)[1]
        return *prior.predict(x_t, at), pull(jnp.ones_like(x_t))[0]

    return jax.jit(jax.vmap(both, (0, None)))


FAMILIES = ("G", "M", "S-laplace", "S-bernoulli", "S-student", "L-laplace", "L-bernoulli")
DENOISED = {"G": 3e-6, "M": 3e-5, "S": 3e-6, "L": 2e-3}  # of the prior's deviation, .5; float32, L by its lattice


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prior_denoises_to_the_mean_of_its_posterior(family):
    """The same law, twice: the prior in float32 at every level, the posterior of the identity in float64."""
    for seed, sigma in enumerate((0.002, 0.05, 0.3, 2.0, 100.0)):
        if family[0] == "L" and sigma < 0.02:
            continue  # too fine for the lattice of the posterior
        _, posterior = prior_and_posterior(family, sigma)
        x = posterior.truths(jax.random.key(seed), 4)
        y = (x + sigma * np.random.default_rng(seed).standard_normal(x.shape)).astype(np.float32)
        at = PUBLISHED.at(np.float32(sigma))
        at = dd.Level(jnp.float32(at.signal), jnp.float32(at.sigma), jnp.float32(0))
        found, eps, slope = compiled(family, "float32")(at.signal * y, at)
        expected = posterior.mean(y)
        # float32 rounds x_t itself, and that much of it comes through where there is little noise
        tolerance = DENOISED[family[0]] + 2e-7 * np.abs(y).max() * min(1.0, 0.25 / sigma**2)
        np.testing.assert_allclose(found, expected, atol=tolerance, err_msg=f"{sigma}")
        np.testing.assert_allclose(at.signal * found + at.sigma * eps, at.signal * y, rtol=1e-5, atol=1e-6)
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("family", ["M", "S-bernoulli", "L-bernoulli"])
def test_the_jacobian_is_the_posterior_covariance(family, x64):
    """J = Cov[x_0 | x_t] / sigma^2 in units of x_0 + sigma n."""
    prior, posterior = prior_and_posterior(family, 0.3)
    y = posterior.truths(jax.random.key(3), 1) + 0.3 * np.random.default_rng(3).standard_normal((1, 64, 1)).reshape(
        1, *prior.image_shape
    )
    jacobian = jax.jit(jax.jacfwd(lambda x: prior.denoise(x, level(0.3))))(jnp.asarray(y[0])).reshape(64, 64)
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-4 if family[0] == "L" else 1e-10)
    expected = posterior.variance(y)[0]
    assert 0.09 * np.trace(jacobian) == pytest.approx(expected, rel=5e-3 if family[0] == "L" else 1e-7)
    draws = posterior.samples(jax.random.key(4), y, 1000)[0].reshape(1000, 64)
    direction = WAVE / np.linalg.norm(WAVE)
    along = draws @ direction
    spread = np.std((along - along.mean()) ** 2) / np.sqrt(1000)
    assert abs(0.09 * direction @ jacobian @ direction - along.var()) < SE * spread


def test_a_lattice_survives_measurements_that_no_signal_explains():
    for law in (INCREMENTS["gauss"], INCREMENTS["bernoulli"]):
        prior = levy_prior(law, 64)
        x_t = 3 * jnp.asarray((-1.0) ** ENTRIES, jnp.float32)[:, None]
        for sigma in (0.002, 0.3, 1.0):
            x_0, eps = prior.predict(x_t, level(sigma, "float32"))
            assert np.isfinite(x_0).all() and np.isfinite(eps).all()


@pytest.mark.parametrize(
    "name", ["G8/blur", "M8/quadrants", "S-laplace/identity", "S-bernoulli/identity", "L-bernoulli/sample"]
)
def test_exact_samplers_have_the_moments_of_their_posterior(name):
    cell = CELLS[name]()
    posterior, count = cell.posterior, 1000
    if isinstance(posterior, ChainPosterior):
        posterior, count = dataclasses.replace(posterior, half_points=256), 400
    x = posterior.truths(jax.random.key(0), 3)
    y = np.stack([np.asarray(cell.operator.forward(jnp.asarray(one, jnp.float32)), np.float64) for one in x])
    y = y + cell.sigma_y * np.random.default_rng(0).standard_normal(y.shape)
    draws = posterior.samples(jax.random.key(1), y, count)
    assert draws.shape == (3, count, *cell.prior.image_shape)
    mean, variance = posterior.mean(y), posterior.variance(y)
    errors = (draws.mean(1) - mean).reshape(3, -1)
    covariances = [np.cov(d.reshape(count, -1).T) for d in draws]
    for error, covariance, expected in zip(errors, covariances, variance, strict=True):
        # The squared error of the mean is tr C / count in the mean, and its deviation is sqrt(2 tr C^2) / count.
        excess = (error**2).sum() * count - np.trace(covariance)
        assert abs(excess) < SE * np.sqrt(2 * np.trace(covariance @ covariance))
        assert np.trace(covariance) == pytest.approx(expected, rel=SE * np.sqrt(10 / count))


@pytest.mark.parametrize("name", ["G8/sample", "M8/blur", "S-laplace/convolution", "L-laplace/sample"])
def test_log_densities_are_those_of_prior_and_likelihood(name):
    """Differences of log p(x | y) along a path are what its two factors say, by the samples' own definition."""
    cell = CELLS[name]()
    posterior = cell.posterior
    x = posterior.truths(jax.random.key(0), 3)
    y = np.zeros((1, 64))
    y[:, : len(posterior.matrix)] = x[0].ravel() @ posterior.matrix.T
    found = posterior.log_density(x[None], y)[0]
    flat = x.reshape(3, -1)
    likelihood = -0.5 * (((flat @ posterior.matrix.T) - y[0, : len(posterior.matrix)]) ** 2).sum(1) / cell.sigma_y**2
    if name[0] in "GM":
        pairs = zip(posterior.means, posterior.covariances, strict=True)
        prior = np.log(
            sum(
                w * stats.multivariate_normal(m, c).pdf(flat)
                for w, (m, c) in zip(posterior.weights, pairs, strict=True)
            )
        )
    else:
        u = flat @ HAAR if name[0] == "S" else np.diff(flat, axis=1, prepend=0.0)
        prior = stats.laplace(scale=posterior.law.scale).logpdf(u).sum(1)
    np.testing.assert_allclose(np.diff(found), np.diff(prior + likelihood), rtol=1e-7)


def test_laws_with_atoms_have_no_density():
    assert CELLS["S-bernoulli/identity"]().posterior.log_density(np.zeros((1, 2, 64, 1)), np.zeros((1, 64))) is None


SMALL = np.tril(np.ones((6, 6)))


@pytest.mark.parametrize("name", ["laplace", "bernoulli", "student"])
def test_gibbs_reaches_the_posterior_of_a_chain(name, tmp_path, monkeypatch):
    """Two exact methods that share nothing: Gibbs sampling, and messages on a lattice."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    law = Law(COEFFICIENTS[name].kind, 0.05, 0.3 if name == "bernoulli" else 1.0)
    exact = ChainPosterior(law, SMALL, np.eye(6), 0.2, 512, 6.0)
    y = exact.truths(jax.random.key(1), 1)[..., 0] + 0.2 * np.random.default_rng(1).standard_normal((1, 6))
    copies = np.repeat(y, 30, 0)  # thirty chains: their scatter is the standard error
    gibbs = GibbsPosterior(law, SMALL, np.eye(6), 0.2, burn_in=100, num_sweeps=800, thin=10)
    found = gibbs.mean(copies)[..., 0]
    z = (found.mean(0) - exact.mean(y)[0, :, 0]) / (found.std(0, ddof=1) / np.sqrt(30))
    assert np.abs(z).max() < SE
    variances = gibbs.variance(copies)
    assert abs(variances.mean() - exact.variance(y)[0]) < SE * variances.std(ddof=1) / np.sqrt(30)
    pooled = gibbs.samples(jax.random.key(0), copies, 80).reshape(-1, 6)
    assert pooled.var(0).sum() == pytest.approx(exact.variance(y)[0], rel=0.15)


def test_chains_are_run_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    posterior = GibbsPosterior(COEFFICIENTS["laplace"], SMALL, np.eye(6), 0.2, 10, 40, 10)
    y = np.random.default_rng(0).standard_normal((2, 6))
    first = posterior.mean(y)
    (file,) = (tmp_path / "ddiff_jax" / "calibration").iterdir()
    monkeypatch.setattr(GibbsPosterior, "_run", None)
    np.testing.assert_array_equal(posterior.mean(y), first)
    with pytest.raises(ValueError, match="keep 4 states, and 5 are wanted"):
        posterior.samples(jax.random.key(0), y, 5)
    with pytest.raises(TypeError, match="not callable"):
        posterior.mean(y + 1)  # other measurements, other chains
    assert file.suffix == ".npz"


GIBBS_NUMBERS = {  # of 20,000 sweeps; standard errors up to .0008, and .003 for bernoulli
    ("laplace", "convolution"): "0.0256 0.0360 0.0419 0.2525 0.1734 .003676",
    ("student", "convolution"): "0.0225 0.0328 0.0389 0.2488 0.1353 .003014",
    ("bernoulli", "convolution"): "-0.0046 -0.0120 -0.0214 -0.2149 -0.5694 .002147",
    ("laplace", "fourier"): "0.0070 0.0246 0.0106 0.1992 0.1811 .003552",
    ("bernoulli", "fourier"): "-0.0021 -0.0043 -0.0112 -0.2014 -0.6097 .001534",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "operator"), GIBBS_NUMBERS)
def test_gibbs_has_the_specified_numbers(name, operator, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    matrix = signal_matrix(operator)
    posterior = GibbsPosterior(INCREMENTS[name], SUM, matrix, 0.05, burn_in=500, num_sweeps=4000)
    y = np.repeat(measured(matrix, signal_of(name), 0.05), 4, 0)
    expected = numbers(GIBBS_NUMBERS[name, operator])
    tolerance = 0.006 if name == "bernoulli" else 0.002
    np.testing.assert_allclose(posterior.mean(y).mean(0).ravel()[SHOWN], expected[:5], atol=tolerance)
    assert posterior.variance(y).mean() / 64 == pytest.approx(expected[5], rel=0.05)


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("convolution", "0.036764 0.048499 0.050453 0.218610 0.187744 .00415224"),
        ("fourier", "0.016546 0.046999 0.013195 0.164004 0.199660 .00395486"),
    ],
)
def test_gibbs_is_exact_in_the_mean_for_gaussians(operator, expected, tmp_path, monkeypatch):
    """Its means are those given the variances of u, which are known there: no error of sampling is left."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    matrix = signal_matrix(operator)
    posterior = GibbsPosterior(INCREMENTS["gauss"], SUM, matrix, 0.05, burn_in=0, num_sweeps=300)
    y = measured(matrix, signal_of("gauss"), 0.05)
    np.testing.assert_allclose(posterior.mean(y).ravel()[SHOWN], numbers(expected)[:5], atol=6e-7)
    assert posterior.variance(y)[0] / 64 == pytest.approx(numbers(expected)[5], rel=0.1)


def test_every_cell_holds_together():
    assert set(DEFAULT) < set(FULL) == set(CELLS)
    for name in CELLS:
        if name.startswith("G32"):
            continue
        cell = CELLS[name]()
        check_pytree("prior", cell.prior)
        check_pytree("operator", cell.operator)
        assert cell.name == name and cell.num_problems > 0
        assert cell.prior.image_shape == cell.operator.image_shape
        rows = int(cell.operator.observed().sum())
        assert rows == len(cell.posterior.matrix) and cell.sigma_y == cell.posterior.sigma_y
        np.testing.assert_allclose(cell.operator.matrix[:rows], cell.posterior.matrix, atol=1e-6)
        x = cell.posterior.truths(jax.random.key(0), 1000)
        assert x.shape == (1000, *cell.prior.image_shape)
        if "student" not in name and name[0] != "M":  # the mixture's means come on top
            assert x.var(0).mean() == pytest.approx(0.25, rel=0.15)


def test_cells_of_one_shape_share_programs():
    def shapes(cell):
        leaves, structure = jax.tree.flatten((cell.prior, cell.operator))
        return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    pictures = [shapes(CELLS[name]()) for name in ("G8/sample", "G8/blur", "M8/quadrants", "M8/sample8")]
    signals = [shapes(CELLS[f"S-laplace/{operator}"]()) for operator in ("identity", "convolution")]
    for group in (pictures, signals):
        assert all(one == other for one, other in itertools.pairwise(group))
