"""What there is to do: input files, and the names of their results."""

import collections
import dataclasses
import glob
import os
import re
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from ddiff_jax import image_files, readers
from ddiff_jax.files import Unusable

LISTED = 20  # names in one line


@dataclasses.dataclass(frozen=True)
class Job:
    """One input and the names of its results.

    Args:
        path: the input file; with the name of an array or the number of an image in it, see `image_files.read`.
        stem: its name without ending, after the folders between INPUT and it; names its record and decides the random
            numbers.
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
        return zlib.crc32(self.stem.encode("utf-8", "surrogateescape")) & 0x7FFFFFFF  # int32, JAX's default

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


def find_files(inputs: Sequence[str], *, recursive: bool = False) -> tuple[list[Path], list[str]]:
    """Expand files, folders and globs as `find_jobs` does, for whoever writes no results: names may repeat.

    Args:
        inputs: what the command line names.
        recursive: enter the folders inside of folders.

    Returns:
        The files, each once, and lines about what else the folders hold.

    Raises:
        ValueError: a folder or glob without images.
    """
    left_out: list[str] = []
    nowhere = Path(os.devnull)  # no input lies in the folder of the results
    found = [path for text in inputs for path, _ in _expand(text, nowhere, recursive, left_out)]
    return list(dict.fromkeys(found)), left_out


def _expand(text: str, output: Path, recursive: bool, left_out: list[str]) -> list[tuple[Path, str]]:
    """List files with their stems."""
    path = Path(text).expanduser()
    if path.is_dir():
        return _walk(path, output, recursive, left_out)
    if os.path.exists(path) or not glob.has_magic(text) or os.path.exists(image_files.source(path)):
        return _images(path, readers.place_of(path).stem)
    found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    if not found:
        raise ValueError(f"no file matches {text!r}")
    return [image for path in found for image in _images(path, readers.place_of(path).stem)]


def _images(path: Path, stem: str) -> list[tuple[Path, str]]:
    """List the images in a file: each slice of a volume, or those that the brackets name, with its number.

    A file that cannot be read is one: why it cannot is told when it is read, so that it does not stop the others.

    Raises:
        ValueError: it holds no such image.
    """
    place = readers.place_of(path)
    single = [(path, "_".join(filter(None, (stem, re.sub(r"\W+", "_", place.index).strip("_")))))]
    try:
        reader = readers.reader(place)
        count = None if reader is None or place.is_whole else reader.count(place)
    except Unusable:
        return single
    if count is None:
        return single
    return [(place.at(number), f"{stem}_{number:03d}") for number in place.chosen(count)]


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
            if readers.ending(path) in known:
                stem = path.relative_to(top).with_name(readers.Place(path).stem).as_posix()
                found += _images(path, stem)
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


def prepare(folder: Path, flag: str = "--output") -> None:
    """Make the output folder and prove that it can be written, before anything is computed.

    Args:
        folder: which.
        flag: what names it on the command line.

    Raises:
        ValueError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}; choose another {flag}") from error
