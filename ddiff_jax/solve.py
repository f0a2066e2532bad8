"""Run a solver: on one image as a pure function, or on many, compiled and driven from the host in chunks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from ddiff_jax import devices
from ddiff_jax.likelihood import Gaussian, Likelihood
from ddiff_jax.noise import KeyNoise, Noise, Stream, TapeNoise, stream_key
from ddiff_jax.operators.base import ImageShape, Operator
from ddiff_jax.prior import Prior
from ddiff_jax.problem import Problem, check_sigma
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Solver, StepInfo, check_likelihood, check_operator
from ddiff_jax.types import Image, PRNGKey, Scalar, float_type, to_type


@pytree_dataclass
class Solution:
    """What a run returns; `solve` adds a leading axis of N images to every array.

    Args:
        x: restored image, range about [-1, 1], not clipped.
        info: what every step reported, K rows.
        finite: whether the image holds neither NaN nor infinity.
        cost: what the steps that were made cost per image.
    """

    x: Float[Array, "*N H W C"]
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


def _finish(solver: Solver, state: Any, info: StepInfo) -> Solution:
    x = solver.estimate(state)
    return Solution(x, info, jnp.all(jnp.isfinite(x)))


def _resolve_shape(prior: Prior, operator: Operator, x_init: Any | None, batched: int = 0) -> ImageShape:
    """Find the image shape, and refuse a start or an operator that does not fit the prior."""
    shape = prior.image_shape
    given = {"the operator": getattr(operator, "image_shape", None)}
    if x_init is not None:
        given["x_init"] = tuple(jnp.shape(x_init))[batched:]
    for what, other in given.items():
        if other is not None and tuple(other) != shape:
            raise ValueError(
                f"{what} is for images of shape {tuple(other)}, the prior for {shape}; crop or resize the image, or, "
                "for a fully convolutional network, use dataclasses.replace(prior, image_shape=...)"
            )
    return shape


def solve_one(
    solver: Solver,
    prior: Prior,
    problem: Problem,
    key: PRNGKey,
    noise: Float[Array, "K draws H W C"] | None = None,
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
            state at the first timestep).

    Raises:
        ValueError: the shapes of prior, operator and x_init disagree, the operator lacks what the solver needs, or
            the solver assumes another noise model.
    """
    check_operator(solver, problem.operator)
    check_likelihood(solver, problem.likelihood)
    shape = _resolve_shape(prior, problem.operator, x_init)
    dtype = float_type(problem.y)
    solver, problem, noise, x_init = to_type((solver, problem, noise, x_init), dtype)
    grid = to_type(solver.grid(to_type(prior.schedule, dtype)), dtype)
    num_steps = jax.tree.leaves(grid)[0].shape[0]
    _check_tape(noise, num_steps, 0)
    solver, problem, key, noise, x_init, grid = devices.alike((solver, problem, key, noise, x_init, grid), prior)
    state = solver.init(prior, problem, shape, KeyNoise(stream_key(key, Stream.INIT), dtype), x_init)
    state = devices.alike(state, problem.y)

    def body(state: Any, row: Any) -> tuple[Any, StepInfo]:
        k, point = row
        return _advance(solver, prior, problem, state, k, point, key, noise)

    state, info = jax.lax.scan(body, state, (jnp.arange(num_steps), grid))
    return dataclasses.replace(_finish(solver, state, info), cost=solver.cost(problem.operator) * num_steps)


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
    preview: Callable[[], Float[np.ndarray, "N H W C"]]


@pytree_dataclass
class _Run:
    """Everything that stays the same over the steps of a batch; `operator_axis` and `sigma_axis` as in vmap."""

    solver: Solver
    prior: Prior
    operator: Operator
    y: Float[Array, "N ..."]
    sigma_y: Float[Array, "*N"]
    keys: Key[Array, " N"]
    tape: Float[Array, "N K draws H W C"] | None
    likelihood: Likelihood
    shape: ImageShape = static_field()
    operator_axis: int | None = static_field()
    sigma_axis: int | None = static_field()
    block: int | None = static_field()  # images that a step takes at a time; None takes all

    def init(self, x_init: Float[Array, "N H W C"] | None) -> Any:
        """Make the first state of every image."""

        def one(operator: Operator, y: Any, sigma_y: Any, key: PRNGKey, x_init: Any) -> Any:
            noise = KeyNoise(stream_key(key, Stream.INIT), float_type(y))
            return self.solver.init(
                self.prior, Problem(operator, y, sigma_y, self.likelihood), self.shape, noise, x_init
            )

        axes = (self.operator_axis, 0, self.sigma_axis, 0, _axis(x_init))
        return jax.vmap(one, axes)(self.operator, self.y, self.sigma_y, self.keys, x_init)

    def step(self, state: Any, k: Any, point: Any) -> tuple[Any, StepInfo]:
        """Make step k of every image, in blocks of images where that is faster."""
        axes = (self.operator_axis, 0, self.sigma_axis, 0, _axis(self.tape), 0)
        everything: tuple[Any, ...] = (self.operator, self.y, self.sigma_y, self.keys, self.tape, state)
        of_images = [None if axis is None else value for value, axis in zip(everything, axes, strict=True)]

        def one(of_image: list[Any]) -> Any:
            values = (v if axis is None else i for v, i, axis in zip(everything, of_image, axes, strict=True))
            operator, y, sigma_y, key, tape, state = values
            problem = Problem(operator, y, sigma_y, self.likelihood)
            return _advance(self.solver, self.prior, problem, state, k, point, key, tape)

        if self.block is None:
            return jax.vmap(one)(of_images)
        return jax.lax.map(one, of_images, batch_size=self.block)


