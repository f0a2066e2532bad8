import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from oracles import ddiff, ddiff_memoryless, gaussian_denoise, perturbation, start, tape_row, to_least, wave

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.solvers import DDiff, DDiffHQS, DiffPnPADMM, Fixed, ToTheNoise
from ddiff_jax.types import to_type

pytestmark = pytest.mark.once

SIX_DIGITS = 4e-6  # the fixtures are printed with six digits; two runs in float32 and float64 end 2.5e-6 apart
CHAOTIC = 5e-3  # the deblurring fixture: float32 and float64 runs of the original end this far apart
ORACLE = 1e-5  # relative; a short run in float32 against float64
N = 8


def in_units_of_256(length, n):
    """The step length that DDiff scales back to `length` at n x n x 3."""
    return length / math.sqrt(n * n * 3 / (256 * 256 * 3))


def run_fixture(n, operator, solver):
    y = operator.forward(jnp.asarray(wave(n)))
    y = y + jnp.asarray(perturbation(y.shape[0]))
    tape = jnp.stack([jnp.asarray(tape_row(t + 1, n)) for t in range(999, 0, -1)])[:, None]
    problem = dd.Problem(operator, y, 0.05)
    prior = gaussian_prior((n, n, 3))
    solution = jax.jit(dd.solve_one)(solver, prior, problem, jax.random.key(0), tape, jnp.asarray(start(n)))
    return np.asarray(solution.x).transpose(2, 0, 1).ravel()


def test_super_resolution_fixture_of_the_released_code():
    operator = operators.super_resolution((16, 16, 3), factor=4)
    out = run_fixture(16, operator, DDiff(Fixed(in_units_of_256(0.3, 16)), t0=1))
    want = [0.084448, 0.118092, 0.025322, 0.077663, -0.078267, -0.002109]
    np.testing.assert_allclose(out[:6], want, atol=SIX_DIGITS)
    np.testing.assert_allclose(out[-3:], [-0.022061, -0.095185, -0.080350], atol=SIX_DIGITS)
    np.testing.assert_allclose(out.sum(), 0.00792633, atol=1e-5)


def test_gaussian_blur_fixture_of_the_released_code():
    operator = operators.gaussian_blur((32, 32, 3), size=61, std=3.0)
    solver = DDiff(Fixed(in_units_of_256(0.2, 32)), t0=50, noise_schedule="posterior")
    out = run_fixture(32, operator, solver)
    want = [0.431197, 0.526523, 0.409048, 0.053535, -0.189708, -0.257582]
    np.testing.assert_allclose(out[:6], want, atol=CHAOTIC)
    np.testing.assert_allclose(out[-3:], [0.073370, 0.301362, 0.011934], atol=CHAOTIC)
    np.testing.assert_allclose(out.sum(), 0.707863, atol=CHAOTIC)


@functools.cache
def small_problem():
    """A random dense operator on 8x8x3 images, with its matrix, and everything a run needs."""
    shape = (N, N, 3)
    keys = jax.random.split(jax.random.key(7), 3)
    operator = operators.random_inpainting(shape, keys[0], fraction=0.5)
    matrix = np.diag(np.broadcast_to(np.asarray(operator.mask, np.float64), shape).ravel())
    y = jax.random.normal(keys[1], shape)
    x_init = jax.random.normal(keys[2], shape)
    tape = jax.random.normal(jax.random.key(8), (1000, 1, *shape))
    return operator, matrix, y, x_init, tape


