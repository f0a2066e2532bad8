"""What training computes: objectives, averages of the weights, and one update."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import flax.linen as nn  # noqa: TID253 - a network of the tests
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ddiff_jax as dd
from ddiff_jax.card import build_schedule
from ddiff_jax.denoising import LinearFilter
from ddiff_jax.levels import Level
from ddiff_jax.noise import root_key
from ddiff_jax.priors.network import PREDICTIONS, TARGETS
from ddiff_jax.training import averages, objective
from ddiff_jax.training import state as state_module
from ddiff_jax.training.recipe import PRESETS, Recipe
from ddiff_jax.training.state import as_prior, build_network, learning_rate, make_update, new_state

pytestmark = pytest.mark.once

NETWORK = {"model_channels": 32, "channel_mult": (1,), "attention_levels": (), "head_width": 32}


def recipe(channels=1, outputs=1, **changes):
    architecture = {**NETWORK, "in_channels": channels, "out_channels": channels * outputs}
    values = {"steps": 40, "batch_size": 4, "warmup_steps": 4, "decay_steps": 10, "learning_rate": 1e-3}
    return Recipe(architecture, (8, 8, channels), **{**values, **changes})


def batch(count=4, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "edm", "flow"])
def test_a_network_that_meets_its_target_knows_image_and_noise(prediction, schedule, x64):
    x_0, n = (jax.random.normal(jax.random.key(i), (5, 4, 4, 1), jnp.float64) for i in range(2))
    level = build_schedule({"name": schedule}).levels(20)[2:17:3]
    level = jax.tree.map(lambda c: jnp.asarray(c)[:, None, None, None], level)
    F = TARGETS[prediction](x_0, n, level, 0.5)
    x_t = level.signal * x_0 + level.sigma * n
    found_x, found_n = PREDICTIONS[prediction](F, x_t, level, 0.5)
    np.testing.assert_allclose(found_x, x_0, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found_n, n, rtol=1e-9, atol=1e-9)


def linear_denoiser(rank=3, count=40):
    images = np.random.default_rng(5).normal(size=(count, 8, 8, 1)) * np.linspace(0.1, 1, 8)[:, None]
    return LinearFilter.fit(images + 0.3).leading(rank, (8, 8, 1)), images + 0.3


def test_a_linear_denoiser_is_the_posterior_mean_of_its_gaussian(x64):
    linear, images = linear_denoiser()
    directions = np.asarray(linear.directions, np.float64).reshape(3, -1)
    rest = np.eye(64) - directions.T @ directions
    covariance = directions.T * np.asarray(linear.variances) @ directions + float(linear.remainder) * rest
    # No variance of the examples is lost, and the leading directions keep theirs.
    np.testing.assert_allclose(np.trace(covariance), images.reshape(40, -1).var(0, ddof=1).sum(), rtol=1e-5)
    x, mean = np.random.default_rng(6).normal(size=64), np.asarray(linear.mean, np.float64).ravel()
    for a, b in [(0.8, 0.6), (0.01, 1.0), (0.0, 1.0), (1.0, 0.02)]:
        d = np.linalg.solve(a**2 * covariance + b**2 * np.eye(64), x - a * mean)
        level = Level(np.float64(a), np.float64(b), np.float64(0))
        x_0, eps = linear.estimate(jnp.asarray(x.reshape(8, 8, 1)), level)
        np.testing.assert_allclose(x_0.ravel(), mean + a * covariance @ d, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(eps.ravel(), b * d, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_new_network_denoises_at_high_noise_as_the_linear_denoiser_it_is_added_to(prediction):
    linear, _ = linear_denoiser()
    r = recipe(prediction=prediction, linear_rank=3)
    state = new_state(r, None, linear)
    prior = as_prior(r, state.params, state.linear)
    x = jax.random.normal(jax.random.key(0), (8, 8, 1))
    bare = dataclasses.replace(prior, linear=None)
    for ratio, share in ((20.0, 1.0), (1.0, 0.5), (0.02, 0.0)):
        level = jax.tree.map(jnp.float32, prior.schedule.at(jnp.float32(ratio)))
        found, of_zero, known = prior.predict(x, level), bare.predict(x, level), linear.estimate(x, level)
        for one, zero, other in zip(found, of_zero, known, strict=True):
            np.testing.assert_allclose(one, zero + share * (other - zero), rtol=1e-3, atol=2e-4)


def test_what_is_learned_is_what_the_linear_denoiser_leaves():
    """One update from zero, where the loss is the linear denoiser's own error in the network's units."""
    linear, _ = linear_denoiser()
    plain = recipe(flip=False)
    with_it = dataclasses.replace(plain, linear_rank=3)
    images = jnp.asarray(batch())
    losses = []
    for r, given in ((plain, None), (with_it, linear)):
        after = make_update(r)(new_state(r, None, given), images, 1e-3)
        losses.append(float(after.sums["loss"].sum()) / 4)
    key = jax.random.fold_in(jax.random.fold_in(root_key(0), state_module.UPDATE), 0)
    x_0, n, level, _ = state_module._draw(key, plain, plain.levels, state_module.to_images(images))
    x_t = jax.vmap(lambda x_0, n, level: level.signal * x_0 + level.sigma * n)(x_0, n, level)
    found = jax.vmap(linear.estimate)(x_t, level)
    share = linear.share(level)[:, None, None, None]
    known = [(jnp.zeros_like(n), jnp.zeros_like(n)), tuple(share * part for part in found)]
    for loss, (x, eps) in zip(losses, known, strict=True):
        v = jax.vmap(lambda x, e, level: level.signal * e - level.sigma * x)(x_0 - x, n - eps, level)
        np.testing.assert_allclose(loss, jnp.mean(v**2), rtol=1e-5)
    with pytest.raises(ValueError, match="wants a linear denoiser with 3 directions"):
        new_state(with_it)
    with pytest.raises(ValueError, match="at least 60 example images"):
        LinearFilter.fit(np.zeros((8, 8, 8, 1))).leading(30, (8, 8, 1))


def test_every_part_of_the_levels_is_drawn_once():
    orders = []
    for seed in range(5):
        parts = np.floor(np.asarray(objective.stratified(jax.random.key(seed), 16)) * 16).astype(int)
        assert sorted(parts) == list(range(16))
        orders.append(parts.tolist())
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


def test_levels_of_timesteps_are_drawn_evenly_and_those_of_edm_about_its_mean():
    level, steps = objective.draw_levels(dd.linear_schedule(), jax.random.key(0), 1000)
    assert sorted(np.asarray(level.time).astype(int)) == list(range(1000))  # one of each
    assert steps is not None and np.asarray(steps.is_first).sum() == 1
    order = np.argsort(level.time)
    np.testing.assert_allclose(np.exp(steps.log_beta)[order], np.linspace(1e-4, 0.02, 1000), rtol=1e-4)
    level, steps = objective.draw_levels(dd.EDMSchedule(), jax.random.key(0), 1000)
    logs = np.log(np.asarray(level.sigma))
    assert steps is None and abs(logs.mean() + 1.2) < 0.01 and abs(logs.std() - 1.2) < 0.02


def test_the_variance_loss_is_the_divergence_between_two_normal_steps():
    schedule, count = dd.linear_schedule(), 6
    x_0, estimate, v = (0.4 * np.random.default_rng(i).normal(size=(count, 3, 3, 1)) for i in range(3))
    level, steps = objective.draw_levels(schedule, jax.random.key(3), count)
    t = np.round(np.asarray(level.time)).astype(int)
    wide = jax.tree.map(lambda c: jnp.asarray(c)[:, None, None, None], steps)
    images, estimates, places = (jnp.asarray(a, jnp.float32) for a in (x_0, estimate, v))
    found = objective.variance_loss(images, estimates, places, wide)
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    for i, step in enumerate(t):
        before = alpha_bar[step - 1]
        posterior = beta[step] * (1 - before) / (1 - alpha_bar[step])
        factor = np.sqrt(before) * beta[step] / (1 - alpha_bar[step])
        variance = np.exp(0.5 * ((v[i] + 1) * np.log(beta[step]) + (1 - v[i]) * np.log(posterior)))
        distance = (factor * (x_0[i] - np.clip(estimate[i], -1, 1))) ** 2
        expected = 0.5 * (np.log(variance / posterior) + (posterior + distance) / variance - 1)
        np.testing.assert_allclose(found[i], expected.mean() / np.log(2), rtol=2e-3)


def test_the_first_step_is_the_likelihood_of_its_level():
    x, mean = np.array([-1.0, -127 / 255, 1.0]), np.array([-0.9, -0.5, 0.8])
    log_variance = np.array([-4.0, -5.0, -3.0])
    levels, means, widths = (jnp.asarray(a, jnp.float32) for a in (x, mean, log_variance))
    found = objective._log_likelihood(levels, means, widths)
    normal = stats.norm(mean, np.exp(0.5 * log_variance))
    upper, lower = normal.cdf(x + 1 / 255), normal.cdf(x - 1 / 255)
    np.testing.assert_allclose(found, np.log([upper[0], upper[1] - lower[1], 1 - lower[2]]), rtol=1e-4)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_averages_have_the_width_that_they_are_named_by(width):
    steps, weights = 4000, np.zeros(4000)
    for t in range(1, steps + 1):
        share = averages.retained(t, width)
        weights[: t - 1] *= share
        weights[t - 1] = 1 - share
    times = (np.arange(steps) + 0.5) / steps
    mean = (weights * times).sum()
    assert weights.sum() == pytest.approx(1)
    assert np.sqrt((weights * (times - mean) ** 2).sum()) == pytest.approx(width, rel=1e-2)


def test_other_averages_are_made_of_the_kept_ones():
    steps, every = 2000, 250
    path = np.cumsum(np.random.default_rng(0).normal(size=(steps, 8)), axis=0)  # a wandering weight

    def average(width, last):
        found = path[0]
        for t in range(1, last + 1):
            found = averages.take_in(found, path[t - 1], averages.retained(t, width))
        return found

    kept = [(t, width) for t in range(every, steps + 1, every) for width in (0.05, 0.10)]
    values = np.stack([average(width, t) for t, width in kept])
    for width in (0.07, 0.15):
        shares = averages.coefficients(kept, (steps, width))
        assert shares.sum() == pytest.approx(1)
        error = np.linalg.norm(shares @ values - average(width, steps))
        assert error < 0.05 * np.linalg.norm(average(0.05, steps) - average(width, steps)), (width, error)
    exact = averages.coefficients(kept, (steps, 0.10))
    np.testing.assert_allclose(exact, np.arange(len(kept)) == len(kept) - 1, atol=1e-6)


def test_the_weights_that_a_training_begins_with_stay_the_callers(tiny):
    r = recipe()
    given = new_state(r).params
    kept = jax.tree.map(np.array, given)
    make_update(r)(new_state(r, given), jnp.asarray(batch()), 1e-3)
    jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(np.asarray, given))


def test_the_rate_rises_stays_and_falls():
    r = recipe()
    rates = [float(learning_rate(r, k)) for k in range(r.steps)]
    np.testing.assert_allclose(rates[:4], 1e-3 * np.arange(1, 5) / 4, rtol=1e-5)
    np.testing.assert_allclose(rates[4:31], 1e-3, rtol=1e-5)
    assert np.all(np.diff(rates[30:]) < 0) and rates[-1] == pytest.approx(1e-4)


class Tiny(nn.Module):
    """A network that costs nothing and knows its noise level."""

    out_channels: int
    in_channels: int = 1

    @nn.compact
    def __call__(self, x, t):
        h = jnp.tanh(nn.Conv(16, (3, 3), name="conv_1")(x) + nn.Dense(16)(t[:, None] / 1000)[:, None, None])
        return nn.Conv(self.out_channels, (3, 3), name="last")(h)

    def example_inputs(self):
        return jax.ShapeDtypeStruct((1, 8, 8, self.in_channels), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(state_module, "build_network", lambda r, **changes: Tiny(r.architecture["out_channels"]))


def updated(outputs=1, block=None, mesh=None):
    r = recipe(outputs=outputs)
    state, update = new_state(r), make_update(r, mesh, block)
    if mesh is not None:
        state = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    for k in range(2):
        state = update(state, jnp.asarray(batch(seed=k)), 1e-3)
    return state


def test_blocks_change_nothing_but_rounding(tiny):
    whole, sums = updated(2), updated(2, 2).sums
    for one, other in zip(*map(jax.tree.leaves, (whole, updated(2, 2))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    assert float(sums["count"].sum()) == 8 and float(sums["updates"]) == 2 and float(sums["variance"]) > 0


def test_an_update_with_a_broken_image_is_left_out_and_counted(tiny):
    r = recipe()
    broken = np.zeros((4, 8, 8, 1), np.float32)
    broken[1, 2, 2] = np.nan
    before = new_state(r)
    kept = jax.tree.map(np.array, before.params)
    after = make_update(r)(before, jnp.asarray(broken), 1e-3)
    assert int(after.step) == 1 and float(after.sums["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(np.asarray, after.params))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("prediction", ["v", "eps", "edm"])
def test_the_network_learns(prediction, tiny):
    r = recipe(prediction=prediction, steps=60, decay_steps=0, flip=False, batch_size=8)
    smooth = np.broadcast_to(np.linspace(20, 235, 8, dtype=np.float32)[:, None, None], (8, 8, 8, 1)).astype(np.uint8)
    state, update = new_state(r), make_update(r)
    losses = []
    for _ in range(r.steps):
        before = float(state.sums["loss"].sum())
        state = update(state, jnp.asarray(smooth), 1e-2)
        losses.append((float(state.sums["loss"].sum()) - before) / 8)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5]), losses
    prior = as_prior(r, state.averages[0])
    assert prior.prediction == prediction and prior.schedule == r.levels


DEVICES = """
import sys
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from test_training_core import Tiny, state_module, updated
state_module.build_network = lambda r, **changes: Tiny(r.architecture["out_channels"])
mesh = jax.make_mesh((2,), ("images",), axis_types=(jax.sharding.AxisType.Auto,))
one = jax.tree.leaves(updated(2))
for block in (None, 1):
    for a, b in zip(one, jax.tree.leaves(updated(2, block, mesh)), strict=True):
        assert len(b.sharding.device_set) == 2
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
"""


def test_devices_that_share_a_batch_find_the_same():
    program = DEVICES.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_recipes_refuse_what_does_not_fit(unchecked):
    for changes, message in {
        "steps": ({"steps": 0}, "steps must be at least 1"),
        "rate": ({"learning_rate": float("nan")}, "learning_rate must be"),
        "decay": ({"decay_steps": 50}, "warmup_steps \\+ decay_steps must be from 0 to 40"),
        "prediction": ({"prediction": "epsilon"}, "unknown prediction"),
        "widths": ({"averages": (0.1, 0.1)}, "different widths"),
        "schedule": ({"schedule": {"name": "liner"}}, "did you mean 'linear'"),
    }.values():
        with pytest.raises(ValueError, match=message):
            recipe(**changes)
    with pytest.raises(ValueError, match="multiple of 3"):
        make_update(recipe(), block=3)
    with pytest.raises(ValueError, match="out_channels must be 1, or 2"):
        build_network(dataclasses.replace(recipe(), architecture={**recipe().architecture, "out_channels": 3}))
    with pytest.raises(ValueError, match="a learned variance needs"):
        build_network(recipe(outputs=2, prediction="edm"))
    with pytest.raises(ValueError, match="another architecture"):
        new_state(recipe(), new_state(recipe(outputs=2)).params)


def test_presets_are_networks_that_exist():
    for name, preset in PRESETS.items():
        made = preset.recipe(3)
        module = build_network(made)
        module.check((1, *made.image_shape), labelled=False)
        shapes = jax.eval_shape(module.init, root_key(0), *module.example_inputs())["params"]
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
        assert f"{count:.1f} million" in preset.about or f"{count:.0f} million" in preset.about, (name, count)
