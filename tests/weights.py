"""Ways to write weight files as PyTorch does, without PyTorch, and deterministic weights to put into them."""

import collections
import io
import math
import pickle
import struct
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def synthetic(shapes):
    """Make the published test weights: a sine of the flat index, shifted by the tensor's place in the file."""
    tensors = {}
    for n, (key, shape) in enumerate(shapes.items()):
        q = np.arange(math.prod(shape), dtype=np.float64)
        if key.endswith("bias"):
            values = 0.1 * np.sin(0.5 * q + n)
        elif len(shape) == 1:
            values = 1 + 0.1 * np.sin(q + n)
        else:
            values = np.sin(0.7 * q + n) / math.sqrt(math.prod(shape[1:]))
        tensors[key] = values.reshape(shape).astype(np.float32)
    return tensors


def normal_like(shapes, std, seed=0):
    """Draw normal weights for a tree of shapes; in NumPy, since JAX would compile a program for every shape."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(std * generator.standard_normal(s.shape), jnp.float32), shapes)


class Global:
    """Pickles as a reference to a function of another module, which need not be installed."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Tensor:
    """Pickles as a call of PyTorch's tensor constructor on a storage kept elsewhere."""

    def __init__(self, key, array, *, offset=0, shape=None, strides=None, storage="FloatStorage"):
        self.key, self.array, self.storage = key, array, storage
        self.offset, self.shape = offset, array.shape if shape is None else shape
        self.strides = tuple(s // array.itemsize for s in array.strides) if strides is None else strides


_PurePickler: Any = getattr(pickle, "_Pickler")  # noqa: B009 - the C pickler cannot write names of absent modules


class _Pickler(_PurePickler):
    def persistent_id(self, obj: Any):
        if isinstance(obj, tuple) and obj and obj[0] == "storage":
            return obj
        return None

    def save(self, obj: Any, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Tensor):
            self.save(Global("torch._utils", "_rebuild_tensor_v2"))
            storage = ("storage", Global("torch", obj.storage), obj.key, "cpu", obj.array.size)
            self.save((_Ref(storage), obj.offset, obj.shape, obj.strides, False, collections.OrderedDict()))
            self.write(pickle.REDUCE)
        elif isinstance(obj, _Ref):
            self.save(obj.pid, save_persistent_id=False)
            self.write(pickle.BINPERSID)
        else:
            super().save(obj, save_persistent_id)


class _Ref:
    def __init__(self, pid):
        self.pid = pid


def dumps(tree):
    """Pickle a tree of containers, tensors and globals."""
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(tree)
    return buffer.getvalue()


def write_zip(path, tree, storages, *, byteorder=None):
    """Write the format of torch.save since 1.6."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumps(tree))
        if byteorder:
            archive.writestr("archive/byteorder", byteorder)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())


def write_legacy(path, tree, storages):
    """Write the format of torch.save before 1.6."""
    with open(path, "wb") as file:
        for part in (MAGIC, PROTOCOL, {"little_endian": True}):
            file.write(dumps(part))
        file.write(dumps(tree))
        file.write(dumps(list(storages)))
        for array in storages.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())


def write_state_dict(path, tensors, *, write=write_zip):
    """Write a plain state_dict of float32 arrays."""
    storages = {str(i): np.ascontiguousarray(array) for i, array in enumerate(tensors.values())}
    tree = collections.OrderedDict(
        (key, Tensor(str(i), array)) for i, (key, array) in enumerate(zip(tensors, storages.values(), strict=True))
    )
    write(path, tree, storages)
