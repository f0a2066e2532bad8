"""As which files an image is written: pictures for looking, arrays for computing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from ddiff_jax import image_files
from ddiff_jax.restoration.jobs import Job

Kind = Literal["png", "npy", "tiff"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Written = dict[str, tuple[Path, str]]


def put(written: Written, kind: str, write: Callable[[Path, Any], str], content: Any, path: Path) -> None:
    """Write one result with a writer of `ddiff_jax.image_files`, and note where it is and its hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written[kind] = path, write(path, content)


def needed(kinds: Sequence[Kind], channels: int) -> tuple[Kind, ...]:
    """Add arrays to the kinds of files where no picture can hold all channels."""
    return (*kinds, "npy") if channels not in (1, 3) and "npy" not in kinds else tuple(kinds)


def save_as(
    kinds: Sequence[Kind],
    name: str,
    array: Float[np.ndarray, "H W C"],
    job: Job,
    *,
    picture: Float[np.ndarray, "H W C"] | None = None,
) -> Written:
    """Write an image, or a map of as many channels, as files of these kinds that have one name.

    Args:
        kinds: of files. An array of two channels is written to .npy as complex numbers [H, W], and an image of
            neither one nor three channels always to .npy too.
        name: of the result, such as "restored".
        array: its numbers, in the units in which they are to be written.
        job: names the files.
        picture: what pictures show, in [-1, 1]; None shows the array.

    Returns:
        Kind of a result, `name` for the picture, to its path and the hash of what was written.
    """
    written: Written = {}
    kinds = needed(kinds, array.shape[-1])
    if "npy" in kinds:
        put(written, f"{name}_array", image_files.write_array, image_files.as_numbers(array), job.result(name, ".npy"))
    if "tiff" in kinds:
        flat = array[..., 0] if array.shape[-1] == 1 else array
        put(written, f"{name}_tiff", image_files.write_tiff, flat, job.result(name, ".tiff"))
    if "png" in kinds:
        shown = image_files.as_picture(array if picture is None else picture)
        put(written, name, image_files.write_png, shown, job.result(name))
    return written


def result_paths(name: str, job: Job) -> list[Path]:
    """List the paths that a result may have."""
    return [job.result(name, f".{kind}") for kind in KINDS]
