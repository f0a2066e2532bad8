"""Samples: solve every problem several times from other noise, and sum up what the answers say of each pixel."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from ddiff_jax._runs import Driving, as_images, check_runs, repeated
from ddiff_jax._solve import Progress, Solution, solve
from ddiff_jax.priors import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Solver

LOW, HIGH = 0.05, 0.95  # the maps that are always made


@pytree_dataclass
class Samples:
    """What `solve_samples` returns; diverged samples count for no map, and where none is left a map is NaN.

    Args:
        x: all samples, K of every image; the first is what `solve` returns.
        finite: which of them hold neither NaN nor infinity.
        mean: of the finite ones, pixel by pixel.
        std: their standard deviation, with K - 1 in the denominator.
        maps: their quantiles, Q of every image, in the order of `quantiles`.
        first: the whole solution of the first sample; its cost counts all.
        quantiles: which ones, rising.
    """

    x: Float[Array, "N K ..."]
    finite: Bool[Array, "N K"]
    mean: Float[Array, "N ..."]
    std: Float[Array, "N ..."]
    maps: Float[Array, "N Q ..."]
    first: Solution
    quantiles: tuple[float, ...] = static_field(default=(LOW, HIGH))

    def quantile(self, share: float) -> Float[Array, "N ..."]:
        """Look up a map.

        Raises:
            ValueError: it was not asked for.
        """
        if share not in self.quantiles:
            raise ValueError(
                f"the maps at hand are {', '.join(map(str, self.quantiles))}; ask for {share} by "
                f"solve_samples(..., quantiles=({share},))"
            )
        return self.maps[:, self.quantiles.index(share)]

    @property
    def low(self) -> Float[Array, "N ..."]:
        """The map that 5% of the samples are below."""
        return self.quantile(LOW)

    @property
    def high(self) -> Float[Array, "N ..."]:
        """The map that 95% of the samples are below."""
        return self.quantile(HIGH)


def solve_samples(
    solver: Solver,
    prior: Prior,
    problem: Problem,
    keys: Key[Array, " N"],
    *,
    samples: int,
    quantiles: Sequence[float] = (),
    block: int | None = None,
    on_chunk: Callable[[Progress], bool | None] | None = None,
    **driving: Unpack[Driving],
) -> Samples:
    """Restore every image `samples` times, and sum up the answers.

    Sample 0 draws from the image's own key, so it is what `solve` returns; the others never meet its draws. The results
    do not depend on how many there are.

    What their spread means depends on the solver, see `solvers.aim_of`: those that aim at the posterior give samples of
    it, as far as their approximations go, and the mean is the answer of least squared error. Those that aim at one
    image end in others when they start elsewhere: their spread shows how much the start decides, and is not the
    posterior's. Classical estimates draw nothing, and spread not at all.

    Args:
        solver: the method with its hyper-parameters.
        prior: the distribution of clean images.
        problem: a batch of N, as `solve` takes it.
        keys: one key per image.
        samples: K, at least 2.
        quantiles: shares in (0, 1) whose maps are wanted beside those of 5% and 95%.
        block: samples of every image that are computed together, to bound the memory: a batch holds N of each. None
            takes all; else the last batch may compute a few samples more than are kept.
        on_chunk: as in `solve`; hears the least misfit of every image, and previews the first sample under way. Its
            steps are those of all blocks one after the other. Where it stops the run, later blocks are left out, and
            there are fewer samples.
        driving: `num_chunks`, `mesh` and `resume` of `solve`. The size of a batch must be a multiple of the mesh's, and
            what is resumed must be one batch.

    Raises:
        ValueError: samples, block or quantiles are out of range, blocks are to be resumed, or y lies on explicit mesh
            axes; and as in `solve`.
        TypeError: as in `solve`.
    """
    if int(samples) != samples or samples < 2:
        raise ValueError(f"the number of samples must be a whole number, at least 2: one is `solve`; got {samples}")
    if block is not None and (int(block) != block or block < 1):
        raise ValueError(f"block, the samples that are computed together, must be at least 1; got {block}")
    shares = tuple(sorted({LOW, HIGH, *map(float, quantiles)}))
    if not all(0 < share < 1 for share in shares):
        raise ValueError(f"quantiles are shares between 0 and 1, such as 0.25; got {list(quantiles)}")
    check_runs("solve_samples", solver, prior, problem, keys)
    num_blocks = 1 if block is None else math.ceil(samples / block)
    if num_blocks > 1 and driving.get("resume") is not None:
        raise ValueError("a run in blocks cannot be resumed from one snapshot: leave block out, or resume")
    size = math.ceil(samples / num_blocks)  # of all blocks, so that one program serves them
    num_images, solutions, stopped = keys.shape[0], [], False
    for number in range(num_blocks):
        every_problem, every_key = repeated(problem, keys, range(number * size, (number + 1) * size))

        def report(progress: Progress, number: int = number) -> bool:
            nonlocal stopped
            of_all = as_images(progress, num_images)
            step, num_steps = progress.step + number * progress.num_steps, progress.num_steps * num_blocks
            is_begun = number > 0 and progress.step == 0  # has been told already
            if on_chunk is not None and not is_begun:
                stopped = bool(on_chunk(dataclasses.replace(of_all, step=step, num_steps=num_steps)))
            return stopped

        heard = None if on_chunk is None else report
        solutions.append(solve(solver, prior, every_problem, every_key, on_chunk=heard, **driving))
        if stopped:
            break
    spent = [dataclasses.asdict(solution.cost) for solution in solutions]
    cost = Cost(**{name: size * sum(one[name] for one in spent) for name in spent[0]})
    parts = [(solution.x, solution.finite) for solution in solutions]
    x, finite, mean, std, maps = _summed_up(parts, jnp.asarray(shares), num_images, samples)
    first = jax.tree.map(lambda leaf: leaf.reshape(num_images, -1, *leaf.shape[1:])[:, 0], solutions[0])
    return Samples(x, finite, mean, std, maps, dataclasses.replace(first, cost=cost), shares)


@functools.partial(jax.jit, static_argnames=("num_images", "samples"))
def _summed_up(
    parts: list[tuple[Array, Array]], shares: Float[Array, " Q"], num_images: int, samples: int
) -> tuple[Array, ...]:
    def joined(leaves: Sequence[Array]) -> Array:
        blocks = [leaf.reshape(num_images, -1, *leaf.shape[1:]) for leaf in leaves]
        return jnp.concatenate(blocks, axis=1)[:, :samples]

    x, finite = (joined(leaves) for leaves in zip(*parts, strict=True))
    return x, finite, *jax.vmap(lambda x, finite: _statistics(x, finite, shares.astype(x.dtype)))(x, finite)


def _statistics(
    x: Float[Array, "K ..."], finite: Bool[Array, " K"], shares: Float[Array, " Q"]
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "Q ..."]]:
    """Sum up the finite samples of one image."""
    is_good = finite.reshape(-1, *(1,) * (x.ndim - 1))
    count = jnp.sum(finite).astype(x.dtype)
    kept = jnp.where(is_good, x, 0.0)
    mean = jnp.sum(kept, axis=0) / count
    squares = jnp.sum(jnp.where(is_good, kept - mean[None], 0.0) ** 2, axis=0)
    std = jnp.sqrt(squares / jnp.where(count > 1, count - 1, jnp.nan))
    return mean, std, jnp.nanquantile(jnp.where(is_good, x, jnp.nan), shares, axis=0)


def coverage(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> float:
    """Measure which share of the numbers of an image lies in a band."""
    return float(np.mean((low <= truth) & (truth <= high)))


def expected_coverage(samples: int, low: float = LOW, high: float = HIGH) -> float:
    """Tell which share of truths a band of so many samples holds, if these and the truth have one distribution.

    It is less than high - low: the j-th of K rising numbers has on average j / (K + 1) of all below it, and a quantile
    lies (K - 1) share + 1 of the way up.
    """
    return (high - low) * (samples - 1) / (samples + 1)


def likely_image(aim: str | None, samples: Samples) -> tuple[str, Float[Array, "N ..."]]:
    """Choose the one answer to show: the mean where they are of a posterior, else sample 0, which one run gives.

    Means of images that are each the most probable one are blurred, and need not be probable at all.
    """
    return ("mean", samples.mean) if aim == "posterior" else ("sample 0", samples.first.x)
