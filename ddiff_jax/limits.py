"""How much memory the file of a stranger may unfold to: checked against what it declares, before it is decoded."""

import os
from pathlib import Path

VARIABLE = "DDIFF_MAX_MIB"
DEFAULT = 192  # MiB: 4096 x 4096 pixels in colour, as float32
MIB = 2**20

MOST_TEXT = 4 * MIB
"""Bytes of a card, an index, a header or a table of contents; parsed, they take twenty times as much."""
MOST_ENTRIES = 100_000
"""Names of tensors in a file."""
LONGEST_NAME = 1000
MOST_INSTRUCTIONS = 500_000
"""Of a pickle; a tensor takes about thirty."""
MOST_COPIES = 4
"""How often the numbers of a file of weights may be counted: tensors can share them, and compression hides them."""
SPARE = 64 * MIB
"""What weights may come to, whatever the size of their file."""
MOST_BLOCKS = 64
"""Residual blocks of a network; published ones have up to 50."""
LARGEST = 2**20
"""Of the numbers on a card: widths, counts of classes and of noise levels."""
LONGEST_RANK = 32


class TooLarge(ValueError):
    """A file declares more than is decoded of files that nobody vouches for."""


def most_bytes() -> int:
    """Look up how many bytes of numbers a picture or an array may unfold to.

    Raises:
        ValueError: the environment variable is no positive whole number.
    """
    given = os.environ.get(VARIABLE) or str(DEFAULT)
    if not (given.isascii() and given.isdigit() and 0 < int(given[:9]) and len(given) < 9):
        raise ValueError(f"{VARIABLE} must be a whole number of MiB above 0; got {given[:40]!r}")
    return int(given) * MIB


def check_unfolded(path: Path, num_bytes: int, what: str, share: int = 1) -> None:
    """Refuse what would unfold to more than the limit.

    Args:
        path: the file.
        num_bytes: what it unfolds to.
        what: what does, for the message.
        share: of the limit 1 / share may be used, because the caller needs as much for its work.

    Raises:
        TooLarge: it would.
    """
    most = most_bytes()
    if num_bytes * share > most:
        needed = -(-num_bytes * share // MIB)
        raise TooLarge(
            f"{path} is too large: {what}, takes {needed} MiB to read, and {most // MIB} are allowed; crop or shrink "
            f"it first, or if you trust it set {VARIABLE}={needed}"
        )
