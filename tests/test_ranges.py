"""Arrays whose numbers are not in [-1, 1]: refused or warned about, with the formula that mends them."""

from pathlib import Path

import numpy as np
import pytest

from ddiff_jax import image_files, ranges
from ddiff_jax.files import Caution

pytestmark = pytest.mark.once

PATH = Path("x.npy")
SAMPLE = Path(image_files.__file__).parent / "assets" / "sample.png"


@pytest.fixture
def x():
    return image_files.read_picture(SAMPLE)[0]


def formula(message):
    """Take the formula out of a message and apply it."""
    return message.partition("save ")[2].partition(" (of")[0].partition(", with")[0]


@pytest.mark.parametrize("full", [255, 65535])
def test_images_out_of_range_are_refused_with_the_formula(x, full):
    given = (x + 1) * full / 2
    with pytest.raises(ValueError, match=r"values from 0 to [\de.+]+; an image is in \[-1, 1\] here") as error:
        ranges.check_image(PATH, given)
    np.testing.assert_allclose(eval(formula(str(error.value)), {"x": given, "np": np}), x, atol=1e-6)


def test_images_that_overshoot_are_refused_but_for_a_little(x):
    assert ranges.check_image(PATH, 1.04 * x) == []
    with pytest.raises(ValueError, match=r"save np.clip\(x, -1, 1\)"):
        ranges.check_image(PATH, 1.2 * x)
    with pytest.raises(ValueError, match=r"save 2 \* \(x - black\) / \(white - black\) - 1"):
        ranges.check_image(PATH, 3 * x)


def test_images_that_look_like_0_to_1_are_warned_about(x):
    (note,) = ranges.check_image(PATH, (x + 1) / 2)
    assert isinstance(note, Caution)
    assert note.endswith("save 2 * x - 1")
    assert ranges.check_image(PATH, x) == []


@pytest.mark.parametrize("sigma_y", [0.0, 0.05, 0.2])
def test_measurements_in_other_units_are_warned_about(x, sigma_y):
    y = x + np.random.default_rng(0).normal(0, sigma_y, x.shape)
    assert ranges.check_picture_measurement(y, sigma_y, 1.0) == []
    for full, spelled in {1: "2 * y - 1", 255: "y / 127.5 - 1", 65535: "y / 32767.5 - 1"}.items():
        given = (x + 1) * full / 2 + (y - x) * min(full / 2, 1) * (sigma_y < 0.2)
        (note,) = ranges.check_picture_measurement(given, sigma_y, 1.0)
        assert isinstance(note, Caution)
        assert spelled in note


def test_a_bright_kernel_widens_the_range(x):
    assert ranges.check_picture_measurement(3 * x, 0.05, 3.0) == []
    assert len(ranges.check_picture_measurement(3 * x, 0.05, 1.0)) == 1


def test_noise_larger_than_the_measurement(x):
    draw = np.random.default_rng(0)
    for sigma_y in (0.05, 1.0, 3.0):  # whatever the noise is, a measurement that holds it is as large
        assert ranges.check_noise_level(x + draw.normal(0, sigma_y, x.shape), sigma_y) == []
        noise = draw.normal(0, sigma_y, (2, *x.shape))
        assert ranges.check_noise_level(noise[0] + 1j * noise[1], sigma_y) == []
    (note,) = ranges.check_noise_level(x, 12.75)
    assert isinstance(note, Caution)
    assert "give --sigma 0.1" in note
