"""What `ddiff restore` reads and writes: input files, the names of results, and metrics.json."""

import dataclasses
import glob
import json
import math
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ddiff_jax import io
from ddiff_jax.checkpoint import file_hash


@dataclasses.dataclass(frozen=True)
class Job:
    """One input and the names of its results.

    Args:
        path: the input file.
        stem: its name without ending; names the row in metrics.json and decides the random numbers.
        prefix: what the names of the results start with.
        folder: where they go.
    """

    path: Path
    stem: str
    prefix: str
    folder: Path

    @property
    def image_id(self) -> int:
        """Identity of the image: the same in every folder and company, unlike its place in a list."""
        return zlib.crc32(self.stem.encode()) & 0x7FFFFFFF  # int32, JAX's default

    def result(self, kind: str, suffix: str = ".png") -> Path:
        """Name one result, for example "restored"."""
        return self.folder / f"{self.prefix}{kind}{suffix}"


def find_jobs(inputs: Sequence[str], folder: Path) -> list[Job]:
    """Expand files, folders and globs, in this order and sorted inside each.

    A named file that is missing is found out when it is read, so that it does not stop the others.

    Raises:
        ValueError: a folder or glob without images, the output folder among the inputs, or two inputs whose results
            would have the same names.
    """
    paths = list(dict.fromkeys(path for text in inputs for path in _expand(text)))
    stems: dict[str, Path] = {}
    for path in paths:
        other = stems.setdefault(path.stem, path)
        if other != path:
            raise ValueError(
                f"{other} and {path} would both become {path.stem}_restored.png; rename one, or restore them into "
                "different --output folders"
            )
        if path.resolve().parent == folder.resolve():
            raise ValueError(f"{path} lies in the output folder itself; choose another --output")
    return [Job(path, path.stem, f"{path.stem}_", folder) for path in paths]


def _expand(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        known = (*io.PICTURE_SUFFIXES, *io.ARRAY_SUFFIXES)
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in known and not p.name.startswith("."))
        if not found:
            raise ValueError(f"the folder {text} holds no image (of {', '.join(known)})")
        return found
    if path.exists() or not glob.has_magic(text):
        return [path]
    found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    if not found:
        raise ValueError(f"no file matches {text!r}")
    return found


def prepare(folder: Path) -> None:
    """Make the output folder and prove that it can be written, before anything is computed.

    Raises:
        ValueError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}; choose another --output") from error


class Ledger:
    """metrics.json: one row per image, and one entry per run that rows point to.

    Rows of earlier runs stay; a row is replaced when its image is restored again.
    """

    def __init__(self, folder: Path):
        """Read what is there.

        Raises:
            ValueError: metrics.json is damaged.
        """
        self.path = folder / "metrics.json"
        self.rows: dict[str, dict[str, Any]] = {}
        self._runs: list[dict[str, Any]] = []
        self.document: Any = None
        if self.path.exists():
            try:
                self.document = json.loads(self.path.read_text(encoding="utf-8"))
                self.rows = {row["name"]: row for row in self.document["images"]}
                self._runs = self.document["runs"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path} is damaged ({error}); move it away or choose another --output"
                ) from error

    def differences(self, job: Job, settings: dict[str, Any]) -> list[str]:
        """Name what differs between an image's earlier run and this one: settings, or the input itself."""
        row = self.rows.get(job.stem)
        if row is None:
            return []
        earlier, settings = self._runs[row["run"]]["settings"], json.loads(json.dumps(settings))
        different = [key for key in settings.keys() | earlier.keys() if settings.get(key) != earlier.get(key)]
        same_input = not job.path.is_file() or row["input_sha256"] == file_hash(job.path)
        return different if same_input else [*different, "input"]

    def save(self, rows: Iterable[dict[str, Any]], run: dict[str, Any]) -> None:
        """Add the rows of this run and write the file. Call it again with more rows of the same run."""
        merged = self.rows | {row["name"]: {**row, "run": len(self._runs)} for row in rows}
        runs = [*self._runs, run]
        used = sorted({row["run"] for row in merged.values()} | {len(self._runs)})
        alike = all(runs[i]["settings"] == run["settings"] for i in used)
        images = [{**row, "run": used.index(row["run"])} for row in merged.values()]
        self.document = _finite(
            {
                # Only what was restored with the same settings is averaged.
                "mean": {k: _mean(row.get(k) for row in images) for k in ("psnr", "ssim", "misfit")} if alike else None,
                "images": sorted(images, key=lambda row: row["name"]),
                "runs": [runs[i] for i in used],
            }
        )
        io.write_text(self.path, json.dumps(self.document, indent=1, allow_nan=False) + "\n")


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [v for v in values if v is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not know, by null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
