"""`ddiff check-prior`: measure how well a prior denoises at every noise level."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import tyro
from jaxtyping import Float

from ddiff_jax.checkpoint import load_prior
from ddiff_jax.cli.console import Console
from ddiff_jax.cli.environment import use_compilation_cache
from ddiff_jax.cli.flags import parse
from ddiff_jax.denoising import Errors, measure_denoising
from ddiff_jax.restoration.folders import find_clean, read_clean_files

DESCRIPTION = """Measure how well a prior denoises clean images at every noise level, beside two ways that need no
network: the mean image, and the best linear filter. A prior that loses to either at some level misleads every solver
there.

examples:
  ddiff check-prior portraits/ --prior faces64
  ddiff check-prior portraits/ --prior mine --reference training/ --json

Errors are root mean squares of x_0, in [-1, 1]; lower is better."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Args:
        images: Clean images that the prior has not seen: files, folders or globs.
        prior: Name of a packaged prior, the folder of a converted one, or hf:OWNER/MODEL.
        reference: Example images for the mean and the linear filter, best those of the training; by default one half of
            the images serves the other.
        levels: Number of noise levels, spread over the prior's schedule.
        dtype: Computation type of the network.
        seed: Draws the noise.
        cache: Keep compiled programs in the user's cache folder for the next run.
        json: Print the table as JSON.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    prior: str = "faces64"
    reference: tuple[str, ...] = ()
    levels: int = 12
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    cache: bool = True
    json: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(Options, argv, prog="ddiff check-prior", description=DESCRIPTION)
    if not options.images:
        raise ValueError("give clean images that the prior has not seen: files, folders or globs")
    if options.cache:
        use_compilation_cache()
    prior, console = load_prior(options.prior, dtype=options.dtype), Console(quiet=options.json)
    images, failed = _read(options.images, prior.image_shape, console)
    reference, missing = _read(options.reference, prior.image_shape, console) if options.reference else (None, 0)
    errors = measure_denoising(prior, images, reference, num_levels=options.levels, seed=options.seed)
    if options.json:
        print(json.dumps({name: values.tolist() for name, values in vars(errors).items()}, indent=1))
    else:
        print("\n".join(lines(errors, options.prior, len(images))))
    return 1 if failed or missing else 0


def lines(errors: Errors, prior: str, count: int) -> list[str]:
    """Write the table, and what it says."""
    rows = [f"{'sigma/signal':>12} {'timestep':>9} {'network':>8} {'linear':>8} {'mean':>8}"]
    columns = (*dataclasses.astuple(errors), errors.loses())
    for ratio, time, network, linear, mean, loses in zip(*columns, strict=True):
        mark = "  worse than without a network" if loses else ""
        rows.append(f"{ratio:>12.4g} {time:>9.1f} {network:>8.4f} {linear:>8.4f} {mean:>8.4f}{mark}")
    lost = len(errors.lost)
    verdict = f"worse at {lost} of {len(errors.ratio)} levels" if lost else "better at every level"
    return [*rows, f"{prior} on {count} images: {verdict} than the better of linear filter and mean image"]


def _read(inputs: Sequence[str], shape: tuple[int, ...], console: Console) -> tuple[Float[np.ndarray, "N H W C"], int]:
    """Read pictures, cut and resized to the prior's size, and count those that cannot be read."""
    paths = find_clean(inputs, console)
    images = [picture.x for picture in read_clean_files(paths, shape, console)]
    return np.stack(images), len(paths) - len(images)
