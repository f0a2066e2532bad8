"""Shapes and meanings of the arrays that travel through the package. Shapes are per image."""

from typing import Any, TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Complex, Float, Key

ImageShape: TypeAlias = tuple[int, ...]
"""Shape of one image, channels last: (H, W, C) for a picture, (L, C) for a signal, (D, H, W, C) for a volume."""

Column: TypeAlias = Any
"""K numbers, one per step: float64 NumPy as schedules make them, JAX arrays in a run. A row of it is a scalar."""

Image: TypeAlias = Float[Array, "..."]
"""One image of such a shape, range [-1, 1]. Complex images have their two parts as channels."""

Measurement: TypeAlias = Float[Array, "..."] | Complex[Array, "..."]
"""What an operator makes of one image; any shape, real or complex."""

PRNGKey: TypeAlias = Key[Array, ""]
"""A typed JAX key, `jax.random.key(seed)`."""

Params: TypeAlias = Any
"""Weights of a network: a nested dict of arrays, or another pytree of them."""

Scalar: TypeAlias = float | int | np.number | Float[Array, ""]
"""A number that people write as a float and that may also be a traced or stacked array."""
