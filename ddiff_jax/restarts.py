"""Restarts: solve every problem several times from other noise, and keep the solution that fits its data best."""

import dataclasses
from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddiff_jax._runs import Driving, as_images, check_runs, repeated
from ddiff_jax._solve import Progress, Solution, solve
from ddiff_jax.priors import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.solvers.base import Solver
from ddiff_jax.types import Tree


@pytree_dataclass
class Restarts:
    """What `solve_restarts` returns.

    Args:
        solution: that of the chosen restart of every image; its cost counts all restarts.
        chosen: which restart that is.
        misfit: `Problem.misfit` of every restart's result, in the standardised problem; infinite where it diverged.
        x: the results of all restarts, for other choices.
    """

    solution: Solution
    chosen: Int[Array, " N"]
    misfit: Float[Array, "N K"]
    x: Float[Array, "N K ..."]


def solve_restarts(
    solver: Solver,
    prior: Prior,
    problem: Problem,
    keys: Key[Array, " N"],
    *,
    restarts: int,
    on_chunk: Callable[[Progress], bool | None] | None = None,
    **driving: Unpack[Driving],
) -> Restarts:
    """Restore every image `restarts` times in one batch, and choose by the misfit: no truth is needed.

    Restart 0 draws from the image's own key, so it is what `solve` returns; the others never meet its draws. The
    results do not depend on how many there are.

    Choosing by the misfit helps where runs end in different minima, as in phase retrieval. It cannot tell apart what
    measures the same: see `nearest_equivalent`. Where all runs fit down to the noise it prefers the one that fits the
    noise best, which says nothing about the image.

    Args:
        solver: the method with its hyper-parameters.
        prior: the distribution of clean images.
        problem: a batch of N, as `solve` takes it.
        keys: one key per image.
        restarts: K, at least 1. The batch that is solved holds N K images.
        on_chunk: as in `solve`; hears the least misfit of every image, and previews restart 0.
        driving: `num_chunks`, `mesh` and `resume` of `solve`; N K must be a multiple of the mesh's size. Where N is a
            multiple as well, nothing is exchanged between devices.

    Raises:
        ValueError: restarts is below 1, or y lies on explicit mesh axes; and as in `solve`.
        TypeError: as in `solve`.
    """
    if int(restarts) != restarts or restarts < 1:
        raise ValueError(f"the number of restarts must be a whole number, at least 1; got {restarts}")
    check_runs("solve_restarts", solver, prior, problem, keys)
    num_images = keys.shape[0]
    every_problem, every_key = repeated(problem, keys, range(restarts))

    def report(progress: Progress) -> bool | None:
        return None if on_chunk is None else on_chunk(as_images(progress, num_images))

    heard = None if on_chunk is None else report
    solution = solve(solver, prior, every_problem, every_key, on_chunk=heard, **driving)
    misfit = _misfits(every_problem, solution.x)
    misfit = jnp.where(solution.finite, misfit, jnp.inf).reshape(num_images, restarts)
    chosen = jnp.argmin(misfit, axis=1)
    best = dataclasses.replace(_picked(solution, chosen), cost=solution.cost * restarts)
    return Restarts(best, chosen, misfit, solution.x.reshape(num_images, restarts, *solution.x.shape[1:]))


@jax.jit
def _misfits(problem: Problem, x: Any) -> Array:
    return problem.map(lambda problem, x: problem.standardised().misfit(x), x)


@jax.jit
def _picked(every: Tree, chosen: Int[Array, " N"]) -> Tree:
    """Take the chosen run of every image. They are picked image by image, so that none leaves the device it is on."""

    def pick(leaf: Array) -> Array:
        runs = leaf.reshape(len(chosen), leaf.shape[0] // len(chosen), *leaf.shape[1:])
        return jax.vmap(lambda runs, run: runs[run])(runs, chosen)

    return jax.tree.map(pick, every)
