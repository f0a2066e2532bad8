"""What people bring to the command line: other ranges, masks, folders, and files that are no files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pictures16 import chunk, save_png16
from PIL import Image, ImageDraw

import ddiff_jax as dd
from ddiff_jax import image_files
from ddiff_jax.cli import restore, settings
from ddiff_jax.restoration import resolve

pytestmark = pytest.mark.once

SAMPLE = Path(str(dd.__path__[0])) / "assets" / "sample.png"
QUICK = ("--steps", "3", "--batch-size", "2", "--no-cache")  # as in the other tests: they share compiled programs


@pytest.fixture
def x():
    return image_files.read_picture(SAMPLE)[0]


def rows(folder="restored"):
    return {row["name"]: row for row in json.loads((Path(folder) / "metrics.json").read_text())["images"]}


def warnings(err):
    return [line for line in err.splitlines() if line.startswith("ddiff: warning: ")]


def small(x):
    return x.reshape(16, 4, 16, 4, 3).mean((1, 3))


# Ranges


def test_images_in_another_range(ddiff, quick_prior, x):
    np.save("levels.npy", (x + 1) * 127.5)
    np.save("share.npy", (x + 1) / 2)
    np.save("right.npy", x)
    code, _, err = ddiff("restore", "levels.npy", "share.npy", "right.npy", "--quiet", *QUICK)
    assert code == 1
    assert "ddiff: error: levels.npy holds values from 0 to 253; an image is in [-1, 1]" in err
    assert "save x / 127.5 - 1" in err
    (line,) = warnings(err)  # also when quiet
    assert "share.npy: never goes below 0" in line
    assert "save 2 * x - 1" in line
    assert rows().keys() == {"share", "right"}
    assert line.endswith(rows()["share"]["notes"][0])
    assert rows()["right"]["notes"] == []


def test_measurements_in_another_range(ddiff, quick_prior, x):
    y = small(x) + np.random.default_rng(0).normal(0, 0.05, (16, 16, 3)).astype(np.float32)
    np.save("right.npy", y)
    np.save("share.npy", (y + 1) / 2)
    np.save("levels.npy", (y + 1) * 127.5)
    inputs = ("right.npy", "share.npy", "levels.npy")
    code, _, err = ddiff("restore", *inputs, "--measured", *QUICK)
    assert code == 0, err
    share, levels = warnings(err)
    assert "share.npy: never goes below " in share
    assert "save 2 * y - 1, with --sigma scaled likewise" in share
    assert "levels.npy: holds values from" in levels
    assert "save y / 127.5 - 1" in levels
    assert "warned about 2, see above: share.npy, levels.npy" in err


def test_arrays_with_their_channels_first(ddiff, quick_prior, x):
    np.save("x.npy", np.moveaxis(x, -1, 0))
    np.save("y.npy", np.moveaxis(small(x), -1, 0))
    for arguments in (("x.npy",), ("y.npy", "--measured")):
        code, _, err = ddiff("restore", *arguments)
        assert code == 2
        assert err.endswith("; channels come last here: save np.moveaxis(x, 0, -1)\n")


def test_only_what_was_observed_is_judged(ddiff, quick_prior, x):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 20:] = 255
    Image.fromarray(mask).save("mask.png")
    for name, observed in {"right": x, "share": (x + 1) / 2}.items():
        np.save(f"{name}.npy", np.where(mask[..., None] > 0, observed, -1 if name == "share" else 0))
    arguments = ("--measured", "--task", "inpainting", "--mask", "mask.png")
    code, _, err = ddiff("restore", "right.npy", "share.npy", *arguments, *QUICK)
    assert code == 0, err
    (line,) = warnings(err)
    assert line.startswith("ddiff: warning: share.npy")


def test_noise_levels_in_other_units(ddiff, quick_prior, x):
    np.save("y.npy", small(x))
    code, _, err = ddiff("restore", "--sigma", 12.75, *QUICK)
    assert code == 2
    assert "--sigma 12.75 is larger than the range of pictures here" in err
    assert "give --sigma 0.1" in err
    code, _, err = ddiff("restore", "y.npy", "--measured", "--sigma", 1.5, *QUICK)
    assert code == 0
    assert "--sigma 1.5 is larger than the whole measurement" in warnings(err)[0]
    # Where a measurement is no picture, large numbers are nothing special.
    assert resolve(task="phase_retrieval", sigma=5.0).sigma_y == 5


def test_the_estimated_level_is_printed_for_each_image(ddiff, quick_prior, x):
    for name, sigma_y in {"quiet": 0.05, "loud": 0.3}.items():
        np.save(f"{name}.npy", x + np.random.default_rng(0).normal(0, sigma_y, x.shape).astype(np.float32))
    arguments = ("--measured", "--task", "gaussian_blur", "--sigma", "auto")
    code, _, err = ddiff("restore", "quiet.npy", "loud.npy", *arguments, *QUICK)
    assert code == 0, err
    assert "sigma_y estimated for each image" in err
    for name, row in rows().items():
        assert f"note: {name}.npy: noise level estimated as {row['sigma_y']:.4f}" in err


def test_full_scale(ddiff, quick_prior, x):
    numbers = np.round((x + 1) * 2047.5).astype(np.uint16)
    save_png16(Path("twelve.png"), numbers)
    np.save("array.npy", numbers)
    code, _, err = ddiff("restore", "twelve.png", "--output", "dark", *QUICK)
    assert code == 0
    assert "if it is 12-bit data, give --full-scale 4095" in warnings(err)[0]
    code, _, err = ddiff("restore", "twelve.png", "array.npy", "--full-scale", 4095, *QUICK)
    assert code == 0, err
    assert not warnings(err)
    Image.open(SAMPLE).save("plain.png")
    assert ddiff("restore", "plain.png", "--output", "plain", *QUICK)[0] == 0
    for name in ("twelve", "array"):
        # The random numbers differ by the name, the picture only by rounding: alike up to the noise.
        assert rows()[name]["psnr"] == pytest.approx(rows("plain")["plain"]["psnr"], abs=0.3)
    assert used_settings("restored")["full_scale"] == 4095


def used_settings(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())["runs"][0]["settings"]


def test_warming_up_asks_nothing_of_its_own_picture(ddiff, quick_prior, capsys):
    restore.warm_up(settings.read(["--full-scale", "4095", *QUICK]))
    assert capsys.readouterr() == ("", "")
    assert not list(Path().iterdir())  # it leaves nothing behind


# Masks


def test_soft_and_inverted_masks(ddiff, quick_prior):
    Image.open(SAMPLE).save("photo.png")
    large = Image.new("L", (512, 512), 255)
    ImageDraw.Draw(large).ellipse((100, 110, 300, 330), fill=0)
    soft = large.resize((64, 64), Image.Resampling.BOX)
    soft.save("soft.png")
    task = ("photo.png", "--task", "inpainting", "--mask", "soft.png")
    code, _, err = ddiff("restore", *task, *QUICK)
    assert code == 2
    assert "soft or antialiased edges; add --threshold 0.5" in err
    code, _, err = ddiff("restore", *task, "--threshold", 0.5, "--output", "out", *QUICK)
    assert code == 0, err
    assert "pixels of the mask moved to white (" in err
    code, _, err = ddiff("restore", *task, "--threshold", 0.5, "--invert-mask", "--output", "holes", *QUICK)
    assert code == 0, err
    assert "of the pixels observed (black)" in err
    used, inverted = (np.asarray(Image.open(f"{folder}/photo_mask.png")) for folder in ("out", "holes"))
    np.testing.assert_array_equal(used == 255, np.asarray(soft) >= 127.5)
    np.testing.assert_array_equal(inverted, 255 - used)
    operator = {"name": "inpainting", "mask": "soft.png", "threshold": 0.5, "invert_mask": True}
    assert used_settings("holes")["operator"] == operator


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "random_inpainting", "--threshold", "0.5"), "say how to read a mask: give --mask"),
        (("--task", "random_inpainting", "--mask", "m.npy", "--threshold", "128"), "between 0 and 1; got 128"),
        (("--task", "random_inpainting", "--mask", "m.npy"), "save (mask + 1) / 2, or add --threshold"),
        (("--invert-mask",), "--invert-mask; it belongs to --task"),
        (("--task", "blur", "--kernel", "otf.npy"), "a blur kernel is real"),
        (("--task", "blur", "--kernel", "levels.npy"), "save kernel / kernel.sum()"),
        (("--task", "blur", "--kernel", "even.npy"), "a blur kernel must be a 2-D array with odd sides"),
    ],
)
def test_masks_and_kernels_that_mislead(ddiff, quick_prior, arguments, message):
    np.save("m.npy", np.where(np.eye(64) > 0, 1.0, -1.0))
    np.save("otf.npy", np.fft.fft2(np.eye(5) / 5))
    np.save("levels.npy", np.full((5, 5), 200, np.uint8))
    np.save("even.npy", np.full((4, 4), 1 / 16))
    code, _, err = ddiff("restore", *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


# Folders


@pytest.fixture
def tree(tmp_path):
    """Make a folder of two photographs, one called as one in a folder inside, and other things."""
    for i, name in enumerate(("a.png", "b.webp", "sub/a.png", "sub/deep/c.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(SAMPLE).rotate(90 * i).save(path, lossless=True)
    for name in ("notes.txt", "list.txt", "raw.cr2", "README", ".hidden"):
        (tmp_path / "photos" / name).write_text("no picture")
    return tmp_path / "photos"


def test_what_a_folder_holds_beside_images_is_told(ddiff, quick_prior, tree):
    code, _, err = ddiff("restore", "photos", *QUICK)
    assert code == 0, err
    assert rows().keys() == {"a", "b"}
    closing = err.splitlines()[-3:]
    assert closing[0] == "left out of photos: 4 files of types that are not read (1 .cr2, 2 .txt, 1 no ending)"
    assert closing[1] == "left out of photos: 1 sub-folder (sub); --recursive enters them"
    (tree / "a.png").unlink()
    (tree / "b.webp").unlink()
    code, _, err = ddiff("restore", "photos", "--output", "other", *QUICK)
    assert code == 2
    assert "holds no image" in err
    assert "1 sub-folder (sub); --recursive enters them" in err


def test_a_tree_is_mirrored(ddiff, quick_prior, tree):
    arguments = ("restore", "photos", "--recursive", "--output", "photos/out", *QUICK)
    code, _, err = ddiff(*arguments)
    assert code == 0, err
    assert "4 files of types that are not read" in err
    assert "sub-folder" not in err
    assert rows("photos/out").keys() == {"a", "b", "sub/a", "sub/deep/c"}
    for name, row in rows("photos/out").items():
        assert row["files"]["restored"] == f"{name}_restored.png"
        for file in row["files"].values():
            assert (Path("photos/out") / file).stat().st_size > 100
    measured = [Path(f"photos/out/{name}_measurement.png").read_bytes() for name in ("a", "sub/a")]
    assert measured[0] != measured[1]
    # What lies at the top is as without the tree, and the results are not taken for inputs.
    assert ddiff("restore", "photos/a.png", *QUICK)[0] == 0
    assert Path("restored/a_restored.png").read_bytes() == Path("photos/out/a_restored.png").read_bytes()
    code, _, err = ddiff(*arguments)
    assert code == 0
    assert "skipped 4 of 4" in err
    code, _, err = ddiff("restore", "photos/a.png", "photos/sub/a.png", *QUICK)
    assert code == 2
    assert "give the folder above both with --recursive" in err


def test_masks_mirror_the_tree_too(ddiff, quick_prior, tree):
    for i, name in enumerate(("a", "b", "sub/a", "sub/deep/c")):
        path = Path("masks") / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = np.full((64, 64), 255, np.uint8)
        mask[10 * i : 10 * i + 20] = 0
        Image.fromarray(mask).save(path)
    task = ("--task", "inpainting", "--mask", "masks")
    code, _, err = ddiff("restore", "photos", "--recursive", *task, *QUICK)
    assert code == 0, err
    for name in rows():
        used, given = (np.asarray(Image.open(path)) for path in (f"restored/{name}_mask.png", f"masks/{name}.png"))
        np.testing.assert_array_equal(used, given)


def test_links_to_folders_are_not_followed(ddiff, quick_prior, tree):
    (tree / "sub" / "again").symlink_to(tree)
    code, _, err = ddiff("restore", "photos", "--recursive", *QUICK)
    assert code == 0, err
    assert len(rows()) == 4
    assert "1 sub-folder (sub/again)\n" in err


def test_one_bad_file_of_any_kind_does_not_end_a_folder(ddiff, quick_prior):
    folder = Path("photos")
    folder.mkdir()
    Image.open(SAMPLE).save(folder / "good.png")
    numbers = np.asarray(Image.open(SAMPLE)).astype(np.uint16) * 257
    save_png16(folder / "exif.png", numbers, chunk(b"eXIf", b"no TIFF header at all"))
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**15},), }}".encode().ljust(117) + b"\n"
    (folder / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header)
    (folder / "bracket.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + b"((((".ljust(117) + b"\n")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    code, _, err = ddiff("restore", "photos", *QUICK)
    assert code == 1
    assert rows().keys() == {"good"}
    for name in ("exif.png", "huge.npy", "bracket.npy", "pipe.png"):
        (line,) = [line for line in err.splitlines() if line.startswith(f"ddiff: error: photos/{name} ")]
        assert "Traceback" not in line
    assert "photos/pipe.png is a pipe, not a file" in err
    assert "failed 4: " in err
    assert "1 sub-folder (folder.png)" in err


# Results


def damage(kind):
    """Do something to the results of the first photograph."""
    restored = Path("out/photo0_restored.png")
    if kind == "empty":
        restored.write_bytes(b"")
    elif kind == "truncated":
        restored.write_bytes(restored.read_bytes()[:-100])
    elif kind == "other":
        restored.write_text("no picture")
    elif kind == "deleted":
        restored.unlink()
    elif kind == "measurement":
        Path("out/photo0_measurement.png").write_bytes(b"")
    elif kind == "row":
        Path("out/records/images/photo0.json").unlink()


def test_what_is_damaged_or_missing_is_made_again(ddiff, quick_prior):
    Path("photos").mkdir()
    for i in range(2):
        Image.open(SAMPLE).rotate(90 * i).save(f"photos/photo{i}.png")
    arguments = ("restore", "photos", "--output", "out", *QUICK)
    assert ddiff(*arguments)[0] == 0
    before = {path: path.read_bytes() for path in Path("out").glob("*.png")}
    times = {path: path.stat().st_mtime_ns for path in before}
    images = rows("out")
    for kind in ("empty", "truncated", "other", "deleted", "measurement", "row"):
        damage(kind)
        code, _, err = ddiff(*arguments)
        assert code == 0, err
        assert "made again 1, whose results or rows are missing or damaged: photos/photo0.png" in err
        assert "skipped 1 of 2" in err
        assert {path: path.read_bytes() for path in Path("out").glob("*.png")} == before
        assert rows("out").keys() == images.keys()
        assert rows("out")["photo0"]["psnr"] == images["photo0"]["psnr"]
    assert all(path.stat().st_mtime_ns == times[path] for path in before if path.name.startswith("photo1"))
    Path("out/metrics.json").unlink()
    assert ddiff(*arguments)[0] == 0
    assert rows("out").keys() == images.keys()


# Images of other sizes than the prior's


def wide(x):
    return np.concatenate([x, x[:, :32]], axis=1)[:, :96]


def test_images_of_any_size_are_restored_as_they_are(ddiff, quick_prior, x):
    image_files.write_png(Path("usual.png"), x)
    image_files.write_png(Path("wide.png"), wide(x))
    image_files.write_png(Path("other.png"), wide(x)[::-1])
    image_files.write_png(Path("low.png"), x[:40])
    code, _, err = ddiff("restore", "low.png", "wide.png", "usual.png", "other.png", *QUICK)
    assert code == 0 and rows().keys() == {"low", "wide", "usual", "other"}
    (told,) = rows()["wide"]["notes"]
    assert told == "96x64 pixels in 3 x 1 windows of 64x64 that overlap by 16, at other places in every step"
    assert f"note: wide.png: {told}" in err and err.count("has seen pictures of 64x64 pixels") == 1
    assert rows()["low"]["notes"] == [
        "64x40 pixels are the middle of 64x64, of which the prior makes up the rest",
    ]
    assert rows()["usual"]["notes"] == []
    for name, sides in {"low": (64, 40), "wide": (96, 64), "usual": (64, 64)}.items():
        assert image_files.read_picture(Path(f"restored/{name}_restored.png"))[0].shape == (*sides[::-1], 3)
    # No image depends on its company.
    code, _, err = ddiff("restore", "wide.png", "--output", "alone", *QUICK)
    assert code == 0
    for name in ("wide_restored.png", "wide_measurement.png"):
        assert Path("alone", name).read_bytes() == Path("restored", name).read_bytes()
    assert "skipped 4 of 4" in ddiff("restore", "low.png", "wide.png", "usual.png", "other.png", *QUICK)[2]


def test_sizes_are_what_the_flags_say(ddiff, quick_prior, x):
    image_files.write_png(Path("wide.png"), wide(x))
    flags = ("--overlap", "8", "--no-shift-windows", "--fit")
    code, _, err = ddiff("restore", "wide.png", *flags, "windows", *QUICK)
    assert code == 0 and "96x64 pixels in 2 x 1 windows of 64x64 that overlap by 8\n" in err
    assert ddiff("restore", "wide.png", "--fit", "refuse", "--output", "no", *QUICK)[0] == 2
    assert "--overlap must be from 0 to 63" in ddiff("restore", "wide.png", "--overlap", "64", *QUICK)[2]
    for wrong, said in (
        ("64", "such as 512x384; got '64'"),
        ("64x0", "such as 512x384"),
        ("96x64", "prior's size only"),
    ):
        assert said in ddiff("restore", "wide.png", "--fit", "refuse", "--image-size", wrong, *QUICK)[2]


def test_measurements_tell_the_size_of_their_images(ddiff, quick_prior, x):
    y = wide(x).reshape(16, 4, 24, 4, 3).mean((1, 3))
    np.save("y.npy", y)
    code, _, err = ddiff("restore", "y.npy", "--measured", *QUICK)
    assert code == 0 and image_files.read_picture(Path("restored/y_restored.png"))[0].shape == (64, 96, 3), err
    mask = np.full((64, 96), 255, np.uint8)
    mask[20:40, 30:60] = 0
    Image.fromarray(mask).save("mask.png")
    image_files.write_png(Path("holes.png"), np.where(mask[..., None] > 0, wide(x), 0))
    task = ("--task", "random_inpainting", "--mask", "mask.png")
    code, _, err = ddiff("restore", "holes.png", "--measured", *task, "--output", "painted", *QUICK)
    assert code == 0 and image_files.read_picture(Path("painted/holes_restored.png"))[0].shape == (64, 96, 3), err
    # Of a clean image of the prior's size the mask is of another size, and of an odd measurement nothing is known.
    image_files.write_png(Path("usual.png"), x)
    code, _, err = ddiff("restore", "usual.png", *task, "--output", "bad", *QUICK)
    assert code == 2 and "height and width of the image" in err
    np.save("odd.npy", y[:, :, :1])
    code, _, err = ddiff("restore", "odd.npy", "--measured", "--output", "bad", *QUICK)
    assert code == 2 and "--image-size" in err


def test_an_evaluation_takes_images_of_any_size(ddiff, quick_prior, monkeypatch, x):
    from ddiff_jax.evaluation import run as evaluation
    from ddiff_jax.restoration import run as restoration

    monkeypatch.setattr(evaluation, "load_prior", restoration.load_prior)
    image_files.write_png(Path("usual.png"), x)
    image_files.write_png(Path("wide.png"), wide(x))
    code, _, err = ddiff("evaluate", "usual.png", "wide.png", "--steps", "3", "--no-cache", "--no-shift-windows")
    assert code == 0 and "note: 96x64 pixels in 2 x 1 windows of 64x64" in err, err
    table = Path("evaluation", "results.csv").read_text()
    assert table.count(",ok,") == 2
