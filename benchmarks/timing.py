"""What the timings share: programs compiled as `solve` compiles them, runs that take turns, and weights to run with."""

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddiff_jax._execution import CPU_OPTIONS
from ddiff_jax.architecture import abstract_params

# By itself JAX takes three quarters of an accelerator's memory when it starts, and leaves the peer too little.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
ON_CPU = jax.default_backend() == "cpu"

Run = Callable[[], None]


def random_params(module: Any) -> Any:
    """Draw weights of the right shapes, small enough that nothing overflows; what a network costs is not in them."""
    generator = np.random.default_rng(0)

    def draw(leaf: Any) -> jax.Array:
        return jnp.asarray(0.02 * generator.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(draw, abstract_params(module))


def compiled(function: Any, *arguments: Any) -> tuple[Run, float]:
    """Compile for these arguments as `solve` does; return the call, and the seconds that compiling took."""
    options: Any = CPU_OPTIONS if ON_CPU else {}
    begin = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile(options)
    seconds = time.perf_counter() - begin
    return lambda: jax.block_until_ready(program(*arguments)), seconds


def alternate(runs: dict[str, Run], repeats: int) -> dict[str, np.ndarray]:
    """Time every run once per repetition, in turn, so that all meet the same machine.

    The first repetition warms up and is dropped.

    Returns:
        Seconds of every repetition, by the names of the runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: np.asarray(values[1:]) for name, values in seconds.items()}
