"""Read PyTorch's weight files without PyTorch, and without running anything that they contain.

Both formats are pickles of nested containers whose tensors refer to raw storages kept beside the pickle. Unpickling
calls whatever functions a file names, so this reader knows a handful of names by heart and refuses every other.
"""

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "ByteStorage": np.dtype(np.uint8),
    "CharStorage": np.dtype(np.int8),
    "ShortStorage": np.dtype(np.int16),
    "IntStorage": np.dtype(np.int32),
    "LongStorage": np.dtype(np.int64),
    "BoolStorage": np.dtype(np.bool_),
}


class _Storage(NamedTuple):
    """Name of the raw numbers that tensors are views of.

    It and `_Tensor` are tuples, not objects with attributes, because a pickle may overwrite attributes of whatever it
    is given: with another dtype than that of its bytes, a storage would be read beyond its end.
    """

    dtype: np.dtype
    key: str


class _Tensor(NamedTuple):
    """A view of a storage, resolved once the numbers of all storages are read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def resolve(self, values: np.ndarray) -> np.ndarray:
        """Cut the view out of the storage's numbers."""
        if 0 in self.shape:
            return np.zeros(self.shape, values.dtype)
        reach = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.shape, *self.strides)) < 0 or reach >= values.size:
            raise ValueError(f"a tensor of shape {self.shape} reaches outside of its storage")
        strides = [s * values.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides).copy()


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    # What else PyTorch passes (requires_grad, hooks, metadata) says nothing about the numbers.
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Reads containers, numbers, strings and tensors; refuses everything else."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Look up one of the few names that weights need."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"it wants to call {module}.{name}, which is no part of a plain set of tensors; nothing was executed. "
                "If you trust the file, load it in PyTorch and save its state_dict() alone"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Find the storage that a tensor refers to."""
        match pid:
            case ("storage", np.dtype() as dtype, key, _, _) | ("storage", np.dtype() as dtype, key, _, _, None):
                self.dtypes.setdefault(str(key), dtype)
                return _Storage(dtype, str(key))
        raise pickle.UnpicklingError(f"unknown kind of reference {pid!r}")


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise ValueError("the archive holds no data.pkl: it was not written by torch.save")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are big-endian; save it again on a little-endian machine")
        storages: dict[str, bytes] = {}

        def values(storage: _Storage) -> np.ndarray:
            if storage.key not in storages:
                storages[storage.key] = archive.read(f"{folder}data/{storage.key}")
            return np.frombuffer(storages[storage.key], storage.dtype)

        return _resolve(_Unpickler(io.BytesIO(archive.read(pickles[0]))).load(), values)


def _read_legacy(file: BinaryIO) -> Any:
    header = [_Unpickler(file).load() for _ in range(3)]
    if header[:2] != [LEGACY_MAGIC, LEGACY_PROTOCOL] or not isinstance(header[2], dict):
        raise ValueError("it does not start like a file of torch.save")
    if not header[2].get("little_endian", True):
        raise ValueError("its numbers are big-endian; save it again on a little-endian machine")
    unpickler = _Unpickler(file)
    tree = unpickler.load()
    # After the containers: the keys of the storages, and the numbers of each behind their count.
    storages: dict[str, bytes] = {}
    for key in map(str, _Unpickler(file).load()):
        (count,) = struct.unpack("<q", _exactly(file, 8))
        storages[key] = _exactly(file, count * unpickler.dtypes[key].itemsize)
    return _resolve(tree, lambda storage: np.frombuffer(storages[storage.key], storage.dtype))


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError("it ends in the middle of a tensor")
    return data


def _resolve(tree: Any, values: Callable[[_Storage], np.ndarray]) -> Any:
    if isinstance(tree, _Tensor):
        return tree.resolve(values(tree.storage))
    if isinstance(tree, dict):
        return {key: _resolve(value, values) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_resolve(value, values) for value in tree]
    return tree


def _state_dict(tree: Any) -> dict[str, np.ndarray]:
    """Find the one flat dictionary of tensors in what was read."""
    if isinstance(tree, dict):
        if tree and all(isinstance(value, np.ndarray) for value in tree.values()):
            return {str(key): value for key, value in tree.items()}
        inner = {k: v for k, v in tree.items() if isinstance(v, dict) and v}
        flat = {k: v for k, v in inner.items() if all(isinstance(value, np.ndarray) for value in v.values())}
        if len(flat) == 1:
            return _state_dict(next(iter(flat.values())))
        if flat:
            raise ValueError(
                f"it holds several sets of tensors ({', '.join(map(str, flat))}); save the one you want on its own"
            )
    raise ValueError("it holds no dictionary of tensors (a state_dict)")


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read the tensors of a weight file.

    Args:
        path: `.pt` or `.pth` in either of torch.save's formats, or `.safetensors`; told apart by content. A
            state_dict one level down (under "state_dict", "ema", ...) is found if it is the only one, and a prefix
            "module." that all keys share is dropped.

    Returns:
        Key to array, in the file's order. bfloat16 comes as `ml_dtypes.bfloat16`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, or wants to run code; nothing of it was executed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}")
    try:
        tensors = _read_any(path)
    except (pickle.UnpicklingError, zipfile.BadZipFile, ValueError, EOFError, KeyError, struct.error) as error:
        raise ValueError(f"{path} cannot be read as weights: {error or 'it is damaged'}") from error
    except (
        AttributeError,
        IndexError,
        TypeError,
        ImportError,
        UnicodeDecodeError,
        OverflowError,
        MemoryError,
        RecursionError,
        NotImplementedError,
    ) as error:
        # Damaged pickles surface as any of these.
        raise ValueError(
            f"{path} cannot be read as weights: it is damaged ({type(error).__name__}: {error})"
        ) from error
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _read_any(path: Path) -> dict[str, np.ndarray]:
    if zipfile.is_zipfile(path):
        return _state_dict(_read_zip(path))
    with path.open("rb") as file:
        start = file.read(16)
        file.seek(0)
        # A safetensors file begins with the length of its header, which begins with a brace.
        if start[8:9] == b"{" or path.suffix == ".safetensors":
            return _read_safetensors(path)
        if start[:1] != b"\x80":
            raise ValueError("it is neither a file of torch.save nor safetensors, or its beginning is damaged")
        return _state_dict(_read_legacy(file))


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
