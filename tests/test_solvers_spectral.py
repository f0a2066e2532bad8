"""DDRM, DDNM+ and PiGDM against plain float64 loops with dense matrices, and against closed forms."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from oracles import ALPHA_BAR, timesteps

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.solvers import DDNM, DDRM, PiGDM
from ddiff_jax.types import to_type

pytestmark = pytest.mark.once

SHAPE = (8, 8, 2)
MEAN, VAR = 0.1, 0.2
ORACLE = 1e-5  # relative; float32 against float64
BLUR = 1e-4  # the same where divisions by singular values near 0.01 magnify the rounding of the float32 factors

OPERATORS = {
    "super-resolution": (lambda: operators.super_resolution(SHAPE, factor=2), ORACLE),
    "inpainting": (lambda: operators.random_inpainting(SHAPE, jax.random.key(0), fraction=0.5), ORACLE),
    "blur": (lambda: operators.gaussian_blur(SHAPE, size=5, std=0.8), BLUR),
}


@pytest.fixture(scope="module", params=OPERATORS)
def case(request):
    build, tolerance = OPERATORS[request.param]
    operator = build()
    return operator, dense(operator), tolerance


def dense(operator):
    """Tabulate a real operator as a matrix."""
    size = int(np.prod(SHAPE))
    images = jnp.eye(size, dtype=jnp.float32).reshape(size, *SHAPE)
    return np.asarray(jax.vmap(operator.forward)(images), np.float64).reshape(size, -1).T


def first_row(solver):
    return jax.tree.map(lambda column: column[0], to_type(solver.grid(dd.linear_schedule()), jnp.float32))


def levels(t):
    """Return ab and 1 - ab, with ab = 1 at t = -1."""
    return (ALPHA_BAR[t], 1 - ALPHA_BAR[t]) if t >= 0 else (1.0, 0.0)


def gaussian(x_t, t):
    """Predict noise and clean image under independent Gaussian pixels."""
    ab, noise_var = levels(t)
    eps = np.sqrt(noise_var) * (x_t - np.sqrt(ab) * MEAN) / (ab * VAR + noise_var)
    return eps, (x_t - np.sqrt(noise_var) * eps) / np.sqrt(ab)


def full_svd(matrix):
    """Decompose with a square V; singular values are padded with zeros."""
    u, s, vt = np.linalg.svd(matrix)
    s = np.concatenate([s, np.zeros(len(vt) - len(s))])
    return u, np.where(s > 3.5e-4 * s.max(), s, 0.0), vt


def on_range(u, s, y):
    """Compute U^T y, 0 where s is."""
    out = np.zeros(len(s))
    count = min(len(s), u.shape[1])
    out[:count] = (u.T @ y)[:count]
    return np.where(s > 0, out, 0.0)


def ddrm_loop(matrix, y, x_t, timesteps, tape, sigma_y, eta, eta_b):
    u, s, vt = full_svd(matrix)
    y_bar = np.divide(on_range(u, s, y), s, where=s > 0, out=np.zeros(len(s)))
    for n, (t, t_next) in zip(tape, itertools.pairwise(timesteps), strict=True):
        eps, x0 = gaussian(x_t, t)
        ab, noise_var = levels(t_next)
        sigma = np.sqrt(noise_var / ab)
        x, e, n_bar = vt @ x0, vt @ eps, vt @ n
        out = np.zeros(len(s))
        for i in range(len(s)):
            if s[i] == 0:
                out[i] = x[i] + np.sqrt(1 - eta**2) * sigma * e[i] + eta * sigma * n_bar[i]
            elif s[i] * sigma < sigma_y:
                pull = s[i] * (y_bar[i] - x[i]) / sigma_y
                out[i] = x[i] + np.sqrt(1 - eta**2) * sigma * pull + eta * sigma * n_bar[i]
            else:
                std = np.sqrt(max(sigma**2 - eta_b**2 * sigma_y**2 / s[i] ** 2, 0))
                out[i] = (1 - eta_b) * x[i] + eta_b * y_bar[i] + std * n_bar[i]
        x_t = np.sqrt(ab) * (vt.T @ out)
    return x_t


def ddnm_loop(matrix, y, x_t, timesteps, tape, sigma_y, eta):
    u, s, vt = full_svd(matrix)
    for n, (t, t_next) in zip(tape, itertools.pairwise(timesteps), strict=True):
        eps, x0 = gaussian(x_t, t)
        ab, sigma2 = levels(t_next)
        residual = on_range(u, s, matrix @ x0 - y)
        fresh, mixed = vt @ n, vt @ (eta * n + np.sqrt(1 - eta**2) * eps)
        change, filled = np.zeros(len(s)), np.sqrt(sigma2) * mixed
        for i in np.flatnonzero(s):
            most = np.sqrt(ab) * sigma_y / s[i]
            is_clean = np.sqrt(sigma2) >= most
            lam = 1.0 if is_clean else np.sqrt((1 - eta**2) * sigma2) / most
            change[i] = lam * residual[i] / s[i]
            filled[i] = np.sqrt(max(sigma2 - (lam * most) ** 2, 0)) * (mixed[i] if is_clean else fresh[i])
        x_t = np.sqrt(ab) * (x0 - vt.T @ change) + vt.T @ filled
    return x_t


def pigdm_loop(matrix, y, x_t, timesteps, tape, sigma_y, eta, var, posterior):
    size = matrix.shape[0]
    for n, (t, t_next) in zip(tape, itertools.pairwise(timesteps), strict=True):
        eps, x0 = gaussian(x_t, t)
        (ab, v), (ab_next, v_next) = levels(t), levels(t_next)
        r2 = var * v / (ab * var + v)
        q = matrix.T @ np.linalg.solve(matrix @ matrix.T + sigma_y**2 / r2 * np.eye(size), y - matrix @ x0)
        g = np.sqrt(ab) * VAR / (ab * VAR + v) * q  # the derivative of x0_hat is a multiple of the identity
        c1 = eta * np.sqrt((1 - ab / ab_next) * v_next / v)
        c2 = np.sqrt(v_next - c1**2)
        if posterior:
            x0, eps = x0 + v / np.sqrt(ab) * g / r2, eps - np.sqrt(v) * g / r2
            x_t = np.sqrt(ab_next) * x0 + c1 * n + c2 * eps
        else:
            x_t = np.sqrt(ab_next) * x0 + c1 * n + c2 * eps + np.sqrt(ab * ab_next) * g
    return x_t


@functools.cache
def draws(num_steps):
    """Make a start and noise to replay."""
    return jax.random.normal(jax.random.key(2), SHAPE), jax.random.normal(jax.random.key(3), (num_steps, 1, *SHAPE))


def run(solver, operator, y, sigma_y):
    x_init, tape = draws(solver.num_steps)
    prior = gaussian_prior(SHAPE, MEAN, VAR, clip=False)
    return jax.jit(dd.solve_one)(solver, prior, dd.Problem(operator, y, sigma_y), jax.random.key(0), tape, x_init).x


def distance_to(loop, solver, operator, matrix, sigma_y, **arguments):
    """Run solver and loop on the same measurement, start and noise; return their relative distance."""
    y = operator.forward(jax.random.normal(jax.random.key(1), SHAPE)) + 0.1
    got = np.asarray(run(solver, operator, y, sigma_y), np.float64).ravel()
    y, x_init, tape = (np.asarray(a, np.float64) for a in (y, *draws(solver.num_steps)))
    tape = tape.reshape(solver.num_steps, -1)
    walked = timesteps(solver.num_steps, "strided")
    want = loop(matrix, y.ravel(), x_init.ravel(), walked, tape, sigma_y=sigma_y, **arguments)
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
def test_ddrm_equals_a_float64_loop(case, sigma_y):
    operator, matrix, tolerance = case
    distance = distance_to(ddrm_loop, DDRM(eta_b=0.9), operator, matrix, sigma_y, eta=0.85, eta_b=0.9)
    assert distance < tolerance


# At 0.2 no singular value comes close to its switch, where the root of the missing variance magnifies rounding.
@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
def test_ddnm_equals_a_float64_loop(case, sigma_y):
    operator, matrix, tolerance = case
    assert distance_to(ddnm_loop, DDNM(num_steps=20), operator, matrix, sigma_y, eta=0.85) < tolerance


@pytest.mark.parametrize("guidance", ["published", "score"])
def test_pigdm_equals_a_float64_loop(case, guidance):
    operator, matrix, tolerance = case
    solver = PiGDM(eta=0.7, var=0.5, num_steps=20, guidance=guidance)
    posterior = guidance == "score"
    distance = distance_to(pigdm_loop, solver, operator, matrix, 0.3, eta=0.7, var=0.5, posterior=posterior)
    assert distance < tolerance


def test_starts_are_the_published_ones(case):
    """DDRM starts at the data with noise filled up to the first level, PiGDM at the noised pseudo-inverse."""
    operator, matrix, _ = case
    y = operator.forward(jax.random.normal(jax.random.key(1), SHAPE))
    prior, key = gaussian_prior(SHAPE), jax.random.key(4)
    u, s, vt = full_svd(matrix)
    n = vt @ np.asarray(dd.KeyNoise(key).draw(0, SHAPE), np.float64).ravel()
    seen = on_range(u, s, np.asarray(y, np.float64).ravel())
    for sigma_y in (0.3, 40.0):
        problem = dd.Problem(operator, y, sigma_y)
        ab, noise_var = levels(950)
        sigma, want = np.sqrt(noise_var / ab), np.zeros(len(s))
        for i in range(len(s)):
            use_data = s[i] * sigma > sigma_y
            missing = np.sqrt(sigma**2 - sigma_y**2 / s[i] ** 2) if use_data else 0.0
            want[i] = seen[i] / s[i] + missing * n[i] if use_data else sigma * n[i]
        got = DDRM().init(prior, problem, first_row(DDRM()), dd.KeyNoise(key)).x_t
        np.testing.assert_allclose(np.asarray(got).ravel(), np.sqrt(ab) * vt.T @ want, atol=1e-4)
    ab, noise_var = levels(990)
    inverse = np.divide(seen, s, where=s > 0, out=np.zeros(len(s)))
    got = PiGDM().init(prior, problem, first_row(PiGDM()), dd.KeyNoise(key)).x_t
    np.testing.assert_allclose(
        np.asarray(got).ravel(), vt.T @ (np.sqrt(ab) * inverse + np.sqrt(noise_var) * n), atol=1e-4
    )


def test_timesteps_are_the_published_ones():
    def strided(num_steps):
        return dd.linear_schedule().levels(num_steps, "strided").time

    np.testing.assert_array_equal(strided(20), [*range(950, -1, -50), -1])
    np.testing.assert_array_equal(strided(100), [*range(990, -1, -10), -1])
    np.testing.assert_array_equal(strided(1000), range(999, -2, -1))
    uneven = strided(300)
    assert len(uneven) == 301 and np.all(np.diff(uneven) < 0) and list(uneven[-2:]) == [0, -1]


@pytest.mark.parametrize("solver", [DDRM(), DDNM(num_steps=20)], ids=["ddrm", "ddnm"])
def test_a_measurement_without_noise_is_met_exactly(solver, case):
    operator, _, tolerance = case
    y = operator.forward(jax.random.normal(jax.random.key(1), SHAPE))
    np.testing.assert_allclose(operator.forward(run(solver, operator, y, 0.0)), y, atol=10 * tolerance)


@pytest.mark.parametrize("solver", [DDRM(), DDNM(num_steps=20)], ids=["ddrm", "ddnm"])
def test_under_noise_that_drowns_the_image_the_measurement_hardly_counts(solver, case):
    operator, _, _ = case
    y = operator.forward(jnp.full(SHAPE, 0.5))
    near, far = (run(solver, operator, y + shift, 1e4) for shift in (0.0, 10.0))
    assert 0 < np.max(np.abs(far - near)) < 0.02


def samples(solver, prior, operator, y, sigma_y, count):
    """Draw many solutions of one problem."""
    keys = jax.random.split(jax.random.key(5), count)
    problem = dd.Problem(operator, y, sigma_y)
    return np.asarray(jax.jit(jax.vmap(lambda key: dd.solve_one(solver, prior, problem, key).x))(keys), np.float64)


def posterior(matrix, y, sigma_y, var):
    """Mean and covariance of x given y for the Gaussian prior."""
    precision = matrix.T @ matrix / sigma_y**2 + np.eye(matrix.shape[1]) / var
    right = matrix.T @ np.asarray(y, np.float64).ravel() / sigma_y**2 + MEAN / var
    return np.linalg.solve(precision, right), np.linalg.inv(precision)


def test_pigdm_samples_the_posterior():
    """With "score", r_t^2 of the true variance and small steps; 5 standard errors, and 2% for the steps' size."""
    operator = OPERATORS["super-resolution"][0]()
    prior = gaussian_prior(SHAPE, MEAN, VAR, clip=False)
    y = operator.forward(jax.random.normal(jax.random.key(1), SHAPE) * 0.5)
    count, sigma_y = 512, 0.3
    solver = PiGDM(var=VAR, guidance="score", num_steps=500)
    x = samples(solver, prior, operator, y, sigma_y, count).reshape(count, -1)
    mean, covariance = posterior(dense(operator), y, sigma_y, VAR)
    std = np.sqrt(np.diag(covariance))
    assert np.max(np.abs(x.mean(0) - mean) / std) < 5 / np.sqrt(count) + 0.02
    assert np.max(np.abs(x.std(0) / std - 1)) < 5 / np.sqrt(2 * count) + 0.02


