"""One-line errors on standard error."""

import contextlib
import sys

from ddiff_jax.safe_text import one_line


def unless_lost() -> contextlib.AbstractContextManager[None]:
    """Go on when a message cannot be written, on a full disk or because nobody listens: the results count."""
    return contextlib.suppress(OSError)


def complain(text: str) -> None:
    """Print one error; nowhere if standard error is closed, since print takes None for standard output."""
    if sys.stderr is not None:
        with unless_lost():
            print(f"ddiff: error: {one_line(text)}", file=sys.stderr)
