"""MMPS against plain float64 loops, and against the law of its samples where that is known."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from mmps_oracle import (
    SOLVE,
    START,
    ddim,
    ddpm,
    heun,
    image,
    measured,
    mixing_denoiser,
    noise,
    poly,
    posterior_denoiser,
    system,
)

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.levels import Schedule
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers import MMPS
from ddiff_jax.solvers.mmps import State
from ddiff_jax.types import ImageShape, to_type

pytestmark = pytest.mark.once

SIGMA_Y = 0.05
FLOAT64, FLOAT32 = 1e-9, 1e-4  # relative


@pytree_dataclass
class Mixing:
    """The prior of the recorded values: pixels of two modes each, mirrored at a vector that mixes them all."""

    h: jax.Array
    schedule: Schedule = static_field()
    image_shape: ImageShape = static_field(default=(8, 8, 3))

    def denoise(self, x_t, level):
        h = self.h.astype(x_t.dtype)
        x, sigma2 = jnp.moveaxis(x_t, -1, 0).ravel() / level.signal, level.ratio**2
        z = x - 2 * h * jnp.vdot(h, x)
        total = 0.04 + sigma2
        z = (0.04 * z + sigma2 * 0.5 * jnp.tanh(0.5 * z / total)) / total
        return jnp.moveaxis((z - 2 * h * jnp.vdot(h, z)).reshape(3, 8, 8), 0, -1)


def mixing_prior():
    h = np.cos(0.3 * np.arange(192) + 0.2)
    return Mixing(jnp.asarray(h / np.linalg.norm(h)), dd.linear_schedule())


def picture(flat):
    return np.moveaxis(np.reshape(flat, (3, 8, 8)), 0, -1)


def flat(picture):
    return np.moveaxis(np.asarray(picture, np.float64), -1, 0).ravel()


def box_mean():
    """The same operator as the oracle's matrix, from plain JAX."""
    return operators.from_function(
        lambda x: jnp.moveaxis(x.reshape(2, 4, 2, 4, 3).mean((1, 3)), -1, 0).ravel(), (8, 8, 3), linear=True
    )


@jax.jit
def _step(method, prior, problem, x_t, point):
    state, info = method.step(prior, problem, State(x_t, jnp.zeros_like(x_t)), point, dd.TapeNoise(x_t[None]))
    return state.x_t, info.misfit, info.solve_residual


def one_step(method, prior, problem, x, sigma):
    """Go from x = x_0 + sigma n, at this one level, to the clean image."""
    method = dataclasses.replace(method, sigma_max=sigma, num_steps=1)
    dtype = problem.y.real.dtype
    point = to_type(jax.tree.map(lambda column: jnp.asarray(column[0]), method.grid(prior.schedule)), dtype)
    return _step(method, prior, problem, jnp.asarray(prior.schedule.at(sigma).signal * x, dtype), point)


# Of D_y at image + sigma START: sigma, solver, iterations; first and last values, sum, and sum of squares.
RECORDED: dict[Any, Any] = {
    (0.5, "gmres", 1): (0.689286, 0.032890, -11.092266, 37.463238),
    (0.5, "cg", 1): (0.693568, 0.036473, -11.159015, 37.807348),
    (0.5, "cg", 3): (0.702628, 0.102321, -7.905696, 37.657639),
    (0.5, "gmres", 3): (0.702653, 0.102275, -7.905751, 37.657470),
    (0.5, "exact", 1): (0.702226, 0.102886, -7.922172, 37.660511),
    (5.0, "exact", 1): (0.583896, 0.494679, -6.182301, 24.433498),
    (0.05, "cg", 3): (0.037651, -0.230561, -7.932826, 56.997768),
}


def summary(x):
    return x[0], x[-1], x.sum(), (x**2).sum()


