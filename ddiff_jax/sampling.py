"""Samples of a prior, batch by batch: numbered, so that none depends on how many are drawn or on its company."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ddiff_jax._solve import Progress, Solution, solve
from ddiff_jax.noise import image_keys, root_key
from ddiff_jax.priors import Prior
from ddiff_jax.restoration.machine import image_mesh, out_of_memory
from ddiff_jax.restoration.run import CHUNKS
from ddiff_jax.solvers.sampling import Sampler, without_data


def batches(count: int, size: int) -> list[Int[np.ndarray, " size"]]:
    """Number the samples of every batch; the last one goes on beyond `count`, so that one program serves all.

    Args:
        count: how many samples are wanted.
        size: how many are drawn together.
    """
    return [np.arange(first, first + size) for first in range(0, math.ceil(count / size) * size, size)]


def draw(
    sampler: Sampler,
    prior: Prior,
    seed: int,
    indices: Int[np.ndarray, " N"] | Sequence[int],
    on_chunk: Callable[[Progress], Any] | None = None,
) -> Solution:
    """Draw one batch of samples, spread over the devices of this process.

    Args:
        sampler: how they are drawn.
        prior: what they are drawn from.
        seed: root of all random numbers.
        indices: numbers of the samples; each depends on the seed and on its own number alone.
        on_chunk: as in `solve`.

    Returns:
        The solution, with arrays of the host.

    Raises:
        OutOfMemory: there is too little memory for so many.
    """
    keys = image_keys(root_key(seed), jnp.asarray(indices, jnp.int32))
    count = len(indices)
    with out_of_memory(count):
        solution = solve(
            sampler,
            prior,
            without_data(prior, keys),
            keys,
            num_chunks=CHUNKS,
            on_chunk=on_chunk,
            mesh=image_mesh(count),
        )
        return jax.device_get(solution)
