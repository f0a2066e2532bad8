"""Pictures, masks, kernels and arrays on disk: read by fixed value maps that say what they changed, written whole."""

import contextlib
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image as Pillow
from PIL import ImageOps

# Formats that Pillow decodes by itself; others (EPS) would start foreign programs.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".jp2", ".j2k"),
)
ARRAY_SUFFIXES = (".npy", ".npz")
ORIENTATION_TAG, BITS_TAG = 0x0112, 258  # EXIF and TIFF
NEAR_BINARY = 25  # grey levels of 255 that a lossy mask may stray from black or white

Picture = Float[np.ndarray, "H W C"]
Notes = list[str]


def _decode(path: Path, file: BinaryIO) -> Pillow.Image:
    """Decode a whole picture."""
    try:
        picture = Pillow.open(file, formats=FORMATS)
        picture.load()
    except Pillow.UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image; give PNG, JPEG, TIFF, WebP or .npy") from error
    except Pillow.DecompressionBombError as error:
        raise ValueError(f"{path} is too large: {error}; crop or shrink it first") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); get a whole copy of the file") from error
    return picture


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, or say in one line why not."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file")
    try:
        file = path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        yield file


def _bits(picture: Pillow.Image, head: bytes) -> int:
    """Find how many bits per channel the file holds, which Pillow's mode does not tell for colour pictures."""
    if picture.format == "PNG":
        return head[24]
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(BITS_TAG, (8,)))  # pyright: ignore[reportAttributeAccessIssue] - TIFF only
    return 16 if picture.mode.startswith("I") else 8


def _levels(path: Path) -> tuple[Float[np.ndarray, "H W *C"], Notes]:
    """Read a picture as levels in [0, 1], [H, W] if it is grey and [H, W, 3] if not."""
    with _opened(path) as file:
        head = file.read(25)
        file.seek(0)
        picture = _decode(path, file)
        return _convert(path, picture, _bits(picture, head))


