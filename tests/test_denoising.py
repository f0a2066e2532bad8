"""Denoising errors of exact priors, whose values are known, and the command that prints them."""

import json

import jax
import numpy as np
import pytest
from conftest import gaussian_prior

import ddiff_jax as dd
from ddiff_jax import image_files
from ddiff_jax.cli.check_prior import lines
from ddiff_jax.denoising import LinearFilter, measure_baselines, measure_denoising

pytestmark = pytest.mark.once

SHAPE = (6, 6, 1)
VAR = 0.25


def white(count, seed=0):
    return np.asarray(np.sqrt(VAR) * jax.random.normal(jax.random.key(seed), (count, *SHAPE)))


def test_exact_prior_has_the_errors_of_the_formula():
    errors = measure_denoising(gaussian_prior(SHAPE, clip=False), white(200), white(1000, 1), num_levels=4)
    want = np.sqrt(VAR * errors.ratio**2 / (VAR + errors.ratio**2))
    np.testing.assert_allclose(errors.network, want, rtol=0.02)
    np.testing.assert_allclose(errors.linear, want, rtol=0.04)  # of a covariance that is estimated
    np.testing.assert_allclose(errors.mean, np.sqrt(VAR), rtol=0.02)
    np.testing.assert_allclose(errors.time, dd.linear_schedule().levels(4).time[:-1])


def test_a_bad_prior_loses_at_the_levels_where_it_is_bad():
    network = dd.from_denoiser(
        lambda x, t: jax.numpy.where(t > 500, 0.5 * x, x), kind="x0", image_shape=SHAPE, clip=False
    )
    errors = measure_denoising(network, white(64), white(500, 1), num_levels=5)
    assert errors.ratio[0] in errors.lost
    good = measure_denoising(gaussian_prior(SHAPE, clip=False), white(64), white(100, 1), num_levels=5)
    assert not np.any(good.network > 1.02 * np.minimum(good.linear, good.mean))


def test_linear_filter_is_the_conditional_mean_of_its_model():
    examples = white(40)
    fitted = LinearFilter.fit(examples)
    covariance = fitted.directions.T * (fitted.variances - fitted.remainder) @ fitted.directions
    covariance += fitted.remainder * np.eye(36)
    noisy = white(3, 2)
    centred = noisy.reshape(3, -1) - fitted.mean
    want = fitted.mean + centred @ np.linalg.solve(covariance + 0.3**2 * np.eye(36), covariance)
    np.testing.assert_allclose(fitted.denoise(noisy, 0.3).reshape(3, -1), want, rtol=1e-3, atol=1e-4)


def test_a_filter_or_baselines_found_before_serve_as_well_as_the_examples():
    prior, images, examples = gaussian_prior(SHAPE, clip=False), white(20), white(50, 1)
    want = measure_denoising(prior, images, examples, num_levels=3, seed=5)
    fitted = LinearFilter.fit(examples)
    baselines = measure_baselines(prior.schedule, images, fitted, num_levels=3, seed=5)
    for reference in (fitted, baselines):
        again = measure_denoising(prior, images, reference, num_levels=3, seed=5)
        for name, values in vars(want).items():
            np.testing.assert_array_equal(getattr(again, name), values)
    with pytest.raises(ValueError, match="baselines must be of the prior's schedule"):
        measure_denoising(prior, images, baselines, num_levels=4)
    with pytest.raises(ValueError, match="the reference images must have the prior's shape"):
        measure_denoising(prior, images, LinearFilter.fit(np.zeros((4, 5, 5, 1), np.float32)))


def test_a_network_that_is_not_finite_loses_everywhere():
    broken = dd.from_denoiser(lambda x, t: x / 0, kind="x0", image_shape=SHAPE)
    errors = measure_denoising(broken, white(8), white(20, 1), num_levels=2)
    assert errors.loses().all()
    assert "worse at 2 of 2 levels" in "\n".join(lines(errors, "broken", 8))


def test_too_few_examples_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match="at least 4 example images"):
        measure_denoising(gaussian_prior(SHAPE), white(6))
    with pytest.raises(ValueError, match=r"the images must have the prior's shape \(6, 6, 1\)"):
        measure_denoising(gaussian_prior(SHAPE), np.zeros((8, 4, 4, 1), np.float32))


def test_command_prints_a_table_and_names_what_it_cannot_read(ddiff, quick_prior, tmp_path):
    for i in range(8):
        x = 0.5 * np.random.default_rng(i).normal(size=(64, 64, 3)).astype(np.float32)
        image_files.write_png(tmp_path / f"{i}.png", x)
    image_files.write_png(tmp_path / "large.png", np.zeros((80, 70, 3), np.float32))
    code, out, err = ddiff("check-prior", tmp_path, "--levels", 3, "--no-cache")
    assert code == 0, err
    assert (
        len(out.splitlines()) == 5
        and "on 9 images" in out
        and "1 images converted, such as" in err
        and "70x80 pixels cut to a" in err
    )
    (tmp_path / "bad.png").write_bytes(b"no picture")
    code, out, err = ddiff("check-prior", tmp_path, "--levels", 2, "--json", "--no-cache")
    assert code == 1 and "bad.png" in err
    assert len(json.loads(out)["network"]) == 2