@pytest.mark.parametrize("num_steps", [40, 999])
@pytest.mark.parametrize("dual", ["released", "off"])
@pytest.mark.parametrize("noise_schedule", ["full", "posterior"])
def test_every_variant_equals_a_float64_loop(noise_schedule, dual, num_steps):
    operator, matrix, y, x_init, tape = small_problem()
    solver = DDiff(Fixed(20.0), t0=30, noise_schedule=noise_schedule, dual=dual, num_steps=num_steps)
    prior = gaussian_prior((N, N, 3), mean=0.1, var=0.2)
    solution = jax.jit(dd.solve_one)(solver, prior, dd.Problem(operator, y, 0.05), jax.random.key(0), tape, x_init)
    flat = [np.asarray(a, np.float64) for a in (y, x_init, tape)]
    states, _, _ = ddiff(
        matrix,
        flat[0].ravel(),
        flat[1].ravel(),
        to_least(num_steps),
        flat[2].reshape(1000, -1),
        gamma=20.0 * math.sqrt(N * N / 256**2),
        t0=30,
        posterior=noise_schedule == "posterior",
        dual=dual == "released",
        denoise=functools.partial(gaussian_denoise, mean=0.1, var=0.2, clip=True),
    )
    error = np.linalg.norm(np.asarray(solution.x).ravel() - states[-1]) / np.linalg.norm(states[-1])
    assert error < ORACLE


def test_unnormalised_step_of_the_paper_equals_a_float64_loop():
    operator, matrix, y, x_init, tape = small_problem()
    # At 0.05 the gradient of the negative log-likelihood is 400 times the residual: a stable step is below 1/400.
    solver = DDiff(Fixed(1e-4, normalise=False), num_steps=40, output="x")
    prior = gaussian_prior((N, N, 3))
    solution = jax.jit(dd.solve_one)(solver, prior, dd.Problem(operator, y, 0.05), jax.random.key(0), tape, x_init)
    flat = [np.asarray(a, np.float64) for a in (y, x_init, tape)]
    _, x, _ = ddiff(
        matrix,
        flat[0].ravel(),
        flat[1].ravel(),
        to_least(40),
        flat[2].reshape(1000, -1),
        gamma=1e-4,
        t0=1,
        posterior=False,
        normalise=False,
        denoise=functools.partial(gaussian_denoise, mean=0.0, var=0.25, clip=True),
    )
    error = np.linalg.norm(np.asarray(solution.x).ravel() - x) / np.linalg.norm(np.asarray(x))
    assert error < ORACLE


def test_the_dual_variable_has_no_memory():
    operator, matrix, y, x_init, tape = small_problem()
    solver = DDiff(Fixed(20.0), t0=1)
    prior = gaussian_prior((N, N, 3))
    solution = jax.jit(dd.solve_one)(solver, prior, dd.Problem(operator, y, 0.05), jax.random.key(0), tape, x_init)
    flat = [np.asarray(a, np.float64) for a in (y, x_init, tape)]
    want = ddiff_memoryless(
        matrix,
        flat[0].ravel(),
        flat[1].ravel(),
        to_least(None),
        flat[2].reshape(1000, -1),
        gamma=20.0 * math.sqrt(N * N / 256**2),
        t0=1,
        denoise=functools.partial(gaussian_denoise, mean=0.0, var=0.25, clip=True),
    )
    np.testing.assert_allclose(np.asarray(solution.x).ravel(), want, atol=1e-5)


def test_the_dual_variable_always_has_the_length_of_the_step():
    operator, _, y, x_init, _ = small_problem()
    solver = DDiff(Fixed(20.0))
    prior = gaussian_prior((N, N, 3))
    grid = to_type(solver.grid(prior.schedule), jnp.float32)
    problem = dd.Problem(operator, y, 0.05)
    state = solver.init(
        prior, problem, jax.tree.map(lambda column: column[0], grid), dd.KeyNoise(jax.random.key(0)), x_init
    )
    step = jax.jit(solver.step)
    for k in (0, 1, 500, 908, 909, 998):
        point = jax.tree.map(lambda column, k=k: column[k], grid)
        z = prior.denoise(state.x_t, point.level)
        state, info = step(prior, problem, state, point, dd.KeyNoise(jax.random.key(k)))
        want = 20.0 * (3.3 if point.level.time > 90 else 0.1) * math.sqrt(N * N / 256**2)
        np.testing.assert_allclose(np.linalg.norm(np.asarray(state.u)), want, rtol=1e-5)
        assert info.dual is not None
        assert info.gap is not None
        np.testing.assert_allclose(info.dual, want, rtol=1e-5)
        np.testing.assert_allclose(info.gap, np.linalg.norm(np.asarray(state.x - z)), rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"step_length": Fixed(20.0), "dual": "off"}])
