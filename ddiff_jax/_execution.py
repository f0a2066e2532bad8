"""How a run is executed: the programs that make its steps, what suits a CPU, and where numbers lie."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddiff_jax.types import ImageShape, Tree

# XLA's default on CPUs hands convolutions to a library that leaves cores idle at small batches. Its older path shares
# them out: 33 instead of 67 ms per evaluation of the packaged network on two cores (benchmarks/README.md).
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_prefer_vector_width": "512",
}


# Pixels that a step takes at a time on a CPU: with more, the network's activations leave the cache. Blocks of four
# 64x64 images take 15% less time than sixteen at once (benchmarks/README.md).
CPU_BLOCK = 4 * 64 * 64


def block_size(num_images: int, shape: ImageShape) -> int | None:
    """Choose how many images a step takes at a time; a divisor, so that one program serves all blocks."""
    if jax.default_backend() != "cpu":
        return None
    return divisor(num_images, CPU_BLOCK // math.prod(shape[:-1]))


def divisor(num_images: int, most: int) -> int:
    """Find the largest number of images, at most `most` and at least 1, that blocks of a batch can have."""
    return max(n for n in range(1, max(1, most) + 1) if num_images % n == 0)


# Pixels of windows that a step denoises at a time on accelerators, which want more at once than CPUs.
ACCELERATOR_BLOCK = 64 * 64 * 64


def windows_at_a_time(window: ImageShape) -> int:
    """Choose how many windows of an image are denoised at a time."""
    most = CPU_BLOCK if jax.default_backend() == "cpu" else ACCELERATOR_BLOCK
    return max(1, most // math.prod(window[:-1]))


def rows(grid: Any, k: Any) -> Any:
    """Read row k of a table of steps."""
    return jax.tree.map(lambda column: column[k], grid)


@functools.cache
def compiler_options(backend: str) -> Any:
    """Choose the options that suit a backend, or none where this version of XLA does not know them."""
    options = CPU_OPTIONS if backend == "cpu" else {}
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


@functools.cache
def chunk_program(backend: str, looped: bool) -> Any:
    """Compile chunks with the options that suit the backend.

    Without `looped` the host makes the steps one by one; a chunk of none then costs one step, whose result is dropped.
    """
    options = compiler_options(backend)
    if looped:
        return jax.jit(_run_chunk, donate_argnames=("carry",), compiler_options=options)
    step = jax.jit(_run_step, compiler_options=options)

    def from_the_host(carry: Any, start: int, stop: int, grid: Any, run: Any) -> Any:
        if start == stop:
            jax.block_until_ready(step(start, carry, grid, run))  # only to compile
        for k in range(start, stop):
            carry = step(k, carry, grid, run)
        return carry

    return from_the_host


def _run_step(k: Any, carry: Any, grid: Any, run: Any) -> Any:
    state, tables = carry
    state, row = run.step(state, k, rows(grid, k))
    return state, jax.tree.map(lambda table, value: table.at[:, k].set(value), tables, row)


def _run_chunk(carry: Any, start: Any, stop: Any, grid: Any, run: Any) -> Any:
    """Make steps start to stop - 1. The bounds are data, so one program serves chunks of any length."""
    return jax.lax.fori_loop(start, stop, lambda k, carry: _run_step(k, carry, grid, run), carry)


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


def split(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Share the leading axis out over the first axis of the mesh."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names[0]))


def spread(run: Any, x_init: Any, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """Put the arrays with an axis of images on the mesh's first axis, and a copy of all others on every device.

    Raises:
        ValueError: the images cannot be shared out evenly.
    """
    axis, num_images = mesh.axis_names[0], run.keys.shape[0]
    if num_images % mesh.shape[axis]:
        raise ValueError(
            f"{num_images} images cannot be spread evenly over {mesh.shape[axis]} devices; pad the batch to a "
            "multiple and drop the padding afterwards"
        )
    own, copied = split(mesh), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    put = jax.device_put
    return dataclasses.replace(
        run,
        solver=put(run.solver, copied),
        prior=put(run.prior, copied),
        problem=jax.tree.map(lambda leaf, is_own: put(leaf, own if is_own else copied), run.problem, run.problem.own()),
        keys=put(run.keys, own),
        tape=None if run.tape is None else put(run.tape, own),
    ), None if x_init is None else put(x_init, own)


def explicit_mesh(y: Any) -> jax.sharding.Mesh | None:
    """Find the mesh with explicit axes that an array lies on: what is computed with it has to lie there as well."""
    mesh = getattr(getattr(y, "sharding", None), "mesh", None)
    is_explicit = isinstance(mesh, jax.sharding.Mesh) and jax.sharding.AxisType.Explicit in mesh.axis_types
    return mesh if is_explicit else None


def place(solution: Tree, mesh: jax.sharding.Mesh, y: Any) -> Tree:
    """Put a solution on its mesh as it is, where y lies on one or one is set."""
    is_theirs = isinstance(getattr(y, "sharding", None), jax.sharding.NamedSharding)
    is_set = not jax.sharding.get_abstract_mesh().empty
    return jax.device_put(solution, split(mesh)) if is_theirs or is_set else solution
