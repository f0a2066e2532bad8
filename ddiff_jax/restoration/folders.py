"""Clean images in whole folders: read one after the other to one size, whatever they are."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from ddiff_jax import image_files
from ddiff_jax.files import Caution, Fine
from ddiff_jax.restoration.jobs import find_files
from ddiff_jax.restoration.reading import read_clean

READERS = 4  # threads; one decodes at a time, and the others wait for the disk or resize
AHEAD = 64  # images read before they are asked for
SAY_SECONDS = 20.0  # between two lines about how far it is


@runtime_checkable
class Listener(Protocol):
    """Hears how the reading goes, as the command line's console does."""

    def say(self, text: str) -> None:
        """Hear a line about all of it."""
        ...

    def note(self, about: str, text: str) -> None:
        """Hear what was done to one file, or what is doubtful about it."""
        ...

    def fail(self, text: str) -> None:
        """Hear of a file that cannot be read."""
        ...


class Lines(list[str]):
    """Keeps what a listener is told."""

    def say(self, text: str) -> None:
        """Keep a line about all of it."""
        self.append(text)

    def note(self, about: str, text: str) -> None:
        """Keep what is doubtful about a file."""
        self.append(f"{about}: {text}")

    def fail(self, text: str) -> None:
        """Keep that a file cannot be read."""
        self.append(text)


@dataclasses.dataclass(frozen=True)
class Clean:
    """A clean image from a file.

    Args:
        path: the file.
        x: the image in [-1, 1].
        notes: what was done to it.
    """

    path: Path
    x: Float[np.ndarray, "H W C"]
    notes: list[str]

    @property
    def is_coarse(self) -> bool:
        """Whether it comes from a picture of at most 8 bits, and rounding it to these keeps what it showed."""
        return not image_files.is_array(self.path) and not any(isinstance(note, Fine) for note in self.notes)


def find_clean(inputs: Sequence[str], listener: Listener, *, recursive: bool = False) -> list[Path]:
    """Expand files, folders and globs, and tell what else the folders hold.

    Args:
        inputs: what the command line names.
        listener: is told.
        recursive: enter the folders inside of folders.

    Raises:
        ValueError: a folder or glob without images.
    """
    paths, left_out = find_files(inputs, recursive=recursive)
    for line in left_out:
        listener.say(f"note: left out of {line}")
    return paths


def read_one(path: Path, shape: Sequence[int]) -> Clean:
    """Read a clean image of any size: cut to a centred square and resized, its channels converted.

    Args:
        path: a picture or an array.
        shape: (H, W, C) of what is wanted.

    Raises:
        ValueError: it cannot be read, or is no image in its range.
    """
    x, notes = read_clean(path, shape, resize=True)
    return Clean(path, x, notes)


def read_clean_files(paths: Sequence[Path], shape: Sequence[int], listener: Listener) -> Generator[Clean, None, None]:
    """Read clean images in their order, on several threads; those that cannot be read are told and left out.

    Args:
        paths: the files.
        shape: as in `read_one`.
        listener: is told of failures, of doubts, how many were converted, and how far it is when it takes long.

    Raises:
        ValueError: none can be read.
    """
    started, first, num_read, num_converted = time.monotonic(), "", 0, 0
    for number, (path, future) in enumerate(_ahead(paths, shape), start=1):
        try:
            clean = future.result()
        except ValueError as error:
            listener.fail(str(error))
            continue
        for caution in (note for note in clean.notes if isinstance(note, Caution)):
            listener.note(str(path), caution)
        if clean.notes:
            num_converted += 1
            first = first or f"{path}: {'; '.join(clean.notes)}"
        num_read += 1
        yield clean
        if time.monotonic() - started > SAY_SECONDS:
            started = time.monotonic()
            listener.say(f"{number} of {len(paths)} images read")
    if num_converted:  # a training set may be all of another size
        listener.say(f"note: {num_converted} images converted, such as {first}")
    if not num_read:
        raise ValueError("none of the images could be read")


def _ahead(paths: Sequence[Path], shape: Sequence[int]) -> Iterator[tuple[Path, "Future[Clean]"]]:
    """Start reading a few files before they are asked for."""
    pool, left = ThreadPoolExecutor(READERS), iter(paths)
    try:
        waiting = collections.deque(
            (path, pool.submit(read_one, path, shape)) for path in itertools.islice(left, AHEAD)
        )
        while waiting:
            waiting.extend((path, pool.submit(read_one, path, shape)) for path in itertools.islice(left, 1))
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