def _convert(path: Path, picture: Pillow.Image, bits: int) -> tuple[Float[np.ndarray, "H W *C"], Notes]:
    notes: Notes = []
    if getattr(picture, "n_frames", 1) > 1:
        notes.append("first of several frames taken")
    if picture.getexif().get(ORIENTATION_TAG, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
        notes.append("turned upright as its EXIF tag says")
    if picture.mode == "F" or bits > 16:
        raise ValueError(
            f"{path} holds {bits}-bit numbers, whose range is not fixed; save it with 8 or 16 bits, "
            "or as .npy with floats in [-1, 1]"
        )
    if picture.mode.startswith("I"):
        notes.append("16 bits read by their own range, 0 to 65535")
        return np.asarray(picture).astype(np.float32) / 65535, notes
    if bits > 8:
        notes.append("16-bit colour read as 8 bits (the upper byte)")
    if picture.mode == "P":
        notes.append("palette expanded to RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() == (255, 255):
            notes.append("opaque alpha dropped")
        else:
            picture = Pillow.alpha_composite(Pillow.new("RGBA", picture.size, "white"), picture)
            notes.append("alpha composited over white")
    elif picture.mode not in ("1", "L", "P", "RGB", "RGBX"):
        notes.append(f"{picture.mode} converted to RGB without a colour profile")
    grey = picture.mode in ("1", "L")
    levels = np.asarray(picture.convert("L" if grey else "RGB"))
    return levels.astype(np.float32) / 255, notes


def read_picture(path: Path, channels: int = 3) -> tuple[Picture, Notes]:
    """Read a picture file to [-1, 1] by the fixed map level / 127.5 - 1 (16-bit grey: level / 32767.5 - 1).

    Nothing is stretched to its own range and nothing happens in silence: every conversion is in the notes.

    Args:
        path: any format that Pillow reads; the first frame counts.
        channels: 3 replicates grey pictures, 1 turns colour ones grey (ITU-R 601).

    Raises:
        ValueError: not a file, not an image, truncated, or floating-point levels of unknown range.
    """
    levels, notes = _levels(path)
    if levels.ndim == 2:
        if channels == 3:
            notes.append("grey replicated to RGB")
        levels = np.repeat(levels[..., None], channels, axis=2)
    elif channels == 1:
        notes.append("colour averaged to grey")
        levels = levels @ np.array([[0.299], [0.587], [0.114]], np.float32)
    return levels * 2 - 1, notes


def _load(path: Path) -> Shaped[np.ndarray, "..."]:
    """Load the one array of a .npy or .npz file, whatever its type."""
    with _opened(path) as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            if "y" in loaded.files or len(loaded.files) == 1:
                return loaded["y" if "y" in loaded.files else loaded.files[0]]
            held = ", ".join(loaded.files) or "nothing"
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, struct.error) as error:
            raise ValueError(f"{path} cannot be read as an array: {error}") from error
    raise ValueError(f"{path} must hold one array, or one named y; it holds {held}")


def read_array(path: Path, *, finite: bool = True) -> Shaped[np.ndarray, "..."]:
    """Read an array of floats (or complex numbers) of any shape, in the units of the measurement.

    Args:
        path: a .npy or .npz file.
        finite: refuse NaN and infinity; False leaves it to a caller who knows which entries count.

    Raises:
        ValueError: unreadable, integers, or values that are not finite.
    """
    array = _load(path)
    if array.dtype.kind not in "fc":
        raise ValueError(f"{path} holds {array.dtype}; save floats, for 8-bit pictures as level / 127.5 - 1")
    bad = int(np.sum(~np.isfinite(array))) if finite else 0
    if bad:
        raise ValueError(
            f"{path} holds NaN or infinity in {bad} of {array.size} entries; "
            "replace them (by 0 where a mask hides the pixel)"
        )
    return array.astype(np.complex64 if array.dtype.kind == "c" else np.float32)


def read(path: Path, channels: int = 3, *, finite: bool = True) -> tuple[Shaped[np.ndarray, "..."], Notes]:
    """Read a picture with `read_picture`, or a .npy or .npz file with `read_array`.

    Args:
        path: the file.
        channels: as in `read_picture`.
        finite: as in `read_array`.

    Raises:
        ValueError: as these two do.
    """
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return read_array(path, finite=finite), []
    return read_picture(path, channels)


def _read_grey(path: Path, what: str) -> Shaped[np.ndarray, "H W"]:
    """Read a picture that must hold one value per pixel, in levels of 255, or an array as it is."""
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return _load(path)
    levels, _ = _levels(path)
    if levels.ndim == 3:
        if np.any(levels != levels[..., :1]):
            raise ValueError(f"{path} is in colour; a {what} has one value per pixel: save it as a grey picture")
        levels = levels[..., 0]
    return levels * 255


def read_mask(path: Path) -> tuple[Float[np.ndarray, "H W"], Notes]:
    """Read a mask: white (1, true) is observed, black (0, false) is hidden.

    Pictures are thresholded only if they are clearly black and white, as a lossy format leaves them.

    Returns:
        The mask of 0 and 1, and a note that says how much is observed.

    Raises:
        ValueError: unreadable, in colour, or values in between.
    """
    values = _read_grey(path, "mask")
    if np.isin(values, (0, 1)).all() and np.any(values):
        mask = values.astype(np.float32)
    elif np.all((values <= NEAR_BINARY) | (values >= 255 - NEAR_BINARY)):
        mask = (values > 127).astype(np.float32)
    else:
        raise ValueError(
            f"{path} is not a mask: it holds values between black and white; threshold it first "
            "(white = observed, black = hidden)"
        )
    return mask, [f"{mask.mean():.1%} of the pixels observed (white), the rest hidden"]


def read_kernel(path: Path) -> tuple[Float[np.ndarray, "kh kw"], Notes]:
    """Read a blur kernel: a grey picture, which is divided by its sum, or a 2-D array, which is taken as it is.

    Raises:
        ValueError: unreadable, in colour or black.
    """
    values = np.asarray(_read_grey(path, "blur kernel"), np.float32)
    total = float(values.sum())
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return values, [] if abs(total - 1) < 1e-3 else [f"the kernel sums to {total:.4g}, not to 1, and is used so"]
    if total <= 0:
        raise ValueError(f"{path} is black; a blur kernel needs weight somewhere")
    return values / total, ["kernel divided by its sum"]


def crop_and_resize(x: Picture, side: int) -> Float[np.ndarray, "{side} {side} C"]:
    """Cut the largest centred square, then resize it by Lanczos."""
    short = min(x.shape[:2])
    top, left = (x.shape[0] - short) // 2, (x.shape[1] - short) // 2
    planes = [
        np.asarray(Pillow.fromarray(plane).resize((side, side), Pillow.Resampling.LANCZOS))
        for plane in np.moveaxis(x[top : top + short, left : left + short], -1, 0)
    ]
    return np.clip(np.stack(planes, axis=-1), -1, 1)


def to_uint8(x: Picture) -> Shaped[np.ndarray, "H W C"]:
    """Map [-1, 1] to 0..255 with clipping and rounding: the inverse of the map of `read_picture`."""
    return np.round((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder that takes the place of `path` once the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_png(path: Path, x: Picture) -> None:
    """Write an image in [-1, 1] as an 8-bit PNG; whoever reads the path finds the old file or the whole new one.

    Raises:
        ValueError: neither 1 nor 3 channels.
    """
    levels = to_uint8(x)
    if levels.ndim != 3 or levels.shape[2] not in (1, 3):
        raise ValueError(f"a PNG needs an image [H, W, 1 or 3]; got shape {levels.shape}")
    save_png(path, Pillow.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels))


def save_png(path: Path, picture: Pillow.Image) -> None:
    """Write a Pillow picture as PNG, whole or not at all."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def write_array(path: Path, array: Shaped[np.ndarray, "..."]) -> None:
    """Write an array as .npy, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def write_text(path: Path, text: str) -> None:
    """Write text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
