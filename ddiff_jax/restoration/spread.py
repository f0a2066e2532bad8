"""What several answers to one image say together: maps, numbers, and how far they may be trusted."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from ddiff_jax import image_files
from ddiff_jax._solve import Solution
from ddiff_jax.drawing import Panel, compare, error_map, picture
from ddiff_jax.metrics import psnr
from ddiff_jax.restoration.reading import Item
from ddiff_jax.restoration.saving import Written, put, save_as
from ddiff_jax.restoration.settings import Settings
from ddiff_jax.samples import Samples, coverage, expected_coverage, likely_image

SPREAD_MAX = 0.2  # one scale for all maps of a standard deviation, of images in [-1, 1]


@dataclasses.dataclass(frozen=True)
class Spread:
    """All answers to one image.

    Args:
        shown: which of them is the restored image, "mean" or "sample 0".
        x: the samples.
        finite: which of them did not diverge; no map counts the others.
        mean: of the samples, pixel by pixel.
        std: their standard deviation.
        q05: what 5% of them are below.
        q95: what 95% of them are below.
    """

    shown: str
    x: Float[np.ndarray, "K ..."]
    finite: Bool[np.ndarray, " K"]
    mean: Float[np.ndarray, "..."]
    std: Float[np.ndarray, "..."]
    q05: Float[np.ndarray, "..."]
    q95: Float[np.ndarray, "..."]


def spread_out(samples: Samples, aim: str | None) -> tuple[Solution, list[Spread]]:
    """Choose the restored images, and sort the samples by image.

    Args:
        samples: of a batch.
        aim: of the solver: the mean is restored where it is the posterior, else sample 0, as without samples.

    Returns:
        The solution, whose x are the restored images, and what is known of every image; arrays of the host.
    """
    shown, x = likely_image(aim, samples)
    finite = samples.finite.any(axis=1) if shown == "mean" else samples.first.finite
    solution = dataclasses.replace(samples.first, x=x, finite=finite)
    solution, *arrays = jax.device_get(
        (solution, samples.x, samples.finite, samples.mean, samples.std, samples.low, samples.high)
    )
    return solution, [Spread(shown, *(array[i] for array in arrays)) for i in range(len(solution.x))]


def metrics(spread: Spread, truth: Float[np.ndarray, "..."] | None) -> dict[str, float | None]:
    """Tell what a spread is in numbers, and with a truth how good its mean and its band are."""
    count = int(spread.finite.sum())
    found: dict[str, float | None] = {"samples": float(count), "mean_std": float(spread.std.mean())}
    if truth is not None:
        of_mean, of_first = (
            float(psnr(jnp.asarray(x), jnp.asarray(truth), protocol="standard")) for x in (spread.mean, spread.x[0])
        )
        found |= {
            "psnr_mean": of_mean,
            "psnr_sample": of_first if spread.finite[0] else None,
            "coverage": coverage(spread.q05, spread.q95, truth),
            "expected_coverage": expected_coverage(count),
        }
    return found


def notes(spread: Spread) -> list[str]:
    """Say what is restored, and how many samples are missing."""
    diverged = int((~spread.finite).sum())
    lost = f", without {diverged} that diverged" if diverged else ""
    return [f"restored: the {spread.shown} of {len(spread.x)} samples{lost}"]


def tell(means: dict[str, float], aim: str | None) -> str:
    """Say the numbers of `metrics`, averaged over images, in one line."""
    shown = "the mean" if aim == "posterior" else "sample 0"
    text = f"restored is {shown}; mean standard deviation {means['mean_std']:.3f}"
    if "coverage" in means:
        psnrs = f", sample 0 {means['psnr_sample']:.2f} dB" if "psnr_sample" in means else ""
        text += (
            f"; PSNR of the mean {means['psnr_mean']:.2f} dB{psnrs}; the 5-95% band holds {means['coverage']:.0%} of "
            f"the truth (calibrated samples: about {means['expected_coverage']:.0%})"
        )
    return text


def write(item: Item, spread: Spread, settings: Settings) -> Written:
    """Write maps as pictures and as arrays, and on demand all samples as one array [K, H, W, C].

    Arrays are in the units of the data, where `settings` has any; a deviation is one of their differences.
    """
    job, units, written = item.job, settings.units, Written()
    kinds = tuple(dict.fromkeys((*settings.save, "npy")))
    for name in ("mean", "q05", "q95"):
        x = getattr(spread, name)
        written |= save_as(kinds, name, x if units is None else units.to_data(x), job, picture=x)
    std = spread.std if units is None else units.difference_to_data(spread.std)
    put(written, "std_array", image_files.write_array, std, job.result("std", ".npy"))
    put(written, "std", image_files.save_png, compare([_deviation(spread)], SPREAD_MAX), job.result("std"))
    put(written, "samples", image_files.save_png, sheet(spread), job.result("samples"))
    first = spread.x[0]
    written |= save_as(settings.save, "sample", first if units is None else units.to_data(first), job, picture=first)
    if settings.keep_samples:
        every = spread.x if units is None else units.to_data(spread.x)
        put(written, "samples_array", image_files.write_array, every, job.result("samples", ".npy"))
    return written


def sheet(spread: Spread) -> Any:
    """Draw the first sample and all maps beside each other; the deviation has the colour bar."""
    panels = [
        Panel(picture(spread.x[0]), "sample 0", f"of {len(spread.x)}"),
        Panel(picture(spread.mean), "mean", "of the samples"),
        Panel(picture(spread.q05), "5% map", "pixel by pixel"),
        Panel(picture(spread.q95), "95% map", "pixel by pixel"),
        _deviation(spread),
    ]
    return compare(panels, SPREAD_MAX)


def _deviation(spread: Spread) -> Panel:
    text = f"mean {spread.std.mean():.3f}, images in [-1, 1]"
    return Panel(error_map(spread.std, SPREAD_MAX), "standard deviation", text)
