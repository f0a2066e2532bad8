"""Where images and measurements are read: every input becomes an item that is ready to be restored."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ddiff_jax import image_files, readers, stencils
from ddiff_jax.likelihood import Gaussian, Likelihood, PoissonGaussian
from ddiff_jax.noise import Stream, image_keys, root_key, stream_key
from ddiff_jax.operators import Operator, measures_picture, observed_entries
from ddiff_jax.operators.named import maker
from ddiff_jax.problem import Problem, simulate
from ddiff_jax.ranges import FAR, check_image, check_noise_level, check_picture_measurement
from ddiff_jax.restoration.jobs import Job
from ddiff_jax.restoration.noise_level import estimate_sigma
from ddiff_jax.restoration.noise_model import levels_of_entries
from ddiff_jax.restoration.parameters import files_of, is_random, operator_parameters
from ddiff_jax.restoration.settings import Settings
from ddiff_jax.restoration.sizes import arguments_to_try, shape_behind, size_of
from ddiff_jax.restoration.spelling import spelled
from ddiff_jax.types import PRNGKey
from ddiff_jax.units import Units

MOST_CUT_OFF = 0.05  # of a noisy picture, before it is mentioned
MOST_SHARED = 4  # shapes of images whose operators are kept


@dataclasses.dataclass(frozen=True)
class Item:
    """One image, ready to be restored.

    Args:
        job: where it comes from and goes to.
        shape: (H, W, C) of the image.
        key: its key.
        operator: its operator; the same for all images of a shape unless it differs between them.
        y: its measurement.
        sigma_y: its noise level; of one per entry the root of their mean square.
        truth: the clean image, unless INPUT was the measurement.
        notes: conversions made while reading.
        sha256: hash of the input file.
        levels: noise level of every entry of y, where they differ.
    """

    job: Job
    shape: tuple[int, int, int]
    key: PRNGKey
    operator: Operator
    y: jax.Array
    sigma_y: float
    truth: Float[np.ndarray, "H W C"] | None
    notes: list[str]
    sha256: str
    levels: np.ndarray | None = None


class Reader:
    """Turns jobs into items."""

    def __init__(self, settings: Settings, truths: Mapping[str, Path] | None = None):
        """Read the masks or kernels that all images share, and find out whether an operator can be built with them.

        Args:
            settings: what decides the results.
            truths: stem to clean image, where the inputs are measurements whose images are known.

        Raises:
            ValueError: they do not fit, or --measured leaves open what a random operator hid.
        """
        self._settings, self._truths = settings, truths or {}
        self._root = root_key(settings.seed)
        self.random = is_random(settings.operator, settings.arguments)
        if settings.measured and self.random:
            flags = " or ".join(_fixing(settings.operator)) or "an operator that takes no key"
            raise ValueError(f"--measured cannot know what {settings.operator} drew at random; give {flags}")
        self.per_image = self.random or any(path.is_dir() for path in settings.files.values())
        self.notes: list[tuple[Path, str]] = []
        shared = {name: path for name, path in settings.files.items() if not path.is_dir()}
        self._arrays: dict[str, np.ndarray] = {}
        for name, path in shared.items():
            self._arrays[name], notes = self._read_file(name, path)
            self.notes += [(path, note) for note in notes]
        self._maker = maker(settings.operator)
        self._checked: set[tuple[int, int, int]] = set()
        self._takes_all = settings.sizes.fit != "refuse" and not settings.resize
        self._shared: dict[tuple[int, int, int], Operator] = {}  # by the images' shape
        if not self.per_image or (self.random and not settings.files):
            self._try()  # wrong arguments are wrong for every image: say so once, now

    @property
    def usual_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the prior's images, which are restored many at a time."""
        return self._settings.card.image_shape

    def _try(self) -> None:
        """Build an operator for images of the prior's size, or of any other if images may have one."""
        first: ValueError | None = None
        for shape in arguments_to_try(self._settings.shape, self._arrays):
            try:
                operator = self._build(shape, {}, *([self._root] if self.random else []))
            except ValueError as error:
                first = first or error
                if not self._takes_all:
                    break
                continue
            if not self.per_image:
                self._shared[shape] = operator
            return
        assert first is not None
        raise first

    def _build(self, shape: tuple[int, int, int], arrays: dict[str, np.ndarray], *key: PRNGKey) -> Operator:
        settings = self._settings
        try:
            operator = self._maker.build(shape, *key, **settings.arguments, **self._arrays, **arrays)
        except ValueError as error:
            files = ", ".join(map(str, settings.files.values()))
            raise ValueError(f"{files}: {error}" if files else str(error)) from error
        if shape not in self._checked:
            self._check(operator, shape)
            self._checked.add(shape)
        return operator

    def _check(self, operator: Operator, shape: tuple[int, int, int]) -> None:
        """Refuse what fits neither the prior nor what is said of measurements, before anything runs."""
        settings = self._settings
        self._maker.check(operator, shape, f"the prior {settings.prior}")
        if settings.estimated and not measures_picture(operator):
            raise ValueError(
                f"--sigma auto needs a measurement that is a picture; {settings.operator} does not say that it makes "
                "one (measures_picture = True): give --sigma a number"
            )
        if settings.units is not None and (settings.measured or settings.units.of_noise):
            why_not = settings.units.why_not(operator, shape)
            if why_not:
                raise ValueError(why_not)

    def read(self, job: Job) -> Item:
        """Read one input and measure it, unless it is the measurement.

        Raises:
            ValueError: it cannot be used; the message names the file.
        """
        settings = self._settings
        if settings.measured:  # which entries must be finite is known further down
            array, notes = image_files.read(
                *(job.path, settings.shape[2], settings.full_scale),
                finite=False,
                integers=settings.units is not None or self._of_camera,
            )
            if self._of_camera and not image_files.is_array(job.path):
                raise ValueError(
                    f"{job.path} is a picture, whose levels mean -1 to 1 here; with --gain, --offset or --read the "
                    "measurement holds a camera's own numbers: give an array (.npy, FITS, TIFF of floats)"
                )
            truth = self._clean(self._truths[job.stem], notes) if job.stem in self._truths else None
        else:
            notes = []
            array = truth = self._clean(job.path, notes)
        key = image_keys(self._root, jnp.asarray([job.image_id], jnp.int32))[0]
        sigma_y, arrays = settings.sigma_y, {}
        for name, folder in settings.files.items():
            if folder.is_dir():
                arrays[name], found = self._read_file(name, _same_stem(folder, job.stem))
                notes += found
        shape = self._shape_behind(array, arrays) if truth is None else truth.shape
        operator = self._operator_for(shape, arrays, key)
        levels = None
        if settings.levels is not None:
            levels, sigma_y = self._read_levels(settings.levels, job, operator, shape)
        if settings.measured:
            array = self._measurement(job.path, operator, array, shape)
            y = Problem(operator, jnp.asarray(array), 0.0).y  # whatever the file shows of hidden entries is gone
            bad = int(np.sum(~np.isfinite(y)))
            if bad:
                raise ValueError(
                    f"{job.path} holds NaN or infinity in {bad} of {y.size} entries; replace them, or hide them "
                    "by a mask"
                )
            seen, values = observed_entries(operator, y.shape), np.asarray(y)
            seen = None if seen is None else np.asarray(seen)
            if settings.estimated:
                sigma_y = estimate_sigma(values, seen)
                notes.append(f"noise level estimated as {sigma_y:.4f}")
            notes += self._doubts(job.path, operator, values if seen is None else values[seen], sigma_y, shape)
            if sigma_y > 0 and not image_files.is_array(job.path):
                notes += _cut_off(values, seen)
        else:
            noise_key = stream_key(key, Stream.MEASUREMENT)
            level = np.float32(sigma_y) if levels is None else levels
            y = _simulate(operator, array, level, noise_key, settings.likelihood)
        sha256 = image_files.source_hash(job.path)
        return Item(job, shape, key, operator, y, sigma_y, truth, notes, sha256, levels)

    def _read_levels(
        self, path: Path, job: Job, operator: Operator, shape: tuple[int, int, int]
    ) -> tuple[np.ndarray, float]:
        """Read the noise level of every entry of a measurement, and a typical one."""
        units = self._settings.units
        if path.is_dir():
            path = _same_stem(path, job.stem)
            levels = image_files.read_array(path)
        else:
            levels = self._shared_levels
        scale = 1.0 if units is None else units.sigma(1.0)
        return levels_of_entries(path, levels, _measured(operator, shape).shape, operator, scale)

    @functools.cached_property
    def _shared_levels(self) -> np.ndarray:
        """Read the noise levels that all images share, when the first one asks."""
        assert self._settings.levels is not None
        return image_files.read_array(self._settings.levels)

    @property
    def _of_camera(self) -> bool:
        return isinstance(self._settings.likelihood, PoissonGaussian)

    def _operator_for(self, shape: tuple[int, int, int], arrays: dict[str, np.ndarray], key: PRNGKey) -> Operator:
        """Build the operator of an image, or take the one that all images of its shape share."""
        if self.per_image:
            return self._build(shape, arrays, *([stream_key(key, Stream.OPERATOR)] if self.random else []))
        if shape not in self._shared:
            while len(self._shared) >= MOST_SHARED:
                del self._shared[next(iter(self._shared))]
            self._shared[shape] = self._build(shape, {})
        return self._shared[shape]

    def _shape_behind(self, y: np.ndarray, arrays: dict[str, np.ndarray]) -> tuple[int, int, int]:
        """Find the shape of the image behind a measurement; that of the prior's where nothing fits."""
        settings, key = self._settings, self._root

        def fits(shape: tuple[int, int, int]) -> bool:
            expected = _measured(self._operator_for(shape, arrays, key), shape)
            return _as_measured(y, expected.shape, expected.dtype).shape == expected.shape

        if not self._takes_all or settings.sizes.image_size is not None:
            return settings.shape
        found = shape_behind(y.shape, settings.shape, settings.arguments, {**self._arrays, **arrays}, fits)
        return found or settings.shape

    def _clean(self, path: Path, notes: list[str]) -> np.ndarray:
        settings = self._settings
        x, found = read_clean(
            *(path, settings.shape, settings.full_scale, settings.units),
            resize=settings.resize,
            any_size=self._takes_all,
        )
        notes += found
        return x

    def _read_file(self, name: str, path: Path) -> tuple[np.ndarray, list[str]]:
        """Read an array of the operator."""
        settings = self._settings
        return stencils.read_argument(name, path, settings.threshold, invert=settings.invert_mask)

    def _doubts(
        self, path: Path, operator: Operator, observed: np.ndarray, sigma_y: float, shape: tuple[int, int, int]
    ) -> list[str]:
        """Doubt a measurement whose numbers do not look like what they are taken for."""
        settings, doubts = self._settings, []
        if image_files.is_array(path) and measures_picture(operator) and settings.units is None and not self._of_camera:
            far = np.max(np.abs(observed), initial=0) > FAR  # or nobody needs to know
            white = float(jnp.max(jnp.abs(_white(operator, shape)))) if far else 1.0
            doubts += check_picture_measurement(observed, sigma_y, white)
        if isinstance(settings.likelihood, Gaussian) and not settings.estimated:
            doubts += check_noise_level(observed, sigma_y)
        return doubts

    def _measurement(self, path: Path, operator: Operator, y: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """Bring what a file holds into the shape and the units of a measurement; which axes are of length 1 is free."""
        units, expected = self._settings.units, _measured(operator, shape)
        y = _as_measured(y, expected.shape, expected.dtype)
        if y.shape != expected.shape or y.dtype != expected.dtype:
            raise ValueError(
                f"{path} is {y.dtype}{list(y.shape)}, but {self._settings.operator} makes measurements of "
                f"{expected.dtype}{list(expected.shape)} from images of {size_of(shape)} pixels; "
                "check --task and its flags, give --image-size if the images have another one, or leave --measured out "
                "if it is a clean image" + _channels_first(y.shape, expected.shape)
            )
        if units is None or not image_files.is_array(path):
            return y
        return units.of_measurement(operator, y, shape)


def read_clean(
    path: Path,
    shape: Sequence[int],
    full_scale: int | None = None,
    units: Units | None = None,
    *,
    resize: bool = False,
    any_size: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """Read a clean image of the prior's size.

    Args:
        path: a picture or an array.
        shape: (H, W, C) that it must have.
        full_scale: as in `image_files.read`.
        units: of an array; None is [-1, 1].
        resize: cut an image of another size to a centred square and resize it.
        any_size: take images of other sizes as they are.

    Returns:
        The image in [-1, 1], and what was done to it.

    Raises:
        ValueError: it cannot be read, is no image of this size, or not in its range.
    """
    height, width, channels = shape
    x, notes = image_files.read(path, channels, full_scale, integers=units is not None)
    if x.ndim < 3 or np.iscomplexobj(x):
        x, more = image_files.as_image(x, channels)
        notes += more
    if x.ndim != 3 or x.shape[2] != channels or x.dtype != np.float32 or not x.size:
        raise ValueError(
            f"{path} must be a real image [{height}, {width}, {channels}]; got {x.dtype}{list(x.shape)}"
            + _channels_first(x.shape, (*x.shape[1:], channels))
        )
    if image_files.is_array(path) and units is not None:
        x = units.of_image(path, x)
    elif image_files.is_array(path):
        notes += check_image(path, x)
    if x.shape == tuple(shape) or (any_size and not resize):
        return x, notes
    if not resize:
        raise ValueError(
            f"{path} is {size_of(x.shape)} pixels, the prior is for {size_of(shape)} pixels; add --resize to cut it to "
            "a centred square and resize it, or --measured if it is the measurement itself"
        )
    if height != width:
        raise ValueError(f"{path} is {size_of(x.shape)} pixels; only for priors of squares images are cut and resized")
    return image_files.crop_and_resize(x, height), [
        *notes,
        f"{size_of(x.shape)} pixels cut to a centred square and resized to {size_of(shape)} pixels",
    ]


def _measured(operator: Operator, shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    """Tell the shape and the type of what an operator measures of an image."""
    return jax.eval_shape(operator.forward, jax.ShapeDtypeStruct(shape, jnp.float32))


def _fixing(operator: str) -> list[str]:
    """Spell the flags that say what a random operator did."""
    given = maker(operator).given
    named = [*(files_of(given) if given else []), *(n for n in ("key",) if n in operator_parameters(operator))]
    return [spelled(name) for name in named]


def _as_measured(y: np.ndarray, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Give an array the axes of a measurement, where it lacks or has more of length 1, or is grey and has none."""
    if len(shape) == 3 and y.shape == shape[:2] and y.dtype == dtype:
        y, _ = image_files.as_image(y, shape[2])
    return y.reshape(shape) if [n for n in y.shape if n != 1] == [n for n in shape if n != 1] else y


def _channels_first(shape: Sequence[int], wanted: Sequence[int]) -> str:
    """Give the cure for arrays as PyTorch has them."""
    is_first = len(shape) == 3 and shape[2] > 3 and (*shape[1:], shape[0]) == tuple(wanted)
    return "; channels come last here: save np.moveaxis(x, 0, -1)" if is_first else ""


def _cut_off(y: np.ndarray, seen: np.ndarray | None) -> list[str]:
    """Tell of a picture whose levels end where its noise would go on: 1 dB is lost at noise 0.2."""
    share = float(np.mean(np.abs(y) >= 1, where=True if seen is None else seen))
    if share < MOST_CUT_OFF:
        return []
    return [
        f"{share:.0%} of what was observed is black or white: a picture cuts its noise off, an array (.npy) does not"
    ]


def _same_stem(folder: Path, stem: str) -> Path:
    where = (folder / stem).parent
    found = sorted(p for p in where.iterdir() if readers.Place(p).stem == Path(stem).name) if where.is_dir() else []
    if len(found) != 1:
        raise ValueError(f"{folder} must hold one file named {stem}.*; it holds {len(found)}")
    return found[0]


@functools.partial(jax.jit, static_argnames="shape")
def _white(operator: Operator, shape: tuple[int, int, int]) -> jax.Array:
    return operator.forward(jnp.ones(shape, jnp.float32))


@jax.jit
def _simulate(operator: Operator, x: Any, sigma_y: Any, key: PRNGKey, likelihood: Likelihood) -> jax.Array:
    return simulate(operator, x, sigma_y, key, likelihood)
