"""How well a prior denoises at every noise level, beside what needs no network: the mean image and a linear filter.

A prior that loses to either at some level misleads every solver there, and nothing else says so: eps-prediction turns a
small error of the noise at the highest levels into a large one of the image.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from ddiff_jax.levels import Level, Schedule
from ddiff_jax.noise import image_keys, root_key
from ddiff_jax.priors import LinearDenoiser, Prior, predict
from ddiff_jax.schedule import published_time

MOST_REFERENCES = 4000  # the linear filter decomposes a matrix with so many sides
BLOCK = 8  # images denoised at a time


@dataclasses.dataclass(frozen=True)
class LinearFilter:
    """The best affine denoiser for images with a given mean and covariance (Wiener), fitted to examples.

    The covariance is that of probabilistic principal components: the leading half of the examples' directions have
    their own variances, all others share one.

    Source: Tipping and Bishop 1999, "Probabilistic principal component analysis".
    """

    mean: Float[np.ndarray, " D"]
    directions: Float[np.ndarray, "R D"]
    variances: Float[np.ndarray, " R"]
    remainder: float

    @staticmethod
    def most_directions(count: int, size: int) -> int:
        """Tell how many directions are kept of so many examples with so many numbers each."""
        return min(count // 2, size - 1)

    @staticmethod
    def fit(images: Float[np.ndarray, "M ..."]) -> "LinearFilter":
        """Fit it to examples.

        Args:
            images: at least 4, of one shape.

        Raises:
            ValueError: there are fewer.
        """
        count = len(images)
        if count < 4:
            raise ValueError(f"a linear filter needs at least 4 example images, better some hundreds; got {count}")
        flat = np.asarray(images, np.float32).reshape(count, -1)
        mean = flat.mean(axis=0)
        centred = flat - mean
        # The images' own inner products have the same leading directions, and there are fewer images than pixels.
        values, vectors = np.linalg.eigh(centred @ centred.T / (count - 1))
        kept = LinearFilter.most_directions(*flat.shape)
        values, vectors = values[::-1][:kept], vectors[:, ::-1][:, :kept]
        directions = (centred.T @ vectors) / np.sqrt(np.maximum(values * (count - 1), 1e-12))
        total = float(np.sum(centred**2) / (count - 1))
        remainder = max(total - float(values.sum()), 1e-8) / (flat.shape[1] - kept)
        return LinearFilter(mean, directions.T, values, remainder)

    def leading(self, rank: int, shape: tuple[int, ...]) -> LinearDenoiser:
        """Keep the leading directions, as the denoiser of a prior; all others share what variance is left.

        Args:
            rank: how many.
            shape: of an image.

        Raises:
            ValueError: the examples have fewer.
        """
        size = self.mean.size
        if not 1 <= rank <= len(self.variances):
            raise ValueError(
                f"{rank} principal directions take at least {2 * rank} example images and {rank + 1} pixels; got "
                f"{len(self.variances)} directions: give more images, or ask for fewer directions"
            )
        rest = float(self.variances[rank:].sum()) + self.remainder * (size - len(self.variances))
        leaves = self.mean.reshape(shape), self.directions[:rank].reshape(rank, *shape), self.variances[:rank]
        return LinearDenoiser(*(jnp.asarray(leaf, jnp.float32) for leaf in (*leaves, rest / (size - rank))))

    def denoise(self, noisy: Float[np.ndarray, "N ..."], ratio: float) -> Float[np.ndarray, "N ..."]:
        """Denoise images x_0 + ratio n."""
        centred = noisy.reshape(len(noisy), -1) - self.mean
        coefficients = centred @ self.directions.T
        gain, rest = self.variances / (self.variances + ratio**2), self.remainder / (self.remainder + ratio**2)
        clean = self.mean + rest * centred + (coefficients * (gain - rest)) @ self.directions
        return clean.reshape(noisy.shape)


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Root mean squared errors of x_0 without a network, one row per noise level: what a prior has to beat.

    Args:
        ratio: noise to signal, sigma / signal, in units of the image.
        time: the timestep of the published schedule with this ratio.
        linear: error of the linear filter.
        mean: error of the mean image.
    """

    ratio: Float[np.ndarray, " K"]
    time: Float[np.ndarray, " K"]
    linear: Float[np.ndarray, " K"]
    mean: Float[np.ndarray, " K"]


@dataclasses.dataclass(frozen=True)
class Errors:
    """Root mean squared errors of x_0, one row per noise level.

    Args:
        ratio: noise to signal, sigma / signal, in units of the image.
        time: the timestep of the published schedule with this ratio.
        network: error of the prior's denoised image, not clipped; not finite where that is not.
        linear: error of the linear filter.
        mean: error of the mean image.
    """

    ratio: Float[np.ndarray, " K"]
    time: Float[np.ndarray, " K"]
    network: Float[np.ndarray, " K"]
    linear: Float[np.ndarray, " K"]
    mean: Float[np.ndarray, " K"]

    def loses(self, margin: float = 0.0) -> Bool[np.ndarray, " K"]:
        """Tell at which levels the prior is worse than the better one of the two that need no network.

        Args:
            margin: share of that one's error by which it may be. An error that is not finite always is.
        """
        return ~(self.network <= (1 + margin) * np.minimum(self.linear, self.mean))

    @property
    def lost(self) -> Float[np.ndarray, " L"]:
        """The ratios at which the prior is worse than the better one of the two that need no network."""
        return self.ratio[self.loses()]


Reference = Float[np.ndarray, "M ..."] | LinearFilter | Baselines | None


