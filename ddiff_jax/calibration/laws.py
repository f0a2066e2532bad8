"""The laws of single coefficients: Gaussian, Laplace, Student, and those that are 0 more often than not."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Kind = Literal["gauss", "laplace", "student3"]

# Laplace and Student's law are Gaussians of a random variance. Its logarithm is integrated over in equal steps from
# the first to the last, both relative to the law's own: the rule of trapezoids then errs by about exp(-pi^2 / step).
STEP = 0.4
VARIANCES: dict[str, tuple[float, float]] = {"laplace": (-24.0, 4.0), "student3": (-4.0, 20.0)}
CUBATURE = np.polynomial.legendre.leggauss(8)  # nodes and weights on [-1, 1]


@dataclasses.dataclass(frozen=True)
class Law:
    """A symmetric law of one number: 0 with probability 1 - p, else a draw of a continuous law.

    Args:
        kind: the continuous law; "student3" has three degrees of freedom.
        variance: of the number; that of the continuous law is this over p.
        p: probability of not being 0.
    """

    kind: Kind
    variance: float
    p: float = 1.0

    @property
    def scale(self) -> float:
        """Standard deviation, Laplace's b with variance 2 b^2, or Student's s with variance 3 s^2."""
        share = {"gauss": 1, "laplace": 2, "student3": 3}[self.kind]
        return float(np.sqrt(self.variance / (self.p * share)))

    def draw(self, random: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        """Draw independent numbers."""
        if self.kind == "gauss":
            values = random.standard_normal(shape)
        elif self.kind == "laplace":
            values = random.laplace(size=shape)
        else:
            values = random.standard_t(3, shape)
        return self.scale * np.where(random.random(shape) < self.p, values, 0.0)

    def log_density(self, u: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."] | None:
        """Compute log p(u); None if 0 has a positive probability."""
        return np.asarray(np.log(self._density(u, np))) if self.p == 1 else None

    def _density(self, u: Any, library: Any) -> Any:
        """Compute the density of the continuous law."""
        v = u / self.scale
        if self.kind == "gauss":
            return library.exp(-(v**2) / 2) / (np.sqrt(2 * np.pi) * self.scale)
        if self.kind == "laplace":
            return library.exp(-library.abs(v)) / (2 * self.scale)
        return 2 / (np.pi * np.sqrt(3) * self.scale) / (1 + v**2 / 3) ** 2

    def scale_mixture(self) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
        """Write the law as a mixture of Q Gaussians around 0.

        Returns:
            Their weights and variances. A variance of 0 stands for the number 0 itself. To eight digits or more in
            what is made of noisy numbers.
        """
        if self.kind == "gauss":
            weights, variances = np.ones(1), np.array([self.scale**2])
        else:
            first, last = VARIANCES[self.kind]
            w = np.exp(np.arange(first, last, STEP))
            # Laplace: w ~ Exp(mean 1) times 2 b^2. Student: 1 / w ~ Gamma(3/2, 3/2) times s^2. Both times dw = w dt.
            weights = w * np.exp(-w) if self.kind == "laplace" else w**-1.5 * np.exp(-1.5 / w)
            weights, variances = weights / weights.sum(), w * self.scale**2 * (2 if self.kind == "laplace" else 1)
        if self.p < 1:
            weights, variances = np.append(self.p * weights, 1 - self.p), np.append(variances, 0.0)
        return weights, variances

    def cell_masses(self, middle: Float[Array, "..."], width: Float[Array, "..."]) -> Float[Array, "..."]:
        """Integrate the density of the continuous law over cells of one width.

        Laplace's cells either have 0 in the middle or do not contain it.
        """
        width = jnp.broadcast_to(width, middle.shape)
        if self.kind == "laplace":
            half = width / (2 * self.scale)
            beside = jnp.exp(-jnp.abs(middle) / self.scale) * jnp.sinh(jnp.minimum(half, 50.0))
            return jnp.where(jnp.abs(middle) < width / 4, -jnp.expm1(-half), beside)
        total = jnp.zeros_like(middle)
        for node, weight in zip(*CUBATURE, strict=True):  # all positive: differences of a distribution would cancel
            total += weight * self._density(middle + node / 2 * width, jnp)
        return total * width / 2


def shrink(
    z: Float[Array, "..."], signal: Float[Array, ""], sigma: Float[Array, ""], weights: Array, variances: Array
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Compute E[u | z] and E[n | z] for z = signal u + sigma n with u of a mixture of Gaussians around 0, entrywise.

    All terms are positive times z, so that no digits cancel at any level.
    """
    total = signal**2 * variances + sigma**2
    shape = (*(1,) * z.ndim, len(weights))
    logs = (jnp.log(weights) - 0.5 * jnp.log(total)).reshape(shape) - 0.5 * z[..., None] ** 2 / total.reshape(shape)
    share = jax.nn.softmax(logs) / total.reshape(shape)
    return z * jnp.sum(share * (signal * variances).reshape(shape), -1), z * sigma * jnp.sum(share, -1)


def posterior_shares(
    z: Float[np.ndarray, "..."], sigma: float, weights: Float[np.ndarray, " Q"], variances: Float[np.ndarray, " Q"]
) -> tuple[Float[np.ndarray, "... Q"], Float[np.ndarray, " Q"], Float[np.ndarray, "..."]]:
    """Compute the same posterior in full, for z = u + sigma n on the host.

    Returns:
        The probability of every Gaussian, its gain g with E[u] = g z and variance sigma^2 g, and log p(z).
    """
    total = variances + sigma**2
    logs = np.log(weights) - 0.5 * np.log(2 * np.pi * total) - 0.5 * z[..., None] ** 2 / total
    top = logs.max(-1, keepdims=True)
    likelihoods = np.exp(logs - top)
    evidence = likelihoods.sum(-1, keepdims=True)
    return likelihoods / evidence, variances / total, (top + np.log(evidence))[..., 0]
