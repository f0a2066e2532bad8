"""Run a solver: on one image as a pure function, or on many, compiled and driven from the host in chunks."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from ddiff_jax import devices
from ddiff_jax.boundary import check_batch, check_one, check_tape
from ddiff_jax.likelihood import Gaussian, Likelihood
from ddiff_jax.noise import KeyNoise, Noise, Stream, TapeNoise, stream_key
from ddiff_jax.operators import masked
from ddiff_jax.operators._compose import Composition
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors import Decoder, Latent, Prior
from ddiff_jax.problem import Problem, check_sigma
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Solver, StepInfo, check_likelihood, check_operator
from ddiff_jax.types import Image, ImageShape, Measurements, PRNGKey, Scalar, float_type, to_type


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
        noise = TapeNoise(tape[k])
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
    noise: Float[Array, "K draws ..."] | None = None,
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
        noise: None draws from the key; an array is replayed: entry [k, i] is draw i of step k.
        x_init: None lets the solver choose its start; else the solver's own starting point (for DDiff the noisy
            state at the first level).

    Raises:
        ValueError: the shapes of prior, operator, y and x_init disagree, the operator lacks what the solver needs, or
            the solver assumes another noise model.
        TypeError: solver, prior or problem is no such thing, or the key is not one typed key.
    """
    check_one(solver, prior, problem, key, x_init)
    problem, dtype = _about(prior, problem), float_type(problem.y)
    check_operator(solver, problem.operator)
    check_likelihood(solver, problem.likelihood)
    solver, problem, noise, x_init = to_type((solver, problem, noise, x_init), dtype)
    grid = to_type(solver.grid(prior.schedule), dtype)
    num_steps = jax.tree.leaves(grid)[0].shape[0]
    check_tape(noise, num_steps, 0)
    solver, problem, key, noise, x_init, grid = devices.alike((solver, problem, key, noise, x_init, grid), prior)
    state = solver.init(prior, problem, _rows(grid, 0), KeyNoise(stream_key(key, Stream.INIT), dtype), x_init)
    state = devices.alike(state, problem.y)

    def body(state: Any, row: Any) -> tuple[Any, StepInfo]:
        k, point = row
        return _advance(solver, prior, problem, state, k, point, key, noise)

    state, info = jax.lax.scan(body, state, (jnp.arange(num_steps), grid))
    return dataclasses.replace(_finish(solver, prior, state, info), cost=solver.cost(problem.operator) * num_steps)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run of `solve` stands after a chunk of steps.

    Args:
        step: steps done; 0 says that the program is compiled and about to start.
        num_steps: steps in all.
        misfit: last reported misfit of every image, NaN before the first step.
        preview: call it for the current estimates, [N, H, W, C].
    """

    step: int
    num_steps: int
    misfit: Float[np.ndarray, " N"]
    preview: Callable[[], Float[np.ndarray, "N ..."]]


@pytree_dataclass
class _Run:
    """Everything that stays the same over the steps of a batch; `operator_axis` and `sigma_axis` as in vmap."""

    solver: Solver
    prior: Prior
    operator: Operator
    y: Measurements
    observed: Bool[Array, "N ..."] | None
    sigma_y: Float[Array, "*N"]
    keys: Key[Array, " N"]
    tape: Float[Array, "N K draws ..."] | None
    likelihood: Likelihood
    operator_axis: int | None = static_field()
    sigma_axis: int | None = static_field()
    block: int | None = static_field()  # images that a step takes at a time; None takes all

    def problem(self, operator: Operator, y: Any, sigma_y: Any, observed: Any) -> Problem:
        """Put the problem of one image together, about the prior's own images."""
        return _about(self.prior, Problem(operator, y, sigma_y, self.likelihood, observed))

    def init(self, point: Any, x_init: Float[Array, "N ..."] | None) -> Any:
        """Make the first state of every image."""

        def one(operator: Operator, y: Any, observed: Any, sigma_y: Any, key: PRNGKey, x_init: Any) -> Any:
            noise = KeyNoise(stream_key(key, Stream.INIT), float_type(y))
            problem = self.problem(operator, y, sigma_y, observed)
            return self.solver.init(self.prior, problem, point, noise, x_init)

        axes = (self.operator_axis, 0, _axis(self.observed), self.sigma_axis, 0, _axis(x_init))
        return jax.vmap(one, axes)(self.operator, self.y, self.observed, self.sigma_y, self.keys, x_init)

    def step(self, state: Any, k: Any, point: Any) -> tuple[Any, StepInfo]:
        """Make step k of every image, in blocks of images where that is faster."""
        axes = (self.operator_axis, 0, _axis(self.observed), self.sigma_axis, 0, _axis(self.tape), 0)
        of_run = (self.operator, self.y, self.observed, self.sigma_y, self.keys, self.tape)
        everything: tuple[Any, ...] = (*of_run, state)
        of_images = [None if axis is None else value for value, axis in zip(everything, axes, strict=True)]

        def one(of_image: list[Any]) -> Any:
            values = (v if axis is None else i for v, i, axis in zip(everything, of_image, axes, strict=True))
            operator, y, observed, sigma_y, key, tape, state = values
            problem = self.problem(operator, y, sigma_y, observed)
            return _advance(self.solver, self.prior, problem, state, k, point, key, tape)

        if self.block is None:
            return jax.vmap(one)(of_images)
        return jax.lax.map(one, of_images, batch_size=self.block)


