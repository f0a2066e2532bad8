"""Faults at any one of the calls that change a folder: the disk is full, or the process is killed there."""

import contextlib
import errno
import os
import signal
from pathlib import Path

CHANGING = ("open", "fdopen", "fsync", "replace", "unlink", "mkdir")


class Killed(BaseException):
    """Stands for the end of the process: nothing that comes after it changes anything."""


class Faults:
    """Counts the calls that change a folder, and fails at one of them.

    Args:
        folder: whose changes count.
        at: which call fails, from 1; a large number to count only.
        how: "once" fails the call for want of space, "full" all that come after it as well; "killed" pretends that
            the process ends there, and "really killed" ends it.
    """

    def __init__(self, folder, at, how):
        self._folder, self._at, self._how = str(Path(folder).absolute()), at, how
        self._real = {name: getattr(os, name) for name in CHANGING}
        self.calls = 0

    @property
    def struck(self):
        """Whether there were so many calls."""
        return self.calls >= self._at

    def _is_here(self, path):
        return str(Path(os.fsdecode(path)).absolute()).startswith(self._folder)

    def _count(self, half=lambda: None):
        self.calls += 1
        if not (self.calls == self._at or (self.struck and self._how in ("full", "killed"))):
            return
        if self.calls == self._at:
            half()
        if self._how == "really killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._how == "killed":
            raise Killed
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open(self, path, flags, *arguments, **named):
        # Reading is no change; opening a folder, to bring its names to the disk, is a moment to be killed at.
        if self._is_here(path) and (flags & os.O_CREAT or (self._how.endswith("killed") and os.path.isdir(path))):
            self._count()
        return self._real["open"](path, flags, *arguments, **named)

    def _fdopen(self, descriptor, *arguments, **named):
        file = self._real["fdopen"](descriptor, *arguments, **named)
        return _Torn(file, self._count) if arguments[:1] == ("w+b",) else file

    def _simple(self, name):
        def call(first, *arguments, **named):
            counts = name != "unlink" or self._how.endswith("killed")  # a full disk has room for less
            if counts and (isinstance(first, int) or self._is_here(first)):
                self._count()
            return self._real[name](first, *arguments, **named)

        return call

    def __enter__(self):
        os.open, os.fdopen = self._open, self._fdopen
        for name in CHANGING[2:]:
            setattr(os, name, self._simple(name))
        return self

    def __exit__(self, *_):
        for name, real in self._real.items():
            setattr(os, name, real)


class _Torn(contextlib.AbstractContextManager):
    """A file whose writing may end in the middle."""

    def __init__(self, file, count):
        self._file, self._count = file, count

    def write(self, data):
        def half():
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._count(half)
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __exit__(self, *_):
        self._file.close()
