"""Magnetic resonance imaging with several receiver coils: Cartesian sampling of a complex image."""

import copy
import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Complex, Float
from numpy.typing import ArrayLike

from ddiff_jax.operators._coils import birdcage_maps, check_maps, from_channels, normalised, to_channels
from ddiff_jax.operators._mri_sampling import Pattern, column_mask
from ddiff_jax.operators._separable_dft import phases
from ddiff_jax.operators.base import DecomposableOperator, Decomposition, LinearOperator, check_mask, check_shape
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement, PRNGKey, Scalar

BLOCK = 8  # rows that a core decomposes at a time; only so many are held in float64


@pytree_dataclass
class MRI(LinearOperator):
    """y_c = mask * F(s_c x) for the coils c, complex.

    The complex image x has its real and its imaginary part as channels. F is orthonormal, with the centre of image and
    spectrum at [H//2, W//2]. With maps whose squares add up to 1 at every pixel, no singular value is above 1. Least
    squares are solved by conjugate gradients.

    Args:
        maps: s_c, how coil c sees every pixel.
        mask: 1 where a frequency is sampled, 0 where it is not.
        image_shape: (H, W, 2).
    """

    maps: Complex[Array, "N H W"]
    mask: Float[Array, "#N #H W"]
    image_shape: ImageShape = static_field()

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, 2] to [N, H, W], complex; frequencies that are not sampled measure 0."""
        z = from_channels(x)
        return self.mask.astype(z.dtype) * centred_fft(self.maps.astype(z.dtype) * z[None])

    def observed(self) -> Bool[Array, "#N #H W"]:
        """Tell which frequencies are sampled."""
        return self.mask > 0


@pytree_dataclass
class ColumnMRI(MRI, DecomposableOperator):
    """The same where whole columns are sampled, which has a singular value decomposition.

    The Fourier transform along the columns is unitary, and the mask does not see it. So the rows of the image do not
    meet: A^H A is one Hermitian matrix of W x W numbers for each, G_r = sum_c conj(s_c[r]) T s_c[r], where T is the
    mask between two Fourier transforms along the row. Their eigenvectors are the singular vectors of A, for any
    number of coils, and the roots of their eigenvalues its singular values.

    They are computed in float64 on the host, in float32 the null space would have singular values of 3e-4 instead of
    0. That takes 8 H W^2 bytes and a while (see `multicoil_mri`), so it is done when it is asked for:
    `prepared` returns the operator with its decomposition, and `solve` and `solve_one` call it for solvers that solve
    least squares. Without it `prox` goes by conjugate gradients, and `svd` decomposes anew in every call.

    Derivatives of `prox` with respect to maps and mask are exact. The decomposition is a constant to all of them: do
    not differentiate through `svd` by these.

    Args:
        maps: s_c, how coil c sees every pixel.
        mask: 1 where a column is sampled, 0 where it is not; other weights of at least 0 are those of `weighted`, of
            coil and column.
        image_shape: (H, W, 2).
        factors: singular vectors and values from `prepared`.
    """

    mask: Float[Array, "#N 1 W"]
    factors: "RowFactors | None" = None

    def weighted(self, root: Float[Array, "..."]) -> "ColumnMRI | None":
        """Scale every entry of the measurement, by weights of coil and column."""
        values = root if isinstance(root, Tracer) else np.asarray(root)
        shape = _three(values.shape)
        row = values.reshape(shape)[:, :1]
        if shape[1] > 1 and (isinstance(values, Tracer) or not np.array_equal(np.broadcast_to(row, shape), values)):
            return None
        row = jnp.asarray(row)
        return dataclasses.replace(self, mask=self.mask.astype(row.dtype) * row, factors=None)

    def prepared(self) -> "ColumnMRI":
        """Decompose on the host, once and for all: the same operator with its factors.

        Of a stack of operators all are decomposed. Inside of a transformation that traces maps or mask, where their
        values are not known, the operator is returned as it is.
        """
        if self.factors is not None or isinstance(self.maps, Tracer) or isinstance(self.mask, Tracer):
            return self
        ready = copy.copy(self)  # of a stack as well, whose arrays have an axis more than those of one operator
        object.__setattr__(ready, "factors", _decomposed(np.asarray(self.maps), np.asarray(self.mask)))
        return ready

    def svd(self) -> Decomposition:
        """Decompose: the coefficients of a row are complex, in two real numbers each.

        Raises:
            ValueError: maps or mask are traced, and the operator was not prepared.
        """
        factors = self.prepared().factors
        if factors is None:
            raise ValueError(
                "a decomposition of ColumnMRI is computed on the host, from known numbers; here it is an argument of "
                "jit, vmap or grad: hand over operator.prepared() instead of the operator"
            )
        parts = Decomposition(factors.values[..., None], factors.from_image, factors.to_image, self.adjoint)
        inverse = parts.inverse()

        def from_measurement(y: Measurement) -> Array:
            c = factors.from_image(self.adjoint(y))  # U^T y = V^T A^T y / s
            return inverse.astype(c.dtype) * c

        return dataclasses.replace(parts, from_measurement=from_measurement)

    def prox(self, z: Image, y: Measurement, rho: Scalar) -> Image:
        """Minimise ||A x - y||^2 + rho ||x - z||^2 over x, for rho > 0: exactly, once the operator is `prepared`."""
        factors = self.factors
        if factors is None:
            return LinearOperator.prox(self, z, y, rho)

        def normal(x: Image) -> Image:
            return self.adjoint(self.forward(x)) + jnp.asarray(rho, x.dtype) * x

        def solve(_: object, b: Image) -> Image:
            s = factors.values[..., None].astype(b.dtype)
            return factors.to_image(factors.from_image(b) / (s**2 + jnp.asarray(rho, b.dtype)))

        # Its derivatives are those of the minimiser: the decomposition need not have any.
        return z + jax.lax.custom_linear_solve(normal, self.adjoint(y - self.forward(z)), solve, symmetric=True)


@pytree_dataclass
class RowFactors:
    """Singular values and vectors of every row of an image.

    Args:
        vectors: columns of a unitary matrix per row.
        values: their singular values, at least 0.
    """

    vectors: Complex[Array, "H W W"]
    values: Float[Array, "H W"]

    def from_image(self, x: Image) -> Float[Array, "H W 2"]:
        """Compute V^H x."""
        z = from_channels(x)
        return to_channels(_product("hwk,hw->hk", jnp.conj(self.vectors).astype(z.dtype), z))

    def to_image(self, c: Float[Array, "H W 2"]) -> Image:
        """Compute V c."""
        z = from_channels(c)
        return to_channels(_product("hwk,hk->hw", self.vectors.astype(z.dtype), z))


def _three(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (3 - len(shape)) + shape


def _product(axes: str, vectors: Array, z: Array) -> Array:
    return jnp.einsum(axes, vectors, z, precision=jax.lax.Precision.HIGHEST)


def _decomposed(maps: np.ndarray, mask: np.ndarray) -> RowFactors:
    """Decompose the rows of one operator, [N, H, W] and [N or 1, 1, W], or of a stack of them."""
    if maps.ndim > 3:
        stack = list(zip(maps, mask, strict=True))
        names = [(one.tobytes(), weights.tobytes()) for one, weights in stack]
        found = {name: _decomposed(*one) for name, one in dict(zip(names, stack, strict=True)).items()}  # equals once
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(found[name] for name in names))
    num_coils, height, width = maps.shape
    at = np.arange(width) - width // 2
    transform = phases(at / width, at) / np.sqrt(width)
    maps, power = maps.astype(np.complex128), mask[:, 0].astype(np.float64) ** 2
    filters = [transform.conj().T @ (weights[:, None] * transform) for weights in power]  # T, one for all coils or each
    groups = np.split(maps, num_coils) if len(filters) > 1 else [maps]
    vectors = np.empty((height, width, width), np.complex128 if jax.config.read("jax_enable_x64") else np.complex64)
    values = np.empty((height, width))

    def decompose(first: int) -> None:
        rows = slice(first, first + BLOCK)
        squares = sum(
            mixing * np.einsum("nrw,nrv->rwv", group[:, rows].conj(), group[:, rows])
            for mixing, group in zip(filters, groups, strict=True)
        )
        values[rows], vectors[rows] = np.linalg.eigh(squares)

    from threadpoolctl import threadpool_limits  # takes as long to import as to use

    # Matrices of this size keep one core busy: the threads of BLAS wait for each other, for ten times as long.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decompose, range(0, height, BLOCK)))
    return RowFactors(jnp.asarray(vectors), jnp.asarray(np.sqrt(np.maximum(values, 0)), float))


def centred_fft(z: Complex[Array, "*N H W"], *, inverse: bool = False) -> Complex[Array, "*N H W"]:
    """Apply the orthonormal Fourier transform over the last two axes, with both centres at [H//2, W//2]."""
    axes, transform = (-2, -1), jnp.fft.ifft2 if inverse else jnp.fft.fft2
    return jnp.fft.fftshift(transform(jnp.fft.ifftshift(z, axes), axes=axes, norm="ortho"), axes)


def root_sum_of_squares(operator: MRI, y: Measurement) -> Float[Array, "H W"]:
    """Combine the images of the single coils without their maps: sqrt(sum_c |F^-1 y_c|^2), zeros where not sampled.

    Args:
        operator: of the scan.
        y: its k-space, [coils, H, W].
    """
    images = centred_fft(jnp.where(operator.observed(), y, jnp.zeros((), y.dtype)), inverse=True)
    return jnp.sqrt(jnp.sum(jnp.abs(images) ** 2, 0))


def mri(
    shape: ImageShape, *, mask: ArrayLike, maps: ArrayLike | None = None, normalise: bool = False
) -> MRI | ColumnMRI:
    """Build Cartesian magnetic resonance imaging with given coil maps, on a given sampling pattern.

    Args:
        shape: (H, W, 2): the real and the imaginary part of a complex image are its channels.
        mask: [W], [H, W] or [H, W, 1], boolean or numbers 0 and 1; true or 1 where a frequency is sampled. Zero
            frequency is in the middle, at [H//2, W//2].
        maps: [N, H, W], complex, in any unit; 0 outside of the body is allowed. None is one coil that sees all alike.
            Their phase is part of the image's: maps s exp(i p) see x exp(-i p) as s see x.
        normalise: divide the maps by the root of their sum of squares, where it is not 0. Then no singular value is
            above 1, and the image has the unit of the coils' images. Not for maps from `prewhiten`.

    Returns:
        Operator; input [H, W, 2], complex measurement [N, H, W]. Noise of standard deviation sigma_y goes on the real
        and on the imaginary part; papers that state that of a complex number mean sqrt(2) sigma_y. Where whole columns
        are sampled it is a `ColumnMRI`, with a singular value decomposition; patterns of whole rows become such when
        image, maps and measurement are transposed.

    Raises:
        ValueError: the image has not two channels, the maps are not complex, not finite, all 0 or of another shape,
            or the mask has another shape, other values than 0 and 1, or is all 0.

    Source: Pruessmann et al. 1999, "SENSE: sensitivity encoding for fast MRI"; conventions of fastMRI (Zbontar et al.
    2018), `fft2c`.
    Differs: InverseBench shifts before and after the transform the other way round, which for odd sizes is another one.
    """
    height, width, channels = shape = check_shape(shape)
    if channels != 2:
        raise ValueError(
            f"MRI measures complex images: the image shape must be (H, W, 2), real and imaginary part; got {shape}"
        )
    coils = np.ones((1, height, width), np.complex64) if maps is None else check_maps(maps, shape)
    coils = normalised(coils) if normalise else coils
    pattern = np.asarray(mask)
    if pattern.shape == (width,):
        pattern = np.broadcast_to(pattern, (height, width))
    sampled = check_mask(pattern, shape, "sampling mask")[None, ..., 0]
    is_columns = (sampled == sampled[:, :1]).all()
    made, sampled = (ColumnMRI, sampled[:, :1]) if is_columns else (MRI, sampled)
    return made(jnp.asarray(coils), jnp.asarray(sampled), shape)


def multicoil_mri(
    shape: ImageShape,
    key: PRNGKey,
    *,
    num_coils: int = 4,
    acceleration: float = 4.0,
    centre_fraction: float = 0.08,
    pattern: Pattern = "random",
) -> ColumnMRI:
    """Build magnetic resonance imaging with a ring of coils on chosen columns: phase encoding along the width.

    Its decomposition, for solvers that ask for one, takes a second of a processor core at 128x128 and 8 coils, and
    seven seconds at 256x256; all cores share the work.

    Args:
        shape: (H, W, 2): the real and the imaginary part of a complex image are its channels.
        key: draws the columns; the same key gives the same columns on every device.
        num_coils: coils of a birdcage, see `birdcage_maps`.
        acceleration: about W / acceleration of the W columns are sampled, see `column_mask`.
        centre_fraction: round(W * centre_fraction) of them are the lowest frequencies.
        pattern: how the others are chosen: random, equispaced or equispaced_fraction, see `column_mask`.

    Returns:
        Operator as from `mri`; no singular value is above 1.

    Raises:
        ValueError: the image has not two channels, num_coils is no whole number above 0, or the columns cannot be
            chosen so, see `column_mask`.
    """
    whole = mri(shape, mask=np.ones(shape[1]), maps=birdcage_maps(shape, num_coils))
    columns = column_mask(shape[1], key, acceleration=acceleration, centre_fraction=centre_fraction, pattern=pattern)
    return ColumnMRI(whole.maps, columns[None, None], whole.image_shape)
