"""What a cell of the calibration benchmark is: a problem whose posterior is known, so that samplers can be judged."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Shaped

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


CELLS: dict[str, Callable[[], Cell]] = {}
DEFAULT: tuple[str, ...] = ()
FULL: tuple[str, ...] = ()