def _seen(prior: Prior, operator: Operator) -> Operator:
    """See an operator as one on the prior's own images: where these are latents, they are decoded first."""
    return Composition(operator, Decoder(prior), prior.image_shape) if isinstance(prior, Latent) else operator


def _about(prior: Prior, problem: Problem) -> Problem:
    """See a problem as one about the prior's own images."""
    if not isinstance(prior, Latent):
        return problem  # building it once more would clean y once more, in every step
    return dataclasses.replace(problem, operator=_seen(prior, problem.operator), observed=None)  # the operator knows


def _axis(batch: Any | None) -> int | None:
    return None if batch is None else 0


def _rows(grid: Any, k: Any) -> Any:
    return jax.tree.map(lambda column: column[k], grid)


@jax.jit
def _start(run: _Run, x_init: Float[Array, "N ..."] | None) -> tuple[Any, Any]:
    """Make the grid and the carry: the first states, and tables (of NaN) for what the steps will report."""
    grid = to_type(run.solver.grid(run.prior.schedule), float_type(run.y))
    num_steps = jax.tree.leaves(grid)[0].shape[0]
    state = run.init(_rows(grid, 0), x_init)
    _, row = jax.eval_shape(run.step, state, 0, _rows(grid, 0))
    tables = jax.tree.map(lambda r: jnp.full((r.shape[0], num_steps, *r.shape[1:]), jnp.nan, r.dtype), row)
    return grid, (state, tables)


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
    most = max(1, CPU_BLOCK // math.prod(shape[:-1]))
    return max(n for n in range(1, most + 1) if num_images % n == 0)


@functools.cache
def _chunk_program(backend: str, looped: bool) -> Any:
    """Compile chunks with options that suit the backend, or without where this version of XLA does not know them.

    Without `looped` the host makes the steps one by one; a chunk of none then costs one step, whose result is dropped.
    """
    options = CPU_OPTIONS if backend == "cpu" else {}
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        options = {}
    if looped:
        return jax.jit(_run_chunk, donate_argnames=("carry",), compiler_options=options)
    step = jax.jit(_run_step, compiler_options=options)

    def from_the_host(carry: Any, start: int, stop: int, grid: Any, run: _Run) -> Any:
        if start == stop:
            jax.block_until_ready(step(start, carry, grid, run))  # only to compile
        for k in range(start, stop):
            carry = step(k, carry, grid, run)
        return carry

    return from_the_host


def _run_step(k: Any, carry: Any, grid: Any, run: _Run) -> Any:
    state, tables = carry
    state, row = run.step(state, k, _rows(grid, k))
    return state, jax.tree.map(lambda table, value: table.at[:, k].set(value), tables, row)


def _run_chunk(carry: Any, start: Any, stop: Any, grid: Any, run: _Run) -> Any:
    """Make steps start to stop - 1. The bounds are data, so one program serves chunks of any length."""
    return jax.lax.fori_loop(start, stop, lambda k, carry: _run_step(k, carry, grid, run), carry)


@jax.jit
def _finish_batch(solver: Solver, prior: Prior, carry: Any) -> Solution:
    return jax.vmap(functools.partial(_finish, solver, prior))(*carry)


def solve(
    solver: Solver,
    prior: Prior,
    operator: Operator,
    y: Measurements,
    sigma_y: Scalar | Float[Array, " N"],
    keys: Key[Array, " N"],
    *,
    operator_axis: int | None = None,
    x_init: Float[Array, "N ..."] | None = None,
    noise: Float[Array, "N K draws ..."] | None = None,
    likelihood: Likelihood | None = None,
    observed: Bool[Array, "..."] | None = None,
    num_chunks: int = 20,
    on_chunk: Callable[[Progress], bool | None] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Solution:
    """Restore a batch of images: compiled once, vectorised over images, driven from the host in chunks of steps.

    Every image is restored as `solve_one` would: its result does not depend on its neighbours in the batch or on
    its place. Changes of hyper-parameters, noise levels, keys, masks and kernels compile nothing new; changes of
    shapes, step counts and flags do. On a CPU every step takes a few images at a time, which is faster.

    Args:
        solver: the method with its hyper-parameters.
        prior: the distribution of clean images; says the image shape.
        operator: one operator for all images, or a stack of them (`operator_axis=0`).
        y: measurements.
        sigma_y: one noise level for all images or one each, in units of y; at least 0.
        keys: one key per image, best from `image_keys`.
        operator_axis: 0 if every array in `operator` has a leading axis of N (built by
            `jax.tree.map(lambda *a: jnp.stack(a), *operators)` or a vmapped factory), None if it is shared.
        x_init: starting points, see `solve_one`.
        noise: draws to replay, see `solve_one`.
        likelihood: the noise model of all images, such as `Poisson(photons)`; None is Gaussian.
        observed: what the operator does not know of which entries of y were observed, see `Problem`: booleans that
            broadcast to y, the axis of N included.
        num_chunks: how often the host regains control; the results do not depend on it.
        on_chunk: called with a `Progress` once the program is compiled and after every chunk. Return True to stop;
            the solution is then the estimate so far, and the rows of info that were not reached are NaN.
        mesh: spread the images over the first axis of this mesh, of any axis type; N must be a multiple of its size.
            `jax.make_mesh((jax.device_count(),), ("images",))` takes all devices. Where y lies on a mesh already, or
            one is set, the solution lies on this mesh as it is; else its axes are automatic, and arrays that were
            never spread can be computed with it.

    Raises:
        ValueError: shapes, counts or noise levels disagree with the above, the operator lacks what the solver
            needs, or the solver assumes another noise model.
        TypeError: a part is no such thing or no pytree, the call stands inside jit, vmap or grad, or keys are not typed
            threefry keys, one per image.
    """
    noise_model = Gaussian() if likelihood is None else likelihood
    parts = {"solver": solver, "prior": prior, "operator": operator, "likelihood": noise_model}
    given = {"y": y, "sigma_y": sigma_y, "keys": keys, "observed": observed, "x_init": x_init, "noise": noise}
    y, sigma_y, observed, shape = check_batch(parts, given, operator_axis)
    check_sigma(sigma_y)
    # As every image has it, but for the arrays.
    seen = _seen(prior, operator if observed is None else masked(operator, observed))
    check_operator(solver, seen)
    solver, operator, x_init, noise = to_type((solver, operator, x_init, noise), float_type(y))
    noise_model = to_type(noise_model, float_type(y))
    check_likelihood(solver, noise_model)
    num_images, sigma_axis = keys.shape[0], _axis(sigma_y.ndim or None)
    backend = jax.default_backend()
    # XLA for CPUs brings convolutions into their fast form only outside of loops. The layers of the network are in it
    # anyway, but not those of its gradient: in a loop they take 3.5 times as long.
    looped = backend != "cpu" or not solver.cost(seen).network_gradients
    block = block_size(num_images, shape) if mesh is None and looped else None
    arrays = (y, observed, sigma_y, keys, noise)
    run = _Run(solver, prior, operator, *arrays, noise_model, operator_axis, sigma_axis, block)
    automatic = None if mesh is None else devices.automatic(mesh)
    if automatic is not None:
        run, x_init = _spread(run, x_init, automatic)
    compute = functools.partial(devices.compute, automatic)
    grid, carry = compute(_start, run, x_init)
    carry = devices.settle(carry, run, automatic)
    num_steps = jax.tree.leaves(grid)[0].shape[0]
    check_tape(noise, num_steps, 1)

    def finish(carry: Any) -> Solution:
        return compute(_finish_batch, run.solver, run.prior, carry)

    def preview() -> np.ndarray:
        return np.asarray(finish(carry).x)

    def report(step: int) -> bool:
        if on_chunk is None:
            return False
        misfit = np.asarray(carry[1].misfit[:, max(step - 1, 0)])
        return bool(on_chunk(Progress(step, num_steps, misfit, preview)))

    run_chunk = functools.partial(compute, _chunk_program(backend, looped))
    carry = run_chunk(carry, 0, 0, grid, run)  # no step: compiles, so that the first report can say so
    jax.block_until_ready(carry)
    stopped, done = report(0), 0
    bounds = np.linspace(0, num_steps, max(1, min(num_chunks, num_steps)) + 1).astype(int)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if stopped:
            break
        carry = run_chunk(carry, start, stop, grid, run)
        stopped, done = report(stop), stop
    solution = dataclasses.replace(finish(carry), cost=solver.cost(seen) * done)
    is_theirs = isinstance(y.sharding, jax.sharding.NamedSharding) or not jax.sharding.get_abstract_mesh().empty
    return solution if mesh is None or not is_theirs else jax.device_put(solution, devices.split(mesh))


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


def _spread(run: _Run, x_init: Any, mesh: jax.sharding.Mesh) -> tuple[_Run, Any]:
    """Put the arrays with an axis of images on the mesh's first axis, and a copy of all others on every device."""
    axis = mesh.axis_names[0]
    if run.keys.shape[0] % mesh.shape[axis]:
        raise ValueError(
            f"{run.keys.shape[0]} images cannot be spread evenly over {mesh.shape[axis]} devices; pad the batch to a "
            "multiple and drop the padding afterwards"
        )
    split = devices.split(mesh)
    copied = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    put = jax.device_put
    return dataclasses.replace(
        run,
        solver=put(run.solver, copied),
        prior=put(run.prior, copied),
        operator=put(run.operator, copied if run.operator_axis is None else split),
        y=put(run.y, split),
        observed=None if run.observed is None else put(run.observed, split),
        sigma_y=put(run.sigma_y, copied if run.sigma_axis is None else split),
        keys=put(run.keys, split),
        tape=None if run.tape is None else put(run.tape, split),
    ), None if x_init is None else put(x_init, split)
