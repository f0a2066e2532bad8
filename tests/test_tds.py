"""TDS against a plain float64 loop with known indices and weights, and on posteriors that are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sitcom import Bimodal, denoise

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.operators import LinearOperator
from ddiff_jax.solvers import TDS
from ddiff_jax.solvers.base import total_cost
from ddiff_jax.solvers.tds import State, _pick
from ddiff_jax.types import to_type

pytestmark = pytest.mark.once

SIZE, P, STEPS = 16, 4, 10
SHAPE = (SIZE, 1)
SIGMA_Y = 0.1
FLOAT64 = 1e-9  # relative, between two programs
PRINTED = 1e-6  # the reference gives six digits


@dataclasses.dataclass(frozen=True)
class Squares:
    """Levels of the reference: a = 0.01^(t^2), b^2 = 1 + 1e-4 - a^2, for t from 1 to 0, where some noise is left."""

    num_levels: int = STEPS

    def levels(self, num_steps, spacing="even"):
        t = np.linspace(1, 0, num_steps + 1)
        a = np.exp(t**2 * np.log(0.01))
        return dd.Level(a, np.sqrt(1 - a**2 + 1e-4), t)

    def at(self, ratio):
        raise NotImplementedError


@dd.pytree_dataclass
class Means(LinearOperator):
    """Means of four neighbours."""

    image_shape: tuple[int, ...] = dd.static_field(default=SHAPE)

    def forward(self, x):
        return x.reshape(-1, 4).mean(1)


MATRIX = np.kron(np.eye(SIZE // 4), np.full((1, 4), 0.25))


def fixture():
    """Measurement, start and noise of the reference."""
    j = np.arange(P * SIZE) + 1
    truth = 0.5 * np.sign(np.sin(1.3 * np.arange(SIZE) + 0.5))
    y = MATRIX @ truth + SIGMA_Y * np.sqrt(2) * np.sin(1.7 * (np.arange(SIZE // 4) + 1))
    tape = [np.sqrt(2) * np.sin(12.9898 * (k + 1) + 78.233 * j) for k in range(STEPS)]
    return y, np.sqrt(2) * np.sin(0.9 * j).reshape(P, SIZE), np.reshape(tape, (STEPS, P, SIZE))


def mean_and_std(x_t, x_0, a, b, cleaner_a, cleaner_b):
    """The DDPM posterior, by the noise that x_t holds if x_0 is clean."""
    kept = a / cleaner_a * cleaner_b / b
    return cleaner_a * x_0 + cleaner_b * kept * (x_t - a * x_0) / b, cleaner_b * np.sqrt(1 - kept**2)


def log_normal(residual, covariance):
    """Return the logarithm of the density of every row, and its gradient with respect to what was predicted."""
    precise = np.linalg.solve(covariance, residual.T).T
    constant = np.linalg.slogdet(2 * np.pi * covariance)[1]
    return -np.sum(residual * precise, 1) / 2 - constant / 2, precise


def tds(y, x_t, levels, tape, uniforms, *, threshold=1.0, clip=False, matrix=MATRIX, sigma_y=SIGMA_Y, denoise=denoise):
    """Walk the particles; return them, their log-weights, the parents of every step and its effective number."""
    noise = sigma_y**2 * np.eye(len(y))
    log_w, parents, effective = np.zeros(len(x_t)), [], []
    for k, (a, b, cleaner_a, cleaner_b) in enumerate(levels):
        r2 = (b / a) ** 2 / (1 + (b / a) ** 2)
        z, slope = denoise(x_t / a, b / a)
        twist, pushed = log_normal(y - z @ matrix.T, noise + r2 * matrix @ matrix.T)
        g = pushed @ matrix * slope / a
        base = log_w + twist
        w = np.exp(base - base.max())
        w = w / w.sum()
        effective.append(1 / np.sum(w**2))
        chosen = np.arange(len(w))
        if effective[-1] < threshold * len(w):
            chosen = np.searchsorted(np.cumsum(w), (uniforms[k] + np.arange(len(w))) / len(w), side="right")
            base = np.zeros(len(w))
        parents.append(chosen.tolist())
        x_t, z, twist, g = x_t[chosen], z[chosen], twist[chosen], g[chosen]
        led = z + b**2 / a * g
        if clip:
            z, led = np.clip(z, -1, 1), np.clip(led, -1, 1)
        if cleaner_b == 0:
            x_t, log_w = z, base - twist + log_normal(y - z @ matrix.T, noise)[0]
            continue
        free, std = mean_and_std(x_t, z, a, b, cleaner_a, cleaner_b)
        led, _ = mean_and_std(x_t, led, a, b, cleaner_a, cleaner_b)
        x_t = led + std * tape[k]
        log_w = base + np.sum((x_t - led) ** 2 - (x_t - free) ** 2, 1) / (2 * std**2) - twist
    return x_t, log_w, parents, effective


def walked(schedule, num_steps, spacing):
    level = schedule.levels(num_steps, spacing)
    columns = np.stack([level.signal, level.sigma], 1)
    return np.concatenate([columns[:-1], columns[1:]], 1)


def run(solver, schedule, dtype, uniform=0.0):
    """Drive the solver's own steps from the particles of the fixture; the draws of both choices are given."""
    y, x_t, tape = (jnp.asarray(array, dtype) for array in fixture())
    prior = Bimodal(schedule=schedule, image_shape=SHAPE)
    problem = dd.Problem(Means(), y, SIGMA_Y)
    solver, grid = to_type((solver, solver.grid(schedule)), dtype)
    count = len(grid.is_last)
    uniforms = jnp.full(count, uniform, dtype)
    tape = jnp.resize(tape, (count, *tape.shape[1:]))[..., None]

    @jax.jit
    def walk(state):
        def body(state, row):
            point, *draws = row
            return solver.step(prior, problem, state, point, dd.TapeNoise(tuple(draws)))

        return jax.lax.scan(body, state, (grid, uniforms, tape, uniforms))

    return walk(State(x_t[..., None], jnp.zeros(P, dtype), x_t[0][:, None]))


