import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from weights import smoothing_prior

from ddiff_jax import NoiseSchedule, linear_schedule
from ddiff_jax.schedule import respaced_timesteps

FLOAT32_ROUNDING = 1e-6  # relative; a few units in the last place
FLOAT32_DIFFERENCE = 5e-6  # relative; neighbouring table entries differ in their second or third digit


@pytest.mark.parametrize(
    ("t", "alpha_bar"),
    [
        (0, 0.9999),
        (1, 0.9997800920720721),
        (50, 0.9699514935950494),
        (90, 0.9132644806435357),
        (500, 0.07779665836502389),
        (999, 4.035829765375676e-05),
    ],
)
def test_linear_schedule_has_the_published_values(t, alpha_bar):
    schedule = linear_schedule()
    np.testing.assert_allclose(schedule.alpha_bar[t], alpha_bar, rtol=FLOAT32_ROUNDING)
    np.testing.assert_allclose(schedule.noise_var[t], 1 - alpha_bar, rtol=FLOAT32_ROUNDING)


@pytest.mark.parametrize(("t", "s"), [(1, 0.00738457017), (500, 0.10025635), (999, 0.1414212980)])
def test_posterior_std_has_the_published_values(t, s):
    got = linear_schedule().posterior_std(jnp.int32(t), jnp.int32(t - 1))
    np.testing.assert_allclose(got, s, rtol=FLOAT32_DIFFERENCE)


def test_posterior_std_of_a_respaced_pair_matches_float64():
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    a, b = alpha_bar[400], alpha_bar[380]
    want = np.sqrt((1 - b) / (1 - a) * (1 - a / b))
    got = linear_schedule().posterior_std(jnp.int32(400), jnp.int32(380))
    np.testing.assert_allclose(got, want, rtol=FLOAT32_DIFFERENCE)


def test_all_timesteps_are_walked_by_default():
    for num_steps in (None, 999, 1000):
        np.testing.assert_array_equal(respaced_timesteps(1000, num_steps), np.arange(999, -1, -1))


def test_respaced_sequences_are_strictly_decreasing_and_end_at_zero():
    for num_steps in range(1, 1000):
        timesteps = respaced_timesteps(1000, num_steps)
        assert len(timesteps) == num_steps + 1
        assert timesteps[0] == 999
        assert timesteps[-1] == 0
        assert np.all(np.diff(timesteps) < 0)


@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_impossible_step_counts_are_refused(num_steps):
    with pytest.raises(ValueError, match="between 1 and 1000"):
        respaced_timesteps(1000, num_steps)


@pytest.mark.parametrize("make", [smoothing_prior, lambda: gaussian_prior((64, 64, 3), mean=0.1, clip=False)])
def test_denoise_takes_fractions_and_the_clean_level(make):
    prior = dataclasses.replace(make(), clip=False)
    x = jax.random.normal(jax.random.key(0), (64, 64, 3))
    for clean in (-1, -1.0, jnp.int32(-1), jnp.float32(-1.0)):
        np.testing.assert_array_equal(prior.denoise(x, clean), x)
    np.testing.assert_allclose(prior.denoise(x, 500.0), prior.denoise(x, 500), rtol=1e-4, atol=1e-4)
    # Half-way between two levels the signal-to-noise ratio is their geometric mean.
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    ratio = np.sqrt(np.prod(alpha_bar[500:502] / (1 - alpha_bar[500:502])))
    eps = np.asarray(prior.eps(x, 500.5))
    want = (np.asarray(x) - np.sqrt(1 / (1 + ratio)) * eps) / np.sqrt(ratio / (1 + ratio))
    np.testing.assert_allclose(prior.denoise(x, 500.5), want, rtol=1e-4, atol=1e-4)


def test_fractions_below_the_first_level_count_as_it():
    for ours, at in zip(linear_schedule().levels(jnp.asarray([-0.5, 0.0, -1.0])), (0.9999, 1e-4), strict=True):
        np.testing.assert_allclose(ours, [at, at, round(at)], rtol=FLOAT32_ROUNDING)


@pytest.mark.parametrize("table", [[0.5, 0.9], [1.0, 0.5], [0.9, 0.0], []])
def test_tables_that_are_no_schedule_are_refused(table):
    with pytest.raises(ValueError, match="alpha_bar"):
        NoiseSchedule(np.asarray(table))


@pytest.mark.parametrize("arguments", [(0, 1e-4, 0.02), (10, 0.0, 0.02), (10, 0.1, 0.01), (10, 0.1, 1.0)])
def test_impossible_linear_schedules_are_refused(arguments):
    with pytest.raises(ValueError, match="linear schedule"):
        linear_schedule(*arguments)
