import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior

import ddiff_jax as dd
from ddiff_jax import _execution as execution
from ddiff_jax import operators
from ddiff_jax.solvers import DDiff, Fixed

SHAPE = (8, 8, 3)
PROGRAMS = 1e-5  # two compiled programs of the same mathematics
SOLVER = DDiff(Fixed(20.0), num_steps=12)


@pytest.fixture(scope="module")
def batch():
    """Five images with their own masks, measurements and keys."""
    keys = dd.image_keys(jax.random.key(3), jnp.asarray([4, 8, 15, 16, 23]))
    masks = jax.vmap(lambda key: operators.random_inpainting(SHAPE, key, fraction=0.4))(keys)
    x = jax.random.uniform(jax.random.key(1), (5, *SHAPE), minval=-1, maxval=1)
    y = jax.vmap(lambda operator, x, key: dd.simulate(operator, x, 0.05, key))(masks, x, keys)
    return masks, y, keys


def run(batch, solver=SOLVER, sigma_y: Any = 0.05, **kwargs):
    masks, y, keys = batch
    return dd.solve(solver, gaussian_prior(SHAPE), dd.Problem(masks, y, sigma_y, operator_axis=0), keys, **kwargs)


def take(batch, order):
    return jax.tree.map(lambda leaf: leaf[jnp.asarray(order)], batch)


def test_batch_equals_one_by_one(batch):
    together = run(batch)
    solve_one = jax.jit(dd.solve_one)
    for i in range(5):
        operator, y, key = take(batch, i)
        one = solve_one(SOLVER, gaussian_prior(SHAPE), dd.Problem(operator, y, 0.05), key)
        np.testing.assert_allclose(together.x[i], one.x, atol=PROGRAMS)
        np.testing.assert_allclose(together.info.misfit[i], one.info.misfit, rtol=1e-4)
    assert together.finite.all()
    assert together.info.misfit.shape == (5, 12)


def test_permuting_the_batch_permutes_the_result_bit_for_bit(batch):
    order = [3, 0, 4, 1, 2]
    np.testing.assert_array_equal(run(take(batch, order)).x, run(batch).x[jnp.asarray(order)])


def test_a_poisoned_neighbour_changes_nothing(batch):
    masks, y, keys = batch
    clean = run(batch)
    poisoned = run((masks, y.at[2].set(jnp.nan), keys))
    np.testing.assert_array_equal(poisoned.finite, [True, True, False, True, True])
    for i in (0, 1, 3, 4):
        np.testing.assert_array_equal(poisoned.x[i], clean.x[i])
    with pytest.raises(FloatingPointError, match=r"images \[2\]"):
        dd.raise_if_not_finite(poisoned)
    dd.raise_if_not_finite(clean)


def test_shared_operator_equals_a_stack_of_copies(batch):
    masks, y, keys = batch
    one = take(masks, 0)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 5), one)
    shared = dd.solve(SOLVER, gaussian_prior(SHAPE), dd.Problem(one, y, 0.05), keys)
    copies = dd.solve(SOLVER, gaussian_prior(SHAPE), dd.Problem(stacked, y, 0.05, operator_axis=0), keys)
    np.testing.assert_array_equal(shared.x, copies.x)


def test_a_noise_level_per_image_equals_one_for_all(batch):
    np.testing.assert_array_equal(run(batch, sigma_y=jnp.full(5, 0.05)).x, run(batch).x)


def test_chunks_do_not_change_the_result_and_report_progress(batch):
    seen = []

    def watch(progress):
        assert progress.preview().shape == (5, *SHAPE)
        seen.append((progress.step, progress.num_steps, progress.misfit.copy()))

    solution = run(batch, num_chunks=5, on_chunk=watch)
    np.testing.assert_array_equal(solution.x, run(batch, num_chunks=1).x)
    assert [step for step, _, _ in seen] == [0, 2, 4, 7, 9, 12]
    assert all(total == 12 for _, total, _ in seen)
    assert np.isnan(seen[0][2]).all()
    np.testing.assert_array_equal(seen[-1][2], solution.info.misfit[:, -1])


def test_the_callback_can_stop_the_run(batch):
    solution = run(batch, num_chunks=4, on_chunk=lambda progress: progress.step >= 6)
    assert np.isfinite(solution.info.misfit[:, :6]).all()
    assert np.isnan(solution.info.misfit[:, 6:]).all()
    assert solution.finite.all()


