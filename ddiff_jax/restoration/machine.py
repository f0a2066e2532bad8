"""What a restoration needs to know of the machine: versions, devices, and how many images go together."""

import contextlib
import math
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax

from ddiff_jax._version import __version__
from ddiff_jax.types import ImageShape


def versions() -> dict[str, str]:
    """Name the versions that decide results."""
    installed = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    return {"ddiff_jax": __version__, **installed, "python": platform.python_version()}


def device_in_words(device: Any) -> str:
    """Name a device for people."""
    return f"cpu ({os.cpu_count()} cores)" if device.platform == "cpu" else f"{device.device_kind} ({device.platform})"


CPU_BATCH = 8 * 64 * 64  # pixels per device: with more the first result takes longer
ACCELERATOR_BATCH = 16  # images per device; of them `solve` takes as many at a time as fit into memory


def check_batch_size(asked: int | None) -> None:
    """Refuse a batch without images.

    Raises:
        ValueError: less than 1 is asked for.
    """
    if asked is not None and asked < 1:
        raise ValueError(f"--batch-size must be at least 1; got {asked}")


def choose_batch_size(asked: int | None, num_images: int, shape: ImageShape) -> int:
    """Take the batch size that was asked for, or all images up to a limit; a multiple of the devices of this process.

    Args:
        asked: images in a batch, if somebody said so.
        num_images: in all.
        shape: of an image.

    Raises:
        ValueError: less than 1 is asked for.
    """
    num_devices = jax.local_device_count()
    if asked is None:
        on_cpu = max(1, CPU_BATCH // math.prod(shape[:-1]))
        limit = on_cpu if jax.default_backend() == "cpu" else ACCELERATOR_BATCH
        return num_devices * min(math.ceil(num_images / num_devices), limit)
    check_batch_size(asked)
    return num_devices * math.ceil(asked / num_devices)


def image_mesh(batch_size: int) -> jax.sharding.Mesh | None:
    """Line up the devices of this process to share the images of a batch; None if there is one.

    Batches are filled up to a multiple of the devices (`choose_batch_size`); one that is not keeps to one device.
    """
    devices = jax.local_devices()
    if len(devices) == 1 or batch_size % len(devices):
        return None
    return jax.make_mesh((len(devices),), ("images",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


class OutOfMemory(ValueError):
    """So many images do not fit into a device's memory."""


@contextlib.contextmanager
def out_of_memory(num_images: int) -> Iterator[None]:
    """Turn a device's want of memory into advice.

    Args:
        num_images: how many images are computed at once.

    Raises:
        OutOfMemory: there is too little memory for them.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(f"out of memory with {num_images} images at once; lower --batch-size") from error
