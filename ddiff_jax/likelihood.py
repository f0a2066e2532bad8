"""Noise models: how a measurement scatters around A(x), and what the data term of a problem is therefore."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.types import Measurement, PRNGKey, Scalar

FEW = 0.1  # expected photons below which the Poisson likelihood continues as a parabola


def sum_of_squares(r: Measurement) -> Float[Array, ""]:
    """Compute ||r||^2, of complex entries as well."""
    return jnp.sum(jnp.real(r * jnp.conj(r)))


@runtime_checkable
class Likelihood(Protocol):
    """What a problem needs to know of its noise."""

    def data_term(self, clean: Measurement, y: Measurement) -> Float[Array, ""]:
        """Compute the negative log-likelihood of A(x) = clean up to a constant and up to the factor `precision`."""
        ...

    def precision(self, sigma_y: Scalar) -> Float[Array, ""]:
        """Give the factor that turns `data_term` into the negative log-likelihood."""
        ...

    def sample(self, clean: Measurement, sigma_y: Scalar, key: PRNGKey) -> Measurement:
        """Draw a measurement."""
        ...


@pytree_dataclass
class Gaussian:
    """y = A(x) + sigma_y n with n ~ N(0, I); a complex y has this noise in its real and in its imaginary part."""

    def data_term(self, clean: Measurement, y: Measurement) -> Float[Array, ""]:
        """Compute ||clean - y||^2 / 2."""
        return 0.5 * sum_of_squares(clean - y)

    def precision(self, sigma_y: Scalar) -> Float[Array, ""]:
        """Give 1 / sigma_y^2."""
        return 1 / jnp.asarray(sigma_y, jnp.float32) ** 2

    def sample(self, clean: Measurement, sigma_y: Scalar, key: PRNGKey) -> Measurement:
        """Add the noise."""
        real = jnp.finfo(clean.dtype).dtype
        if jnp.iscomplexobj(clean):
            parts = jax.random.normal(key, (2, *clean.shape), real)
            n = jax.lax.complex(parts[0], parts[1])
        else:
            n = jax.random.normal(key, clean.shape, real)
        return clean + jnp.asarray(sigma_y, n.dtype) * n


@pytree_dataclass
class Poisson:
    """Photon counts: k ~ Poisson(m) with m = photons (A(x) + 1) / 2, stored as y = 2 k / photons - 1.

    So black, -1, expects no photon and white, 1, expects `photons`; y is in the units of the image and its standard
    deviation at white is 2 / sqrt(photons). The negative log-likelihood is sum m - k log m. Below 0.1 expected
    photons, log m goes on as its parabola, so that a guess that is negative there has a finite value and a gradient.

    `sigma_y` plays no part here; solvers that weigh their steps with it read it as the typical standard deviation.

    Args:
        photons: expected count at white, positive.

    Raises:
        ValueError: photons is not positive and finite.
    """

    photons: Scalar

    def __post_init__(self):
        photons = self.photons
        if not isinstance(photons, Tracer) and not (np.all(np.isfinite(photons)) and np.all(np.asarray(photons) > 0)):
            raise ValueError(f"photons, the expected count at white, must be positive and finite; got {photons}")
        object.__setattr__(self, "photons", jnp.asarray(photons, jnp.float32))

    def _counts(self, y: Measurement) -> Measurement:
        if jnp.iscomplexobj(y):
            raise ValueError("photons are counted: a Poisson likelihood needs a real measurement; this one is complex")
        return self.photons.astype(y.dtype) * (y + 1) / 2

    def data_term(self, clean: Measurement, y: Measurement) -> Float[Array, ""]:
        """Compute sum m - k log m.

        Raises:
            ValueError: the measurement is complex.
        """
        mean, count = self._counts(clean), self._counts(y)
        short = (mean - FEW) / FEW
        log = jnp.where(mean > FEW, jnp.log(jnp.maximum(mean, FEW)), np.log(FEW) + short - short**2 / 2)
        return jnp.sum(mean - count * log)

    def precision(self, sigma_y: Scalar) -> Float[Array, ""]:
        """Give 1: the data term is the negative log-likelihood."""
        return jnp.ones((), jnp.float32)

    def sample(self, clean: Measurement, sigma_y: Scalar, key: PRNGKey) -> Measurement:
        """Count photons; a negative expectation counts none.

        Raises:
            ValueError: the measurement is complex.
        """
        counts = jax.random.poisson(key, jnp.maximum(self._counts(clean), 0)).astype(clean.dtype)
        return 2 * counts / self.photons.astype(clean.dtype) - 1