def particle_tape(images, count):
    """Cut the draws of a step with particles, of a step that draws whole pictures: [..., draws, H, W, C]."""
    first = images[..., 0, 0, 0]
    return first[..., 0], images[..., 1 : count + 1, :, :, :], first[..., count + 1]


def shares(log_w):
    """Leave out what all log-weights have in common."""
    return log_w - np.max(log_w) - np.log(np.sum(np.exp(log_w - np.max(log_w))))


def test_the_loop_gives_the_numbers_of_the_reference():
    y, x_t, tape = fixture()
    x_t, log_w, parents, _ = tds(y, x_t, walked(Squares(), STEPS, "even"), tape, [0.5] * STEPS)
    assert parents == [[0, 1, 2, 3]] * 9 + [[0, 1, 1, 2]]
    first = [-0.239028, 0.660750, -0.525517, 0.760942, -0.694911, 0.685534]
    np.testing.assert_allclose(
        x_t.ravel()[[*range(6), -3, -2, -1]], [*first, 0.628010, -0.718503, 0.579264], atol=PRINTED
    )
    np.testing.assert_allclose([x_t.sum(), (x_t**2).sum()], [0.581241, 20.794237], atol=PRINTED)
    np.testing.assert_allclose(log_w, [-260.946946, -155.060680, -162.602285, -272.212836], atol=PRINTED)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("twist", ["exact", "isotropic"])
