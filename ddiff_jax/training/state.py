"""One update of the weights, compiled once: images in, new state out, on any number of devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from ddiff_jax._execution import compiler_options
from ddiff_jax.levels import Level
from ddiff_jax.noise import root_key
from ddiff_jax.priors import DiffusionPrior
from ddiff_jax.priors.linear import LinearDenoiser
from ddiff_jax.priors.network import PREDICTIONS, TARGETS, linear_output
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.training.averages import retained, take_in
from ddiff_jax.training.objective import draw_levels, input_scale, variance_loss
from ddiff_jax.training.recipe import Recipe
from ddiff_jax.types import Params, PRNGKey

INIT, UPDATE = 0, 1  # streams of the recipe's seed
AXIS = "images"
GROUPS = 4  # of noise levels, whose losses are told apart


@pytree_dataclass
class TrainState:
    """All that a run needs to go on.

    Args:
        step: updates done.
        params: weights.
        optimiser: state of the optimiser.
        averages: one for each of the recipe's widths.
        sums: of the losses since they were last reported, see `Totals`.
        linear: denoiser that the network's output is added to; None where the recipe's `linear_rank` is 0.
    """

    step: Int[Array, ""]
    params: Params
    optimiser: Any
    averages: tuple[Params, ...]
    sums: dict[str, Float[Array, "..."]]
    linear: LinearDenoiser | None = None


def build_network(recipe: Recipe, **changes: Any) -> Any:
    """Build the recipe's network; imports Flax.

    Raises:
        ValueError: the architecture is none, or does not take such images or noise levels.
    """
    from ddiff_jax.models.unet import UNet

    try:
        architecture = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe.architecture.items()}
        module = UNet(**{**architecture, "dtype": recipe.dtype, "for_training": True, **changes})
    except TypeError as error:
        raise ValueError(f"the architecture does not describe a UNet: {error}") from error
    module.check((1, *recipe.image_shape), labelled=False)
    channels = recipe.image_shape[-1]
    if module.out_channels not in (channels, 2 * channels):
        raise ValueError(
            f"out_channels must be {channels}, or {2 * channels} with the variance; got {module.out_channels}"
        )
    if module.out_channels == 2 * channels:
        steps = draw_levels(recipe.levels, root_key(0), 1)[1]
        if steps is None:
            raise ValueError("a learned variance needs a schedule of timesteps, such as linear or cosine")
    return module


def learning_rate(recipe: Recipe, step: int) -> float:
    """Compute the rate of update number `step`, counted from 0."""
    rise = min((step + 1) / max(recipe.warmup_steps, 1), 1.0)
    fall = min((recipe.steps - step) / max(recipe.decay_steps, 1), 1.0) if recipe.decay_steps else 1.0
    return recipe.learning_rate * rise * fall


def build_optimiser(recipe: Recipe) -> Any:
    """Build AdamW after clipping, for a rate of 1; imports optax.

    The rate is given to every update, so that runs of any length share one program.
    """
    import optax

    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        optax.adamw(1.0, b1=0.9, b2=recipe.beta2, weight_decay=recipe.weight_decay),
    )


@functools.partial(jax.jit, static_argnames="module")
def _drawn(module: Any, key: PRNGKey) -> Params:
    inputs = [jnp.zeros(like.shape, like.dtype) for like in module.example_inputs()]
    return module.init(key, *inputs)["params"]


def new_state(recipe: Recipe, params: Params | None = None, linear: LinearDenoiser | None = None) -> TrainState:
    """Make the state before the first update.

    Args:
        recipe: how to train.
        params: weights to begin with; None draws them from the recipe's seed.
        linear: denoiser that the output is added to, of the rank that the recipe says; None if that is 0.

    Raises:
        ValueError: the weights are those of another architecture, or the denoiser has another rank or shape.
    """
    rank = recipe.linear_rank
    shape = None if linear is None else linear.directions.shape
    if shape != ((rank, *recipe.image_shape) if rank else None):
        raise ValueError(
            f"the recipe wants a linear denoiser with {rank} directions for images {recipe.image_shape}; got "
            + ("none" if shape is None else f"directions of shape {shape}")
        )
    module = build_network(recipe)
    wanted = jax.eval_shape(module.init, root_key(0), *module.example_inputs())["params"]
    if params is None:
        params = _drawn(module, jax.random.fold_in(root_key(recipe.seed), INIT))
        # What ends a residual block begins at zero, and so does the output: the network begins as nothing, and learns
        # from the first update on at every depth.
        params = jax.tree_util.tree_map_with_path(_silenced, params)
    elif jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, wanted):
        raise ValueError("the weights to begin with are those of another architecture than the recipe's")
    # Copies: every buffer is given away at the next update, and these may be the caller's.
    params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
    sums = {
        "loss": jnp.zeros(GROUPS),
        "count": jnp.zeros(GROUPS),
        "variance": jnp.zeros(()),
        "norm": jnp.zeros(()),
        "updates": jnp.zeros(()),
        "skipped": jnp.zeros(()),
    }
    averages = tuple(jax.tree.map(jnp.copy, params) for _ in recipe.averages)
    linear = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), linear)
    return TrainState(jnp.zeros((), jnp.int32), params, build_optimiser(recipe).init(params), averages, sums, linear)


SILENCED = ("conv_2", "out", "conv_out")


def _silenced(path: Any, leaf: Array) -> Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return jnp.zeros_like(leaf) if name.split("/")[-2] in SILENCED and name.endswith("kernel") else leaf


def to_images(batch: Shaped[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """Turn 8-bit levels into images in [-1, 1]; floats are images already."""
    return batch.astype(jnp.float32) / 127.5 - 1 if batch.dtype == jnp.uint8 else batch.astype(jnp.float32)


def make_update(
    recipe: Recipe, mesh: Mesh | None = None, block: int | None = None
) -> Callable[[TrainState, Shaped[Array, "N H W C"], float], TrainState]:
    """Compile nothing yet, but make the function that does: one update of the state by one batch, at a learning rate.

    Args:
        recipe: how to train.
        mesh: devices that share the images of a batch, along the axis "images".
        block: images per device that are computed together; the others of the batch follow, and gradients add up.
            None computes all together. It changes results by rounding only.

    Raises:
        ValueError: the batch cannot be divided so.
    """
    devices = 1 if mesh is None else mesh.size
    together = recipe.batch_size if block is None else block * devices
    if recipe.batch_size % together or recipe.batch_size % devices:
        raise ValueError(
            f"the batch of {recipe.batch_size} images must be a multiple of {together}, which {devices} devices compute"
            " together"
        )
    module, schedule = build_network(recipe), recipe.levels
    optimiser, root = build_optimiser(recipe), root_key(recipe.seed)
    num_blocks = recipe.batch_size // together

    def losses(
        params: Params, linear: LinearDenoiser | None, x_0: Array, n: Array, level: Level, steps: Any
    ) -> tuple[Array, tuple[Array, Array]]:
        per_pixel = functools.partial(jax.tree.map, lambda c: c.reshape(-1, *(1,) * (x_0.ndim - 1)))
        wide, s = per_pixel(level), recipe.sigma_data
        x_t = wide.signal * x_0 + wide.sigma * n
        seen = input_scale(recipe.prediction, wide, s) * x_t
        out = module.apply({"params": params}, seen, level.time)
        channels = x_0.shape[-1]
        F = out[..., :channels]
        if linear is not None:
            F = F + jax.vmap(lambda x, level: linear_output(linear, recipe.prediction, x, level, s))(x_t, level)
        loss = jnp.square(F - TARGETS[recipe.prediction](x_0, n, wide, s)).mean(tuple(range(1, x_0.ndim)))
        variance = jnp.zeros_like(loss)
        if out.shape[-1] == 2 * channels:
            estimate = PREDICTIONS[recipe.prediction](F, x_t, wide, s)[0]
            variance = variance_loss(x_0, estimate, out[..., channels:], per_pixel(steps))
        return (loss + variance).sum() / recipe.batch_size, (loss, variance)

    def update(state: TrainState, batch: Array, rate: Array) -> TrainState:
        key = jax.random.fold_in(jax.random.fold_in(root, UPDATE), state.step)
        x_0, n, level, steps = _draw(key, recipe, schedule, to_images(batch))

        def blocks(leaf: Array) -> Array:
            # Every device keeps its own images: block i holds the i-th part of each device's.
            parts = leaf.reshape(devices, num_blocks, together // devices, *leaf.shape[1:])
            joined = jnp.swapaxes(parts, 0, 1).reshape(num_blocks, together, *leaf.shape[1:])
            return (
                joined
                if mesh is None
                else jax.lax.with_sharding_constraint(joined, NamedSharding(mesh, PartitionSpec(None, AXIS)))
            )

        def one(total: Params, block: Any) -> tuple[Params, Any]:
            (_, told), gradient = jax.value_and_grad(losses, has_aux=True)(state.params, state.linear, *block)
            return jax.tree.map(jnp.add, total, gradient), told

        if num_blocks == 1:
            drawn = (x_0, n, level, steps)
            (_, told), gradient = jax.value_and_grad(losses, has_aux=True)(state.params, state.linear, *drawn)
        else:
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            # XLA for CPUs runs the convolutions inside a loop on one thread and ten times slower: no loop there.
            unroll = num_blocks if jax.default_backend() == "cpu" else 1
            gradient, told = jax.lax.scan(one, zeros, jax.tree.map(blocks, (x_0, n, level, steps)), unroll=unroll)
        loss, variance = (t.reshape(-1) for t in told)
        u = blocks(level.ratio).reshape(-1) if num_blocks > 1 else level.ratio
        return _applied(state, gradient, recipe, optimiser, rate, loss, variance, u)

    kwargs = {}
    if mesh is not None:
        whole, shared = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
        kwargs = {"in_shardings": (whole, shared, whole), "out_shardings": whole}
    compiled = jax.jit(update, donate_argnums=0, compiler_options=compiler_options(jax.default_backend()), **kwargs)
    return lambda state, batch, rate: compiled(state, batch, np.float32(rate))


def _draw(key: PRNGKey, recipe: Recipe, schedule: Any, x_0: Array) -> tuple[Array, Array, Level, Any]:
    """Draw everything random of an update: mirroring, noise and noise levels."""
    mirror, noise, levels = (jax.random.fold_in(key, i) for i in range(3))
    if recipe.flip:
        mirrored = jax.random.bernoulli(mirror, 0.5, (x_0.shape[0],)).reshape(-1, *(1,) * (x_0.ndim - 1))
        x_0 = jnp.where(mirrored, x_0[:, :, ::-1], x_0)
    n = jax.random.normal(noise, x_0.shape, jnp.float32)
    return x_0, n, *draw_levels(schedule, levels, x_0.shape[0])


BOUNDS = (0.1, 1.0, 10.0)  # noise-to-signal ratios between the groups of levels


def _applied(
    state: TrainState,
    gradient: Params,
    recipe: Recipe,
    optimiser: Any,
    rate: Array,
    loss: Array,
    variance: Array,
    ratio: Array,
) -> TrainState:
    """Take in a gradient, unless it is not finite: one such update is left out and counted."""
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    finite = jnp.isfinite(norm) & jnp.all(jnp.isfinite(loss))
    with jax.numpy_dtype_promotion("standard"):  # its counts are integers
        updates, moved = optimiser.update(gradient, state.optimiser, state.params)
    params = jax.tree.map(lambda leaf, move: leaf + rate * move, state.params, updates)
    step = state.step + 1
    averages = tuple(
        take_in(average, params, retained(step.astype(jnp.float32), width))
        for average, width in zip(state.averages, recipe.averages, strict=True)
    )
    new = (params, moved, averages)
    old = (state.params, state.optimiser, state.averages)
    params, moved, averages = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    group = jnp.searchsorted(jnp.asarray(BOUNDS), ratio)
    places = jax.nn.one_hot(group, GROUPS) * finite.astype(jnp.float32)
    told = {
        "loss": jnp.where(finite, loss, 0) @ places,
        "count": places.sum(0),
        "variance": jnp.where(finite, variance.mean(), 0),
        "norm": jnp.where(finite, norm, 0),
        "updates": finite.astype(jnp.float32),
        "skipped": (~finite).astype(jnp.float32),
    }
    return TrainState(step, params, moved, averages, jax.tree.map(jnp.add, state.sums, told), state.linear)


def as_prior(recipe: Recipe, params: Params, linear: LinearDenoiser | None = None) -> DiffusionPrior:
    """Make the prior of some weights, computing in float32."""
    module = build_network(recipe, dtype="float32", for_training=False)
    return DiffusionPrior(
        params, recipe.levels, module, recipe.image_shape,
        linear=linear, prediction=recipe.prediction, sigma_data=recipe.sigma_data,
    )  # fmt: skip
