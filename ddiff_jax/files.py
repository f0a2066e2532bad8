"""Opening the files of strangers: plain files only, and whatever a decoder raises becomes one line about the file."""

import contextlib
import hashlib
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

Notes = list[str]
KINDS = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}
SAID = 200  # characters that are quoted of a decoder's message


class Caution(str):
    """A note that is probably bad news: the command line prints it as a warning."""

    __slots__ = ()


def warning(about: str, caution: Caution) -> Caution:
    """Spell a caution about an input as a line of its own."""
    return Caution(f"ddiff: warning: {about}: {' '.join(caution.split())}")


class Unusable(ValueError):
    """A file that cannot be used; the message names it and says how to mend it."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, or say in one line why not.

    Raises:
        Unusable: missing, unreadable, or no plain file: a pipe would wait for ever, a device may do anything.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise Unusable(f"{path} is a folder, not a file")
        if not stat.S_ISREG(mode):
            kind = next((kind for test, kind in KINDS.items() if test(mode)), "something else")
            raise Unusable(f"{path} is {kind}, not a file; copy what it holds into a plain file")
        file = path.open("rb")
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}") from error
    with file:
        yield file


@contextlib.contextmanager
def decoding(path: Path, verdict: str = "is truncated or damaged") -> Iterator[Notes]:
    """Turn whatever is raised into `Unusable`, because decoders raise anything on damaged files.

    Args:
        path: the file.
        verdict: what it means if the decoder fails.

    Yields:
        A list that receives what the decoder warned of, at the latest when the block ends.
    """
    notes: Notes = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield notes
        except Unusable:
            raise
        except MemoryError as error:
            raise Unusable(f"{path} asks for more memory than there is ({_quote(error)})") from error
        except Exception as error:
            said = "; ".join(_quote(e) for e in (error, *(w.message for w in caught)))
            raise Unusable(f"{path} {verdict} ({said}); get a whole copy of the file") from error
    told = (w for w in caught if not issubclass(w.category, DeprecationWarning))  # that is between Pillow and us
    notes += dict.fromkeys(_quote(w.message) for w in told)


def _quote(message: BaseException | str) -> str:
    text = " ".join(str(message).split())
    return text[:SAID] or type(message).__name__


def file_hash(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