def test_the_solver_gives_those_of_the_loop(dtype, twist, x64):
    y, x_t, tape = fixture()
    want, log_w, _, effective = tds(y, x_t, walked(Squares(), STEPS, "even"), tape, [0.5] * STEPS)
    state, info = run(TDS(ess_threshold=1.0, gain=0.25, num_steps=STEPS, twist=twist, clip=False), Squares(), dtype)
    rtol = FLOAT64 if dtype == "float64" else 1e-4
    assert state.particles.dtype == state.log_weights.dtype == info.effective_particles.dtype == dtype
    np.testing.assert_allclose(state.particles[..., 0], want, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(state.log_weights, shares(log_w), rtol=rtol, atol=10 * rtol)
    np.testing.assert_allclose(info.effective_particles, effective, rtol=10 * rtol)


@pytest.mark.parametrize(("threshold", "clip"), [(0.0, False), (0.6, True)])
def test_the_last_step_weighs_clean_images_and_resampling_waits_for_its_threshold(threshold, clip, x64):
    y, x_t, tape = fixture()
    schedule = dd.linear_schedule()
    uniform = 0.3
    tape = np.resize(tape, (20, P, SIZE))
    levels = walked(schedule, 20, "strided")
    probability = float(jax.scipy.special.ndtr(jnp.float64(uniform)))
    want, log_w, parents, effective = tds(y, x_t, levels, tape, [probability] * 20, threshold=threshold, clip=clip)
    assert (levels[-1, 3] == 0) and (min(effective) < 0.6 * P)
    assert any(chosen != [0, 1, 2, 3] for chosen in parents) == (threshold > 0)
    state, info = run(TDS(num_steps=20, ess_threshold=threshold, clip=clip), schedule, "float64", uniform)
    np.testing.assert_allclose(state.particles[..., 0], want, rtol=FLOAT64)
    np.testing.assert_allclose(state.log_weights, shares(log_w), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(info.effective_particles, effective, rtol=1e-8)
    drawn = np.searchsorted(np.cumsum(np.exp(shares(log_w))), probability, side="right")
    np.testing.assert_array_equal(state.x, state.particles[drawn])


@pytest.mark.parametrize("name", ["fourier", "blur"])
def test_the_exact_twist_is_the_gaussian_density_of_the_data_and_its_gradient(name, x64):
    """Of complex measurements, through a decomposition, and through iterated least squares."""
    shape = (6, 6, 2)
    mask = np.arange(36).reshape(6, 6) % 3 == 0
    blur = operators.blur(shape, kernel=[[0.1, 0.7, 0.2]])
    operator = operators.fourier(shape, mask) if name == "fourier" else blur
    prior, solver = dd.GaussianPrior(0.1, 0.3, dd.linear_schedule(), shape), TDS()
    point = jax.tree.map(lambda column: column[60], solver.grid(prior.schedule))

    @jax.jit
    def both(x):
        problem = dd.Problem(operator, operator.forward(x[0]), 0.2)

        def flat(y):
            return jnp.concatenate([y.real.ravel(), y.imag.ravel()]) if jnp.iscomplexobj(y) else y.ravel()

        columns = jax.vmap(lambda image: flat(problem.measured(image)))(jnp.eye(72).reshape(72, *shape))
        covariance = 0.2**2 * jnp.eye(columns.shape[1]) + point.r2 * columns.T @ columns

        def density(x_t):
            residual = flat(problem.residual(prior.denoise(x_t, point.level)))
            return -residual @ jnp.linalg.solve(covariance, residual) / 2

        found = jax.vmap(lambda x_t: solver._twist(prior, problem, point, x_t))(x)
        return found, jax.vmap(jax.value_and_grad(density))(x)

    (twist, _, g), (density, slope) = both(jax.random.normal(jax.random.key(0), (3, *shape)))
    np.testing.assert_allclose(twist, density, rtol=1e-8)
    np.testing.assert_allclose(g, slope, rtol=1e-6, atol=1e-7)


@dd.pytree_dataclass
class Identity(LinearOperator):
    """y = x."""

    image_shape: tuple[int, ...] = dd.static_field(default=(1, 1))

    def forward(self, x):
        return x


def right_mode(num_particles, num_runs, **values):
    """Estimate P(x > 0 | y = 0.15) under two modes at +-1 of variance 0.04, by all particles and by the one drawn."""
    prior = Bimodal(1.0, image_shape=(1, 1))
    solver, problem = (
        TDS(num_particles=num_particles, clip=False, **values),
        dd.Problem(Identity(), jnp.full((1, 1), 0.15), 0.5),
    )
    grid = to_type(solver.grid(prior.schedule), jnp.float32)

    def one(key):
        def body(state, row):
            k, point = row
            return solver.step(prior, problem, state, point, dd.KeyNoise(jax.random.fold_in(key, k)))

        point = jax.tree.map(lambda column: column[0], grid)
        state = solver.init(prior, problem, point, dd.KeyNoise(jax.random.fold_in(key, 10**6)))
        state, _ = jax.lax.scan(body, state, (jnp.arange(len(grid.is_last)), grid))
        is_right = state.particles[:, 0, 0] > 0
        return jnp.sum(jnp.where(is_right, jnp.exp(state.log_weights), 0.0)), solver.estimate(state)[0, 0] > 0

    found, drawn = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_runs))
    return np.asarray(found, np.float64), np.asarray(drawn, np.float64)


RIGHT_MODE = 1 / (1 + np.exp(-2 * 0.15 / (0.04 + 0.5**2)))  # the exact probability, 0.7378


# What 100 steps make of the prior alone, weighed by the likelihood: a million walks in NumPy, +-0.0005; 1000 steps make
# 0.7384 of it. No number of particles comes closer to the exact probability.
WALKED = 0.7425


def test_many_particles_weigh_two_modes_right(optimised):
    found, _ = right_mode(4096, 16)
    assert abs(RIGHT_MODE - 0.7378) < 1e-4
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert error < 0.005 and abs(found.mean() - WALKED) < 4 * error


