"""Decoding: all the bits of a picture, every format that Pillow decodes by itself, and nothing that it must not."""

import io
import os
import socket
import struct
import threading
import warnings

import numpy as np
import pytest
from pictures16 import chunk, save_png16, save_tiff16
from PIL import Image, features

from ddiff_jax import pictures
from ddiff_jax.files import Caution, Unusable
from ddiff_jax.image_files import load_array, read

SIDE = 12
EXACT = 3e-7  # rounding of float32 levels in [0, 1]
WIDE = "16 bits read by their own range, 0 to 65535"


@pytest.fixture
def values():
    return np.random.default_rng(1).integers(0, 65536, (SIDE, SIDE, 4)).astype(np.uint16)


def on_white(levels, alpha):
    return levels * alpha + 1 - alpha


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits(tmp_path, values, channels):
    save_png16(tmp_path / "x.png", values[..., :channels])
    levels, notes = pictures.read_levels(tmp_path / "x.png")
    known = values[..., :channels] / 65535
    expected = on_white(known[..., :-1], known[..., -1:]) if channels in (2, 4) else known
    np.testing.assert_allclose(levels, expected[..., 0] if channels < 3 else expected, atol=EXACT)
    assert notes == [WIDE, *["alpha composited over white"] * (channels in (2, 4))]


def test_png_of_16_bits_with_a_transparent_colour(tmp_path, values):
    for channels in (1, 3):
        key = values[0, 0, :channels]
        save_png16(tmp_path / "x.png", values[..., :channels], chunk(b"tRNS", key.astype(">u2").tobytes()))
        levels, notes = pictures.read_levels(tmp_path / "x.png")
        expected = values[..., :channels] / 65535
        expected[0, 0] = 1
        np.testing.assert_allclose(levels, expected[..., 0] if channels == 1 else expected, atol=EXACT)
        assert "alpha composited over white" in notes


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_of_16_bits(tmp_path, values, order, planar):
    path, known = tmp_path / "x.tif", values / 65535
    alpha = known[..., 3:]
    save_tiff16(path, values[..., :3], order=order, planar=planar)
    levels, notes = pictures.read_levels(path)
    np.testing.assert_allclose(levels, known[..., :3], atol=EXACT)
    assert notes == [WIDE]
    save_tiff16(path, values, order=order, planar=planar, extra=2)
    np.testing.assert_allclose(pictures.read_levels(path)[0], on_white(known[..., :3], alpha), atol=EXACT)
    save_tiff16(path, values, order=order, planar=planar, extra=1)  # colour that is multiplied by alpha already
    np.testing.assert_allclose(pictures.read_levels(path)[0], known[..., :3] + 1 - alpha, atol=EXACT)


def test_tiff_of_16_bits_in_other_colours(tmp_path, values):
    path, known = tmp_path / "x.tif", values / 65535
    save_tiff16(path, values, photometric=5)
    levels, notes = pictures.read_levels(path)
    np.testing.assert_allclose(levels, (1 - known[..., :3]) * (1 - known[..., 3:]), atol=EXACT)
    assert "CMYK converted to RGB without a colour profile" in notes
    for photometric, expected in {1: known[..., 0], 0: 1 - known[..., 0]}.items():
        save_tiff16(path, values[..., :1], photometric=photometric)
        np.testing.assert_allclose(pictures.read_levels(path)[0], expected, atol=EXACT)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", None])
