"""Where the images of a training come from: what is read of files, the order, and the two ways of reading ahead."""

import builtins
import itertools
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from pictures16 import save_png16
from PIL import Image as Pillow

from ddiff_jax.image_files import to_uint8
from ddiff_jax.restoration.folders import AHEAD, Lines, read_clean_files
from ddiff_jax.training.data import (
    ArrayImages,
    BadImage,
    FolderImages,
    Images,
    Subset,
    batch_indices,
    batches,
    from_levels,
    grain_batches,
    read_folder,
    split,
)

COUNT = 11


def numbered(count=COUNT, dtype=np.uint8):
    """Make images that say which they are."""
    return ArrayImages(np.broadcast_to(np.arange(count)[:, None, None, None], (count, 2, 3, 1)).astype(dtype))


def first(iterator, count):
    """Take some batches, close what they came from, and give the numbers of their images."""
    try:
        return np.stack([batch[:, 0, 0, 0] for batch in itertools.islice(iterator, count)])
    finally:
        iterator.close()


both = pytest.mark.parametrize("reading", [batches, grain_batches])


# Order


@pytest.mark.parametrize("batch_size", [1, 4, 11, 25])
def test_every_epoch_has_every_image_once(batch_size):
    steps = 4 * COUNT
    sequence = np.concatenate([batch_indices(COUNT, batch_size, step, seed=3) for step in range(steps)])
    epochs = sequence.reshape(-1, COUNT) if sequence.size % COUNT == 0 else None
    assert epochs is not None and len(epochs) == 4 * batch_size
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(COUNT), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_order_depends_on_its_arguments_alone():
    want = batch_indices(COUNT, 4, 1000, seed=3)
    for step in range(5):
        batch_indices(COUNT, 4, step, seed=3)
    np.testing.assert_array_equal(batch_indices(COUNT, 4, 1000, seed=3), want)
    np.testing.assert_array_equal(batch_indices(COUNT, 2, 2000, seed=3), want[:2])  # the sequence, cut otherwise
    assert np.any(batch_indices(1000, 4, 0, seed=4) != batch_indices(1000, 4, 0, seed=3))
    assert batch_indices(10**6, 3, 2**40, seed=0).max() < 10**6


def test_order_is_the_same_in_every_version():
    """It rests on the bits of Philox, which NumPy promises to keep."""
    assert batch_indices(7, 10, 0, seed=0).tolist() == [0, 3, 5, 1, 2, 6, 4, 4, 6, 1]


@pytest.mark.parametrize("arguments", [(0, 1, 0, 0), (5, 0, 0, 0), (5, 1, -1, 0), (5, 1, 0, -1), (5, 1, 0, 2**32)])
def test_bad_numbers_are_refused(arguments):
    with pytest.raises(ValueError, match=r"expected images, a batch and a step|a seed must be"):
        batch_indices(*arguments)


def test_split_divides_the_images():
    training, held_out = split(numbered(200), seed=1)
    assert len(held_out) == 10  # 5%
    np.testing.assert_array_equal(np.sort(np.concatenate([training, held_out])), np.arange(200))
    assert np.all(np.diff(training) > 0) and np.all(np.diff(held_out) > 0)
    np.testing.assert_array_equal(split(np.zeros((200, 4, 4, 3), np.float32), seed=1)[1], held_out)
    assert np.any(split(numbered(200), seed=2)[1] != held_out)
    assert [len(split(numbered(count))[1]) for count in (32, 100, 1000, 10**5)] == [8, 8, 50, 64]
    assert len(split(numbered(40), 20)[1]) == 20
    with pytest.raises(ValueError, match="at least 32 images, of which 8 are held out to judge it by; got 31"):
        split(numbered(31))
    for wrong in (0, 7, 21):
        with pytest.raises(ValueError, match=f"of 40 images, 8 to 20 can be held out; got {wrong}"):
            split(numbered(40), wrong)


# Batches


@both
def test_batches_have_the_images_of_the_order(reading):
    want = np.stack([batch_indices(COUNT, 4, step, seed=5) for step in range(9)])
    np.testing.assert_array_equal(first(reading(numbered(), batch_size=4, seed=5), 9), want)
    np.testing.assert_array_equal(
        first(reading(numbered(), batch_size=25, seed=5), 1)[0, :11], batch_indices(11, 11, 0, 5)
    )


