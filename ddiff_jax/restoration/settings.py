"""The settings of a restoration as values: presets, then what is asked for, resolved."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddiff_jax.checkpoint import Card, available_priors, read_card
from ddiff_jax.config import TASK, Task, build_solver, change, find_task, presets, unsaid
from ddiff_jax.likelihood import Gaussian, Likelihood
from ddiff_jax.names import check_keys, check_name
from ddiff_jax.noise import check_seed
from ddiff_jax.operators import measures_picture
from ddiff_jax.operators.named import maker
from ddiff_jax.restoration.noise_model import check_estimable, read_noise, spelled_out
from ddiff_jax.restoration.parameters import REQUIRED, files_of, operator_parameters, takes_files
from ddiff_jax.restoration.saving import KINDS, Kind
from ddiff_jax.restoration.sizes import Sizes, read_sizes
from ddiff_jax.restoration.spelling import spelled
from ddiff_jax.solvers import SOLVERS, Fixed, Solver, ToTheNoise, asks_network
from ddiff_jax.stencils import check_threshold
from ddiff_jax.units import Units

# Which published presets an unnamed prior borrows, by its image size.
DATASET_OF_SIZE = {64: "faces64", 256: "ffhq"}
# The packaged prior of a task, where none is asked for: pictures of faces, or of cross-sections.
USUAL_PRIOR = "faces64"
OF_SECTIONS = ("tomography", "sparse_tomography", "fan_beam_tomography", "sparse_fan_beam_tomography")
PRIOR_OF_TASK: dict[str, str] = {name: "phantoms64" for name in (*OF_SECTIONS, "fourier", "undersampled_fourier")}
WIDEST = 2.0  # from black to white; noise beyond it leaves nothing of a picture
SOURCE = "source_sha256"  # of an operator of one's own, among what decides the results
OF_MASKS = ("threshold", "invert_mask")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the results.

    Args:
        task: name of the preset; that of the operator where it has none.
        dataset: where the preset comes from.
        values: which of its values.
        prior: name of a packaged prior, folder of a converted checkpoint, or hf:OWNER/MODEL.
        card: what is known of it.
        label: class of the images, for a class-conditional prior.
        dtype: computation type of the network.
        operator: name in `OPERATORS`, or MODULE:NAME.
        arguments: numbers for its factory.
        files: files or folders for its factory's arrays.
        threshold: share of white from which on a pixel of a mask is observed; None takes masks of black and white only.
        invert_mask: whether white marks the holes of masks.
        sigma_y: noise standard deviation in units of the measurement.
        estimated: whether every measurement's own estimate takes the place of sigma_y.
        levels: file, or folder with one per image, of a standard deviation per entry, which takes its place.
        likelihood: the noise model.
        method: name in `SOLVERS`.
        solver: the method with its hyper-parameters.
        seed: root of all random numbers; an image's share depends on its name and not on other images.
        restarts: runs per image from other noise, of which one is kept.
        samples: answers per image from other noise, which are summed up; 1 is one answer and no sum.
        keep_samples: whether all of them are written.
        measured: whether the files are measurements, not clean images.
        resize: whether clean images are cut to a centred square and resized to the prior's size.
        full_scale: number that is white in files of 16 bits and in arrays of integers.
        notes: what was assumed, for the user.
        units: those of arrays, where they are not -1 to 1; sigma_y is in ours.
        save: as which kinds of files the restored images are written.
        sizes: what is done with images of other sizes than the prior's.
    """

    task: str
    dataset: str
    values: str
    prior: str
    card: Card
    label: int | None
    dtype: str
    operator: str
    arguments: dict[str, Any]
    files: dict[str, Path]
    threshold: float | None
    invert_mask: bool
    sigma_y: float
    estimated: bool
    levels: Path | None
    likelihood: Likelihood
    method: str
    solver: Solver
    seed: int
    restarts: int
    samples: int
    keep_samples: bool
    measured: bool
    resize: bool
    full_scale: int | None
    notes: tuple[str, ...]
    sizes: Sizes
    units: Units | None = None
    save: tuple[Kind, ...] = ("png",)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images, unless they say otherwise: that of the prior's, or what was asked for."""
        height, width, channels = self.card.image_shape
        return (*(self.sizes.image_size or (height, width)), channels)

    def as_dict(self) -> dict[str, Any]:
        """Spell out what decides the results, in plain types."""
        files = {name: str(path) for name, path in self.files.items()}
        mask = {"threshold": self.threshold, "invert_mask": self.invert_mask or None}
        mask = {name: value for name, value in mask.items() if value is not None}
        source = maker(self.operator).sha256
        more = {} if self.units is None else {"data_range": [self.units.low, self.units.high]}
        more |= {} if self.save == ("png",) else {"save": list(self.save)}
        more |= {} if self.samples == 1 else {"samples": self.samples, "keep_samples": self.keep_samples}
        return {
            "task": self.task,
            "preset": self.dataset,
            "values": self.values,
            "operator": {
                "name": self.operator,
                **self.arguments,
                **files,
                **mask,
                **({SOURCE: source} if source else {}),
            },
            "sigma_y": "auto" if self.estimated else self.sigma_y if self.levels is None else str(self.levels),
            "noise": spelled_out(self.likelihood),
            "solver": {"name": self.method, **_fields(self.solver)},
            **{name: getattr(self, name) for name in ("prior", "label", "dtype", "seed", "restarts")},
            **{name: getattr(self, name) for name in ("measured", "resize", "full_scale")},
            **self.sizes.as_dict(),
            **more,
        }