def test_the_denoiser_of_the_posterior_is_the_recorded_one(x64):
    matrix, y = measured()
    prior, problem = mixing_prior(), dd.Problem(box_mean(), jnp.asarray(y), SIGMA_Y)
    for (sigma, solver, iterations), want in RECORDED.items():
        at = posterior_denoiser(mixing_denoiser, matrix, y, SIGMA_Y, solver, iterations)
        expected = at(image() + sigma * START, sigma)
        np.testing.assert_allclose(summary(expected), want, atol=5.1e-7)
        method = MMPS(linear_solver=solver, iterations=iterations)
        x, misfit, residual = one_step(method, prior, problem, picture(image() + sigma * START), sigma)
        np.testing.assert_allclose(flat(x), expected, rtol=FLOAT64, atol=FLOAT64)
        x_0, _, m, b = system(mixing_denoiser, matrix, y, SIGMA_Y, image() + sigma * START, sigma)
        left = np.linalg.norm(m @ SOLVE[solver](m, b, iterations) - b) / np.linalg.norm(b)
        np.testing.assert_allclose(residual, left, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(misfit, np.mean((matrix @ x_0 - y) ** 2), rtol=FLOAT64)


RUNS = {
    "eta 0, one iteration": (
        {"eta": 0.0, "sampler": "ddim", "linear_solver": "gmres", "iterations": 1, "num_steps": 20},
        (0.953993, 0.975634, 0.830306, 0.581254, -0.789366, -0.802686, -6.442976, 57.028617),
    ),
    "eta 1, three": (
        {"eta": 1.0, "sampler": "ddpm", "linear_solver": "cg", "iterations": 3, "num_steps": 20},
        (0.607572, -0.171184, 0.743566, -0.373335, 0.367001, -0.869627, -5.052125, 63.015620),
    ),
    "eta 1, exact": (
        {"eta": 1.0, "sampler": "ddim", "linear_solver": "exact", "iterations": 1, "num_steps": 50},
        (0.661279, 0.175232, 0.776548, 0.385605, -0.278893, -0.786037, -6.556694, 41.715620),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_whole_runs_are_the_recorded_ones(name):
    options, want = RUNS[name]
    matrix, y = measured()
    num_steps, solver, iterations = options["num_steps"], options["linear_solver"], options["iterations"]
    at = posterior_denoiser(mixing_denoiser, matrix, y, SIGMA_Y, solver, iterations)
    expected = ddim(at, START, num_steps, options["eta"])
    np.testing.assert_allclose([*expected[:6], expected.sum(), (expected**2).sum()], want, atol=5.1e-7)
    tape = np.stack([[picture(noise(k + 1))] for k in range(num_steps)])
    for wide, tolerance in ((True, FLOAT64), (False, FLOAT32))[: 1 + (solver == "cg")]:
        with jax.enable_x64(wide):
            problem = dd.Problem(box_mean(), jnp.asarray(y, float), SIGMA_Y)
            given = (jnp.asarray(tape, float), jnp.asarray(picture(START), float))
            method = MMPS(**options, levels="strided")
            x = jax.jit(dd.solve_one)(method, mixing_prior(), problem, jax.random.key(0), *given).x
            assert np.linalg.norm(flat(x) - expected) < tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("sampler", ["heun", "ddpm"])
def test_samplers_on_spaced_levels_equal_plain_loops(sampler, x64):
    matrix, y = measured()
    at = posterior_denoiser(mixing_denoiser, matrix, y, SIGMA_Y, "cg", 3)
    method = MMPS(num_steps=8, sampler=sampler)
    prior, tape = mixing_prior(), np.stack([noise(k) for k in range(8)])
    first = 80 * START
    expected = heun(at, first, poly(8)) if sampler == "heun" else ddpm(at, first, poly(8), tape)
    x_init = prior.schedule.at(80.0).signal * picture(first)
    draws = jnp.asarray(np.stack([picture(n)[None] for n in tape]))
    problem = dd.Problem(box_mean(), jnp.asarray(y), SIGMA_Y)
    draws = jnp.zeros((15, 1, 8, 8, 3)) if sampler == "heun" else draws
    solution = jax.jit(dd.solve_one)(method, prior, problem, jax.random.key(0), draws, jnp.asarray(x_init))
    assert np.linalg.norm(flat(solution.x) - expected) < FLOAT64 * np.linalg.norm(expected)
    assert solution.cost.network_evaluations == (15 if sampler == "heun" else 8)


@pytree_dataclass
class Structured:
    """Gaussian images whose covariance is diagonal in the orthonormal cosine basis: G(n) of the recorded laws."""

    basis: jax.Array  # [n, n], functions in columns
    variances: jax.Array
    schedule: Schedule = static_field()
    image_shape: ImageShape = static_field()

    def predict(self, x_t, level):
        basis, variances = (leaf.astype(x_t.dtype) for leaf in (self.basis, self.variances))
        scaled = (basis.T @ x_t[..., 0] @ basis) / (level.signal**2 * variances + level.sigma**2)
        x_0, eps = (basis @ (weight * scaled) @ basis.T for weight in (level.signal * variances, level.sigma))
        return x_0[..., None], eps[..., None]

    def denoise(self, x_t, level):
        return self.predict(x_t, level)[0]


@functools.cache
def structured(n=8):
    """Tabulate the basis and the variances, of 0.25 per pixel on average; and the covariance."""
    k = np.arange(n)
    basis = np.sqrt(2 / n) * np.cos(np.pi * (k[:, None] + 0.5) * k / n)
    basis[:, 0] /= np.sqrt(2)
    variances = (1 + (k[:, None] ** 2 + k**2) / 4) ** -1.5
    variances *= 0.25 * n**2 / variances.sum()
    both = np.kron(basis, basis)
    return basis, variances, both @ np.diag(variances.ravel()) @ both.T


def structured_prior(n=8):
    basis, variances, _ = structured(n)
    return Structured(jnp.asarray(basis, float), jnp.asarray(variances, float), dd.linear_schedule(), (n, n, 1))


@functools.cache
def matrix_of(kind, n=8):
    """Half of the pixels, or a circular blur over seven."""
    j = np.arange(n * n)
    if kind == "sample":
        kept = np.sort(np.argsort((j + 1) * 0.6180339887498949 % 1)[: n * n // 2])
        return np.eye(n * n)[kept]
    taps = np.exp(-(np.arange(-3, 4.0) ** 2) / 2)
    line = sum(tap / taps.sum() * np.roll(np.eye(n), d, axis=0) for tap, d in zip(taps, range(-3, 4), strict=True))
    return np.kron(line, line)


@pytree_dataclass
class Matrix(operators.LinearOperator):
    """A dense operator."""

    entries: jax.Array
    image_shape: ImageShape = static_field(default=(8, 8, 1))

    def forward(self, x):
        return self.entries.astype(x.dtype) @ x.ravel()


@jax.jit
def propagate(grid, entries, std):
    """Propagate mean and covariance of the state by the solver's own steps: x ~ N(mean y, covariance) for every y.

    The start is N(0, std^2 I). The steps are linear in state, measurement and draw; their matrices are the images of
    unit vectors.
    """
    method, prior = MMPS(linear_solver="exact"), structured_prior()
    m, size = entries.shape
    halves = 1 if grid.w_anchor is None else 2
    num_draws = 0 if grid.w_n is None else size

    def advance(point, given):
        state, y, n = jnp.split(given, (halves * size, halves * size + m))
        parts = state.reshape(halves, *prior.image_shape)
        problem, noise = dd.Problem(Matrix(entries), y, SIGMA_Y), dd.TapeNoise(n.reshape(-1, *prior.image_shape))
        after, _ = method.step(prior, problem, State(parts[0], *parts[1:]), point, noise)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(after)])

    def body(carry, point):
        mean, covariance = carry
        images = jax.vmap(functools.partial(advance, point))(jnp.eye(halves * size + m + num_draws)).T
        of_state, of_y, of_noise = jnp.split(images, (halves * size, halves * size + m), axis=1)
        return (of_state @ mean + of_y, of_state @ covariance @ of_state.T + of_noise @ of_noise.T), None

    start = jnp.zeros((halves * size, halves * size)).at[:size, :size].set(std**2 * jnp.eye(size))
    (mean, covariance), _ = jax.lax.scan(body, (jnp.zeros((halves * size, m)), start), grid)
    return mean[:size], covariance[:size, :size]


def law(method, kind):
    """Find the law that a method's samples have."""
    grid = to_type(method.grid(dd.linear_schedule()), jnp.float64)
    # As recorded: the solver's own start, N(0, I) at all levels, adds 1e-4 to the spread from the first spaced one.
    std = grid.level.sigma[0] if method.levels == "spaced" else jnp.ones(())
    return tuple(np.asarray(part) for part in propagate(grid, jnp.asarray(matrix_of(kind)), std))


def judged(mean, covariance, kind):
    """Compare a law with the posterior: gap in dB, spread, coverage of 50 and 90 %, and Wasserstein distance."""
    matrix, (_, _, prior) = matrix_of(kind), structured()
    of_y = matrix @ prior @ matrix.T + SIGMA_Y**2 * np.eye(len(matrix))
    gain = np.linalg.solve(of_y, matrix @ prior).T
    posterior = prior - gain @ matrix @ prior
    off = (mean - gain) @ of_y @ (mean - gain).T
    total, spread = np.trace(posterior), np.diag(covariance) / (np.diag(posterior) + np.diag(off))
    quantiles = (0.6744897501960817, 1.6448536269514722)
    coverage = [np.mean([math.erf(z * math.sqrt(max(s, 0) / 2)) for s in spread]) for z in quantiles]
    values, vectors = np.linalg.eigh(posterior)
    half = vectors * np.sqrt(values) @ vectors.T
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(half @ covariance @ half), 0)).sum()
    distance = np.trace(off) + total + np.trace(covariance) - 2 * roots
    return [
        10 * np.log10(1 + np.trace(off) / total),
        np.sqrt(np.trace(covariance) / total),
        *coverage,
        np.sqrt(max(distance, 0) / total),
    ]


K100 = {"num_steps": 100, "linear_solver": "exact"}
# gap in dB, spread, coverage of 50 and of 90 %, Wasserstein distance; for both operators
LAWS = {
    "strided, 20 steps, eta 1": (
        MMPS(num_steps=20, sampler="ddpm", levels="strided", linear_solver="exact"),
        {"sample": (0, 0.7510, 0.2805, 0.5970, 0.2658), "blur": (0, 0.6864, 0.3523, 0.7345, 0.3221)},
    ),
    "strided, eta 1": (
        MMPS(eta=1.0, sampler="ddim", levels="strided", **K100),
        {"sample": (0, 0.9199, 0.4080, 0.8015, 0.0913), "blur": (0, 0.8925, 0.4510, 0.8561, 0.1118)},
    ),
    "strided, eta 0": (
        MMPS(sampler="ddim", levels="strided", **K100),
        {"sample": (0, 0.9621, 0.4449, 0.8465, 0.0471), "blur": (0, 0.9482, 0.4766, 0.8803, 0.0550)},
    ),
    "spaced, eta 1": (
        MMPS(sampler="ddpm", **K100),
        {"sample": (0, 0.9436, 0.4684, 0.8728, 0.0567), "blur": (0, 0.9400, 0.4738, 0.8778, 0.0601)},
    ),
    "spaced, Heun": (
        MMPS(**K100),
        {"sample": (0.0002, 1.0006, 0.4964, 0.8971, 0.0066), "blur": (0.0001, 1.0005, 0.5002, 0.9002, 0.0041)},
    ),
}
QUICK = (
    ("spaced, eta 1", "sample"),
    ("strided, eta 0", "sample"),
    ("spaced, Heun", "sample"),
    ("spaced, Heun", "blur"),
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in QUICK else [pytest.mark.slow])
        for name in LAWS
        for kind in ("sample", "blur")
    ],
)
def test_samples_have_the_recorded_law(name, kind, x64):
    method, want = LAWS[name]
    mean, covariance = law(method, kind)
    np.testing.assert_allclose(judged(mean, covariance, kind), want[kind], atol=5.1e-5)


