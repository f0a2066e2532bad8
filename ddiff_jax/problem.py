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
from ddiff_jax.operators._affine import linear_part
from ddiff_jax.operators._masked import masked
from ddiff_jax.operators._weighted import keeps_its_kind, weigh, weighted
from ddiff_jax.operators.base import (
    Operator,
    as_observed,
    entry_counts,
    observed_entries,
    own_counts,
    prepared_operator,
)
from ddiff_jax.pytree import check_registered, pytree_dataclass, static_field
from ddiff_jax.types import Image, Measurement, PRNGKey, Scalar, float_type


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
            Noise that differs between entries is an array with as many axes as y, of length 1 where it is the same: for
            a batch, a map for all of its images is `sigma[None]`. It is positive where something was observed.
        likelihood: the noise model, `Gaussian()`, or for photons `Poisson`, `PoissonGaussian` or `Counts`.
        observed: what the operator does not know: booleans that broadcast to y, true where an entry was observed.
        operator_axis: 0 if every array in `operator` has a leading axis of N (built by
            `jax.tree.map(lambda *a: jnp.stack(a), *operators)` or a vmapped factory); None if one operator measured
            everything.

    Raises:
        ValueError: sigma_y is negative or not finite, it or which entries were observed does not broadcast to y, noise
            that is not Gaussian has a level per entry, or the operator is no stack of as many as there are
            measurements.
        TypeError: the operator is none or no pytree, y holds integers, or `observed` does not hold booleans.
    """

    operator: Operator
    y: Measurement
    sigma_y: Scalar | Float[Array, "..."]
    likelihood: Likelihood = dataclasses.field(default_factory=Gaussian)
    observed: Bool[Array, "..."] | None = None
    operator_axis: int | None = static_field(default=None)
    # The axes that sigma_y had here. If it has one more later on, all of this was stacked: a transformation did it.
    _sigma_ndim: int = static_field(default=0, init=False, repr=False)
    # Which array of an operator that the batch shares every image has for itself: what was put behind it here.
    _own: str | None = static_field(default=None, init=False, repr=False)

    def __post_init__(self):
        check_part("operator", self.operator)
        check_registered("operator", self.operator)
        check_part("likelihood", self.likelihood)
        y = jnp.asarray(self.y)
        check_floats(y)
        check_sigma_shape(jnp.shape(self.sigma_y), y.shape)
        per_entry = 0 < jnp.ndim(self.sigma_y) == y.ndim
        if not isinstance(self.sigma_y, Tracer) and not per_entry:
            check_sigma(self.sigma_y)
        is_stack = check_stack(self.operator, self.operator_axis, y.shape)
        if self.observed is not None:
            observed = as_observed(self.observed, y.shape)
            hide = jax.vmap(masked) if is_stack else masked
            object.__setattr__(self, "observed", observed)
            object.__setattr__(self, "operator", hide(self.operator, observed))
            object.__setattr__(self, "_own", "mask")
        if is_stack:
            seen = jax.vmap(lambda operator: observed_entries(operator, y.shape[1:]))(self.operator)
        else:
            seen = observed_entries(self.operator, y.shape)
        sigma_y = jnp.asarray(self.sigma_y, float_type(y))
        if per_entry:
            sigma_y = jnp.broadcast_to(sigma_y, y.shape)
            sigma_y = sigma_y if seen is None else jnp.where(seen, sigma_y, 1.0)
            check_entry_levels(self.likelihood, sigma_y)
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
        key = jax.tree_util.GetAttrKey
        added = (key("operator"), key(self._own or ""))
        return jax.tree_util.tree_map_with_path(lambda path, _: whole[path[0].name] or path[:2] == added, self)

    def split(self) -> tuple[list[Any], Callable[[list[Any]], "Problem"]]:
        """Take a batch apart: the arrays that have an axis of images, and what makes one image's rows a problem."""
        one = copy.copy(self)
        object.__setattr__(one, "operator_axis", None)
        object.__setattr__(one, "_sigma_ndim", max(jnp.ndim(self.sigma_y) - 1, 0))
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

    def prepared(self) -> "Problem":
        """Let the operator work out what least squares need of it, see `prepared_operator`; all else stays."""
        ready = copy.copy(self)  # built anew it would be checked, and y cleaned, once more
        object.__setattr__(ready, "operator", prepared_operator(self.operator))
        return ready

    @property
    def num_observed(self) -> int | Float[Array, ""]:
        """How many real numbers were observed: one per entry of y, two if it is complex. At least 1, to divide by.

        Operators whose entries depend on each other count them their own way.
        """
        if own_counts(self.operator) is None and observed_entries(self.operator) is None:
            return max(self.y.size * (2 if jnp.iscomplexobj(self.y) else 1), 1)
        return jnp.maximum(jnp.sum(entry_counts(self.operator, self.y)), 1)

    @property
    def num_hidden(self) -> Float[Array, ""]:
        """How many real numbers of y were not observed."""
        per_entry = 2 if jnp.iscomplexobj(self.y) else 1
        seen = observed_entries(self.operator, self.y.shape)
        real = jnp.finfo(self.y.dtype).dtype
        return jnp.zeros((), real) if seen is None else per_entry * jnp.sum(~seen, dtype=real)

    @property
    def noise_power(self) -> Float[Array, ""]:
        """The mean of sigma_y^2 over the real numbers observed: what `misfit` amounts to at the truth."""
        if jnp.ndim(self.sigma_y) == 0:
            return jnp.asarray(self.sigma_y) ** 2
        counts = entry_counts(self.operator, self.y)
        return jnp.sum(jnp.where(counts > 0, counts * self.sigma_y**2, 0.0)) / self.num_observed

    def standardised(self) -> "Problem":
        """Write the same problem so that every solver can take it: what `solve` and `solve_one` hand to them.

        Of an affine operator the linear part is left, with y - A(0). Noise that differs between entries becomes one
        level, by weights on operator and data: with n entries observed, at levels sigma_i,

            sigma_ref = sqrt(n / sum 1 / sigma_i^2),  root_i = sigma_ref / sigma_i,  (root A) x = root y + sigma_ref n.

        The likelihood is the same, and hyper-parameters keep the meaning that they have for one level. Noise that is
        not Gaussian is left alone.

        Returns:
            Problem with one sigma_y; this one where there is nothing to do.
        """
        if not isinstance(self.likelihood, Gaussian):
            return self
        operator, offset = linear_part(self.operator)
        y = _centred(self.y, offset)
        if jnp.ndim(self.sigma_y) == 0:
            return self if offset is None else Problem(operator, y, self.sigma_y, self.likelihood)
        root, level = self._whitening()
        return Problem(weighted(operator, root), weigh(root, y), level, self.likelihood)

    def standardised_batch(self) -> "Problem":
        """Do the same for a batch, on the host; an operator that its images share stays shared where it can."""
        operator, offset = linear_part(self.operator)
        per_entry = 0 < jnp.ndim(self.sigma_y) == jnp.ndim(self.y)
        if not isinstance(self.likelihood, Gaussian) or not (per_entry or offset is not None):
            return self
        is_stack = self.operator_axis == 0 or jnp.ndim(self.sigma_y) > self._sigma_ndim
        if is_stack or (per_entry and keeps_its_kind(operator)):
            rows, build = self.split()
            ones = [build([row[i] for row in rows]).standardised() for i in range(len(self.y))]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *ones)
        y = _centred(self.y, offset)
        if not per_entry:
            return _shared(operator, y, self.sigma_y, self._own)
        root, level = self.map(Problem._whitening)
        return _shared(weighted(operator, root), weigh(root, y), level, "root")

    def _whitening(self) -> tuple[Float[Array, "..."], Float[Array, ""]]:
        """Compute the weights that make the noise of all entries equal, and its level then."""
        seen = observed_entries(self.operator, self.y.shape)
        seen = jnp.ones(self.y.shape, bool) if seen is None else seen
        sigma = jnp.where(seen, self.sigma_y, 1.0)
        count = jnp.maximum(jnp.sum(seen, dtype=sigma.dtype), 1)
        # Relative to the least, so that no square leaves the range of float32.
        least = jnp.min(jnp.where(seen, sigma, jnp.inf), initial=jnp.inf)
        least = jnp.where(jnp.isfinite(least), least, 1.0)
        level = least * jnp.sqrt(count / jnp.maximum(jnp.sum(jnp.where(seen, (least / sigma) ** 2, 0.0)), 1e-30))
        return jnp.where(seen, level / sigma, 0.0), level

    def measured(self, x: Image) -> Measurement:
        """Compute A(x), 0 where nothing was observed."""
        return self.seen(self.operator.forward(x))

    def expected(self, x: Image) -> Measurement:
        """Compute the mean of y: A(x) unless the likelihood counts in other units; 0 where nothing was observed."""
        return self.seen(expected(self.likelihood, self.operator.forward(x)))

    def seen(self, clean: Measurement) -> Measurement:
        """Set to 0 what was not observed of something in the shape of y."""
        return _where(observed_entries(self.operator, clean.shape), clean)

    def residual(self, x: Image) -> Measurement:
        """Compute the expected y - y, A(x) - y in the units of y; 0 where nothing was observed."""
        return self.expected(x) - self.y

    def half_squared_residual(self, x: Image) -> Float[Array, ""]:
        """Compute ||A(x) - y||^2 / 2, whatever the noise model."""
        return 0.5 * sum_of_squares(self.residual(x))

    def nll(self, x: Image) -> Float[Array, ""]:
        """Compute the negative log-likelihood up to a constant: ||A(x) - y||^2 / (2 sigma_y^2) by default."""
        if jnp.ndim(self.sigma_y):
            return self.standardised().nll(x)
        return self.likelihood.precision(self.sigma_y) * self.likelihood.data_term(self.measured(x), self.y)

    def grad(self, x: Image) -> Image:
        """Compute the gradient of `nll`."""
        return jax.grad(self.nll)(x)

    def misfit(self, x: Image) -> Float[Array, ""]:
        """Compute ||A(x) - y||^2 over the number of real numbers observed; about `noise_power` at the truth.

        The real and the imaginary part of a complex y are two numbers, each with noise sigma_y.
        """
        return sum_of_squares(self.residual(x)) / self.num_observed

    def chi_square(self, x: Image) -> Float[Array, ""]:
        """Compute ||(A(x) - y) / sigma_y||^2 over the number of real numbers observed; about 1 at the truth."""
        problem = self.standardised()
        return problem.misfit(x) / jnp.asarray(problem.sigma_y) ** 2

    def misfit_and_gradient(self, x: Image) -> tuple[Float[Array, ""], Image]:
        """Compute the misfit and the gradient of the data term with one pass through the operator.

        The data term is ||A(x) - y||^2 / 2 by default; `likelihood.precision` times it is `nll`. Both are those of the
        standardised problem where noise differs between entries.
        """
        if jnp.ndim(self.sigma_y):
            return self.standardised().misfit_and_gradient(x)

        def value(x: Image) -> tuple[Float[Array, ""], Float[Array, ""]]:
            clean = self.measured(x)
            residual = self.seen(expected(self.likelihood, clean)) - self.y
            return self.likelihood.data_term(clean, self.y), sum_of_squares(residual)

        (_, squares), gradient = jax.value_and_grad(value, has_aux=True)(x)
        return squares / self.num_observed, gradient


