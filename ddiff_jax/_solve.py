"""Run a solver: on one image as a pure function, or on many, compiled and driven from the host in chunks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from ddiff_jax import _execution
from ddiff_jax.boundary import check_batch, check_one, check_tape
from ddiff_jax.memory import MemoryPlan, device_bytes, peak_bytes, tree_bytes
from ddiff_jax.noise import KeyNoise, Noise, Stream, TapeNoise, stream_key
from ddiff_jax.operators._compose import Composition
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors import Decoder, EmbeddedPrior, Latent, Prior
from ddiff_jax.problem import Problem, check_sigma
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Solver, StepInfo, require_likelihood, require_operator, total_cost
from ddiff_jax.types import Image, PRNGKey, float_type, to_type


@pytree_dataclass
class Solution:
    """What a run returns; `solve` adds a leading axis of N images to every array.

    Args:
        x: restored image, range about [-1, 1], not clipped.
        info: what every step reported, K rows.
        finite: whether the image holds neither NaN nor infinity.
        cost: what the steps that were made cost per image.
    """

    x: Float[Array, "..."]
    info: StepInfo
    finite: Bool[Array, "*N"]
    cost: Cost = static_field(default=Cost())


def _advance(
    solver: Solver, prior: Prior, problem: Problem, state: Any, k: Any, point: Any, key: PRNGKey, tape: Any
) -> tuple[Any, StepInfo]:
    """Make step k with its own noise."""
    noise: Noise
    if tape is None:
        noise = KeyNoise(jax.random.fold_in(stream_key(key, Stream.LOOP), k), float_type(problem.y))
    else:
        noise = TapeNoise(jax.tree.map(lambda draws: draws[k], tape))
    return solver.step(prior, problem, state, point, noise)


def _finish(solver: Solver, prior: Prior, state: Any, info: StepInfo) -> Solution:
    x = solver.estimate(state)
    if isinstance(prior, Latent):
        x = prior.decode(x)
    return Solution(x, info, jnp.all(jnp.isfinite(x)))


def solve_one(
    solver: Solver,
    prior: Prior,
    problem: Problem,
    key: PRNGKey,
    noise: Float[Array, "K draws ..."] | tuple[Float[Array, "K ..."], ...] | None = None,
    x_init: Image | None = None,
) -> Solution:
    """Restore one image: a pure function for your own `jit`, `vmap`, `grad` or `shard_map`.

    The result can be differentiated with respect to y, sigma_y, the solver's floats, the arrays of operator and prior,
    noise and x_init, with the draws held fixed; each solver says where it has kinks. Derivatives are finite there too.
    How its numbers' types follow from that of y is told by `ddiff_jax.types.float_type`.

    Inside of `shard_map` every device restores its own images, and nothing is exchanged:

        mesh = jax.make_mesh((jax.device_count(),), ("images",))
        restore = jax.vmap(lambda y, key: dd.solve_one(solver, prior, dd.Problem(operator, y, 0.05), key).x)
        one_each = jax.sharding.NamedSharding(mesh, P("images"))  # P is jax.sharding.PartitionSpec
        y, keys = jax.device_put((y, keys), one_each)
        x = jax.jit(jax.shard_map(restore, mesh=mesh, in_specs=P("images"), out_specs=P("images")))(y, keys)

    Args:
        solver: the method with its hyper-parameters.
        prior: the distribution of clean images; says the image shape.
        problem: operator, measurement and noise level of this image.
        key: this image's key, for example from `image_keys`.
        noise: None draws from the key; an array is replayed: entry [k, i] is draw i of step k. Where the draws of a
            step differ in shape, a tuple of arrays: entry k of array i is draw i of step k.
        x_init: None lets the solver choose its start; else the solver's own starting point (for DDiff the noisy
            state at the first level).

    Raises:
        ValueError: the shapes of prior, operator, y and x_init disagree, the operator lacks what the solver needs, or
            the solver assumes another noise model.
        TypeError: solver, prior or problem is no such thing, or the key is not one typed key.
    """
    check_one(solver, prior, problem, key, x_init)
    problem, dtype = _about(prior, problem.standardised()), float_type(problem.y)
    require_operator(solver, problem.operator)
    require_likelihood(solver, problem.likelihood)
    problem = problem.prepared() if solver.cost(problem.operator).operator_solves else problem
    solver, problem, noise, x_init = to_type((solver, problem, noise, x_init), dtype)
    grid = to_type(solver.grid(prior.schedule), dtype)
    num_steps = jax.tree.leaves(grid)[0].shape[0]
    check_tape(noise, num_steps, 0)
    solver, problem, key, noise, x_init, grid = _execution.alike((solver, problem, key, noise, x_init, grid), prior)
    state = solver.init(prior, problem, _execution.rows(grid, 0), KeyNoise(stream_key(key, Stream.INIT), dtype), x_init)
    state = _execution.alike(state, problem.y)

    def body(state: Any, row: Any) -> tuple[Any, StepInfo]:
        k, point = row
        return _advance(solver, prior, problem, state, k, point, key, noise)

    state, info = jax.lax.scan(body, state, (jnp.arange(num_steps), grid))
    return dataclasses.replace(
        _finish(solver, prior, state, info), cost=total_cost(solver, problem.operator, prior.schedule, num_steps)
    )


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run of `solve` between two steps; given back as `resume` the run goes on as if it had not stopped.

    Args:
        step: steps done.
        carry: the states of all images and what the steps reported: a pytree of arrays.
    """

    step: int
    carry: Any


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run of `solve` stands after a chunk of steps.

    Args:
        step: steps done; 0 says that the program is compiled and about to start.
        num_steps: steps in all.
        misfit: last reported misfit of every image, NaN before the first step.
        preview: call it for the current estimates, [N, H, W, C].
        snapshot: call it for what `resume` takes, with arrays of the host.
    """

    step: int
    num_steps: int
    misfit: Float[np.ndarray, " N"]
    preview: Callable[[], Float[np.ndarray, "N ..."]]
    snapshot: Callable[[], Snapshot]


@pytree_dataclass
class _Run:
    """Everything that stays the same over the steps of a batch."""

    solver: Solver
    prior: Prior
    problem: Problem
    keys: Key[Array, " N"]
    tape: Float[Array, "N K draws ..."] | tuple[Float[Array, "N K ..."], ...] | None
    block: int | None = static_field()  # images that a step takes at a time; None takes all

    def init(self, point: Any, x_init: Float[Array, "N ..."] | None) -> Any:
        """Make the first state of every image."""

        def one(problem: Problem, key: PRNGKey, x_init: Any) -> Any:
            noise = KeyNoise(stream_key(key, Stream.INIT), float_type(problem.y))
            return self.solver.init(self.prior, _about(self.prior, problem), point, noise, x_init)

        return self.problem.map(one, self.keys, x_init)

    def step(self, state: Any, k: Any, point: Any) -> tuple[Any, StepInfo]:
        """Make step k of every image, in blocks of images where that is faster."""
        rows, problem_of = self.problem.split()

        def one(of_image: Any) -> Any:
            rows, key, tape, state = of_image
            problem = _about(self.prior, problem_of(rows))
            return _advance(self.solver, self.prior, problem, state, k, point, key, tape)

        of_images = (rows, self.keys, self.tape, state)
        return jax.vmap(one)(of_images) if self.block is None else jax.lax.map(one, of_images, batch_size=self.block)


def _seen(prior: Prior, operator: Operator) -> Operator:
    """See an operator as one on the prior's own images: where these are latents, they are decoded first."""
    if isinstance(prior, EmbeddedPrior):
        return prior.see(operator)
    return Composition(operator, Decoder(prior), prior.image_shape) if isinstance(prior, Latent) else operator


