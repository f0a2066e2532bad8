"""DDiff's climbing steps: each minimises what it says, and all of them reach a maximum of posteriors that are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.calibration.gaussians import mixture_components, spectral_problem
from ddiff_jax.calibration.matrices import matrix_operator, picture_matrix
from ddiff_jax.likelihood import Poisson
from ddiff_jax.solvers import DDiff, Fixed
from ddiff_jax.solvers.base import Cost, total_cost
from ddiff_jax.types import to_type

pytestmark = pytest.mark.once

SHAPE = (8, 8, 3)
SIGMA_Y = 0.05
STEP = 1e-4  # absolute; two ways to solve the same equations in float32
GAMMA = 100.0  # moves by 0.3 in a step


def mask_problem():
    operator = operators.random_inpainting(SHAPE, jax.random.key(0), fraction=0.5)
    return dd.Problem(operator, jax.random.normal(jax.random.key(1), SHAPE), SIGMA_Y)


def blur_problem():
    operator = operators.gaussian_blur(SHAPE, size=5, std=1.0)
    x = 0.5 * jax.random.normal(jax.random.key(2), SHAPE)
    return dd.Problem(operator, dd.simulate(operator, x, SIGMA_Y, jax.random.key(3)), SIGMA_Y)


def row(grid, k):
    return jax.tree.map(lambda column: column[k], grid)


@pytest.mark.parametrize(
    ("make", "solver"),
    [
        (mask_problem, DDiff(num_steps=12, climb=4)),
        (mask_problem, DDiff(Fixed(GAMMA), num_steps=12, climb=4)),
        (mask_problem, DDiff(Fixed(GAMMA), num_steps=12, climb=4, dual="accumulating", noise_schedule="posterior")),
        (blur_problem, DDiff(num_steps=12, climb=4, directions=60)),
    ],
)
def test_a_climbing_step_weighs_as_the_posterior_does_and_adds_no_noise(make, solver):
    problem, prior = make(), gaussian_prior(SHAPE, var=0.25)
    grid = to_type(solver.grid(prior.schedule), jnp.float32)
    walk = DDiff.grid(dataclasses.replace(solver, climb=0, levels="even"), prior.schedule)
    np.testing.assert_array_equal(np.asarray(grid.climbs), 8 * [0] + 4 * [1])
    ratios = np.asarray(grid.level.ratio)
    np.testing.assert_allclose(ratios[:9], np.asarray(walk.level.ratio)[:9], rtol=1e-5)
    np.testing.assert_allclose(ratios[9:] / ratios[8:-1], (ratios[11] / ratios[8]) ** (1 / 3), rtol=1e-4)  # geometric
    least = np.asarray(prior.schedule.levels(None).ratio)[-2]
    assert ratios[11] == pytest.approx(least, rel=1e-5)
    np.testing.assert_allclose(grid.next_signal[:-1], grid.level.signal[1:], rtol=1e-6)

    state = solver.init(prior, problem, row(grid, 0), dd.KeyNoise(jax.random.key(0)))
    step = jax.jit(solver.step)
    for k in range(12):
        point, before = row(grid, k), state
        state, _ = step(prior, problem, state, point, dd.KeyNoise(jax.random.key(k)))
        other, _ = step(prior, problem, before, point, dd.KeyNoise(jax.random.key(k + 99)))
        assert bool(jnp.all(state.x_t == other.x_t)) == (k >= 8)
        if k >= 8:
            z = prior.denoise(before.x_t, point.level)
            x = problem.operator.prox(z, problem.y, (SIGMA_Y / point.level.ratio) ** 2)
            np.testing.assert_allclose(state.x, x, atol=STEP)
            np.testing.assert_allclose(state.x_t, point.next_signal * x, atol=STEP)


def test_under_a_gaussian_prior_it_ends_at_the_maximum():
    """Mask and prior are diagonal: every pixel's maximum is a weighted mean."""
    problem, mean, var = mask_problem(), 0.1, 0.04
    prior = dd.GaussianPrior(mean, var, dd.linear_schedule(), SHAPE)
    mask = np.broadcast_to(np.asarray(problem.operator.mask, np.float64), SHAPE)  # pyright: ignore[reportAttributeAccessIssue]
    weight = mask / SIGMA_Y**2
    best = (weight * np.asarray(problem.y) + mean / var) / (weight + 1 / var)
    errors = []
    for climb in (0, 10, 40):
        x = dd.solve_one(DDiff(num_steps=100, climb=climb), prior, problem, jax.random.key(3)).x
        errors.append(np.sqrt(np.mean((np.asarray(x) - best) ** 2)))
    assert errors[0] > 0.03
    assert errors[1] < errors[0] / 3
    # What is left is the blur of the prior by the least noisy level: var is taken for var + 0.01^2.
    assert errors[2] < 0.003


