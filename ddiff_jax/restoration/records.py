"""Small facts on disk, one JSON file each: whole or absent, so that any number of processes may write side by side."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddiff_jax import image_files
from ddiff_jax.files import read_text

CHECKSUM = "checksum"


def fingerprint(*parts: Any) -> str:
    """Hash values that JSON can hold, or that print themselves."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not know, by null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Records:
    """The records below one folder, by name; a name may hold slashes. Every record carries its own checksum."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name: str) -> Path:
        """Name the file of a record."""
        return self.folder / f"{name}.json"

    def load(self, name: str) -> dict[str, Any] | None:
        """Read a record; None if it is absent or damaged, so that it is made again."""
        try:
            record = json.loads(read_text(self.path(name)))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or record.pop(CHECKSUM, None) != fingerprint(record):
            return None
        return record

    def save(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a record; what it speaks of must be written already."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = json.loads(json.dumps(finite(dict(record))))  # as it will be read
        image_files.write_text(path, json.dumps({**record, CHECKSUM: fingerprint(record)}, indent=1) + "\n")

    def forget(self, name: str) -> None:
        """Take a record back, before what it speaks of is replaced."""
        self.path(name).unlink(missing_ok=True)

    def exists(self, name: str) -> bool:
        """Tell whether there is a record, whole or not."""
        return os.path.exists(self.path(name))  # of a name that is too long, too

    def names(self) -> list[str]:
        """List the records that are there, in order."""
        return sorted(str(path.relative_to(self.folder))[: -len(".json")] for path in self._paths())

    def state(self) -> frozenset[tuple[str, int]]:
        """Sum up what is there, so that two readings can be compared: names and times of writing."""
        return frozenset((str(path), _time(path)) for path in self._paths())

    def _paths(self) -> Iterator[Path]:
        return self.folder.rglob("*.json")


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # another process just replaced it
        return 0
