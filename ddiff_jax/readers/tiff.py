"""TIFF of floating-point numbers: arrays in whatever units, unlike TIFF of 8 or 16 bits, which are pictures."""

import io
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float
from PIL import Image as Pillow

from ddiff_jax.files import Notes, Unusable, decoding, length, opened
from ddiff_jax.readers.places import Place
from ddiff_jax.readers.volumes import check_size

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS = 256, 257, 258, 259, 262, 273
SAMPLES, ROWS_PER_STRIP, COUNTS, PLANAR, EXTRA, FORMAT = 277, 278, 279, 284, 338, 339
FLOAT, NOT_COMPRESSED, TOGETHER, BLACK_IS_ZERO, RGB = 3, 1, 1, 1, 2  # values of these
TYPES = {1: "B", 3: "H", 4: "I"}  # of entries: bytes, short and long integers
MOST_ENTRIES, MOST_VALUES = 1000, 1_000_000
ORDERS = {b"II*\0": "<", b"MM\0*": ">"}

Tags = dict[int, tuple[int, ...]]


def is_array(path: Path) -> bool:
    """Tell whether a TIFF file holds floating-point numbers; False where it cannot be read."""
    try:
        with opened(path) as file:
            return FLOAT in _tags(file)[1].get(FORMAT, ())
    except (ValueError, OSError, struct.error):
        return False


def count(place: Place) -> int | None:
    """Tell that the first page is one array."""
    return None


def load(place: Place, share: int = 1) -> tuple[np.ndarray, Notes]:
    """Load the first page, [rows, columns] or [rows, columns, samples]."""
    if place.name or place.index:
        raise Unusable(f"{place.file}: the first page of a TIFF is read; leave :NAME and [INDEX] out")
    with opened(place.file) as file, decoding(place.file):
        order, tags = _tags(file)
        first = {tag: values[0] for tag, values in tags.items()}
        bits, samples = first.get(BITS, 1), first.get(SAMPLES, 1)
        shape = (first[HEIGHT], first[WIDTH], *((samples,) if samples > 1 else ()))
        check_size(place, shape, bits // 8 or 1, share)
        if bits not in (16, 32, 64) or len({*tags[FORMAT]}) > 1 or len({*tags.get(BITS, ())}) > 1:
            raise Unusable(f"{place.file} holds floats of {bits} bits, or of several kinds; save 32 bits, or .npy")
        if first.get(COMPRESSION, 1) == NOT_COMPRESSED and OFFSETS in tags and first.get(PLANAR, 1) == TOGETHER:
            return _strips(place, file, tags, np.dtype(f"{order}f{bits // 8}"), shape), []
        if samples == 1 and bits == 32:
            file.seek(0)
            with Pillow.open(file, formats=["TIFF"]) as picture:
                return np.asarray(picture, np.float32), []
    raise Unusable(
        f"{place.file} holds {samples} floats of {bits} bits per pixel in tiles, planes or compressed, which is not "
        "read here; save it without, or as .npy"
    )


def _strips(place: Place, file: BinaryIO, tags: Tags, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Join the strips."""
    needed, parts = math.prod(shape) * dtype.itemsize, []
    if len(tags.get(COUNTS, ())) != len(tags[OFFSETS]) or sum(tags[COUNTS]) > length(file):
        raise Unusable(f"{place.file} is damaged: its strips are larger than the file; get a whole copy of the file")
    for start, size in zip(tags[OFFSETS], tags[COUNTS], strict=True):
        file.seek(start)
        parts.append(file.read(size))
    content = b"".join(parts)
    if len(content) < needed:
        raise Unusable(
            f"{place.file} is truncated: an image of shape {shape} takes {needed} bytes, and {len(content)} are there; "
            "get a whole copy of the file"
        )
    return np.frombuffer(content, dtype, math.prod(shape)).reshape(shape).astype(np.float32)


def _tags(file: BinaryIO) -> tuple[str, Tags]:
    """Read the first directory: the byte order, and the tags that hold whole numbers.

    Raises:
        ValueError: this is no TIFF of up to 4 GB.
    """
    order = ORDERS.get(file.read(4))
    if order is None:
        raise ValueError("it does not start as a TIFF")

    def numbers(kind: str, count: int) -> tuple[int, ...]:
        size = struct.calcsize(order + kind) * count
        if count > MOST_VALUES:
            raise ValueError("its directory is too long")
        return struct.unpack(f"{order}{count}{kind}", file.read(size))

    file.seek(numbers("I", 1)[0])
    (num_entries,) = numbers("H", 1)
    if num_entries > MOST_ENTRIES:
        raise ValueError("its directory is too long")
    start, found = file.tell(), {}
    for i in range(num_entries):
        file.seek(start + 12 * i)
        tag, kind = numbers("H", 2)
        (count,) = numbers("I", 1)
        if kind in TYPES and count:
            if struct.calcsize(TYPES[kind]) * count > 4:
                file.seek(numbers("I", 1)[0])
            found[tag] = numbers(TYPES[kind], count)
    return order, found


def encode(x: Float[np.ndarray, "H W *C"]) -> io.BytesIO:
    """Write an image as a TIFF of 32-bit floats, uncompressed in one strip, any number of samples per pixel."""
    height, width = x.shape[:2]
    samples = math.prod(x.shape[2:])
    content = np.ascontiguousarray(x, "<f4").tobytes()
    is_rgb = samples >= 3
    extra = samples - (3 if is_rgb else 1)
    entries: list[tuple[int, str, tuple[int, ...]]] = [
        (WIDTH, "I", (width,)),
        (HEIGHT, "I", (height,)),
        (BITS, "H", (32,) * samples),
        (COMPRESSION, "H", (NOT_COMPRESSED,)),
        (PHOTOMETRIC, "H", (RGB if is_rgb else BLACK_IS_ZERO,)),
        (OFFSETS, "I", (8,)),
        (SAMPLES, "H", (samples,)),
        (ROWS_PER_STRIP, "I", (height,)),
        (COUNTS, "I", (len(content),)),
        (PLANAR, "H", (TOGETHER,)),
        *([(EXTRA, "H", (0,) * extra)] if extra else []),
        (FORMAT, "H", (FLOAT,) * samples),
    ]
    kinds: dict[str, int] = {letter: number for number, letter in TYPES.items()}
    start = 8 + len(content) + len(content) % 2
    after = start + 2 + 12 * len(entries) + 4
    directory, values = struct.pack("<H", len(entries)), b""
    for tag, kind, numbers in entries:
        packed: Any = struct.pack(f"<{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:
            packed, values = struct.pack("<I", after + len(values)), values + packed
        directory += struct.pack("<HHI", tag, kinds[kind], len(numbers)) + packed.ljust(4, b"\0")
    memory = io.BytesIO()
    for part in (b"II*\0", struct.pack("<I", start), content, b"\0" * (len(content) % 2), directory, bytes(4), values):
        memory.write(part)
    memory.seek(0)
    return memory
