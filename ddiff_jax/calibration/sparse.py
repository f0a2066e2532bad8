"""Signals that are sparse in an orthonormal basis: as a prior, and the posterior given all entries with noise."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.calibration.draws import flat, generator, images
from ddiff_jax.calibration.laws import Law, posterior_shares, shrink
from ddiff_jax.levels import Level, Schedule
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import PUBLISHED
from ddiff_jax.types import Image, ImageShape, PRNGKey


@pytree_dataclass
class SparsePrior:
    """x = W u with an orthonormal basis W and independent coefficients u, each of a mixture of Gaussians around 0.

    Args:
        basis: W, [d, d].
        weights: [Q] of the mixture.
        variances: [Q]; 0 stands for u = 0.
        image_shape: d entries, channels last.
        schedule: noise levels.
    """

    basis: Float[Array, "d d"]
    weights: Float[Array, " Q"]
    variances: Float[Array, " Q"]
    image_shape: ImageShape = static_field()
    schedule: Schedule = static_field()

    def denoise(self, x_t: Image, level: Level) -> Image:
        """Return E[x_0 | x_t]."""
        return self.predict(x_t, level)[0]

    def predict(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Return E[x_0 | x_t] and E[n | x_t]."""
        a, b = (jnp.asarray(value, x_t.dtype) for value in (level.signal, level.sigma))
        basis, weights, variances = (v.astype(x_t.dtype) for v in (self.basis, self.weights, self.variances))
        coefficients = shrink(jnp.matmul(basis.T, x_t.ravel(), precision="highest"), a, b, weights, variances)
        x_0, eps = (jnp.matmul(basis, c, precision="highest").reshape(x_t.shape) for c in coefficients)
        return x_0, eps


def sparse_prior(law: Law, basis: Float[np.ndarray, "d d"]) -> SparsePrior:
    """Build the prior of signals [d, 1] whose coefficients have a law."""
    arrays = (jnp.asarray(a, jnp.result_type(float)) for a in (basis, *law.scale_mixture()))
    return SparsePrior(*arrays, (len(basis), 1), PUBLISHED)


@dataclasses.dataclass(frozen=True)
class Signals:
    """Base of the posteriors of x = T u given y = A x + sigma_y n, with independent entries of u of one law. Float64.

    Args:
        law: of every entry of u.
        synthesis: T, [d, d], invertible.
        matrix: A, [m, d]; of a measurement only the first m entries count.
        sigma_y: noise standard deviation.
    """

    law: Law
    synthesis: Float[np.ndarray, "d d"]
    matrix: Float[np.ndarray, "m d"]
    sigma_y: float

    @property
    def image_shape(self) -> ImageShape:
        """(d, 1)."""
        return (len(self.synthesis), 1)

    def truths(self, key: PRNGKey, count: int) -> Float[np.ndarray, "count ..."]:
        """Draw signals from the prior."""
        u = self.law.draw(generator(key), (count, len(self.synthesis)))
        return images(u @ self.synthesis.T, self.image_shape)

    def log_density(self, x: Any, y: Any) -> Float[np.ndarray, "N K"] | None:
        """Compute log p(x) + log p(y | x); None if entries of u are 0 with a positive probability."""
        x = flat(x, 2)
        prior = self.law.log_density(np.linalg.solve(self.synthesis, x[..., None])[..., 0])
        off = (x @ self.matrix.T - self.measured(y)[:, None]) / self.sigma_y
        return None if prior is None else prior.sum(-1) - 0.5 * (off**2).sum(-1)

    def measured(self, y: Any) -> Float[np.ndarray, "N m"]:
        """Take what counts of measurements."""
        return flat(y, 1)[:, : len(self.matrix)]


@dataclasses.dataclass(frozen=True)
class CoefficientPosterior(Signals):
    """The posterior where A = I and T is orthonormal: that of every coefficient by itself, in closed form."""

    @functools.cached_property
    def _mixture(self) -> tuple[np.ndarray, np.ndarray]:
        return self.law.scale_mixture()

    def _parts(self, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        z = self.measured(y) @ self.synthesis
        share, gain, _ = posterior_shares(z, self.sigma_y, *self._mixture)
        return z, share, gain

    def samples(self, key: PRNGKey, y: Any, count: int) -> Float[np.ndarray, "N count ..."]:
        """Draw exactly from p(x | y): for every coefficient one of the Gaussians, then from it."""
        random, (z, share, gain) = generator(key), self._parts(y)
        bounds = np.cumsum(share, -1)[..., :-1]
        uniform = random.random((count, *z.shape, 1))
        chosen = np.stack([gain[(row > bounds).sum(-1)] for row in uniform], 1)
        u = chosen * z[:, None] + self.sigma_y * np.sqrt(chosen) * random.standard_normal(chosen.shape)
        return images(u @ self.synthesis.T, self.image_shape)

    def mean(self, y: Any) -> Float[np.ndarray, "N ..."]:
        """Compute E[x | y]."""
        z, share, gain = self._parts(y)
        return images((z * (share @ gain)) @ self.synthesis.T, self.image_shape)

    def variance(self, y: Any) -> Float[np.ndarray, " N"]:
        """Compute the trace of the posterior covariance: within the Gaussians, and between them."""
        z, share, gain = self._parts(y)
        first = share @ gain
        between = z**2 * (share * (gain - first[..., None]) ** 2).sum(-1)
        return (self.sigma_y**2 * first + between).sum(-1)
