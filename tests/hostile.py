"""What files of strangers may hold, and what must become of it: one short line, soon."""

import time

import pytest

# Of the processor's time, for any file. The budget is half of this, and `budget.py` holds the worst files to it in a
# process of their own; here the collector walks over everything that earlier tests left.
SECONDS = 4.0


def refused(read, path, match=None):
    """Check that reading ends soon, in one line that names the file; returns it."""
    start = time.process_time()
    with pytest.raises((ValueError, FileNotFoundError), match=match) as error:
        read(path)
    took = time.process_time() - start
    message = str(error.value)
    assert type(error.value).__name__ in ("ValueError", "Unusable", "FileNotFoundError", "UnknownName")
    assert len(message.splitlines()) == 1
    assert len(message) < 1500
    assert path.name in message
    assert took < SECONDS
    return message


def survived(read, path):
    """Check that reading ends well, or as `refused` has it."""
    start = time.process_time()
    try:
        read(path)
    except (ValueError, FileNotFoundError) as error:
        assert len(str(error).splitlines()) == 1, str(error)[:500]
        assert len(str(error)) < 1500
    assert time.process_time() - start < SECONDS
