"""Shapes and meanings of the arrays that travel through the package. Shapes are per image."""

from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
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

Measurements: TypeAlias = Float[Array, "N ..."] | Complex[Array, "N ..."]
"""One measurement per image of a batch."""

PRNGKey: TypeAlias = Key[Array, ""]
"""A typed JAX key, `jax.random.key(seed)`."""

Params: TypeAlias = Any
"""Weights of a network: a nested dict of arrays, or another pytree of them."""

Scalar: TypeAlias = float | int | np.number | Float[Array, ""]
"""A number that people write as a float and that may also be a traced or stacked array."""

Tree = TypeVar("Tree")


def float_type(y: Any) -> Any:
    """Name the type that a run computes in: float64 for a measurement in float64 or complex128, else float32.

    Types follow one rule. Whatever is built from numbers of the host (tables of operators and schedules,
    hyper-parameters, noise levels) has JAX's default type: float32, or float64 under `jax_enable_x64`, where no digit
    is lost. The measurement decides what a run computes in: `solve` and `solve_one` bring the operator, the solver and
    its grid, sigma_y, starts and draws to that type (the draws are the same numbers in both), and the state has it.
    Called on their own, operators and priors compute in the type of the image that they are given. A prior's network
    alone keeps the type of its weights: its input is cast to that, its output back.
    """
    return jnp.dtype(jnp.float64 if jnp.asarray(y).dtype in (jnp.float64, jnp.complex128) else jnp.float32)


def to_type(tree: Tree, dtype: Any) -> Tree:
    """Bring the arrays of a tree to float32 or float64, complex ones to the same width; other types stay.

    Args:
        tree: any pytree.
        dtype: the type of the real ones.
    """
    real, pair = ("float64", "complex128") if jnp.dtype(dtype) == jnp.float64 else ("float32", "complex64")
    wanted = {"float32": real, "float64": real, "complex64": pair, "complex128": pair}

    def one(leaf: Any) -> Any:
        name = str(getattr(leaf, "dtype", ""))
        return leaf.astype(wanted[name]) if wanted.get(name, name) != name else leaf

    return jax.tree.map(one, tree)
