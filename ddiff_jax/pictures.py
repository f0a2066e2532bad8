"""Decode picture files into levels between black and white, with all the bits that they hold."""

import contextlib
import functools
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image as Pillow
from PIL import ImageFile, ImageOps

from ddiff_jax.files import Caution, Fine, Notes, Unusable, decoding, opened
from ddiff_jax.limits import check_unfolded, most_bytes

# What Pillow can open and must not: EPS starts Ghostscript, IPTC hands its contents to any decoder, EPS too, and of
# MPEG only the size is read. Its stubs (HDF5, GRIB, ...) wait for somebody else's decoder.
REFUSED = ("EPS", "IPTC", "MPEG")
UNSCALED = ("PNG", "TIFF")  # nothing in these files says which number is white, if it is not the largest possible
SENSORS = {8: 255, 10: 1023, 12: 4095, 14: 16383}  # bits of numbers that are kept in 16-bit files as they are
HEAD = 512  # bytes at the start of a file that say how many bits it has

BYTES = 12  # of a pixel in colour, as float32
HEAVY = {"WEBP": 2, "AVIF": 2, "JPEG2000": 2}  # decoders that keep as much again
SLOW = 16  # times as long as those in C take the decoders that Pillow has in Python
BOUNDLESS = ("fits_gzip",)  # decoders that unfold whatever there is
SCANS = ("JPEG", "MPO", "BLP")  # formats in which every scan goes over the whole picture, and takes but a few bytes
MOST_SCANS = 200  # of one file; ten are usual
ROWS = 256  # converted together: the picture and its numbers fit into memory, and no copies beside them

ORIENTATION_TAG, BITS_TAG, PHOTOMETRIC_TAG, PLANAR_TAG = 0x0112, 258, 262, 284  # EXIF and TIFF
WHITE_IS_ZERO, SEPARATE = 0, 2  # values of the last two
SOC_AND_SIZ = b"\xff\x4f\xff\x51"  # how the stream of JPEG 2000 starts

# Raw modes of Pillow name the byte order (big, little, native) and give the upper byte; a wrong order gives the lower.
WIDE_RGB = ("RGB;16B", "RGB;16L")  # of big-endian numbers
SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}

Levels = Float[np.ndarray, "H W *C"]
Numbers = Float[np.ndarray, "H W C"]


@functools.cache
def decoders() -> dict[str, bool]:
    """List the formats that the installed Pillow decodes by itself, and whether each has a signature."""
    Pillow.init()
    found = {}
    for name, (factory, accept) in Pillow.OPEN.items():
        is_stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
        if name not in REFUSED and not is_stub:
            found[name] = accept is not None
    return found


@functools.cache
def suffixes() -> dict[str, str]:
    """Map the endings of picture files, in lower case, to their formats."""
    known = Pillow.registered_extensions()
    # MPO is a JPEG with more pictures behind it, and opened as one.
    return {suffix: name for suffix, name in known.items() if name in decoders() or name == "MPO"}


def _open(path: Path, file: BinaryIO) -> Pillow.Image:
    """Open a picture by its contents; a format without a signature, which would take any bytes, by its ending too."""
    own = suffixes().get(path.suffix.lower())
    formats = [name for name, has_signature in decoders().items() if has_signature or name == own]
    file.seek(0)
    try:
        return Pillow.open(file, formats=formats)
    except Pillow.UnidentifiedImageError as error:
        raise Unusable(
            f"{path} is not an image that can be decoded here; give PNG, JPEG, TIFF (8 or 16 bits), WebP or .npy"
        ) from error


@contextlib.contextmanager
def _limited(path: Path, share: int) -> Iterator[None]:
    """Let Pillow refuse what its decoders find too large on the way, such as a picture inside of a picture."""
    before, most = Pillow.MAX_IMAGE_PIXELS, most_bytes() // BYTES // share
    Pillow.MAX_IMAGE_PIXELS = max(1, most // 2)  # it warns from here on, and refuses what is twice as large
    warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)  # `decoding` restores it
    try:
        yield
    except Pillow.DecompressionBombError as error:
        pixels = max(map(int, re.findall(r"\d+", str(error))), default=0)
        check_unfolded(path, pixels * BYTES, f"a picture of {pixels} pixels", share)
        raise Unusable(f"{path} is too large: {error}") from error
    finally:
        Pillow.MAX_IMAGE_PIXELS = before


