"""Several runs of every image in one batch, from other noise: what restarts and samples share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ddiff_jax import _execution
from ddiff_jax._solve import Progress, Snapshot
from ddiff_jax.boundary import check_batch
from ddiff_jax.noise import restart_keys
from ddiff_jax.priors import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.solvers.base import Solver


class Driving(TypedDict, total=False):
    """What of `solve` is the same for one run and for many."""

    num_chunks: int
    mesh: jax.sharding.Mesh | None
    resume: Callable[[Snapshot], Snapshot | None] | None


def check_runs(what: str, solver: Solver, prior: Prior, problem: Problem, keys: Key[Array, " N"]) -> None:
    """Refuse what `solve` refuses, and measurements that cannot be repeated.

    Raises:
        ValueError: y lies on explicit mesh axes; and as in `solve`.
        TypeError: as in `solve`.
    """
    check_batch(solver, prior, problem, keys)
    if _execution.explicit_mesh(problem.y) is not None:
        raise ValueError(
            f"{what} repeats and picks measurements, which JAX does not do over explicit mesh axes: give y as "
            "it was before it was spread, jax.device_put(y, jax.devices()[0]), and the mesh as mesh="
        )


def repeated(problem: Problem, keys: Key[Array, " N"], runs: Sequence[int]) -> tuple[Problem, Key[Array, " M"]]:
    """Make a batch that holds every image once per run, the runs of an image beside each other.

    Args:
        problem: a batch of N.
        keys: one per image.
        runs: their numbers; run 0 draws from the image's own key, all others never meet its draws.
    """

    def repeat(leaf: Array, is_own: bool) -> Array:
        return jnp.repeat(leaf, len(runs), axis=0) if is_own else leaf

    every_key = jnp.stack([restart_keys(keys, run) for run in runs], axis=1).reshape(-1)
    return jax.tree.map(repeat, problem, problem.own()), every_key


def as_images(progress: Progress, num_images: int) -> Progress:
    """See the progress of such a batch image by image: the least misfit of every image, and its first run."""
    of_image = progress.misfit.reshape(num_images, -1)

    def preview() -> np.ndarray:
        return progress.preview()[:: of_image.shape[1]]

    return dataclasses.replace(progress, misfit=np.fmin.reduce(of_image, axis=1), preview=preview)