def measure_denoising(
    prior: Prior,
    images: Float[np.ndarray, "N ..."],
    reference: Reference = None,
    *,
    num_levels: int = 12,
    seed: int = 0,
) -> Errors:
    """Measure how well a prior denoises images that it was not trained on.

    Args:
        prior: any.
        images: clean images, at least 8 without a reference.
        reference: example images for the mean and the linear filter, such as those the prior was trained on; the first
            4000 count. None takes one half of `images` for the other, and the other way round. Whoever measures often
            gives the filter, fitted once, or what `measure_baselines` found for the same images, levels and seed.
        num_levels: levels, spread over the prior's schedule as solvers walk it.
        seed: draws the noise; every image has its own at every level.

    Raises:
        ValueError: the images do not have the prior's shape, there are too few, or the baselines are of other levels.
    """
    examples = {} if reference is None or isinstance(reference, Baselines) else {"reference images": reference}
    for what, given in {"images": images, **examples}.items():
        shape = _shape(given, images)
        if shape != tuple(prior.image_shape):
            raise ValueError(f"the {what} must have the prior's shape {tuple(prior.image_shape)}; got {shape}")
    levels = prior.schedule.levels(num_levels)[:-1]
    if isinstance(reference, Baselines):
        if not np.array_equal(reference.ratio, np.asarray(levels.ratio)):
            raise ValueError(
                "the baselines must be of the prior's schedule with as many levels; measure them with "
                f"measure_baselines(prior.schedule, images, ..., num_levels={num_levels})"
            )
        known = reference
    else:
        known = measure_baselines(prior.schedule, images, reference, num_levels=num_levels, seed=seed)
    keys = image_keys(root_key(seed), jnp.arange(len(images)))
    squares = [_square(_denoised(prior, images, levels[k], _draw(keys, k, images)), images) for k in range(num_levels)]
    return Errors(known.ratio, known.time, np.sqrt(np.array(squares, np.float64)), known.linear, known.mean)


def measure_baselines(
    schedule: Schedule,
    images: Float[np.ndarray, "N ..."],
    reference: Float[np.ndarray, "M ..."] | LinearFilter | None = None,
    *,
    num_levels: int = 12,
    seed: int = 0,
) -> Baselines:
    """Measure what needs no network on the levels and the noise of `measure_denoising`, whose arguments these are.

    Args:
        schedule: of the prior.
        images: clean images.
        reference: example images, the filter fitted to them, or None.
        num_levels: levels, spread over the schedule.
        seed: draws the noise.

    Raises:
        ValueError: there are too few images.
    """
    halves = np.arange(len(images)) % 2
    if reference is None:
        filters = [LinearFilter.fit(images[halves != half]) for half in (0, 1)]
    elif isinstance(reference, LinearFilter):
        filters = [reference] * 2
    else:
        filters = [LinearFilter.fit(reference[:MOST_REFERENCES])] * 2
    levels = schedule.levels(num_levels)[:-1]
    ratio = np.asarray(levels.ratio)
    keys = image_keys(root_key(seed), jnp.arange(len(images)))
    rows = [
        _without_network(images, float(ratio[k]), _draw(keys, k, images), filters, halves) for k in range(num_levels)
    ]
    return Baselines(ratio, published_time(levels), *np.sqrt(np.array(rows, np.float64).T))


def _shape(given: np.ndarray | LinearFilter, images: np.ndarray) -> tuple[int, ...]:
    """Find the shape of one image; a filter knows its number of pixels alone."""
    if not isinstance(given, LinearFilter):
        return given.shape[1:]
    return images.shape[1:] if given.mean.size == math.prod(images.shape[1:]) else given.mean.shape


@jax.jit
def _noise(keys: Any, k: Any, like: Any) -> Any:
    return jax.vmap(lambda key, x: jax.random.normal(jax.random.fold_in(key, k), x.shape))(keys, like)


def _draw(keys: Any, k: int, images: np.ndarray) -> np.ndarray:
    return np.asarray(_noise(keys, k, images))


@jax.jit
def _denoise(prior: Prior, level: Level, x: Any, n: Any) -> Any:
    return jax.vmap(lambda x, n: predict(prior, level.signal * x + level.sigma * n, level)[0])(x, n)


def _denoised(prior: Prior, images: np.ndarray, level: Level, n: np.ndarray) -> np.ndarray:
    level32 = jax.tree.map(jnp.float32, level)
    filled = np.arange(-(-len(images) // BLOCK) * BLOCK) % len(images)  # whole blocks, so that one program serves all
    padded = [batch[filled] for batch in (images, n)]
    blocks = [_denoise(prior, level32, *(p[i : i + BLOCK] for p in padded)) for i in range(0, len(padded[0]), BLOCK)]
    return np.concatenate([np.asarray(block) for block in blocks])[: len(images)]


def _without_network(
    images: np.ndarray, ratio: float, n: np.ndarray, filters: list[LinearFilter], halves: np.ndarray
) -> tuple[float, float]:
    linear, mean = np.empty_like(images), np.empty_like(images)
    for half, linear_filter in enumerate(filters):
        mine = halves == half
        linear[mine] = linear_filter.denoise(images[mine] + ratio * n[mine], ratio)
        mean[mine] = linear_filter.mean.reshape(images.shape[1:])
    return _square(linear, images), _square(mean, images)


def _square(x: np.ndarray, images: np.ndarray) -> float:
    return float(np.mean((np.asarray(x, np.float64) - images) ** 2))
