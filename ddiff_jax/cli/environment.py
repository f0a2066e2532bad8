"""What the command line decides of JAX for as long as it runs: the cache of compiled programs, and no debugging."""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from ddiff_jax.caches import user_cache
from ddiff_jax.cli.complaints import mention

OWN = {"jax_debug_nans": False, "jax_debug_infs": False, "jax_transfer_guard": "allow"}
DIRECTIONS = tuple(f"jax_transfer_guard_{way}" for way in ("host_to_device", "device_to_device", "device_to_host"))


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Switch off what people set to debug programs of their own, in all threads.

    An image that diverges is told and left out, and its neighbours go on; and pictures come from the host.
    """
    with ThreadPoolExecutor(1) as fresh:  # a thread without contexts sees what holds for all
        earlier = {name: fresh.submit(getattr, jax.config, name).result() for name in (*OWN, *DIRECTIONS)}
    for name, value in OWN.items():
        jax.config.update(name, value)
    try:
        with jax.debug_nans(False), jax.debug_infs(False), jax.transfer_guard("allow"):
            yield
    finally:
        for name, value in earlier.items():
            jax.config.update(name, value)


def why_no_device() -> str | None:
    """Say why JAX cannot compute at all; None if it can."""
    try:
        if jax.local_devices():
            return None
        said = "it finds none"
    except Exception as error:  # it differs between versions of JAX
        said = " ".join(str(error).split()) if isinstance(error, RuntimeError) else ""
    asked = getattr(jax.config, "jax_platforms", None)
    return f"JAX has no device to compute on{f' ({said})' * bool(said)}" + (
        f"; JAX_PLATFORMS={asked} asks for one that is not there: leave it out, or install JAX for it" * bool(asked)
    )


def cache_folder() -> Path:
    """Find where compiled programs are kept: JAX_COMPILATION_CACHE_DIR, or below the user's cache folder.

    Raises:
        OSError: this user has none.
    """
    asked = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    try:
        return Path(asked) if asked else user_cache() / "compiled"
    except OSError as error:
        raise OSError(f"{error} or JAX_COMPILATION_CACHE_DIR") from error


def use_compilation_cache() -> bool:
    """Let the next run find every program compiled, the small ones too.

    Returns:
        False where there is no folder that can be written; then all goes on without.
    """
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise OSError(f"cannot write to {folder}")
    except OSError as error:
        mention(f"compiled programs are not kept for the next run: {error}")
        return False
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return True