def given_both(matrix, y, x, sigma, covariance):
    """Compute E[x_0 | x_0 + sigma n = x, y] for x_0 ~ N(0, covariance)."""
    precision = np.linalg.inv(covariance) + np.eye(x.size) / sigma**2 + matrix.T @ matrix / SIGMA_Y**2
    return np.linalg.solve(precision, x / sigma**2 + matrix.T @ y / SIGMA_Y**2)


MASK = np.random.RandomState(0).rand(8, 8) < 0.4


def fourier_case(rng):
    """Sample frequencies; the matrix has the real parts of those observed, then the imaginary ones. NaN is hidden."""
    operator = operators.fourier((8, 8, 1), MASK)
    rows = np.array(jax.vmap(operator.forward)(jnp.eye(64).reshape(64, 8, 8, 1)))[:, MASK, 0].T
    numbers = rng.standard_normal(2 * len(rows))
    y = np.full((8, 8, 1), np.nan + 0j)
    y[MASK, 0] = numbers[: len(rows)] + 1j * numbers[len(rows) :]
    return operator, y, np.concatenate([np.real(rows), np.imag(rows)]), numbers


def blur_case(rng):
    y, matrix = rng.standard_normal(64), matrix_of("blur")
    return Matrix(jnp.asarray(matrix)), y, matrix, y


