"""Noise per entry and the numbers of a camera, from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("quick_prior")]

SAMPLE = "sample"
QUICK = ("--solver", "ddiff", "--steps", "3", "--no-cache", "--quiet")


def metrics(folder="restored"):
    return json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))


def photograph(path, side=64, seed=0):
    rows = np.linspace(-0.8, 0.8, side, dtype=np.float32)
    x = np.stack([np.add.outer(rows, rows) / 2, np.add.outer(-rows, rows) / 2, np.outer(rows, rows)], -1)
    np.save(path, x.astype(np.float32))


def test_levels_per_entry_simulate_and_restore(ddiff):
    photograph("x.npy")
    rows = np.full((64, 64), 0.02, np.float32)
    rows[:, 32:] = 0.4  # the right half is much noisier; channels alike
    np.save("level.npy", rows)
    task = ("--task", "blur", "--kernel", "kernel.npy")
    np.save("kernel.npy", np.ones((1, 1), np.float32))
    code, _, error = ddiff("restore", "x.npy", *task, "--sigma", "level.npy", "--output", "a", *QUICK)
    assert code == 0, error
    y, x = np.load("a/x_measurement.npy"), np.load("x.npy")
    error = (y - x).std(axis=(0, 2))
    assert error[:32].max() < 0.05 and error[32:].min() > 0.25
    row = metrics("a")["images"][0]
    assert row["sigma_y"] == pytest.approx(np.sqrt((0.02**2 + 0.4**2) / 2), rel=1e-4)
    assert metrics("a")["runs"][0]["settings"]["sigma_y"] == "level.npy"
    # The measurement given back, with its map from a folder; another map is another restoration, not the same.
    Path("levels").mkdir()
    np.save("levels/x_measurement.npy", rows[..., None])
    back = ("restore", "a/x_measurement.npy", "--measured", *task, "--sigma", "levels", "--output", "b", *QUICK)
    assert ddiff(*back)[0] == 0
    restored = Path("b/x_measurement_restored.png").read_bytes()
    np.save("levels/x_measurement.npy", rows[:, ::-1, None].copy())
    assert ddiff(*back, "--existing", "overwrite")[0] == 0
    assert Path("b/x_measurement_restored.png").read_bytes() != restored
    for wrong, message in ((rows[:5], "do not broadcast"), (-rows, "must hold positive, finite")):
        np.save("levels/x_measurement.npy", wrong)
        code, _, error = ddiff(*back, "--existing", "overwrite")
        assert code and message in error


def test_a_cameras_numbers_are_simulated_and_restored(ddiff):
    photograph("x.npy")
    np.save("kernel.npy", np.ones((3, 3), np.float32) / 9)
    task = ("--task", "blur", "--kernel", "kernel.npy")
    camera = ("--photons", "200", "--gain", "2.5", "--offset", "100", "--read", "4")
    code, _, error = ddiff("restore", "x.npy", *task, *camera, "--output", "a", *QUICK)
    assert code == 0, error
    y = np.load("a/x_measurement.npy")
    assert abs(y.mean() - (100 + 2.5 * 100)) < 15  # about mid-grey
    noise = metrics("a")["runs"][0]["settings"]["noise"]
    assert noise == {"name": "poisson_gaussian", "photons": 200, "gain": 2.5, "offset": 100, "read": 4}
    misfit = metrics("a")["images"][0]["misfit"]  # in the camera's numbers squared
    assert misfit > 100
    code, _, error = ddiff("restore", "a/x_measurement.npy", "--measured", *task, *camera, "--output", "b", *QUICK)
    assert code == 0, error
    picture = "a/x_measurement.png"
    code, _, error = ddiff("restore", picture, "--measured", *task, *camera, "--output", "c", *QUICK)
    assert code and "a camera's own numbers: give an array" in error
    code, _, error = ddiff("restore", "x.npy", *task, "--gain", "2", "--output", "d", *QUICK)
    assert code == 2 and "give --photons too" in error
