"""Archives of arrays: their tables of contents are checked against the length of the file before anything is read."""

import contextlib
import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from ddiff_jax.files import length, opened, quote
from ddiff_jax.limits import LONGEST_NAME, LONGEST_RANK, MOST_ENTRIES, MOST_TEXT

END, END_LENGTH = b"PK\5\6", 22
END_64_LENGTHS = 56, 20  # the record of large archives, and what says where it is
LONGEST_COMMENT = 65535
LONGEST_HEADER = 10_000  # bytes in a .npy file, as NumPy has it
Stream = IO[bytes] | io.BufferedIOBase  # the latter inside of an archive
BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32},
    **{"U64": 64, "I64": 64, "F64": 64},
}
"""What the types of safetensors take that are read; sub-bytes, complex numbers and floats of 8 bits are not."""


def _contents_length(file: BinaryIO) -> int:
    """Find how long the table of contents of a zip archive claims to be."""
    size = length(file)
    file.seek(max(0, size - LONGEST_COMMENT - END_LENGTH))
    tail = file.read()
    file.seek(0)
    start = len(tail) - END_LENGTH
    if not (start >= 0 and tail[start:].startswith(END) and tail.endswith(b"\0\0")):
        start = tail.rfind(END)
    if start < 0 or len(tail) < start + END_LENGTH:
        raise zipfile.BadZipFile("it has no table of contents")
    large = tail[max(0, start - sum(END_64_LENGTHS)) : start]
    found = [struct.unpack_from("<L", tail, start + 12)[0]]
    if len(large) == sum(END_64_LENGTHS) and large.startswith(b"PK\6\6"):
        found.append(struct.unpack_from("<Q", large, 40)[0])
    return max(n for n in found if n != 0xFFFFFFFF) if found != [0xFFFFFFFF] else size


@contextlib.contextmanager
def zip_archive(file: BinaryIO, methods: tuple[int, ...] = (zipfile.ZIP_STORED,)) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive whose members are what they claim to be.

    Args:
        file: a plain file.
        methods: of compression that are taken.

    Raises:
        zipfile.BadZipFile: it is none, its table of contents is too long, its members are compressed by another method
            or encrypted, or together they claim to be larger than the file.
    """
    if _contents_length(file) > MOST_TEXT:
        raise zipfile.BadZipFile(f"its table of contents is longer than {MOST_TEXT} bytes")
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.compress_type not in methods or info.flag_bits & 1:
                how = "encrypted" if info.flag_bits & 1 else "compressed"
                raise zipfile.BadZipFile(
                    f"{quote(info.filename)} in it is {how}, which files of its kind are not: what it unfolds to "
                    "cannot be known"
                )
        if sum(info.compress_size for info in archive.infolist()) > length(file) or any(
            info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size
            for info in archive.infolist()
        ):
            raise zipfile.BadZipFile("its parts claim to be larger than the file, or overlap")
        yield archive


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file.

    Raises:
        ValueError: its header is too long or damaged, or does not describe the bytes behind it.
    """
    import safetensors
    import safetensors.numpy

    with opened(path) as file:
        _check_header(file)
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(quote(error)) from error


def _check_header(file: BinaryIO) -> None:
    start, size = file.read(8), length(file)
    if len(start) < 8:
        raise ValueError("it is too short for a header")
    (count,) = struct.unpack("<Q", start)
    if count > min(MOST_TEXT, size - 8):
        raise ValueError(f"its header claims {count} bytes of {size}; up to {MOST_TEXT} are read")
    header = json.loads(file.read(count))
    if not isinstance(header, dict) or len(header) > MOST_ENTRIES:
        raise ValueError(f"its header is no mapping of up to {MOST_ENTRIES} names")
    total = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(first), int(last)]}:
                pass
            case _:
                raise ValueError(f"{quote(name)} in its header has no dtype, shape and data_offsets")
        if dtype not in BITS:
            raise ValueError(f"{quote(name)} has type {quote(dtype)}; known are {', '.join(BITS)}")
        if len(name) > LONGEST_NAME or len(shape) > LONGEST_RANK:
            raise ValueError(f"{quote(name)} has more axes, or a longer name, than tensors have")
        if not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, first, last)):
            raise ValueError(f"{quote(name)} has a shape or a place that is no row of whole numbers")
        if last - first != math.prod(shape) * BITS[dtype] // 8:
            raise ValueError(f"{quote(name)} of shape {shape} has {last - first} bytes")
        total += last - first
    if total != size - 8 - count:
        raise ValueError(f"its tensors take {total} bytes, and it holds {size - 8 - count}")


def check_npy(file: Stream, num_bytes: int, kinds: str = "biufc") -> tuple[tuple[int, ...], np.dtype]:
    """Read the header of a .npy stream, and refuse it where the numbers behind it are not those that it declares.

    Args:
        file: at its start.
        num_bytes: length of the stream.
        kinds: letters of NumPy for the kinds of types that are taken.

    Returns:
        Shape and type.

    Raises:
        ValueError: no such stream, objects or records in the place of numbers, or another length.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version} of the format is not known")
    wide = struct.calcsize("<H" if version == (1, 0) else "<I")
    start = file.tell()
    (header,) = struct.unpack("<H" if wide == 2 else "<I", file.read(wide))
    if header > min(LONGEST_HEADER, num_bytes - start - wide):
        raise ValueError(f"its header claims {header} bytes")
    file.seek(start, os.SEEK_SET)
    read = np.lib.format.read_array_header_1_0 if wide == 2 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject or dtype.kind not in kinds:
        what = "Object arrays" if dtype.hasobject else "it"
        raise ValueError(f"{what} {'hold' if dtype.hasobject else 'holds'} no numbers but {quote(str(dtype))}")
    if any(n < 0 for n in shape) or len(shape) > LONGEST_RANK:
        raise ValueError(f"its header has shape {quote(str(shape))}")
    held = num_bytes - file.tell()
    if math.prod(shape) * dtype.itemsize > held:
        raise ValueError(f"its header has shape {quote(str(shape))} of {dtype}, but {held} bytes follow it")
    return shape, dtype