def _fields(obj: Any) -> dict[str, Any]:
    """Spell out a dataclass; a float32 becomes the float that prints with the same few digits."""

    def plain(value: Any) -> Any:
        if isinstance(value, Fixed | ToTheNoise):
            return {"name": "fixed" if isinstance(value, Fixed) else "to_the_noise", **_fields(value)}
        return float(str(value)) if isinstance(value, np.floating) else value

    return {field.name: plain(getattr(obj, field.name)) for field in dataclasses.fields(obj)}


def resolve(
    *,
    task: str | None = None,
    operator_name: str | None = None,
    solver: str = "ddiff",
    prior: str | None = None,
    preset: str | None = None,
    values: str = "default",
    steps: int | None = None,
    sigma: float | Literal["auto"] | Path | None = None,
    photons: float | None = None,
    gain: float | None = None,
    offset: float | None = None,
    read: float | None = None,
    operator: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    label: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    restarts: int = 1,
    samples: int = 1,
    keep_samples: bool = False,
    measured: bool = False,
    resize: bool = False,
    full_scale: int | None = None,
    data_range: tuple[float, float] | None = None,
    save: Sequence[Kind] = ("png",),
    fit: str = "windows",
    overlap: int | None = None,
    shift_windows: bool = True,
    image_size: str | None = None,
) -> Settings:
    """Decide every value of a restoration: what is asked for replaces what the preset says.

    Args:
        task: name of the preset; None is "super_resolution", or with an operator what `find_task` says.
        operator_name: in `OPERATORS`, or MODULE:NAME for your own (see `ddiff_jax.operators.named.maker`), instead of
            the task's operator.
        solver: name in `SOLVERS`.
        prior: name of a packaged prior, folder of a converted checkpoint, or hf:OWNER/MODEL; None is that of the
            preset, or the usual one of the task.
        preset: data set whose presets are used; None takes that of the prior.
        values: "default" or "published", a key of `ddiff_jax.config.VALUES`.
        steps: number of steps; None is the preset's.
        sigma: noise standard deviation in units of the measurement; "auto" estimates it from every measurement; the
            path of an array is one per entry, of a folder one array per image; None is the preset's.
        photons: count at white, for Poisson noise instead of Gaussian.
        gain: units of the measurement per photon; with this, offset or read it holds a camera's own numbers, see
            `PoissonGaussian`.
        offset: what the camera reads of no light.
        read: standard deviation of its read noise.
        operator: arguments of the operator, arrays as the path of a file or folder; for masks `threshold` and
            `invert_mask` too.
        changes: hyper-parameters of the solver that replace the preset's.
        label: class of the images, for a class-conditional prior.
        dtype: computation type of the network, "float32" or "bfloat16".
        seed: root of all random numbers, 0 to 2**32 - 1.
        restarts: runs per image, of which the one of least misfit is kept.
        samples: answers per image, which are summed up in maps.
        keep_samples: write all of them.
        measured: the files are measurements.
        resize: cut clean images to a square and resize them to the prior's size.
        full_scale: number that is white in files of 16 bits and in arrays of integers.
        data_range: the two numbers of arrays that are black and white (see `Units`), where they are not -1 and 1; sigma
            is in their units then.
        save: "png", "npy", "tiff", one or several.
        fit: what is done with images of other sizes than the prior's, see `Sizes`.
        overlap: of windows in pixels; None is a quarter of their side.
        shift_windows: move windows at every step.
        image_size: width x height of the images where the input does not tell it, such as "512x384".

    Raises:
        UnknownName: there is no such task, solver, preset or argument; the nearest is in the message.
        ValueError: values that are out of range or do not go together.
        FileNotFoundError: there are no such weights.
    """
    prior, card, dataset, notes = choose_prior(prior, preset, task or operator_name or TASK)
    found = find_task(dataset, task, operator_name)
    check_name("solver", solver, SOLVERS)
    check_label(label, card.architecture.get("num_classes"))
    check_seed(seed, "--seed")
    if restarts < 1:
        raise ValueError(f"--restarts must be at least 1; got {restarts}")
    check_samples(samples, keep_samples, restarts, solver)
    if full_scale is not None and full_scale < 1:
        raise ValueError(f"--full-scale must be at least 1; got {full_scale}")

    name, arguments, files, mask = _operator(found, dict(operator or {}))
    changes = dict(changes or {})
    if steps is not None:
        if "num_steps" in changes:
            raise ValueError(f"{solver} is given {changes['num_steps']} steps and {steps} steps; say it once")
        changes["num_steps"] = steps
    said = change(found.hyper_parameters(solver, values), changes)
    missing = unsaid(solver, said)
    if missing:
        raise ValueError(
            f"solver {solver} has no preset for {dataset}/{task or found.operator} and no default for "
            f"{', '.join(missing)}; give {' '.join(map(spelled, missing))}"
        )
    units = None if data_range is None else Units(float(data_range[0]), float(data_range[1]))
    for kind in save:
        check_name("kind of file to save", kind, KINDS)
    if operator_name is not None and not _has_preset(found, dataset):
        notes += _without_preset(found, task, dataset, sigma, photons, measured)
    if units is not None:
        notes += tuple(units.note())
        if measured and (photons is not None or found.photons is not None):
            raise ValueError("counts of photons have no other units: leave --data-range out, or --photons")
        if isinstance(sigma, float | int | Path):
            sigma = sigma if isinstance(sigma, Path) else units.sigma(sigma)
            units = dataclasses.replace(units, of_noise=True)
    sigma_y, likelihood = read_noise(found, sigma, photons, {"gain": gain, "offset": offset, "read": read})
    if values == "published" and solver in found.default.keys() - found.published.keys():
        notes = (*notes, f"nothing is published for {solver} on {task or found.operator}; its default values are used")
    if sigma == "auto":
        check_estimable(measured, maker(name).made, likelihood)
    elif isinstance(likelihood, Gaussian) and sigma_y > WIDEST and measures_picture(maker(name).made):
        raise ValueError(
            f"--sigma {sigma_y:g} is larger than the range of pictures here, -1 to 1: it is in units of the "
            f"measurement; of levels 0 to 255 give --sigma {sigma_y / 127.5:.3g}"
        )
    return Settings(
        task=_called(task, operator_name),
        dataset=dataset,
        values=values,
        prior=prior,
        card=card,
        label=label,
        dtype=dtype,
        operator=name,
        arguments=arguments,
        files=files,
        threshold=mask.get("threshold"),
        invert_mask=mask.get("invert_mask", False),
        sigma_y=sigma_y,
        estimated=sigma == "auto",
        levels=sigma if isinstance(sigma, Path) else None,
        likelihood=likelihood,
        method=solver,
        solver=build_solver(solver, said),
        seed=seed,
        restarts=restarts,
        samples=samples,
        keep_samples=keep_samples,
        measured=measured,
        resize=resize,
        full_scale=full_scale,
        notes=notes,
        units=units,
        save=tuple(dict.fromkeys(save)),
        sizes=_of_operator(read_sizes(fit, overlap, shift_windows, image_size, card), name),
    )


