"""What the command restores with the real network, task by task: recorded numbers, which no theory gives.

They guard what laws and oracles cannot see: presets, network, weights and command line together. A number that
changes must be explained in the commit that changes it. To record anew:

    pytest -n 0 tests/test_regression.py -k test_quality | grep "dB instead of"

Recorded on an x86-64 CPU with jax and jaxlib 0.10.2, flax 0.12.8, numpy 2.4 and Python 3.11; alike, to 0.001 dB, with
and without XLA's optimisations and on one and two cores.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddiff_jax.config import presets

# Compiled as users compile: what is recorded is what they see.
pytestmark = [pytest.mark.once, pytest.mark.usefixtures("optimised")]

# PSNR in dB of the packaged photograph and of the packaged cross-section, restored in 20 steps with the default values.
# That is few: phase retrieval and low light need hundreds, and what is recorded of them says that they go their way as
# before, not that they get there.
FACES = {
    "blur": 25.42,
    "box_inpainting": 22.26,
    "camera_blur": 19.91,
    "colourisation": 19.21,
    "gaussian_blur": 24.46,
    "high_dynamic_range": 25.51,
    "inpainting": 26.64,
    "low_light": 10.23,
    "motion_blur": 20.59,
    "phase_retrieval": 7.77,
    "random_inpainting": 23.06,
    "sparse_tomography": 22.69,
    "super_resolution": 21.83,
    "undersampled_fourier": 24.28,
}
SECTIONS = {"sparse_fan_beam_tomography": 27.98, "sparse_tomography": 28.89, "undersampled_fourier": 31.00}
RECORDED = {"faces64": FACES, "phantoms64": SECTIONS}
DECIBEL = 0.1  # other machines and versions round differently, and every step goes on from the one before


def stencil(task):
    """Make what a user adds to some tasks."""
    if task == "inpainting":
        mask = np.full((64, 64), 255, np.uint8)
        mask[20:44, 20:44] = 0
        Image.fromarray(mask).save("mask.png")
        return "--mask", "mask.png"
    if task == "blur":
        kernel = np.zeros((9, 9), np.uint8)
        kernel[2:7, 3:6] = 200
        Image.fromarray(kernel).save("kernel.png")
        return "--kernel", "kernel.png"
    return ()


def test_every_task_is_recorded():
    for prior, recorded in RECORDED.items():
        assert set(recorded) == set(presets()[prior])
    elsewhere = set().union(*presets().values()).difference(*RECORDED.values())
    # It needs images of 256x256, a prior for them, and the weights of its network: none of these is packaged.
    assert elsewhere == {"nonlinear_blur"}


# Those whose operators and presets are like another task's wait for the slow run.
LIKE_OTHERS = [
    *(("faces64", task) for task in ("blur", "camera_blur", "colourisation", "gaussian_blur", "inpainting")),
    *(("faces64", task) for task in ("random_inpainting", "sparse_tomography")),
    *(("phantoms64", task) for task in ("sparse_fan_beam_tomography", "undersampled_fourier")),
]


@pytest.mark.parametrize(
    ("prior", "task"),
    [
        pytest.param(prior, task, marks=[pytest.mark.slow] if (prior, task) in LIKE_OTHERS else [])
        for prior, recorded in RECORDED.items()
        for task in recorded
    ],
)
def test_quality_is_as_recorded(ddiff, prior, task):
    asked = ["--prior", prior] if prior == "faces64" else []  # the other one is the tasks' own
    code, _, err = ddiff("restore", "--task", task, *asked, "--steps", 20, "--no-cache", *stencil(task))
    assert code == 0, err
    (row,) = json.loads(Path("restored/metrics.json").read_text())["images"]
    found, wanted = row["psnr"], RECORDED[prior][task]
    assert abs(found - wanted) < DECIBEL, f"{task}: {found:.2f} dB instead of {wanted}"
