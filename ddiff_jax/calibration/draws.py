"""What the known posteriors share: random numbers of the host, and images as vectors."""

from typing import Any

import jax
import numpy as np

from ddiff_jax.types import ImageShape, PRNGKey


def generator(key: PRNGKey) -> np.random.Generator:
    """Seed float64 draws of the host by a key: the same key, the same draws."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def images(vectors: np.ndarray, image_shape: ImageShape) -> np.ndarray:
    """Give the last axis of an array the shape of an image."""
    return vectors.reshape(*vectors.shape[:-1], *image_shape)


def flat(x: Any, axes: int) -> np.ndarray:
    """Make vectors in float64 of all but the first axes."""
    x = np.asarray(x, np.float64)
    return x.reshape(*x.shape[:axes], -1)
