"""Read PyTorch's weight files without PyTorch, and without running anything that they contain.

Both formats are pickles of nested containers whose tensors refer to raw storages kept beside the pickle. Unpickling
calls whatever functions a file names; `inert_pickle` reads these files without.
"""

import dataclasses
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from convert_weights import inert_pickle, persistent, shards
from convert_weights.records import Contents, Numbers, Storage, contents, is_module, key_text, storage
from ddiff_jax.containers import read_safetensors, zip_archive
from ddiff_jax.files import Unusable, length, opened, quote
from ddiff_jax.limits import MOST_COPIES, SPARE

UNMADE = (
    ", which is no part of a plain set of tensors; nothing was executed. If you trust the file, load it in PyTorch and "
    "save its state_dict() alone"
)


def _read_zip(file: BinaryIO) -> Contents:
    with zip_archive(file) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise ValueError("the archive holds no data.pkl: it was not written by torch.save")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are big-endian; save it again on a little-endian machine")
        storages: dict[str, bytes] = {}

        def numbers(where: Storage) -> np.ndarray:
            if where.key not in storages:
                storages[where.key] = archive.read(f"{folder}data/{where.key}")
            return _numbers(storages, where)

        return _contents(inert_pickle.load(io.BytesIO(archive.read(pickles[0]))).tree, numbers, _most(file))


def _contents(tree: Any, numbers: Numbers, most: int) -> Contents:
    """Read the tensors of a pickle, also those of NVIDIA's persistent networks."""
    unfolded, numbers, about = persistent.unfold(tree, numbers)
    return dataclasses.replace(contents(unfolded, numbers, most), about=about)


def _most(file: BinaryIO) -> int:
    """Find how many bytes the tensors of a file may come to."""
    return SPARE + MOST_COPIES * length(file)


def _numbers(storages: dict[str, bytes], where: Storage) -> np.ndarray:
    values = np.frombuffer(storages[where.key], where.dtype)
    if values.size != where.count:
        raise ValueError(f"a storage of {where.count} numbers holds {values.size}")
    return values


def _read_pickle(file: BinaryIO) -> Contents:
    """Read a plain pickle, or several in a row with the numbers behind them: torch.save's format before 1.6."""
    start = inert_pickle.load(file).tree
    if start != persistent.LEGACY_MAGIC:
        return _contents(start, _no_numbers, _most(file))
    protocol, system = (inert_pickle.load(file).tree for _ in range(2))
    if protocol != persistent.LEGACY_PROTOCOL or not isinstance(system, dict):
        raise ValueError("it does not start like a file of torch.save")
    if not system.get("little_endian", True):
        raise ValueError("its numbers are big-endian; save it again on a little-endian machine")
    tree, references = inert_pickle.load(file)
    sizes: dict[str, int] = {}
    for where in (storage(one) for one in references if not is_module(one)):
        sizes.setdefault(where.key, where.dtype.itemsize)
    # After the containers: the keys of the storages, and the numbers of each behind their count.
    storages: dict[str, bytes] = {}
    for key in map(key_text, inert_pickle.load(file).tree):
        (count,) = struct.unpack("<q", _exactly(file, 8))
        storages[key] = _exactly(file, count * sizes[key])
    return contents(tree, lambda where: _numbers(storages, where), _most(file))


def _no_numbers(where: Storage) -> np.ndarray:
    raise ValueError(f"the numbers of storage {where.key} are not in the file")


def _exactly(file: BinaryIO, count: int) -> bytes:
    if not 0 <= count <= length(file) - file.tell():
        raise EOFError("it ends in the middle of a tensor")
    return file.read(count)


def read_contents(path: str | Path) -> Contents:
    """Read everything in a weight file that can be weights, and list what else it would have had made.

    Args:
        path: `.pt`, `.pth` or `.ckpt` in either of torch.save's formats, a pickle of nested dictionaries of NumPy
            arrays or of NVIDIA's networks, or `.safetensors`; told apart by content. The index of a file in parts, a
            part beside its index, or a folder that holds one of all these.

    Raises:
        FileNotFoundError: there is no such file, or a part of it is missing.
        ValueError: the file is damaged or of another kind.
    """
    path = shards.resolve(Path(path))
    if not shards.is_index(path):
        return _read_file(path)
    whole = Contents()
    for file, names in shards.read(path).items():
        part = _read_file(path.parent / file)
        different = sorted(part.tensors.keys() ^ names)
        if different:
            where = "only in the file" if different[0] in part.tensors else "only in the index"
            raise ValueError(
                f"{path.parent / file} is not the file that {path.name} describes: {different[0]} is {where}"
            )
        whole.tensors.update(part.tensors)
        whole.objects.update(part.objects)
    return whole


def weight_files(path: str | Path) -> list[Path]:
    """List the files that `read_contents` reads, the one that names the others first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path does not tell what to read.
    """
    path = shards.resolve(Path(path))
    return [path, *(path.parent / file for file in shards.read(path))] if shards.is_index(path) else [path]


def _read_file(path: Path) -> Contents:
    if not path.exists():
        raise FileNotFoundError(f"no weight file at {path}")
    with opened(path) as file:
        try:
            found = _read_any(path, file)
            if not all(text.isprintable() for text in (*found.tensors, *found.objects, *found.objects.values())):
                raise ValueError("names in it have characters that cannot be printed")
            return found
        except Unusable:
            raise
        except (pickle.UnpicklingError, zipfile.BadZipFile, ValueError, EOFError) as error:
            said = quote(error) if str(error) else "it is damaged"
            raise ValueError(f"{path} cannot be read as weights: {said}") from error
        except Exception as error:  # damaged files surface as anything
            raise ValueError(
                f"{path} cannot be read as weights: it is damaged ({type(error).__name__}: {quote(error)})"
            ) from error


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read a weight file that holds tensors and plain values alone.

    Args:
        path: as `read_contents` takes it.

    Returns:
        Name to array, in the file's order; dots join the names of nested dictionaries. The arrays are read-only views.
        bfloat16 comes as `ml_dtypes.bfloat16`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, or holds anything else; nothing of it was executed.
    """
    found = read_contents(path)
    for what in found.objects.values():
        raise ValueError(f"{path} cannot be read as weights: it {what}{UNMADE}")
    if not found.tensors:
        raise ValueError(f"{path} cannot be read as weights: it holds no dictionary of tensors (a state_dict)")
    return found.tensors


def _read_any(path: Path, file: BinaryIO) -> Contents:
    if zipfile.is_zipfile(file):
        return _read_zip(file)
    file.seek(0)
    start = file.read(16)
    file.seek(0)
    # A safetensors file begins with the length of its header, which begins with a brace.
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return Contents(read_safetensors(path))
    if start[:1] != b"\x80":
        raise ValueError("it is neither a file of torch.save nor safetensors, or its beginning is damaged")
    return _read_pickle(file)
