"""What a network in training has to restore, always the same: images held out, measured by two operators."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ddiff_jax import operators
from ddiff_jax.drawing import Row, picture
from ddiff_jax.metrics import METRICS
from ddiff_jax.noise import Stream, image_keys, root_key, stream_key
from ddiff_jax.operators import Operator
from ddiff_jax.problem import Problem, simulate
from ddiff_jax.types import ImageShape, PRNGKey

Images = Float[np.ndarray, "N H W C"]

METRIC = METRICS["psnr_standard"]
SIGMA_Y = 0.05  # noise of the measurements, that of all presets
FACTORS = (4, 2)  # of super-resolution: the first that divides both sides
HIDDEN = 0.7  # share of the pixels that random inpainting hides, as its presets say
STREAMS = (Stream.MEASUREMENT, Stream.OPERATOR)


@dataclasses.dataclass(frozen=True)
class Trial:
    """Measurements of some images, to be restored again and again.

    Args:
        task: its name.
        problem: the batch.
        truth: the images.
        keys: their keys.
    """

    task: str
    problem: Problem
    truth: Images
    keys: Key[Array, " N"]


def make_trials(truth: Images, seed: int) -> list[Trial]:
    """Measure images with every task.

    Args:
        truth: at least one.
        seed: draws boxes, masks and noise; every image has its own.
    """
    keys = image_keys(root_key(seed), jnp.arange(len(truth)))
    y_keys, operator_keys = (jax.vmap(lambda key, s=s: stream_key(key, s))(keys) for s in STREAMS)
    trials = []
    for task, (operator, axis) in _tasks(truth.shape[1:], operator_keys).items():
        measured = jax.jit(jax.vmap(lambda operator, x, key: simulate(operator, x, SIGMA_Y, key), (axis, 0, 0)))
        y = measured(operator, truth, y_keys)
        trials.append(Trial(task, Problem(operator, y, SIGMA_Y, operator_axis=axis), truth, keys))
    return trials


def _tasks(shape: ImageShape, keys: Key[Array, " N"]) -> dict[str, tuple[Operator, int | None]]:
    """Choose the tasks for images of a shape: super-resolution and box inpainting.

    Where no factor divides both sides, random inpainting takes the place of super-resolution. Boxes have half of the
    shorter side, as in the presets.
    """
    side = min(shape[:2])
    factors = [factor for factor in FACTORS if not (shape[0] % factor or shape[1] % factor)]

    def hide_box(key: PRNGKey) -> Operator:
        return operators.box_inpainting(shape, key, size=max(1, side // 2), margin=side // 16)

    def hide_at_random(key: PRNGKey) -> Operator:
        return operators.random_inpainting(shape, key, fraction=HIDDEN)

    first: dict[str, tuple[Operator, int | None]]
    if factors:
        first = {"super_resolution": (operators.super_resolution(shape, factor=factors[0]), None)}
    else:
        first = {"random_inpainting": (jax.jit(jax.vmap(hide_at_random))(keys), 0)}
    return {**first, "box_inpainting": (jax.jit(jax.vmap(hide_box))(keys), 0)}


def title(task: str, psnr: Float[np.ndarray, " N"]) -> str:
    """Name a task and what it came to."""
    return f"{task.replace('_', ' ')}: {METRIC.say(float(np.mean(psnr)))}"


def rows(trial: Trial, x: Images, psnr: Float[np.ndarray, " N"]) -> list[Row]:
    """Show truth, measurement and restoration of every image below each other."""
    captions = [
        f"{METRIC.number(value)} {METRIC.unit}" if np.isfinite(value) else "diverged" for value in psnr.tolist()
    ]
    shown = {"truth": trial.truth, "measurement": np.asarray(trial.problem.y), "restored": x}
    levels_of = {label: [picture(image) for image in images] for label, images in shown.items()}
    return [Row(label, levels, captions if label == "restored" else ()) for label, levels in levels_of.items()]
