"""How good a prior is that is being trained: denoising errors, samples, and restorations of images held out."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image as Pillow

from ddiff_jax import image_files
from ddiff_jax._solve import solve
from ddiff_jax.denoising import MOST_REFERENCES, Baselines, Errors, LinearFilter, measure_baselines, measure_denoising
from ddiff_jax.drawing import Levels, picture, sheet, tile
from ddiff_jax.files import Unusable, opened, quote, read_text
from ddiff_jax.levels import Schedule
from ddiff_jax.metrics import measure
from ddiff_jax.noise import check_seed
from ddiff_jax.priors import Prior
from ddiff_jax.restoration.machine import choose_batch_size, image_mesh
from ddiff_jax.restoration.records import finite
from ddiff_jax.sampling import batches, draw
from ddiff_jax.solvers.ddiff import DDiff
from ddiff_jax.solvers.sampling import Sampler
from ddiff_jax.training.trials import METRIC, Images, Trial, make_trials, rows, title

MARGIN = 0.02  # share of the better error without a network by which a network that has learned as much may miss it
MOST_NUMBERS = 1 << 28  # of the linear filter's examples taken together: 1 GiB
SIDE, LARGE_SIDE = 128, 256  # pixels of a restoration in a picture

COUNTS = {"samples": "drawn", "diverged": "diverged"}  # field to name in the file

FILE, SAMPLES, RESTORATIONS = "judgement.json", "samples.png", "restorations.png"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a network is worth at one moment of its training.

    Args:
        errors: denoising errors of images held out, at levels from the noisiest to the least noisy; those of a network
            that is not finite are NaN.
        psnr: task to the PSNR of every restored image, in dB (protocol "standard"); NaN where it diverged.
        num_samples: how many were drawn.
        num_diverged: how many of them hold NaN or infinity.
        samples: all of them as one picture, in the same places with the same noise at every moment.
        restorations: truth, measurement and restoration of every task and image as one picture.
        step: of the training; None where nobody said.
        images_seen: by then.
    """

    errors: Errors
    psnr: Mapping[str, Float[np.ndarray, " R"]]
    num_samples: int
    num_diverged: int
    samples: UInt8[np.ndarray, "H W 3"] | None
    restorations: UInt8[np.ndarray, "h w 3"] | None
    step: int | None = None
    images_seen: int | None = None

    @property
    def loses(self) -> Bool[np.ndarray, " K"]:
        """Whether a linear filter or the mean image beats the network by more than 2%, for every level."""
        return self.errors.loses(MARGIN)

    @property
    def lost(self) -> Float[np.ndarray, " L"]:
        """The noise-to-signal ratios of the levels at which it does."""
        return self.errors.ratio[self.loses]

    @property
    def mean_psnr(self) -> dict[str, float]:
        """Task to the mean over its images; NaN if one of them diverged."""
        return {task: float(np.mean(values)) for task, values in self.psnr.items()}

    def warning(self) -> str | None:
        """Say in one sentence what is wrong with the network; None if nothing is."""
        count = len(self.errors.ratio)
        broken = self.errors.ratio[~np.isfinite(self.errors.network)]
        if len(broken):
            return (
                f"the network gives NaN or infinity at {len(broken)} of {count} noise levels: the training has "
                "diverged, so go back to an earlier checkpoint and take a lower learning rate"
            )
        diverged = {"samples": (self.num_diverged, self.num_samples)}
        for task, values in self.psnr.items():
            diverged[f"restorations ({task.replace('_', ' ')})"] = int(np.sum(~np.isfinite(values))), len(values)
        told = [f"{bad} of {all_} {what}" for what, (bad, all_) in diverged.items() if bad]
        if told:
            return f"{' and '.join(told)} diverged to NaN or infinity: do not use this network as it is"
        if not len(self.lost):
            return None
        return (
            f"at {len(self.lost)} of {count} noise levels (sigma/signal {self._where_lost()}) a linear filter or the "
            "mean image denoises better than the network, which misleads every solver there until it has been trained "
            "longer"
        )

    def _where_lost(self) -> str:
        """Name the lost levels from the least noise to the most, neighbours together."""
        loses, ratio = self.loses[::-1], self.errors.ratio[::-1]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], loses, [False]]).astype(int)))
        spans = [(ratio[first], ratio[end - 1]) for first, end in edges.reshape(-1, 2)]
        return ", ".join(f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}" for low, high in spans)

    def numbers(self) -> dict[str, float | int]:
        """Sum it up: the mean PSNR of every task, how many levels are lost, and how many samples diverged."""
        psnr = {f"psnr_{task}": value for task, value in self.mean_psnr.items()}
        return {**psnr, "levels_lost": len(self.lost), "samples_diverged": self.num_diverged}

    def table(self) -> str:
        """Tabulate the denoising errors in Markdown; those where the network loses are bold."""
        lines = ["| sigma / signal | network | linear filter | mean image |", "|---|---|---|---|"]
        errors = self.errors
        for ratio, network, linear, mean, loses in zip(
            errors.ratio[::-1],
            errors.network[::-1],
            errors.linear[::-1],
            errors.mean[::-1],
            self.loses[::-1],
            strict=True,
        ):
            mark = "**" if loses else ""
            lines.append(f"| {ratio:.3g} | {mark}{network:.4g}{mark} | {linear:.4g} | {mean:.4g} |")
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Write judgement.json, samples.png and restorations.png; the first is there only if all are.

        Raises:
            OSError: they cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).unlink(missing_ok=True)  # of another run, whose pictures are replaced now
        for name, levels in {SAMPLES: self.samples, RESTORATIONS: self.restorations}.items():
            if levels is not None:
                image_files.save_png(folder / name, Pillow.fromarray(levels))
        image_files.write_text(folder / FILE, json.dumps(finite(self.as_dict()), indent=1) + "\n")

    def as_dict(self) -> dict[str, Any]:
        """Spell out everything but the pictures in plain types."""
        return {
            "step": self.step,
            "images_seen": self.images_seen,
            "warning": self.warning(),
            "denoising": {name: values.tolist() for name, values in vars(self.errors).items()},
            "lost": self.lost.tolist(),
            "psnr": {
                task: {"mean": self.mean_psnr[task], "images": values.tolist()} for task, values in self.psnr.items()
            },
            "samples": {"drawn": self.num_samples, "diverged": self.num_diverged},
        }

    @staticmethod
    def load(folder: Path, *, pictures: bool = True) -> "Judgement":
        """Read what `save` wrote; the step is that of the folder's name where the judgement does not know it.

        Args:
            folder: the folder.
            pictures: read the pictures as well; without them the fields are None.

        Raises:
            Unusable: something is missing or damaged.
        """
        path = folder / FILE
        try:
            found = json.loads(read_text(path))
            columns = {name: _numbers(values) for name, values in found["denoising"].items()}
            psnr = {task: _numbers(values["images"]) for task, values in found["psnr"].items()}
            counts = {f"num_{name}": int(found["samples"][key]) for name, key in COUNTS.items()}
            step, seen = (None if found[name] is None else int(found[name]) for name in ("step", "images_seen"))
            errors = Errors(**columns)
        except Unusable:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Unusable(f"{path} is no judgement of a training: {quote(error)}") from error
        if step is None and folder.name.isdecimal():
            step = int(folder.name)
        shown = [_read_levels(folder / name) if pictures else None for name in (SAMPLES, RESTORATIONS)]
        return Judgement(errors, psnr, **counts, samples=shown[0], restorations=shown[1], step=step, images_seen=seen)


