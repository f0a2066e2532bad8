"""Masks and kernels from files: the right meaning, or the right reason."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ddiff_jax import stencils
from ddiff_jax.files import Caution

pytestmark = pytest.mark.once

SIDE = 12


def save(path, values):
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.fixture
def mask():
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[3:9] = 1
    return values


@pytest.fixture
def soft():
    """A disc with antialiased edges, and where it is at least half white."""
    large = Image.new("L", (SIDE * 8, SIDE * 8))
    ImageDraw.Draw(large).ellipse((10, 12, 80, 84), fill=255)
    values = np.asarray(large.resize((SIDE, SIDE), Image.Resampling.BOX))
    assert np.any((values > 30) & (values < 220))
    return values


def test_masks(tmp_path, mask):
    forms = {
        **{"mask.png": mask * 255, "zero_one.png": mask, "lossy.png": (mask * 235 + 10).astype(np.uint8)},
        **{"bool.npy": mask.astype(bool), "int.npy": mask.astype(int), "float.npy": mask.astype(float)},
        **{"levels.npy": mask * 255, "levels16.npy": mask.astype(np.uint16) * 65535},
    }
    for name, values in forms.items():
        read, notes = stencils.read_mask(save(tmp_path / name, values))
        np.testing.assert_array_equal(read, mask)
        assert "50.0% of the pixels observed (white)" in notes[-1]
        moved = [note for note in notes if "moved" in note]
        assert moved == ["144 of 144 pixels of the mask moved to white (72) or black (72)"] * (name == "lossy.png")


def test_soft_masks_need_a_threshold_and_say_what_it_moved(tmp_path, soft):
    path = save(tmp_path / "soft.png", soft)
    between = (soft > 0) & (soft < 255)
    unclear = int(((soft > 25) & (soft < 230)).sum())
    with pytest.raises(ValueError, match=f"{unclear} of 144 pixels lie between black and white.*--threshold 0.5"):
        stencils.read_mask(path)
    for threshold in (0.5, 0.2):
        for file in (path, save(tmp_path / "soft.npy", soft / 255)):
            read, notes = stencils.read_mask(file, threshold)
            np.testing.assert_array_equal(read, soft >= 255 * threshold)
            up = int((between & (soft >= 255 * threshold)).sum())
            down = int(between.sum()) - up
            assert notes[0] == f"{up + down} of 144 pixels of the mask moved to white ({up}) or black ({down})"


def test_white_may_mark_the_holes(tmp_path, mask):
    mask[:6] = 0
    path = save(tmp_path / "holes.png", mask * 255)
    read, notes = stencils.read_mask(path)
    np.testing.assert_array_equal(read, mask)
    assert notes == [
        "25.0% of the pixels observed (white), the rest hidden; if white marks the holes, add --invert-mask"
    ]
    read, notes = stencils.read_mask(path, invert=True)
    np.testing.assert_array_equal(read, 1 - mask)
    assert notes == ["75.0% of the pixels observed (black), the rest hidden"]


def test_signed_masks(tmp_path, mask):
    path = save(tmp_path / "signed.npy", 2.0 * mask - 1)
    with pytest.raises(ValueError, match=r"from -1 to 1, in the range of images.*save \(mask \+ 1\) / 2, or add --thr"):
        stencils.read_mask(path)
    np.testing.assert_array_equal(stencils.read_mask(path, 0.5)[0], mask)


def test_masks_that_are_none(tmp_path, mask):
    labels = mask * np.arange(SIDE, dtype=np.uint8) % 4
    picture = Image.fromarray(labels)
    picture.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    picture.save(tmp_path / "palette.png")
    nan = mask.astype(float)
    nan[0, 0] = np.nan
    cases = {
        "labels.png": (labels, r"is a label image, not a mask: it holds 0, 1, 2, 3; save \(image == label\)"),
        "labels.npy": (labels.astype(int), "is a label image"),
        "grey_labels.png": (labels * 85, "it holds 4 values; of a label image save image == label"),
        "half.png": (mask * 128, "72 of 144 pixels lie between black and white"),
        "colour.png": (np.stack([mask, mask, 0 * mask], -1) * 255, "in colour"),
        "wild.npy": (mask * 1e6, "holds values from 0 to 1e"),
        "negative.npy": (mask * -7.0, "holds values from -7 to 0"),
        "nan.npy": (nan, "or NaN"),
        "complex.npy": (mask * 1j, "holds complex128"),
    }
    for name, (values, message) in cases.items():
        with pytest.raises(ValueError, match=message):
            stencils.read_mask(save(tmp_path / name, values))
    with pytest.raises(ValueError, match=r"in colour.*of a label image save"):
        stencils.read_mask(tmp_path / "palette.png")
    with pytest.raises(ValueError, match="a share of white, between 0 and 1; got 128"):
        stencils.read_mask(save(tmp_path / "mask.png", mask * 255), 128.0)


def test_kernels(tmp_path):
    kernel = np.zeros((5, 5), np.uint8)
    kernel[2] = (10, 20, 40, 20, 10)
    read, notes = stencils.read_kernel(save(tmp_path / "k.png", kernel))
    np.testing.assert_allclose(read, kernel / 100, atol=1e-7)
    assert notes == ["kernel divided by its sum"]
    read, notes = stencils.read_kernel(save(tmp_path / "k.npy", kernel / 50))
    np.testing.assert_allclose(read, kernel / 50, atol=1e-7)
    assert "sums to 2" in notes[0]
    assert isinstance(notes[0], Caution)
    assert stencils.read_kernel(save(tmp_path / "one.npy", kernel / 100))[1] == []
    delta = np.zeros((3, 3), int)
    delta[1, 1] = 1
    np.testing.assert_array_equal(stencils.read_kernel(save(tmp_path / "delta.npy", delta))[0], delta)
    cases = {
        "black.png": (0 * kernel, "black"),
        "integers.npy": (kernel, r"holds uint8 that sum to 100; .*save kernel / kernel.sum\(\)"),
        "complex.npy": (np.fft.fft2(kernel / 100), r"holds complex128; a blur kernel is real.*ifft2\(otf\)"),
        "text.npy": (np.array([["a"]]), "holds no numbers but <U1"),
    }
    for name, (values, message) in cases.items():
        with pytest.raises(ValueError, match=message):
            stencils.read_kernel(save(tmp_path / name, values))


def test_the_cure_for_a_transfer_function_gives_the_kernel(tmp_path):
    kernel = np.outer([1, 2, 1], [1, 3, 1]) / 20
    otf = np.fft.fft2(np.fft.ifftshift(kernel))
    np.testing.assert_allclose(np.fft.fftshift(np.fft.ifft2(otf)).real, kernel, atol=1e-12)
