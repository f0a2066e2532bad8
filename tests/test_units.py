"""Units of the data: stated once, applied to images, measurements and noise by linearity, undone in the results."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ddiff_jax as dd
from ddiff_jax import image_files, operators
from ddiff_jax.cli.settings import read
from ddiff_jax.files import Unusable
from ddiff_jax.restoration import resolve
from ddiff_jax.restoration.jobs import Job
from ddiff_jax.restoration.reading import Reader
from ddiff_jax.restoration.saving import save_as
from ddiff_jax.restoration.store import decided_by
from ddiff_jax.units import Units

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
SHAPE = (16, 12, 1)
V = RNG.uniform(-1000, 3000, SHAPE).astype(np.float32)  # an image in Hounsfield units
UNITS = Units(-1000.0, 3000.0)
QUICK = ("--steps", "2", "--batch-size", "1", "--no-cache")


@dd.pytree_dataclass
class Shifted:
    """2 x + 0.5, an instrument with an offset."""

    def forward(self, x):
        return jnp.float32(2) * x + jnp.float32(0.5)


@dd.pytree_dataclass
class Squared:
    def forward(self, x):
        return x**2


LINEAR = {
    "blur": operators.gaussian_blur(SHAPE, std=1.0, size=5),
    "factor": operators.super_resolution(SHAPE, factor=4),
    "mask": operators.inpainting(SHAPE, np.arange(192).reshape(16, 12) % 2),
    "fourier": operators.undersampled_fourier(SHAPE, jax.random.key(0)),
    "affine": Shifted(),
}


def test_images_go_there_and_back():
    x = UNITS.of_image(Path("x.npy"), V)
    assert x.min() >= -1 and x.max() <= 1
    np.testing.assert_allclose(UNITS.to_data(x), V, atol=1e-3)
    assert UNITS.of_image(Path("x"), np.array([-1000, 1000, 3000])).tolist() == [-1, 0, 1]
    np.testing.assert_allclose(UNITS.difference_to_data(np.array([0.5])), [1000])
    with pytest.raises(Unusable, match=r"x.npy holds values from -1000 to 5000; --data-range -1000 3000 does not"):
        UNITS.of_image(Path("x.npy"), np.array([-1000, 5000]))
    for low, high in ((1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="the smaller one first"):
            Units(low, high)


@pytest.mark.parametrize("name", LINEAR)
def test_measurements_of_data_are_measurements_of_images(name):
    operator = LINEAR[name]
    assert UNITS.why_not(operator, SHAPE) is None
    y = np.asarray(operator.forward(jnp.asarray(V)))  # what an instrument gives that sees the data's own numbers
    x = UNITS.of_image(Path("x"), V)
    ours = UNITS.of_measurement(operator, y, SHAPE)
    np.testing.assert_allclose(ours, operator.forward(jnp.asarray(x)), atol=2e-6)
    np.testing.assert_allclose(UNITS.measurement_to_data(operator, ours, SHAPE), y, rtol=1e-5, atol=2e-3)
    assert ours.dtype == y.dtype


def test_nonlinear_operators_are_refused():
    assert "is not linear" in (UNITS.why_not(Squared(), SHAPE) or "")
    assert "is not linear" in (UNITS.why_not(operators.phase_retrieval(SHAPE), SHAPE) or "")
    asked: dict[str, Any] = {"task": "phase_retrieval", "data_range": (0.0, 4095.0)}
    Reader(resolve(**asked))  # of clean images alone nothing has to be linear
    cases: list[dict[str, Any]] = [{"measured": True, "sigma": 3.0}, {"sigma": 3.0}]
    for more in cases:
        with pytest.raises(ValueError, match="this one is not linear"):
            Reader(resolve(**asked, **more))
    with pytest.raises(ValueError, match="counts of photons have no other units"):
        resolve(task="low_light", measured=True, data_range=(0.0, 1.0))


def test_settings_say_the_units():
    settings = resolve(data_range=(0.0, 4000.0), sigma=100.0)
    assert settings.sigma_y == 0.05
    assert settings.as_dict()["data_range"] == [0, 4000]
    assert decided_by(settings) != decided_by(resolve(data_range=(0.0, 2000.0), sigma=50.0))
    typed = read(["--data-range", "-4000", "4000", "--sigma", "0.05"]).settings  # by chance the preset's number
    assert (typed.sigma_y, typed.as_dict()["data_range"]) == (0.05 / 4000, [-4000, 4000])
    assert "data_range" not in resolve().as_dict() and "save" not in resolve().as_dict()  # as before there were units
    assert resolve(data_range=(0.0, 4000.0)).sigma_y == 0.05  # the preset's is in [-1, 1]


def test_a_measurement_in_counts_is_restored_to_counts(ddiff, quick_prior):
    """Simulated, saved, and read again as a measurement, in the data's units throughout."""
    v = (RNG.uniform(0.1, 0.9, (64, 64, 3)) * 4000).astype(np.uint16)
    np.save("v.npy", v)
    units = ("--data-range", "0", "4000", "--sigma", "80", "--save", "npy", "tiff", "png", *QUICK)
    code, _, err = ddiff("restore", "v.npy", "--output", "simulated", *units)
    assert code == 0, err
    assert "numbers of arrays from 0 (black) to 4000 (white) are -1 to 1" in err
    (row,) = json.loads(Path("simulated/metrics.json").read_text())["images"]
    assert {"restored", "restored_array", "restored_tiff", "comparison"} <= row["files"].keys()
    restored = np.load("simulated/v_restored.npy")
    np.testing.assert_array_equal(image_files.read(Path("simulated/v_restored.tiff"))[0], restored)
    picture = np.asarray(Image.open("simulated/v_restored.png"))
    np.testing.assert_allclose(picture, np.clip(restored, 0, 4000) / 4000 * 255, atol=0.51)
    error = np.sqrt(np.mean((restored - v) ** 2))
    np.testing.assert_allclose(20 * np.log10(4000 / error), row["psnr"], atol=0.1)  # what metrics.json says

    y = np.asarray(operators.super_resolution((64, 64, 3), factor=4).forward(jnp.asarray(v, jnp.float32)))
    np.save("y.npy", y)
    code, _, err = ddiff("restore", "y.npy", "--measured", "--output", "measured", *units)
    assert code == 0, err
    assert "warning" not in err
    again = np.load("measured/y_restored.npy")
    assert np.sqrt(np.mean((again - v) ** 2)) < 1.1 * error
    assert "skipped 1 of 1" in ddiff("restore", "y.npy", "--measured", "--output", "measured", *units)[2]
    _, _, err = ddiff("restore", "y.npy", "--measured", "--output", "measured", *units[:5], *QUICK)
    assert "skipped 1 of 1" in err and "made with another save" in err
    Path("measured/y_restored.npy").unlink()  # what was promised is gone
    assert "made again 1" in ddiff("restore", "y.npy", "--measured", "--output", "measured", *units)[2]