def test_a_particle_drawn_by_its_weight_is_a_sample(optimised):
    found, drawn = right_mode(64, 500)
    assert abs(found.mean() - WALKED) < 4 * found.std() / np.sqrt(500)
    assert abs(found.mean() - drawn.mean()) < 4 * np.std(found - drawn) / np.sqrt(500)


def test_systematic_resampling_gives_every_particle_its_share_to_less_than_one():
    w = np.array([0.1, 0.45, 0.0, 0.3, 0.15, 0.0])
    log_w = jnp.log(jnp.asarray(w, jnp.float32))
    for u in (0.0, 0.37, 1.0):  # 1 is what the distribution function of a large draw rounds to
        found = _pick(log_w, (u + jnp.arange(6, dtype=jnp.float32)) / 6)
        counts = np.bincount(np.asarray(found), minlength=6)
        assert np.all(np.abs(counts - 6 * w) < 1) and counts[2] == counts[5] == 0


def test_a_particle_that_diverges_is_left_behind_and_a_cloud_that_does_is_seen():
    prior = Bimodal(image_shape=SHAPE)
    y, x_t, _ = fixture()
    solver, problem = TDS(num_steps=6), dd.Problem(Means(), jnp.asarray(y, jnp.float32), SIGMA_Y)
    grid = to_type(solver.grid(prior.schedule), jnp.float32)
    grid = jax.tree.map(jnp.asarray, grid)

    @jax.jit
    def step(state, k):
        point = jax.tree.map(lambda column: column[k], grid)
        return solver.step(prior, problem, state, point, dd.KeyNoise(jax.random.key(5)))

    x_t = jnp.asarray(x_t, jnp.float32)[..., None]
    equal = jnp.zeros(P)
    for broken, is_alive in (([1], True), ([0, 1, 2, 3], False)):
        state = State(x_t.at[jnp.asarray(broken)].set(jnp.nan), equal, x_t[0])
        for k in (3, 4, 5):
            state, info = step(state, k)
            assert jnp.isfinite(state.x).all() == jnp.isfinite(info.effective_particles) == is_alive
            assert jnp.isfinite(state.log_weights).all() == jnp.isfinite(state.particles).all() == is_alive
    bad = dd.solve_one(solver, prior, dd.Problem(Means(), jnp.full(SIZE // 4, jnp.nan), SIGMA_Y), jax.random.key(0))
    assert not bad.finite


def test_costs_count_all_particles_and_the_last_step_weighs_instead_of_drawing():
    solver, schedule = TDS(num_particles=3, num_steps=5), dd.linear_schedule()
    found = total_cost(solver, Means(), schedule, 5)
    assert (found.network_evaluations, found.network_gradients, found.normal_draws) == (15, 15, 12)
    assert (found.operator_solves, found.operator_evaluations, found.operator_gradients) == (15, 5 * 4 + 3, 0)
    stopped = total_cost(dataclasses.replace(solver, twist="isotropic"), Means(), schedule, 4)
    assert (stopped.normal_draws, stopped.operator_evaluations, stopped.operator_gradients) == (12, 4, 12)


def test_nonlinear_operators_take_the_isotropic_twist():
    hdr = operators.high_dynamic_range((4, 4, 3))
    prior = dd.GaussianPrior(0.0, 0.2, dd.linear_schedule(), (4, 4, 3))
    problem, key = dd.Problem(hdr, jnp.full((4, 4, 3), 0.4), 0.1), jax.random.key(0)
    assert dd.solve_one(TDS(num_steps=5), prior, problem, key).finite
    with pytest.raises(ValueError, match="TDS needs the operator's prox"):
        dd.solve_one(TDS(num_steps=5, twist="exact"), prior, problem, key)
    with pytest.raises(ValueError, match="TDS assumes Gaussian noise"):
        dd.solve_one(TDS(num_steps=5), prior, dataclasses.replace(problem, likelihood=dd.Poisson(30.0)), key)


def test_an_unknown_twist_is_refused(unchecked):
    with pytest.raises(ValueError, match="twist must be one of auto, exact, isotropic; got 'type 1'"):
        TDS(twist="type 1")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"var": 0.0}, "var must be positive"),
        ({"ess_threshold": 1.5}, "ess_threshold must be fraction"),
        ({"gain": 0.0}, "gain must be positive"),
        ({"num_particles": 0}, "num_particles must be at least 1"),
    ],
)
def test_bad_hyper_parameters_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TDS(**values)
