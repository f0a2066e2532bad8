"""What is written for one restored image: pictures, and arrays where no picture can hold the numbers."""

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image as Pillow

from ddiff_jax import image_files
from ddiff_jax.drawing import Panel, compare, error_map, picture
from ddiff_jax.operators import observed_entries
from ddiff_jax.restoration.batches import Score, tell
from ddiff_jax.restoration.noise_model import in_units_of_images
from ddiff_jax.restoration.reading import Item
from ddiff_jax.restoration.saving import Written, put, save_as
from ddiff_jax.restoration.settings import Settings


def write(item: Item, x: Float[np.ndarray, "H W C"], score: Score, settings: Settings) -> Written:
    """Write the results of one image.

    Returns:
        Kind of a result to its path and the hash of what was written.
    """
    job, y = item.job, np.asarray(item.y)
    shown = in_units_of_images(settings.likelihood, y)
    written: Written = {}
    if item.truth is not None:
        if is_picture(y):
            put(written, "measurement", image_files.write_png, shown, job.result("measurement"))
        seen = observed_entries(item.operator, y.shape)
        # A PNG rounds, which is little, but clips, which is not: noise of 0.2 without its tails costs 1 dB.
        if not is_picture(y) or np.max(np.abs(y), initial=0, where=True if seen is None else seen) > 1:
            content = y if settings.units is None else settings.units.measurement_to_data(item.operator, y, x.shape)
            put(written, "measured_array", image_files.write_array, content, job.result("measurement", ".npy"))
        if seen is not None:  # all channels alike
            levels = 2 * np.asarray(seen[..., :1], np.float32) - 1
            put(written, "mask", image_files.write_png, levels, job.result("mask"))
    put(written, "comparison", image_files.save_png, comparison(item, x, score, settings), job.result("comparison"))
    numbers = x if settings.units is None else settings.units.to_data(x)
    return written | save_as(settings.save, "restored", numbers, job, picture=x)


def why_not_written(error: OSError) -> str:
    """Say why an image has no results: a full disk, a name that is too long."""
    return f"its results cannot be written: {error.strerror or error}"


def is_picture(y: Shaped[np.ndarray, "..."]) -> bool:
    """Tell whether a measurement can be shown as a picture."""
    return y.ndim == 3 and y.shape[2] in (1, 3) and y.dtype.kind == "f"


def comparison(item: Item, x: Float[np.ndarray, "H W C"], score: Score, settings: Settings) -> Pillow.Image:
    """Draw measurement, restoration, truth and error; without a truth the misfit takes the place of the error."""
    y, metrics = in_units_of_images(settings.likelihood, np.asarray(item.y)), score.metrics
    panels = []
    if is_picture(y):
        panels.append(Panel(picture(y), "measurement", f"{_width_by_height(y)}, noise {item.sigma_y:.3g}"))
    name = f"restored by {type(settings.solver).__name__}"
    if item.truth is None:
        panels.append(Panel(picture(x), name, f"{_width_by_height(x)}, mean squared misfit {metrics['misfit']:.4f}"))
        misfit = score.residual if is_picture(y) else np.zeros_like(x)
        panels.append(Panel(error_map(misfit), "misfit", "|A(x) - y|"))
    else:
        error = np.abs(np.clip(x, -1, 1) - item.truth)
        panels.append(Panel(picture(x), name, tell(metrics, ("psnr", "ssim"))))
        panels.append(Panel(picture(item.truth), "truth", _width_by_height(x)))
        panels.append(Panel(error_map(error), "absolute error", f"mean {error.mean():.3f}, images in [-1, 1]"))
    return compare(panels)


def _width_by_height(x: Shaped[np.ndarray, "H W C"]) -> str:
    return f"{x.shape[1]} x {x.shape[0]}"
