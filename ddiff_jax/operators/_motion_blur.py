"""Motion blur: the kernel is the picture of a random camera trajectory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ddiff_jax.operators._blur import Blur, blur
from ddiff_jax.types import ImageShape, PRNGKey

EPSILON = 0.1  # keeps steps and angles from vanishing at intensity 1 and 0
MAX_SIZE = 105  # above, the original draws the trajectory with a pen of two pixels, whose outline is Pillow's own


def motion_blur(
    shape: ImageShape, key: PRNGKey | int, *, intensity: float = 0.5, size: int = 61, binning: int = 1
) -> Blur:
    """Build a blur along the random trajectory of a shaken camera.

    Args:
        shape: image shape (H, W, C).
        key: an integer seeds the generator as in the published codes; a JAX key makes such a seed.
        intensity: 0 moves along a straight line, 1 shakes most.
        size: side of the kernel in pixels, odd.
        binning: adds up blocks of binning x binning entries of the kernel, so that a smaller image gets the same
            motion: size 61 with binning 2 makes a 31x31 kernel.

    Returns:
        Operator; input and measurement [H, W, C] in [-1, 1].

    Raises:
        ValueError: a parameter is out of range, or the kernel reaches past the mirrored image.
        TypeError: the key is traced; the trajectory is drawn outside of jit and vmap.

    Source: `Blurkernel` in util/img_utils.py of DPS; `forward` in ddiff_sample.py of DDiff uses seed 0, intensity 0.5
    and size 61 for all images at 256x256.
    """
    return blur(shape, kernel=motion_kernel(key, intensity=intensity, size=size, binning=binning))


def motion_kernel(
    key: PRNGKey | int, *, intensity: float = 0.5, size: int = 61, binning: int = 1, num_skipped: int = 0
) -> np.ndarray:
    """Draw a motion blur kernel.

    It comes in steps of 1/255 of an 8-bit picture, normalised, and is the published one to the last bit of it.

    Args:
        key: as in `motion_blur`.
        intensity: in [0, 1].
        size: odd, at most 105.
        binning: as in `motion_blur`.
        num_skipped: how many kernels to draw and drop after seeding. DDiff uses the first kernel after seed 0; DAPS
            (seed 42), DPS and DiffPIR draw one first that they do not use.

    Returns:
        Float32 [size, size], or [ceil(size / binning), ceil(size / binning)]; sums to 1.

    Raises:
        ValueError: a parameter is out of range.
        TypeError: the key is traced.

    Source: `Kernel` in motionblur.py of Borodenko's motionblur, the generator that DPS, DAPS, DiffPIR and DDiff share.
    """
    if not 0 <= intensity <= 1:
        raise ValueError(f"the motion's intensity must lie in [0, 1]; got {intensity}")
    if int(size) != size or size % 2 == 0 or not 3 <= size <= MAX_SIZE:
        raise ValueError(
            f"the size of a motion kernel must be an odd number of pixels from 3 to {MAX_SIZE}; got {size}: "
            "give larger kernels to operators.blur"
        )
    if int(binning) != binning or binning < 1 or -(-size // binning) % 2 == 0:
        raise ValueError(
            f"binning must be a whole number above 0 that makes a kernel with odd sides out of {size}x{size}; "
            f"got {binning}"
        )
    generator = np.random.RandomState(_seed(key))  # the legacy generator: its numbers never change
    for _ in range(num_skipped):
        _trajectory(generator, intensity, size)
    kernel = _photograph(_trajectory(generator, intensity, size), size).astype(np.float32)
    kernel /= kernel.sum()
    padded = np.pad(kernel, (0, -size % binning))
    return padded.reshape(len(padded) // binning, binning, -1, binning).sum((1, 3))


def _seed(key: PRNGKey | int) -> int:
    if isinstance(key, int | np.integer):
        if not 0 <= key < 2**32:
            raise ValueError(f"the seed of a motion kernel must lie in [0, 2^32); got {key}")
        return int(key)
    if isinstance(key, Tracer):
        raise TypeError(
            "motion_blur draws its trajectory on the host: call it outside of jit and vmap, once per key, and stack "
            "the operators with jax.tree.map(lambda *a: jnp.stack(a), *operators)"
        )
    return int(jax.random.bits(key, dtype=jnp.uint32))


def _trajectory(generator: np.random.RandomState, intensity: float, size: int) -> np.ndarray:
    """Draw the vertices, column + i row, on a canvas of twice the size; the order of the draws is the original's."""
    diagonal = ((2 * size) ** 2 + (2 * size) ** 2) ** 0.5
    max_length = 0.75 * diagonal * (generator.uniform() + generator.uniform(0, intensity**2))
    steps, length = [], 0.0
    while length < max_length:
        step = generator.beta(1, 30) * (1 - intensity + EPSILON) * diagonal
        if step < max_length:
            steps.append(step)
            length += step

    max_angle = generator.uniform(0, intensity * np.pi)
    jitter = generator.beta(2, 20)
    angles = [generator.uniform(-max_angle, max_angle)]  # headings, not changes of heading
    while len(angles) < len(steps):
        angle = generator.triangular(0, intensity * max_angle, max_angle + EPSILON)
        turn = -1 if generator.uniform() < jitter else 1
        angles.append(angle * turn * np.sign(angles[-1]))

    path = np.cumsum(np.asarray(steps) * np.exp(1j * np.asarray(angles)))
    path -= path.sum() / len(path)
    path *= np.exp(1j * generator.uniform(0, np.pi))
    return path + (size + 1j * size)


