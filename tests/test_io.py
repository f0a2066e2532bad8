"""Reading and writing of pictures, masks, kernels and arrays."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddiff_jax import io

SIDE = 12
LEVEL = 1 / 255 + 1e-6  # half a grey level of 8 bits in [-1, 1], and rounding


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def save_png16(path, values):
    """Write a 16-bit colour PNG, which Pillow can read but not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_rgb_uses_the_fixed_map_and_survives_the_round_trip(tmp_path, rgb):
    rgb = rgb // 4 + 60  # a dull picture: its own range must not be stretched
    Image.fromarray(rgb).save(tmp_path / "x.png")
    x, notes = io.read_picture(tmp_path / "x.png")
    assert notes == []
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, rgb / 127.5 - 1, atol=1e-6)  # float32 rounding
    io.write_png(tmp_path / "y.png", x)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "y.png")), rgb)


def test_grey_is_replicated_and_colour_averaged(tmp_path, rgb):
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    x, notes = io.read_picture(tmp_path / "grey.png")
    assert notes == ["grey replicated to RGB"]
    np.testing.assert_allclose(x, (rgb[..., :1] / 127.5 - 1).repeat(3, -1), atol=1e-6)
    x, notes = io.read_picture(tmp_path / "rgb.png", channels=1)
    assert x.shape == (SIDE, SIDE, 1)
    assert notes == ["colour averaged to grey"]
    np.testing.assert_allclose(x, np.asarray(Image.fromarray(rgb).convert("L"))[..., None] / 127.5 - 1, atol=2 * LEVEL)


def test_bilevel_and_palette(tmp_path, rgb):
    Image.fromarray(rgb).convert("1").save(tmp_path / "bilevel.png")
    assert set(np.unique(io.read_picture(tmp_path / "bilevel.png")[0])) == {-1.0, 1.0}
    palette = Image.fromarray(rgb).convert("P")
    palette.save(tmp_path / "palette.png")
    x, notes = io.read_picture(tmp_path / "palette.png")
    assert notes == ["palette expanded to RGB"]
    np.testing.assert_allclose(x, np.asarray(palette.convert("RGB")) / 127.5 - 1, atol=1e-6)


def test_alpha(tmp_path, rgb):
    picture = Image.fromarray(rgb)
    picture.putalpha(255)
    picture.save(tmp_path / "opaque.png")
    x, notes = io.read_picture(tmp_path / "opaque.png")
    assert notes == ["opaque alpha dropped"]
    np.testing.assert_allclose(x, rgb / 127.5 - 1, atol=1e-6)
    picture.putalpha(51)
    picture.save(tmp_path / "clear.png")
    x, notes = io.read_picture(tmp_path / "clear.png")
    assert notes == ["alpha composited over white"]
    np.testing.assert_allclose(x, 0.2 * (rgb / 127.5 - 1) + 0.8, atol=2 * LEVEL)


def test_16_bits(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (SIDE, SIDE, 3))
    Image.fromarray(values[..., 0].astype(np.uint16)).save(tmp_path / "grey.png")
    x, notes = io.read_picture(tmp_path / "grey.png")
    assert notes == ["16 bits read by their own range, 0 to 65535", "grey replicated to RGB"]
    np.testing.assert_allclose(x[..., 2], values[..., 0] / 32767.5 - 1, atol=1e-6)
    save_png16(tmp_path / "colour.png", values)
    x, notes = io.read_picture(tmp_path / "colour.png")
    assert notes == ["16-bit colour read as 8 bits (the upper byte)"]
    np.testing.assert_allclose(x, (values >> 8) / 127.5 - 1, atol=1e-6)


def test_cmyk_and_exif_rotation(tmp_path, rgb):
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.tif")
    x, notes = io.read_picture(tmp_path / "cmyk.tif")
    assert notes == ["CMYK converted to RGB without a colour profile"]
    np.testing.assert_allclose(x, rgb / 127.5 - 1, atol=2 * LEVEL)
    exif = Image.Exif()
    exif[io.ORIENTATION_TAG] = 6  # shown a quarter turn clockwise
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    x, notes = io.read_picture(tmp_path / "turned.png")
    assert notes == ["turned upright as its EXIF tag says"]
    np.testing.assert_allclose(x, np.rot90(rgb, -1) / 127.5 - 1, atol=1e-6)


