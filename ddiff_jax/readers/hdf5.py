"""HDF5, with k-space as fastMRI stores it: `kspace` is [slices, coils, rows, columns], or without the coils."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddiff_jax.files import Notes, Unusable, decoding, opened
from ddiff_jax.limits import check_unfolded
from ddiff_jax.readers.places import Place
from ddiff_jax.readers.volumes import check_numbers, check_size, index_of

KSPACE = "kspace"
LISTED, MOST_OBJECTS = 20, 1000
VERDICT = "cannot be read as HDF5"


def count(place: Place) -> int | None:
    """Count the slices of k-space; any other dataset is one array, of which an index takes a part."""
    with _dataset(place) as dataset:
        return dataset.shape[0] if _has_slices(dataset) or place.index else None


def load(place: Place, share: int = 1) -> tuple[np.ndarray, Notes]:
    """Load a dataset, or what an index along its first axis takes of it.

    Of k-space without an axis of coils, a slice gets one of length 1.
    """
    with _dataset(place) as dataset:
        indexed = _has_slices(dataset) or (place.numbers is not None and dataset.ndim)
        index = index_of(place, dataset.shape[:1] if indexed else (), "along the first axis")
        shape = dataset.shape[1:] if index else dataset.shape
        check_size(place, shape, dataset.dtype.itemsize, share)
        array = np.asarray(dataset[index[0]] if index else dataset[()])
        return (array[None] if index and dataset.ndim == 3 and _has_slices(dataset) else array), []


def _has_slices(dataset: Any) -> bool:
    return dataset.name.rpartition("/")[2] == KSPACE and dataset.ndim in (3, 4)


@contextlib.contextmanager
def _dataset(place: Place) -> Iterator[Any]:
    """Open a dataset that lies in this very file: links to others, and filters that unfold too much, are refused."""
    import h5py

    with opened(place.file), decoding(place.file, VERDICT), h5py.File(place.file, "r", locking=False) as file:
        dataset = _find(h5py, file, place)
        check_numbers(place, dataset.dtype, dataset.name)
        if dataset.external or dataset.is_virtual:
            raise Unusable(f"{place.file}: {dataset.name} has its numbers in other files; write them into this one")
        if dataset.chunks:
            size = int(np.prod(dataset.chunks, dtype=object)) * dataset.dtype.itemsize
            check_unfolded(place.file, size, f"{dataset.name} in chunks of {dataset.chunks}")
        yield dataset


def _find(h5py: Any, file: Any, place: Place) -> Any:
    name = place.name or (KSPACE if KSPACE in file else _only(h5py, file, place))
    node = file
    for part in filter(None, name.split("/")):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) and part in node.keys() else None
        if link is None:
            raise Unusable(f"{place.file} has no {name}; it holds {', '.join(_names(h5py, file)) or 'no array'}")
        if not isinstance(link, h5py.HardLink):
            raise Unusable(f"{place.file}: {name} is a link to somewhere else, which is not followed")
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise Unusable(f"{place.file}: {name} is a group; name one of {', '.join(_names(h5py, file)) or 'nothing'}")
    return node


def _only(h5py: Any, file: Any, place: Place) -> str:
    names = _names(h5py, file)
    if len(names) != 1:
        held = ", ".join(names[:LISTED]) or "none"
        raise Unusable(
            f"{place.file} must hold one array, or one called {KSPACE}, or name it PATH:NAME; it holds {held}"
        )
    return names[0]


def _names(h5py: Any, file: Any) -> list[str]:
    """List the datasets of numbers, following no links."""
    found: list[str] = []
    seen = 0

    def visit(name: str, node: Any) -> bool | None:
        nonlocal seen
        seen += 1
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "biufc":
            found.append(name)
        return True if seen >= MOST_OBJECTS else None

    file.visititems(visit)
    return found