def _of_operator(sizes: Sizes, operator: str) -> Sizes:
    """Take the size of images from an operator that is made for one, where nothing else is asked for."""
    made_for = maker(operator).image_shape
    if made_for is None or len(made_for) != 3 or sizes.image_size is not None or sizes.fit == "refuse":
        return sizes
    return dataclasses.replace(sizes, image_size=made_for[:2])


def _called(task: str | None, operator: str | None) -> str:
    """Name what is done: by the preset, or by the operator."""
    return task or (TASK if operator is None else maker(operator).name)


def _has_preset(task: Task, dataset: str) -> bool:
    return task.operator in presets()[dataset]


def _without_preset(
    found: Task, task: str | None, dataset: str, sigma: Any, photons: float | None, measured: bool
) -> tuple[str, ...]:
    """Say what serves where an operator has no preset; nobody else knows the noise of its measurements."""
    if measured and sigma is None and photons is None:
        raise ValueError(
            f"nothing is known of the noise of {found.operator}: give --sigma, its standard deviation in units of the "
            "measurement"
        )
    level = f", and noise {found.sigma_y:g} in units of images in [-1, 1]" if (sigma, photons) == (None, None) else ""
    whose = f"those of {task}" if task else f"those that all tasks of {dataset} share"
    return (f"{found.operator} has no preset: the values of the solvers are {whose}{level}",)


