"""Small facts on disk, one JSON file each: whole or absent, so that any number of processes may write side by side."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddiff_jax import image_files


class Records:
    """The records below one folder, by name; a name may hold slashes."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name: str) -> Path:
        """Name the file of a record."""
        return self.folder / f"{name}.json"

    def load(self, name: str) -> dict[str, Any] | None:
        """Read a record; None if it is absent or damaged, so that it is made again."""
        try:
            record = json.loads(self.path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return record if isinstance(record, dict) else None

    def save(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a record; what it speaks of must be written already."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        image_files.write_text(path, json.dumps(record, indent=1) + "\n")

    def names(self) -> list[str]:
        """List the records that are there, in order."""
        return sorted(str(path.relative_to(self.folder).with_suffix("").as_posix()) for path in self._paths())

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
