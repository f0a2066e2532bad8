"""Opening the files of strangers: plain files only, and whatever a decoder raises becomes one line about the file."""

import contextlib
import hashlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ddiff_jax.limits import MOST_TEXT, TooLarge
from ddiff_jax.safe_text import one_line

Notes = list[str]
KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
SAID = 200  # characters that are quoted of a decoder's message
QUIETLY = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)

# Warnings are caught by replacing what all threads share.
_CATCHING = threading.RLock()


class Caution(str):
    """A note that is probably bad news: the command line prints it as a warning."""

    __slots__ = ()


def warning(about: str, caution: Caution) -> Caution:
    """Spell a caution about an input as a line of its own."""
    return Caution(f"ddiff: warning: {one_line(about)}: {one_line(caution)}")


class Fine(str):
    """A note that a picture has finer levels than 8 bits can tell apart."""

    __slots__ = ()


class Unusable(ValueError):
    """A file that cannot be used; the message names it and says how to mend it."""


def _check_plain(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in KINDS.items() if test(mode)), "something else")
        cure = "" if stat.S_ISDIR(mode) else "; copy what it holds into a plain file"
        raise Unusable(f"{path} is {kind}, not a file{cure}")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading, or say in one line why not.

    Raises:
        Unusable: missing, unreadable, or no plain file: a pipe would wait for ever, a device may do anything.
    """
    try:
        _check_plain(path, path.stat().st_mode)
        # What took its place since is not waited for.
        file = os.fdopen(os.open(path, QUIETLY), "rb")
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, Unusable):
            raise
        raise Unusable(f"{path} cannot be read: {error}") from error  # a name with a zero in it
    with file:
        _check_plain(path, os.fstat(file.fileno()).st_mode)
        yield file


def length(file: BinaryIO) -> int:
    """Find how many bytes an open file holds."""
    return os.fstat(file.fileno()).st_size


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """Read a text file.

    Args:
        path: the file.
        most: bytes that it may hold.

    Raises:
        Unusable: no plain file, too long, or no UTF-8.
    """
    with opened(path) as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise Unusable(f"{path} is longer than {most} bytes, the most that a file of its kind may hold")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}") from error


@contextlib.contextmanager
def catching() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings instead of showing them; one thread at a time."""
    with _CATCHING, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@contextlib.contextmanager
def decoding(path: Path, verdict: str = "is truncated or damaged") -> Iterator[Notes]:
    """Turn whatever is raised into `Unusable`, because decoders raise anything on damaged files.

    One thread decodes at a time.

    Args:
        path: the file.
        verdict: what it means if the decoder fails.

    Yields:
        A list that receives what the decoder warned of, at the latest when the block ends.
    """
    notes: Notes = []
    with catching() as caught:
        try:
            yield notes
        except Unusable:
            raise
        except TooLarge as error:
            raise Unusable(str(error)) from error
        except MemoryError as error:
            raise Unusable(f"{path} asks for more memory than there is ({quote(error)})") from error
        except Exception as error:
            said = "; ".join(dict.fromkeys(quote(e) for e in (error, *(w.message for w in caught[:3]))))
            raise Unusable(f"{path} {verdict} ({said}); get a whole copy of the file") from error
    told = (w for w in caught if not issubclass(w.category, DeprecationWarning))  # that is between Pillow and us
    notes += dict.fromkeys(quote(w.message) for w in told)


def quote(message: BaseException | str) -> str:
    """Quote what a decoder says, in one short line."""
    text = " ".join(str(message).split())
    return text[:SAID] or type(message).__name__


def file_hash(path: Path) -> str:
    """Compute the SHA-256 of a plain file.

    Raises:
        Unusable: it is none, or cannot be read.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