@both
def test_a_resumed_iterator_goes_on_where_the_other_was(reading):
    whole = first(reading(numbered(), batch_size=4, seed=5), 8)
    np.testing.assert_array_equal(first(reading(numbered(), batch_size=4, seed=5, start_step=5), 3), whole[5:])


@both
def test_the_shares_of_processes_make_up_the_batch(reading):
    whole = first(reading(numbered(), batch_size=6, seed=5), 4)
    shares = [first(reading(numbered(), batch_size=6, seed=5, process_index=i, process_count=3), 4) for i in range(3)]
    assert shares[0].shape == (4, 2)
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


@both
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_batches_keep_the_type_of_their_images(reading, dtype):
    levels = np.random.default_rng(0).integers(0, 2, (COUNT, 4, 5, 3))
    iterator = reading(ArrayImages(levels.astype(dtype)), batch_size=3, seed=0)
    batch = next(iterator)
    iterator.close()
    assert batch.dtype == dtype
    np.testing.assert_array_equal(batch, levels[batch_indices(COUNT, 3, 0, 0)])


@both
def test_bad_shares_and_sizes_are_refused_at_once(reading):
    for arguments, message in {
        (6, 0, 4): "a batch of 6 images cannot be shared equally by 4 processes; take a multiple of 4",
        (6, 3, 3): "there is no process 3 of 3",
        (6, -1, 3): "there is no process -1 of 3",
        (0, 0, 1): "expected images, a batch",
    }.items():
        size, index, count = arguments
        with pytest.raises(ValueError, match=message):
            reading(numbered(), batch_size=size, seed=0, process_index=index, process_count=count)


class Faulty:
    """Images of which some are not what they should be."""

    def __init__(self, bad, what):
        self.bad, self.what = bad, what

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        if i != self.bad:
            return np.zeros((2, 2, 1), np.uint8)
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


@both
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (OSError("disk is gone"), "image 7 cannot be read: disk is gone"),
        (KeyError("lost"), "image 7 cannot be read: 'lost'"),
        (np.zeros((2, 2, 1)), r"image 7 must be \[H, W, C\] of uint8 levels or float32 .* got float64\[2, 2, 1\]"),
        (np.zeros((2, 2), np.uint8), r"image 7 must be \[H, W, C\]"),
        (np.zeros((3, 2, 1), np.uint8), r"(image 7 is uint8\[3, 2, 1\]|image \d+ is uint8\[2, 2, 1\])"),
        (
            np.zeros((2, 2, 1), np.float32),
            r"(image 7 is float32|image \d+ is uint8)\[2, 2, 1\].* one shape and one type",
        ),
    ],
)
def test_faults_of_a_source_come_out_where_the_batches_are_taken(reading, what, message):
    order = np.concatenate([batch_indices(COUNT, 2, step, seed=0) for step in range(6)])
    before = int(np.flatnonzero(order == 7)[0]) // 2  # batches without it
    iterator = reading(Faulty(7, what), batch_size=2, seed=0)
    for _ in range(before):
        assert next(iterator).shape == (2, 2, 2, 1)
    with pytest.raises(BadImage, match=message):
        next(iterator)
    iterator.close()


class Counting(Faulty):
    """Images that count how often they are asked for."""

    def __init__(self):
        super().__init__(None, None)
        self.asked, self.enough = 0, threading.Event()

    def __getitem__(self, i):
        self.asked += 1
        if self.asked == 3:
            self.enough.set()
        return super().__getitem__(i)


def test_batches_are_made_ahead_but_not_far_and_end_when_closed():
    images, threads = Counting(), set(threading.enumerate())
    iterator = batches(images, batch_size=1, seed=0)
    next(iterator)
    assert images.enough.wait(10)
    iterator.close()
    assert images.asked == 3
    assert not [thread for thread in set(threading.enumerate()) - threads if thread.is_alive()]
    assert next(iterator, None) is None


