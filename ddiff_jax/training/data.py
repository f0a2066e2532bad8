"""Where the images of a training come from, and in which order: a function of a seed, taken up at any step.

Step s takes the places s B, ..., (s + 1) B - 1 of an endless sequence of epochs, each a fresh permutation of the
images. `batches` and `grain_batches` yield the same images in the same order, for one process or for each of several.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

from ddiff_jax import image_files, pictures
from ddiff_jax.files import quote
from ddiff_jax.noise import check_seed
from ddiff_jax.restoration.folders import Listener, find_clean, read_clean_files, read_one
from ddiff_jax.restoration.records import fingerprint

FEWEST = 32  # images in all
FEWEST_HELD_OUT, MOST_HELD_OUT, SHARE_HELD_OUT = 8, 64, 0.05
ORDER, SPLIT = 0, 1  # what random numbers of a seed are for
AHEAD = 2  # batches made before they are asked for

Batch = Shaped[np.ndarray, "B H W C"]


class BadImage(ValueError):
    """An image of a training set cannot be had; the message names its index."""


@runtime_checkable
class Images(Protocol):
    """A set of images of one shape and one type: uint8 for level / 127.5 - 1, or float32 in [-1, 1].

    An array [N, H, W, C] is one.
    """

    def __len__(self) -> int:
        """Count the images."""
        ...

    def __getitem__(self, i: int, /) -> Shaped[np.ndarray, "H W C"]:
        """Give image i, from 0."""
        ...


@dataclasses.dataclass(frozen=True)
class ArrayImages:
    """Images in memory.

    Args:
        array: [N, H, W, C], uint8 or float32.

    Raises:
        ValueError: it is neither, or leaves [-1, 1].
    """

    array: Shaped[np.ndarray, "N H W C"]

    def __post_init__(self):
        array = self.array
        if array.ndim != 4 or array.dtype not in (np.uint8, np.float32):
            raise ValueError(
                f"images must be an array [N, H, W, C] of uint8 levels or of float32 in [-1, 1]; got "
                f"{array.dtype}{list(array.shape)}"
            )
        if array.dtype == np.float32 and array.size and not -1 <= array.min() <= array.max() <= 1:
            raise ValueError(f"images of float32 must be in [-1, 1]; got {array.min():.4g} to {array.max():.4g}")

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: int) -> Shaped[np.ndarray, "H W C"]:
        return self.array[i]

    def fingerprint(self) -> str:
        """Hash the images, so that a run goes on with the same ones only."""
        return hashlib.sha256(np.ascontiguousarray(self.array).data).hexdigest()


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some of the images, such as one part of a `split`."""

    images: Images
    indices: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Shaped[np.ndarray, "H W C"]:
        return self.images[int(self.indices[i])]


