"""Tell from numbers what shapes leave open: a network denoises best with the settings that it was trained with.

Wrong heads, order of attention, schedule or scale of timesteps give a network that works and is worse. So every setting
that was assumed is tried against the others on pictures with known noise, and the one with the least error is taken.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ddiff_jax.priors import DiffusionPrior
from ddiff_jax.restoration.folders import Lines, find_clean, read_clean_files
from ddiff_jax.schedule import PUBLISHED

RATIOS = tuple(float(ratio) for ratio in PUBLISHED.at_time(np.array([50, 150, 300, 500, 700])).ratio)
"""Noise to signal of the levels, those of published timesteps: further up all settings are alike."""
CLEAR = 1.15  # times that an error must be the best one's to be called worse
USELESS = 1.0  # mean squared error of a network that finds no noise at all
SIDE = 64  # of what is looked at, or the next size that the network takes
PHOTOGRAPH = 64  # side of the packaged picture
MOST_IMAGES = 8

Flags = Mapping[str, Any]
Axis = tuple[str, Sequence[Flags]]
"""What a family leaves open, in words, and the flags of the other choices."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a probe found.

    Args:
        flags: settings that won against the assumed ones.
        errors: mean squared error of the noise at `RATIOS` with these, in units of the noise.
        notes: what to tell.
    """

    flags: dict[str, Any]
    errors: Float[np.ndarray, " K"]
    notes: list[str]


def read_images(inputs: Sequence[str | Path], shape: Sequence[int], multiple: int) -> Float[np.ndarray, "N H W C"]:
    """Read pictures to probe a network with.

    Args:
        inputs: files, folders or globs; empty takes the packaged photograph.
        shape: (H, W, C) of the images that the network was trained on.
        multiple: of the sides that it takes.

    Returns:
        Centres of the pictures, in [-1, 1].

    Raises:
        ValueError: none can be read.
    """
    sides = [min(size, -(-SIDE // multiple) * multiple) for size in shape[:2]]
    whole = [min(size, max(side, PHOTOGRAPH)) for size, side in zip(shape, sides, strict=False)]
    paths = [Path(str(resources.files("ddiff_jax"))) / "assets" / "sample.png"]
    if inputs:
        paths = find_clean([str(path) for path in inputs], Lines())[:MOST_IMAGES]
    wanted = shape if inputs else (*whole, shape[2])
    starts = [(size - side) // 2 for size, side in zip(wanted, sides, strict=False)]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return np.stack([clean.x[rows, columns] for clean in read_clean_files(paths, wanted, Lines())])


def measure(prior: DiffusionPrior, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, " K"]:
    """Measure how well a prior finds the noise in pictures: mean squared errors at `RATIOS`, in units of the noise."""
    noise = np.random.default_rng(0).standard_normal((len(RATIOS), *images.shape)).astype(np.float32)
    errors = []
    for ratio, n in zip(RATIOS, noise, strict=True):
        level = jax.tree.map(jnp.float32, prior.schedule.at(np.float64(ratio)))
        x_t = jnp.asarray(level.signal * images + level.sigma * n, jnp.float32)
        eps = jax.vmap(lambda x, level=level: prior.predict(x, level)[1])(x_t)
        errors.append(np.mean((np.asarray(eps, np.float64) - n) ** 2))
    return np.nan_to_num(np.array(errors), nan=np.inf)


def choose(make: Callable[[Flags], DiffusionPrior], axes: Sequence[Axis], images: np.ndarray) -> Outcome:
    """Try what a family leaves open, one axis after the other, and take what is clearly better than what was assumed.

    Args:
        make: builds the prior with the assumed settings but for those given.
        axes: what to try.
        images: pictures that the network could have been trained on.
    """
    flags: dict[str, Any] = {}
    taken = make(flags)
    best, notes, num_tried, nearest = measure(taken, images), [], 0, (np.inf, "")
    for what, choices in axes:
        tried = []
        for choice in choices:
            try:
                prior = make({**flags, **choice})
            except ValueError:
                continue  # this network cannot have such a setting
            errors = best if _alike(prior, taken) else measure(prior, images)
            if not np.allclose(errors, best, rtol=1e-5):  # else it is another word for the same
                tried.append((float(errors.mean()), choice, errors, prior))
        num_tried += len(tried)
        if tried:
            least, choice, errors, prior = min(tried, key=lambda one: one[0])
            if least * CLEAR < best.mean():
                flags |= choice
                notes.append(
                    f"probe: {spelled(choice)} taken for the {what}, since what was assumed finds the noise "
                    f"{best.mean() / least:.1f} times worse"
                )
                best, taken = errors, prior
            elif least < best.mean() * CLEAR:
                notes.append(f"probe: cannot tell whether the {what} is {spelled(choice)} or as assumed")
            else:
                nearest = min(nearest, (least, f"the {what} by {spelled(choice)}"))
    listed = ", ".join(f"{error:.3g}" for error in best)
    at = ", ".join(f"{ratio:.2g}" for ratio in RATIOS)
    compared = f"; {num_tried} other settings tried" if num_tried else ""
    if nearest[1]:
        compared += f", the nearest of them ({nearest[1]}) {nearest[0] / best.mean():.1f} times worse"
    notes.append(
        f"probe on {len(images)} picture{'s' * (len(images) > 1)}: mean squared error of the noise {listed} at "
        f"sigma/signal {at}{compared}"
    )
    return Outcome(flags, best, notes)


def _alike(prior: DiffusionPrior, other: DiffusionPrior) -> bool:
    """Tell whether two priors of the same weights are one."""
    first, second = ((p.module, p.schedule, p.prediction, p.sigma_data, p.shift) for p in (prior, other))
    return first == second and prior.params is other.params


def is_useless(outcome: Outcome) -> bool:
    """Tell whether the network is no denoiser of these pictures, however it is set.

    One level is enough: EDM's preconditioning alone, around any network, denoises at the high ones.
    """
    return not outcome.errors.max() < USELESS


def spelled(flags: Flags) -> str:
    """Write settings as the command line has them."""
    return " ".join(f"--{name.replace('_', '-')} {_text(value)}" for name, value in flags.items())


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
