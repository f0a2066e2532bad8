"""Shapes and meanings of the arrays that travel through the package. Shapes are per image."""

from typing import Any, TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Complex, Float, Int, Key

Image: TypeAlias = Float[Array, "H W C"]
"""One image, channels last, range [-1, 1]."""

Measurement: TypeAlias = Float[Array, "..."] | Complex[Array, "..."]
"""What an operator makes of one image; any shape, real or complex."""

Measurements: TypeAlias = Float[Array, "N ..."] | Complex[Array, "N ..."]
"""One measurement per image of a batch."""

Timestep: TypeAlias = Int[Array, ""] | Float[Array, ""]
"""Index into the noise schedule; 0 is the least noisy. Fractions only where a solver needs them."""

PRNGKey: TypeAlias = Key[Array, ""]
"""A typed JAX key, `jax.random.key(seed)`."""

Params: TypeAlias = dict[str, Any]
"""Weights of a network: a nested dict of arrays."""

Scalar: TypeAlias = float | int | np.number | Float[Array, ""]
"""A number that people write as a float and that may also be a traced or stacked array."""
