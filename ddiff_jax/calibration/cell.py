"""What a cell of the calibration benchmark is: a problem whose posterior is known, so that samplers can be judged."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from ddiff_jax.calibration.gaussians import VARIANCE, gaussian_components, mixture_components, spectral_problem
from ddiff_jax.calibration.gibbs import GibbsPosterior
from ddiff_jax.calibration.laws import Kind, Law
from ddiff_jax.calibration.levy import ChainPosterior, levy_prior
from ddiff_jax.calibration.matrices import haar_basis, matrix_operator, picture_matrix, signal_matrix
from ddiff_jax.calibration.sparse import CoefficientPosterior, sparse_prior
from ddiff_jax.operators.base import DecomposableOperator
from ddiff_jax.priors.base import Prior
from ddiff_jax.types import PRNGKey


@runtime_checkable
class Posterior(Protocol):
    """A posterior p(x | y) that is known, for N problems at a time."""

    def truths(self, key: PRNGKey, count: int) -> Shaped[Any, "count ..."]:
        """Draw images from the prior."""
        ...

    def samples(self, key: PRNGKey, y: Any, count: int) -> Shaped[Any, "N count ..."]:
        """Draw exactly from p(x | y), for y [N, ...]."""
        ...

    def mean(self, y: Any) -> Shaped[Any, "N ..."]:
        """Compute E[x | y]."""
        ...

    def variance(self, y: Any) -> Shaped[Any, " N"]:
        """Compute the trace of the posterior covariance."""
        ...

    def log_density(self, x: Any, y: Any) -> Shaped[Any, "N K"] | None:
        """Compute log p(x | y) of images x [N, K, ...], up to a constant that depends on y alone.

        None if the posterior has no density, as where entries are 0 with a positive probability.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Cell:
    """One prior, one operator, one noise level, and the posterior that they make.

    Args:
        name: family and operator, such as "M8/quadrants".
        prior: a denoiser that is exact at every level and never clips.
        operator: linear, with its singular value decomposition.
        sigma_y: noise standard deviation.
        posterior: what samplers should reach.
        num_problems: N, how many problems to draw unless told otherwise.
        wrong_modes: the posterior has several modes far apart, so that a large gap here is that of wrong modes where
            the Gaussian cells pass.
    """

    name: str
    prior: Prior
    operator: DecomposableOperator
    sigma_y: float
    posterior: Posterior
    num_problems: int
    wrong_modes: bool = False


def _picture(family: str, n: int, operator: str, sigma_y: float, num_problems: int) -> Cell:
    name, matrix = f"{family}{n}/{operator}", picture_matrix(operator, n)
    components = gaussian_components(n) if family == "G" else mixture_components(n)
    prior, posterior = spectral_problem(components, matrix, sigma_y)
    measure = matrix_operator(matrix, prior.image_shape)
    return Cell(name, prior, measure, sigma_y, posterior, num_problems, wrong_modes=family == "M")


def _signal(family: str, law: str, operator: str, num_problems: int) -> Cell:
    matrix, is_sparse = signal_matrix(operator), family == "S"
    length = matrix.shape[1]
    kind, p = LAWS[law]
    of_entries = Law(kind, VARIANCE if is_sparse else 2 * VARIANCE / (length + 1), p)
    synthesis = haar_basis(length) if is_sparse else np.tril(np.ones((length, length)))
    if is_sparse:
        prior = sparse_prior(of_entries, synthesis)
        closed = CoefficientPosterior if operator == "identity" else None
    else:
        prior = levy_prior(of_entries, length)
        closed = ChainPosterior if operator in ("identity", "sample") else None
    posterior = (closed or GibbsPosterior)(of_entries, synthesis, matrix, SIGMA_SIGNALS)
    name, measure = f"{family}-{law}/{operator}", matrix_operator(matrix, prior.image_shape)
    return Cell(name, prior, measure, SIGMA_SIGNALS, posterior, num_problems)


SIGMA_SIGNALS = 0.05  # 20 dB below signals of the variance that all families share
# Name of the cell, what `_picture` takes: noise levels are those at which several components live, or one.
PICTURES = {
    **{f"G8/{operator}": ("G", 8, operator, 0.05, 100) for operator in ("sample", "blur", "identity")},
    **{f"G32/{operator}": ("G", 32, operator, 0.05, 20) for operator in ("sample", "blur")},
    "M8/quadrants": ("M", 8, "quadrants", 0.3, 100),
    "M8/sample8": ("M", 8, "sample8", 1.0, 100),
    "M8/blur": ("M", 8, "blur", 0.1, 100),
    "M8/sample": ("M", 8, "sample", 0.05, 100),
}
LAWS: dict[str, tuple[Kind, float]] = {
    "bernoulli": ("laplace", 0.1),
    "laplace": ("laplace", 1.0),
    "student": ("student3", 1.0),
}
SIGNALS = {
    **{f"S-{law}/{operator}": ("S", law, operator, 100) for law in LAWS for operator in ("identity", "convolution")},
    **{
        f"L-{law}/{operator}": ("L", law, operator, 50)
        for law in ("bernoulli", "laplace")
        for operator in ("identity", "sample", "convolution")
    },
}

CELLS: dict[str, Callable[[], Cell]] = {
    **{name: functools.partial(_picture, *arguments) for name, arguments in PICTURES.items()},
    **{name: functools.partial(_signal, *arguments) for name, arguments in SIGNALS.items()},
}
"""Every cell by its name, made when asked for: family, size or law, and operator."""

DEFAULT: tuple[str, ...] = ("G8/sample", "G8/blur", "M8/quadrants", "M8/sample", "M8/blur", "S-laplace/identity")
"""A few that tell methods apart within minutes."""

FULL: tuple[str, ...] = tuple(CELLS)
"""All. The references of those with a convolution of sparse signals are sampled once, which takes long, and kept."""
