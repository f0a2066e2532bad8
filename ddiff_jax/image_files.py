"""Pictures and arrays on disk: read by fixed value maps that say what they changed, written whole."""

import functools
import hashlib
import io
import math
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image as Pillow

from ddiff_jax import pictures, readers
from ddiff_jax.atomic import replacing
from ddiff_jax.containers import Stream, check_npy, zip_archive
from ddiff_jax.files import Notes, Unusable, decoding, file_hash, length, opened
from ddiff_jax.limits import check_unfolded

ARRAY_SUFFIXES = (".npy", ".npz")
LISTED = 20  # names in one line

Picture = Float[np.ndarray, "H W C"]


def suffixes() -> tuple[str, ...]:
    """List the endings of the files that can be read."""
    return (*pictures.suffixes(), *ARRAY_SUFFIXES, *readers.ENDINGS)


def is_array(path: Path) -> bool:
    """Tell whether a file holds an array, in the units of whoever made it, and no picture.

    Args:
        path: as in `read`.
    """
    return ending(path) in ARRAY_SUFFIXES or _is_scientific(path)


def ending(path: Path) -> str:
    """Tell the ending of a file, in lower case; whatever else the path says of arrays inside is left out."""
    return readers.ending(source(path))


def source(path: Path) -> Path:
    """Tell which file a path means that may name an array inside of it, see `read`."""
    return readers.place_of(path).file


