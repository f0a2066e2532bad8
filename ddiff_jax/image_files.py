"""Pictures and arrays on disk: read by fixed value maps that say what they changed, written whole."""

import hashlib
import io
import math
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image as Pillow

from ddiff_jax import pictures
from ddiff_jax.atomic import replacing
from ddiff_jax.containers import Stream, check_npy, zip_archive
from ddiff_jax.files import Notes, Unusable, decoding, length, opened
from ddiff_jax.limits import check_unfolded

ARRAY_SUFFIXES = (".npy", ".npz")
LISTED = 20  # names in one line

Picture = Float[np.ndarray, "H W C"]


def suffixes() -> tuple[str, ...]:
    """List the endings of the files that can be read."""
    return (*pictures.suffixes(), *ARRAY_SUFFIXES)


def is_array(path: Path) -> bool:
    """Tell whether a file holds an array, in the units of whoever made it, and no picture."""
    return path.suffix.lower() in ARRAY_SUFFIXES


def read_picture(path: Path, channels: int = 3, full_scale: int | None = None) -> tuple[Picture, Notes]:
    """Read a picture file to [-1, 1] by the fixed map level / 127.5 - 1 (16 bits: level / 32767.5 - 1).

    Nothing is stretched to its own range and nothing happens in silence: every conversion is in the notes.

    Args:
        path: any format that Pillow decodes by itself; the first frame counts.
        channels: 3 replicates grey pictures, 1 turns colour ones grey (ITU-R 601).
        full_scale: the number that is white in files of more than 8 bits; None takes the largest that they can hold.

    Raises:
        Unusable: not a file, not an image, damaged, or numbers of unknown range.
    """
    levels, notes = pictures.read_levels(path, full_scale)
    if levels.ndim == 2:
        if channels == 3:
            notes.append("grey replicated to RGB")
        levels = np.repeat(levels[..., None], channels, axis=2)
    elif channels == 1:
        notes.append("colour averaged to grey")
        levels = levels @ np.array([[0.299], [0.587], [0.114]], np.float32)
    levels *= 2  # in place: these are the largest arrays here
    levels -= 1
    return levels, notes


def load_array(path: Path, share: int = 1) -> Shaped[np.ndarray, "..."]:
    """Load the one array of a .npy or .npz file, of any type of number.

    Args:
        path: the file; an archive may be compressed.
        share: of the limit on memory 1 / share may be used, because the caller makes copies.

    Raises:
        Unusable: unreadable, too large, empty, or an archive of several arrays of which none is called y.
    """
    with opened(path) as file, decoding(path, "cannot be read as an array of numbers"):
        if file.read(4) == b"PK\3\4":
            loaded = _load_member(path, file, share)
        else:
            file.seek(0)
            loaded = _load_stream(path, file, length(file), share)
    if not loaded.size:
        raise Unusable(f"{path} holds no numbers: its array has shape {loaded.shape}")
    return loaded


def _load_member(path: Path, file: BinaryIO, share: int) -> Shaped[np.ndarray, "..."]:
    with zip_archive(file, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)) as archive:
        names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
        if "y" not in names and len(names) != 1:
            held = f"{', '.join(names[:LISTED])}{', ...' * (len(names) > LISTED)}" or "nothing"
            raise Unusable(f"{path} must hold one array, or one named y; it holds {held}")
        info = archive.infolist()[names.index("y") if "y" in names else 0]
        with archive.open(info) as stream:
            loaded = _load_stream(path, stream, info.file_size, share)
            stream.read(1)  # compares the checksum
            return loaded


def _load_stream(path: Path, stream: Stream, num_bytes: int, share: int) -> Shaped[np.ndarray, "..."]:
    shape, dtype = check_npy(stream, num_bytes)
    count = math.prod(shape)
    what = f"an array of shape {shape} and type {dtype}"
    check_unfolded(path, count * (dtype.itemsize + 4), what, share)  # as it is, and in float32
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def read_array(path: Path, full_scale: int | None = None, *, finite: bool = True) -> Shaped[np.ndarray, "..."]:
    """Read an array of floats (or complex numbers) of any shape, in the units of the measurement.

    Args:
        path: a .npy or .npz file.
        full_scale: where the array holds levels of a picture, unsigned integers, the one that is white.
        finite: refuse NaN and infinity; False leaves it to a caller who knows which entries count.

    Raises:
        Unusable: unreadable, integers without a full scale, or values that are not finite.
    """
    array = load_array(path)
    kind = array.dtype.kind
    if kind == "u" and full_scale is not None:
        most = int(array.max(initial=0))
        if not 1 <= full_scale <= np.iinfo(array.dtype).max or most > full_scale:
            raise Unusable(f"{path} holds {array.dtype} up to {most}; --full-scale {full_scale} does not fit them")
        return (array / (full_scale / 2) - 1).astype(np.float32)
    if kind not in "fc":
        raise Unusable(
            f"{path} holds {array.dtype}; save floats, for pictures of 8 bits as level / 127.5 - 1, of 16 as "
            "level / 32767.5 - 1" + (", or say which level is white: --full-scale" if kind == "u" else "")
        )
    bad = int(np.sum(~np.isfinite(array))) if finite else 0
    if bad:
        raise Unusable(
            f"{path} holds NaN or infinity in {bad} of {array.size} entries; "
            "replace them (by 0 where a mask hides the pixel)"
        )
    return array.astype(np.complex64 if kind == "c" else np.float32, copy=False)


def read(
    path: Path, channels: int = 3, full_scale: int | None = None, *, finite: bool = True
) -> tuple[Shaped[np.ndarray, "..."], Notes]:
    """Read a picture with `read_picture`, or a .npy or .npz file with `read_array`.

    Args:
        path: the file.
        channels: as in `read_picture`.
        full_scale: as in these two.
        finite: as in `read_array`.

    Raises:
        Unusable: as these two do.
    """
    if is_array(path):
        return read_array(path, full_scale, finite=finite), []
    return read_picture(path, channels, full_scale)


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


def write_png(path: Path, x: Picture) -> str:
    """Write an image in [-1, 1] as an 8-bit PNG; whoever reads the path finds the old file or the whole new one.

    Returns:
        The SHA-256 of what was written, as the other writers here.

    Raises:
        ValueError: neither 1 nor 3 channels.
    """
    levels = to_uint8(x)
    if levels.ndim != 3 or levels.shape[2] not in (1, 3):
        raise ValueError(f"a PNG needs an image [H, W, 1 or 3]; got shape {levels.shape}")
    return save_png(path, Pillow.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels))


def save_png(path: Path, picture: Pillow.Image) -> str:
    """Write a Pillow picture as PNG, whole or not at all."""
    memory = io.BytesIO()
    picture.save(memory, format="PNG")
    return _write(path, memory)


def write_array(path: Path, array: Shaped[np.ndarray, "..."]) -> str:
    """Write an array as .npy, whole or not at all."""
    memory = io.BytesIO()
    np.save(memory, array)
    return _write(path, memory)


def write_text(path: Path, text: str) -> str:
    """Write text, whole or not at all."""
    return _write(path, io.BytesIO(text.encode("utf-8")))


def _write(path: Path, content: io.BytesIO) -> str:
    with replacing(path) as file:
        file.write(content.getbuffer())
    return hashlib.sha256(content.getbuffer()).hexdigest()
