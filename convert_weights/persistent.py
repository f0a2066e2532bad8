"""Read NVIDIA's persistent objects: whole modules in a pickle, beside the source of their classes, of which none runs.

What is found becomes what `records.contents` reads: dictionaries of tensors, named as their state_dict names them.
"""

import io
import pickle
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert_weights import inert_pickle
from convert_weights.inert_pickle import Call, Name, Reference
from convert_weights.records import (
    DTYPES,
    MOST_WRAPPERS,
    TENSORS,
    Numbers,
    Storage,
    called,
    entries,
    number,
    raw_bytes,
    storage,
)
from ddiff_jax.files import quote

RECONSTRUCT = "torch_utils.persistence._reconstruct_persistent_obj"
STREAM = "torch.storage._load_from_bytes"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MOST_STREAMS = 2000  # storages with pickles of their own; published networks have up to 554
MOST_WORDS = 64  # instructions of each of them
DEEPEST = 32  # modules in modules

PRECONDS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}
NETWORKS = ("SongUNet", "DhariwalUNet")
EDM2 = ("Precond", "UNet")
SETTINGS = "img_resolution img_channels label_dim sigma_min sigma_max sigma_data beta_d beta_min M".split()


def unfold(tree: Any, numbers: Numbers) -> tuple[Any, Numbers, dict[str, Any]]:
    """Turn persistent networks into dictionaries: a pickle that is one, or the entries of its dictionary that are.

    Args:
        tree: what `inert_pickle.load` found.
        numbers: gives the numbers of a storage outside of the pickle.

    Returns:
        The tree with dictionaries for networks (of several the averaged one, "ema", alone), what gives the numbers of
        storages in them as well, and what their attributes say. Other trees come back as they are.

    Raises:
        pickle.UnpicklingError: a network is damaged, or of a class that is not known.
    """
    if called(tree) == RECONSTRUCT:
        reader = _Reader(numbers)
        return reader.network(tree), reader.numbers, reader.about[0]
    listed = entries(tree) or {}
    found = {name: value for name, value in listed.items() if called(value) == RECONSTRUCT}
    if not found:
        return tree, numbers, {}
    reader = _Reader(numbers)
    chosen = {"ema": found["ema"]} if "ema" in found else {k: v for k, v in found.items() if _holds_modules(v)}
    made = {name: reader.network(value) for name, value in chosen.items()}
    same = all(about == reader.about[0] for about in reader.about)
    return {**listed, **made}, reader.numbers, reader.about[0] if made and same else {}


def _record(value: Any) -> tuple[str, Mapping[Any, Any]]:
    """Read the name of an object's class and its attributes."""
    match value.args:
        case ({"type": "class", "class_name": str(name), "state": state},) if (found := entries(state)) is not None:
            return name, found
    raise pickle.UnpicklingError("a persistent object without a class or a state")


def _holds_modules(value: Any) -> bool:
    return "_modules" in _record(value)[1]


def _is_module(value: Any) -> bool:
    """Tell whether a value is a module: a persistent one, or one of PyTorch's own, such as a dictionary of modules."""
    return called(value) == RECONSTRUCT or (called(value) or "").startswith("torch.nn.modules.")


def _elements(value: Any) -> list[Any]:
    """List the elements of a set, which protocol 2 calls with a list of them."""
    if called(value) in ("__builtin__.set", "builtins.set") and value.args:
        (value,) = value.args[:1]
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


