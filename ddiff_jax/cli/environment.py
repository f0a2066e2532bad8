"""Facts about this machine and installation, and the cache of compiled programs."""

import math
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ddiff_jax._version import __version__
from ddiff_jax.priors import DiffusionPrior


def versions() -> dict[str, str]:
    """Name the versions that decide results."""
    installed = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    return {"ddiff_jax": __version__, **installed, "python": platform.python_version()}


def describe(device: Any) -> str:
    """Name a device for people."""
    return f"cpu ({os.cpu_count()} cores)" if device.platform == "cpu" else f"{device.device_kind} ({device.platform})"


CPU_BATCH, ACCELERATOR_BATCH = 8, 16  # images per device


def choose_batch_size(asked: int | None, num_images: int) -> int:
    """Take the batch size that was asked for, or all images up to a limit, equally many on every device.

    Raises:
        ValueError: less than 1 is asked for.
    """
    if asked is None:
        num_devices = jax.device_count()
        limit = CPU_BATCH if jax.default_backend() == "cpu" else ACCELERATOR_BATCH
        return num_devices * min(math.ceil(num_images / num_devices), limit)
    if asked < 1:
        raise ValueError(f"--batch-size must be at least 1; got {asked}")
    return asked


def image_mesh(batch_size: int) -> jax.sharding.Mesh | None:
    """Line up all devices to share the images of a batch; None if there is one, or the batch does not divide evenly."""
    count = jax.device_count()
    if count == 1 or batch_size % count:
        return None
    return jax.make_mesh((count,), ("images",), axis_types=(jax.sharding.AxisType.Auto,))


def cache_folder() -> Path:
    """Find where compiled programs are kept: JAX_COMPILATION_CACHE_DIR, or below the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path(base) / "ddiff_jax" / "compiled")


def use_compilation_cache() -> None:
    """Let the next run find every program compiled, the small ones too."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def evaluation_flops(prior: DiffusionPrior) -> float:
    """Count the floating-point operations of one evaluation of the network on one image, without compiling it."""
    x = jax.ShapeDtypeStruct(prior.image_shape, jnp.float32)
    level = jax.tree.map(jnp.float32, prior.schedule.levels(1)[0])
    analysis = jax.jit(lambda prior, x, level: prior.denoise(x, level)).lower(prior, x, level).cost_analysis()
    return float((analysis or {}).get("flops", float("nan")))
