"""Levels and schedules against published numbers, the table of parameterisations' formulas, and each other."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from oracles import ALPHA_BAR, timesteps
from weights import smoothing_prior

from ddiff_jax import (
    EDMSchedule,
    FlowSchedule,
    Level,
    VPSchedule,
    VPSDESchedule,
    cosine_schedule,
    linear_schedule,
    scaled_linear_schedule,
)
from ddiff_jax.levels import walk
from ddiff_jax.schedule import published_time

pytestmark = pytest.mark.once

ROUNDING = 1e-12  # relative; tables are float64
SCHEDULES = {
    "linear": linear_schedule(),
    "rescaled": linear_schedule(500, 2e-4, 0.04, time_scale=2.0),
    "edm": EDMSchedule(),
    "denoiser": EDMSchedule(100.0, 0.01, 1.0, "sigma", 1.0),
    "flow": FlowSchedule(time_scale=1000.0),
    "vp_sde": VPSDESchedule(),
}


@pytest.fixture(params=SCHEDULES.values(), ids=list(SCHEDULES))
def schedule(request):
    return request.param


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
    level = linear_schedule().at_time(t)
    np.testing.assert_allclose(level.signal**2, alpha_bar, rtol=ROUNDING)
    np.testing.assert_allclose(level.sigma**2, 1 - alpha_bar, rtol=ROUNDING)


@pytest.mark.parametrize(("t", "s"), [(1, 0.00738457017), (500, 0.10025635), (999, 0.1414212980)])
def test_posterior_std_has_the_published_values(t, s):
    schedule = linear_schedule()
    np.testing.assert_allclose(schedule.at_time(t).posterior_std(schedule.at_time(t - 1)), s, rtol=1e-7)


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
    count = schedule.num_levels
    level = schedule.at_time(np.array([0, 1, count // 2, count - 2, count - 1]))
    np.testing.assert_allclose(level.signal**2, ends, rtol=1e-9)
    np.testing.assert_allclose(level.sigma**2, 1 - np.asarray(ends), rtol=1e-5)  # of ten digits


@pytest.mark.parametrize(("t", "s"), [(400, 380), (5, 4), (999, 0), (7, -1)])
def test_step_variance_of_a_table_is_its_beta(t, s):
    schedule = linear_schedule()
    before = ALPHA_BAR[s] if s >= 0 else 1.0
    got = schedule.at_time(t).step_variance(schedule.at_time(s))
    np.testing.assert_allclose(got, 1 - ALPHA_BAR[t] / before, rtol=1e-10)


@pytest.mark.parametrize("spacing", ["even", "strided", "quad"])
@pytest.mark.parametrize("num_steps", [1, 7, 100, 333])
def test_walks_over_a_table_take_its_timesteps(spacing, num_steps):
    levels = linear_schedule().levels(num_steps, spacing)
    np.testing.assert_array_equal(levels.time, timesteps(num_steps, spacing))


def test_uniform_walk_is_the_released_one():
    levels = linear_schedule().levels(8, "uniform")
    np.testing.assert_array_equal(levels.time, [999, 857, 715, 573, 431, 289, 147, 0, -1])


def test_all_levels_are_walked_by_default():
    schedule = linear_schedule()
    np.testing.assert_array_equal(schedule.levels(None).time, np.arange(999, -2, -1))
    for num_steps in (None, 999, 1000):
        level, cleaner = walk(schedule, num_steps, to_clean=False)
        np.testing.assert_array_equal(level.time, np.arange(999, 0, -1))
        np.testing.assert_array_equal(cleaner.time, np.arange(998, -1, -1))


@pytest.mark.parametrize("spacing", ["even", "strided", "quad"])
@pytest.mark.parametrize("num_steps", [1, 2, 9, 60])
def test_walks_fall_to_the_clean_image(schedule, spacing, num_steps):
    levels = schedule.levels(num_steps, spacing)
    assert levels.signal.shape == levels.sigma.shape == levels.time.shape == (num_steps + 1,)
    assert np.all(np.diff(levels.ratio) < 0)
    assert (levels.signal[-1], levels.sigma[-1]) == (1.0, 0.0)
    assert levels.schedule == schedule and hash(levels.schedule) == hash(schedule)


def test_a_level_is_found_by_its_ratio(schedule):
    levels = schedule.levels(30)[:-1]
    found = schedule.at(levels.ratio)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(levels), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    traced = jax.jit(schedule.at)(jnp.asarray(levels.ratio, jnp.float32))
    for got, want in zip(jax.tree.leaves(traced), jax.tree.leaves(levels), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-3)  # float32, of times up to 999


def test_beyond_the_noisiest_level_is_the_noisiest(schedule):
    noisiest = schedule.at(schedule.levels(1).ratio[0])
    for ratio in (1e6, np.inf):
        for got, want in zip(jax.tree.leaves(schedule.at(ratio)), jax.tree.leaves(noisiest), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9)


def test_times_of_known_levels():
    assert np.isclose(EDMSchedule().at(0.5).time, np.log(0.5) / 4)
    assert np.isclose(EDMSchedule(time_scale=250.0).at(80.0).time, 1095.51, atol=0.01)
    assert np.isclose(FlowSchedule(time_scale=1000.0).at(1.0).time, 500)
    assert np.isclose(linear_schedule(time_scale=0.25).at_time(400).time, 100)
    edm = EDMSchedule().levels(18).sigma[[0, 1, 9, 16, 17]]
    np.testing.assert_allclose(edm, [80, 57.58598, 1.92334, 0.00752802, 0.002], rtol=1e-5)


def test_fractions_lie_between_whole_timesteps_and_minus_one_is_clean():
    schedule = linear_schedule()
    fraction, below, above = (schedule.at_time(t) for t in (500.5, 500, 501))
    np.testing.assert_allclose(np.log(fraction.ratio), (np.log(below.ratio) + np.log(above.ratio)) / 2, rtol=1e-9)
    assert fraction.time == 500.5
    traced = jax.jit(schedule.at_time)(jnp.array([-1.0, 0.0, 500.5]))
    np.testing.assert_allclose(traced.sigma, [0.0, schedule.at_time(0).sigma, fraction.sigma], rtol=1e-5)
    np.testing.assert_allclose(traced.signal[0], 1.0)
    clean = schedule.at_time(-1)
    assert (clean.signal, clean.sigma) == (1.0, 0.0)


def test_published_thresholds_carry_over():
    own = linear_schedule()
    np.testing.assert_array_equal(published_time(own.levels(None)), np.arange(999, -2, -1))
    np.testing.assert_array_equal(published_time(own.levels(100)), own.levels(100).time)
    other = EDMSchedule(sigma_max=200.0)
    same = other.at(own.levels(50)[:-1].ratio)
    np.testing.assert_allclose(published_time(same), own.levels(50)[:-1].time)


def test_views_of_a_level_agree(schedule):
    level = schedule.at(1.7)
    x_0, n = jax.random.normal(jax.random.key(0), (2, 5, 1))
    x_t = level.signal * x_0 + level.sigma * n
    np.testing.assert_allclose(level.eps(x_t, x_0), n, atol=1e-5)
    np.testing.assert_allclose(level.x_0(x_t, n), x_0, atol=1e-5)
    np.testing.assert_allclose(level.score(x_t, x_0), -n / level.sigma, atol=1e-5)
    np.testing.assert_allclose(level.velocity(x_t, x_0), n - x_0, atol=1e-5)


def test_variances_scale_with_the_level():
    """The same ratios in two scalings: variances differ by the squared signal alone."""
    vp = linear_schedule().levels(20)
    ve = EDMSchedule(sigma_max=200.0).at(vp.ratio)
    for k, j in itertools.pairwise(range(20)):
        want = vp[k].step_variance(vp[j]) / vp[k].signal ** 2
        np.testing.assert_allclose(ve[k].step_variance(ve[j]), want, rtol=1e-8)
        want = vp[k].posterior_std(vp[j]) / vp[j].signal
        np.testing.assert_allclose(ve[k].posterior_std(ve[j]), want, rtol=1e-8)


@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_impossible_step_counts_are_refused(num_steps):
    for to_clean in (True, False):
        with pytest.raises(ValueError, match="between 1 and 1000"):
            walk(linear_schedule(), num_steps, to_clean=to_clean)
    if num_steps < 1:
        with pytest.raises(ValueError, match="number of steps"):
            EDMSchedule().levels(num_steps)


@pytest.mark.parametrize(("num_steps", "spacing"), [(700, "quad"), (700, "uniform")])
def test_walks_that_repeat_levels_are_refused(num_steps, spacing):
    with pytest.raises(ValueError, match="at most about 500"):
        linear_schedule().levels(num_steps, spacing)


@pytest.mark.parametrize("make", [smoothing_prior, lambda: gaussian_prior((64, 64, 3), mean=0.1, clip=False)])
def test_denoise_takes_fractions_and_the_clean_level(make):
    prior, at = dataclasses.replace(make(), clip=False), linear_schedule().at_time
    x = jax.random.normal(jax.random.key(0), (64, 64, 3))
    for clean in (-1, -1.0, jnp.int32(-1), jnp.float32(-1.0)):
        np.testing.assert_allclose(prior.denoise(x, at(clean)), x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(prior.denoise(x, at(500.0)), prior.denoise(x, at(500)), rtol=1e-4, atol=1e-4)
    # Half-way between two levels the signal-to-noise ratio is their geometric mean.
    ratio = np.sqrt(np.prod(ALPHA_BAR[500:502] / (1 - ALPHA_BAR[500:502])))
    eps = np.asarray(prior.predict(x, at(500.5))[1])
    want = (np.asarray(x) - np.sqrt(1 / (1 + ratio)) * eps) / np.sqrt(ratio / (1 + ratio))
    np.testing.assert_allclose(prior.denoise(x, at(500.5)), want, rtol=1e-4, atol=1e-4)


def test_fractions_below_the_first_level_count_as_it():
    for t in (np.array([-0.5, 0.0, -1.0]), jnp.asarray([-0.5, 0.0, -1.0])):
        np.testing.assert_allclose(linear_schedule().at_time(t).sigma, [1e-2, 1e-2, 0.0], rtol=1e-5)


@pytest.mark.parametrize("table", [[0.5, 0.9], [1.0, 0.5], [0.9, 0.0], []])
def test_tables_that_are_no_schedule_are_refused(table):
    with pytest.raises(ValueError, match=r"one decreasing sequence inside .*; got shape"):
        VPSchedule(table)


@pytest.mark.parametrize("arguments", [(0, 1e-4, 0.02), (10, 0.0, 0.02), (10, 0.1, 0.01), (10, 0.1, 1.0)])
def test_impossible_linear_schedules_are_refused(arguments):
    with pytest.raises(ValueError, match="linear schedule"):
        linear_schedule(*arguments)
    with pytest.raises(ValueError, match="scaled linear schedule"):
        scaled_linear_schedule(*arguments)
    with pytest.raises(ValueError, match="cosine schedule needs"):
        cosine_schedule(0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EDMSchedule(sigma_max=0.001), "sigma_min"),
        (lambda: EDMSchedule(rho=0.0), "rho"),
        (lambda: EDMSchedule(conditioning="time"), "conditioning"),  # pyright: ignore[reportArgumentType]
        (lambda: FlowSchedule(s_max=1.0), "no signal is left"),
        (lambda: FlowSchedule(s_min=0.0), "s_min"),
        (lambda: VPSchedule([0.9, 0.5], time_scale=0.0), "time_scale"),
    ],
)
def test_impossible_schedules_are_refused(make, said, unchecked):
    with pytest.raises(ValueError, match=said):
        make()


def test_levels_are_values():
    level = linear_schedule().levels(3)
    assert isinstance(level, Level) and len(jax.tree.leaves(level)) == 3
    assert level[1:].sigma.shape == (3,)
    assert "of 1000" in repr(linear_schedule())
