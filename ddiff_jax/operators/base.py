"""What an operator is, and what linear ones add."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, Shaped
from numpy.typing import ArrayLike

from ddiff_jax.types import Image, ImageShape, Measurement, PRNGKey, Scalar


@runtime_checkable
class Operator(Protocol):
    """A noiseless, deterministic and differentiable map from one image to its measurement.

    Any object with this method serves, as long as it is a pytree (`ddiff_jax.pytree_dataclass` makes it one).

    What it may offer besides, and the function that asks any operator for it:

    | member | asked by | without it |
    |---|---|---|
    | `image_shape`, the shape of the images that it takes | `known_image_shape` | any shape may fit |
    | `observed()`, see `PartlyObserved` | `observed_entries` | all entries count |
    | `counts()`, see `Redundant` | `entry_counts` | every real number counts once |
    | `weighted(root)`, see `Weighable` | `operators.weighted` | the operator, then the weights |
    | `equivalents(x)`, see `Ambiguous` | `equivalent_images` | x alone |
    | `measures_picture = True`: the measurement is in the range of images | `measures_picture` | it is not |
    | `prepared()`, the same with what its least squares need worked out | `prepared_operator` | it is ready |

    `LinearOperator` and `DecomposableOperator` add what solvers by least squares need.
    """

    def forward(self, x: Image) -> Measurement:
        """Map one image in [-1, 1], channels last, to its measurement."""
        ...


@runtime_checkable
class PartlyObserved(Protocol):
    """An operator that knows that not all entries of its measurement were observed."""

    def observed(self) -> Bool[jax.Array, "..."] | None:
        """Tell where an entry was observed, by booleans that broadcast to the measurement; None is everywhere.

        `forward` puts 0 at all others. Whatever y holds there counts for nothing.
        """
        ...


@runtime_checkable
class Redundant(Protocol):
    """An operator whose measurement holds more numbers than it has degrees of freedom, such as phases as phasors."""

    def counts(self) -> Float[jax.Array, "..."] | None:
        """Tell how many independent real numbers an entry stands for, by an array that broadcasts to the measurement.

        None is one for a real entry and two for a complex one.
        """
        ...


@runtime_checkable
class Weighable(Protocol):
    """An operator that stays of a kind whose least squares are exact when its measurement is weighted."""

    def weighted(self, root: Float[jax.Array, "..."]) -> "Operator | None":
        """Give diag(root) A, for `root` of the shape of the measurement, at least 0; None where it cannot stay so.

        What `root` makes 0 becomes unobserved.
        """
        ...


@runtime_checkable
class Ambiguous(Protocol):
    """An operator that cannot tell some images apart."""

    def equivalents(self, x: Image) -> Shaped[jax.Array, "E ..."]:
        """List images that measure the same as x, itself first."""
        ...


class LinearOperator:
    """Base of the linear operators: adds the adjoint by transposing `forward`, and least squares on top of it.

    Subclasses are pytree dataclasses with a static field `image_shape`. Those that know a closed form override
    `prox` and `pseudo_inverse`.
    """

    image_shape: ImageShape

    def forward(self, x: Image) -> Measurement:
        """Map one image to its measurement."""
        raise NotImplementedError

    def adjoint(self, y: Measurement) -> Image:
        """Apply A^T (A^H for a complex measurement), so that <A x, y> = <x, A^H y> for real images x."""
        # Not a mere shape: inside of `shard_map` the image varies over the same devices as y.
        x = jnp.zeros_like(y, shape=self.image_shape, dtype=jnp.finfo(y.dtype).dtype)
        (x_adjoint,) = jax.linear_transpose(self.forward, x)(jnp.conj(y))
        return x_adjoint

    def prox(self, z: Image, y: Measurement, rho: Scalar) -> Image:
        """Minimise ||A x - y||^2 + rho ||x - z||^2 over x, for rho > 0.

        By conjugate gradients on (A^H A + rho) (x - z) = A^H (y - A z), to a relative residual of 1e-6 (1e-12 in
        float64) or 200 iterations. Derivatives are those of the minimiser, by a second such solution. Subclasses with
        a closed form are exact.
        """
        residual = self.adjoint(y - self.forward(z))
        tol = 1e-12 if residual.dtype == jnp.float64 else 1e-6
        correction, _ = jax.scipy.sparse.linalg.cg(
            lambda x: self.adjoint(self.forward(x)) + jnp.asarray(rho, x.dtype) * x, residual, tol=tol, maxiter=200
        )
        # From NaN they stop at once, with a correction of 0 as if nothing had been measured: it must stay visible.
        return z + correction + 0 * jnp.sum(residual)

    def pseudo_inverse(self, y: Measurement) -> Image:
        """Find the image of least norm among those that minimise ||A x - y||.

        By conjugate gradients on the normal equations from zero, to a relative residual of 1e-6 or 200 iterations:
        directions that A hardly transmits are left out, which keeps noise from exploding. Derivatives are those
        of the iterations, since the limit that they are stopped short of has others. Subclasses with a closed form are
        exact.
        """
        r = self.adjoint(y)
        return conjugate_gradients(lambda p: self.adjoint(self.forward(p)), jnp.zeros_like(r), r, 200)


def conjugate_gradients(normal: Callable[[Image], Image], x: Image, r: Image, iterations: int) -> Image:
    """Go on from x towards the solution of N x = b, so many times or to a residual of 1e-6 of the first one.

    Derivatives are those of the iterations.

    Args:
        normal: N, symmetric and not negative.
        x: where to begin.
        r: b - N x there.
        iterations: at most.
    """

    def iterate(carry: tuple[Image, Image, Image, jax.Array], _: None) -> tuple[Any, None]:
        x, r, p, power = carry
        is_done = power <= enough  # not so of NaN, which stays visible
        change = normal(p)
        length = jnp.where(is_done, 0.0, power / jnp.where(is_done, 1.0, jnp.sum(p * change)))
        x, r = x + length * p, r - length * change
        left = jnp.sum(r**2)
        return (x, r, r + left / jnp.where(is_done, 1.0, power) * p, left), None

    power = jnp.sum(r**2)
    enough = 1e-6**2 * power
    (x, *_), _ = jax.lax.scan(iterate, (x, r, r, power), None, length=iterations)
    return x


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """A = U diag(s) V^T with the two orthogonal factors as functions.

    Args:
        s: singular values, at least 0; broadcasts to the coefficients.
        from_image: x to V^T x, the coefficients. Images may have a part that no coefficient holds: A does not see it.
        to_image: coefficients c to V c.
        from_measurement: y to U^T y, real.
    """

    s: jax.Array
    from_image: Callable[[Image], jax.Array]
    to_image: Callable[[jax.Array], Image]
    from_measurement: Callable[[Measurement], jax.Array]

    def inverse(self) -> jax.Array:
        """List 1 / s, and 0 where s counts as zero: below 3.5e-4 of the largest.

        That is half of float32's digits, so that rounding errors in y, and not more than that, stay invisible.
        """
        is_seen = self.s > self.s.max() * math.sqrt(jnp.finfo(jnp.float32).eps)
        return jnp.where(is_seen, 1 / jnp.where(is_seen, self.s, 1.0), 0.0)


class DecomposableOperator(LinearOperator):
    """Base of the linear operators whose singular value decomposition is at hand: least squares are exact."""

    def svd(self) -> Decomposition:
        """Decompose the operator."""
        raise NotImplementedError

    def prox(self, z: Image, y: Measurement, rho: Scalar) -> Image:
        """Minimise ||A x - y||^2 + rho ||x - z||^2 over x, exactly, for rho > 0."""
        parts = self.svd()
        residual = parts.from_measurement(y - self.forward(z))
        s = parts.s.astype(residual.dtype)
        return z + parts.to_image(s / (s**2 + rho) * residual)

    def pseudo_inverse(self, y: Measurement) -> Image:
        """Find the image of least norm that fits y, as far as `Decomposition.inverse` goes."""
        parts = self.svd()
        coefficients = parts.from_measurement(y)
        return parts.to_image(parts.inverse().astype(coefficients.dtype) * coefficients)


def known_image_shape(operator: Any) -> ImageShape | None:
    """Ask an operator for the shape of the images that it takes; None if it does not say."""
    return getattr(operator, "image_shape", None)


def measures_picture(operator: Any) -> bool:
    """Tell whether what an operator, or a class of them, measures is a picture in the range of images, [-1, 1]."""
    return getattr(operator, "measures_picture", False) is True


def equivalent_images(operator: Operator, x: Image) -> Shaped[jax.Array, "E ..."]:
    """List images that measure the same as x, itself first; x alone if the operator knows no others."""
    return operator.equivalents(x) if isinstance(operator, Ambiguous) else x[None]


def prepared_operator(operator: Any) -> Any:
    """Let an operator work out what its least squares need: what is too costly for every operator, or not to be traced.

    `solve` and `solve_one` do this for solvers that solve least squares, on the host and before anything is compiled.
    Where the operator is an argument of your own `jit` or `vmap`, or serves several calls, do it once before.

    Args:
        operator: one, or a stack.

    Returns:
        The same operator, or one of its type with more arrays; the operator itself if it has no method `prepared`.
    """
    offer = getattr(operator, "prepared", None)
    return operator if offer is None else offer()


def observed_entries(operator: Operator, shape: tuple[int, ...] | None = None) -> Bool[jax.Array, "..."] | None:
    """Ask an operator which entries of its measurement were observed.

    Args:
        operator: A.
        shape: of the measurement; None leaves the answer in the operator's own shape, which broadcasts to it.

    Returns:
        True where one was; None if all were.

    Raises:
        TypeError: its `observed` is no method, or does not give booleans.
        ValueError: what it gives does not broadcast to the measurement.
    """
    offer = getattr(operator, "observed", None)
    if offer is None:
        return None
    name = f"{type(operator).__name__}.observed"
    if not callable(offer):
        raise TypeError(
            f"{name} must be a method that tells which entries of the measurement were observed; it is a "
            f"{type(offer).__name__}: rename the field, and let the method return it"
        )
    found: Any = offer()
    return None if found is None else as_observed(found, found.shape if shape is None else shape, f"{name}()")


def own_counts(operator: Operator) -> Float[jax.Array, "..."] | None:
    """Ask an operator how many independent real numbers its entries stand for; None if it counts as usual."""
    return operator.counts() if isinstance(operator, Redundant) else None


def entry_counts(operator: Operator, y: Measurement) -> Float[jax.Array, "..."]:
    """Tell how many independent real numbers every entry of a measurement stands for, 0 where nothing was observed.

    Args:
        operator: A.
        y: its measurement; a complex entry stands for two unless the operator says otherwise.

    Returns:
        Numbers in the shape of y.
    """
    real = jnp.finfo(y.dtype).dtype
    own = own_counts(operator)
    each = jnp.broadcast_to(jnp.asarray((2 if jnp.iscomplexobj(y) else 1) if own is None else own, real), y.shape)
    seen = observed_entries(operator, y.shape)
    return each if seen is None else jnp.where(seen, each, jnp.zeros((), real))


def as_observed(
    observed: Shaped[jax.Array, "..."] | Shaped[np.ndarray, "..."], shape: tuple[int, ...], what: str = "observed"
) -> Bool[jax.Array, "..."]:
    """Return booleans in the shape of a measurement.

    Args:
        observed: booleans, or known numbers 0 and 1, that broadcast to it; true or 1 where an entry was observed.
        shape: of the measurement.
        what: their name in messages.

    Raises:
        TypeError: other numbers.
        ValueError: another shape.
    """
    values = jnp.asarray(observed)
    if values.dtype != jnp.bool_:
        if isinstance(values, Tracer) or not np.isin(values, (0, 1)).all():
            raise TypeError(
                f"{what} must hold booleans, true where an entry of y was observed; got {values.dtype}: write mask > 0"
            )
        values = values.astype(bool)
    try:
        return jnp.broadcast_to(values, shape)
    except ValueError as error:
        raise ValueError(
            f"{what} must broadcast to y; its shape is {values.shape}, that of y {shape}: a mask over the pixels needs "
            "an axis of length 1 for the channels, mask[..., None]"
        ) from error


def spectral_norm(
    operator: Operator,
    key: PRNGKey,
    *,
    at: Image | None = None,
    shape: ImageShape | None = None,
    num_iterations: int = 30,
) -> jax.Array:
    """Estimate the largest singular value of A, or of its derivative, by power iteration on A^H A.

    Args:
        operator: linear or differentiable.
        key: draws the first direction.
        at: where to take the derivative of a nonlinear operator; None is the grey image, 0.
        shape: image shape; None takes the operator's own `image_shape`.
        num_iterations: more give more digits; the estimate approaches from below.
    """
    if at is None:
        at = jnp.zeros(known_image_shape(operator) if shape is None else shape, jnp.float32)
    _, push = jax.linearize(operator.forward, at)
    pull = jax.linear_transpose(push, at)

    def body(_: Any, v: Image) -> Image:
        (w,) = pull(jnp.conj(push(v)))
        return w / jnp.maximum(jnp.linalg.norm(w.ravel()), jnp.finfo(w.dtype).tiny)

    v = jax.lax.fori_loop(0, num_iterations, body, jax.random.normal(key, at.shape, at.dtype))
    return jnp.linalg.norm(push(v).ravel())


def dot_test(operator: LinearOperator, x: Image, y: Measurement) -> jax.Array:
    """Measure |<A x, y> - <x, A^H y>| / (||A x|| ||y||): rounding error for a true adjoint, 0 where A x = 0 = A^H y.

    Args:
        operator: with `forward` and `adjoint`.
        x: an image.
        y: a measurement, of any values.
    """
    forward, adjoint = operator.forward(x), operator.adjoint(y)
    inner = jnp.real(jnp.vdot(forward, y))
    scale = jnp.linalg.norm(forward.ravel()) * jnp.linalg.norm(y.ravel())
    return jnp.abs(inner - jnp.vdot(x, adjoint)) / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)


def check_shape(shape: ImageShape) -> tuple[int, int, int]:
    """Return the shape of a picture as three positive integers.

    Raises:
        ValueError: it is anything else.
    """
    if len(shape) != 3 or any(int(n) != n or n < 1 for n in shape):
        raise ValueError(f"the image shape must be three positive integers (H, W, C); got {shape}")
    height, width, channels = map(int, shape)
    return height, width, channels


def check_any_shape(shape: ImageShape) -> ImageShape:
    """Return the shape of an image of any rank as positive integers.

    Raises:
        ValueError: it is anything else, or has no axis beside the channels.
    """
    if len(shape) < 2 or any(int(n) != n or n < 1 for n in shape):
        raise ValueError(
            "the image shape must be positive integers with the channels last: (H, W, C) for pictures, (L, C) for "
            f"signals, (D, H, W, C) for volumes; got {shape}"
        )
    return tuple(map(int, shape))


def check_mask(mask: ArrayLike, shape: ImageShape, what: str) -> np.ndarray:
    """Return a mask over the pixels of an image as [H, W, 1] of 0 and 1 in float32.

    Args:
        mask: [H, W] or [H, W, 1], boolean or numbers 0 and 1; true or 1 where something is measured.
        shape: (H, W, C) of the image.
        what: the mask's name in messages.

    Raises:
        ValueError: it has another shape, other values, or is 0 everywhere.
    """
    values, size = np.asarray(mask), shape[:2]
    if values.shape not in (size, (*size, 1)):
        raise ValueError(
            f"the {what} must have the height and width of the image, {size}, and one channel; got shape {values.shape}"
        )
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"the {what} must hold only 0 (hidden) and 1 (observed); threshold it first")
    if not values.any():
        raise ValueError(
            f"the {what} hides every pixel: nothing is measured; 1 (white) means observed and 0 (black) hidden"
        )
    return values.reshape(*size, 1).astype(np.float32)
