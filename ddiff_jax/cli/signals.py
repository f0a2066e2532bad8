"""Signals that end a process: all of them do what Ctrl-C does."""

import contextlib
import signal
import threading
from collections.abc import Iterator

# What is restored is written, and the same command continues.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Make other signals that end a process do what Ctrl-C does; one that is ignored, as by nohup, stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in ENDING if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
