"""NIfTI: images are the first two axes, the others count them; numbers scaled as the header says."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddiff_jax.files import Notes, Unusable, decoding, length, opened
from ddiff_jax.limits import check_unfolded
from ddiff_jax.readers.places import Place
from ddiff_jax.readers.volumes import check_numbers, check_size, index_of


def count(place: Place) -> int | None:
    """Count the slices of a volume, along its last axis."""
    with _volume(place) as volume:
        return volume.shape[2] if len(_counts(volume)) == 1 else None


def load(place: Place, share: int = 1) -> tuple[np.ndarray, Notes]:
    """Load a slice as it is stored, [first axis, second axis], without turning it."""
    with _volume(place) as volume:
        index = index_of(place, _counts(volume), "along the axes after the first two")
        shape = volume.shape if index is None else volume.shape[:2]
        check_size(place, shape, 8, share)
        rest = (0,) * (volume.ndim - 2 - len(_counts(volume)))  # axes of length 1
        array = np.asarray(volume.dataobj[...] if index is None else volume.dataobj[(..., *index, *rest)])
        return array.astype(np.complex64 if array.dtype.kind == "c" else np.float32), []


def _counts(volume: Any) -> tuple[int, ...]:
    """List the lengths of the axes that count images, without those of length 1 at the end."""
    counts = list(volume.shape[2:])
    while counts and counts[-1] == 1:
        counts.pop()
    return tuple(counts)


@contextlib.contextmanager
def _volume(place: Place) -> Iterator[Any]:
    import nibabel

    with opened(place.file) as file, decoding(place.file, "cannot be read as NIfTI"):
        volume: Any = nibabel.load(place.file, mmap=False)
        if place.name:
            raise Unusable(f"{place.file} holds one array; leave :{place.name} out")
        if len(volume.shape) < 2 or min(volume.shape) < 1:
            raise Unusable(f"{place.file} holds no image: its array has shape {volume.shape}")
        dtype = volume.get_data_dtype()
        check_numbers(place, dtype)
        size = math.prod(volume.shape) * dtype.itemsize
        start = int(volume.dataobj.offset)
        if str(place.file).lower().endswith(".gz"):  # it unfolds from its start on, wherever the slice is
            check_unfolded(place.file, start + size, f"a compressed array of shape {volume.shape}", 1)
        elif start + size > length(file):
            raise Unusable(
                f"{place.file} is truncated: its array of shape {volume.shape} ends at byte {start + size}, "
                f"the file at {length(file)}; get a whole copy of the file"
            )
        yield volume
