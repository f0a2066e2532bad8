"""Mixtures of Gaussians with a structured covariance: as a prior, and the posterior that a matrix makes of it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.calibration.draws import flat, generator, images
from ddiff_jax.calibration.matrices import dct_basis
from ddiff_jax.levels import Level, Schedule
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import PUBLISHED
from ddiff_jax.types import Image, ImageShape, PRNGKey

VARIANCE = 0.25  # mean variance of a pixel in every family
MIXTURE_WEIGHTS = (0.4, 0.3, 0.2, 0.1)
MIXTURE_STDS = (1.0, 0.7, 0.5, 1.2)
MIXTURE_VARIANCE = 0.04  # of a pixel within a component of standard deviation 1


@pytree_dataclass
class SpectralMixturePrior:
    """A mixture of M Gaussians on n x n pixels whose covariances are diagonal in the basis of cosines.

    Args:
        weights: [M], positive, with sum 1.
        means: [M, n, n], coefficients.
        variances: [M, n, n], positive, of the coefficients.
        basis: [n, n], orthonormal cosines as columns; an image is basis @ coefficients @ basis^T.
        schedule: noise levels.
    """

    weights: Float[Array, " M"]
    means: Float[Array, "M n n"]
    variances: Float[Array, "M n n"]
    basis: Float[Array, "n n"]
    schedule: Schedule = static_field()

    @property
    def image_shape(self) -> ImageShape:
        """(n, n, 1)."""
        return (self.basis.shape[-1], self.basis.shape[-1], 1)

    def denoise(self, x_t: Image, level: Level) -> Image:
        """Return E[x_0 | x_t]."""
        return self.predict(x_t, level)[0]

    def predict(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Return E[x_0 | x_t] and E[n | x_t].

        Those of component k are m_k + a v_k d_k and b d_k with d_k = (c - a m_k) / (a^2 v_k + b^2), coefficient by
        coefficient: nothing is subtracted that could cancel, at any level.
        """
        a, b = (jnp.asarray(value, x_t.dtype) for value in (level.signal, level.sigma))
        means, variances = self.means.astype(x_t.dtype), self.variances.astype(x_t.dtype)
        share, d = self._explain(x_t, a, b)
        x_0 = jnp.tensordot(share, means, 1) + jnp.sum(share[:, None, None] * (a * variances * d), 0)
        return self._to_image(x_0), self._to_image(jnp.tensordot(share, b * d, 1))

    def responsibilities(self, x_t: Image, level: Level) -> Float[Array, " M"]:
        """Compute the probability of every component, given x_t."""
        return self._explain(x_t, *(jnp.asarray(value, x_t.dtype) for value in (level.signal, level.sigma)))[0]

    def _explain(self, x_t: Image, a: Array, b: Array) -> tuple[Float[Array, " M"], Float[Array, "M n n"]]:
        means, variances = self.means.astype(x_t.dtype), self.variances.astype(x_t.dtype)
        basis = self.basis.astype(x_t.dtype)
        c = jnp.matmul(jnp.matmul(basis.T, x_t[..., 0], precision="highest"), basis, precision="highest")
        off, total = c[None] - a * means, a**2 * variances + b**2
        d = off / total
        log_likelihood = -0.5 * jnp.sum(off * d + jnp.log(total), axis=(1, 2))
        return jax.nn.softmax(jnp.log(self.weights.astype(x_t.dtype)) + log_likelihood), d

    def _to_image(self, c: Float[Array, "n n"]) -> Image:
        basis = self.basis.astype(c.dtype)
        return jnp.matmul(jnp.matmul(basis, c, precision="highest"), basis.T, precision="highest")[..., None]


