"""Files that are whole or absent: written beside, brought to the disk, and only then put in place."""

import contextlib
import functools
import os
import re
import secrets
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

# A name of fixed length, however long the name of the file is: who writes it, and what nobody guesses.
OURS = re.compile(r"\.ddiff-(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,10})-[0-9a-f]{16}\.tmp")
QUIET_SECONDS = 600  # after which the file of a process that has ended is removed; another machine may have its name
STALE_SECONDS = 86_400  # after which any is
FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@functools.cache
def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def temporary_name() -> str:
    """Invent a name for a file that is being written."""
    return f".ddiff-{_host()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def sweep(folder: Path) -> None:
    """Remove what writers left behind that were killed: files of ours whose process has ended, or a day old."""
    now = time.time()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = OURS.fullmatch(entry.name)
            if found is None:
                continue
            with contextlib.suppress(OSError):
                age = now - entry.stat(follow_symlinks=False).st_mtime
                ended = found["host"] == _host() and not _is_running(int(found["pid"]))
                if age > STALE_SECONDS or (ended and age > QUIET_SECONDS):
                    os.unlink(entry.path)


@functools.lru_cache(maxsize=4096)
def _swept(folder: Path) -> None:
    """Sweep a folder once in the life of the process."""
    sweep(folder)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; some network file systems know no such thing, and are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Bring a file that somebody else wrote to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` once the block ends well and all of it is on the disk.

    Whoever reads the path, at any moment and after any crash, finds the old file or the whole new one. A link of this
    name is replaced, and what it points to stays.
    """
    _swept(path.parent.absolute())
    temporary = path.with_name(temporary_name())
    file = cast(BinaryIO, os.fdopen(os.open(temporary, FLAGS, 0o666), "w+b"))
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
