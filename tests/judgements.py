"""Judgements made of numbers, for tests of what is written about them."""

import numpy as np

from ddiff_jax.denoising import Errors
from ddiff_jax.training.judgement import Judgement


def judgement(network, *, psnr=20.0, step=None, images_seen=None, shade=100):
    """Make a judgement at three levels, where the linear filter errs by 0.5, 0.2 and 0.01."""
    values = ([150.0, 2.0, 0.01], [999.0, 470.0, 0.0], network, [0.5, 0.2, 0.01], [0.52] * 3)
    errors = Errors(*(np.array(column, np.float64) for column in values))
    scores = {"super_resolution": np.array([psnr, psnr + 2]), "box_inpainting": np.array([psnr + 4, psnr + 4])}
    pictures = np.full((20, 20, 3), shade, np.uint8), np.full((40, 30, 3), shade, np.uint8)
    return Judgement(errors, scores, 4, 0, *pictures, step=step, images_seen=images_seen)