class _Reader:
    """Reads the networks of one pickle; what is reached on several ways is read once."""

    def __init__(self, numbers: Numbers):
        self.about: list[dict[str, Any]] = []
        self._outside = numbers
        self._modules: dict[int, dict[Any, Any]] = {}
        self._streams: dict[int, str] = {}  # key by the identity of its bytes
        self._stored: dict[str, tuple[Storage, np.ndarray]] = {}

    def numbers(self, where: Storage) -> np.ndarray:
        """Give the numbers of a storage."""
        found = self._stored.get(where.key)
        return found[1] if found is not None and found[0] == where else self._outside(where)

    def network(self, value: Any) -> dict[Any, Any]:
        """Read a network by the names of its state_dict, and note what its attributes say."""
        name, state = _record(value)
        if name in EDM2:
            raise pickle.UnpicklingError(
                f"it holds an EDM2 network (class {name}), whose layers preserve magnitudes: they are not supported; "
                "networks of the first EDM are"
            )
        if name not in (*PRECONDS, *NETWORKS):
            known = ", ".join((*PRECONDS, *NETWORKS))
            raise pickle.UnpicklingError(f"it holds a network of class {quote(name)}; known are {known}")
        about = {key: found for key in SETTINGS if (found := number(state.get(key))) is not None}
        precond = {"precond": PRECONDS[name]} if name in PRECONDS else {}
        self.about.append({"class_name": name, **precond, **about})
        return self._module(value, 0)

    def _module(self, value: Any, depth: int) -> dict[Any, Any]:
        if id(value) in self._modules:
            return self._modules[id(value)]
        if depth == DEEPEST:
            raise pickle.UnpicklingError(f"it holds modules inside of each other, {depth} deep or in a circle")
        state = _record(value)[1] if called(value) == RECONSTRUCT else entries(value.state) or {}
        found: dict[Any, Any] = {}
        for part in ("_parameters", "_buffers", "_modules"):
            hidden = _elements(state.get("_non_persistent_buffers_set")) if part == "_buffers" else []
            for name, inner in (entries(state.get(part)) or {}).items():
                if inner is None or name in hidden:
                    continue
                if name in found:
                    raise pickle.UnpicklingError(f"it holds {quote(name)} twice in one module")
                is_module = part == "_modules" and _is_module(inner)
                found[name] = self._module(inner, depth + 1) if is_module else self._tensor(inner)
        self._modules[id(value)] = found
        return found

    def _tensor(self, value: Any) -> Any:
        """Replace a storage that is inside of a call by a reference; what is no tensor stays what it is."""
        for _ in range(MOST_WRAPPERS):
            if called(value) != "torch._utils._rebuild_parameter" or not value.args:
                break
            value = value.args[0]
        if called(value) not in TENSORS or not value.args or called(value.args[0]) != STREAM:
            return value
        where = self._stored[self._stream(value.args[0])][0]
        kind = next(name for name, dtype in DTYPES.items() if dtype == where.dtype)
        pid = ("storage", Name("torch", kind), where.key, "cpu", where.count)
        return Call(value.function, (Reference(pid), *value.args[1:]))

    def _stream(self, call: Any) -> str:
        data = call.args[0] if call.args else None
        # Protocol 2 writes bytes as text; the same text in many calls is one stream.
        same = data.args[0] if isinstance(data, Call) and data.args else data
        if id(same) not in self._streams:
            if len(self._streams) == MOST_STREAMS:
                raise pickle.UnpicklingError(f"it holds more than {MOST_STREAMS} storages in pickles of their own")
            key = f"stream {len(self._streams)}"
            self._streams[id(same)] = key
            self._stored[key] = _read_stream(raw_bytes(data), key)
        return self._streams[id(same)]


def _read_stream(data: bytes, key: str) -> tuple[Storage, np.ndarray]:
    """Read one storage as torch.save wrote it before 1.6: five pickles, the count of the numbers, and these.

    Raises:
        pickle.UnpicklingError: it is anything else.
    """
    file = io.BytesIO(data)
    magic, protocol, system, one, keys = (inert_pickle.load(file, MOST_WORDS).tree for _ in range(5))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not isinstance(system, dict):
        raise pickle.UnpicklingError("its numbers are not in the form of torch.save")
    if not system.get("little_endian", True):
        raise pickle.UnpicklingError("its numbers are big-endian; save it again on a little-endian machine")
    where, start = storage(one), file.tell() + 8
    if not isinstance(keys, list) or len(keys) != 1 or keys[0] != where.key or len(data) < start:
        raise pickle.UnpicklingError("a storage of its numbers is damaged")
    (count,) = struct.unpack("<q", data[start - 8 : start])
    size = where.dtype.itemsize * where.count
    if count != where.count or len(data) != start + size:
        raise pickle.UnpicklingError(f"a storage of {quote(repr(where.count))} numbers holds {len(data) - start} bytes")
    return Storage(key, where.dtype, where.count), np.frombuffer(data, where.dtype, offset=start)
