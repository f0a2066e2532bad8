"""Names that people type: an unknown one is an error of its own that says which known one is nearest."""

import difflib
from collections.abc import Iterable

LONGEST = 100  # letters of a name that are repeated


class UnknownName(ValueError):
    """Somebody asked for a task, solver, flag or key that does not exist."""


def guess(name: str, known: Iterable[str]) -> str:
    """Phrase a question that ends an error about an unknown name; empty where no known name is like it."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Phrase the end of an error about an unknown name: the nearest known one, and all of them."""
    known = sorted(known)
    return f"{guess(name, known)}known: {', '.join(known) or 'none'}"


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        UnknownName: it is not; the message names the nearest.
    """
    known = list(known)
    if name not in known:
        shown = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
        raise UnknownName(f"unknown {what} {shown!r}; {nearest(shown, known)}")


def check_keys(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keys that are not known.

    Raises:
        UnknownName: there is one; the message names the nearest.
    """
    known = list(known)
    for key in given:
        check_name(f"key in {where}:", key, known)