def _photograph(path: np.ndarray, size: int) -> np.ndarray:
    """Draw the trajectory on a canvas of twice the size, soften it, and reduce it to [size, size], all in 8 bits."""
    side = 2 * size
    canvas = np.zeros((side, side), np.int64)
    vertices = [(int(p.real), int(p.imag)) for p in path.tolist()]  # truncates toward zero
    points = [point for start, end in itertools.pairwise(vertices) for point in _segment(start, end)]
    x, y = np.array([*points, vertices[-1]]).T
    inside = (0 <= x) & (x < side) & (0 <= y) & (y < side)
    canvas[y[inside], x[inside]] = 255

    diagonal = (side**2 + side**2) ** 0.5
    canvas = _soften(_soften(canvas.T, int(diagonal * 0.01)).T, int(diagonal * 0.01))
    weights = _halving_weights(side)
    return _reduce(weights, _reduce(weights, canvas.T).T)


def _segment(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """List the pixels (column, row) of a line, the last one left out (Bresenham)."""
    col, row = start
    width, height = abs(end[0] - col), abs(end[1] - row)
    col_step, row_step = (1 if end[0] > col else -1), (1 if end[1] > row else -1)
    steep = width <= height
    long, short = (height, width) if steep else (width, height)
    error, points = 2 * short - long, []
    for _ in range(long):
        points.append((col, row))
        aside = error >= 0
        error += 2 * short - 2 * long * aside
        col += col_step * (not steep or aside)
        row += row_step * (steep or aside)
    return points


def _soften(picture: np.ndarray, radius: int) -> np.ndarray:
    """Blur along the first axis: three passes of a box that has the variance of a Gaussian, each rounded to 8 bits.

    Source: Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering", 2011; the
    rounding is Pillow's.
    """
    if radius == 0:
        return picture
    variance = np.float32(radius * radius / 3)
    whole = int((np.sqrt(12 * np.float64(variance) + 1) - 1) // 2)
    part = np.float32((2 * whole + 1) * (whole * (whole + 1) - 3 * np.float64(variance)))
    part /= np.float32(6) * (variance - np.float32((whole + 1) ** 2))
    weight = int(np.float32(2**24) / (2 * (np.float32(whole) + part) + 1))
    edge_weight = (2**24 - (2 * whole + 1) * weight) // 2
    taps = np.array([edge_weight, *[weight] * (2 * whole + 1), edge_weight])
    for _ in range(3):
        padded = np.pad(picture, ((whole + 1, whole + 1), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(taps), axis=0)
        picture = (windows @ taps + 2**23) >> 24
    return picture


def _halving_weights(side: int) -> np.ndarray:
    """Tabulate Lanczos-3 reduction to half the side, in units of 2^-22."""
    out, source = np.arange(side // 2)[:, None], np.arange(side)[None, :]
    centre = (out + 0.5) * 2
    first = np.maximum(np.trunc(centre - 6 + 0.5), 0)
    last = np.minimum(np.trunc(centre + 6 + 0.5), side) - 1
    u = (source - centre + 0.5) / 2
    weights = np.where((first <= source) & (source <= last), np.sinc(u) * np.sinc(u / 3), 0)
    weights *= 2**22 / weights.sum(axis=1, keepdims=True)
    return (np.sign(weights) * np.floor(np.abs(weights) + 0.5)).astype(np.int64)  # halves round away from zero


def _reduce(weights: np.ndarray, picture: np.ndarray) -> np.ndarray:
    return np.clip((weights @ picture + 2**21) >> 22, 0, 255)