def _operator_of_one(problem: Problem) -> Operator:
    """Take the operator of one image of a batch, with shapes in place of the arrays that every image has for itself."""
    rows, build = problem.split()
    return build([jax.ShapeDtypeStruct(row.shape[1:], row.dtype) for row in rows]).operator


def _about(prior: Prior, problem: Problem) -> Problem:
    """See a problem as one about the prior's own images."""
    if not isinstance(prior, Latent):
        return problem  # building it once more would clean y once more, in every step
    return dataclasses.replace(problem, operator=_seen(prior, problem.operator), observed=None)  # the operator knows


@jax.jit
def _start(run: _Run, x_init: Float[Array, "N ..."] | None) -> tuple[Any, Any]:
    """Make the grid and the carry: the first states, and tables for what the steps will report."""
    grid = to_type(run.solver.grid(run.prior.schedule), float_type(run.problem.y))
    num_steps = jax.tree.leaves(grid)[0].shape[0]
    state = run.init(_execution.rows(grid, 0), x_init)
    _, row = jax.eval_shape(run.step, state, 0, _execution.rows(grid, 0))
    tables = jax.tree.map(lambda r: jnp.zeros((r.shape[0], num_steps, *r.shape[1:]), r.dtype), row)
    return grid, (state, tables)


@jax.jit
def _finish_batch(solver: Solver, prior: Prior, carry: Any) -> Solution:
    return jax.vmap(functools.partial(_finish, solver, prior))(*carry)