def _check_size(path: Path, picture: Pillow.Image, depth: int, share: int) -> None:
    """Refuse a picture that takes too long or too much memory, by what its header declares."""
    codecs = {tile.codec_name for tile in getattr(picture, "tile", ())}
    if codecs & set(BOUNDLESS):
        raise Unusable(f"{path} is compressed in a way that does not tell its size; save it as PNG or TIFF")
    times = (
        HEAVY.get(picture.format or "", 1) * (1 if depth <= 8 else 2) * (SLOW if codecs & set(Pillow.DECODERS) else 1)
    )
    width, height = picture.size
    check_unfolded(path, width * height * BYTES * times, f"a {picture.format} of {width}x{height} pixels", share)


def _check_scans(path: Path, picture: Pillow.Image, file: BinaryIO) -> None:
    if picture.format in SCANS:
        file.seek(0)
        count = file.read().count(b"\xff\xda")
        if count > MOST_SCANS:
            raise Unusable(f"{path} has {count} scans, which no camera makes; save it anew")


def read_levels(path: Path, full_scale: int | None = None, share: int = 1) -> tuple[Levels, Notes]:
    """Read a picture as levels in [0, 1], [H, W] if it is grey and [H, W, 3] if not.

    Args:
        path: any format that Pillow decodes by itself; the first frame counts.
        full_scale: the integer that is white; None takes the largest that the file can hold.
        share: of the limit on memory 1 / share may be used, because the caller makes copies.

    Returns:
        The levels, and what was converted.

    Raises:
        Unusable: not a file, not an image, damaged, too large, or numbers of unknown range.
    """
    with opened(path) as file, decoding(path) as notes, _limited(path, share):
        head = file.read(HEAD)
        picture = _open(path, file)
        depth = _depth(picture, head)
        _check_size(path, picture, depth, share)
        _check_scans(path, picture, file)
        if getattr(picture, "is_animated", False):  # counting the frames would read all of them
            notes.append("first of several frames taken")
        if full_scale is not None:
            _check_full_scale(path, picture, depth, full_scale)
        colour = _wide(path, file, picture) if depth > 8 and picture.mode in ("RGB", "RGBA", "CMYK") else None
        if picture.getexif().get(ORIENTATION_TAG, 1) != 1:
            notes.append("turned upright as its EXIF tag says")
        if colour is not None:
            levels = _scaled(path, picture, *colour, full_scale, notes)
        elif picture.mode == "F" or picture.mode.startswith("I"):
            levels = _scaled(path, picture, *_grey(path, picture, depth), full_scale, notes)
        else:
            if depth > 8:
                notes.append(f"{depth}-bit colour read as 8 bits (the upper ones)")
            levels = _narrow(_upright(picture), notes)
    return levels, notes


def _depth(picture: Pillow.Image, head: bytes) -> int:
    """Find how many bits per channel the file holds, which Pillow's mode does not tell for colour pictures."""
    if picture.format == "PNG":
        return head[24]
    if picture.format == "TIFF":
        return max(_tag(picture, BITS_TAG, (8,)))
    if picture.format == "PPM":
        return 16 if _maxval(picture) > 255 else 8
    if picture.format == "SGI":
        return 8 * head[3]
    if picture.format == "JPEG2000" and 0 <= (start := head.find(SOC_AND_SIZ)) < len(head) - 42:
        return (head[start + 42] & 0x7F) + 1
    if picture.format == "AVIF" and 0 <= (start := head.find(b"av1C")) < len(head) - 6:
        flags = head[start + 6]
        return 12 if flags & 0x20 else 10 if flags & 0x40 else 8
    return 16 if picture.mode.startswith("I;16") else 8