def test_images_are_saved_as_what_can_hold_them(tmp_path):
    job = Job(Path("x.npy"), "x", "x_", tmp_path)
    both = RNG.normal(size=(6, 5, 2)).astype(np.float32)
    written = save_as(["png"], "restored", both, job)
    assert written.keys() == {"restored", "restored_array"}  # no picture holds a phase
    z = np.load(tmp_path / "x_restored.npy")
    np.testing.assert_array_equal(z, both[..., 0] + 1j * both[..., 1])
    levels = np.asarray(Image.open(tmp_path / "x_restored.png"))
    np.testing.assert_allclose(levels, np.clip(np.abs(z), 0, 1) * 255, atol=0.51)
    many = RNG.uniform(-1, 1, (6, 5, 4)).astype(np.float32)
    assert save_as(["tiff"], "std", many, job).keys() == {"std_array", "std_tiff"}
    np.testing.assert_array_equal(image_files.read(tmp_path / "x_std.tiff")[0], many)
    grey = many[..., :1]
    assert save_as(["npy", "tiff"], "mean", grey, job, picture=-grey).keys() == {"mean_array", "mean_tiff"}
    assert image_files.read(tmp_path / "x_mean.tiff")[0].shape == (6, 5)
    np.testing.assert_array_equal(np.load(tmp_path / "x_mean.npy"), grey)