def test_pigdm_as_published_restores_the_mean_where_data_have_no_noise():
    operator = OPERATORS["inpainting"][0]()
    prior = gaussian_prior(SHAPE, MEAN, VAR, clip=False)
    y = operator.forward(jax.random.normal(jax.random.key(1), SHAPE) * 0.5)
    x = samples(PiGDM(), prior, operator, y, 0.0, 128)
    seen = np.broadcast_to(np.asarray(operator.mask) > 0, SHAPE)
    np.testing.assert_allclose(x.mean(0)[seen], np.asarray(y)[seen], atol=0.01)
    assert np.max(np.abs(x.mean(0)[~seen] - MEAN)) < 5 * np.sqrt(VAR / 128)


@pytest.mark.parametrize("solver", [DDRM(), DDNM(), PiGDM()], ids=["ddrm", "ddnm", "pigdm"])
def test_operators_and_noise_models_that_do_not_serve_are_refused(solver):
    prior = gaussian_prior(SHAPE)
    hdr = operators.high_dynamic_range(SHAPE)
    with pytest.raises(ValueError, match="needs the operator's"):
        dd.solve_one(solver, prior, dd.Problem(hdr, jnp.zeros(SHAPE), 0.1), jax.random.key(0))
    operator = operators.super_resolution(SHAPE, factor=2)
    y = jnp.zeros((4, 4, 2))
    with pytest.raises(ValueError, match="assumes Gaussian noise"):
        dd.solve_one(solver, prior, dd.Problem(operator, y, 0.1, dd.Poisson(30.0)), jax.random.key(0))
    keys = dd.image_keys(jax.random.key(0), jnp.arange(1))
    with pytest.raises(ValueError, match="assumes Gaussian noise"):
        dd.solve(solver, prior, dd.Problem(operator, y[None], 0.1, dd.Poisson(30.0)), keys)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDRM(eta=1.5), "eta must be fraction"),
        (lambda: DDNM(eta=-0.1), "eta must be fraction"),
        (lambda: PiGDM(var=0.0), "var must be positive"),
        (lambda: PiGDM(weight=-1.0), "weight must be non-negative"),
        (lambda: DDRM(num_steps=1001).grid(dd.linear_schedule()), "number of steps"),
    ],
)
def test_bad_hyper_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
