"""Random phantoms: what they depend on, what every one of them has, and the command that writes them."""

import json

import numpy as np
import pytest
from PIL import Image as Pillow

from ddiff_jax import phantoms as package
from ddiff_jax.cli import phantoms as command
from ddiff_jax.image_files import to_uint8
from ddiff_jax.phantoms import phantom, phantoms
from ddiff_jax.phantoms.canvas import Canvas, Waves
from ddiff_jax.phantoms.contents import CONTENTS
from ddiff_jax.phantoms.drawing import BODIES
from ddiff_jax.phantoms.scenes import SCENES
from ddiff_jax.phantoms.shapes import Shape, box, disc, ellipse, outline, polygon, stroke

pytestmark = pytest.mark.once

COUNT = 40


@pytest.fixture(scope="module")
def family():
    return phantoms(COUNT, 32, seed=7)


def beyond_the_circle(side):
    """Mark the pixels that lie wholly outside of the circle that touches the frame."""
    nearest = np.maximum(np.abs(np.arange(side) - (side - 1) / 2) - 0.5, 0) * 2 / side
    return np.hypot(nearest[:, None], nearest[None]) >= 1


def test_a_phantom_is_a_function_of_seed_and_index(family):
    assert family.shape == (COUNT, 32, 32, 1) and family.dtype == np.float32
    np.testing.assert_array_equal(phantom(7, COUNT - 1, 32), family[-1])  # whatever was drawn before
    assert len({x.tobytes() for x in family}) == COUNT
    assert np.any(phantom(8, 0, 32) != family[0])


def test_phantoms_stay_in_their_range_and_leave_air_around_them(family):
    assert family.min() == -1 and 0.8 < family.max() <= 1
    assert np.all(family[:, beyond_the_circle(32)] == -1)
    matter = np.mean(family > -1, axis=(1, 2, 3))
    assert matter.min() > 0.01 and 0.2 < matter.mean() < 0.7
    assert np.all(np.std(family, axis=(1, 2, 3)) > 0.02), "none is empty"


def test_phantoms_differ_from_each_other(family):
    """No two of a family are as much alike as one is to itself in another size."""
    flat = family.reshape(COUNT, -1)
    alike = np.corrcoef(flat) - np.eye(COUNT)
    assert alike.max() < 0.97
    assert np.median(alike) < 0.7


@pytest.mark.parametrize(("large", "small"), [(64, 32), (128, 64)])
def test_the_same_things_are_seen_at_every_size(large, small):
    for index in range(8):
        fine = phantom(7, index, large)[..., 0].reshape(small, 2, small, 2).mean(axis=(1, 3))
        coarse = phantom(7, index, small)[..., 0]
        assert np.corrcoef(fine.ravel(), coarse.ravel())[0, 1] > 0.95, index


@pytest.mark.parametrize("side", [8, 33])
def test_any_size_will_do(side):
    x = phantom(0, 3, side)
    assert x.shape == (side, side, 1) and np.all(x[beyond_the_circle(side)] == -1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 7), "side of a phantom must be from 8 to 1024 pixels; got 7"),
        ((0, 0, 1025), "side of a phantom must be from 8 to 1024"),
        ((0, -1, 64), "index of a phantom must be from 0 to 999999; got -1"),
        ((0, 1_000_000, 64), "index of a phantom must be"),
        ((-1, 0, 64), "a seed must be from 0 to"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        phantom(*arguments)
    with pytest.raises(ValueError, match="number of phantoms must be from 1 to 1000000; got 0"):
        phantoms(0)


def test_scenes_name_what_exists_and_all_that_exists_is_drawn():
    named = [name for scene in SCENES.values() for name in (*scene.contents, *scene.usual)]
    assert set(named) == CONTENTS.keys()
    assert {body for scene in SCENES.values() for body in scene.bodies} == BODIES.keys()
    for scene in SCENES.values():
        ranges = [scene.layers, scene.items, scene.tissue, *((low, high) for _, low, high in scene.levels)]
        assert scene.share > 0 and all(low <= high for low, high in ranges)


# Shapes: what they cover is their area, which is known


def area(shape: Shape, side: int = 64, **settings) -> float:
    canvas = Canvas(side, **{"angle": 0.0, "bend": 0.0, "fields": STILL, **settings})
    return float(canvas.whole(canvas.cover(shape)).sum()) * canvas.step**2


STILL = (Waves(*np.zeros((4, 1))), Waves(*np.zeros((4, 1))))
SQUARE = np.array([0.3 + 0.3j, -0.3 + 0.3j, -0.3 - 0.3j, 0.3 - 0.3j])


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        (disc(0.1, -0.2, 0.4), np.pi * 0.16),
        (ellipse(0.1, 0.2, 0.6, 0.2, 0.7), np.pi * 0.12),
        (box(0.0, 0.1, 0.5, 0.2, 0.4), 0.4),
        (box(0.0, 0.1, 0.5, 0.2, 0.4, 0.1), 0.4 - (4 - np.pi) * 0.01),
        (polygon(0.1, 0.05, SQUARE), 0.36),
        (outline(0.0, 0.0, 0.5, np.array([0, 0.2j, 0.1])), np.pi * 0.25 * (1 + (0.04 + 0.01) / 2)),
        (stroke(-0.4 - 0.2j, 0.3 + 0.1j, 0.1), 0.1 * abs(0.7 + 0.3j) + np.pi * 0.0025),
        (stroke(-0.4 - 0.2j, 0.3 + 0.1j, 0.003), 0.003 * abs(0.7 + 0.3j)),  # a fifth of a fine pixel
        (disc(0.0, 0.0, 0.4).rim(0.05), np.pi * (0.16 - 0.1225)),
        (disc(0.0, 0.0, 0.4).shrunk(0.1), np.pi * 0.09),
        (disc(0.1, 0.0, 0.4).without(disc(0.2, 0.1, 0.1)), np.pi * 0.15),
        (polygon(0.3, 0.0, SQUARE * 1j**0.3).mirrored(), 0.36),
    ],
)
def test_shapes_cover_their_area_wherever_they_are_turned(shape, want):
    assert area(shape) == pytest.approx(want, rel=0.03)
    assert area(shape, angle=2.0) == pytest.approx(want, rel=0.03)