def _shared(operator: Operator, y: Measurement, sigma_y: Any, own: str | None) -> Problem:
    """Make a batch under Gaussian noise whose images share the operator, but for one array that was put behind it."""
    problem = Problem(operator, y, sigma_y)
    object.__setattr__(problem, "_own", own)
    return problem


def _centred(y: Measurement, offset: Measurement | None) -> Measurement:
    return y if offset is None else y - jnp.broadcast_to(offset, y.shape).astype(y.dtype)


def _where(seen: Bool[Array, "..."] | None, y: Measurement) -> Measurement:
    return y if seen is None else jnp.where(seen, y, jnp.zeros((), y.dtype))


def check_sigma_shape(shape: tuple[int, ...], y: tuple[int, ...]) -> None:
    """Refuse noise levels whose axes could mean this or that, or do not fit the measurement.

    Raises:
        ValueError: they do.
    """
    same = "a map that holds for all images of a batch is sigma[None], one without axes of y has 1 in their place"
    if len(shape) not in (0, 1, len(y)):
        raise ValueError(
            f"sigma_y must be one number, one per image of a batch, or have as many axes as y, whose shape is {y}; got "
            f"shape {shape}: {same}"
        )
    if len(shape) == len(y) and any(n not in (1, m) for n, m in zip(shape, y, strict=True)):
        raise ValueError(f"sigma_y of shape {shape} does not broadcast to y, whose shape is {y}: {same}")