def test_bad_pictures(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "nothing.png").touch()
    Image.fromarray(rgb[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    expected = {
        "truncated.png": "truncated or damaged",
        "text.png": "not an image",
        "nothing.png": "not an image",
        "missing.png": "No such file",
        "float.tif": "range is not fixed",
        ".": "is a folder",
    }
    for name, message in expected.items():
        with pytest.raises(ValueError, match=message):
            io.read(tmp_path / name)


def test_arrays(tmp_path):
    y = np.random.default_rng(2).normal(size=(3, 5, 2))
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "one.npz", anything=y)
    np.savez(tmp_path / "named.npz", y=y, mask=y)
    for name in ("y.npy", "one.npz", "named.npz"):
        read, _ = io.read(tmp_path / name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, y.astype(np.float32))
    np.save(tmp_path / "complex.npy", y * 1j)
    assert io.read_array(tmp_path / "complex.npy").dtype == np.complex64


def test_bad_arrays(tmp_path):
    y = np.ones((2, 2))
    np.savez(tmp_path / "two.npz", a=y, b=y)
    np.save(tmp_path / "nan.npy", np.where(np.eye(2), np.nan, y))
    np.save(tmp_path / "levels.npy", y.astype(np.uint8))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "whole.npy", np.ones((100, 100)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:1000])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:100])
    expected = {
        "two.npz": "one array, or one named y; it holds a, b",
        "nan.npy": "NaN or infinity in 2 of 4",
        "levels.npy": "holds uint8",
        "objects.npy": "cannot be read",
        "cut.npy": "cannot be read",
        "cut.npz": "cannot be read",
        "missing.npy": "No such file",
    }
    for name, message in expected.items():
        with pytest.raises(ValueError, match=message):
            io.read(tmp_path / name)


def test_masks(tmp_path):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[3:9] = 1
    Image.fromarray(mask * 255).save(tmp_path / "mask.png")
    Image.fromarray(mask).save(tmp_path / "zero_one.png")
    Image.fromarray((mask * 235 + 10).astype(np.uint8)).save(tmp_path / "lossy.png")
    np.save(tmp_path / "mask.npy", mask.astype(bool))
    for name in ("mask.png", "zero_one.png", "lossy.png", "mask.npy"):
        read, notes = io.read_mask(tmp_path / name)
        np.testing.assert_array_equal(read, mask)
        assert "50.0% of the pixels observed" in notes[0]
    Image.fromarray(mask * 128).save(tmp_path / "half.png")
    Image.fromarray(np.stack([mask, mask, 0 * mask], -1) * 255).save(tmp_path / "colour.png")
    for name, message in {"half.png": "between black and white", "colour.png": "in colour"}.items():
        with pytest.raises(ValueError, match=message):
            io.read_mask(tmp_path / name)


def test_kernels(tmp_path):
    kernel = np.zeros((5, 5), np.uint8)
    kernel[2] = (10, 20, 40, 20, 10)
    Image.fromarray(kernel).save(tmp_path / "k.png")
    Image.fromarray(0 * kernel).save(tmp_path / "black.png")
    np.save(tmp_path / "k.npy", kernel / 50)
    read, notes = io.read_kernel(tmp_path / "k.png")
    np.testing.assert_allclose(read, kernel / 100, atol=1e-7)
    assert notes == ["kernel divided by its sum"]
    read, notes = io.read_kernel(tmp_path / "k.npy")
    np.testing.assert_allclose(read, kernel / 50, atol=1e-7)
    assert "sums to 2" in notes[0]
    with pytest.raises(ValueError, match="black"):
        io.read_kernel(tmp_path / "black.png")


def test_crop_and_resize_keeps_the_centre():
    x = np.full((20, 40, 3), -1, np.float32)
    x[:, 10:30] = 1  # the centred square
    np.testing.assert_array_equal(io.crop_and_resize(x, 10), np.ones((10, 10, 3), np.float32))


def test_writing_clips_and_is_all_or_nothing(tmp_path):
    io.write_png(tmp_path / "x.png", np.array([[[-3.0], [0.0], [7.0]]]))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), [[0, 128, 255]])
    before = (tmp_path / "x.png").read_bytes()
    with pytest.raises(RuntimeError), io.replacing(tmp_path / "x.png") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert (tmp_path / "x.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    with pytest.raises(ValueError, match="1 or 3"):
        io.write_png(tmp_path / "x.png", np.zeros((2, 2, 2)))