def _tag(picture: Pillow.Image, tag: int, default: Any) -> Any:
    return picture.tag_v2.get(tag, default)  # pyright: ignore[reportAttributeAccessIssue] - TIFF only


def _tiles(picture: Pillow.Image) -> list[Any]:
    return picture.tile  # pyright: ignore[reportAttributeAccessIssue] - of every picture that comes from a file


def _raw_mode(tile: Any) -> str:
    return tile.args if isinstance(tile.args, str) else str(tile.args[0])


def _maxval(picture: Pillow.Image) -> int:
    """Find the number that is white in a PPM; Pillow gives it to its decoder, or has a raw mode for it."""
    (tile,) = _tiles(picture)
    return 255 if tile.codec_name == "raw" else tile.args[-1]


def _check_full_scale(path: Path, picture: Pillow.Image, depth: int, full_scale: int) -> None:
    if picture.format not in UNSCALED:
        raise Unusable(f"{path}: a {picture.format} file says itself what white is; leave --full-scale out for it")
    if not 1 <= full_scale < 2**depth:
        raise Unusable(
            f"{path} holds {depth}-bit numbers, 0 to {2**depth - 1}; --full-scale {full_scale} does not fit them"
        )


def _upright(picture: Pillow.Image) -> Pillow.Image:
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _wide(path: Path, file: BinaryIO, picture: Pillow.Image) -> tuple[Numbers, str, int] | None:
    """Read colour of 16 bits, of which Pillow's own mode keeps the upper eight.

    The decoders of PNG, TIFF and PPM unpack two bytes to one as a raw mode says. Decoding twice, once for each byte,
    gives both, through every compression, interlacing and tiling that Pillow knows, without another library.

    Returns:
        Numbers, bands and the number that is white; None for formats and layouts that take no raw mode.
    """

    def decoded(rename: Callable[[Any], Any]) -> Shaped[np.ndarray, "H W C"]:
        again = _open(path, file)
        again.tile = list(map(rename, _tiles(again)))  # pyright: ignore[reportAttributeAccessIssue] - pictures from files
        again.load()
        return np.asarray(_upright(again))

    modes = [_raw_mode(tile) for tile in _tiles(picture)]
    if modes == ["LA;16B"]:  # Pillow has no name for its lower bytes, but all four fit into one picture
        four = decoded(lambda tile: tile._replace(args="RGBA"))
        return _joined(four[..., ::2], four[..., 1::2]), "LA", 65535
    if picture.format == "PPM" and _tiles(picture)[0].codec_name == "ppm":
        upper, lower = (decoded(lambda t, m=m: t._replace(codec_name="raw", args=(m, 0, 1))) for m in WIDE_RGB)
        return _joined(upper, lower), "RGB", _maxval(picture)
    planar = picture.format == "TIFF" and _tag(picture, PLANAR_TAG, 1) == SEPARATE
    if picture.format not in UNSCALED or (planar and _tiles(picture)[0].codec_name != "raw"):
        return None
    # Bands that are kept apart have raw modes without a width: R, G, B, and A or a.
    order = {"II": "L", "MM": "B"}[_byte_order(picture)] if planar else ""

    def rename(tile: Any, swapped: bool) -> Any:
        mode = f"{_raw_mode(tile).upper()};16{order}" if planar else _raw_mode(tile).replace("a", "A")
        mode = mode[:-1] + SWAPPED[mode[-1]] if swapped else mode
        return tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))

    upper, lower = (decoded(functools.partial(rename, swapped=swapped)) for swapped in (False, True))
    premultiplied = any("a" in mode for mode in modes)
    return _joined(upper, lower), "RGBa" if premultiplied else picture.mode, 65535


def _joined(upper: Shaped[np.ndarray, "H W C"], lower: Shaped[np.ndarray, "H W C"]) -> Numbers:
    values = upper.astype(np.float32)
    values *= 256
    values += lower
    return values


def _byte_order(picture: Pillow.Image) -> str:
    return picture.tag_v2.prefix.decode()  # pyright: ignore[reportAttributeAccessIssue] - TIFF only