@pytest.mark.parametrize(
    ("case", "solver"), [(blur_case, "cg"), (blur_case, "gmres"), (fourier_case, "cg"), (fourier_case, "exact")]
)
def test_under_a_gaussian_prior_a_step_finds_the_mean_given_image_and_data(case, solver, x64):
    """So it is for complex data, of which hidden entries count for nothing, as for real ones."""
    prior, (_, _, covariance), rng = structured_prior(), structured(), np.random.RandomState(1)
    operator, y, matrix, numbers = case(rng)
    x = rng.standard_normal((8, 8, 1))
    method = MMPS(linear_solver=solver, iterations=128)
    got, _, residual = one_step(method, prior, dd.Problem(operator, jnp.asarray(y), SIGMA_Y), x, 0.7)
    want = given_both(matrix, numbers, x.ravel(), 0.7, covariance)
    np.testing.assert_allclose(np.ravel(got), want, rtol=1e-8, atol=1e-8)
    assert residual < 1e-10


def test_the_covariance_is_the_transposed_jacobian_also_where_it_is_not_symmetric(x64):
    rng = np.random.RandomState(2)
    weights = 0.5 * np.eye(64) + 0.05 * rng.standard_normal((64, 64))
    prior = dd.from_denoiser(
        lambda w, x, sigma: (w @ x.ravel()).reshape(x.shape),
        kind="denoiser",
        image_shape=(8, 8, 1),
        params=jnp.asarray(weights),
    )
    matrix, y, x = matrix_of("blur"), rng.standard_normal(64), rng.standard_normal((8, 8, 1))
    at = posterior_denoiser(lambda x, sigma: (weights @ x, weights), matrix, y, SIGMA_Y, "exact")
    for solver in ("gmres", "exact"):
        problem = dd.Problem(Matrix(jnp.asarray(matrix)), jnp.asarray(y), SIGMA_Y)
        got, *_ = one_step(MMPS(linear_solver=solver, iterations=64), prior, problem, x, 0.7)
        np.testing.assert_allclose(np.ravel(got), at(x.ravel(), 0.7), rtol=1e-8, atol=1e-8)


