"""One-line errors on standard error."""

import contextlib
import sys

from ddiff_jax.safe_text import one_line


def unless_lost() -> contextlib.AbstractContextManager[None]:
    """Go on when a message cannot be written, on a full disk or because nobody listens: the results count."""
    return contextlib.suppress(OSError)


def complain(text: str) -> None:
    """Print one error; nowhere if standard error is closed, since print takes None for standard output."""
    _print(f"error: {text}")


def mention(text: str) -> None:
    """Print one remark likewise."""
    _print(f"note: {text}")


def _print(text: str) -> None:
    if sys.stderr is not None:
        with unless_lost():
            print(f"ddiff: {one_line(text)}", file=sys.stderr)
