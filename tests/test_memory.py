import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior

import ddiff_jax as dd
from ddiff_jax import _execution, memory, solvers
from ddiff_jax.memory import MemoryPlan, peak_bytes, tree_bytes
from ddiff_jax.restoration.machine import choose_batch_size

pytestmark = pytest.mark.once

MIB = 2**20
SIDE = 64  # images of 16 KiB


def test_results_are_held_from_where_they_are_made_to_where_they_are_used_last():
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)  # 256 KiB
    one = 2**18

    def chain(x):
        for _ in range(5):
            x = x @ x
        return x

    def kept(x):
        parts = [x @ (i + x) for i in range(5)]
        return jnp.stack([part @ x for part in reversed(parts)])

    assert peak_bytes(chain, x) == 2 * one  # a product cannot take its operand's place
    assert peak_bytes(jax.jit(chain), x) == 2 * one  # the same inside of another program
    assert peak_bytes(kept, x) >= 10 * one
    assert peak_bytes(lambda x: jnp.sum(jnp.exp(jnp.sin(x) * 2 + 1)), x) < one  # joined, and never stored
    looped = peak_bytes(lambda x: jax.lax.fori_loop(0, 9, lambda _, x: x @ x, x), x)
    assert one <= looped <= 3 * one


def test_estimates_are_near_what_the_compiler_reports(optimised):
    prior = dd.load_prior("faces64")
    x = jnp.zeros(prior.image_shape)

    def denoise(prior, x):
        return prior.denoise(x, prior.schedule.at_time(300))

    compiled = jax.jit(denoise).lower(prior, x).compile().memory_analysis()
    assert compiled is not None
    np.testing.assert_allclose(peak_bytes(denoise, prior, x), compiled.temp_size_in_bytes, rtol=0.25)
    # Backwards XLA holds more than it must, half as much again.
    guide = jax.grad(lambda x: jnp.sum(denoise(prior, x) ** 2))
    assert 3 * compiled.temp_size_in_bytes < peak_bytes(guide, x) < 20 * compiled.temp_size_in_bytes


def problem(count):
    operator = dd.operators.gaussian_blur((16, 16, 3), size=5, std=1.0)
    return dd.Problem(operator, jnp.zeros((count, 16, 16, 3)), 0.1), dd.image_keys(jax.random.key(0), jnp.arange(count))


def test_a_plan_counts_weights_images_and_a_step():
    prior = gaussian_prior()
    one, many = (dd.memory_plan(solvers.DDiff(num_steps=5), prior, *problem(n)) for n in (1, 12))
    image = 16 * 16 * 3 * 4
    assert one.weights == tree_bytes(prior) and many.weights == one.weights
    assert 11 * image < many.images - one.images
    assert one.step == many.step and 2 * image <= one.step <= 40 * image
    assert (one.at_once, many.at_once, many.num_images) == (1, 12, 12)
    assert many.total == many.weights + many.images + 12 * many.step
    assert one.fits and 2**28 < one.available < 2**50
    twice = many.of_runs(2)
    assert (twice.at_once, twice.num_images, twice.images) == (24, 24, 2 * many.images)
    assert "of 1 at a time" in str(one)
    guided = dd.memory_plan(solvers.DPS(0.5, num_steps=5), prior, *problem(12))
    assert guided.at_once == 12  # the host makes the steps, of all images


def test_a_plan_tells_how_many_images_fit():
    plan = MemoryPlan(weights=100 * MIB, images=20 * MIB, step=200 * MIB, num_images=16, at_once=16, available=2**30)
    assert not plan.fits and plan.most_at_once == 3  # of 0.8 GiB
    assert MemoryPlan(**{**vars(plan), "at_once": 3}).fits
    assert MemoryPlan(**{**vars(plan), "available": 1}).most_at_once == 1
    assert [_execution.divisor(16, most) for most in (0, 1, 3, 7, 16)] == [1, 1, 2, 4, 16]


def test_solve_takes_fewer_images_at_a_time_where_memory_is_short(monkeypatch):
    """As on an accelerator, which this is not: only the choice can be seen here."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    given, keys = problem(12)
    solver, prior = solvers.DDiff(num_steps=2), gaussian_prior()
    plan = dd.memory_plan(solver, prior, given, keys)
    assert plan.at_once == 12
    room = int((plan.weights + plan.images + 5 * plan.step) / memory.SHARE) + 1
    monkeypatch.setattr("ddiff_jax._solve.device_bytes", lambda device: room)
    short = dd.memory_plan(solver, prior, given, keys)
    assert (short.at_once, short.fits) == (4, True)


def test_larger_images_come_in_smaller_batches():
    sizes = [choose_batch_size(None, 100, (side, side, 3)) for side in (32, 64, 128, 256, 512)]
    assert sizes == [32, 8, 2, 1, 1]
    assert choose_batch_size(5, 100, (512, 512, 3)) == 5
    assert choose_batch_size(None, 3, (32, 32, 3)) == 3


def test_restore_says_what_it_will_hold(ddiff, quick_prior, monkeypatch):
    code, _, said = ddiff("restore", "--steps", "2", "--no-cache")
    assert code == 0 and "memory  about 0.0" in said and "warning" not in said
    monkeypatch.setattr("ddiff_jax._solve.device_bytes", lambda device: 1000)
    code, _, said = ddiff("restore", "--steps", "2", "--no-cache", "--output", "again")
    assert code == 0 and "ddiff: warning: memory: this may not fit" in said and "lower --batch-size" in said


@pytest.mark.parametrize("written, want", [("1073741824", 2**30), ("max", None)])
def test_a_containers_limit_is_the_machines(tmp_path, monkeypatch, written, want):
    (tmp_path / "memory.max").write_text(written + "\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    found = memory.device_bytes(jax.devices()[0])
    assert found == want if want else found > 2**28