def test_a_nonlinear_operator_is_linearised_at_the_denoised_image(x64):
    prior, (_, _, covariance), rng = structured_prior(), structured(), np.random.RandomState(3)
    matrix, x = matrix_of("blur"), rng.standard_normal((8, 8, 1))
    operator = operators.from_function(lambda x: jnp.tanh(jnp.asarray(matrix, x.dtype) @ x.ravel()), (8, 8, 1))
    assert not hasattr(operator, "adjoint")
    y = np.tanh(matrix @ rng.standard_normal(64))
    problem = dd.Problem(operator, jnp.asarray(y), SIGMA_Y)
    got, *_ = one_step(MMPS(linear_solver="exact"), prior, problem, x, 0.7)
    x0_hat = covariance @ np.linalg.solve(covariance + 0.7**2 * np.eye(64), x.ravel())
    slope = (1 - np.tanh(matrix @ x0_hat) ** 2)[:, None] * matrix
    shifted = y - np.tanh(matrix @ x0_hat) + slope @ x0_hat
    want = given_both(slope, shifted, x.ravel(), 0.7, covariance)
    np.testing.assert_allclose(np.ravel(got), want, rtol=1e-8, atol=1e-8)


def test_a_direction_without_curvature_is_left_out():
    """Of a denoiser whose Jacobian is negative M is not positive: conjugate gradients stand still, nothing is NaN."""
    prior = dd.from_denoiser(lambda x, sigma: -x, kind="denoiser", image_shape=(8, 8, 1))
    problem = dd.Problem(Matrix(jnp.asarray(matrix_of("sample"), jnp.float32)), jnp.ones(32), SIGMA_Y)
    x, _, residual = one_step(MMPS(), prior, problem, np.full((8, 8, 1), 0.5), 1.0)
    np.testing.assert_allclose(x, -0.5, rtol=1e-6)
    np.testing.assert_allclose(residual, 1.0)


