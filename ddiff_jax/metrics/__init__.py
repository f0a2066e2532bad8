"""Metrics: one image in, one scalar out. `PROTOCOLS` names the two ways in which PSNR and SSIM are computed."""

from ddiff_jax.metrics.fidelity import PROTOCOLS, Protocol, psnr, ssim
from ddiff_jax.metrics.measure import METRICS, measure
from ddiff_jax.metrics.perceptual import BACKBONES, Perceptual, load_lpips

__all__ = [
    "BACKBONES",
    "METRICS",
    "PROTOCOLS",
    "Perceptual",
    "Protocol",
    "load_lpips",
    "measure",
    "psnr",
    "ssim",
]
