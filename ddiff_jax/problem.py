"""An inverse problem: what was measured, through which operator, with how much noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ddiff_jax.likelihood import Gaussian, Likelihood, sum_of_squares
from ddiff_jax.operators.base import Operator
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.types import Image, Measurement, PRNGKey, Scalar, float_type


@pytree_dataclass
class Problem:
    """A measurement y of A(x) for one image; by default y = A(x) + sigma_y n with n ~ N(0, I).

    Args:
        operator: A.
        y: the measurement.
        sigma_y: noise standard deviation in units of y; a complex y has this much in its real and in its
            imaginary part. 0 is allowed where a solver does not divide by it.
        likelihood: the noise model, `Gaussian()` or for photon counts `Poisson(photons)`.

    Raises:
        ValueError: sigma_y is negative or not finite.
    """

    operator: Operator
    y: Measurement
    sigma_y: Scalar
    likelihood: Likelihood = dataclasses.field(default_factory=Gaussian)

    def __post_init__(self):
        if not isinstance(self.sigma_y, Tracer):
            check_sigma(self.sigma_y)
        object.__setattr__(self, "y", jnp.asarray(self.y))
        object.__setattr__(self, "sigma_y", jnp.asarray(self.sigma_y, float_type(self.y)))

    def half_squared_residual(self, x: Image) -> Float[Array, ""]:
        """Compute ||A(x) - y||^2 / 2, whatever the noise model."""
        return 0.5 * sum_of_squares(self.operator.forward(x) - self.y)

    def nll(self, x: Image) -> Float[Array, ""]:
        """Compute the negative log-likelihood up to a constant: ||A(x) - y||^2 / (2 sigma_y^2) by default."""
        return self.likelihood.precision(self.sigma_y) * self.likelihood.data_term(self.operator.forward(x), self.y)

    def grad(self, x: Image) -> Image:
        """Compute the gradient of `nll`."""
        return jax.grad(self.nll)(x)

    def misfit(self, x: Image) -> Float[Array, ""]:
        """Compute mean |A(x) - y|^2 over all entries of y; about sigma_y^2 at the truth."""
        return sum_of_squares(self.operator.forward(x) - self.y) / self.y.size

    def misfit_and_gradient(self, x: Image) -> tuple[Float[Array, ""], Image]:
        """Compute the misfit and the gradient of the data term with one pass through the operator.

        The data term is ||A(x) - y||^2 / 2 by default; `likelihood.precision` times it is `nll`.
        """

        def value(x: Image) -> tuple[Float[Array, ""], Float[Array, ""]]:
            clean = self.operator.forward(x)
            return self.likelihood.data_term(clean, self.y), sum_of_squares(clean - self.y)

        (_, squares), gradient = jax.value_and_grad(value, has_aux=True)(x)
        return squares / self.y.size, gradient


def check_sigma(sigma_y: object) -> None:
    """Refuse noise levels that are not finite and non-negative.

    Raises:
        ValueError: they are not.
    """
    values = np.asarray(sigma_y)
    if not (np.all(np.isfinite(values)) and np.all(values >= 0)):
        raise ValueError(
            f"sigma_y, the noise standard deviation in units of the measurement, must be finite and at least 0; "
            f"got {sigma_y}"
        )


def simulate(
    operator: Operator, x: Image, sigma_y: Scalar, key: PRNGKey, likelihood: Likelihood | None = None
) -> Measurement:
    """Measure an image with noise: A(x) + sigma_y n.

    The noise is added to every entry of A(x), to those that inpainting hides as well, and nothing is clipped
    afterwards, as in the published codes (`noiser` in ddiff_sample.py of DDiff, `GaussianNoise` in
    guided_diffusion/measurements.py of DPS). Complex measurements get independent noise of this standard deviation in
    their real and imaginary parts.

    Args:
        operator: A.
        x: the clean image.
        sigma_y: noise standard deviation in units of the measurement. Codes that state it for images in [0, 1]
            (DiffPIR, RED-diff, DDRM) mean twice their number here.
        key: draws the noise.
        likelihood: another noise model, such as `Poisson(photons)`; None is Gaussian.

    Raises:
        ValueError: sigma_y is negative or not finite.
    """
    if not isinstance(sigma_y, Tracer):
        check_sigma(sigma_y)
    return (likelihood or Gaussian()).sample(operator.forward(x), sigma_y, key)