def source_hash(path: Path) -> str:
    """Compute the SHA-256 of the file that a path means, once for all arrays in it.

    Raises:
        Unusable: there is no such plain file, or it cannot be read.
    """
    file = source(path)
    if file == path:
        return file_hash(path)
    stat = file.stat() if file.is_file() else None
    return _hash_once(file, stat and (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _hash_once(file: Path, standing: object) -> str:
    return file_hash(file)


def _is_scientific(path: Path) -> bool:
    place = readers.place_of(path)
    kind = readers.ENDINGS.get(readers.ending(place.file))
    if kind == "tiff":
        return readers.tiff.is_array(place.file)
    return kind is not None and kind != "npz"


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
    """Load one array of a file, of any type of number.

    Args:
        path: as in `read`; an archive may be compressed.
        share: of the limit on memory 1 / share may be used, because the caller makes copies.

    Raises:
        Unusable: unreadable, too large, empty, or an archive of several arrays of which none is named or called y.
    """
    return _load(path, share)[0]


def _load(path: Path, share: int = 1) -> tuple[Shaped[np.ndarray, "..."], Notes]:
    """Load an array, and say what its format did to the numbers."""
    place = readers.place_of(path)
    reader = readers.reader(place)
    if reader is not None:
        return reader.load(place, share)
    if place.index or (place.name and ending(path) != ".npz"):
        raise Unusable(f"{path}: {place.file} holds one array without names; leave what follows it out")
    return _load_numpy(place.file, place.name, share), []


def _load_numpy(path: Path, name: str, share: int) -> Shaped[np.ndarray, "..."]:
    with opened(path) as file, decoding(path, "cannot be read as an array of numbers"):
        if file.read(4) == b"PK\3\4":
            loaded = _load_member(path, file, share, name)
        else:
            file.seek(0)
            loaded = _load_stream(path, file, length(file), share)
    if not loaded.size:
        raise Unusable(f"{path} holds no numbers: its array has shape {loaded.shape}")
    return loaded


def _load_member(path: Path, file: BinaryIO, share: int, wanted: str) -> Shaped[np.ndarray, "..."]:
    with zip_archive(file, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)) as archive:
        names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
        held = f"{', '.join(names[:LISTED])}{', ...' * (len(names) > LISTED)}" or "nothing"
        if wanted and wanted not in names:
            raise Unusable(f"{path} has no array {wanted}; it holds {held}")
        if not wanted and "y" not in names and len(names) != 1:
            raise Unusable(f"{path} must hold one array, or one named y; it holds {held}; {path}:NAME names another")
        chosen = wanted or ("y" if "y" in names else names[0])
        info = archive.infolist()[names.index(chosen)]
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
        path: as in `read`.
        full_scale: where the array holds levels of a picture, unsigned integers, the one that is white.
        finite: refuse NaN and infinity; False leaves it to a caller who knows which entries count.

    Raises:
        Unusable: unreadable, integers without a full scale, or values that are not finite.
    """
    return _numbers(path, load_array(path), full_scale, finite=finite)


def _numbers(
    path: Path, array: Shaped[np.ndarray, "..."], full_scale: int | None, *, finite: bool, integers: bool = False
) -> Shaped[np.ndarray, "..."]:
    kind = array.dtype.kind
    if integers and kind in "iu" and full_scale is None:
        return array.astype(np.float32)
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
    path: Path, channels: int = 3, full_scale: int | None = None, *, finite: bool = True, integers: bool = False
) -> tuple[Shaped[np.ndarray, "..."], Notes]:
    """Read a picture with `read_picture`, or as `read_array` does an array: .npy, .npz, or what `readers` knows.

    Args:
        path: the file; PATH:NAME for one array of several in it, PATH[INDEX] or PATH:NAME[INDEX] for one image of a
            volume, counted from 0.
        channels: as in `read_picture`.
        full_scale: as in these two.
        finite: as in `read_array`.
        integers: take integers of arrays for numbers in the caller's units.

    Raises:
        Unusable: as these two do.
    """
    if is_array(path):
        array, notes = _load(path)
        return _numbers(path, array, full_scale, finite=finite, integers=integers), notes
    return read_picture(path, channels, full_scale)


def as_image(array: Shaped[np.ndarray, "..."], channels: int) -> tuple[Shaped[np.ndarray, "..."], Notes]:
    """Give an array [H, W] the channels of an image, and complex numbers two; anything else is returned as it is.

    Args:
        array: as `read` gives it.
        channels: 3 replicates the numbers; 2 are real and imaginary part.
    """
    if array.ndim == 3 and array.shape[2] == 1 and np.iscomplexobj(array):
        array = array[..., 0]
    if array.ndim != 2 or (np.iscomplexobj(array) and channels != 2):
        return array, []
    if channels == 2:
        notes = [] if np.iscomplexobj(array) else ["taken for the real part, the imaginary part is 0"]
        return np.stack([np.real(array), np.imag(array)], axis=-1).astype(np.float32), notes
    return np.repeat(array[..., None], channels, axis=2), ["grey replicated to all channels"] * (channels > 1)


def as_numbers(x: Float[np.ndarray, "H W C"]) -> Shaped[np.ndarray, "..."]:
    """Turn two channels, real and imaginary part, into complex numbers."""
    return (x[..., 0] + 1j * x[..., 1]).astype(np.complex64) if x.shape[-1] == 2 else x


def as_picture(x: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W c"]:
    """Turn an image of any number of channels into what one or three can show, in [-1, 1].

    Of two channels, the real and the imaginary part, the magnitude: 0 is black and 1 white. Of four and more the first
    three.
    """
    if x.shape[-1] == 2:
        return 2 * np.hypot(x[..., :1], x[..., 1:]) - 1
    return x if x.shape[-1] == 1 else x[..., :3]


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


def write_tiff(path: Path, x: Float[np.ndarray, "H W *C"]) -> str:
    """Write an image as a TIFF of 32-bit floats in whatever units, whole or not at all."""
    return _write(path, readers.tiff.encode(x))


def write_text(path: Path, text: str) -> str:
    """Write text, whole or not at all."""
    return _write(path, io.BytesIO(text.encode("utf-8")))


def _write(path: Path, content: io.BytesIO) -> str:
    with replacing(path) as file:
        file.write(content.getbuffer())
    return hashlib.sha256(content.getbuffer()).hexdigest()
