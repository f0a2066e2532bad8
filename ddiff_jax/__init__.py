"""Imaging inverse problems with diffusion priors in JAX."""

from ddiff_jax import operators, solvers
from ddiff_jax._version import __version__
from ddiff_jax.check import check_operator
from ddiff_jax.checkpoint import load_prior
from ddiff_jax.config import preset
from ddiff_jax.likelihood import Gaussian, Likelihood, Poisson
from ddiff_jax.noise import KeyNoise, Noise, Stream, TapeNoise, image_keys, stream_key
from ddiff_jax.prior import DiffusionPrior, GaussianPrior, Prior
from ddiff_jax.problem import Problem, simulate
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.restarts import Restarts, nearest_equivalent, solve_restarts
from ddiff_jax.schedule import NoiseSchedule, cosine_schedule, linear_schedule, scaled_linear_schedule
from ddiff_jax.solve import Progress, Solution, raise_if_not_finite, solve, solve_one

__all__ = [
    "DiffusionPrior",
    "Gaussian",
    "GaussianPrior",
    "KeyNoise",
    "Likelihood",
    "Noise",
    "NoiseSchedule",
    "Poisson",
    "Prior",
    "Problem",
    "Progress",
    "Restarts",
    "Solution",
    "Stream",
    "TapeNoise",
    "__version__",
    "check_operator",
    "cosine_schedule",
    "image_keys",
    "linear_schedule",
    "load_prior",
    "nearest_equivalent",
    "operators",
    "preset",
    "pytree_dataclass",
    "raise_if_not_finite",
    "scaled_linear_schedule",
    "simulate",
    "solve",
    "solve_one",
    "solve_restarts",
    "solvers",
    "static_field",
    "stream_key",
]