def test_what_is_missing_is_told(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **settings):
        if name == "grain":
            raise ImportError(name)
        return real(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'ddiff-jax\[grain\]'"):
        grain_batches(numbered(), batch_size=1, seed=0)


def test_bad_numbers_of_readers_are_refused():
    for wrong in ({"num_threads": 0}, {"num_workers": -1}):
        with pytest.raises(ValueError, match="expected 1 thread or more and 0 workers or more"):
            grain_batches(numbered(), batch_size=1, seed=0, **wrong)


@pytest.mark.slow
def test_worker_processes_yield_the_same():
    want = first(batches(numbered(), batch_size=4, seed=5, start_step=2), 7)
    got = first(grain_batches(numbered(), batch_size=4, seed=5, start_step=2, num_workers=2), 7)
    np.testing.assert_array_equal(got, want)


def test_what_workers_send_can_be_sent():
    images = FolderImages([Path("a.png")], (4, 4, 1))
    assert pickle.loads(pickle.dumps(images)) == images
    assert str(pickle.loads(pickle.dumps(BadImage("image 3")))) == "image 3"


# Images


def test_arrays_are_images_if_they_are_in_range():
    assert isinstance(numbered(), Images) and isinstance(np.zeros((3, 2, 2, 1)), Images)
    some = Subset(numbered(), np.array([3, 8]))
    assert len(some) == 2 and some[1][0, 0, 0] == 8
    np.testing.assert_array_equal(
        first(batches(some, batch_size=2, seed=0), 1)[0], np.array([3, 8])[batch_indices(2, 2, 0, 0)]
    )
    for array, message in (
        (np.zeros((3, 2, 2, 1)), r"\[N, H, W, C\] of uint8 levels or of float32 .* got float64\[3, 2, 2, 1\]"),
        (np.full((3, 2, 2, 1), 1.5, np.float32), r"in \[-1, 1\]; got 1.5 to 1.5"),
        (np.full((3, 2, 2, 1), np.nan, np.float32), "in"),
    ):
        with pytest.raises(ValueError, match=message):
            ArrayImages(array)


@pytest.mark.usefixtures("unchecked")
def test_arrays_of_the_wrong_rank_are_refused_without_type_checks():
    with pytest.raises(ValueError, match=r"got uint8\[3, 2, 2\]"):
        ArrayImages(np.zeros((3, 2, 2), np.uint8))


@pytest.fixture
def levels():
    return np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), np.uint8)


def save_all(folder, levels):
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(levels):
        Pillow.fromarray(picture).save(folder / f"{i}.png")


def test_pictures_of_the_right_size_are_read_as_they_are(tmp_path, levels):
    save_all(tmp_path, levels)
    heard = Lines()
    images, failed = read_folder([str(tmp_path)], (12, 12, 3), heard)
    assert images.array.dtype == np.uint8 and not failed and not heard
    np.testing.assert_array_equal(images.array, levels)
    np.testing.assert_allclose(from_levels(levels), levels / 127.5 - 1, atol=1e-6)
    lazy = FolderImages.find([str(tmp_path)], (12, 12, 3), heard)
    np.testing.assert_array_equal(np.stack([lazy[i] for i in range(len(lazy))]), levels)


def test_pictures_of_all_kinds_become_grey_squares(tmp_path, levels):
    save_all(tmp_path, levels)
    Pillow.fromarray(np.full((30, 20), 77, np.uint8)).save(tmp_path / "tall.jpg", quality=95)
    Pillow.fromarray(np.full((24, 60, 4), 255, np.uint8)).save(tmp_path / "wide.png")
    heard = Lines()
    images, failed = read_folder([str(tmp_path)], (12, 12, 1), heard)
    assert images.array.shape == (7, 12, 12, 1) and images.array.dtype == np.uint8 and not failed
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs(images.array[:5, ..., 0] - levels @ weights).max() <= 0.51  # rounded
    assert np.abs(images.array[5].astype(int) - 77).max() <= 1 and np.all(images.array[6] == 255)
    assert heard == [f"note: 7 images converted, such as {tmp_path / '0.png'}: colour averaged to grey"]


