"""Event files for TensorBoard, written record by record.

The `SummaryWriter` of tensorboardX hands records to a thread: once a full disk has ended that, whoever writes waits for
ever.
"""

import contextlib
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

VERSION = "brain.Event:2"  # of the format; the first record of a file says it
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
        self._folder, self._purge_step, self._flushed = folder, purge_step, 0.0
        self._writer: Any = None

    def write(
        self,
        step: int,
        scalars: Mapping[str, float | int],
        pictures: Mapping[str, UInt8[np.ndarray, "..."]] | None = None,
    ) -> None:
        """Add the scalars and the pictures, [H, W, 3], of a step.

        Raises:
            OSError: they cannot be written; the next ones begin another file.
        """
        from tensorboardX import summary

        values = [summary.scalar(name, value) for name, value in scalars.items()]
        values += [summary.image(name, levels, dataformats="HWC") for name, levels in (pictures or {}).items()]
        try:
            if self._writer is None:
                self._open()
            for value in values:
                self._add(step=step, summary=value)
            if pictures or time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._flush()
        except OSError:
            self.close()  # what follows a torn record in the same file cannot be read
            raise

    def close(self) -> None:
        """Bring all to the disk, as far as there is room."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._flush()
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _open(self) -> None:
        """Begin a file."""
        from tensorboardX.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{secrets.token_hex(4)}"
        self._writer = RecordWriter(str(self._folder / name))
        self._add(file_version=VERSION)
        if self._purge_step is not None:
            session_log = _messages().SessionLog
            self._add(step=self._purge_step, session_log=session_log(status=session_log.START))
        self._flush()
        self._purge_step = None  # said once, when it is on the disk

    def _add(self, **fields: Any) -> None:
        self._writer.write(_messages().Event(wall_time=time.time(), **fields).SerializeToString())

    def _flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()


def _messages() -> Any:
    """Import the module whose names are made while it is imported."""
    from tensorboardX.proto import event_pb2

    return event_pb2
