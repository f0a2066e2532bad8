"""The cache of compiled programs."""

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """Find where compiled programs are kept: JAX_COMPILATION_CACHE_DIR, or below the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path(base) / "ddiff_jax" / "compiled")


def use_compilation_cache() -> None:
    """Let the next run find every program compiled, the small ones too."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
