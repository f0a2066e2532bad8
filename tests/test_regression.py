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

# PSNR in dB of the packaged photograph, restored in 20 steps with the default values. That is few: phase retrieval and
# low light need hundreds, and what is recorded of them says that they go their way as before, not that they get there.
RECORDED = {
    "blur": 24.28,
    "box_inpainting": 21.64,
    "camera_blur": 18.57,
    "colourisation": 13.61,
    "gaussian_blur": 23.30,
    "high_dynamic_range": 24.02,
    "inpainting": 26.40,
    "low_light": 10.23,
    "motion_blur": 19.34,
    "phase_retrieval": 7.77,
    "random_inpainting": 20.86,
    "sparse_tomography": 19.66,
    "super_resolution": 21.40,
    "undersampled_fourier": 23.31,
}
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
    elsewhere = set().union(*presets().values()) - set(presets()["faces64"])
    assert set(RECORDED) == set(presets()["faces64"])
    # It needs images of 256x256, a prior for them, and the weights of its network: none of these is packaged.
    assert elsewhere == {"nonlinear_blur"}


# Those whose operators and presets are like another task's wait for the slow run.
LIKE_OTHERS = ("blur", "camera_blur", "colourisation", "gaussian_blur", "inpainting", "random_inpainting")


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=[pytest.mark.slow] if task in LIKE_OTHERS else []) for task in RECORDED]
)
def test_quality_is_as_recorded(ddiff, task):
    code, _, err = ddiff("restore", "--task", task, "--steps", 20, "--no-cache", *stencil(task))
    assert code == 0, err
    (row,) = json.loads(Path("restored/metrics.json").read_text())["images"]
    found, wanted = row["psnr"], RECORDED[task]
    assert abs(found - wanted) < DECIBEL, f"{task}: {found:.2f} dB instead of {wanted}"
