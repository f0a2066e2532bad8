"""`ddiff train`: from a folder of images to a prior."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from ddiff_jax.checkpoint import load_weights, without_linear
from ddiff_jax.cli.console import Bar, Console
from ddiff_jax.cli.environment import use_compilation_cache
from ddiff_jax.cli.flags import parse
from ddiff_jax.cli.signals import asked_to_stop
from ddiff_jax.denoising import LinearFilter
from ddiff_jax.files import Caution
from ddiff_jax.names import check_name
from ddiff_jax.priors import LinearDenoiser
from ddiff_jax.restoration.folders import Lines, find_clean
from ddiff_jax.restoration.jobs import prepare
from ddiff_jax.restoration.records import finite
from ddiff_jax.restoration.share import join_cluster
from ddiff_jax.restoration.sizes import size_of
from ddiff_jax.safe_text import one_line
from ddiff_jax.training.data import (
    FolderImages,
    Subset,
    as_floats,
    batches,
    count_channels,
    grain_batches,
    read_folder,
    split,
)
from ddiff_jax.training.judgement import Judge, num_references
from ddiff_jax.training.recipe import PRESETS, Recipe
from ddiff_jax.training.run import Rhythm, Training
from ddiff_jax.training.state import AXIS

DESCRIPTION = """Train a prior on your own images: pictures of any size are cut to their centred square and resized,
arrays (.npy) keep their channels. The result is a folder that --prior takes, with a card that says what it is.

The same command goes on where a run was stopped or killed, with the same numbers. A finished run is made longer by more
--steps: it goes on from where its learning rate began to fall. training/report.html in the output folder shows how far
it has come: how well it denoises at every noise level beside a linear filter, samples, and two restorations.

examples:
  ddiff phantoms ct --size 32 --count 2000                then, for two CPU cores:
  ddiff train ct --output myprior
  ddiff train faces/ --preset faces64 --output portraits
  ddiff restore scan.png --prior myprior --resize