def solve(
    solver: Solver,
    prior: Prior,
    problem: Problem,
    keys: Key[Array, " N"],
    *,
    x_init: Float[Array, "N ..."] | None = None,
    noise: Float[Array, "N K draws ..."] | tuple[Float[Array, "N K ..."], ...] | None = None,
    num_chunks: int = 20,
    on_chunk: Callable[[Progress], bool | None] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    resume: Callable[[Snapshot], Snapshot | None] | None = None,
) -> Solution:
    """Restore a batch of images: compiled once, vectorised over images, driven from the host in chunks of steps.

    Every image is restored as `solve_one` would: its result does not depend on its neighbours in the batch or on
    its place. Changes of hyper-parameters, noise levels, keys, masks and kernels compile nothing new; changes of
    shapes, step counts and flags do. On a CPU every step takes a few images at a time, which is faster.

    Args:
        solver: the method with its hyper-parameters.
        prior: the distribution of clean images; says the image shape.
        problem: a batch: operator, N measurements and their noise level, see `Problem`.
        keys: one key per image, best from `image_keys`.
        x_init: starting points, see `solve_one`.
        noise: draws to replay, see `solve_one`.
        num_chunks: how often the host regains control; the results do not depend on it.
        on_chunk: called with a `Progress` once the program is compiled and after every chunk. Return True to stop;
            the solution is then the estimate so far, and the rows of info that were not reached are NaN.
        mesh: spread the images over the first axis of this mesh, of any axis type; N must be a multiple of its size.
            `jax.make_mesh((jax.device_count(),), ("images",))` takes all devices. None takes the mesh with explicit
            axes that y lies on, if it does. Where y lies on a mesh already, or one is set, the solution lies on this
            mesh as it is; else its axes are automatic, and arrays that were never spread can be computed with it.
        resume: called with the snapshot before the first step, which has shapes and types in place of arrays; returns
            the one to go on from, made by `Progress.snapshot` in a run with the same arguments, or None to begin. The
            result is that of an undisturbed run, bit for bit on the same machine.

    Raises:
        ValueError: shapes, counts or noise levels disagree with the above, the operator lacks what the solver
            needs, or the solver assumes another noise model.
        TypeError: a part is no such thing or no pytree, the call stands inside jit, vmap or grad, or keys are not typed
            threefry keys, one per image.
    """
    run, seen, x_init = _checked(solver, prior, problem, keys, x_init, noise)
    backend, looped, y = jax.default_backend(), _is_looped(solver, seen), run.problem.y
    mesh = _execution.explicit_mesh(y) if mesh is None else mesh
    if mesh is None:
        run = dataclasses.replace(run, block=_block(run, seen, x_init))
    automatic = None if mesh is None else _execution.automatic(mesh)
    if automatic is not None:
        run, x_init = _execution.spread(run, x_init, automatic)
    compute = functools.partial(_execution.compute, automatic)
    grid, carry = compute(_start, run, x_init)
    carry = _execution.settle(carry, run, automatic)
    num_steps = jax.tree.leaves(grid)[0].shape[0]
    check_tape(noise, num_steps, 1)

    def finish(carry: Any) -> Solution:
        return compute(_finish_batch, run.solver, run.prior, carry)

    def preview() -> np.ndarray:
        return np.asarray(finish(carry).x)

    def report(step: int) -> bool:
        if on_chunk is None:
            return False
        # Looked up here: on the device it would be a program of its own.
        misfit = np.asarray(carry[1].misfit)[:, step - 1] if step else np.full(len(keys), np.nan, np.float32)
        snapshot = functools.partial(_snapshot, step, carry)
        return bool(on_chunk(Progress(step, num_steps, misfit, preview, snapshot)))

    run_chunk = functools.partial(compute, _execution.chunk_program(backend, looped))
    carry = run_chunk(carry, 0, 0, grid, run)  # no step: compiles, so that the first report can say so
    jax.block_until_ready(carry)
    stopped, done = report(0), 0
    earlier = None if resume is None else resume(Snapshot(0, jax.eval_shape(lambda: carry)))
    if earlier is not None:
        carry, done = _taken_up(earlier, carry, num_steps), earlier.step
    bounds = np.linspace(done, num_steps, max(1, min(num_chunks, num_steps - done)) + 1).astype(int)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if stopped:
            break
        carry = run_chunk(carry, start, stop, grid, run)
        stopped, done = report(stop), stop
    solution = finish(carry)
    if done < num_steps:
        with jax.debug_nans(False):  # whoever looks for NaN does not look for these
            info = jax.tree.map(lambda table: table.at[:, done:].set(jnp.nan), solution.info)
        solution = dataclasses.replace(solution, info=info)
    solution = dataclasses.replace(solution, cost=total_cost(solver, seen, prior.schedule, done))
    return solution if mesh is None else _execution.place(solution, mesh, y)


