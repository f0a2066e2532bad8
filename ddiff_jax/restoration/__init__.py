"""Restoring files: settings as values, inputs, batches, and the records of what is done.

Where a default is decided: `settings`. Where a file is read: `reading`. Where a result is written: `results`, and its
record: `store`. The commands in `ddiff_jax.cli` only turn what people type into these values.
"""

from ddiff_jax.restoration.jobs import Job, find_jobs
from ddiff_jax.restoration.settings import Settings, resolve

__all__ = ["Job", "Settings", "find_jobs", "resolve"]
