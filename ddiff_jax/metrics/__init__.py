"""Metrics: one image in, one scalar out. `PROTOCOLS` names the two ways in which PSNR and SSIM are computed."""

from ddiff_jax.metrics._fidelity import PROTOCOLS, ProtocolName, psnr, ssim
from ddiff_jax.metrics._interferometry import chi2_amp, chi2_ca, chi2_cp, chi2_vis, closure_chi2, shifted_psnr
from ddiff_jax.metrics._measure import measure
from ddiff_jax.metrics._oracle import DIRECTED, oracle_gaps
from ddiff_jax.metrics._perceptual import BACKBONES, Perceptual, find_lpips, installed_lpips, load_lpips, lpips_hashes
from ddiff_jax.metrics._seams import seam_ratio
from ddiff_jax.metrics._table import METRICS, Metric

__all__ = [
    "BACKBONES",
    "DIRECTED",
    "METRICS",
    "PROTOCOLS",
    "Metric",
    "Perceptual",
    "ProtocolName",
    "chi2_amp",
    "chi2_ca",
    "chi2_cp",
    "chi2_vis",
    "closure_chi2",
    "find_lpips",
    "installed_lpips",
    "load_lpips",
    "lpips_hashes",
    "measure",
    "oracle_gaps",
    "psnr",
    "seam_ratio",
    "shifted_psnr",
    "ssim",
]
