"""The operators of the benchmark as matrices, and the operator that any matrix makes."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ddiff_jax.operators.base import DecomposableOperator, Decomposition
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement

Matrix = Float[np.ndarray, "m d"]

GOLDEN_RATIO = 0.6180339887498949  # its multiples are spread evenly without a pattern
SAMPLED_SIGNAL = (
    "0 3 6 8 9 12 13 17 18 19 21 25 27 29 31 32 33 35 38 39 42 43 44 47 48 50 53 55 57 58 60 62 63"  # of 64
)
FREQUENCIES = "0 1 2 3 4 6 8 9 12 13 17 18 19 21 25 27 29 31 32"  # of 64


@pytree_dataclass
class MatrixOperator(DecomposableOperator):
    """y = A x for a matrix A, filled up with rows of zeros to as many as an image has pixels.

    Those rows count as not observed. So all operators on images of one shape have arrays of one shape, and a program
    compiled for one of them serves all.

    Args:
        matrix: A, [d, d].
        u: [d, d], orthogonal, with A = u diag(s) vt.
        s: [d], at least 0.
        vt: [d, d], orthogonal.
        rows: [d], which rows were measured.
        image_shape: d pixels, channels last.
    """

    matrix: Float[Array, "d d"]
    u: Float[Array, "d d"]
    s: Float[Array, " d"]
    vt: Float[Array, "d d"]
    rows: Bool[Array, " d"]
    image_shape: ImageShape = static_field()

    def forward(self, x: Image) -> Measurement:
        """Multiply by A."""
        return _times(self.matrix, x.ravel())

    def adjoint(self, y: Measurement) -> Image:
        """Multiply by A^T."""
        return _times(self.matrix.T, y).reshape(self.image_shape)

    def observed(self) -> Bool[Array, " d"]:
        """Tell which rows were measured."""
        return self.rows

    def svd(self) -> Decomposition:
        """Hand out the factors."""
        return Decomposition(
            self.s,
            lambda x: _times(self.vt, x.ravel()),
            lambda c: _times(self.vt.T, c).reshape(self.image_shape),
            lambda y: _times(self.u.T, y),
        )


def _times(matrix: Float[Array, "m d"], x: Float[Array, " d"]) -> Float[Array, " m"]:
    return jnp.matmul(matrix.astype(x.dtype), x, precision="highest")


def matrix_operator(matrix: Matrix, image_shape: ImageShape) -> MatrixOperator:
    """Build the operator of a matrix.

    Args:
        matrix: A, with at most as many rows as columns.
        image_shape: shape of the images, whose pixels are its columns in row-major order.

    Raises:
        ValueError: the matrix does not fit the images, or has more rows than columns.
    """
    matrix = np.asarray(matrix, np.float64)
    size = int(np.prod(image_shape))
    if matrix.ndim != 2 or matrix.shape[1] != size or matrix.shape[0] > size:
        raise ValueError(
            f"a matrix for images of shape {tuple(image_shape)} has {size} columns and at most as many rows; got shape "
            f"{matrix.shape}"
        )
    padded = np.zeros((size, size))
    padded[: len(matrix)] = matrix
    u, s, vt = np.linalg.svd(padded)
    arrays = (jnp.asarray(a, jnp.result_type(float)) for a in (padded, u, s, vt))
    return MatrixOperator(*arrays, jnp.arange(size) < len(matrix), tuple(image_shape))


def circulant(taps: Float[np.ndarray, " taps"], size: int) -> Matrix:
    """Build the matrix of a circular convolution with an odd number of taps, whose sum is made 1."""
    matrix, reach = np.zeros((size, size)), len(taps) // 2
    for offset, tap in zip(range(-reach, reach + 1), taps / taps.sum(), strict=True):
        matrix[np.arange(size), (np.arange(size) + offset) % size] += tap
    return matrix


def _bell(reach: int, width: float) -> np.ndarray:
    return np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / width)


def _spread(n: int) -> np.ndarray:
    return np.argsort((np.arange(1, n**2 + 1) * GOLDEN_RATIO) % 1)


def _quadrants(n: int) -> Matrix:
    quadrant = (np.arange(n) >= n // 2)[:, None] * 2 + (np.arange(n) >= n // 2)
    return np.stack([(quadrant.ravel() == k) / (n // 2) ** 2 for k in range(4)])


def picture_matrix(name: str, n: int) -> Matrix:
    """Build one of the benchmark's operators on pictures of n x n pixels.

    Args:
        name: "identity"; "blur", with 7 x 7 taps around the edges; "sample", half of the pixels; "sample8", eight of
            them; "quadrants", the mean over each quarter.
        n: side; even.

    Raises:
        ValueError: the name is another, or n is odd.
    """
    if n % 2:
        raise ValueError(f"the side of a picture must be even; got {n}")
    makers = {
        "identity": lambda: np.eye(n**2),
        "blur": lambda: np.kron(*2 * [circulant(_bell(3, 2.0), n)]),
        "sample": lambda: np.eye(n**2)[np.sort(_spread(n)[: n**2 // 2])],
        "sample8": lambda: np.eye(n**2)[_spread(n)[:8]],
        "quadrants": lambda: _quadrants(n),
    }
    return _made(makers, name, "pictures")


def signal_matrix(name: str) -> Matrix:
    """Build one of the benchmark's operators on signals of 64 entries.

    Args:
        name: "identity"; "convolution", with 13 taps around the ends; "sample", 33 of the entries; "fourier", real
            parts and then imaginary parts of 19 frequencies, as orthonormal rows.

    Raises:
        ValueError: the name is another.
    """
    size = 64

    def fourier() -> Matrix:
        angle = 2 * np.pi / size * np.arange(size)
        frequencies = np.array([int(frequency) for frequency in FREQUENCIES.split()])
        is_real = np.isin(frequencies, (0, size // 2))
        waves = np.exp(-1j * np.outer(frequencies, angle)) * np.sqrt(np.where(is_real, 1, 2) / size)[:, None]
        return np.concatenate([waves.real, waves.imag[~is_real]])

    makers = {
        "identity": lambda: np.eye(size),
        "convolution": lambda: circulant(_bell(6, 8.0), size),
        "sample": lambda: np.eye(size)[[int(index) for index in SAMPLED_SIGNAL.split()]],
        "fourier": fourier,
    }
    return _made(makers, name, "signals")


def _made(makers: dict, name: str, what: str) -> Matrix:
    if name not in makers:
        raise ValueError(f"the operators on {what} are {', '.join(makers)}; got {name!r}")
    return makers[name]()


def dct_basis(n: int) -> Float[np.ndarray, "n n"]:
    """Build the orthonormal cosines of an interval of n points, as columns of rising frequency."""
    k = np.arange(n)
    basis = np.sqrt(2 / n) * np.cos(np.pi / n * np.outer(k + 0.5, k))
    basis[:, 0] /= np.sqrt(2)
    return basis


def haar_basis(size: int) -> Float[np.ndarray, "d d"]:
    """Build Haar's orthonormal steps on `size` points, a power of two, as columns from coarse to fine."""
    rows = np.ones((1, 1))
    while len(rows) < size:
        rows = np.vstack([np.kron(rows, [1, 1]), np.kron(np.eye(len(rows)), [1, -1])]) / np.sqrt(2)
    return rows.T