@dataclasses.dataclass(frozen=True)
class MixturePosterior:
    """The posterior of a mixture of Gaussians given y = A x + sigma_y n, which is one as well. Float64.

    Args:
        weights: [M] of the prior.
        means: [M, d].
        covariances: [M, d, d].
        matrix: A, [m, d]; of a measurement only the first m entries count.
        sigma_y: noise standard deviation.
        image_shape: d pixels, channels last.
    """

    weights: Float[np.ndarray, " M"]
    means: Float[np.ndarray, "M d"]
    covariances: Float[np.ndarray, "M d d"]
    matrix: Float[np.ndarray, "m d"]
    sigma_y: float
    image_shape: ImageShape

    @functools.cached_property
    def _gains(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Work out gain [M, d, m], posterior covariance [M, d, d] and covariance of y [M, m, m] of every component."""
        a, identity = self.matrix, np.eye(len(self.matrix))
        crossed = self.covariances @ a.T
        total = a @ crossed + self.sigma_y**2 * identity
        gain = np.linalg.solve(total, np.swapaxes(crossed, 1, 2)).swapaxes(1, 2)
        # Joseph's form: a sum of two squares, which rounding cannot make indefinite.
        left = np.eye(a.shape[1]) - gain @ a
        covariance = left @ self.covariances @ np.swapaxes(left, 1, 2)
        return gain, covariance + self.sigma_y**2 * gain @ np.swapaxes(gain, 1, 2), total

    @functools.cached_property
    def _roots(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Factor the posterior covariances: lower Cholesky factors, inverses, and log determinants."""
        covariance = self._gains[1]
        root = np.linalg.cholesky(covariance)
        logs = 2 * np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)
        return root, np.linalg.inv(covariance), logs

    def components(self, y: Any) -> tuple[Float[np.ndarray, "N M"], Float[np.ndarray, "N M d"]]:
        """Compute the weights and the means of the posterior's components."""
        log_joint, means = self._joint(y)
        return np.exp(log_joint - _log_sum(log_joint)[:, None]), means

    def log_evidence(self, y: Any) -> Float[np.ndarray, " N"]:
        """Compute log p(y)."""
        return _log_sum(self._joint(y)[0])

    def _joint(self, y: Any) -> tuple[np.ndarray, np.ndarray]:
        gain, _, total = self._gains
        y = np.asarray(y, np.float64).reshape(len(y), -1)[:, : len(self.matrix)]
        off = y[:, None] - self.means @ self.matrix.T
        squared = np.einsum("nki,kij,nkj->nk", off, np.linalg.inv(total), off)
        constant = np.linalg.slogdet(2 * np.pi * total)[1]
        return np.log(self.weights) - 0.5 * (squared + constant), self.means + np.einsum("kij,nkj->nki", gain, off)

    def truths(self, key: PRNGKey, count: int) -> Float[np.ndarray, "count ..."]:
        """Draw images from the prior."""
        random = generator(key)
        which = random.choice(len(self.weights), count, p=self.weights)
        normal = random.standard_normal((count, self.means.shape[1]))
        roots = np.linalg.cholesky(self.covariances)
        return images(self.means[which] + np.einsum("nij,nj->ni", roots[which], normal), self.image_shape)

    def samples(self, key: PRNGKey, y: Any, count: int) -> Float[np.ndarray, "N count ..."]:
        """Draw exactly from p(x | y): a component, then its Gaussian."""
        random = generator(key)
        shares, means = self.components(y)
        which = (random.random((len(shares), count, 1)) > np.cumsum(shares, 1)[:, None, :-1]).sum(-1)
        draws = random.standard_normal((len(shares), count, means.shape[-1]))
        for k, root in enumerate(self._roots[0]):
            chosen = which == k
            draws[chosen] = draws[chosen] @ root.T + np.broadcast_to(means[:, None, k], draws.shape)[chosen]
        return images(draws, self.image_shape)

    def mean(self, y: Any) -> Float[np.ndarray, "N ..."]:
        """Compute E[x | y]."""
        shares, means = self.components(y)
        return images(np.einsum("nk,nki->ni", shares, means), self.image_shape)

    def variance(self, y: Any) -> Float[np.ndarray, " N"]:
        """Compute the trace of the posterior covariance: within the components, and between them."""
        shares, means = self.components(y)
        within = np.trace(self._gains[1], axis1=1, axis2=2)
        centre = np.einsum("nk,nki->ni", shares, means)
        between = ((means - centre[:, None]) ** 2).sum(-1)
        return (shares * (within + between)).sum(1)

    def log_density(self, x: Any, y: Any) -> Float[np.ndarray, "N K"]:
        """Compute log p(x | y)."""
        shares, means = self.components(y)
        return _log_sum(self._log_parts(flat(x, 2), shares, means)[0])

    def modes(self, y: Any) -> tuple[Float[np.ndarray, "N M ..."], Float[np.ndarray, "N M"]]:
        """Climb from the mean of every component to a maximum of p(x | y); several may reach the same one.

        Returns:
            The maxima, and log p(x | y) there.
        """
        return self.climb(images(self.components(y)[1], self.image_shape), y)

    def climb(self, x: Any, y: Any) -> tuple[Float[np.ndarray, "N K ..."], Float[np.ndarray, "N K"]]:
        """Climb from images x [N, K, ...] to the maxima of p(x | y) whose slopes they lie on.

        Steps to (sum_k r_k P_k^-1)^-1 sum_k r_k P_k^-1 m_k, with r_k the responsibilities at x, never descend. They
        end where no pixel moves by more than 1e-10, or after 10,000 steps.

        Returns:
            The maxima, and log p(x | y) there.
        """
        shares, means = self.components(y)
        precisions = self._roots[1]
        x, weighted = flat(x, 2), np.einsum("kij,nkj->nki", precisions, means)
        for _ in range(10_000):
            responsibilities = self._log_parts(x, shares, means)[1]
            total = np.einsum("npk,kij->npij", responsibilities, precisions)
            x, before = np.linalg.solve(total, (responsibilities @ weighted)[..., None])[..., 0], x
            if np.abs(x - before).max() < 1e-10:
                break
        return images(x, self.image_shape), _log_sum(self._log_parts(x, shares, means)[0])

    def maximum(self, y: Any) -> Float[np.ndarray, "N ..."]:
        """Find the most probable image, the highest of the `modes`."""
        modes, heights = self.modes(y)
        return modes[np.arange(len(modes)), heights.argmax(1)]

    def _log_parts(self, x: np.ndarray, shares: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute log of weight times density of every component at x [N, K, d], and their shares, both [N, K, M]."""
        _, precisions, logs = self._roots
        off = x[:, :, None] - means[:, None]
        squared = np.stack([((off[:, :, k] @ p) * off[:, :, k]).sum(-1) for k, p in enumerate(precisions)], -1)
        with np.errstate(divide="ignore"):
            parts = np.log(shares)[:, None] - 0.5 * (squared + logs + x.shape[-1] * np.log(2 * np.pi))
        return parts, np.exp(parts - _log_sum(parts)[..., None])


def _log_sum(logs: np.ndarray) -> np.ndarray:
    top = logs.max(-1, keepdims=True)
    return (top + np.log(np.exp(logs - top).sum(-1, keepdims=True)))[..., 0]


def _spectrum(n: int, variance: float) -> Float[np.ndarray, "n n"]:
    squared = np.arange(n) ** 2
    spectrum = (1 + np.add.outer(squared, squared) / 4) ** -1.5
    return spectrum * (variance * n**2 / spectrum.sum())


def gaussian_components(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List weights [4], means and variances [4, n, n] of coefficients of the structured Gaussian.

    As four equal components, so that programs compiled for it serve the mixture as well.
    """
    variances = np.broadcast_to(_spectrum(n, VARIANCE), (4, n, n))
    return np.full(4, 0.25), np.zeros((4, n, n)), variances


def mixture_components(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List weights [4], means and variances [4, n, n] of coefficients of the mixture."""
    k, j, basis = np.arange(4)[:, None], np.arange(n**2), dct_basis(n)
    means = (0.5 * np.sin(0.37 * (k + 1) * (j + 1) + k)).reshape(4, n, n)
    variances = np.square(MIXTURE_STDS)[:, None, None] * _spectrum(n, MIXTURE_VARIANCE)
    return np.array(MIXTURE_WEIGHTS), basis.T @ means @ basis, variances


def spectral_problem(
    components: tuple[np.ndarray, np.ndarray, np.ndarray], matrix: Float[np.ndarray, "m d"], sigma_y: float
) -> tuple[SpectralMixturePrior, MixturePosterior]:
    """Build the prior of such components, and its posterior given a matrix and a noise level."""
    weights, means, variances = components
    n = means.shape[-1]
    basis = dct_basis(n)
    pixels = np.kron(basis, basis)
    same = np.ptp(means, 0).max() == 0 and np.ptp(variances, 0).max() == 0
    kept = slice(0, 1 if same else None)  # equal components are one
    posterior = MixturePosterior(
        weights[kept] / weights[kept].sum(),
        means[kept].reshape(-1, n**2) @ pixels.T,
        (pixels * variances[kept].reshape(-1, 1, n**2)) @ pixels.T,
        matrix,
        sigma_y,
        (n, n, 1),
    )
    dtype = jnp.result_type(float)
    prior = SpectralMixturePrior(
        weights=jnp.asarray(weights, dtype),
        means=jnp.asarray(means, dtype),
        variances=jnp.asarray(variances, dtype),
        basis=jnp.asarray(basis, dtype),
        schedule=PUBLISHED,
    )
    return prior, posterior
