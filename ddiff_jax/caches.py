"""Where things are kept that can be made again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Find this library's folder below the user's cache folder, XDG_CACHE_HOME or ~/.cache.

    Raises:
        OSError: this user has none.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache") / "ddiff_jax"
    except RuntimeError as error:
        raise OSError("this user has no home folder; set XDG_CACHE_HOME") from error