def _checked(
    solver: Solver, prior: Prior, problem: Problem, keys: Any, x_init: Any = None, noise: Any = None
) -> tuple[_Run, Operator, Any]:
    """Check what `solve` is given; a run of all images at once, the operator as the solver sees it, and the start."""
    check_batch(solver, prior, problem, keys, x_init=x_init, noise=noise)
    check_sigma(problem.sigma_y)
    problem = problem.standardised_batch()
    seen = _seen(prior, _operator_of_one(problem))
    require_operator(solver, seen)
    require_likelihood(solver, problem.likelihood)
    problem = problem.prepared() if solver.cost(seen).operator_solves else problem
    solver, problem, x_init, noise = to_type((solver, problem, x_init, noise), float_type(problem.y))
    return _Run(solver, prior, problem, keys, noise, None), seen, x_init


def _is_looped(solver: Solver, seen: Operator) -> bool:
    """Tell whether the device loops over the steps, and not the host.

    XLA for CPUs brings convolutions into their fast form only outside of loops. The layers of the network are in it
    anyway, but not those of its gradient: in a loop they take 3.5 times as long.
    """
    return jax.default_backend() != "cpu" or not solver.cost(seen).network_gradients


def _block(run: _Run, seen: Operator, x_init: Any) -> int | None:
    """Choose how many images a step takes at a time: what is fastest on a CPU, on others what fits into memory."""
    if jax.default_backend() == "cpu":
        is_looped = _is_looped(run.solver, seen)
        return _execution.block_size(len(run.keys), run.prior.image_shape) if is_looped else None
    plan = _plan(run, x_init)
    return None if plan.fits else _execution.divisor(len(run.keys), plan.most_at_once)


def _plan(run: _Run, x_init: Any = None) -> MemoryPlan:
    grid, carry = jax.eval_shape(_start, run, x_init)
    rows, problem_of = run.problem.split()

    def step(rows: Any, key: PRNGKey, state: Any, point: Any) -> Any:
        problem = _about(run.prior, problem_of(rows))
        return _advance(run.solver, run.prior, problem, state, 0, point, key, None)

    first = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (rows, run.keys, carry[0], grid)
    )
    return MemoryPlan(
        weights=tree_bytes(run.prior),
        images=tree_bytes((run.problem, run.tape, carry, x_init)),
        step=peak_bytes(step, *first),
        num_images=len(run.keys),
        at_once=run.block or len(run.keys),
        available=device_bytes(jax.local_devices()[0]),
    )


def memory_plan(solver: Solver, prior: Prior, problem: Problem, keys: Key[Array, " N"]) -> MemoryPlan:
    """Estimate the memory that `solve` takes with these arguments on one device, before anything is compiled.

    What compiling and libraries for convolutions take comes on top. On accelerators `solve` takes as many images at a
    time as fit by this plan, unless there is a mesh.

    Args:
        solver: see `solve`, as for the others.
        prior: the distribution of clean images.
        problem: a batch.
        keys: one key per image.

    Raises:
        ValueError: what is given does not fit together, see `solve`.
        TypeError: a part is no such thing, see `solve`.
    """
    run, seen, x_init = _checked(solver, prior, problem, keys)
    return _plan(dataclasses.replace(run, block=_block(run, seen, x_init)), x_init)


def _snapshot(step: int, carry: Any) -> Snapshot:
    return Snapshot(step, jax.device_get(carry))


def _taken_up(earlier: Snapshot, carry: Any, num_steps: int) -> Any:
    """Put the arrays of a snapshot where those of the run lie."""

    def described(tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    if not 0 <= earlier.step <= num_steps or described(earlier.carry) != described(carry):
        raise ValueError(
            f"the snapshot to resume, after step {earlier.step}, is not of a run with these arguments ({num_steps} "
            "steps, the same solver, images and types): begin anew"
        )
    return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), earlier.carry, carry)


def raise_if_not_finite(solution: Solution) -> None:
    """Turn diverged images into an exception, for callers that prefer one.

    Raises:
        FloatingPointError: some image holds NaN or infinity; the message gives their indices.
    """
    bad = np.flatnonzero(~np.atleast_1d(solution.finite))
    if bad.size:
        raise FloatingPointError(
            f"images {bad.tolist()} of the batch diverged to NaN or infinity; lower the step length or check y"
        )
