import numpy as np
import pytest

from ddiff_jax.restoration.noise_level import estimate_sigma


def test_white_noise_is_measured_and_smooth_pictures_are_not():
    rows, cols = np.mgrid[:64, :48] / 64
    picture = np.stack([rows**2, rows * cols, np.sin(3 * cols)], axis=-1)
    noise = np.random.default_rng(0).standard_normal(picture.shape)
    assert estimate_sigma(picture) < 1e-3
    for sigma in (0.02, 0.5):
        np.testing.assert_allclose(estimate_sigma(picture + sigma * noise), sigma, rtol=0.05)


def test_edges_hardly_count():
    picture = np.zeros((64, 64, 1))
    picture[20:40, 13:50] = 1
    noise = 0.05 * np.random.default_rng(1).standard_normal(picture.shape)
    np.testing.assert_allclose(estimate_sigma(picture + noise), 0.05, rtol=0.08)


def test_hidden_pixels_are_left_out():
    noise = 0.1 * np.random.default_rng(2).standard_normal((64, 64, 1))
    mask = np.ones((64, 64, 1), bool)
    mask[10:50, 20:40] = False
    np.testing.assert_allclose(estimate_sigma(noise * mask, mask), 0.1, rtol=0.08)


def test_too_few_pixels_are_refused():
    with pytest.raises(ValueError, match=r"from 4 places .* give --sigma a number"):
        estimate_sigma(np.zeros((5, 5, 1)))
    with pytest.raises(ValueError, match="from 0 places"):
        estimate_sigma(np.zeros((64, 64, 3)), np.indices((64, 64)).sum(0)[..., None] % 2 > 0)