def test_what_is_turned_and_bent_is_not_cut_by_its_window():
    fields = Waves.draw(np.random.default_rng(0), 0.4, 1.5, 4), Waves.draw(np.random.default_rng(1), 0.4, 1.5, 4)
    canvas = Canvas(32, 0.8, 0.15, fields)
    shape = ellipse(0.3, -0.2, 0.4, 0.2, 0.3)
    depth = shape.depth(canvas.x - np.float32(0.3), canvas.y - np.float32(-0.2))
    np.testing.assert_allclose(canvas.whole(canvas.cover(shape)), canvas.soften(depth), atol=1e-6)


def test_a_field_has_the_variance_and_the_slope_that_it_tells():
    waves = Waves.draw(np.random.default_rng(0), 3.0, 6.0, 16)
    axis = np.linspace(-20, 20, 1500, dtype=np.float32)  # many periods
    height = waves.at(axis)
    assert np.var(height) == pytest.approx(1, rel=0.05)
    slopes = np.gradient(height, axis[1] - axis[0])
    assert np.sqrt(np.mean(slopes[0] ** 2 + slopes[1] ** 2)) == pytest.approx(waves.slope, rel=0.1)


def test_cells_are_those_of_the_nearest_seed():
    canvas = Canvas(16, 0.0, 0.0, STILL)
    seeds = np.array([-0.5 + 0j, 0.5 + 0.1j, 0.1 - 0.6j])
    owner, walls = canvas.cells(seeds, 0.3)
    places = canvas.x + 1j * canvas.y
    np.testing.assert_array_equal(owner, np.abs(places[..., None] - seeds).argmin(axis=-1))
    assert walls[-1, 0] == 0 and walls[16, 16] == 1  # a corner, and between the first two seeds


# The command


def test_command_writes_pictures_and_says_what_they_are(ddiff, tmp_path):
    code, out, err = ddiff("phantoms", "ct", "--count", 3, "--size", 16, "--seed", 5)
    assert code == 0 and not out and "3 phantoms of 16x16 pixels" in err
    names = [f"phantom_{i:06d}.png" for i in range(3)]
    assert sorted(path.name for path in (tmp_path / "ct").iterdir()) == [*names, "phantoms.json"]
    for index, name in enumerate(names):
        picture = Pillow.open(tmp_path / "ct" / name)
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), to_uint8(phantom(5, index, 16))[..., 0])
    said = json.loads((tmp_path / "ct" / "phantoms.json").read_text())
    assert {**said, "version": ""} == {"seed": 5, "size": 16, "count": 3, "version": ""} and said["version"]

    code, _, err = ddiff("phantoms", "ct", "--count", 1, "--size", 8)
    assert code == 2 and "phantom_000000.png exists; choose another FOLDER, or --existing overwrite" in err
    code, _, err = ddiff("phantoms", "ct", "--count", 1, "--size", 8, "--existing", "overwrite", "--quiet")
    assert code == 0 and "holds 2 older phantoms as well, such as phantom_000001.png" in err
    assert np.asarray(Pillow.open(tmp_path / "ct" / names[0])).shape == (8, 8)


def test_interrupted_command_leaves_whole_pictures_and_does_not_say_that_it_was_done(ddiff, tmp_path, monkeypatch):
    def draw(seed, index, side):
        if index == 70:  # in the second group
            raise KeyboardInterrupt
        return np.zeros((side, side, 1), np.float32)

    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "phantoms.json").write_text("{}")
    monkeypatch.setattr(command, "phantom", draw)
    code, _, err = ddiff("phantoms", "ct", "--count", 90, "--size", 8)
    assert code == 130 and "interrupted" in err
    held = {path.name for path in (tmp_path / "ct").iterdir()}
    assert {f"phantom_{i:06d}.png" for i in range(64)} <= held
    assert not held & {"phantom_000070.png", "phantoms.json"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--count", 0], "--count must be from 1 to 1000000; got 0"),
        (["--count", 1_000_001], "--count must be"),
        (["--size", 4], "--size must be from 8 to 1024 pixels; got 4"),
        (["--size", 2000], "--size must be"),
        (["--seed", -1], "--seed must be from 0 to"),
        (["--sise", 64], "did you mean '--size'"),
        (["--existing", "skip"], "--existing"),
    ],
)
def test_bad_flags_are_refused_and_nothing_is_written(ddiff, tmp_path, flags, message):
    code, _, err = ddiff("phantoms", "ct", *flags)
    assert code == 2 and message in err
    assert not (tmp_path / "ct").exists()


def test_a_folder_that_cannot_be_made_is_refused(ddiff, tmp_path):
    (tmp_path / "ct").write_text("")
    code, _, err = ddiff("phantoms", "ct", "--count", 1)
    assert code == 2 and "cannot write to ct" in err and "choose another FOLDER" in err
    assert ddiff("phantoms")[0] == 2


def test_the_package_offers_what_it_declares():
    assert all(hasattr(package, name) for name in package.__all__)