def test_replayed_noise_and_start_are_used(batch):
    noise = jax.random.normal(jax.random.key(5), (5, 12, 1, *SHAPE))
    x_init = jax.random.normal(jax.random.key(6), (5, *SHAPE))
    solution = run(batch, noise=noise, x_init=x_init)
    operator, y, key = take(batch, 1)
    problem = dd.Problem(operator, y, 0.05)
    one = dd.solve_one(SOLVER, gaussian_prior(SHAPE), problem, key, noise[1], x_init[1])
    np.testing.assert_allclose(solution.x[1], one.x, atol=PROGRAMS)
    assert not np.allclose(solution.x, run(batch).x, atol=1e-3)


@pytest.mark.parametrize("pixels", [64, 130])
def test_steps_in_blocks_of_images_give_the_same(batch, pixels, monkeypatch):
    four = take(batch, [0, 1, 2, 3])
    noise, sigma_y = jax.random.normal(jax.random.key(5), (4, 12, 1, *SHAPE)), jnp.asarray([0.05, 0.1, 0.2, 0.4])
    whole = run(four, sigma_y=sigma_y, noise=noise)
    assert execution.block_size(4, SHAPE) == 4
    monkeypatch.setattr(execution, "CPU_BLOCK", pixels)
    assert execution.block_size(4, SHAPE) == pixels // 64
    parts = run(four, sigma_y=sigma_y, noise=noise)
    np.testing.assert_allclose(parts.x, whole.x, atol=PROGRAMS)
    np.testing.assert_allclose(parts.info.misfit, whole.info.misfit, rtol=1e-4)


def test_blocks_divide_the_batch():
    assert [execution.block_size(n, (64, 64, 3)) for n in (1, 2, 5, 6, 7, 8, 16)] == [1, 2, 1, 3, 1, 4, 4]
    assert [execution.block_size(n, (256, 256, 3)) for n in (1, 8)] == [1, 1]


def test_one_trace_serves_all_values(batch):
    jitted = jax.jit(chex.assert_max_traces(dd.solve_one, n=1))
    prior = gaussian_prior(SHAPE)
    for i, gamma in enumerate((20.0, 3.0, np.float32(7))):
        operator, y_i, key = take(batch, i)
        solver = DDiff(Fixed(gamma), t0=10 * i, num_steps=12)
        jitted(solver, prior, dd.Problem(operator, y_i, 0.05 * (i + 1)), key)


def test_one_compiled_program_serves_all_values_of_solve(batch, caplog):
    def compiled():
        messages = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
        caplog.clear()
        return sum("_run_chunk" in message for message in messages)

    masks, y, _ = batch
    with jax.log_compiles():
        run(batch, DDiff(Fixed(20.0), num_steps=11))  # nobody else's
        assert compiled() == 1
        others = (masks, y + 1, dd.image_keys(jax.random.key(9), jnp.arange(5)))
        run(others, DDiff(Fixed(1.0), num_steps=11), 0.2)
        run(take(batch, [4, 3, 2, 1, 0]), DDiff(Fixed(20.0), t0=50, num_steps=11), num_chunks=3)
        assert compiled() == 0


def test_keys_are_never_reused(batch):
    operator, y, key = take(batch, 0)
    with jax.debug_key_reuse(True):
        dd.solve_one(SOLVER, gaussian_prior(SHAPE), dd.Problem(operator, y, 0.05), key)


def test_works_under_the_users_own_transformations(batch):
    masks, y, keys = batch
    prior = gaussian_prior(SHAPE)

    def restore(operator, y, key, gamma) -> Any:
        solver = dataclasses.replace(SOLVER, step_length=Fixed(gamma))
        return dd.solve_one(solver, prior, dd.Problem(operator, y, 0.05), key).x

    first = take(batch, 0)
    eager = restore(first[0], first[1], first[2], 20.0)
    np.testing.assert_allclose(jax.jit(restore)(first[0], first[1], first[2], 20.0), eager, atol=PROGRAMS)
    mapped = jax.vmap(restore, (0, 0, 0, None))(masks, y, keys, 20.0)
    np.testing.assert_allclose(mapped[0], eager, atol=PROGRAMS)
    # A sweep over a hyper-parameter is a vmap over a leaf.
    swept = jax.vmap(restore, (None, None, None, 0))(first[0], first[1], first[2], jnp.asarray([5.0, 20.0]))
    np.testing.assert_allclose(swept[1], eager, atol=PROGRAMS)


def test_gradient_through_a_whole_run_matches_a_difference_quotient(batch):
    operator, y, key = take(batch, 0)
    # An unclipped linear prior and small steps: smooth enough for a difference quotient in float32.
    prior = gaussian_prior(SHAPE, clip=False)
    solver = DDiff(Fixed(0.5), t0=1000, num_steps=4, output="x")

    def loss(y):
        return jnp.sum(dd.solve_one(solver, prior, dd.Problem(operator, y, 0.05), key).x)

    direction = jax.random.normal(jax.random.key(2), SHAPE) * operator.mask
    slope = jnp.vdot(jax.grad(loss)(y), direction)
    h = 1e-2
    quotient = (loss(y + h * direction) - loss(y - h * direction)) / (2 * h)
    np.testing.assert_allclose(slope, quotient, rtol=2e-2)
    assert abs(float(quotient)) > 1e-3