def _axis(batch: Any | None) -> int | None:
    return None if batch is None else 0


def _rows(grid: Any, k: Any) -> Any:
    return jax.tree.map(lambda column: column[k], grid)


@jax.jit
def _start(run: _Run, x_init: Float[Array, "N H W C"] | None) -> tuple[Any, Any]:
    """Make the grid and the carry: the first states, and tables (of NaN) for what the steps will report."""
    dtype = float_type(run.y)
    grid = to_type(run.solver.grid(to_type(run.prior.schedule, dtype)), dtype)
    num_steps = jax.tree.leaves(grid)[0].shape[0]
    state = run.init(x_init)
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
    most = max(1, CPU_BLOCK // (shape[0] * shape[1]))
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
def _finish_batch(solver: Solver, carry: Any) -> Solution:
    return jax.vmap(functools.partial(_finish, solver))(*carry)


def solve(
    solver: Solver,
    prior: Prior,
    operator: Operator,
    y: Float[Array, "N ..."],
    sigma_y: Scalar | Float[Array, " N"],
    keys: Key[Array, " N"],
    *,
    operator_axis: int | None = None,
    x_init: Float[Array, "N H W C"] | None = None,
    noise: Float[Array, "N K draws H W C"] | None = None,
    likelihood: Likelihood | None = None,
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
        TypeError: keys are not typed threefry keys, one per image.
    """
    _check_keys(keys)
    check_operator(solver, operator)
    y, num_images = jnp.asarray(y), keys.shape[0]
    check_sigma(sigma_y)
    solver, operator, x_init, noise = to_type((solver, operator, x_init, noise), float_type(y))
    sigma_y = jnp.asarray(sigma_y, float_type(y))
    batches = {"y": y, "x_init": x_init, "noise": noise, "sigma_y": sigma_y if sigma_y.ndim else None}
    for name, batch in batches.items():
        if batch is not None and batch.shape[:1] != (num_images,):
            raise ValueError(
                f"{name} must have a leading axis of {num_images}, one entry per key; got shape {batch.shape}"
            )
    shape = _resolve_shape(prior, operator, x_init, batched=1)
    noise_model, sigma_axis = to_type(likelihood or Gaussian(), float_type(y)), _axis(sigma_y.ndim or None)
    check_likelihood(solver, noise_model)
    backend = jax.default_backend()
    # XLA for CPUs brings convolutions into their fast form only outside of loops. The layers of the network are in it
    # anyway, but not those of its gradient: in a loop they take 3.5 times as long.
    looped = backend != "cpu" or not solver.cost(operator).network_gradients
    block = block_size(num_images, shape) if mesh is None and looped else None
    run = _Run(solver, prior, operator, y, sigma_y, keys, noise, noise_model, shape, operator_axis, sigma_axis, block)
    automatic = None if mesh is None else devices.automatic(mesh)
    if automatic is not None:
        run, x_init = _spread(run, x_init, automatic)
    compute = functools.partial(devices.compute, automatic)
    grid, carry = compute(_start, run, x_init)
    carry = devices.settle(carry, run, automatic)
    num_steps = jax.tree.leaves(grid)[0].shape[0]
    _check_tape(noise, num_steps, 1)

    def preview() -> np.ndarray:
        return np.asarray(compute(_finish_batch, solver, carry).x)

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
    solution = dataclasses.replace(compute(_finish_batch, solver, carry), cost=solver.cost(operator) * done)
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
        sigma_y=put(run.sigma_y, copied if run.sigma_axis is None else split),
        keys=put(run.keys, split),
        tape=None if run.tape is None else put(run.tape, split),
    ), None if x_init is None else put(x_init, split)


def _check_keys(keys: Any) -> None:
    if not (isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) and keys.ndim == 1):
        raise TypeError(
            "keys must be typed JAX keys, one per image: image_keys(jax.random.key(seed), jnp.arange(N)); "
            f"got {getattr(keys, 'dtype', type(keys).__name__)} of shape {getattr(keys, 'shape', None)}"
        )
    if jax.random.key_impl(keys) != "threefry2x32":
        raise TypeError(
            f"keys must be threefry keys, so that an image's noise does not depend on its neighbours under vmap; "
            f"got {jax.random.key_impl(keys)}: use jax.random.key(seed, impl='threefry2x32')"
        )


def _check_tape(noise: Any, num_steps: int, batched: int) -> None:
    if noise is not None and noise.shape[batched] < num_steps:
        raise ValueError(
            f"noise to replay must have one entry per step, {num_steps}; got {noise.shape[batched]} in shape "
            f"{noise.shape}"
        )
