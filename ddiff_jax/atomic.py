"""Files that are whole or absent: written beside, brought to the disk, and only then put in place."""

import contextlib
import errno
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

try:
    import fcntl
except ImportError:  # Windows, which does not remove a file that is open
    fcntl = None

# A name of fixed length, however long the name of the file is: which machine writes it, and what nobody guesses.
OURS = re.compile(r"\.ddiff-(?P<machine>[0-9a-f]{8})-[0-9a-f]{16}\.tmp")
STALE_SECONDS = 86_400  # after which the file of another machine, whose locks may not be seen here, is removed
BOOT = Path("/proc/sys/kernel/random/boot_id")  # containers of one machine share it, as they share locks
FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
QUIETLY = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@functools.cache
def _machine() -> str:
    boot = BOOT.read_bytes() if BOOT.exists() else b""
    return f"{zlib.crc32(socket.gethostname().encode() + boot):08x}"


def temporary_name() -> str:
    """Invent a name for a file that is being written."""
    return f".ddiff-{_machine()}-{secrets.token_hex(8)}.tmp"


def _lock(descriptor: int) -> bool:
    """Lock a file for as long as it is open here; False if somebody else has it.

    Raises:
        OSError: there are no locks on this system.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, "no locks")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sweep(folder: Path) -> None:
    """Remove what writers left behind that were killed: files of this machine that nobody holds, or a day old."""
    now = time.time()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = OURS.fullmatch(entry.name)
            if found is None:
                continue
            with contextlib.suppress(OSError):
                if now - entry.stat(follow_symlinks=False).st_mtime > STALE_SECONDS:
                    os.unlink(entry.path)
                elif found["machine"] == _machine():
                    _unlink_unless_held(entry.path)


def _unlink_unless_held(path: str) -> None:
    descriptor = os.open(path, QUIETLY)
    try:
        if _lock(descriptor):
            os.unlink(path)
    finally:
        os.close(descriptor)


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


def _create(path: Path) -> tuple[Path, int]:
    """Create a new file beside a path, which the sweeping of others leaves alone while it is open."""
    while True:
        temporary = path.with_name(temporary_name())
        descriptor = os.open(temporary, FLAGS, 0o666)
        try:
            kept = _lock(descriptor) and os.fstat(descriptor).st_nlink > 0
        except OSError:  # without locks only age tells, and only after a day
            kept = True
        if kept:
            return temporary, descriptor
        os.close(descriptor)  # somebody swept between the two calls


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` once the block ends well and all of it is on the disk.

    Whoever reads the path, at any moment and after any crash, finds the old file or the whole new one. A link of this
    name is replaced, and what it points to stays.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    _swept(path.parent.absolute())
    try:
        temporary, descriptor = _create(path)
        held = os.dup(descriptor) if fcntl is not None else None  # a file that is open has no other name on Windows
        try:
            with cast(BinaryIO, os.fdopen(descriptor, "w+b")) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            if held is not None:
                os.close(held)
    except OSError as error:
        if error.filename is not None and OURS.fullmatch(Path(error.filename).name):
            raise OSError(error.errno, error.strerror, str(path)) from error  # the name that people know
        raise
    sync_folder(path.parent)
