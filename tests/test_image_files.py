"""Reading and writing of pictures, masks, kernels and arrays."""

import numpy as np
import pytest
from PIL import Image

from ddiff_jax import image_files, pictures

SIDE = 12
LEVEL = 1 / 255 + 1e-6  # half a grey level of 8 bits in [-1, 1], and rounding


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def test_rgb_uses_the_fixed_map_and_survives_the_round_trip(tmp_path, rgb):
    rgb = rgb // 4 + 60  # a dull picture: its own range must not be stretched
    Image.fromarray(rgb).save(tmp_path / "x.png")
    x, notes = image_files.read_picture(tmp_path / "x.png")
    assert notes == []
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, rgb / 127.5 - 1, atol=1e-6)  # float32 rounding
    image_files.write_png(tmp_path / "y.png", x)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "y.png")), rgb)


def test_grey_is_replicated_and_colour_averaged(tmp_path, rgb):
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    x, notes = image_files.read_picture(tmp_path / "grey.png")
    assert notes == ["grey replicated to RGB"]
    np.testing.assert_allclose(x, (rgb[..., :1] / 127.5 - 1).repeat(3, -1), atol=1e-6)
    x, notes = image_files.read_picture(tmp_path / "rgb.png", channels=1)
    assert x.shape == (SIDE, SIDE, 1)
    assert notes == ["colour averaged to grey"]
    np.testing.assert_allclose(x, np.asarray(Image.fromarray(rgb).convert("L"))[..., None] / 127.5 - 1, atol=2 * LEVEL)


def test_bilevel_and_palette(tmp_path, rgb):
    Image.fromarray(rgb).convert("1").save(tmp_path / "bilevel.png")
    assert set(np.unique(image_files.read_picture(tmp_path / "bilevel.png")[0])) == {-1.0, 1.0}
    palette = Image.fromarray(rgb).convert("P")
    palette.save(tmp_path / "palette.png")
    x, notes = image_files.read_picture(tmp_path / "palette.png")
    assert notes == ["palette expanded to RGB"]
    np.testing.assert_allclose(x, np.asarray(palette.convert("RGB")) / 127.5 - 1, atol=1e-6)


def test_alpha(tmp_path, rgb):
    picture = Image.fromarray(rgb)
    picture.putalpha(255)
    picture.save(tmp_path / "opaque.png")
    x, notes = image_files.read_picture(tmp_path / "opaque.png")
    assert notes == ["opaque alpha dropped"]
    np.testing.assert_allclose(x, rgb / 127.5 - 1, atol=1e-6)
    picture.putalpha(51)
    picture.save(tmp_path / "clear.png")
    x, notes = image_files.read_picture(tmp_path / "clear.png")
    assert notes == ["alpha composited over white"]
    np.testing.assert_allclose(x, 0.2 * (rgb / 127.5 - 1) + 0.8, atol=2 * LEVEL)


def test_cmyk_and_exif_rotation(tmp_path, rgb):
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.tif")
    x, notes = image_files.read_picture(tmp_path / "cmyk.tif")
    assert notes == ["CMYK converted to RGB without a colour profile"]
    np.testing.assert_allclose(x, rgb / 127.5 - 1, atol=2 * LEVEL)
    exif = Image.Exif()
    exif[pictures.ORIENTATION_TAG] = 6  # shown a quarter turn clockwise
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    x, notes = image_files.read_picture(tmp_path / "turned.png")
    assert notes == ["turned upright as its EXIF tag says"]
    np.testing.assert_allclose(x, np.rot90(rgb, -1) / 127.5 - 1, atol=1e-6)


def test_bad_pictures(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "nothing.png").touch()
    expected = {
        "truncated.png": "truncated or damaged",
        "text.png": "not an image",
        "nothing.png": "not an image",
        "missing.png": "No such file",
        ".": "is a folder",
    }
    for name, message in expected.items():
        with pytest.raises(ValueError, match=message):
            image_files.read(tmp_path / name)


def test_arrays(tmp_path):
    y = np.random.default_rng(2).normal(size=(3, 5, 2))
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "one.npz", anything=y)
    np.savez(tmp_path / "named.npz", y=y, mask=y)
    for name in ("y.npy", "one.npz", "named.npz"):
        read, _ = image_files.read(tmp_path / name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, y.astype(np.float32))
    np.save(tmp_path / "complex.npy", y * 1j)
    assert image_files.read_array(tmp_path / "complex.npy").dtype == np.complex64


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
        "objects.npy": "cannot be read as an array of numbers .*Object arrays",
        "cut.npy": "cannot be read",
        "cut.npz": "cannot be read",
        "missing.npy": "No such file",
    }
    for name, message in expected.items():
        with pytest.raises(ValueError, match=message):
            image_files.read(tmp_path / name)


def test_integers_are_read_only_with_the_level_that_is_white(tmp_path):
    levels = np.array([[[0, 1000, 4095]]], np.uint16)
    np.save(tmp_path / "x.npy", levels)
    with pytest.raises(ValueError, match=r"holds uint16; save floats.*--full-scale"):
        image_files.read(tmp_path / "x.npy")
    np.testing.assert_allclose(image_files.read(tmp_path / "x.npy", 3, 4095)[0], levels / 2047.5 - 1, atol=1e-6)
    for full_scale in (4000, 70000, 0):
        with pytest.raises(ValueError, match=f"uint16 up to 4095; --full-scale {full_scale} does not fit"):
            image_files.read(tmp_path / "x.npy", 3, full_scale)


def test_crop_and_resize_keeps_the_centre():
    x = np.full((20, 40, 3), -1, np.float32)
    x[:, 10:30] = 1  # the centred square
    np.testing.assert_array_equal(image_files.crop_and_resize(x, 10), np.ones((10, 10, 3), np.float32))


def test_writing_clips_and_is_all_or_nothing(tmp_path):
    image_files.write_png(tmp_path / "x.png", np.array([[[-3.0], [0.0], [7.0]]]))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), [[0, 128, 255]])
    before = (tmp_path / "x.png").read_bytes()
    with pytest.raises(RuntimeError), image_files.replacing(tmp_path / "x.png") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "x.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    with pytest.raises(ValueError, match="1 or 3"):
        image_files.write_png(tmp_path / "x.png", np.zeros((2, 2, 2)))
