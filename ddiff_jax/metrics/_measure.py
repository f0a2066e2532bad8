"""All metrics of a batch of images in one compiled call. Images of a batch do not touch each other.

The paper's residual metric is not defined in the released code, and the two tables of the paper use different scales.
What is computed here says what it is: `Problem.misfit`, the mean squared misfit over the observed numbers, and by how
much it exceeds the noise's power, sigma_y^2, which is what the noise alone leaves of the true image.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ddiff_jax.metrics._fidelity import PROTOCOLS, WINDOW, psnr, ssim
from ddiff_jax.metrics._perceptual import BACKBONES, Perceptual
from ddiff_jax.operators import equivalent_images, nearest_equivalent
from ddiff_jax.problem import Problem

Scores = dict[str, Float[Array, "..."]]


def _one(problem: Problem, x: Any, truth: Any, lpips: Mapping[str, Perceptual]) -> Scores:
    scores: Scores = {}
    if truth is not None:
        is_picture = truth.ndim == 3
        for protocol in PROTOCOLS:
            scores[f"psnr_{protocol}"] = psnr(x, truth, protocol=protocol)
            if is_picture and min(truth.shape[:2]) >= WINDOW[protocol]:
                scores[f"ssim_{protocol}"] = ssim(x, truth, protocol=protocol)
        for backbone, distance in lpips.items():
            if is_picture and min(truth.shape[:2]) >= distance.module.min_side:
                scores[f"lpips_{backbone}"] = distance(x, truth)
        if len(equivalent_images(problem.operator, x)) > 1:
            scores["psnr_resolved"] = psnr(nearest_equivalent(problem.operator, x, truth), truth, protocol="standard")
    scores["misfit"] = problem.misfit(x)
    scores["misfit_excess"] = scores["misfit"] - problem.noise_power
    return scores


@jax.jit
def _measure(problem: Problem, x: Any, truth: Any, lpips: Any) -> Scores:
    return problem.map(lambda problem, x, truth: _one(problem, x, truth, lpips), x, truth)


def measure(
    problem: Problem,
    x: Shaped[Array, "N ..."] | Shaped[np.ndarray, "N ..."],
    truth: Shaped[Array, "N ..."] | Shaped[np.ndarray, "N ..."] | None = None,
    *,
    lpips: Mapping[str, Perceptual] | None = None,
) -> dict[str, np.ndarray]:
    """Measure a batch of restorations.

    Args:
        problem: the batch that was restored, as `solve` took it.
        x: restored images as the solver returned them, not clipped.
        truth: clean images; without them only the misfit can be measured.
        lpips: distances by the name of their backbone, "alex" or "vgg".

    Returns:
        Name in `METRICS` to one number per image. What cannot be measured is left out: SSIM and LPIPS of signals,
        of volumes and of pictures smaller than their windows, LPIPS without weights, everything but the misfit
        without a truth, `psnr_resolved` (the PSNR of the nearest of the images that measure the same) for operators
        that tell all images apart.

    Raises:
        ValueError: the shapes do not fit, or an unknown backbone.
    """
    lpips = dict(lpips or {})
    unknown = [name for name in lpips if name not in BACKBONES]
    if unknown:
        raise ValueError(f"LPIPS has the backbones {', '.join(BACKBONES)}; got {', '.join(unknown)}")
    if truth is not None and np.shape(truth) != np.shape(x):
        raise ValueError(f"restored and clean images must have one shape; got {np.shape(x)} and {np.shape(truth)}")
    if np.shape(problem.y)[:1] != np.shape(x)[:1]:
        raise ValueError(
            f"there must be one measurement per image; got {np.shape(problem.y)[:1]} and {np.shape(x)[:1]}"
        )
    return jax.device_get(_measure(problem, jnp.asarray(x), truth, lpips))