def test_a_compressed_grey_tiff_turned_upright(tmp_path, values, compression):
    exif = Image.Exif()
    exif[pictures.ORIENTATION_TAG] = 6  # shown a quarter turn clockwise
    picture = Image.fromarray(values[: SIDE // 2, :, 0])
    picture.save(tmp_path / "x.tif", compression=compression, exif=exif)
    levels, notes = pictures.read_levels(tmp_path / "x.tif")
    np.testing.assert_allclose(levels, np.rot90(values[: SIDE // 2, :, 0] / 65535, -1), atol=EXACT)
    assert notes == ["turned upright as its EXIF tag says", WIDE]


def test_colour_of_16_bits_is_turned_upright(tmp_path, values):
    exif = Image.Exif()
    exif[pictures.ORIENTATION_TAG] = 6
    save_png16(tmp_path / "x.png", values[: SIDE // 2, :, :3], chunk(b"eXIf", exif.tobytes()[6:]))
    levels, notes = pictures.read_levels(tmp_path / "x.png")
    np.testing.assert_allclose(levels, np.rot90(values[: SIDE // 2, :, :3] / 65535, -1), atol=EXACT)
    assert "turned upright as its EXIF tag says" in notes


@pytest.mark.parametrize("white", [65535, 4095])
def test_ppm_of_more_than_8_bits(tmp_path, values, white):
    numbers = (values[..., :3].astype(int) % (white + 1)).astype(">u2")
    (tmp_path / "x.ppm").write_bytes(f"P6\n{SIDE} {SIDE}\n{white}\n".encode() + numbers.tobytes())
    (tmp_path / "x.pgm").write_bytes(f"P5\n{SIDE} {SIDE}\n{white}\n".encode() + numbers[..., 0].tobytes())
    np.testing.assert_allclose(pictures.read_levels(tmp_path / "x.ppm")[0], numbers / white, atol=EXACT)
    # Pillow rounds grey numbers to 16 bits.
    np.testing.assert_allclose(pictures.read_levels(tmp_path / "x.pgm")[0], numbers[..., 0] / white, atol=1e-5)
    (tmp_path / "plain.ppm").write_text(f"P3\n{SIDE} {SIDE}\n{white}\n" + " ".join(map(str, numbers.ravel())))
    levels, notes = pictures.read_levels(tmp_path / "plain.ppm")
    np.testing.assert_allclose(levels, numbers / white, atol=1 / 255)
    assert notes == ["16-bit colour read as 8 bits (the upper ones)"]


def test_full_scale(tmp_path, values):
    narrow = values[..., :3] % 4096
    narrow[0, 0] = 4095
    save_png16(tmp_path / "x.png", narrow)
    save_tiff16(tmp_path / "x.tif", narrow[..., :1], photometric=1)
    for name in ("x.png", "x.tif"):
        levels, notes = pictures.read_levels(tmp_path / name)
        assert levels.max() < 0.07
        cautions = [note for note in notes if isinstance(note, Caution)]
        assert cautions == ["its largest number is 4095 of 65535: if it is 12-bit data, give --full-scale 4095"]
        levels, notes = pictures.read_levels(tmp_path / name, 4095)
        expected = narrow / 4095 if levels.ndim == 3 else narrow[..., 0] / 4095
        np.testing.assert_allclose(levels, expected, atol=EXACT)
        assert notes == ["16 bits read with full scale 4095"]
    save_tiff16(tmp_path / "black.tif", 0 * narrow[..., :1], photometric=1)
    assert not any(isinstance(note, Caution) for note in pictures.read_levels(tmp_path / "black.tif")[1])
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "eight.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.jpg")
    for name, full_scale, message in (
        ("x.png", 4000, "holds 4095, which is above --full-scale 4000"),
        ("x.png", 65536, "16-bit numbers, 0 to 65535; --full-scale 65536 does not fit"),
        ("eight.png", 4095, "8-bit numbers, 0 to 255; --full-scale 4095 does not fit"),
        ("x.jpg", 4095, "a JPEG file says itself what white is"),
    ):
        with pytest.raises(Unusable, match=message):
            pictures.read_levels(tmp_path / name, full_scale)


def test_numbers_without_a_range_are_refused(tmp_path, values):
    Image.fromarray(values[..., 0].astype(np.int32)).save(tmp_path / "int.tif")
    Image.fromarray(values[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    for name, kind in {"int.tif": "signed or 32-bit integers", "float.tif": "floating-point numbers"}.items():
        with pytest.raises(Unusable, match=f"{kind}, whose range is not fixed"):
            pictures.read_levels(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *[("x.avif", "RGB"), ("x.webp", "RGB"), ("x.jp2", "RGB"), ("x.qoi", "RGB"), ("x.tga", "RGB"), ("x.sgi", "RGB")],
        *[("x.pcx", "RGB"), ("x.dds", "RGB"), ("x.ico", "RGB"), ("x.jfif", "RGB"), ("x.dib", "RGB")],
        *[("x.msp", "1"), ("x.xbm", "1"), ("x.blp", "P"), ("x.apng", "RGB"), ("x.pnm", "RGB"), ("x.mpo", "RGB")],
    ],
)
def test_every_format_is_read(tmp_path, name, mode):
    written = {"x.mpo": "MPO", "x.apng": "PNG"}.get(name) or Image.registered_extensions().get(name[1:])
    if written not in Image.SAVE or (name == "x.jp2" and not features.check("jpg_2000")):
        pytest.skip(f"this Pillow does not write {name[1:]}")
    ramp = np.linspace(40, 200, 32).astype(np.uint8)
    picture = Image.fromarray(np.stack([np.tile(ramp, (32, 1))] * 3, -1)).convert(mode)
    picture.save(tmp_path / name, format=written)
    assert (tmp_path / name).suffix in pictures.suffixes()
    levels, _ = pictures.read_levels(tmp_path / name)
    expected = np.asarray(picture.convert("RGB")) / 255
    expected = expected if levels.ndim == 3 else expected[..., 0]
    np.testing.assert_allclose(levels, expected, atol=6 / 255)  # lossy ones


def test_what_starts_programs_or_needs_them_is_not_opened(tmp_path):
    assert not {"EPS", "IPTC", "MPEG", "WMF", "HDF5", "GRIB", "BUFR"} & pictures.decoders().keys()
    assert not {".eps", ".ps", ".pdf", ".h5", ".wmf"} & pictures.suffixes().keys()
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name in ("x.eps", "x.png"):
        picture.save(tmp_path / name, format="EPS")
        with pytest.raises(Unusable, match="is not an image"):
            pictures.read_levels(tmp_path / name)
    # What has no signature is believed only under its own name.
    picture.save(tmp_path / "x.tga")
    (tmp_path / "other.png").write_bytes((tmp_path / "x.tga").read_bytes())
    assert pictures.read_levels(tmp_path / "x.tga")[0].shape == (8, 8, 3)
    with pytest.raises(Unusable, match="is not an image"):
        pictures.read_levels(tmp_path / "other.png")


def test_the_first_of_several_frames_counts(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (40, 200)]
    for name in ("x.gif", "x.tif", "x.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        levels, notes = pictures.read_levels(tmp_path / name)
        np.testing.assert_allclose(levels, 40 / 255, atol=EXACT)
        assert "first of several frames taken" in notes


def test_lost_bits_are_told(tmp_path, values):
    picture = Image.fromarray((values[..., :3] >> 8).astype(np.uint8))
    stream = io.BytesIO()
    picture.save(stream, format="JPEG2000", irreversible=False)
    start = stream.getvalue().index(pictures.SOC_AND_SIZ)
    for bits in (8, 12):
        head = bytearray(stream.getvalue())
        for channel in range(3):
            head[start + 42 + 3 * channel] = bits - 1
        picture.format = "JPEG2000"
        assert pictures._depth(picture, bytes(head)) == bits


# Whatever a decoder raises


def exif_that_is_none(path):
    save_png16(path, np.zeros((4, 4, 3), np.uint16), chunk(b"eXIf", b"no TIFF header at all"))


def damaged_stream(path):
    save_png16(path, np.zeros((4, 4, 3), np.uint16))
    data = bytearray(path.read_bytes())
    place = data.index(b"IDAT") + 8
    data[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))


def npy(header):
    """Make a writer of an array file with this header."""

    def save(path):
        text = header.encode().ljust(117) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64))

    return save


def npz_that_is_damaged(path):
    np.savez_compressed(path, y=np.random.default_rng(0).normal(size=(40, 40)))
    data = bytearray(path.read_bytes())
    data[200:240] = bytes(40)
    path.write_bytes(bytes(data))


FLOATS = "{'descr': '<f8', 'fortran_order': False, 'shape': "
HOSTILE = {
    "EXIF": ("x.png", exif_that_is_none),
    "stream": ("x.png", damaged_stream),
    "no memory": ("x.npy", npy(f"{FLOATS}({10**15},), }}")),
    "no integer": ("x.npy", npy(f"{FLOATS}({10**30},), }}")),
    "negative": ("x.npy", npy(f"{FLOATS}(-3, 2), }}")),
    "open bracket": ("x.npy", npy(f"{FLOATS}((((((3, ")),
    "nested": ("x.npy", npy("[" * 110)),
    "no header": ("x.npy", npy("\0")),
    "archive": ("x.npz", npz_that_is_damaged),
    "name only": ("x.tif", lambda path: path.write_bytes(b"II*\0\xff\xff\xff\xff")),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_whatever_a_decoder_raises_is_one_line_about_the_file(tmp_path, case):
    name, save = HOSTILE[case]
    save(tmp_path / name)
    with pytest.raises(Unusable) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("raised", [MemoryError(), RecursionError("deep"), SystemError("odd"), KeyError("x")])
def test_errors_of_every_type_are_taken(tmp_path, monkeypatch, raised):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", np.zeros(3))

    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(pictures.Pillow, "open", fail)
    monkeypatch.setattr(np.lib.format, "read_array", fail)
    for reader, name in ((pictures.read_levels, "x.png"), (load_array, "x.npy")):
        with pytest.raises(Unusable, match=name):
            reader(tmp_path / name)


def test_what_is_no_plain_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.npy").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
    kinds = {"pipe.png": "a pipe", "folder.png": "a folder", "device.npy": "a device", "socket.png": "a socket"}

    def refuse():
        for name, kind in kinds.items():
            with pytest.raises(Unusable, match=f"{name} is {kind}, not a file"):
                read(tmp_path / name)
        done.set()

    done = threading.Event()
    threading.Thread(target=refuse, daemon=True).start()
    assert done.wait(20)  # opening the pipe would wait for ever


def test_what_the_decoder_warns_of_is_a_note(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png")
    opened = pictures.Pillow.open

    def warn(*arguments, **keywords):
        warnings.warn("an odd file", UserWarning, stacklevel=1)
        return opened(*arguments, **keywords)

    monkeypatch.setattr(pictures.Pillow, "open", warn)
    assert "an odd file" in pictures.read_levels(tmp_path / "x.png")[1]
