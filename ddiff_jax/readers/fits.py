"""FITS: the first image of the file or the extension that is named; the first axes of a cube count images."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddiff_jax.files import Notes, Unusable, decoding, length, opened
from ddiff_jax.readers.places import Place
from ddiff_jax.readers.volumes import check_size, index_of

START = b"SIMPLE"
MOST_EXTENSIONS = 1000
BLOCK, MOST_BLOCKS = 2880, 2000  # bytes, and blocks of a header


def count(place: Place) -> int | None:
    """Count the planes of a cube."""
    with _image(place) as image:
        return image.shape[0] if len(image.shape) == 3 else None


def load(place: Place, share: int = 1) -> tuple[np.ndarray, Notes]:
    """Load an image, scaled by BSCALE and BZERO as the file says; rows as they are stored, the lowest first."""
    with _image(place) as image:
        index = index_of(place, image.shape[:-2], "the axes before rows and columns")
        shape = image.shape if index is None else image.shape[len(index) :]
        check_size(place, shape, 8, share)
        return np.asarray(image.section[(*(index or ()), ...)]).astype(np.float32), []


@contextlib.contextmanager
def _image(place: Place) -> Iterator[Any]:
    with opened(place.file) as file, decoding(place.file, "cannot be read as FITS"):
        # Compressed as a whole, a file may unfold to anything.
        if file.read(len(START)) != START:
            raise Unusable(f"{place.file} is no FITS file as it is: it does not start with {START.decode()}; unpack it")
        _check_header(place, file)
        file.seek(0)
        from astropy.io import fits

        with fits.open(file, memmap=False, lazy_load_hdus=True) as units:
            unit = _find(units, place)
            size = abs(int(unit.header.get("BITPIX", 8))) // 8 * int(np.prod(unit.shape, dtype=object))
            is_packed = type(unit).__name__ == "CompImageHDU"
            if not is_packed and size > length(file):
                raise Unusable(
                    f"{place.file} is truncated: its image of shape {unit.shape} takes {size} bytes, the file has "
                    f"{length(file)}; get a whole copy of the file"
                )
            yield unit


def _check_header(place: Place, file: Any) -> None:
    """Refuse a first header that does not end: whoever reads it reads the whole file."""
    file.seek(0)
    for _ in range(MOST_BLOCKS):
        block = file.read(BLOCK)
        if any(block[i : i + 8] == b"END     " for i in range(0, len(block), 80)):
            return
        if len(block) < BLOCK:
            break
    raise Unusable(f"{place.file} is no whole FITS file: its header has no end; get a whole copy of the file")


def _find(units: Any, place: Place) -> Any:
    """Find the image that is named, by name or number, or the first one."""
    for number, unit in enumerate(units):
        if number >= MOST_EXTENSIONS:
            break
        is_image = bool(getattr(unit, "is_image", False)) and len(unit.shape) >= 1
        wanted = place.name in (str(number), str(unit.name)) if place.name else is_image and len(unit.shape) >= 2
        if wanted and not is_image:
            raise Unusable(f"{place.file}: extension {place.name} is no image but a {type(unit).__name__}")
        if wanted:
            return unit
    raise Unusable(f"{place.file} has no image{f' called {place.name}' if place.name else ''}")
