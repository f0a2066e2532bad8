"""Event files for TensorBoard, written by tensorboardX record by record.

Its own `SummaryWriter` hands records to a thread: once that has died of a full disk, a training waits for ever.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

FLUSH_SECONDS = 15.0  # between two times at which what was written reaches the disk


class Events:
    """Scalars and pictures for TensorBoard.

    Args:
        folder: where the files are; every process adds a file of its own.
        purge_step: TensorBoard forgets what earlier files say of this step and of later ones; None keeps all.

    Raises:
        ImportError: there is no tensorboardX.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        try:
            import tensorboardX  # noqa: F401 - what is missing is said now, not hours later
        except ImportError as error:
            raise ImportError(
                "TensorBoard files need tensorboardX; install it with: pip install 'ddiff-jax[tensorboard]'"
            ) from error
        self._folder, self._purge_step = folder, purge_step
        self._numbers, self._flushed = itertools.count(), 0.0
        self._writer: Any = None

    def write(
        self, step: int, scalars: Mapping[str, float], pictures: Mapping[str, UInt8[np.ndarray, "..."]] | None = None
    ) -> None:
        """Add the scalars and the pictures of a step.

        Raises:
            OSError: they cannot be written; the next ones begin another file.
        """
        from tensorboardX import summary

        values = [summary.scalar(name, value) for name, value in scalars.items()]
        values += [summary.image(name, levels, dataformats="HWC") for name, levels in (pictures or {}).items()]
        try:
            if self._writer is None:
                self._writer = self._open()
            for value in values:
                self._writer.write_event(_messages().Event(wall_time=time.time(), step=step, summary=value))
            if pictures or time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError:
            self.close()  # what follows a torn record in the same file cannot be read
            raise

    def close(self) -> None:
        """Bring all to the disk, as far as there is room."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        from tensorboardX.event_file_writer import EventsWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        # Its names tell seconds alone.
        writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{next(self._numbers)}")
        if self._purge_step is not None:
            start = _messages().SessionLog(status=_messages().SessionLog.START)
            writer.write_event(_messages().Event(wall_time=time.time(), step=self._purge_step, session_log=start))
            self._purge_step = None  # of other processes, not of this one
        return writer


def _messages() -> Any:
    """Import the module whose names are made while it is imported."""
    from tensorboardX.proto import event_pb2

    return event_pb2
