import jax.numpy as jnp
import numpy as np
import pytest

from ddiff_jax import NoiseSchedule, cosine_schedule, linear_schedule, scaled_linear_schedule
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


@pytest.mark.parametrize(
    ("schedule", "ends"),
    [
        (cosine_schedule(), (0.9999587158, 0.9999125759, 0.4922851724, 2.428766907e-06, 2.428766907e-09)),
        (cosine_schedule(4000), (0.9999901342, 0.9999799649, 0.4934539797, 1.517980469e-07, 1.517980469e-10)),
        (
            scaled_linear_schedule(beta_start=0.00085, beta_end=0.012),
            (0.99915, 0.9982960278, 0.2763326838, 0.0047166989, 0.004660098513),
        ),
    ],
    ids=["cosine", "cosine in 4000", "scaled linear"],
)
def test_other_schedules_have_the_published_values(schedule, ends):
    count = schedule.num_timesteps
    at = jnp.asarray([0, 1, count // 2, count - 2, count - 1])
    np.testing.assert_allclose(schedule.alpha_bar[at], ends, rtol=FLOAT32_ROUNDING)
    np.testing.assert_allclose(schedule.noise_var[at], 1 - np.asarray(ends), rtol=1e-5)  # of ten digits


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


@pytest.mark.parametrize("table", [[0.5, 0.9], [1.0, 0.5], [0.9, 0.0], []])
def test_tables_that_are_no_schedule_are_refused(table):
    with pytest.raises(ValueError, match="alpha_bar"):
        NoiseSchedule(np.asarray(table))


@pytest.mark.parametrize("arguments", [(0, 1e-4, 0.02), (10, 0.0, 0.02), (10, 0.1, 0.01), (10, 0.1, 1.0)])
def test_impossible_linear_schedules_are_refused(arguments):
    with pytest.raises(ValueError, match="linear schedule"):
        linear_schedule(*arguments)
    with pytest.raises(ValueError, match="scaled linear schedule"):
        scaled_linear_schedule(*arguments)
    with pytest.raises(ValueError, match="cosine schedule needs"):
        cosine_schedule(0)
