"""Priors: what is known of clean images, as denoisers."""

from ddiff_jax.priors.absent import NoPrior
from ddiff_jax.priors.analytic import GaussianPrior, MixturePrior
from ddiff_jax.priors.base import (
    Latent,
    LearnedVariance,
    PredictsNoise,
    Prior,
    denoise_with_variance,
    predict,
    to_schedule,
)
from ddiff_jax.priors.derived import Decoder, LatentPrior, OnSchedule, SlicePrior, picture_shape
from ddiff_jax.priors.function import from_denoiser
from ddiff_jax.priors.linear import LinearDenoiser
from ddiff_jax.priors.network import Denoising, DiffusionPrior
from ddiff_jax.priors.sizes import EmbeddedPrior, PaddedPrior, with_shape
from ddiff_jax.priors.windows import WindowedPrior

__all__ = [
    "Decoder",
    "Denoising",
    "DiffusionPrior",
    "EmbeddedPrior",
    "GaussianPrior",
    "Latent",
    "LatentPrior",
    "LearnedVariance",
    "LinearDenoiser",
    "MixturePrior",
    "NoPrior",
    "OnSchedule",
    "PaddedPrior",
    "PredictsNoise",
    "Prior",
    "SlicePrior",
    "WindowedPrior",
    "denoise_with_variance",
    "from_denoiser",
    "picture_shape",
    "predict",
    "to_schedule",
    "with_shape",
]
