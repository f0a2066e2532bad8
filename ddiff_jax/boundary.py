"""What the solvers are handed: looked at before anything is traced, and refused with the cure where it cannot work."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ddiff_jax.priors import picture_shape
from ddiff_jax.pytree import check_pytree
from ddiff_jax.types import ImageShape, to_type

# What each part of a call must have, and how to come by one.
PARTS: dict[str, tuple[tuple[str, ...], str]] = {
    "solver": (
        ("needs", "cost", "grid", "init", "step", "estimate"),
        "take one of ddiff_jax.solvers, such as solvers.DDiff(), or ddiff_jax.preset(dataset, task, name)",
    ),
    "prior": (
        ("schedule", "image_shape", "denoise"),
        'take ddiff_jax.load_prior("faces64"), or make one of a function of your own: from_denoiser(function, ...)',
    ),
    "operator": (
        ("forward",),
        "take one of ddiff_jax.operators, give your class a method forward(x), or wrap a function of one image: "
        "operators.from_function(function, shape)",
    ),
    "likelihood": (("data_term", "precision"), "take Gaussian() or Poisson(photons=...)"),
    "problem": (("operator", "y", "sigma_y", "likelihood"), "take Problem(operator, y, sigma_y)"),
}


def check_part(what: str, part: Any) -> None:
    """Refuse what is no solver, prior, operator, likelihood or problem at all: a name, a class, a plain function.

    Raises:
        TypeError: it lacks what `PARTS` lists.
    """
    methods, cure = PARTS[what]
    if isinstance(part, type):
        raise TypeError(f"the {what} must be an object; got the class {part.__name__} itself: call it, and pass that")
    missing = [name for name in methods if not hasattr(part, name)]
    if missing:
        named = isinstance(part, str)
        function = callable(part) and hasattr(part, "__name__")
        given = f"the name {part!r}" if named else "a function" if function else f"a {type(part).__name__}"
        raise TypeError(f"the {what} must be an object with {', '.join(methods)}; got {given}: {cure}")


def measured(operator: Any, shape: ImageShape) -> jax.ShapeDtypeStruct:
    """Find out the shape and the type of what an operator measures of one image.

    Raises:
        ValueError: the operator fails on images of this shape.
        TypeError: it does not return one array.
    """
    name, x = type(operator).__name__, jax.ShapeDtypeStruct(shape, jnp.float32)
    operator = to_type(operator, jnp.float32)  # shapes do not depend on it
    try:
        made = jax.eval_shape(lambda x: operator.forward(x), x)
    except Exception as error:  # whatever a stranger's code raises, the reader must learn where it was called
        raise ValueError(
            f"{name}.forward fails on an image of shape {shape}, that of the prior: {type(error).__name__}: "
            f"{str(error).strip().partition(chr(10))[0]}; ddiff_jax.check_operator(operator, {shape}) looks closer "
            "(a stack of operators, one per image, is Problem(operators, y, sigma_y, operator_axis=0))"
        ) from error
    if not isinstance(made, jax.ShapeDtypeStruct):
        raise TypeError(f"{name}.forward must return one array; it returns {type(made).__name__}")
    return made


def check_measurement(operator: Any, y: Any, shape: ImageShape, batch: tuple[int, ...] | None = None) -> None:
    """Refuse a measurement of one image (an array, or its shape and type) that the operator cannot have made.

    Broadcasting would fit it to A(x) in silence.

    Args:
        operator: of one image.
        y: of one image.
        shape: of the image.
        batch: shape of all measurements, if it is one of a batch.

    Raises:
        ValueError: shape, or real instead of complex, or the other way round.
    """
    made, name = measured(operator, shape), type(operator).__name__
    if batch is None and len(y.shape) > 0 and y.shape[1:] == made.shape:
        raise ValueError(
            f"y has shape {y.shape}, {name} measures {made.shape} of one image: a batch is restored by `solve`, or by "
            "jax.vmap of solve_one"
        )
    if batch == made.shape:
        raise ValueError(
            f"y has shape {batch}, that of one measurement by {name}: for one image use solve_one, or y[None] and one "
            "key; of a stack of operators, one per image, say operator_axis=0 to `Problem`"
        )
    if y.shape != made.shape:
        raise ValueError(
            f"y has shape {y.shape} per image, {name} measures {made.shape} of an image of shape {shape}: look at the "
            "order of its axes (channels last) and at the operator's parameters, and say operator_axis=0 to `Problem` "
            "if this is a stack of operators, one per image"
        )
    if jnp.issubdtype(y.dtype, jnp.complexfloating) != jnp.issubdtype(made.dtype, jnp.complexfloating):
        raise ValueError(
            f"y is {y.dtype}, {name} measures {made.dtype}: real and complex numbers do not compare; give the real "
            "part of y, or keep the phase, whichever was measured"
        )


def check_image_shape(prior: Any, operator: Any, x_init: Any | None, batched: int = 0) -> ImageShape:
    """Find the image shape, and refuse a start or an operator that does not fit the prior.

    Raises:
        ValueError: the shapes differ.
        TypeError: the start does not hold real floats.
    """
    shape, measured = tuple(prior.image_shape), getattr(operator, "image_shape", None)
    fits = {} if measured is None else {"the operator": (tuple(measured), picture_shape(prior))}
    if x_init is not None:
        fits["x_init"] = (tuple(jnp.shape(x_init))[batched:], shape)
        if not jnp.issubdtype(jnp.result_type(x_init), jnp.floating):
            raise TypeError(f"x_init must hold real floats in the units of the image; got {jnp.result_type(x_init)}")
    for what, (given, wanted) in fits.items():
        if given != wanted:
            raise ValueError(
                f"{what} is for images of shape {given}, the prior for {wanted}; crop or resize the image, or, "
                "for a fully convolutional network, use dataclasses.replace(prior, image_shape=...)"
            )
    return shape


def check_one(solver: Any, prior: Any, problem: Any, key: Any, x_init: Any | None) -> ImageShape:
    """Check what `solve_one` is given, and return the image shape.

    Raises:
        TypeError: a part is no such thing, or the key is not one typed key.
        ValueError: y, sigma_y, x_init or the operator do not fit the prior's images.
    """
    for what, part in {"solver": solver, "prior": prior, "problem": problem}.items():
        check_part(what, part)
    if not _is_key(key) or key.ndim:
        raise TypeError(f"key must be one typed JAX key, such as jax.random.key(seed); got {_shown(key)}")
    shape = check_image_shape(prior, problem.operator, x_init)
    if jnp.ndim(problem.sigma_y) not in (0, jnp.ndim(problem.y)) or problem.operator_axis is not None:
        given = "a stack of operators" if problem.operator_axis == 0 else f"sigma_y of shape {problem.sigma_y.shape}"
        raise ValueError(
            f"solve_one takes the problem of one image; this one has {given}: a batch is restored by `solve`, or by "
            "jax.vmap of solve_one"
        )
    check_measurement(problem.operator, problem.y, picture_shape(prior))
    return shape


def check_batch(
    solver: Any, prior: Any, problem: Any, keys: Any, *, x_init: Any | None = None, noise: Any | None = None
) -> ImageShape:
    """Check what `solve` is given, and return the image shape.

    Raises:
        TypeError: a part is no such thing or cannot be handed to a compiled program, or something is traced already.
        ValueError: shapes and counts do not agree.
    """
    for what, part in {"solver": solver, "prior": prior, "problem": problem}.items():
        check_part(what, part)
    parts = {"solver": solver, "prior": prior, "operator": problem.operator, "likelihood": problem.likelihood}
    for what, part in parts.items():
        check_part(what, part)
        check_pytree(what, part)
    _check_not_traced((solver, prior, problem, keys, x_init, noise))
    _check_keys(keys)
    y, sigma_y, num_images = problem.y, problem.sigma_y, keys.shape[0]
    if jnp.ndim(sigma_y) not in (0, 1, jnp.ndim(y)):
        raise ValueError(
            f"sigma_y must be one number, one per image, or one per entry of y, whose shape is {jnp.shape(y)}; got "
            f"shape {sigma_y.shape}"
        )
    tapes = noise if isinstance(noise, tuple) else (noise,)
    batches = [("y", y), ("x_init", x_init), *(("noise", tape) for tape in tapes)]
    for name, batch in [*batches, ("sigma_y", sigma_y if jnp.ndim(sigma_y) else None)]:
        if batch is not None and batch.shape[:1] != (num_images,):
            raise ValueError(
                f"{name} must have a leading axis of {num_images}, one entry per key; got shape {batch.shape}"
                + (" (for the problem of one image there is solve_one)" if name == "y" else "")
            )
    shape = check_image_shape(prior, problem.operator, x_init, batched=1)
    rows, build = problem.split()
    rows = [jax.ShapeDtypeStruct(row.shape[1:], row.dtype) for row in rows]

    def first(rows: Any) -> None:
        image = build(rows)
        check_measurement(image.operator, image.y, picture_shape(prior), y.shape)

    jax.eval_shape(first, rows)
    if problem.observed is not None:
        blind = np.flatnonzero(~np.asarray(problem.observed).any(axis=tuple(range(1, y.ndim))))
        if blind.size:
            raise ValueError(f"observed hides everything of images {blind.tolist()}; true means observed")
    return shape


def check_tape(noise: Any, num_steps: int, batched: int) -> None:
    """Refuse a tape of noise that is too short.

    Raises:
        ValueError: it is.
    """
    for tape in jax.tree.leaves(noise):
        if tape.shape[batched] < num_steps:
            raise ValueError(
                f"noise to replay must have one entry per step, {num_steps}; got {tape.shape[batched]} in shape "
                f"{tape.shape}"
            )


def check_floats(y: jax.Array) -> None:
    """Refuse a measurement of integers: grey levels are no numbers in the units of A(x).

    Raises:
        TypeError: it holds them.
    """
    if not jnp.issubdtype(y.dtype, jnp.inexact):
        raise TypeError(
            f"y must hold floats in the units of A(x); got {y.dtype}: an 8-bit picture of an image in [-1, 1] is "
            "level / 127.5 - 1"
        )


def check_stack(operator: Any, operator_axis: Any, shape: tuple[int, ...]) -> bool:
    """Tell whether an operator is a stack, one per measurement, and refuse a stack of another length.

    One without arrays is the same however often it is stacked.

    Args:
        operator: one, or a stack.
        operator_axis: as in `Problem`.
        shape: of all measurements.

    Raises:
        ValueError: some array in it is not that long.
    """
    if operator_axis is None:
        return False
    if operator_axis != 0:
        raise ValueError(f"operator_axis must be None (one operator for all) or 0 (a stack); got {operator_axis!r}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(operator):
        if not shape or jnp.shape(leaf)[:1] != shape[:1]:
            raise ValueError(
                f"operator_axis=0 means a stack of operators, one per measurement of y, whose shape is {shape}, but "
                f"the operator's {jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}: leave operator_axis out if "
                "all images share the operator, else stack: jax.tree.map(lambda *leaves: jnp.stack(leaves), *operators)"
            )
    return bool(jax.tree.leaves(operator))


def _check_not_traced(values: Any) -> None:
    # Inside jit, scan and their like an operation on constants is traced as well.
    probe = jax.lax.add(np.float32(0), np.float32(0))
    if any(isinstance(leaf, Tracer) for leaf in (probe, *jax.tree.leaves(values))):
        raise TypeError(
            "solve, solve_restarts and solve_samples drive compiled programs from the host and cannot run inside jit, "
            "vmap, grad or scan; use solve_one there, with jax.vmap for a batch: "
            "jax.vmap(lambda y, key: solve_one(solver, prior, Problem(operator, y, sigma_y), key).x)(y, keys)"
        )


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _shown(value: Any) -> str:
    return f"{getattr(value, 'dtype', type(value).__name__)} of shape {getattr(value, 'shape', None)}"


def _check_keys(keys: Any) -> None:
    if not _is_key(keys) or keys.ndim != 1:
        raise TypeError(
            "keys must be typed JAX keys, one per image: image_keys(jax.random.key(seed), jnp.arange(N)); "
            f"got {_shown(keys)}"
        )
    if jax.random.key_impl(keys) != "threefry2x32":
        raise TypeError(
            f"keys must be threefry keys, so that an image's noise does not depend on its neighbours under vmap; "
            f"got {jax.random.key_impl(keys)}: use jax.random.key(seed, impl='threefry2x32')"
        )