presets:
"""

NOTHING = "not stated; those of the images it was trained on apply"


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train, on what.

    Args:
        images: Training images: files, folders or globs.
        output: Folder for the prior; the run's own files lie in `training` inside.
        preset: Network and values to begin with, see above.
        steps: Updates of the weights in all.
        decay_steps: Updates at the end over which the learning rate falls to zero.
        batch_size: Images per update.
        learning_rate: After the warm-up.
        size: Side of the images in pixels, instead of the preset's.
        channels: Of the images; by default 1 if the first image is grey, its own number for an array, else 3.
        prediction: What the network predicts.
        start: Prior whose weights to begin with, of the same architecture.
        linear_rank: Principal directions of the images in the linear denoiser that the network's output is added to; by
            default the preset's, or as many as the images have, or those of the prior to begin with. 0 is none.
        average: Relative width of the average of the weights over training that becomes the prior.
        flip: Mirror images left to right at random.
        dtype: Computation type of the network; by default float32 on CPUs and bfloat16 on others.
        seed: Root of all random numbers.
        recursive: Enter folders inside folders.
        held_out: Images that are kept for judging; by default a twentieth, 8 to 64.
        loader: Where images wait: in memory, or on disk, read by Grain as they are needed.
        log_every: Updates between two lines of the log.
        judge_every: Updates between two judgements; by default a twentieth of the steps.
        save_seconds: Seconds between two saved states of the run.
        block: Images computed together on one device; the others of a batch follow. By default what is quickest on
            CPUs, and all on others.
        licence: Terms for whoever uses the prior, for its card.
        stored: Type of the prior's numbers on disk; int16 takes half the space.
        tensorboard: Write files for TensorBoard as well.
        distributed: Train with all processes of a job; jax.distributed finds them.
        cache: Keep compiled programs in the user's cache folder for the next run.
        quiet: Print errors and warnings only.
        json: Print the last judgement to standard output.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    output: Path = Path("prior")
    preset: str = "tiny32"
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    decay_steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    learning_rate: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    channels: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    prediction: Literal["v", "eps", "edm", "x0", "flow"] = "v"
    start: Annotated[str | None, tyro.conf.arg(metavar="PRIOR")] = None
    linear_rank: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    average: float = 0.10
    flip: bool = True
    dtype: Annotated[Literal["float32", "bfloat16"] | None, tyro.conf.arg(metavar="{float32,bfloat16}")] = None
    seed: int = 0
    recursive: tyro.conf.FlagCreatePairsOff[bool] = False
    held_out: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    loader: Literal["memory", "grain"] = "memory"
    log_every: int = 50
    judge_every: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    save_seconds: float = 300.0
    block: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    licence: str = NOTHING
    stored: Literal["float32", "int16"] = "float32"
    tensorboard: tyro.conf.FlagCreatePairsOff[bool] = False
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False
    cache: bool = True
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    json: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    presets = "\n".join(f"  {name:<9} {preset.about}" for name, preset in PRESETS.items())
    options = parse(Options, argv, prog="ddiff train", description=DESCRIPTION + presets)
    if not options.images:
        raise ValueError("give training images: files, folders or globs")
    check_name("preset", options.preset, PRESETS)
    if options.cache:
        use_compilation_cache()
    if options.distributed:
        join_cluster()
    prepare(options.output)
    return _Command(options).run()


class _Command:
    """One call of the command: what it was told, and who hears about it."""

    def __init__(self, options: Options):
        self.options = options
        self.leads = jax.process_index() == 0
        self.console = Console(quiet=options.quiet or not self.leads)

    def run(self) -> int:
        """Read, train, and say how it ended."""
        options, say = self.options, self.console.say
        recipe = self._recipe()
        images, failed = self._images(recipe)
        seen, unseen = split(images, options.held_out, options.seed)
        size, channels = size_of(recipe.image_shape), recipe.image_shape[2]
        held = f"{size} pixels, {channels} channel{'s' * (channels > 1)}"
        say(f"{len(seen)} images to train on and {len(unseen)} to judge by, {held}")
        start, linear = self._start(recipe)
        judge = self._judge(recipe, images, seen, unseen)
        recipe, linear = self._linear(recipe, len(seen), judge, linear)
        training = Training(
            *(recipe, options.output, self._batches(Subset(images, seen), recipe), self._described(images, len(seen))),
            judge,
            Rhythm(options.log_every, options.judge_every or max(1, recipe.steps // 20), options.save_seconds),
            start=start,
            linear=linear,
            mesh=_mesh(recipe.batch_size),
            block=options.block,
            licence=options.licence,
            stored=options.stored,
            tensorboard=options.tensorboard,
            say=self._told,
        )
        bar = Bar(self.console, 1, recipe.steps * recipe.batch_size, "training", "loss")

        def on_step(step: int, loss: float) -> None:
            if step == training.first + 1:
                bar.start()
            bar.update(0, step, recipe.steps, step * recipe.batch_size, None if math.isnan(loss) else loss)

        with bar.live, asked_to_stop() as stopping:
            outcome = training.run(stopping, on_step)
        if options.json and outcome.judgement is not None:
            print(json.dumps(finite(outcome.judgement.as_dict()), indent=1))
        if not outcome.finished:
            self.console.fail(f"stopped after step {outcome.step} of {recipe.steps}; the same command goes on")
            return 130
        report = training.inside / "report.html"
        say(f"{options.output} is a prior now, for ddiff restore --prior {options.output}; see {report}")
        return 1 if failed or outcome.lost else 0

    def _told(self, line: str) -> None:
        self.console.note(str(self.options.output), line) if isinstance(line, Caution) else self.console.say(line)

    def _recipe(self) -> Recipe:
        """Fill in the preset what was asked for."""
        options, preset = self.options, PRESETS[self.options.preset]
        if options.size is not None:
            preset = dataclasses.replace(preset, side=options.size)
        changes: dict[str, Any] = {
            name: value
            for name in ("steps", "decay_steps", "batch_size", "learning_rate", "dtype")
            if (value := getattr(options, name)) is not None
        }
        if options.dtype is None:
            changes["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        channels = options.channels or self._channels()
        chosen = {"prediction": options.prediction, "flip": options.flip, "seed": options.seed}
        return preset.recipe(channels, **changes, **chosen, average=options.average)

    def _channels(self) -> int:
        """Find how many channels the first image has that can be read."""
        for path in find_clean(self.options.images, Lines(), recursive=self.options.recursive):
            with contextlib.suppress(ValueError):
                return count_channels(path)
        return 3

    def _images(self, recipe: Recipe) -> tuple[Any, int]:
        inputs, shape, recursive = self.options.images, recipe.image_shape, self.options.recursive
        if self.options.loader == "memory":
            return read_folder(inputs, shape, self.console, recursive=recursive)
        found = FolderImages.find(inputs, shape, self.console, recursive=recursive)
        readable = found.readable(self.console)
        return readable, len(found) - len(readable)

    def _described(self, images: Any, count: int) -> dict[str, Any]:
        names = ", ".join(one_line(Path(text).name or text) for text in self.options.images)
        return {"name": names[:200], "count": count, "fingerprint": images.fingerprint()}

    def _batches(self, images: Any, recipe: Recipe) -> Any:
        make = batches if self.options.loader == "memory" else grain_batches
        share = {"process_index": jax.process_index(), "process_count": jax.process_count()}

        def start(step: int) -> Iterator[np.ndarray]:
            return make(images, batch_size=recipe.batch_size, seed=recipe.seed, start_step=step, **share)

        return start

    def _judge(self, recipe: Recipe, images: Any, seen: np.ndarray, unseen: np.ndarray) -> Judge | None:
        if not self.leads:
            return None
        reference = as_floats(images, seen[: num_references(recipe.image_shape)])
        return Judge(as_floats(images, unseen), reference, seed=self.options.seed)

    def _linear(
        self, recipe: Recipe, count: int, judge: Judge | None, given: LinearDenoiser | None
    ) -> tuple[Recipe, LinearDenoiser | None]:
        """Settle the linear denoiser that the network's output is added to, and its rank."""
        asked, shape = self.options.linear_rank, recipe.image_shape
        most = LinearFilter.most_directions(min(count, num_references(shape)), math.prod(shape))
        if self.options.start is not None:
            rank = 0 if given is None else len(given.variances)
            if asked not in (None, rank):
                raise ValueError(
                    f"the weights of {self.options.start} go with a linear denoiser of rank {rank}; leave out "
                    f"--linear-rank, or give {rank}"
                )
        else:
            rank = min(recipe.linear_rank, most) if asked is None else asked
        recipe = dataclasses.replace(recipe, linear_rank=rank)
        if given is not None or not rank:
            return recipe, given
        if rank > most:
            raise ValueError(f"--linear-rank must be at most {most} with {count} images to train on; got {rank}")
        if judge is None:  # the first process tells the others
            none = {name: jnp.zeros(size) for name, size in LinearDenoiser.shapes(rank, shape).items()}
            return recipe, LinearDenoiser(**none)
        return recipe, judge.filter.leading(rank, shape)

    def _start(self, recipe: Recipe) -> tuple[Any | None, LinearDenoiser | None]:
        """Load the weights to begin with, and the linear denoiser that they go with."""
        if self.options.start is None:
            return None, None
        _, params, card = load_weights(self.options.start, "adm_unet")
        if card.prediction != recipe.prediction:
            self._told(
                Caution(
                    f"the weights of {self.options.start} predict {card.prediction}, and go on to predict "
                    f"{recipe.prediction}"
                )
            )
        return without_linear(params)


def _mesh(batch_size: int) -> jax.sharding.Mesh | None:
    """Line up all devices of all processes.

    Raises:
        ValueError: they cannot share a batch equally.
    """
    devices = jax.devices()
    if len(devices) == 1:
        return None
    if batch_size % len(devices):
        raise ValueError(f"--batch-size must be a multiple of the {len(devices)} devices; got {batch_size}")
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
