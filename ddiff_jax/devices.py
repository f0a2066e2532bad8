"""Where numbers lie: meshes of devices for `solve`, and what `shard_map` asks of `solve_one`."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddiff_jax.types import Tree


def alike(tree: Tree, others: Any) -> Tree:
    """Let every number vary over the same axes of a `shard_map`: those over which anything in tree or others varies.

    JAX checks that what a loop carries leaves as it came, and solves no linear system whose parts differ in this.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree

    def data(leaf: Any) -> Array:
        return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)

    def one(leaf: Any) -> Array:
        moved = data(leaf) + nothing.astype(data(leaf).dtype)
        return jax.random.wrap_key_data(moved, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else moved

    zeros = [jnp.zeros_like(data(leaf), shape=(), dtype=jnp.float32) for leaf in jax.tree.leaves((tree, others))]
    nothing = -functools.reduce(jnp.add, zeros)  # -0.0, which changes no number
    return jax.tree.map(one, tree)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", jnp.float32), jax.dtypes.prng_key)


def settle(carry: Any, run: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """Put the first carry where a chunk will leave the next one, so that one program serves all chunks.

    Where something is bound to a device, such as weights that were loaded there, so is what a program makes of it;
    but the first carry need not have touched it.
    """
    if mesh is not None:
        return jax.device_put(carry, split(mesh))
    bound = [leaf.sharding for leaf in jax.tree.leaves(run) if getattr(leaf, "committed", False)]
    if bound and isinstance(bound[0], jax.sharding.SingleDeviceSharding):
        return jax.device_put(carry, bound[0])
    return carry


def automatic(mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """Leave it to XLA where intermediate results live: operators and networks know nothing of explicit axes."""
    types = (jax.sharding.AxisType.Auto,) * len(mesh.axis_names)
    return jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=types)


def compute(mesh: jax.sharding.Mesh | None, program: Callable[..., Any], *args: Any) -> Any:
    """Run a program on the mesh, whatever mesh our caller may have set."""
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return program(*args)


class OutOfMemory(ValueError):
    """So many images do not fit into a device's memory."""


@contextlib.contextmanager
def out_of_memory(num_images: int) -> Iterator[None]:
    """Turn a device's want of memory into advice.

    Args:
        num_images: how many images are computed at once.

    Raises:
        OutOfMemory: there is too little memory for them.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(f"out of memory with {num_images} images at once; lower --batch-size") from error


def split(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Share the leading axis out over the first axis of the mesh."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names[0]))