def test_data_that_fit_exactly_change_nothing_and_have_finite_derivatives():
    prior = gaussian_prior((8, 8, 1), 0.0, 0.2)
    operator = Matrix(jnp.asarray(matrix_of("sample"), jnp.float32))

    @functools.partial(jax.grad, has_aux=True)
    def slope(y):
        problem, zero = dd.Problem(operator, y, SIGMA_Y), np.zeros((8, 8, 1))
        made = [one_step(MMPS(linear_solver=solver), prior, problem, zero, 1.0) for solver in ("cg", "gmres", "exact")]
        return sum(jnp.sum(x) + residual for x, _, residual in made), made

    slopes, made = jax.jit(slope)(jnp.zeros(32))
    assert jnp.isfinite(slopes).all() and jnp.all(slopes != 0)
    for leaf in jax.tree.leaves(made):
        np.testing.assert_array_equal(leaf, 0)


LARGE = {
    "768": lambda: operators.gaussian_blur((16, 16, 3), size=5, std=1.0),
    "800": lambda: operators.fourier((20, 20, 1), np.ones((20, 20))),
}


@pytest.mark.parametrize("size", LARGE)
def test_an_exact_solution_of_a_large_measurement_is_refused(size):
    operator = LARGE[size]()
    y = jax.eval_shape(operator.forward, jax.ShapeDtypeStruct(operator.image_shape, jnp.float32))
    y = jnp.zeros((2, *y.shape), y.dtype)
    prior, method = gaussian_prior(operator.image_shape), MMPS(linear_solver="exact")
    keys = dd.image_keys(jax.random.key(0), jnp.arange(2))
    for call in (
        lambda: dd.solve_one(method, prior, dd.Problem(operator, y[0], 0.1), keys[0]),
        lambda: dd.solve(method, prior, dd.Problem(operator, y, 0.1), keys),
    ):
        with pytest.raises(ValueError, match=f'up to 512 numbers.*this one holds {size}: choose linear_solver="cg"'):
            call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMPS(eta=1.5), "eta must be fraction"),
        (lambda: MMPS(sigma_min=0.0), "sigma_min must be positive"),
        (lambda: MMPS(iterations=0), "iterations must be at least 1"),
        (lambda: MMPS(num_steps=0), "num_steps must be at least 1"),
        (lambda: MMPS(sampler="euler"), "sampler must be one of heun, ddpm, ddim"),  # pyright: ignore[reportArgumentType]
        (lambda: MMPS(linear_solver="lu"), "linear_solver must be one of"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_bad_hyper_parameters_are_refused(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


def test_levels_start_no_noisier_than_the_prior_knows():
    schedule = dd.EDMSchedule(sigma_max=5.0)
    ratios = np.asarray(MMPS(num_steps=4, sampler="ddpm").grid(schedule).level.ratio)
    np.testing.assert_allclose(ratios[[0, -1]], (5.0, 0.01), rtol=1e-5)
    assert np.all(np.diff(ratios) < 0)


def test_the_cost_of_exact_solutions_counts_the_numbers_of_one_measurement():
    """Also in a stack, where every image has its own mask."""
    masks = [operators.inpainting((4, 4, 1), np.random.RandomState(i).rand(4, 4) < 0.5) for i in range(2)]
    prior, method = gaussian_prior((4, 4, 1)), MMPS(num_steps=2, sampler="ddim", linear_solver="exact")
    stack, y = jax.tree.map(lambda *leaves: jnp.stack(leaves), *masks), jnp.ones((2, 4, 4, 1))
    keys = dd.image_keys(jax.random.key(0), jnp.arange(2))
    batch = dd.solve(method, prior, dd.Problem(stack, y, 0.1, operator_axis=0), keys)
    one = jax.jit(dd.solve_one)(method, prior, dd.Problem(masks[1], y[1], 0.1), keys[1])
    assert batch.cost == one.cost
    assert (one.cost.network_gradients, one.cost.operator_gradients, one.cost.network_evaluations) == (34, 34, 2)
    np.testing.assert_allclose(batch.x[1], one.x, atol=1e-5)