def test_shard_map_of_the_users_own_gives_the_same(batch):
    masks, y, keys = batch
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("batch")
    prior = gaussian_prior(SHAPE)

    def block(masks, y, keys):
        def one(operator, y, key):
            return dd.solve_one(SOLVER, prior, dd.Problem(operator, y, 0.05), key).x

        return jax.vmap(one)(masks, y, keys)

    sharded = jax.shard_map(block, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec)
    np.testing.assert_allclose(sharded(masks, y, keys), run(batch).x, atol=PROGRAMS)


def test_image_keys_follow_the_identity_not_the_place():
    root = jax.random.key(0)
    forward, backward = dd.image_keys(root, jnp.arange(4)), dd.image_keys(root, jnp.arange(4)[::-1])
    np.testing.assert_array_equal(jax.random.key_data(forward), jax.random.key_data(backward)[::-1])


@pytest.mark.parametrize("shape", [(), (3,), (5, 7, 3)])
def test_draws_are_jax_normals_of_the_key_and_the_index(shape):
    key = jax.random.key(3)
    expected = jax.random.normal(jax.random.fold_in(key, 2), shape)
    np.testing.assert_array_equal(dd.KeyNoise(key).draw(2, shape), expected)


def test_a_users_operator_needs_nothing_but_forward(batch):
    @dd.pytree_dataclass
    class Gain:
        gain: jax.Array

        def forward(self, x):
            return self.gain * x[::2]

    _, y, keys = batch
    solution = dd.solve(SOLVER, gaussian_prior(SHAPE), dd.Problem(Gain(jnp.float32(2.0)), y[:, ::2], 0.05), keys)
    assert solution.finite.all()


BAD = {
    "raw keys": (lambda b: run((b[0], b[1], jnp.zeros((5, 2), jnp.uint32))), TypeError, "typed JAX keys"),
    "one key": (lambda b: run((b[0], b[1], b[2][0])), TypeError, "one per image"),
    "rbg keys": (
        lambda b: run((b[0], b[1], jax.random.split(jax.random.key(0, impl="rbg"), 5))),
        TypeError,
        "threefry",
    ),
    "fewer measurements": (lambda b: run((*take(b[:2], [0, 1, 2]), b[2])), ValueError, "y must have a leading"),
    "sigma count": (lambda b: run(b, sigma_y=jnp.ones(4)), ValueError, "sigma_y must have a leading axis"),
    "negative sigma": (lambda b: run(b, sigma_y=-0.1), ValueError, "at least 0"),
    "start of another size": (lambda b: run(b, x_init=jnp.zeros((5, 4, 4, 3))), ValueError, "x_init is for images"),
    "short tape": (lambda b: run(b, noise=jnp.zeros((5, 3, 1, *SHAPE))), ValueError, "one entry per step, 12"),
    "tape of another shape": (lambda b: run(b, noise=jnp.zeros((5, 12, 1, 4, 4, 3))), ValueError, "tape holds"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_refused_with_the_remedy(name, batch, unchecked):
    call, error, message = BAD[name]
    with jax.numpy_dtype_promotion("standard"), pytest.raises(error, match=message):
        call(batch)


def test_an_operator_for_another_size_is_refused(batch):
    _, y, keys = batch
    operator = operators.super_resolution((16, 16, 3), factor=2)
    with pytest.raises(ValueError, match=r"the operator is for images of shape \(16, 16, 3\)"):
        dd.solve(SOLVER, gaussian_prior(SHAPE), dd.Problem(operator, y, 0.05), keys)


@pytest.mark.parametrize("place", ["anywhere", "bound weights", "mesh"])
def test_one_program_serves_all_chunks(batch, place, caplog):
    masks, y, keys = batch
    prior, mesh = gaussian_prior(SHAPE), None
    if place == "bound weights":
        prior = dataclasses.replace(prior, mean=jax.device_put(prior.mean, jax.devices()[0]))
    elif place == "mesh":
        mesh = jax.make_mesh((1,), ("images",), axis_types=(jax.sharding.AxisType.Auto,))
    solver = DDiff(Fixed(20.0), num_steps={"anywhere": 13, "bound weights": 14, "mesh": 15}[place])  # nobody else's
    with jax.log_compiles():
        dd.solve(solver, prior, dd.Problem(masks, y, 0.05, operator_axis=0), keys, num_chunks=4, mesh=mesh)
    compiled = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    assert sum("_run_chunk" in message for message in compiled) == 1, compiled
