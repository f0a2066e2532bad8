"""What `import ddiff_jax` offers: read by type checkers, and by the package itself, which imports what is used."""

from . import calibration, evaluation, extend, metrics, operators, phantoms, priors, restoration, solvers
from ._solve import Progress, Solution, memory_plan, raise_if_not_finite, solve, solve_one
from ._version import __version__
from .check import check_operator
from .checkpoint import load_prior
from .config import preset
from .levels import Level, Schedule
from .likelihood import Counts, Gaussian, Likelihood, Poisson, PoissonGaussian
from .noise import KeyNoise, Noise, Stream, TapeNoise, image_keys, stream_key
from .operators import nearest_equivalent
from .priors import (
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
from .problem import Problem, simulate
from .pytree import pytree_dataclass, static_field
from .restarts import Restarts, solve_restarts
from .samples import Samples, solve_samples
from .schedule import (
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
    "calibration",
    "check_operator",
    "cosine_schedule",
    "evaluation",
    "extend",
    "from_denoiser",
    "image_keys",
    "linear_schedule",
    "load_prior",
    "memory_plan",
    "metrics",
    "nearest_equivalent",
    "operators",
    "phantoms",
    "preset",
    "priors",
    "pytree_dataclass",
    "raise_if_not_finite",
    "restoration",
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