def check_entry_levels(likelihood: Likelihood, sigma_y: jax.Array) -> None:
    """Refuse levels per entry where the noise is not Gaussian, or where one is 0.

    Raises:
        ValueError: it is.
    """
    if not isinstance(likelihood, Gaussian):
        raise ValueError(
            f"noise levels per entry are those of Gaussian noise; {type(likelihood).__name__} noise has its own: give "
            "sigma_y one number, a typical standard deviation"
        )
    if isinstance(sigma_y, Tracer):
        return
    bad = int(jnp.sum(~(jnp.isfinite(sigma_y) & (sigma_y > 0))))
    if bad:
        raise ValueError(
            f"sigma_y must be positive and finite in every entry that was observed; {bad} of them are not: say which "
            "were not observed by Problem(observed=...)"
        )


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
    operator: Operator,
    x: Image,
    sigma_y: Scalar | Float[Array, "..."],
    key: PRNGKey,
    likelihood: Likelihood | None = None,
) -> Measurement:
    """Measure an image with noise: A(x) + sigma_y n.

    The noise is added to every entry of A(x), to those that inpainting hides as well, and nothing is clipped
    afterwards, as in the published codes (`noiser` in ddiff_sample.py of DDiff, `GaussianNoise` in
    guided_diffusion/measurements.py of DPS). Complex measurements get independent noise of this standard deviation in
    their real and imaginary parts.

    Args:
        operator: A.
        x: the clean image.
        sigma_y: noise standard deviation in units of the measurement, or one per entry. Codes that state it for
            images in [0, 1] (DiffPIR, RED-diff, DDRM) mean twice their number here.
        key: draws the noise.
        likelihood: another noise model, such as `Poisson(photons)`; None is Gaussian.

    Raises:
        ValueError: sigma_y is negative or not finite.
    """
    if not isinstance(sigma_y, Tracer):
        check_sigma(sigma_y)
    return (likelihood or Gaussian()).sample(operator.forward(x), sigma_y, key)
