"""What `ddiff restore` writes for one image, and the row it gets in metrics.json."""

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image as Pillow

from ddiff_jax import image_files
from ddiff_jax.cli.batches import Item, Score
from ddiff_jax.cli.settings import Settings
from ddiff_jax.drawing import Panel, compare, error_map, picture
from ddiff_jax.operators import observed_entries


def write(item: Item, x: Float[np.ndarray, "H W C"], score: Score, settings: Settings) -> dict[str, Any]:
    """Write the pictures of one image and make its row, which is recorded only when all of them are there."""
    job, y = item.job, np.asarray(item.y)
    job.result("restored").parent.mkdir(parents=True, exist_ok=True)
    files = {"comparison": job.result("comparison"), "restored": job.result("restored")}
    if item.truth is not None:
        if _is_picture(y):
            files["measurement"] = job.result("measurement")
            image_files.write_png(files["measurement"], y)
        seen = observed_entries(item.operator, y.shape)
        # A PNG rounds, which is little, but clips, which is not: noise of 0.2 without its tails costs 1 dB.
        if not _is_picture(y) or np.max(np.abs(y), initial=0, where=True if seen is None else seen) > 1:
            files["measured_array"] = job.result("measurement", ".npy")
            image_files.write_array(files["measured_array"], y)
        if seen is not None:  # all channels alike
            files["mask"] = job.result("mask")
            image_files.write_png(files["mask"], 2 * np.asarray(seen[..., :1], np.float32) - 1)
    image_files.save_png(files["comparison"], comparison(item, x, score, settings))
    image_files.write_png(files["restored"], x)
    return {
        "name": job.stem,
        "input": str(job.path),
        "input_sha256": item.sha256,
        "sigma_y": item.sigma_y,
        **score.metrics,
        "files": {kind: path.relative_to(job.folder).as_posix() for kind, path in sorted(files.items())},
        "notes": item.notes,
    }


def _is_picture(y: Shaped[np.ndarray, "..."]) -> bool:
    return y.ndim == 3 and y.shape[2] in (1, 3) and y.dtype.kind == "f"


def comparison(item: Item, x: Float[np.ndarray, "H W C"], score: Score, settings: Settings) -> Pillow.Image:
    """Draw measurement, restoration, truth and error; without a truth the misfit takes the place of the error."""
    y, metrics = np.asarray(item.y), score.metrics
    panels = []
    if _is_picture(y):
        panels.append(Panel(picture(y), "measurement", f"{_width_by_height(y)}, noise {item.sigma_y:.3g}"))
    name = f"restored by {type(settings.solver).__name__}"
    if item.truth is None:
        panels.append(Panel(picture(x), name, f"{_width_by_height(x)}, mean squared misfit {metrics['misfit']:.4f}"))
        misfit = score.residual if _is_picture(y) else np.zeros_like(x)
        panels.append(Panel(error_map(misfit), "misfit", "|A(x) - y|"))
    else:
        ssim = "" if metrics["ssim"] is None else f", SSIM {metrics['ssim']:.3f}"
        error = np.abs(np.clip(x, -1, 1) - item.truth)
        panels.append(Panel(picture(x), name, f"PSNR {metrics['psnr']:.2f} dB{ssim}"))
        panels.append(Panel(picture(item.truth), "truth", _width_by_height(x)))
        panels.append(Panel(error_map(error), "absolute error", f"mean {error.mean():.3f}, images in [-1, 1]"))
    return compare(panels)


def _width_by_height(x: Shaped[np.ndarray, "H W C"]) -> str:
    return f"{x.shape[1]} x {x.shape[0]}"