def test_without_a_dual_variable_none_is_reported(fields):
    operator, _, y, x_init, _ = small_problem()
    solver = DDiff(num_steps=4, **fields)
    key = jax.random.key(0)
    info = dd.solve_one(solver, gaussian_prior((N, N, 3)), dd.Problem(operator, y, 0.05), key, x_init=x_init).info
    assert info.dual is None
    if solver.dual == "off":  # then x - z is the step
        assert info.gap is not None
        want = 20.0 * (3.3 * (np.asarray(to_least(4))[:-1] > 90)) * math.sqrt(N * N / 256**2)
        np.testing.assert_allclose(info.gap, want, rtol=1e-5)


def test_step_down_and_noise_stop_where_the_paper_says():
    grid = DDiff(Fixed(1.0), t0=50).grid(dd.linear_schedule())
    t = np.asarray(grid.level.time)
    np.testing.assert_allclose(np.asarray(grid.gamma), np.where(t > 90, 3.3, 0.1), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(grid.w_n) > 0, t > 50)
    assert t[0] == 999 and t[-1] == 1


def test_a_geometric_walk_starts_at_the_data_and_ends_in_the_image():
    schedule = dd.linear_schedule()
    grid = DDiff(num_steps=6, sigma_max=8.0, sigma_min=0.25).grid(schedule)
    np.testing.assert_allclose(grid.level.ratio, [8, 4, 2, 1, 0.5, 0.25], rtol=1e-9)
    np.testing.assert_allclose(grid.next_signal, [*np.asarray(grid.level.signal)[1:], 1], rtol=1e-9)
    np.testing.assert_allclose(grid.w_n, [*np.asarray(grid.level.sigma)[1:], 0], rtol=1e-6)
    assert DDiff(num_steps=6, sigma_max=1e9).grid(schedule).level.ratio[0] == schedule.at(1e9).ratio
    assert len(DDiff().grid(schedule).next_signal) == 1000 and len(DDiff(num_steps=1).grid(schedule).next_signal) == 1
    # Values are leaves, and a sweep of them is one program.
    swept = jax.jit(
        jax.vmap(
            lambda first: DDiff(num_steps=6, sigma_max=first, levels="geometric", climb=2).grid(schedule).level.ratio
        )
    )
    np.testing.assert_allclose(swept(jnp.asarray([8.0, 4.0]))[:, 0], [8, 4], rtol=1e-5)
    # Lengths that are given were tuned for the published walk.
    assert DDiff().is_geometric and not DDiff(Fixed(1.0)).is_geometric and not DDiff(levels="even").is_geometric
    assert DDiff(Fixed(1.0), levels="geometric").is_geometric and not DDiff(num_steps=9, climb=2).is_geometric

    operator, _, y, _, _ = small_problem()
    problem, point = dd.Problem(operator, y, 0.2), jax.tree.map(lambda column: column[0], to_type(grid, jnp.float32))
    nothing = dd.TapeNoise(jnp.zeros((1, N, N, 3)))
    state = DDiff().init(gaussian_prior((N, N, 3)), problem, point, nothing)
    x = state.x_t / point.level.signal
    np.testing.assert_allclose(problem.misfit(x), 0.2**2, rtol=1e-4)
    seen = np.broadcast_to(np.asarray(operator.mask), x.shape) > 0
    np.testing.assert_array_equal(np.asarray(x)[~seen], 0)  # grey where nothing is known
    ones = dd.TapeNoise(jnp.ones((1, N, N, 3)))
    noisy = DDiff().init(gaussian_prior((N, N, 3)), problem, point, ones)
    np.testing.assert_allclose(noisy.x_t - state.x_t, point.level.sigma * jnp.ones(x.shape), rtol=1e-5)


