"""What pages that hold everything are made of: their template, one style for all, and pictures inside the file."""

import base64
from importlib import resources
from string import Template

from ddiff_jax.report import curves
from ddiff_jax.safe_text import html_text

CURVE_SCALE = 100 / curves.DPI  # curves have finer pixels than a page


def template(package: str) -> Template:
    """Read the page.html of a package."""
    return Template(resources.files(package).joinpath("page.html").read_text(encoding="utf-8"))


def style() -> str:
    """Read the style sheet that all pages share."""
    return resources.files("ddiff_jax.report").joinpath("page.css").read_text(encoding="utf-8")


def data_uri(png: bytes) -> str:
    """Spell a PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def picture(png: bytes, text: str, width: int) -> str:
    """Show a PNG.

    Args:
        png: the file.
        text: what it shows, for those who cannot see it.
        width: in pixels of the page.
    """
    return f'<img class="figure" width="{width}" alt="{html_text(text)}" src="{data_uri(png)}">'
