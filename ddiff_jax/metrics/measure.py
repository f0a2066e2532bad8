"""All metrics of a batch of images in one compiled call. Images of a batch do not touch each other."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ddiff_jax.metrics.fidelity import PROTOCOLS, WINDOW, psnr, ssim
from ddiff_jax.metrics.perceptual import BACKBONES, Perceptual
from ddiff_jax.metrics.residual import misfit, noise_power
from ddiff_jax.operators.base import Operator

Scores = dict[str, Float[Array, "..."]]

# Name to whether larger is better; None where neither is.
METRICS: dict[str, bool | None] = {
    **{f"{name}_{protocol}": True for name in ("psnr", "ssim") for protocol in PROTOCOLS},
    **{f"lpips_{backbone}": False for backbone in BACKBONES},
    "misfit": None,  # below the noise power it fits the noise
    "misfit_excess": None,
}


def _one(operator: Operator, x: Any, y: Any, sigma_y: Any, truth: Any, lpips: Mapping[str, Perceptual]) -> Scores:
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
    scores["misfit"] = misfit(operator, x, y)
    scores["misfit_excess"] = scores["misfit"] - noise_power(y, sigma_y)
    return scores


@functools.partial(jax.jit, static_argnames="operator_axis")
def _measure(
    operator: Operator, x: Any, y: Any, sigma_y: Any, truth: Any, lpips: Any, operator_axis: int | None
) -> Scores:
    axes = (operator_axis, 0, 0, 0 if sigma_y.ndim else None, None if truth is None else 0, None)
    return jax.vmap(_one, axes)(operator, x, y, sigma_y, truth, lpips)


def measure(
    operator: Operator,
    x: Shaped[Array, "N ..."] | Shaped[np.ndarray, "N ..."],
    y: Shaped[Array, "N ..."] | Shaped[np.ndarray, "N ..."],
    sigma_y: float | Shaped[Array, " N"] | Shaped[np.ndarray, " N"],
    truth: Shaped[Array, "N ..."] | Shaped[np.ndarray, "N ..."] | None = None,
    *,
    lpips: Mapping[str, Perceptual] | None = None,
    operator_axis: int | None = None,
) -> dict[str, np.ndarray]:
    """Measure a batch of restorations.

    Args:
        operator: one for all images, or a stack of them (`operator_axis=0`).
        x: restored images as the solver returned them, not clipped.
        y: measurements.
        sigma_y: noise standard deviation, one for all or one each.
        truth: clean images; without them only the misfit can be measured.
        lpips: distances by the name of their backbone, "alex" or "vgg".
        operator_axis: as in `solve`.

    Returns:
        Name in `METRICS` to one number per image. What cannot be measured is left out: SSIM and LPIPS of signals,
        of volumes and of pictures smaller than their windows, LPIPS without weights, everything but the misfit
        without a truth.

    Raises:
        ValueError: the shapes do not fit, or an unknown backbone.
    """
    lpips = dict(lpips or {})
    unknown = [name for name in lpips if name not in BACKBONES]
    if unknown:
        raise ValueError(f"LPIPS has the backbones {', '.join(BACKBONES)}; got {', '.join(unknown)}")
    if truth is not None and np.shape(truth) != np.shape(x):
        raise ValueError(f"restored and clean images must have one shape; got {np.shape(x)} and {np.shape(truth)}")
    if np.shape(y)[:1] != np.shape(x)[:1]:
        raise ValueError(f"there must be one measurement per image; got {np.shape(y)[:1]} and {np.shape(x)[:1]}")
    sigma_y = jnp.asarray(sigma_y, jnp.float32)
    scores = _measure(operator, jnp.asarray(x), jnp.asarray(y), sigma_y, truth, lpips, operator_axis)
    return jax.device_get(scores)
