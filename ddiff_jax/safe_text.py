"""Texts of strangers, such as file names, made harmless for the terminal, for tables and for pages."""

import html
import json
import unicodedata
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell starts that a spreadsheet computes
MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`[]<>|"} | {"&": "&amp;"})


def _is_harmless(char: str) -> bool:
    # Spaces of all widths are; what is written from right to left is, what turns the direction is not.
    return char.isprintable() or unicodedata.category(char) == "Zs"


def printable(text: str) -> str:
    r"""Spell out control characters, changes of direction, invisible characters and bytes that are no text, as \x1b.

    A terminal obeys some of them, others show a name as another one, and the last cannot be written at all.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str) -> str:
    """Put a message in one printable line."""
    return printable(" ".join(text.split()))


def csv_cell(value: Any) -> Any:
    """Keep a spreadsheet from computing a text; numbers stay as they are."""
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value.startswith(FORMULA) else value)


def html_text(value: Any) -> str:
    """Escape for the text and for the attributes of a page."""
    return html.escape(printable(str(value)))


def script_json(document: Any) -> str:
    """Spell JSON for the inside of a <script>, where "<!--" and "</script" would end or change it."""
    text = json.dumps(document)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def markdown_text(value: Any) -> str:
    """Escape for a Markdown table, in which HTML would be taken for such."""
    return printable(str(value)).translate(MARKDOWN)
