"""Drawing: pictures as squares, images in rows, and panels side by side with an error map and its colour bar."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from ddiff_jax import image_files

# All error maps of all runs share one scale, so that pictures can be compared: |error| of images in [-1, 1].
ERROR_MAX = 0.5
# Dark to light with evenly rising lightness, so that the map also reads in grey.
RAMP = np.array(
    [(8, 8, 20), (52, 24, 92), (128, 37, 108), (200, 62, 78), (240, 122, 52), (252, 190, 92), (255, 246, 214)]
)

PANEL, GAP, MARGIN = 320, 16, 28  # pixels
TITLE_SIZE, TEXT_SIZE = 21, 16
BAR_WIDTH = 14
INK, FAINT, PAPER, MISSING = (24, 26, 32), (104, 108, 118), (255, 255, 255), (236, 237, 240)
SEAM = 2  # pixels between tiles

Levels = UInt8[np.ndarray, "H W 3"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture with a title and a line below the title."""

    levels: Levels
    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class Row:
    """Pictures beside each other on a sheet.

    Args:
        label: what they are.
        pictures: at least one.
        captions: what stands in their corners; may be empty.
    """

    label: str
    pictures: Sequence[Levels]
    captions: Sequence[str] = ()


def picture(x: Float[np.ndarray, "H W C"]) -> Levels:
    """Turn an image in [-1, 1] into what a screen shows: of more than three channels the first three.

    Of two, the real and the imaginary part, the magnitude: 0 is black and 1 white. What is not finite becomes light
    grey, black or white.
    """
    x = np.nan_to_num(x, nan=MISSING[0] / 127.5 - 1, posinf=1.0, neginf=-1.0)
    shown = image_files.as_picture(x)
    return np.repeat(image_files.to_uint8(shown), 3 // shown.shape[-1], axis=-1)


def error_map(error: Float[np.ndarray, "H W C"], most: float = ERROR_MAX) -> Levels:
    """Colour the mean over channels of an absolute error, by the fixed scale 0 to `most`; what is NaN as 0."""
    height = np.clip(np.nan_to_num(error.mean(axis=-1)) / most, 0, 1) * (len(RAMP) - 1)
    channels = [np.interp(height, np.arange(len(RAMP)), RAMP[:, c]) for c in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def fit(picture: Pillow.Image, side: int) -> Pillow.Image:
    """Scale a picture to a square, on grey. Enlarged pixels are repeated: none looks smoother than it is."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    scaled = picture.resize(size, Pillow.Resampling.NEAREST if scale >= 1 else Pillow.Resampling.BOX)
    square = Pillow.new("RGB", (side, side), MISSING)
    square.paste(scaled, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def tile(images: Sequence[Float[np.ndarray, "H W C"]]) -> Float[np.ndarray, "..."]:
    """Lay images out in rows on white, about as many in a row as there are rows.

    Args:
        images: at least one, all of one shape, range [-1, 1].
    """
    height, width, channels = images[0].shape
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    canvas = np.ones((rows * (height + SEAM) + SEAM, columns * (width + SEAM) + SEAM, channels), np.float32)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        top, left = SEAM + row * (height + SEAM), SEAM + column * (width + SEAM)
        canvas[top : top + height, left : left + width] = image
    return canvas


def stamp(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, font: Font) -> None:
    """Write white on a black box whose text starts at the left and the bottom of a place."""
    box = draw.textbbox(place, text, font, anchor="lb")
    draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), (0, 0, 0))
    draw.text(place, text, (255, 255, 255), font, anchor="lb")


def sheet(blocks: Mapping[str, Sequence[Row]], side: int) -> Pillow.Image:
    """Draw rows of pictures in blocks, each with a title.

    Args:
        blocks: title to rows.
        side: of a picture's square, in pixels.
    """
    title_font, text_font = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(TEXT_SIZE)
    label = max(text_font.getlength(row.label) for rows in blocks.values() for row in rows) + GAP
    left = MARGIN + math.ceil(label)
    most = max(len(row.pictures) for rows in blocks.values() for row in rows)
    head, step = TITLE_SIZE + GAP, side + GAP // 2
    width = left + most * step - GAP // 2 + MARGIN
    titles = max(title_font.getlength(title) for title in blocks)
    height = MARGIN + sum(head + len(rows) * step + GAP for rows in blocks.values())
    canvas = Pillow.new("RGB", (max(width, math.ceil(titles) + 2 * MARGIN), height), PAPER)
    draw, top = ImageDraw.Draw(canvas), MARGIN
    for title, rows in blocks.items():
        draw.text((MARGIN, top), title, INK, title_font)
        top += head
        for row in rows:
            draw.text((MARGIN, top + side // 2), row.label, FAINT, text_font, anchor="lm")
            for column, levels in enumerate(row.pictures):
                place = left + column * step
                canvas.paste(fit(Pillow.fromarray(levels), side), (place, top))
                if column < len(row.captions):
                    stamp(draw, (place + 6, top + side - 6), row.captions[column], text_font)
            top += step
        top += GAP
    return canvas


def compare(panels: list[Panel], most: float = ERROR_MAX) -> Pillow.Image:
    """Draw panels side by side; the last one is an error map of the scale 0 to `most` and gets the colour bar."""
    title_font, text_font = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(TEXT_SIZE)
    head = MARGIN + TITLE_SIZE + TEXT_SIZE + 22
    width = 2 * MARGIN + len(panels) * PANEL + (len(panels) - 1) * GAP + GAP + BAR_WIDTH + 44
    canvas = Pillow.new("RGB", (width, head + PANEL + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    left = MARGIN
    for panel in panels:
        draw.text((left, MARGIN - 6), panel.title, INK, title_font)
        draw.text((left, MARGIN + TITLE_SIZE + 4), panel.text, FAINT, text_font)
        canvas.paste(fit(Pillow.fromarray(panel.levels), PANEL), (left, head))
        left += PANEL + GAP
    _colour_bar(canvas, draw, (left, head), text_font, most)
    return canvas


def _colour_bar(
    canvas: Pillow.Image,
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    font: Font,
    most: float,
) -> None:
    left, top = place
    ramp = np.linspace(most, 0, PANEL)[:, None, None].repeat(BAR_WIDTH, axis=1)
    canvas.paste(Pillow.fromarray(error_map(ramp, most)), (left, top))
    for share in (0, 0.5, 1):
        y = top + round((1 - share) * (PANEL - 1))
        draw.line((left + BAR_WIDTH, y, left + BAR_WIDTH + 5, y), FAINT)
        value = f"{share * most:g}{'+' * (share == 1)}"
        anchor = {0: "ls", 0.5: "lm", 1: "lt"}[share]
        draw.text((left + BAR_WIDTH + 9, y), value, FAINT, font, anchor=anchor)