@dataclasses.dataclass(frozen=True)
class FolderImages:
    """Images that are read from their files whenever they are asked for, so that they need not fit into memory.

    Args:
        paths: the files, of any size: cut to a centred square and resized, their channels converted.
        shape: (H, W, C).
        dtype: "uint8" rounds to 8 bits, also what has more; "float32" does not.
    """

    paths: Sequence[Path]
    shape: tuple[int, int, int]
    dtype: Literal["uint8", "float32"] = "uint8"

    @staticmethod
    def find(
        inputs: Sequence[str], shape: tuple[int, int, int], listener: Listener, *, recursive: bool = False
    ) -> "FolderImages":
        """Find files, folders and globs: float32 if there are arrays among the files, uint8 if there are none.

        Args:
            inputs: what the command line names.
            shape: (H, W, C).
            listener: is told what else the folders hold.
            recursive: enter the folders inside of folders.

        Raises:
            ValueError: a folder or glob without images.
        """
        paths = find_clean(inputs, listener, recursive=recursive)
        return FolderImages(paths, shape, "float32" if any(map(image_files.is_array, paths)) else "uint8")

    def readable(self, listener: Listener) -> "FolderImages":
        """Read all files once, and leave out those that cannot be read, which are told.

        Raises:
            ValueError: none can be read.
        """
        return dataclasses.replace(
            self, paths=[clean.path for clean in read_clean_files(self.paths, self.shape, listener)]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Shaped[np.ndarray, "{self.shape[0]} {self.shape[1]} {self.shape[2]}"]:
        x = read_one(self.paths[i], self.shape).x
        return image_files.to_uint8(x) if self.dtype == "uint8" else np.clip(x, -1, 1)

    def fingerprint(self) -> str:
        """Hash the names and sizes of the files, so that a run goes on with the same ones only."""
        return fingerprint(self.shape, self.dtype, [(path.name, path.stat().st_size) for path in self.paths])


def read_folder(
    inputs: Sequence[str], shape: tuple[int, int, int], listener: Listener, *, recursive: bool = False
) -> tuple[ArrayImages, int]:
    """Read files, folders and globs into memory: cut to a centred square and resized, their channels converted.

    The images are kept as uint8 where they all come from pictures of 8 bits; such a picture that was resized, or made
    grey, is rounded to 8 bits again. One array, or picture of more bits, makes float32 of all, which takes four times
    as much; what arrays hold up to 0.05 beyond [-1, 1] is cut off.

    Args:
        inputs: what the command line names.
        shape: (H, W, C) of the images; pictures have 1 or 3 channels, arrays any number.
        listener: is told of files that cannot be read, of doubtful ones, and of what else the folders hold;
            `restoration.folders.Lines()` keeps it.
        recursive: enter the folders inside of folders.

    Returns:
        The images in the order of their names, and the number of files that could not be read.

    Raises:
        ValueError: a folder or glob without images, or none can be read.
    """
    paths = find_clean(inputs, listener, recursive=recursive)
    levels = np.empty((len(paths), *shape), np.uint8)  # of which untouched parts take no memory
    fine: dict[int, np.ndarray] = {}
    count = 0
    for clean in read_clean_files(paths, shape, listener):
        if clean.is_coarse:
            levels[count] = image_files.to_uint8(clean.x)
        else:
            fine[count] = np.clip(clean.x, -1, 1)  # resizing arrays may overshoot
        count += 1
    levels = levels[:count]
    if not fine:
        return ArrayImages(levels), len(paths) - count
    floats = np.empty(levels.shape, np.float32)
    for i in range(count):
        floats[i] = fine.pop(i) if i in fine else from_levels(levels[i])
    return ArrayImages(floats), len(paths) - count


def from_levels(levels: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Map 0..255 to [-1, 1] as pictures are read."""
    return levels.astype(np.float32) / np.float32(127.5) - 1


def as_floats(images: Images, indices: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N H W C"]:
    """Copy some of the images as floats in [-1, 1]."""
    rows = [np.asarray(images[int(i)]) for i in indices]
    return np.stack([from_levels(row) if row.dtype == np.uint8 else row for row in rows])


def count_channels(path: Path) -> int:
    """Count the channels of an image file: 1 for a grey picture, 3 for a colour one, those of an array.

    Raises:
        ValueError: it cannot be read, or is no image.
    """
    if not image_files.is_array(path):
        return 1 if pictures.read_levels(path)[0].ndim == 2 else 3
    shape = image_files.load_array(path).shape
    if len(shape) != 3:
        raise ValueError(f"{path} must be an image [H, W, C]; got shape {shape}")
    return shape[2]


def _permutation(count: int, seed: int, *use: int) -> Int[np.ndarray, " {count}"]:
    """Shuffle 0, ..., count - 1 by bits that are the same in every version of NumPy, unlike its permutations."""
    bits = np.random.Philox(np.random.SeedSequence([seed, *use])).random_raw(count)
    return np.argsort(bits, kind="stable")


def split(
    images: Images, held_out: int | None = None, seed: int = 0
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " H"]]:
    """Choose which images are held out from training, to judge it by; a function of their number and the seed alone.

    Args:
        images: at least 32.
        held_out: how many, from 8 to half of them; None takes a twentieth, from 8 to 64.
        seed: from 0 to 2**32 - 1.

    Returns:
        The indices to train on and those held out, each in rising order.

    Raises:
        ValueError: there are too few images, or so many cannot be held out.
    """
    check_seed(seed)
    count = len(images)
    if count < FEWEST:
        raise ValueError(
            f"a training needs at least {FEWEST} images, of which {FEWEST_HELD_OUT} are held out to judge it by; "
            f"got {count}"
        )
    if held_out is None:
        held_out = max(FEWEST_HELD_OUT, min(MOST_HELD_OUT, int(SHARE_HELD_OUT * count)))
    if not FEWEST_HELD_OUT <= held_out <= count // 2:
        raise ValueError(f"of {count} images, {FEWEST_HELD_OUT} to {count // 2} can be held out; got {held_out}")
    order = _permutation(count, seed, SPLIT)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


@functools.lru_cache(maxsize=4)  # a batch spans two epochs, or more if there are few images
def _epoch(count: int, seed: int, epoch: int) -> Int[np.ndarray, " {count}"]:
    order = _permutation(count, seed, ORDER, epoch)
    order.flags.writeable = False
    return order


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> Int[np.ndarray, " {batch_size}"]:
    """Say which images step number `step` takes, of all processes together.

    Args:
        count: images in all; there may be fewer than a batch takes.
        batch_size: images of a step.
        step: from 0.
        seed: from 0 to 2**32 - 1.

    Raises:
        ValueError: a number is out of its range.
    """
    check_seed(seed)
    if count < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"expected images, a batch and a step from 0; got {count}, {batch_size} and {step}")
    epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), count)
    starts = np.flatnonzero(np.diff(epochs, prepend=-1))
    parts = [_epoch(count, seed, int(epochs[i]))[p] for i, p in zip(starts, np.split(places, starts[1:]), strict=True)]
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The batches of one process as a sequence: what both ways of reading ahead take them from."""

    images: Images
    batch_size: int
    seed: int
    start_step: int
    process_index: int
    process_count: int

    def __post_init__(self):
        if self.process_count < 1 or not 0 <= self.process_index < self.process_count:
            raise ValueError(f"there is no process {self.process_index} of {self.process_count}; they count from 0")
        if self.batch_size % self.process_count:
            raise ValueError(
                f"a batch of {self.batch_size} images cannot be shared equally by {self.process_count} processes; "
                f"take a multiple of {self.process_count}"
            )
        batch_indices(len(self.images), self.batch_size, self.start_step, self.seed)  # says what is wrong with these

    def __len__(self) -> int:
        return 2**40  # as good as without an end

    def __getitem__(self, index: int) -> Batch:
        """Make the batch of a step, counted from the first."""
        share = self.batch_size // self.process_count
        mine = slice(self.process_index * share, (self.process_index + 1) * share)
        indices = batch_indices(len(self.images), self.batch_size, self.start_step + index, self.seed)[mine].tolist()
        rows = [self._row(index) for index in indices]
        for which, row in zip(indices, rows, strict=True):
            if row.shape != rows[0].shape or row.dtype != rows[0].dtype:
                raise BadImage(
                    f"image {which} is {row.dtype}{list(row.shape)}, image {indices[0]} is {rows[0].dtype}"
                    f"{list(rows[0].shape)}; all images of a training have one shape and one type"
                )
        return np.stack(rows)

    def _row(self, index: int) -> Shaped[np.ndarray, "..."]:
        try:
            row = np.asarray(self.images[index])
        except Exception as error:
            raise BadImage(f"image {index} cannot be read: {quote(error)}") from error
        if row.ndim != 3 or row.dtype not in (np.uint8, np.float32):
            raise BadImage(
                f"image {index} must be [H, W, C] of uint8 levels or float32 in [-1, 1]; got "
                f"{row.dtype}{list(row.shape)}"
            )
        return row


def batches(
    images: Images,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch, None, None]:
    """Yield the batches of one step after the other, without an end; two are made ahead, on a thread.

    They are in the memory of the host, of the images' own type: uint8 is for the device to convert.

    Args:
        images: the images.
        batch_size: of all processes together, a multiple of their number.
        seed: of the order, from 0 to 2**32 - 1.
        start_step: number of the first step.
        process_index: which process this is, from 0; it gets its own rows of every batch.
        process_count: how many there are.

    Returns:
        A generator; `close` ends its thread.

    Raises:
        ValueError: a number is out of its range. While it runs, `BadImage`: an image cannot be had.
    """
    return _ahead(_Steps(images, batch_size, seed, start_step, process_index, process_count))


def _ahead(steps: _Steps) -> Generator[Batch, None, None]:
    pool = ThreadPoolExecutor(1)
    try:
        waiting = collections.deque(pool.submit(steps.__getitem__, i) for i in range(AHEAD))
        for i in itertools.count(AHEAD):
            batch = waiting.popleft().result()
            waiting.append(pool.submit(steps.__getitem__, i))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def grain_batches(
    images: Images,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    num_workers: int = 0,
) -> Generator[Batch, None, None]:
    """Yield what `batches` yields, read by Grain: for images that are slow to get, such as `FolderImages`.

    Args:
        images: the images; what worker processes read must be picklable.
        batch_size: as in `batches`.
        seed: as in `batches`.
        start_step: as in `batches`.
        process_index: as in `batches`.
        process_count: as in `batches`.
        num_threads: how many batches are made at a time; those of one process decode pictures one after the other.
        num_workers: processes that do this, each with its threads; 0 does it here.

    Returns:
        A generator; `close` ends its threads and processes.

    Raises:
        ImportError: Grain is not installed.
        ValueError: as in `batches`.
    """
    steps = _Steps(images, batch_size, seed, start_step, process_index, process_count)
    if num_threads < 1 or num_workers < 0:
        raise ValueError(f"expected 1 thread or more and 0 workers or more; got {num_threads} and {num_workers}")
    try:
        import grain
        from absl import flags
    except ImportError as error:
        raise ImportError("reading by Grain needs one more package: pip install 'ddiff-jax[grain]'") from error
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(num_threads, AHEAD))
    # One element is one batch: however many workers share the elements, every batch stays what it is.
    dataset = grain.MapDataset.source(steps).to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # workers ask for flags of Grain's, which have been read by no command line
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return _closing(iter(dataset))


def _closing(iterator: Any) -> Generator[Batch, None, None]:
    try:
        yield from iterator
    finally:
        iterator.close()
