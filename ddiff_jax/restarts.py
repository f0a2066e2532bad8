"""Restarts: solve every problem several times from other noise, and keep the solution that fits its data best."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ddiff_jax._solve import Progress, Solution, solve
from ddiff_jax.boundary import check_batch
from ddiff_jax.likelihood import Gaussian, Likelihood
from ddiff_jax.noise import restart_keys
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.solvers.base import Solver
from ddiff_jax.types import Measurements, Scalar


@pytree_dataclass
class Restarts:
    """What `solve_restarts` returns.

    Args:
        solution: that of the chosen restart of every image; its cost counts all restarts.
        chosen: which restart that is.
        misfit: `Problem.misfit` of every restart's result; infinite where it diverged.
        x: the results of all restarts, for other choices.
    """

    solution: Solution
    chosen: Int[Array, " N"]
    misfit: Float[Array, "N K"]
    x: Float[Array, "N K ..."]


def solve_restarts(
    solver: Solver,
    prior: Prior,
    operator: Operator,
    y: Measurements,
    sigma_y: Scalar | Float[Array, " N"],
    keys: Key[Array, " N"],
    *,
    restarts: int,
    operator_axis: int | None = None,
    likelihood: Likelihood | None = None,
    observed: Bool[Array, "..."] | None = None,
    num_chunks: int = 20,
    on_chunk: Callable[[Progress], bool | None] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Restarts:
    """Restore every image `restarts` times in one batch, and choose by the misfit: no truth is needed.

    Restart 0 draws from the image's own key, so it is what `solve` returns; the others never meet its draws. The
    results do not depend on how many there are.

    Choosing by the misfit helps where runs end in different minima, as in phase retrieval. It cannot tell apart what
    measures the same: see `nearest_equivalent`. Where all runs fit down to the noise it prefers the one that fits the
    noise best, which says nothing about the image.

    Args:
        solver: as in `solve`.
        prior: as in `solve`.
        operator: as in `solve`.
        y: as in `solve`.
        sigma_y: as in `solve`.
        keys: as in `solve`.
        restarts: K, at least 1. The batch holds N K images.
        operator_axis: as in `solve`.
        likelihood: as in `solve`.
        observed: as in `solve`.
        num_chunks: as in `solve`.
        on_chunk: as in `solve`; reports the least misfit of every image, and previews restart 0.
        mesh: as in `solve`; N K must be a multiple of its size.

    Raises:
        ValueError: restarts is below 1; and as in `solve`.
        TypeError: as in `solve`.
    """
    if int(restarts) != restarts or restarts < 1:
        raise ValueError(f"the number of restarts must be a whole number, at least 1; got {restarts}")
    noise_model = Gaussian() if likelihood is None else likelihood
    parts = {"solver": solver, "prior": prior, "operator": operator, "likelihood": noise_model}
    given = {"y": y, "sigma_y": sigma_y, "keys": keys, "observed": observed}
    y, sigma_y, observed, _ = check_batch(parts, given, operator_axis)
    num_images = keys.shape[0]

    def repeat(leaf: Array) -> Array:
        return jnp.repeat(leaf, restarts, axis=0)

    every_operator = operator if operator_axis is None else jax.tree.map(repeat, operator)
    every_y, every_sigma = repeat(y), repeat(sigma_y) if sigma_y.ndim else sigma_y
    every_observed = None if observed is None else repeat(observed)
    every_key = jnp.stack([restart_keys(keys, run) for run in range(restarts)], axis=1).reshape(-1)

    def report(progress: Progress) -> bool | None:
        least = np.fmin.reduce(progress.misfit.reshape(num_images, restarts), axis=1)

        def preview() -> np.ndarray:
            return progress.preview()[::restarts]

        return None if on_chunk is None else on_chunk(dataclasses.replace(progress, misfit=least, preview=preview))

    solution = solve(
        solver,
        prior,
        every_operator,
        every_y,
        every_sigma,
        every_key,
        operator_axis=operator_axis,
        likelihood=noise_model,
        observed=every_observed,
        num_chunks=num_chunks,
        on_chunk=None if on_chunk is None else report,
        mesh=mesh,
    )
    misfit = _misfits(every_operator, solution.x, every_y, every_observed, operator_axis)
    misfit = jnp.where(solution.finite, misfit, jnp.inf).reshape(num_images, restarts)
    chosen = jnp.argmin(misfit, axis=1)
    best = jax.tree.map(lambda leaf: leaf[jnp.arange(num_images) * restarts + chosen], solution)
    best = dataclasses.replace(best, cost=solution.cost * restarts)
    return Restarts(best, chosen, misfit, solution.x.reshape(num_images, restarts, *solution.x.shape[1:]))


@functools.partial(jax.jit, static_argnames="operator_axis")
def _misfits(operator: Operator, x: Any, y: Any, observed: Any, operator_axis: int | None) -> Array:
    def one(operator: Operator, x: Any, y: Any, observed: Any) -> Array:
        return Problem(operator, y, 0.0, observed=observed).misfit(x)

    return jax.vmap(one, (operator_axis, 0, 0, None if observed is None else 0))(operator, x, y, observed)