def _operator(task: Task, given: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Path], dict[str, Any]]:
    """Choose the operator, the task's own or the one that a given file calls for, and sort out its arguments."""
    other = maker(task.operator).given
    known = {**(operator_parameters(other) if other else {}), **operator_parameters(task.operator)}
    mask_words = OF_MASKS if "mask" in known else ()
    check_keys(f"the operator of {task.operator}", given, [*known, *mask_words])
    given = {name: value for name, value in given.items() if value is not None}
    mask = {name: given.pop(name) for name in mask_words if name in given}
    said = {**task.arguments, **given}
    name = other if other is not None and said.keys() & set(files_of(other)) else task.operator
    wanted = operator_parameters(name)
    missing = [spelled(n) for n, (_, default) in wanted.items() if default is REQUIRED and said.get(n) is None]
    if missing:
        raise ValueError(f"the operator {name} needs {' and '.join(missing)}")
    held = set(files_of(name))
    files, arguments = {}, {}
    for argument, (_, default) in wanted.items():
        value = said.get(argument, None if default is REQUIRED else default)
        if value is None:
            continue
        if argument in held or isinstance(value, Path) or (isinstance(value, str) and takes_files(wanted[argument][0])):
            files[argument] = Path(value)
        else:
            arguments[argument] = tuple(value) if isinstance(value, list) else value
    check_threshold(mask.get("threshold"))
    if "mask" not in files and (mask.get("threshold") is not None or mask.get("invert_mask")):
        raise ValueError("--threshold and --invert-mask say how to read a mask: give --mask, or leave them out")
    return name, arguments, files, mask


def check_samples(samples: int, keep: bool, restarts: int, solver: str) -> None:
    """Refuse numbers of samples that mean nothing.

    Args:
        samples: answers per image.
        keep: whether all are to be written.
        restarts: runs of which one is kept.
        solver: name in `SOLVERS`.

    Raises:
        ValueError: they do not.
    """
    if samples < 1:
        raise ValueError(f"--samples must be at least 1; got {samples}")
    if samples > 1 and restarts > 1:
        raise ValueError(
            f"--samples {samples} sums up all runs of an image, --restarts {restarts} keeps one of them: give one of "
            "the two"
        )
    if keep and samples == 1:
        raise ValueError("--keep-samples writes what --samples makes: give --samples a number above 1")
    if samples > 1 and not asks_network(SOLVERS[solver]):
        raise ValueError(f"{solver} draws nothing, and all its samples are the same: leave --samples out")


def check_label(label: int | None, num_classes: int | None) -> None:
    """Refuse a class for a prior without classes, and the other way round.

    Raises:
        ValueError: they do not fit.
    """
    if num_classes is None and label is not None:
        raise ValueError("this prior has no classes; leave --label out")
    if num_classes is not None and (label is None or not 0 <= label < num_classes):
        raise ValueError(f"this prior is class-conditional: give --label from 0 to {num_classes - 1}; got {label}")


def choose_prior(prior: str | None, preset: str | None, task: str) -> tuple[str, Card, str, tuple[str, ...]]:
    """Choose the prior, if none is asked for that of the presets or of the task or operator, and then the presets.

    Returns:
        The prior's name, its card, the data set of the presets, and what was assumed.
    """
    if prior is None:
        usual = USUAL_PRIOR if preset else PRIOR_OF_TASK.get(task, USUAL_PRIOR)
        prior = preset if preset in available_priors() else usual
    card = read_card(prior)
    return prior, card, *choose_dataset(preset, prior, card.image_shape[0], task)


def choose_dataset(asked: str | None, prior: str, size: int, task: str) -> tuple[str, tuple[str, ...]]:
    """Choose the presets, as asked, by the prior's name, or by the nearest image size; and say what was assumed."""
    if asked:
        return asked, ()
    if task in presets().get(prior, ()) and prior in available_priors():
        return prior, ()
    nearest_size = min(DATASET_OF_SIZE, key=lambda known: abs(math.log(known / size)))
    dataset = DATASET_OF_SIZE[nearest_size]
    if size != nearest_size:
        same = f"{nearest_size}x{nearest_size}"
        return dataset, (
            f"the {dataset} preset is used though the prior is {size}x{size}: its lengths in pixels (boxes, kernels) "
            f"are those of {same} images; flags change them, --preset chooses another",
        )
    return dataset, (f"the {dataset} preset is used because the prior is {size}x{size}; --preset chooses another",)
