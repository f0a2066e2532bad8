"""Metrics: one image in, one scalar out. `PROTOCOLS` names the two ways in which PSNR and SSIM are computed."""

from ddiff_jax.metrics._fidelity import PROTOCOLS, ProtocolName, psnr, ssim
from ddiff_jax.metrics._measure import measure
from ddiff_jax.metrics._perceptual import BACKBONES, Perceptual, find_lpips, installed_lpips, load_lpips, lpips_hashes
from ddiff_jax.metrics._seams import seam_ratio
from ddiff_jax.metrics._table import METRICS, Metric

__all__ = [
    "BACKBONES",
    "METRICS",
    "PROTOCOLS",
    "Metric",
    "Perceptual",
    "ProtocolName",
    "find_lpips",
    "installed_lpips",
    "load_lpips",
    "lpips_hashes",
    "measure",
    "psnr",
    "seam_ratio",
    "ssim",
]
