"""`ddiff warmup`: compile ahead of time what `ddiff restore` with the same flags will need."""

import time
from collections.abc import Sequence

from ddiff_jax.cli.console import Console
from ddiff_jax.cli.environment import cache_folder, use_compilation_cache
from ddiff_jax.cli.restore import warm_up
from ddiff_jax.cli.settings import read


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    request = read(argv, prog="ddiff warmup")
    if not request.options.cache:
        raise ValueError("ddiff warmup fills the cache of compiled programs; leave --no-cache out")
    if not use_compilation_cache():
        return 2
    started = time.monotonic()
    warm_up(request)
    size = request.options.batch_size or 1
    console = Console(quiet=request.options.quiet)
    console.say(f"compiled in {time.monotonic() - started:.1f} s, for batches of {size} (cache: {cache_folder()})")
    return 0
