"""Tell which records of a pickle are dictionaries, tensors of PyTorch and arrays of NumPy, and read those."""

import dataclasses
import pickle
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from convert_weights.inert_pickle import Call, Name, Reference, is_plain
from ddiff_jax.limits import LONGEST_NAME, LONGEST_RANK, MOST_ENTRIES, SPARE

DTYPES: dict[str, np.dtype] = {
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
DICTIONARIES = ("collections.OrderedDict", "collections.defaultdict", "dnnlib.util.EasyDict")
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
NUMPY = ("numpy.core", "numpy._core")  # before NumPy 2, and since
MOST_LETTERS = 200  # of names on average; dictionaries that hold each other repeatedly unfold without end
MOST_WRAPPERS = 8  # around a tensor


@dataclasses.dataclass(frozen=True)
class Storage:
    """What a pickle says of the raw numbers that tensors are views of."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds.

    Args:
        tensors: array by its name; dots join the names of the dictionaries on the way to it.
        objects: by their names, what else the file would have had made or called; nothing of it was.
        about: settings that lie beside the weights and say what they are, such as a configuration file's.
    """

    tensors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    objects: dict[str, str] = dataclasses.field(default_factory=dict)
    about: dict[str, Any] = dataclasses.field(default_factory=dict)


Numbers = Callable[[Storage], np.ndarray]


def storage(reference: Any) -> Storage:
    """Read what a pickle says of a storage.

    Raises:
        pickle.UnpicklingError: it is no storage of a known type.
    """
    match reference.pid if isinstance(reference, Reference) else None:
        case ("storage", Name("torch", name), str() | int() as key, _, int(count), *view) if (
            name in DTYPES and view in ([], [None])
        ):
            return Storage(key_text(key), DTYPES[name], count)
        case ("storage", Name() as name, *_):
            raise pickle.UnpicklingError(f"its numbers are in a {name}, which this reader does not know")
    raise pickle.UnpicklingError("a tensor without a storage")


def key_text(key: Any) -> str:
    """Spell the key of a storage.

    Raises:
        pickle.UnpicklingError: it is no short text or number; others take as long to spell as their file pleases.
    """
    if isinstance(key, int) and key.bit_length() <= 64:
        key = str(key)
    if not isinstance(key, str) or len(key) > LONGEST_NAME:
        raise pickle.UnpicklingError("a storage without a key")
    return key


def is_module(reference: Reference) -> bool:
    """Tell whether a reference is to a module's class, as files of whole modules before PyTorch 1.6 have them."""
    return isinstance(reference.pid, tuple) and reference.pid[:1] == ("module",)


def contents(tree: Any, numbers: Numbers, most: int = SPARE) -> Contents:
    """Read the tensors of a pickle, wherever its dictionaries hold them.

    Args:
        tree: what `inert_pickle.load` found.
        numbers: gives the numbers of a storage.
        most: bytes that the tensors may come to together, which may share their storages.

    Raises:
        pickle.UnpicklingError: a tensor is damaged, two have one name, a dictionary holds itself, or all together are
            more than the file can mean.
    """
    found, seen, letters, size = Contents(), 0, 0, 0
    within: set[int] = set()
    known: dict[int, dict[Any, Any] | None] = {}  # what is reached on several ways is read once

    def walk(value: Any, name: str) -> None:
        nonlocal seen, letters, size
        if id(value) not in known:
            known[id(value)] = entries(value)
        inside = known[id(value)]
        seen, letters = seen + len(inside or ()), letters + len(name)
        if seen > MOST_ENTRIES or letters > MOST_ENTRIES * MOST_LETTERS or len(name) > LONGEST_NAME:
            raise pickle.UnpicklingError("it holds more entries, or longer names, than any file of weights")
        if inside is not None:
            if id(value) in within:
                raise pickle.UnpicklingError("it holds a dictionary that holds itself")
            within.add(id(value))
            for key, inner in inside.items():
                if isinstance(key, str | int):
                    walk(inner, f"{name}.{key}" if name else str(key))
            within.remove(id(value))
            return
        if name in found.tensors or name in found.objects:
            raise pickle.UnpicklingError(f"it holds {name} twice")
        if (array := _array(value, numbers)) is not None:
            size += array.nbytes
            if size > most:
                raise pickle.UnpicklingError(f"its tensors come to more than {most} bytes, by sharing their numbers")
            found.tensors[name] = array
        elif what := _describe(value):
            letters += len(what)
            found.objects[name] = what

    walk(tree, "")
    return found


def called(value: Any) -> str | None:
    """Name what a call would have called; None for everything else."""
    return str(value.function) if isinstance(value, Call) and isinstance(value.function, Name) else None


def entries(value: Any) -> dict[Any, Any] | None:
    """List the entries of a dictionary of any kind; None for everything else."""
    if isinstance(value, dict):
        return value
    if called(value) not in DICTIONARIES:
        return None
    # Python 2 gives an OrderedDict a list of pairs; a defaultdict's only argument makes absent entries.
    listed = value.args[0] if value.args and isinstance(value.args[0], list) else []
    pairs = (pair for pair in listed if isinstance(pair, list) and len(pair) == 2 and is_plain(pair[0]))
    return {**dict(pairs), **value.items}


def _describe(value: Any) -> str | None:
    if called(value) in [f"{core}.multiarray.scalar" for core in NUMPY]:
        return None  # a number, as plain as one of Python's
    function = value.function if isinstance(value, Call) else value
    if isinstance(function, Reference):
        if not is_module(function):
            return "holds numbers without a shape"
        function = function.pid[1] if function.pid[1:] else None  # behind it is the class's source
    if isinstance(function, Name):
        return f"wants to call {function}"
    return "wants to call what it made" if isinstance(value, Call) else None


def _array(value: Any, numbers: Numbers) -> np.ndarray | None:
    name = called(value)
    for _ in range(MOST_WRAPPERS):
        if name != "torch._utils._rebuild_parameter" or not value.args:
            break
        value = value.args[0]
        name = called(value)
    if name in TENSORS:
        return _tensor(value.args, numbers)
    if name in [f"{core}.multiarray._reconstruct" for core in NUMPY]:
        match value.state:
            case (_, shape, dtype, bool(fortran), data):
                return _numpy(data, dtype, shape, "F" if fortran else "C")
        raise pickle.UnpicklingError("an array without numbers")
    if name in [f"{core}.numeric._frombuffer" for core in NUMPY]:
        match value.args:
            case (data, dtype, shape, "C" | "F" as order):
                return _numpy(data, dtype, shape, order)
        raise pickle.UnpicklingError("an array without numbers")
    return None


def _tensor(args: tuple, numbers: Numbers) -> np.ndarray:
    # What else PyTorch passes (requires_grad, hooks, metadata) says nothing about the numbers.
    match args:
        case (source, int(offset), shape, strides, *_):
            shape, strides = _sizes(shape), _sizes(strides)
        case _:
            raise pickle.UnpicklingError("a tensor without a shape")
    if len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor with as many strides as it has not axes")
    where = storage(source)
    values = numbers(where)
    if 0 in shape:
        return np.zeros(shape, values.dtype)
    reach = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if offset < 0 or reach >= values.size:
        raise pickle.UnpicklingError(f"a tensor of shape {shape} reaches outside of its storage")
    if _product(shape) > values.size:
        raise pickle.UnpicklingError(f"a tensor of shape {shape} is larger than its storage of {values.size} numbers")
    steps = [s * values.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)


def _sizes(value: Any) -> tuple[int, ...]:
    if called(value) == "torch.Size" and len(value.args) == 1:
        (value,) = value.args
    is_short = isinstance(value, list | tuple) and len(value) <= LONGEST_RANK
    if not is_short or not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise pickle.UnpicklingError("a shape that is no row of whole numbers")
    return tuple(value)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _numpy(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    kind, sizes, raw = _dtype(dtype), _sizes(shape), raw_bytes(data)
    if len(raw) != _product(sizes) * kind.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {sizes} with {len(raw)} bytes")
    return np.frombuffer(raw, kind).reshape(sizes, order=order)


def number(value: Any) -> int | float | None:
    """Read a number of Python or NumPy; None for everything else.

    Raises:
        pickle.UnpicklingError: it is a damaged number of NumPy.
    """
    if called(value) in [f"{core}.multiarray.scalar" for core in NUMPY] and len(value.args) == 2:
        kind, raw = _dtype(value.args[0]), raw_bytes(value.args[1])
        if len(raw) != kind.itemsize:
            raise pickle.UnpicklingError(f"a number of {kind.itemsize} bytes in {len(raw)}")
        value = np.frombuffer(raw, kind)[0].item()
    return value if type(value) in (int, float) else None


def raw_bytes(data: Any) -> bytes:
    """Read bytes, or the text that Python 2 and the protocols before 3 write for them.

    Raises:
        pickle.UnpicklingError: it is neither.
    """
    if called(data) == "_codecs.encode" and data.args[1:] == ("latin1",):
        data = data.args[0]
    elif called(data) in ("__builtin__.bytes", "builtins.bytes") and not data.args:
        data = b""
    if isinstance(data, str):
        data = data.encode("latin-1")
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("numbers that are no bytes")
    return data


def _dtype(value: Any) -> np.dtype:
    if called(value) == "numpy.dtype" and value.args:
        kind, order = value.args[0], value.state[1] if isinstance(value.state, tuple) and value.state[1:] else "|"
        if isinstance(kind, Name) and str(kind) == "ml_dtypes.bfloat16":
            return np.dtype(ml_dtypes.bfloat16)
        if isinstance(kind, str) and re.fullmatch(r"b1|[iuf][1248]", kind) and order in ("<", ">", "|", "="):
            return np.dtype(kind).newbyteorder(order)
    raise pickle.UnpicklingError("an array of something else than numbers")
