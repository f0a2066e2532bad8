"""The laws of single coefficients: Gaussian, Laplace, Student, and those that are 0 more often than not."""

import dataclasses
import math
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
QUADRATURE = np.polynomial.legendre.leggauss(8)  # nodes and weights on [-1, 1]


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
        return self._log_density(u, np) if self.p == 1 else None

    def _log_density(self, u: Any, library: Any) -> Any:
        """Compute the logarithm of the density of the continuous law."""
        v = u / self.scale
        if self.kind == "gauss":
            return -(v**2) / 2 - float(np.log(np.sqrt(2 * np.pi) * self.scale))
        if self.kind == "laplace":
            return -library.abs(v) - float(np.log(2 * self.scale))
        return -2 * library.log1p(v**2 / 3) + float(np.log(2 / (np.pi * np.sqrt(3) * self.scale)))

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

    def log_cell_masses(self, middle: Any, width: Any) -> Any:
        """Compute the logarithm of the mass that the continuous law has in cells of one width, in NumPy or JAX.

        A cell of Laplace's law has 0 in its middle or does not contain it.
        """
        library = jnp if isinstance(middle, jax.Array) else np
        if self.kind == "laplace":
            half = width / (2 * self.scale)
            # log sinh(half) and log(1 - exp(-half)), at any size of it
            log_sinh = half + library.log(-library.expm1(-2 * half)) - math.log(2)
            at_zero = library.log(-library.expm1(-half))
            return library.where(abs(middle) < width / 4, at_zero, log_sinh - abs(middle) / self.scale)
        nodes, weights = (library.asarray(values / 2, middle.dtype) for values in QUADRATURE)
        points = middle[..., None] + (nodes * width).reshape(*(1,) * middle.ndim, -1)
        logs = self._log_density(points, library)
        top = logs.max(-1, keepdims=True)
        return top[..., 0] + library.log(library.exp(logs - top) @ weights) + library.log(width)


def shrink(
    z: Float[Array, "..."], signal: Float[Array, ""], sigma: Float[Array, ""], weights: Array, variances: Array
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Compute E[u | z] and E[n | z] for z = signal u + sigma n with u of a mixture of Gaussians around 0, entrywise.

    All terms are positive times z, so that no digits cancel at any level.
    """
    total = jnp.maximum(signal**2 * variances + sigma**2, 1e-30)  # no noise at all, and u = 0, is 0
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
