"""An inverse problem: what was measured, through which operator, with how much noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from ddiff_jax.boundary import check_floats, check_part
from ddiff_jax.likelihood import Gaussian, Likelihood, sum_of_squares
from ddiff_jax.operators._masked import masked
from ddiff_jax.operators.base import Operator, as_observed, observed_entries
from ddiff_jax.pytree import check_registered, pytree_dataclass
from ddiff_jax.types import Image, Measurement, PRNGKey, Scalar, float_type


@pytree_dataclass
class Problem:
    """A measurement y of A(x) for one image; by default y = A(x) + sigma_y n with n ~ N(0, I).

    Not every entry of y need have been observed: inpainting hides pixels, a scanner skips frequencies, a detector has
    dead pixels. The operator may say which were (see `Operator`), or `observed` says it here. All others are set to 0
    when the problem is built, so that nothing can depend on what a file holds there, and no mean or norm counts them.

    Args:
        operator: A. Where `observed` is given, it becomes the operator followed by that mask (`operators.masked`), on
            which every solver is right that accepts it.
        y: the measurement; floats or complex numbers.
        sigma_y: noise standard deviation in units of y; a complex y has this much in its real and in its
            imaginary part. 0 is allowed where a solver does not divide by it.
        likelihood: the noise model, `Gaussian()` or for photon counts `Poisson(photons)`.
        observed: what the operator does not know: booleans that broadcast to y, true where an entry was observed.

    Raises:
        ValueError: sigma_y is negative or not finite, or which entries were observed does not broadcast to y.
        TypeError: the operator is none or no pytree, y holds integers, or `observed` does not hold booleans.
    """

    operator: Operator
    y: Measurement
    sigma_y: Scalar
    likelihood: Likelihood = dataclasses.field(default_factory=Gaussian)
    observed: Bool[Array, "..."] | None = None

    def __post_init__(self):
        check_part("operator", self.operator)
        check_registered("operator", self.operator)
        if not isinstance(self.sigma_y, Tracer):
            check_sigma(self.sigma_y)
        y = jnp.asarray(self.y)
        check_floats(y)
        if self.observed is not None:
            observed = as_observed(self.observed, y.shape)
            object.__setattr__(self, "observed", observed)
            object.__setattr__(self, "operator", masked(self.operator, observed))
        object.__setattr__(self, "y", _where_observed(self.operator, y))
        object.__setattr__(self, "sigma_y", jnp.asarray(self.sigma_y, float_type(y)))

    @property
    def num_observed(self) -> int | Float[Array, ""]:
        """How many real numbers were observed: one per entry of y, two if it is complex. At least 1, to divide by."""
        per_entry = 2 if jnp.iscomplexobj(self.y) else 1
        seen = observed_entries(self.operator, self.y.shape)
        if seen is None:
            return max(per_entry * self.y.size, 1)
        return jnp.maximum(per_entry * jnp.sum(seen, dtype=jnp.finfo(self.y.dtype).dtype), 1)

    def measured(self, x: Image) -> Measurement:
        """Compute A(x), 0 where nothing was observed."""
        return _where_observed(self.operator, self.operator.forward(x))

    def residual(self, x: Image) -> Measurement:
        """Compute A(x) - y, 0 where nothing was observed."""
        return self.measured(x) - self.y

    def half_squared_residual(self, x: Image) -> Float[Array, ""]:
        """Compute ||A(x) - y||^2 / 2, whatever the noise model."""
        return 0.5 * sum_of_squares(self.residual(x))

    def nll(self, x: Image) -> Float[Array, ""]:
        """Compute the negative log-likelihood up to a constant: ||A(x) - y||^2 / (2 sigma_y^2) by default."""
        return self.likelihood.precision(self.sigma_y) * self.likelihood.data_term(self.measured(x), self.y)

    def grad(self, x: Image) -> Image:
        """Compute the gradient of `nll`."""
        return jax.grad(self.nll)(x)

    def misfit(self, x: Image) -> Float[Array, ""]:
        """Compute ||A(x) - y||^2 over the number of real numbers observed; about sigma_y^2 at the truth.

        The real and the imaginary part of a complex y are two numbers, each with noise sigma_y.
        """
        return sum_of_squares(self.residual(x)) / self.num_observed

    def misfit_and_gradient(self, x: Image) -> tuple[Float[Array, ""], Image]:
        """Compute the misfit and the gradient of the data term with one pass through the operator.

        The data term is ||A(x) - y||^2 / 2 by default; `likelihood.precision` times it is `nll`.
        """

        def value(x: Image) -> tuple[Float[Array, ""], Float[Array, ""]]:
            clean = self.measured(x)
            return self.likelihood.data_term(clean, self.y), sum_of_squares(clean - self.y)

        (_, squares), gradient = jax.value_and_grad(value, has_aux=True)(x)
        return squares / self.num_observed, gradient


def _where_observed(operator: Operator, y: Measurement) -> Measurement:
    seen = observed_entries(operator, y.shape)
    return y if seen is None else jnp.where(seen, y, jnp.zeros((), y.dtype))


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
