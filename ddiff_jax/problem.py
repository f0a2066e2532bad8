"""An inverse problem: what was measured, through which operator, with how much noise."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from ddiff_jax.boundary import check_floats, check_part, check_stack
from ddiff_jax.likelihood import Gaussian, Likelihood, expected, sum_of_squares
from ddiff_jax.operators._masked import masked
from ddiff_jax.operators.base import Operator, as_observed, observed_entries
from ddiff_jax.pytree import check_registered, pytree_dataclass, static_field
from ddiff_jax.types import Image, Measurement, PRNGKey, Scalar, float_type

_MASK = (jax.tree_util.GetAttrKey("operator"), jax.tree_util.GetAttrKey("mask"))


@pytree_dataclass
class Problem:
    """A measurement y of A(x), or a batch of them; by default y = A(x) + sigma_y n with n ~ N(0, I).

    `solve_one` takes the problem of one image. `solve` takes a batch: y with a leading axis of N images. It is written
    the same way, `Problem(operator, y, sigma_y)`, or stacked from N problems of one image by `jax.vmap` or by
    `jax.tree.map`. The methods below are those of one image; `map` applies one to every image of a batch.

    Not every entry of y need have been observed: inpainting hides pixels, a scanner skips frequencies, a detector has
    dead pixels. The operator may say which were (see `Operator`), or `observed` says it here. All others are set to 0
    when the problem is built, so that nothing can depend on what a file holds there, and no mean or norm counts them.

    Args:
        operator: A. Where `observed` is given, it becomes the operator followed by that mask (`operators.masked`), on
            which every solver is right that accepts it.
        y: the measurement, or N of them; floats or complex numbers.
        sigma_y: noise standard deviation in units of y, one for a batch or one for each of its images; a complex y
            has this much in its real and in its imaginary part. 0 is allowed where a solver does not divide by it.
        likelihood: the noise model, `Gaussian()`, or for photon counts `Poisson(photons)` or `Counts(incident)`.
        observed: what the operator does not know: booleans that broadcast to y, true where an entry was observed.
        operator_axis: 0 if every array in `operator` has a leading axis of N (built by
            `jax.tree.map(lambda *a: jnp.stack(a), *operators)` or a vmapped factory); None if one operator measured
            everything.

    Raises:
        ValueError: sigma_y is negative or not finite, which entries were observed does not broadcast to y, or the
            operator is no stack of as many as there are measurements.
        TypeError: the operator is none or no pytree, y holds integers, or `observed` does not hold booleans.
    """

    operator: Operator
    y: Measurement
    sigma_y: Scalar | Float[Array, " N"]
    likelihood: Likelihood = dataclasses.field(default_factory=Gaussian)
    observed: Bool[Array, "..."] | None = None
    operator_axis: int | None = static_field(default=None)
    # The axes that sigma_y had here. If it has one more later on, all of this was stacked: a transformation did it.
    _sigma_ndim: int = static_field(default=0, init=False, repr=False)

    def __post_init__(self):
        check_part("operator", self.operator)
        check_registered("operator", self.operator)
        check_part("likelihood", self.likelihood)
        if not isinstance(self.sigma_y, Tracer):
            check_sigma(self.sigma_y)
        y = jnp.asarray(self.y)
        check_floats(y)
        is_stack = check_stack(self.operator, self.operator_axis, y.shape)
        if self.observed is not None:
            observed = as_observed(self.observed, y.shape)
            hide = jax.vmap(masked) if is_stack else masked
            object.__setattr__(self, "observed", observed)
            object.__setattr__(self, "operator", hide(self.operator, observed))
        if is_stack:
            seen = jax.vmap(lambda operator: observed_entries(operator, y.shape[1:]))(self.operator)
        else:
            seen = observed_entries(self.operator, y.shape)
        sigma_y = jnp.asarray(self.sigma_y, float_type(y))
        object.__setattr__(self, "y", _where(seen, y))
        object.__setattr__(self, "sigma_y", sigma_y)
        object.__setattr__(self, "_sigma_ndim", sigma_y.ndim)

    def own(self) -> "Problem":
        """Tell of every array of a batch whether each image has its own: the same tree, with booleans for arrays."""
        is_stack = jnp.ndim(self.sigma_y) > self._sigma_ndim
        whole = {
            "operator": is_stack or self.operator_axis == 0,
            "y": True,
            "sigma_y": jnp.ndim(self.sigma_y) > 0,
            "likelihood": is_stack,
            "observed": True,
        }
        return jax.tree_util.tree_map_with_path(
            # The mask that `observed` put behind an operator that is shared.
            lambda path, _: whole[path[0].name] or (self.observed is not None and path[:2] == _MASK),
            self,
        )

    def split(self) -> tuple[list[Any], Callable[[list[Any]], "Problem"]]:
        """Take a batch apart: the arrays that have an axis of images, and what makes one image's rows a problem."""
        one = copy.copy(self)
        object.__setattr__(one, "operator_axis", None)
        object.__setattr__(one, "_sigma_ndim", 0)
        leaves, structure = jax.tree.flatten(one)
        own = jax.tree.leaves(self.own())

        def build(rows: list[Any]) -> Problem:
            row = iter(rows)
            return structure.unflatten(
                [next(row) if is_own else leaf for leaf, is_own in zip(leaves, own, strict=True)]
            )

        return [leaf for leaf, is_own in zip(leaves, own, strict=True) if is_own], build

    def map(self, function: Callable[..., Any], *batches: Any) -> Any:
        """Call a function for every image of a batch, vectorised: `problem.map(Problem.misfit, x)`.

        Args:
            function: takes the problem of one image and its rows of `batches`.
            batches: arrays, or trees of them, with a leading axis of images; None stays None.
        """
        rows, build = self.split()
        return jax.vmap(lambda rows, *of_image: function(build(rows), *of_image))(rows, *batches)

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
        return self._seen(self.operator.forward(x))

    def expected(self, x: Image) -> Measurement:
        """Compute the mean of y: A(x) unless the likelihood counts in other units; 0 where nothing was observed."""
        return self._seen(expected(self.likelihood, self.operator.forward(x)))

    def _seen(self, clean: Measurement) -> Measurement:
        return _where(observed_entries(self.operator, clean.shape), clean)

    def residual(self, x: Image) -> Measurement:
        """Compute the expected y - y, A(x) - y in the units of y; 0 where nothing was observed."""
        return self.expected(x) - self.y

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
            residual = self._seen(expected(self.likelihood, clean)) - self.y
            return self.likelihood.data_term(clean, self.y), sum_of_squares(residual)

        (_, squares), gradient = jax.value_and_grad(value, has_aux=True)(x)
        return squares / self.num_observed, gradient


def _where(seen: Bool[Array, "..."] | None, y: Measurement) -> Measurement:
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
