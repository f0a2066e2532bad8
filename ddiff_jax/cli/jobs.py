"""What `ddiff restore` reads and writes: input files, the names of results, and metrics.json."""

import collections
import dataclasses
import datetime
import glob
import json
import math
import os
import secrets
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ddiff_jax import image_files
from ddiff_jax.checkpoint import file_hash
from ddiff_jax.records import Records

LISTED = 20  # names in one line
COLUMNS = {"name", "run", "files", "input_sha256"}  # without these a row is none


@dataclasses.dataclass(frozen=True)
class Job:
    """One input and the names of its results.

    Args:
        path: the input file.
        stem: its name without ending, after the folders between INPUT and it; names the row in metrics.json and decides
            the random numbers.
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


@dataclasses.dataclass(frozen=True)
class Found:
    """What the inputs are.

    Args:
        jobs: one for every file that can be read by its ending.
        left_out: lines about what else the folders hold.
    """

    jobs: list[Job]
    left_out: list[str]


def find_jobs(inputs: Sequence[str], folder: Path, *, recursive: bool = False) -> Found:
    """Expand files, folders and globs, in this order and sorted inside each.

    A named file that is missing is found out when it is read, so that it does not stop the others.

    Args:
        inputs: what the command line names.
        folder: for the results; with `recursive` they lie in it as the inputs lie in theirs.
        recursive: enter the folders inside of folders.

    Raises:
        ValueError: a folder or glob without images, the output folder among the inputs, or two inputs whose results
            would have the same names.
    """
    stems: dict[str, Path] = {}
    left_out: list[str] = []
    for text in inputs:
        for path, stem in _expand(text, folder.resolve(), recursive, left_out):
            other = stems.setdefault(stem, path)
            if other != path:
                raise ValueError(
                    f"{other} and {path} would both become {stem}_restored.png; rename one, restore them into "
                    "different --output folders, or give the folder above both with --recursive"
                )
            if path.resolve().parent == (folder / stem).resolve().parent:
                raise ValueError(f"{path} lies in the output folder itself; choose another --output")
    return Found([Job(path, stem, f"{stem}_", folder) for stem, path in stems.items()], left_out)


def _expand(text: str, output: Path, recursive: bool, left_out: list[str]) -> list[tuple[Path, str]]:
    """List files with their stems."""
    path = Path(text).expanduser()
    if path.is_dir():
        return _walk(path, output, recursive, left_out)
    if path.exists() or not glob.has_magic(text):
        return [(path, path.stem)]
    found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    if not found:
        raise ValueError(f"no file matches {text!r}")
    return [(path, path.stem) for path in found]


def _walk(top: Path, output: Path, recursive: bool, left_out: list[str]) -> list[tuple[Path, str]]:
    """List the images of a folder, and say what else it holds. Hidden files and links to folders are not followed."""
    known = image_files.suffixes()
    found: list[tuple[Path, str]] = []
    others: collections.Counter[str] = collections.Counter()
    unseen: list[str] = []

    def unreadable(error: OSError) -> None:
        left_out.append(f"{error.filename} cannot be read: {error.strerror}")

    for parent, folders, files in os.walk(top, onerror=unreadable):
        here = Path(parent)
        inside = sorted(name for name in folders if not name.startswith(".") and (here / name).resolve() != output)
        folders[:] = inside if recursive else []
        unseen += [
            str((here / name).relative_to(top)) for name in inside if not recursive or (here / name).is_symlink()
        ]
        for name in sorted(name for name in files if not name.startswith(".")):
            path = here / name
            if path.suffix.lower() in known:
                found.append((path, path.relative_to(top).with_suffix("").as_posix()))
            else:
                others[path.suffix.lower() or "no ending"] += 1
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        left_out.append(f"{top}: {_count(others.total(), 'file')} of types that are not read ({kinds})")
    if unseen:
        hint = "" if recursive else "; --recursive enters them"
        left_out.append(f"{top}: {_count(len(unseen), 'sub-folder')} ({some(unseen)}){hint}")
    if not found:
        more = f"; it holds {'; '.join(line.partition(': ')[2] for line in left_out)}" if left_out else ""
        raise ValueError(f"the folder {top} holds no image (PNG, JPEG, TIFF, WebP, .npy and others){more}")
    return sorted(found)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def some(names: Sequence[str]) -> str:
    """List names, at most `LISTED` of them."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"


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

    It is merged from records, one file per image and per run, which processes that share the folder add without
    knowing of each other. Rows of earlier runs stay; a row is replaced when its image is restored again.
    """

    def __init__(self, folder: Path):
        """Look at what is there.

        Raises:
            ValueError: there is a metrics.json that is not ours.
        """
        self.path = folder / "metrics.json"
        self._rows, self._runs = Records(folder / "records" / "images"), Records(folder / "records" / "runs")
        now = datetime.datetime.now(datetime.UTC)
        self._run = f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"
        self._settings: dict[str, Any] = {}
        if self.path.exists():
            try:
                json.loads(self.path.read_text(encoding="utf-8"))["images"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"{self.path} is damaged ({error}); move it away or choose another --output"
                ) from error

    def row(self, job: Job) -> dict[str, Any] | None:
        """Read the row of an image, if it and the run that made it are recorded."""
        return self._row(job.stem)

    def _row(self, name: str) -> dict[str, Any] | None:
        row = self._rows.load(name) or {}
        return row if COLUMNS <= row.keys() and self._settings_of(row["run"]) is not None else None

    def has_traces(self, job: Job) -> bool:
        """Tell whether an image was restored before, whatever is left of it."""
        return job.result("restored").exists() or self._rows.path(job.stem).exists()

    def is_done(self, job: Job) -> bool:
        """Tell whether an image has its row and all its results, whole."""
        row = self.row(job)
        return row is not None and all(image_files.is_whole(job.folder / name) for name in row["files"].values())

    def _settings_of(self, run: str) -> dict[str, Any] | None:
        if run not in self._settings:
            self._settings[run] = (self._runs.load(run) or {}).get("settings")
        return self._settings[run]

    def differences(self, job: Job, settings: dict[str, Any]) -> list[str]:
        """Name what differs between an image's earlier run and this one: settings, or the input itself."""
        row = self.row(job)
        if row is None:
            return []
        earlier, settings = self._settings_of(row["run"]) or {}, json.loads(json.dumps(settings))
        different = [key for key in settings.keys() | earlier.keys() if settings.get(key) != earlier.get(key)]
        same_input = not job.path.is_file() or row["input_sha256"] == file_hash(job.path)
        return different if same_input else [*different, "input"]

    def save_run(self, run: dict[str, Any]) -> None:
        """Record how far this run has come; call it before its first row, and again when there is more to say."""
        self._runs.save(self._run, _finite(run))

    def save_row(self, row: dict[str, Any]) -> None:
        """Record a row of this run, whose results are written."""
        self._rows.save(row["name"], {**_finite(row), "run": self._run})

    def merge(self) -> dict[str, Any]:
        """Write metrics.json from all records, and return what it holds."""
        while True:
            before = self._rows.state()
            document = self._document()
            text = json.dumps(document, indent=1, allow_nan=False) + "\n"
            if not self.path.exists() or self.path.read_text(encoding="utf-8") != text:
                image_files.write_text(self.path, text)
            # Who recorded an image meanwhile may have written the file before us. If not, it writes after us.
            if self._rows.state() == before:
                return document

    def _document(self) -> dict[str, Any]:
        rows = [row for name in self._rows.names() if (row := self._row(name)) is not None]
        names = sorted({row["run"] for row in rows} | {self._run})
        runs = {name: run for name in names if (run := self._runs.load(name)) is not None}
        order = list(runs)
        images = [{**row, "run": order.index(row["run"])} for row in rows]
        alike = all(run["settings"] == runs[order[0]]["settings"] for run in runs.values())
        return {
            # Only what was restored with the same settings is averaged.
            "mean": {k: _mean(row.get(k) for row in images) for k in ("psnr", "ssim", "misfit")} if alike else None,
            "images": sorted(images, key=lambda row: row["name"]),
            "runs": list(runs.values()),
        }


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
