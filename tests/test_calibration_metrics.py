"""Measures of calibration, against numbers worked out elsewhere and against samples that are exact.

The arrays of the first part are formulas. What published implementations make of them, and of a second set, was
computed with GenSBI 0.3.4 (run_tarp without and with its scaling, _run_sbc) and sbi 0.27.0 (_run_tarp, _run_sbc): all
ranks agree one by one, and the curves to the last digit.
"""

import math

import numpy as np
import pytest

from ddiff_jax.calibration import metrics

pytestmark = pytest.mark.once

PROBLEMS, SAMPLES, SIZE = 40, 19, 6
PRINTED = 6e-9  # of numbers given to eight decimals
ERRORS = 4  # standard errors


def wave(rate, phase):
    return math.sqrt(2) * np.sin(rate + phase)


def places(width=SIZE):
    """The flat place of every number of every problem, from 1."""
    return np.arange(PROBLEMS)[:, None] * width + np.arange(width) + 1.0


TRUTHS = wave(0.9 * places(), 0)
DRAWS = wave(12.9898 * np.arange(1.0, SAMPLES + 1)[:, None], 78.233 * places()[:, None])
REFERENCES = wave(1.7 * places(), 0)
OTHERS = wave(0.37 * np.arange(1.0, SAMPLES + 1)[:, None], 2.1 * places()[:, None])


def test_tarp_is_that_of_published_implementations():
    found = metrics.tarp_ranks(TRUTHS, DRAWS, REFERENCES)
    assert found[:10].tolist() == [15, 10, 0, 15, 12, 14, 0, 12, 15, 15] and found.sum() == 417
    curve = [0, 0.15, 0.225, 0.225, 0.25, 0.325, 0.425, 0.55, 0.925, 1, 1]
    np.testing.assert_allclose(metrics.tarp_curve(found, SAMPLES, 10), curve, atol=1e-12)


def test_sbc_is_that_of_published_implementations():
    found = metrics.ranks(TRUTHS, DRAWS)
    assert found.sum() == 2270 and found[0].tolist() == [16, 18, 13, 6, 1, 6]
    counts, expected = metrics.sbc_counts(found, SAMPLES)
    assert counts[0].tolist() == [5, 4, 6, 2, 5, 6, 1, 0, 8, 3]
    np.testing.assert_array_equal(expected, PROBLEMS / 10)
    assert metrics.sbc_p_values(found, SAMPLES)[0] == pytest.approx(0.122325, abs=6e-7)


def test_both_agree_with_them_on_random_numbers_too():
    draw = np.random.default_rng(3).normal
    truths, samples, references = draw(size=(300, 5)), 1.2 * draw(size=(300, 19, 5)) + 0.3, draw(size=(300, 5))
    curve = [0, 0.19, 0.3133333, 0.4366667, 0.5433333, 0.65, 0.76, 0.82, 0.8966667, 0.9633333, 1]
    np.testing.assert_allclose(
        metrics.tarp_curve(metrics.tarp_ranks(truths, samples, references), 19, 10), curve, atol=6e-8
    )
    found = metrics.ranks(truths, samples)
    assert found.sum() == 12308 and found[0].tolist() == [17, 0, 10, 5, 6]


def test_coverage_by_coordinate():
    found = metrics.ranks(TRUTHS, DRAWS)
    assert metrics.interval(SAMPLES, 0.5) == (5, 15) and metrics.interval(SAMPLES, 0.9) == (1, 19)
    assert metrics.central_coverage(found, SAMPLES, 0.5)[0] == pytest.approx(0.495833, abs=6e-7)
    assert metrics.central_coverage(found, SAMPLES, 0.9)[0] == pytest.approx(0.941667, abs=6e-7)


def test_gap_and_energy():
    assert np.mean(metrics.excess(DRAWS, 0.1 * TRUTHS)) == pytest.approx(-0.03881706, abs=PRINTED)
    assert np.mean(metrics.sample_variances(DRAWS)) == pytest.approx(6.09027597, abs=PRINTED)
    energies = metrics.energy_distances(DRAWS, OTHERS)
    assert np.mean(energies) == pytest.approx(0.39907903, abs=PRINTED)
    assert energies[0] == pytest.approx(0.35040785, abs=PRINTED)


def test_energy_distance_is_the_sum_that_it_says():
    a, b = DRAWS[:1, :3], OTHERS[:1, :4]

    def mean(x, y, apart):
        return np.mean([np.linalg.norm(p - q) for i, p in enumerate(x) for j, q in enumerate(y) if not apart or i != j])

    direct = 2 * mean(a[0], b[0], False) - mean(a[0], a[0], True) - mean(b[0], b[0], True)
    assert metrics.energy_distances(a, b)[0] == pytest.approx(direct, rel=1e-12)


def normal_problems(count=2000, size=5, width=1.0, seed=0):
    """Posteriors N(m_i, 1) with their truths, samples of another width, and exact ones."""
    draw = np.random.default_rng(seed).standard_normal
    means = draw((count, size))
    truths, samples, exact = means + draw((count, size)), draw((count, SAMPLES, size)), draw((count, SAMPLES, size))
    return means, truths, means[:, None] + width * samples, means[:, None] + exact


