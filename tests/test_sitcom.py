"""SITCOM against a plain float64 loop, whose numbers are those of the released code with the same noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import ALPHA_BAR, perturbation, start, tape_row, timesteps, wave

import ddiff_jax as dd
from ddiff_jax.levels import Spacing
from ddiff_jax.operators import LinearOperator
from ddiff_jax.solvers import SITCOM
from ddiff_jax.solvers.base import count_steps, total_cost

pytestmark = pytest.mark.once

N = 16
SHAPE = (N, N, 3)
MU, S2 = 0.5, 0.04  # every pixel lies at +-MU, with this variance
STEPS, ADAM = 20, 30
FLOAT64 = 1e-8  # relative, between two programs whose roundings Adam divides by each other
PRINTED = 5e-6  # the reference gives six digits, of a run in float32


@dd.pytree_dataclass
class Bimodal:
    """Independent pixels of two modes, +-mode, of variance `S2`."""

    mode: float = dd.static_field(default=MU)
    schedule: dd.VPSchedule = dd.static_field(default=dd.linear_schedule())
    image_shape: tuple[int, ...] = dd.static_field(default=SHAPE)

    def denoise(self, x_t, level):
        x, noise = x_t / level.signal, level.ratio**2
        return (S2 * x + noise * self.mode * jnp.tanh(self.mode * x / (S2 + noise))) / (S2 + noise)


@dd.pytree_dataclass
class Means(LinearOperator):
    """Means over boxes of 4x4."""

    image_shape: tuple[int, ...] = dd.static_field(default=SHAPE)

    def forward(self, x):
        return x.reshape(N // 4, 4, N // 4, 4, 3).mean((1, 3))


def mean_of_boxes(x):
    return x.reshape(N // 4, 4, N // 4, 4, 3).mean((1, 3))


def pull(residual):
    return np.repeat(np.repeat(residual / 16, 4, 0), 4, 1)


def denoise(x, sigma):
    """Return the mean of clean pixels and its derivative, in units of x_0 + sigma n."""
    total, tanh = S2 + sigma**2, np.tanh(MU * x / (S2 + sigma**2))
    return (S2 * x + sigma**2 * MU * tanh) / total, (S2 + (sigma * MU) ** 2 / total * (1 - tanh**2)) / total


def sitcom(y, x_t, walked, tape, *, adam_steps, sigma_y, lr=0.02, forward=mean_of_boxes, adjoint=pull, denoise=denoise):
    """Walk the published loop; return the last z, the last x_t and how many evaluations every level took."""
    counts, z = [], x_t
    for k, t in enumerate(walked):
        root = np.sqrt(ALPHA_BAR[t])
        sigma = np.sqrt(1 - ALPHA_BAR[t]) / root
        v, first, second, j = x_t, 0.0, 0.0, 0
        for j in range(1, adam_steps + 1):
            x_0, slope = denoise(v / root, sigma)
            z = np.clip(x_0, -1, 1)
            residual = forward(z) - y
            if np.sum(residual**2) < (sigma_y + 0.001) ** 2 * y.size:
                break
            gradient = 2 * adjoint(residual) * (np.abs(x_0) <= 1) * slope / root
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            v = v - lr * first / (1 - 0.9**j) / (np.sqrt(second / (1 - 0.999**j)) + 1e-8)
        counts.append(j)
        ab = ALPHA_BAR[walked[k + 1] if k + 1 < len(walked) else t]
        x_t = np.sqrt(ab) * z + np.sqrt(1 - ab) * tape[k]
    return z, x_t, counts


def fixture(stride):
    """Measurement, start and noise of the reference; its released code draws two for every one that it keeps."""
    y = mean_of_boxes(wave(N).astype(float)) + perturbation(N // 4)
    ab = ALPHA_BAR[999]
    x_t = np.sqrt(ab) * start(N).astype(float) + np.sqrt(1 - ab) * tape_row(0, N)
    return y, x_t, np.stack([tape_row(stride * (k + 1), N) for k in range(STEPS)]).astype(float)


def published(stride):
    y, x_t, tape = fixture(stride)
    return sitcom(y, x_t, timesteps(STEPS, "strided")[:-1], tape, adam_steps=ADAM, sigma_y=0.05)


def flat(x):
    return np.asarray(x, np.float64).transpose(2, 0, 1).ravel()


GOLDEN = {  # of z: the first six numbers, their sum and the sum of their squares; and the evaluations of every level
    2: ([0.116897, 0.736118, 0.293688, 0.691937, -0.621960, -0.447558], -2.258294, 181.103029, [13, 2, 1]),
    1: ([0.415642, 0.709741, 0.554376, 0.438905, 0.017549, -0.756661], -1.331356, 265.863188, [19, 6, 1]),
}


@pytest.mark.parametrize("stride", GOLDEN)
def test_the_loop_gives_the_numbers_of_the_reference(stride):
    z, x_t, counts = published(stride)
    first, total, squares, evaluations = GOLDEN[stride]
    np.testing.assert_allclose(flat(z)[:6], first, atol=PRINTED)
    np.testing.assert_allclose([z.sum(), (z**2).sum()], [total, squares], atol=2e-5, rtol=2e-6)
    assert counts == [ADAM] * 17 + evaluations
    if stride == 1:
        np.testing.assert_allclose(flat(x_t)[:3], [0.402143, 0.723848, 0.540863], atol=PRINTED)
        np.testing.assert_allclose([x_t.sum(), (x_t**2).sum()], [-1.344153, 266.684341], atol=2e-5)


def solve(stride, dtype):
    y, x_t, tape = (jnp.asarray(array, dtype) for array in fixture(stride))
    solver = SITCOM(num_steps=STEPS, adam_steps=ADAM)
    tape = jnp.repeat(tape, ADAM, 0)[:, None]  # it draws in the last row of every level
    return jax.jit(dd.solve_one)(solver, Bimodal(), dd.Problem(Means(), y, 0.05), jax.random.key(0), tape, x_t)


def evaluations(misfit, adam_steps, most):
    """Count how many steps of every level were made before its input came to rest, with that of the last evaluation."""
    reached = np.asarray(misfit).reshape(-1, adam_steps) < most
    return np.where(reached.any(1), reached.argmax(1) + 1, adam_steps).tolist()


@pytest.mark.parametrize("stride", GOLDEN)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_solver_gives_those_of_the_loop(stride, dtype, x64):
    """The reference states 1e-4 between float32 and float64, since Adam's division amplifies; the counts agree."""
    z, _, counts = published(stride)
    solution = solve(stride, dtype)
    assert solution.x.dtype == dtype
    np.testing.assert_allclose(solution.x, z, atol=FLOAT64 if dtype == "float64" else 1e-4)
    assert evaluations(solution.info.misfit, ADAM, 0.051**2) == counts
    cost = solution.cost
    assert (cost.network_evaluations, cost.network_gradients, cost.normal_draws) == (STEPS * ADAM, STEPS * ADAM, STEPS)