def test_a_walk_from_the_data_costs_what_it_says():
    operator, _, y, _, _ = small_problem()
    solver = DDiff(num_steps=5)
    found = dd.solve_one(solver, gaussian_prior((N, N, 3)), dd.Problem(operator, y, 0.05), jax.random.key(0))
    assert (found.cost.network_evaluations, found.cost.operator_evaluations, found.cost.operator_gradients) == (
        5,
        13,
        13,
    )
    even = dataclasses.replace(solver, levels="even")
    found = dd.solve_one(even, gaussian_prior((N, N, 3)), dd.Problem(operator, y, 0.05), jax.random.key(0))
    assert (found.cost.network_evaluations, found.cost.operator_evaluations, found.cost.operator_gradients) == (5, 5, 5)


def test_output_convention():
    operator, _, y, x_init, tape = small_problem()
    prior = gaussian_prior((N, N, 3))
    problem = dd.Problem(operator, y, 0.05)
    state = DDiff(Fixed(5.0), t0=100, num_steps=20, dual="off")
    x = dataclasses.replace(state, output="x")
    at_zero, last_x = (dd.solve_one(solver, prior, problem, jax.random.key(0), tape, x_init).x for solver in (state, x))
    # Without dual variable and noise the full-noise state at t = 0 is sqrt(0.9999) x.
    np.testing.assert_allclose(at_zero, math.sqrt(0.9999) * np.asarray(last_x), atol=1e-6)


def test_an_exact_fit_gives_no_step_and_no_nan():
    operator, _, _, _, _ = small_problem()
    prior = gaussian_prior((N, N, 3), mean=0.0, var=1e-12)
    solution = dd.solve_one(
        DDiff(Fixed(5.0), num_steps=3), prior, dd.Problem(operator, jnp.zeros((N, N, 3)), 0.0), jax.random.key(0)
    )
    assert bool(solution.finite)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"t0": -1}, "t0 must be non-negative"),
        ({"num_steps": 0}, "number of steps"),
        ({"num_steps": 2000}, "number of steps"),
    ],
)
def test_bad_hyper_parameters_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DDiff(**fields).grid(dd.linear_schedule())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(-1.0), "gamma must be positive"),
        (lambda: DDiff(levels="odd"), "levels must be one of geometric, even; got 'odd'"),  # pyright: ignore[reportArgumentType]
        (lambda: DDiff(sigma_max=0.0), "sigma_max must be positive"),
        (lambda: Fixed(float("nan")), "gamma must be positive"),
        (lambda: Fixed(1.0, after=0.0), "after must be positive"),
        (lambda: Fixed(None), r"gamma must be a number; a step without gamma is ToTheNoise\(\)"),  # pyright: ignore[reportArgumentType]
        (lambda: DDiff(18.0), r"step_length must be ToTheNoise\(\) or Fixed\(gamma\); got 18.0"),  # pyright: ignore[reportArgumentType]
        (lambda: DiffPnPADMM(ToTheNoise()), r"step_length must be Fixed\(gamma\); got ToTheNoise"),  # pyright: ignore[reportArgumentType]
        (lambda: DDiff(dual="released"), r'no dual variable to keep \(dual="released"\)'),
        (lambda: DDiff(dual="accumulating"), r"step_length=Fixed\(gamma\), or leave dual out"),
        (
            lambda: dataclasses.replace(DDiffHQS(), step_length=ToTheNoise(), dual="accumulating"),
            "DDiffHQS has no dual",
        ),
        (lambda: DDiff(Fixed(1.0), dual="on"), "dual must be one of released, accumulating, off; got 'on'"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_impossible_steps_are_refused(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_step_length_is_a_value_whose_numbers_are_leaves():
    solvers = [DDiff(Fixed(gamma, before=gamma, t_gamma=10 * gamma), num_steps=4) for gamma in (1.0, 2.0, 3.0)]
    assert len({jax.tree.structure(solver) for solver in solvers}) == 1  # so that a sweep compiles one program
    assert DDiff(Fixed(1.0)) == DDiff(step_length=Fixed(1)) != DDiff(Fixed(1.5))
    assert DDiff() == DDiff(ToTheNoise()) != DDiff(Fixed(1.0))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *solvers)
    table = jax.vmap(lambda solver: solver.grid(dd.linear_schedule()).gamma)(stacked)
    np.testing.assert_array_equal(table, [np.asarray(s.grid(dd.linear_schedule()).gamma) for s in solvers])