def _numbers(values: list[float | int | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _read_levels(path: Path) -> Levels:
    with opened(path) as file:
        try:
            with Pillow.open(file, formats=["PNG"]) as shown:
                return np.asarray(shown.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
            raise Unusable(f"{path} is no picture: {quote(error)}") from error


def num_references(shape: tuple[int, ...]) -> int:
    """Tell how many images of a shape count at most for the linear filter."""
    return min(MOST_REFERENCES, max(4, MOST_NUMBERS // math.prod(shape)))


class Judge:
    """Judges a network in training by what is independent of it: always the same images, levels, noise and masks.

    What it finds depends on the prior and on the seed alone, and the programs that it needs are compiled in its first
    judgement: weights are all that changes afterwards.

    Args:
        held_out: images that the network is not trained on, range [-1, 1]; at every level all of them are denoised.
        reference: images that it is trained on, for the linear filter and the mean image: at least 4, better some
            hundreds; the first 4000 count, fewer where they are so large that a copy would take more than 1 GiB.
        seed: root of all random numbers.
        num_levels: noise levels, spread over the prior's schedule as solvers walk it; all where it has fewer.
        num_samples: samples; number i is that of `ddiff sample` with this seed and as many steps.
        sample_steps: network evaluations of a sample (DDIM).
        num_restored: the first of the images held out are restored; all where there are fewer.
        restore_steps: network evaluations of a restoration (DDiff).

    Raises:
        ValueError: images of other shapes or values, too few of them, or numbers below 1.
    """

    def __init__(
        self,
        held_out: Images,
        reference: Float[np.ndarray, "M H W C"],
        *,
        seed: int = 0,
        num_levels: int = 15,
        num_samples: int = 16,
        sample_steps: int = 50,
        num_restored: int = 4,
        restore_steps: int = 50,
    ):
        counts = {"num_levels": num_levels, "num_samples": num_samples, "sample_steps": sample_steps}
        for name, count in {**counts, "num_restored": num_restored, "restore_steps": restore_steps}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1; got {count}")
        check_seed(seed)
        _check_images(held_out, reference)
        self._images = np.asarray(held_out, np.float32)
        self.filter = LinearFilter.fit(reference[: num_references(held_out.shape[1:])])
        """The linear filter that the prior is compared with."""
        self._baselines: dict[Schedule, Baselines] = {}
        self._seed, self._num_levels, self._num_samples = seed, num_levels, num_samples
        self._sample_steps, self._restore_steps = sample_steps, restore_steps
        self._trials = make_trials(self._images[:num_restored], seed)

    def __call__(self, prior: Prior, *, step: int | None = None, images_seen: int | None = None) -> Judgement:
        """Judge a prior.

        Args:
            prior: for images of this shape.
            step: of the training, to be kept with what is found.
            images_seen: by then, likewise.

        Raises:
            ValueError: the prior is for images of another shape.
            OutOfMemory: there is too little memory for the samples that are drawn together.
        """
        shape = self._images.shape[1:]
        if tuple(prior.image_shape) != shape:
            raise ValueError(
                f"the images held out are {shape}, the prior is for {tuple(prior.image_shape)}: give both one"
            )
        errors = self._denoise(prior)
        samples = self._sample(prior)
        psnr, blocks = {}, {}
        for trial in self._trials:
            x, psnr[trial.task] = self._restore(prior, trial)
            blocks[title(trial.task, psnr[trial.task])] = rows(trial, x, psnr[trial.task])
        return Judgement(
            errors,
            psnr,
            num_samples=len(samples),
            num_diverged=int(np.sum(~np.isfinite(samples).all(axis=(1, 2, 3)))),
            samples=picture(tile(list(samples))),
            restorations=np.asarray(sheet(blocks, SIDE if max(shape[:2]) <= SIDE else LARGE_SIDE)),
            step=step,
            images_seen=images_seen,
        )

    def _denoise(self, prior: Prior) -> Errors:
        schedule = prior.schedule
        told: Any = {"num_levels": min(self._num_levels, schedule.num_levels), "seed": self._seed}
        if schedule not in self._baselines:
            self._baselines[schedule] = measure_baselines(schedule, self._images, self.filter, **told)
        errors = measure_denoising(prior, self._images, self._baselines[schedule], **told)
        return dataclasses.replace(errors, network=np.where(np.isfinite(errors.network), errors.network, np.nan))

    def _sample(self, prior: Prior) -> Images:
        sampler = Sampler(eta=0.0, num_steps=min(self._sample_steps, prior.schedule.num_levels))
        size = choose_batch_size(None, self._num_samples, prior.image_shape)
        drawn = [draw(sampler, prior, self._seed, numbers).x for numbers in batches(self._num_samples, size)]
        return np.concatenate(drawn)[: self._num_samples]

    def _restore(self, prior: Prior, trial: Trial) -> tuple[Images, Float[np.ndarray, " N"]]:
        solver = DDiff(num_steps=min(self._restore_steps, prior.schedule.num_levels))
        solution = solve(solver, prior, trial.problem, trial.keys, mesh=image_mesh(len(trial.truth)))
        x = np.asarray(jax.device_get(solution.x))
        return x, np.asarray(measure(trial.problem, x, trial.truth)[METRIC.name], np.float64)


def _check_images(held_out: np.ndarray, reference: np.ndarray) -> None:
    if not len(held_out) or held_out.shape[1:] != reference.shape[1:]:
        raise ValueError(
            "images held out and reference images must be of one shape [H, W, C], and at least one must be held out; "
            f"got {held_out.shape} and {reference.shape}"
        )
    for what, images in {"held out": held_out, "for reference": reference}.items():
        if not np.isfinite(images).all():
            raise ValueError(f"the images {what} hold NaN or infinity; leave out those that do")
