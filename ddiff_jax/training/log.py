"""The log of a training: one line of JSON per logged step, and event files for TensorBoard beside it."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddiff_jax import image_files
from ddiff_jax.files import opened
from ddiff_jax.restoration.records import finite
from ddiff_jax.safe_text import one_line
from ddiff_jax.training.events import Events
from ddiff_jax.training.judgement import Judgement

FILE, EVENTS = "log.jsonl", "tensorboard"
SYNC_SECONDS = 15.0  # between two times at which the lines are brought to the disk
FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)

Line = dict[str, float | int]


class Log:
    """Writes log.jsonl, and event files in tensorboard/ if they are wanted.

    A line is lost where it cannot be written, on a full disk: the training goes on, and the first such line is told.

    Args:
        folder: of the run.
        keep_until: the step of the checkpoint that the run goes on from: later lines are dropped, since they will be
            written again. None keeps all.
        tensorboard: write event files too.

    Raises:
        ImportError: event files are wanted, and there is no tensorboardX.
    """

    def __init__(self, folder: Path, *, keep_until: int | None = None, tensorboard: bool = False):
        self.path = folder / FILE
        self.note: str | None = None
        """What was said of the first line that was lost, or None."""
        self.num_lost = 0
        """How many could not be written."""
        self._descriptor: int | None = None
        self._torn, self._synced = False, time.monotonic()
        purge_step = None if keep_until is None else keep_until + 1
        self._events = Events(folder / EVENTS, purge_step) if tensorboard else None
        if keep_until is not None and self.path.exists():
            # Whoever reads the log drops these lines once earlier ones follow them: nothing is lost if this fails.
            self._try(lambda: self._drop(keep_until))

    def write(self, step: int, numbers: Mapping[str, Any]) -> str | None:
        """Write the line of a step.

        The page of the run shows `images_seen`, `seconds` (both since the first step), `learning_rate`, and the curve
        of every name with "loss" in it.

        Args:
            step: of the training.
            numbers: names to numbers of any kind, each written so that it is read back exactly; what is not finite is
                written as null.

        Returns:
            What to tell the user once: that this line, the first one, could not be written; else None.

        Raises:
            ValueError: a value is no number.
        """
        line = {"step": int(step), **{name: _plain(name, value) for name, value in numbers.items()}}
        scalars = {name: value for name, value in line.items() if name != "step"}
        return self._record(int(step), line, lambda events: events.write(int(step), scalars))

    def judged(self, step: int, judgement: Judgement) -> str | None:
        """Write what a judgement comes to, and to TensorBoard its errors and pictures as well.

        Returns:
            As `write`.
        """
        numbers = judgement.numbers()
        errors = judgement.errors
        ratios = {
            f"denoising/error_over_linear_filter/at_{ratio:.3g}": network / linear
            for ratio, network, linear in zip(errors.ratio, errors.network, errors.linear, strict=True)
        }
        shown = {"samples": judgement.samples, "restorations": judgement.restorations}
        pictures = {name: levels for name, levels in shown.items() if levels is not None}
        scalars = {f"judgement/{name}": value for name, value in numbers.items()} | ratios
        line = {"step": int(step), **numbers}
        return self._record(int(step), line, lambda events: events.write(int(step), scalars, pictures))

    def close(self) -> None:
        """Bring everything to the disk, as far as there is room."""
        if self._events is not None:
            self._events.close()
        if self._descriptor is not None:
            self._try(self._sync)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _record(self, step: int, line: Mapping[str, Any], tell: Callable[[Events], None]) -> str | None:
        before = self.note
        self._try(lambda: self._append(line))
        events = self._events
        if events is not None:
            self._try(lambda: tell(events))
        return self.note if before is None else None

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.num_lost += 1
            if self.note is None:
                why = error.strerror or str(error)
                self.note = one_line(
                    f"{self.path} cannot be written ({why}): lines are lost while the training goes on"
                )

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._descriptor is None:
            self._descriptor = self._open()
        # A line of which a part was written before is closed: readers skip it.
        rest = b"\n" * self._torn + json.dumps(finite(dict(line))).encode() + b"\n"
        while rest:
            written = os.write(self._descriptor, rest)
            self._torn, rest = True, rest[written:]
        self._torn = False
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, FLAGS, 0o666)
        end = os.lseek(descriptor, 0, os.SEEK_END)
        if end:
            os.lseek(descriptor, end - 1, os.SEEK_SET)
            self._torn = os.read(descriptor, 1) != b"\n"
        return descriptor

    def _sync(self) -> None:
        if self._descriptor is not None:
            os.fsync(self._descriptor)
        self._synced = time.monotonic()

    def _drop(self, keep_until: int) -> None:
        with opened(self.path) as file:
            lines = file.readlines()
        kept = [line for line in lines if (found := _parsed(line)) is not None and found["step"] <= keep_until]
        if len(kept) < len(lines):
            image_files.write_text(self.path, b"".join(kept).decode())


def read_log(path: Path) -> tuple[list[Line], int]:
    """Read a log.

    Args:
        path: the file; there need not be one.

    Returns:
        The lines in the order of their steps, with NaN for null, and how many are damaged. Lines that were followed by
        an earlier step are left out: the run was taken up from there.

    Raises:
        Unusable: the file cannot be read.
    """
    lines: list[Line] = []
    damaged = 0
    if not path.exists():
        return lines, damaged
    with opened(path) as file:
        for raw in file:
            line = _parsed(raw)
            if line is None:
                damaged += bool(raw.strip())
                continue
            while lines and lines[-1]["step"] > line["step"]:
                lines.pop()
            lines.append(line)
    return lines, damaged


def _parsed(raw: bytes) -> Line | None:
    """Read a line; None if it is torn or no line of a log."""
    if not raw.endswith(b"\n"):
        return None
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        return None
    numbers = {name: np.nan if value is None else value for name, value in found.items()}
    return {name: value for name, value in numbers.items() if type(value) in (int, float)}


def _plain(name: str, value: Any) -> float | int:
    """Turn a number of Python, NumPy or JAX into one that JSON writes with all its digits."""
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    if not isinstance(number, int | float):
        raise ValueError(f"the log takes numbers alone; got {name}={one_line(repr(value))[:80]}")
    return int(number) if isinstance(number, bool) else number
