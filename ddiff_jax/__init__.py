"""Imaging inverse problems with diffusion priors in JAX.

Docstrings name files and symbols of the released codes of DDiff (SoniaMinseoKim/ddiff-cvpr), DPS
(DPS2022/diffusion-posterior-sampling), DAPS (zhangbingliang2019/DAPS), DiffPIR (yuanzhi-zhu/DiffPIR), RED-diff
(NVlabs/RED-diff), BKSE (VinAIResearch/blur-kernel-space-exploring), motionblur (LeviBorodenko/motionblur) and
guided-diffusion (openai/guided-diffusion), all on GitHub.
"""

from ddiff_jax import operators, priors, solvers
from ddiff_jax._solve import Progress, Solution, raise_if_not_finite, solve, solve_one
from ddiff_jax._version import __version__
from ddiff_jax.check import check_operator
from ddiff_jax.checkpoint import load_prior
from ddiff_jax.config import preset
from ddiff_jax.levels import Level, Schedule
from ddiff_jax.likelihood import Counts, Gaussian, Likelihood, Poisson, PoissonGaussian
from ddiff_jax.noise import KeyNoise, Noise, Stream, TapeNoise, image_keys, stream_key
from ddiff_jax.operators import nearest_equivalent
from ddiff_jax.priors import (
    DiffusionPrior,
    EmbeddedPrior,
    GaussianPrior,
    LatentPrior,
    MixturePrior,
    NoPrior,
    OnSchedule,
    Prior,
    SlicePrior,
    WindowedPrior,
    from_denoiser,
    with_shape,
)
from ddiff_jax.problem import Problem, simulate
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.restarts import Restarts, solve_restarts
from ddiff_jax.samples import Samples, solve_samples
from ddiff_jax.schedule import (
    EDMSchedule,
    FlowSchedule,
    VPSchedule,
    VPSDESchedule,
    cosine_schedule,
    linear_schedule,
    scaled_linear_schedule,
)

__all__ = [
    "Counts",
    "DiffusionPrior",
    "EDMSchedule",
    "EmbeddedPrior",
    "FlowSchedule",
    "Gaussian",
    "GaussianPrior",
    "KeyNoise",
    "LatentPrior",
    "Level",
    "Likelihood",
    "MixturePrior",
    "NoPrior",
    "Noise",
    "OnSchedule",
    "Poisson",
    "PoissonGaussian",
    "Prior",
    "Problem",
    "Progress",
    "Restarts",
    "Samples",
    "Schedule",
    "SlicePrior",
    "Solution",
    "Stream",
    "TapeNoise",
    "VPSDESchedule",
    "VPSchedule",
    "WindowedPrior",
    "__version__",
    "check_operator",
    "cosine_schedule",
    "from_denoiser",
    "image_keys",
    "linear_schedule",
    "load_prior",
    "nearest_equivalent",
    "operators",
    "preset",
    "priors",
    "pytree_dataclass",
    "raise_if_not_finite",
    "scaled_linear_schedule",
    "simulate",
    "solve",
    "solve_one",
    "solve_restarts",
    "solve_samples",
    "solvers",
    "static_field",
    "stream_key",
    "with_shape",
]