def test_exact_samples_pass_all():
    means, truths, samples, exact = normal_problems()
    count, variances = len(truths), np.full(len(truths), 5.0)

    def density(x, axes):
        return -0.5 * np.sum((x - means.reshape(count, *axes, 5)) ** 2, axis=-1)

    inside = metrics.density_ranks(density(truths, ()), density(samples, (1,)))
    for share in metrics.SHARES:
        error = metrics.binomial_error(count, share)
        assert metrics.covered(inside, SAMPLES, share) == pytest.approx(share, abs=ERRORS * error)
        value, error = metrics.central_coverage(metrics.ranks(truths, samples), SAMPLES, share)
        assert value == pytest.approx(share, abs=ERRORS * error)
    closer = metrics.tarp_ranks(truths, samples, metrics.others(truths))
    assert metrics.uniformity_p_value(closer, SAMPLES) > 0.01
    assert metrics.deviation(closer, SAMPLES) < 1.95 / math.sqrt(count)  # Kolmogorov's bound for one in a thousand
    projected = metrics.ranks(truths @ metrics.projections(5).T, samples @ metrics.projections(5).T)
    assert min(metrics.sbc_p_values(projected, SAMPLES)) > 1e-3
    gap, error = metrics.gap(metrics.excess(samples, means), variances)
    assert gap == pytest.approx(0, abs=ERRORS * error) and error < 0.01
    raw, _ = metrics.gap(metrics.excess(samples, means, corrected=False), variances)
    assert raw == pytest.approx(10 * math.log10(1 + 1 / SAMPLES), abs=ERRORS * error)
    assert metrics.spread(samples, variances) == pytest.approx(1, abs=0.01)
    energies = metrics.energy_distances(samples, exact)
    assert np.mean(energies) == pytest.approx(0, abs=ERRORS * metrics.standard_error(energies))


def test_narrow_samples_fail_where_they_should():
    means, truths, samples, exact = normal_problems(width=0.5)
    variances = np.full(len(truths), 5.0)
    assert metrics.spread(samples, variances) == pytest.approx(0.5, abs=0.01)
    gap, error = metrics.gap(metrics.excess(samples, means), variances)
    assert gap == pytest.approx(0, abs=ERRORS * error)  # their mean is right
    assert metrics.central_coverage(metrics.ranks(truths, samples), SAMPLES, 0.9)[0] < 0.7
    assert metrics.uniformity_p_value(metrics.tarp_ranks(truths, samples, metrics.others(truths)), SAMPLES) < 1e-6
    assert np.mean(metrics.energy_distances(samples, exact)) > 0.1


def test_published_gap_is_the_mean_ratio_in_decibel():
    truths, means = np.zeros((2, 1)), np.array([[1.0], [2.0]])
    samples = np.array([[[10.0], [10.0]], [[2.0], [2.0]]])
    assert metrics.published_gap(samples, truths, means) == pytest.approx((20 + 0) / 2)


def test_ranks_are_uniform_where_laws_have_atoms():
    draw = np.random.default_rng(1)
    everything = np.where(draw.uniform(size=(4000, SAMPLES + 1)) < 0.6, 0.0, draw.standard_normal((4000, SAMPLES + 1)))
    found = metrics.ranks(everything[:, 0], everything[:, 1:])
    assert metrics.uniformity_p_value(found, SAMPLES) > 0.01
    ties_below = np.sum(everything[:, 1:] < everything[:, :1], axis=1)
    assert metrics.uniformity_p_value(ties_below, SAMPLES) < 1e-6  # what it would be without drawing


def test_weights_by_density_ruin_the_coverage_of_exact_samples():
    """What the docstring says of a published benchmark: a region of 90% of such weights holds hardly anything."""
    draw = np.random.default_rng(2)
    count, num_samples, size = 400, 50, 64
    of_truths = -0.5 * draw.chisquare(size, count)
    of_samples = -0.5 * draw.chisquare(size, (count, num_samples))
    weights = np.exp(of_samples - of_samples.max(axis=1, keepdims=True))
    found = {}
    for name, weight in {"softmax": weights, "uniform": np.ones_like(weights)}.items():
        order = np.argsort(-of_samples, axis=1)
        share = np.cumsum(np.take_along_axis(weight, order, 1), axis=1) / np.sum(weight, axis=1, keepdims=True)
        last = np.argmax(share >= 0.9 - 1e-12, axis=1)
        bound = np.take_along_axis(np.take_along_axis(of_samples, order, 1), last[:, None], 1)[:, 0]
        found[name] = np.mean(of_truths >= bound)
    assert found["softmax"] < 0.1
    assert found["uniform"] == pytest.approx(0.9, abs=ERRORS * metrics.binomial_error(count, 0.9))


def test_the_sliced_distance_of_a_shift_is_its_mean_length():
    a = np.random.default_rng(4).standard_normal((500, 3))
    b = a + np.array([0.3, 0.0, 0.0])
    assert metrics.sliced_distance(a, a) == 0
    assert metrics.sliced_distance(a, b) == pytest.approx(0.3 / math.sqrt(3), rel=0.25)  # 64 directions


@pytest.mark.parametrize("count", [0, 10, 18, 20, 29])
def test_numbers_of_samples_that_would_bias_are_refused(count):
    with pytest.raises(ValueError, match="19, 39, 59"):
        metrics.check_num_samples(count)