def test_misfits_stay_once_the_data_are_met_and_the_last_x_t_is_that_of_the_loop(x64):
    y, x_t, tape = (jnp.asarray(array) for array in fixture(1))
    solver, prior, problem = SITCOM(num_steps=20, adam_steps=ADAM), Bimodal(), dd.Problem(Means(), y, 0.05)
    grid = jax.tree.map(jnp.asarray, solver.grid(prior.schedule))

    @jax.jit
    def run(x_t):
        def body(state, row):
            k, point = row
            return solver.step(prior, problem, state, point, dd.TapeNoise(tape[k // ADAM][None]))

        state = solver.init(
            prior, problem, jax.tree.map(lambda column: column[0], grid), dd.KeyNoise(jax.random.key(0)), x_t
        )
        return jax.lax.scan(body, state, (jnp.arange(20 * ADAM), grid))

    state, info = run(x_t)
    np.testing.assert_allclose(state.v, published(1)[1], atol=FLOAT64)
    assert len(set(np.asarray(info.misfit).reshape(20, ADAM)[17, 18:])) == 1


def test_levels_of_another_family_give_the_same_image(x64):
    """Variance-exploding levels with the ratios of the others: x_t is longer there, the step is not."""
    schedule = dd.linear_schedule()

    @dataclasses.dataclass(frozen=True)
    class Exploding:
        num_levels: int = 1000

        def levels(self, num_steps, spacing: Spacing = "even"):
            found = schedule.levels(num_steps, spacing)
            return dd.Level(np.ones_like(found.signal), found.ratio, found.time)

        def at(self, ratio):
            raise NotImplementedError

    solver = SITCOM(num_steps=4, adam_steps=3)
    y, x_t, tape = (jnp.asarray(array) for array in fixture(1))
    tape = jnp.repeat(tape[:4], 3, 0)[:, None]
    problem, found = dd.Problem(Means(), y, 0.05), []
    for family in (schedule, Exploding()):
        prior = dataclasses.replace(Bimodal(), schedule=family)
        first = family.levels(4, "strided")[0]
        found.append(dd.solve_one(solver, prior, problem, jax.random.key(0), tape, first.scale * x_t).x)
    np.testing.assert_allclose(found[0], found[1], atol=1e-9)


def test_without_the_clamp_images_may_leave_the_range():
    y = jnp.full((N // 4, N // 4, 3), 3.0)
    prior = dd.GaussianPrior(0.0, 1.0, dd.linear_schedule(), SHAPE)
    found = {}
    for clip in (True, False):
        solver = SITCOM(num_steps=3, adam_steps=5, lr=0.5, clip=clip)
        found[clip] = dd.solve_one(solver, prior, dd.Problem(Means(), y, 0.05), jax.random.key(0)).x
    assert jnp.abs(found[True]).max() <= 1 < found[False].max()


def test_the_cost_of_a_run_that_was_stopped_counts_the_draws_made():
    solver, schedule = SITCOM(num_steps=3, adam_steps=4), dd.linear_schedule()
    assert count_steps(solver, schedule) == 12
    assert [total_cost(solver, Means(), schedule, rows).normal_draws for rows in (3, 4, 11, 12)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("values", "message"),
    [({"lr": 0.0}, "lr must be positive"), ({"delta": -0.1}, "delta must be"), ({"adam_steps": 0}, "adam_steps must")],
)
def test_bad_hyper_parameters_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SITCOM(**values)