@pytest.mark.parametrize(
    ("name", "sigma_y", "left"), [("sample", 0.05, 0.7), ("blur", 0.1, 0.2), ("quadrants", 0.3, 0.1)]
)
def test_on_mixtures_it_reaches_the_maximum_on_whose_slope_it_is(name, sigma_y, left):
    matrix, count = picture_matrix(name, 8), 24
    prior, posterior = spectral_problem(mixture_components(8), matrix, sigma_y)
    operator, keys = matrix_operator(matrix, (8, 8, 1)), dd.image_keys(jax.random.key(0), jnp.arange(count))
    clean = jnp.asarray(posterior.truths(jax.random.key(1), count), jnp.float32)
    noise = dd.image_keys(jax.random.key(2), jnp.arange(count))
    y = jax.vmap(lambda x, key: dd.simulate(operator, x, sigma_y, key))(clean, noise)

    def below(climb):
        """How many nats the median run is below its maximum."""
        solver = DDiff(num_steps=100, climb=climb)
        x = np.asarray(dd.solve(solver, prior, dd.Problem(operator, y, sigma_y), keys).x, np.float64)[:, None]
        _, top = posterior.climb(x, y)
        return np.median(top - posterior.log_density(x, y))

    assert below(0) > 10
    assert 0 <= below(20) < left


def test_it_states_what_it_costs_and_needs():
    schedule, operator = dd.linear_schedule(), mask_problem().operator
    plain, climbing = (DDiff(Fixed(GAMMA), num_steps=12, climb=climb) for climb in (0, 4))
    step = Cost(network_evaluations=1, operator_gradients=1, normal_draws=1)
    assert plain.cost(operator) == step and climbing.cost(operator) == dataclasses.replace(step, operator_evaluations=1)
    assert total_cost(plain, operator, schedule, 12) == step * 12
    for done, evaluations in ((8, 0), (9, 1), (12, 4)):
        assert total_cost(climbing, operator, schedule, done).operator_evaluations == evaluations
    found = dd.solve_one(climbing, gaussian_prior(SHAPE), mask_problem(), jax.random.key(0))
    assert found.cost == total_cost(climbing, operator, schedule, 12) and bool(found.finite)
    assert DDiff(num_steps=12, climb=4).cost(operator) == DDiff(num_steps=12).cost(operator)
    assert plain.grid(schedule).climbs is None  # so that without climbing no program changes
    photons = dataclasses.replace(mask_problem(), likelihood=Poisson(100.0))
    with pytest.raises(ValueError, match="DDiff assumes Gaussian noise"):
        dd.solve_one(climbing, gaussian_prior(SHAPE), photons, jax.random.key(0))


def test_a_climb_is_of_some_steps_and_leaves_the_first_one_out(unchecked):
    with pytest.raises(ValueError, match=r"climb must be at least 0; got -1"):
        DDiff(num_steps=12, climb=-1)
    assert DDiff(num_steps=1, climb=12).grid(dd.linear_schedule()).climbs is None
    for num_steps in (2, 12):  # a preset that climbs serves whoever asks for fewer steps
        grid = DDiff(num_steps=num_steps, climb=12).grid(dd.linear_schedule())
        np.testing.assert_array_equal(grid.climbs, [0] + (num_steps - 1) * [1])


def test_derivatives_pass_through_the_climb():
    problem, prior = mask_problem(), gaussian_prior(SHAPE, var=0.25)
    solver, direction = DDiff(num_steps=6, climb=3), jax.random.normal(jax.random.key(5), SHAPE)

    @jax.jit
    def brightness(y):
        x = dd.solve_one(solver, prior, dataclasses.replace(problem, y=y), jax.random.key(0)).x
        return jnp.sum(x * direction)

    slope = jnp.vdot(jax.grad(brightness)(problem.y), direction)
    _, forward = jax.jvp(brightness, (problem.y,), (direction,))
    np.testing.assert_allclose(slope, forward, rtol=1e-3)
    h = 1e-2
    np.testing.assert_allclose(
        (brightness(problem.y + h * direction) - brightness(problem.y - h * direction)) / (2 * h), forward, rtol=1e-2
    )