def test_one_fine_image_makes_floats_of_all(tmp_path, levels):
    save_all(tmp_path, levels)
    fine = np.random.default_rng(1).integers(0, 65536, (12, 12, 3))
    save_png16(tmp_path / "6.png", fine)
    array = np.random.default_rng(2).uniform(-1, 1, (12, 12, 3)).astype(np.float32)
    np.save(tmp_path / "7.npy", array)
    images, failed = read_folder([str(tmp_path)], (12, 12, 3), Lines())
    assert images.array.dtype == np.float32 and not failed
    np.testing.assert_allclose(images.array[:5], from_levels(levels), atol=1e-6)
    np.testing.assert_allclose(images.array[5], fine / 32767.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(images.array[6], array)
    lazy = FolderImages.find([str(tmp_path)], (12, 12, 3), Lines())
    assert lazy.dtype == "float32"
    np.testing.assert_allclose(np.stack([lazy[i] for i in range(7)]), images.array, atol=1e-6)
    rounded = FolderImages(lazy.paths, (12, 12, 3))  # as a folder without arrays would be read
    np.testing.assert_array_equal(rounded[5], to_uint8(images.array[5]))


def test_arrays_have_any_number_of_channels_and_are_resized(tmp_path):
    ramp = np.broadcast_to(np.linspace(-1, 1, 24, dtype=np.float32)[:, None, None], (24, 30, 2))
    np.save(tmp_path / "a.npy", ramp)
    images, _ = read_folder([str(tmp_path)], (8, 8, 2), Lines())
    assert images.array.shape == (1, 8, 8, 2) and images.array.dtype == np.float32
    np.testing.assert_allclose(
        images.array[0, 1:-1, 4, 0], np.linspace(-1, 1, 24).reshape(8, 3).mean(1)[1:-1], atol=0.02
    )


def test_unreadable_files_are_told_and_left_out(tmp_path, levels):
    save_all(tmp_path, levels)
    (tmp_path / "2.png").write_bytes(b"no picture")
    np.save(tmp_path / "3.npy", np.full((12, 12, 3), 7, np.float32))
    (tmp_path / "notes.txt").write_text("")
    for name in ("0", "1"):  # the same names in a folder inside
        save_all(tmp_path / "more" / name, levels[:1])
    heard = Lines()
    images, failed = read_folder([str(tmp_path)], (12, 12, 3), heard)
    assert failed == 2 and len(images) == 4
    np.testing.assert_array_equal(images.array, levels[[0, 1, 3, 4]])
    told = "\n".join(heard)
    assert "2.png is not an image" in told and "3.npy holds values from 7 to 7" in told
    assert "1 file of types that are not read (1 .txt)" in told and "--recursive enters them" in told

    images, failed = read_folder([str(tmp_path)], (12, 12, 3), Lines(), recursive=True)
    assert failed == 2 and len(images) == 6
    folders = [str(tmp_path / "more" / name) for name in ("0", "1")]
    images, _ = read_folder([*folders, folders[0], str(tmp_path / "*.png")], (12, 12, 3), Lines())
    assert len(images) == 2 + 4

    lazy = FolderImages.find([str(tmp_path)], (12, 12, 3), Lines())
    with pytest.raises(BadImage, match=r"image \d+ cannot be read: .*(2.png|3.npy)"):
        first(batches(lazy, batch_size=6, seed=0), 1)
    assert [path.name for path in lazy.readable(Lines()).paths] == ["0.png", "1.png", "3.png", "4.png"]


def test_a_folder_of_which_nothing_can_be_read_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the images could be read"):
        read_folder([str(tmp_path)], (4, 4, 3), Lines())
    with pytest.raises(ValueError, match="no file matches"):
        read_folder([str(tmp_path / "*.jpg")], (4, 4, 3), Lines())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        read_folder([str(tmp_path / "empty")], (4, 4, 3), Lines())


def test_files_are_read_in_their_order_and_no_further_than_they_are_taken(tmp_path):
    Pillow.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    paths = [tmp_path / "a.png", tmp_path / "gone.png"] * (2 * AHEAD)
    heard = Lines()
    reading = read_clean_files(paths, (4, 4, 1), heard)
    assert [next(reading).path.name for _ in range(3)] == ["a.png"] * 3
    reading.close()
    assert len(heard) == 2 and "gone.png cannot be read" in heard[0]


def test_how_far_it_is_and_what_is_doubtful_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("ddiff_jax.restoration.folders.SAY_SECONDS", 0.0)
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((4, 4, 1), 0.5, np.float32))
    heard = Lines()
    read_folder([str(tmp_path)], (4, 4, 1), heard)
    assert "2 of 3 images read" in heard and "never goes below 0" in "".join(heard)


def test_both_ways_read_the_same_from_files(tmp_path, levels):
    save_all(tmp_path, levels)
    lazy = FolderImages.find([str(tmp_path)], (6, 6, 1), Lines())
    held, _ = read_folder([str(tmp_path)], (6, 6, 1), Lines())
    one, other = batches(held, batch_size=3, seed=1), grain_batches(lazy, batch_size=3, seed=1)
    for left, right in itertools.islice(zip(one, other, strict=True), 5):
        np.testing.assert_array_equal(left, right)
    one.close()
    other.close()