def _grey(path: Path, picture: Pillow.Image, depth: int) -> tuple[Numbers, str, int]:
    """Read numbers that Pillow keeps as they are."""
    # It stretches those of PPM and JPEG 2000 to 16 bits. PNG comes in one of two modes, by Pillow's version.
    known = (*UNSCALED, "JPEG2000") if picture.mode.startswith("I;16") else ("PNG", "PPM")
    if picture.mode == "F" or picture.format not in known:
        raise Unusable(
            f"{path} holds {'floating-point numbers' if picture.mode == 'F' else 'signed or 32-bit integers'}, whose "
            "range is not fixed; save it with 8 or 16 bits, or as .npy with floats in [-1, 1]"
        )
    values = np.asarray(_upright(picture)).astype(np.float32)[..., None]
    white = 2**depth - 1 if picture.format in UNSCALED else 65535
    if picture.format == "TIFF" and _tag(picture, PHOTOMETRIC_TAG, 1) == WHITE_IS_ZERO:
        values = white - values  # Pillow turns those of 8 bits only
    return values, "L", white


def _scaled(
    path: Path, picture: Pillow.Image, values: Numbers, bands: str, white: int, full_scale: int | None, notes: Notes
) -> Levels:
    """Turn numbers of more than 8 bits into levels, on white where they are transparent."""
    has_alpha = bands in ("LA", "RGBA", "RGBa")
    levels, alpha = (values[..., :-1], values[..., -1:] / white) if has_alpha else (values, None)
    if alpha is None and picture.format == "PNG" and (key := picture.info.get("transparency")) is not None:
        alpha = np.any(levels != key, axis=-1, keepdims=True).astype(np.float32)
    most = int(levels.max())
    if full_scale is not None and most > full_scale:
        raise Unusable(f"{path} holds {most}, which is above --full-scale {full_scale}")
    fits = next((bits for bits, largest in SENSORS.items() if most <= largest), None)
    if full_scale is None and white == 65535 and picture.format in UNSCALED and most and fits:
        notes.append(
            Caution(f"its largest number is {most} of 65535: if it is {fits}-bit data, give --full-scale {2**fits - 1}")
        )
    scale = full_scale or white
    how = "by their own range, 0 to" if full_scale is None else "with full scale"
    notes.append(Fine(f"{white.bit_length()} bits read {how} {scale}"))
    levels /= scale
    if bands == "CMYK":
        notes.append("CMYK converted to RGB without a colour profile")
        levels = (1 - levels[..., :3]) * (1 - levels[..., 3:])
    if alpha is not None and np.all(alpha == 1):
        notes.append("opaque alpha dropped")
    elif alpha is not None:
        notes.append("alpha composited over white")
        levels = (levels if bands == "RGBa" else levels * alpha) + 1 - alpha
    levels = levels.astype(np.float32)
    return levels[..., 0] if levels.shape[-1] == 1 else levels


def _narrow(picture: Pillow.Image, notes: Notes) -> Levels:
    """Turn a picture of at most 8 bits into levels, on white where it is transparent."""
    picture.load()  # only then some formats know their size
    grey, clear = picture.mode in ("1", "L"), picture.has_transparency_data
    if picture.mode == "P":
        notes.append("palette expanded to RGB")
    if not clear and picture.mode not in ("1", "L", "P", "RGB", "RGBX"):
        notes.append(f"{picture.mode} converted to RGB without a colour profile")
    wanted, opaque = "L" if grey and not clear else "RGB", True
    levels = np.empty((picture.height, picture.width) + (3,) * (wanted == "RGB"), np.float32)
    for top in range(0, picture.height, ROWS):
        strip = picture.crop((0, top, picture.width, min(top + ROWS, picture.height)))
        if clear:
            strip = strip.convert("RGBA")
            opaque = opaque and strip.getchannel("A").getextrema() == (255, 255)
            strip = Pillow.alpha_composite(Pillow.new("RGBA", strip.size, "white"), strip)
        levels[top : top + ROWS] = np.asarray(strip.convert(wanted))
    if clear:
        notes.append("opaque alpha dropped" if opaque else "alpha composited over white")
    levels /= 255
    return levels
