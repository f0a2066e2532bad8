"""`ddiff reproduce`: the paper's tables and figures, beside the published numbers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ddiff_jax.cli.evaluate import Common, common, packaged_photograph, work
from ddiff_jax.cli.flags import parse
from ddiff_jax.names import check_name

DESCRIPTION = """Run a table or a figure of the paper and write a ledger: published value, ours, difference, verdict.

examples:
  ddiff reproduce table1 --dataset faces64                          in miniature, with what is packaged
  ddiff reproduce table1 --dataset ffhq --images ffhq256/ --prior ffhq --lpips-alex lpips_alex
  ddiff reproduce noise --dataset faces64 --images photos/ --subset 8 --values default --steps 50

Where the paper kept the best of several runs by the truth, its pick is kept and marked, beside the best by the misfit.
Writes ledger.md and ledger.json beside what `ddiff evaluate` writes. Killed at any moment, the same command continues.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to reproduce.

    Args:
        study: Table or figure; noise and steps are the sweeps.
        dataset: Whose presets and published numbers.
        images: Folder or files of clean images; for faces64 the packaged photograph unless given.
        output: Folder for tables, records and pictures, by default STUDY_DATASET; nothing in it is ever deleted.
        prior: Name of a packaged prior, or folder of a converted checkpoint, by default named as the dataset.
        tasks: Only these tasks.
        solvers: Only these methods.
        seeds: Roots of all random numbers.
        steps: Network evaluations per image instead of the published numbers of steps, for a quick look.
    """

    study: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")]
    dataset: Annotated[str, tyro.conf.arg(metavar="DATASET")]
    images: tuple[str, ...] = ()
    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    prior: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    tasks: tuple[str, ...] = ()
    solvers: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    steps: tuple[int, ...] = ()


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    from ddiff_jax.evaluation.ledger import compare
    from ddiff_jax.evaluation.reproduction import DATASETS, STUDIES, plan_study

    command = dataclasses.make_dataclass(
        "Command",
        [("what", Options), ("how", Common, dataclasses.field(default_factory=lambda: Common(values="published")))],
    )
    known = {**{name: study.title for name, study in STUDIES.items()}, "datasets": ", ".join(DATASETS)}
    description = DESCRIPTION + "\n".join(f"  {name:<9}{text}" for name, text in known.items())
    parsed: Any = parse(command, argv, prog="ddiff reproduce", description=description)
    what, how = parsed.what, parsed.how
    check_name("study", what.study, STUDIES)
    check_name("dataset", what.dataset, DATASETS)
    if how.preset is not None:
        raise ValueError("--preset is decided by --dataset; leave it out")
    if not what.images and what.dataset != "faces64":
        raise ValueError(f"give --images: a folder of clean {what.dataset} images, 256x256")
    output = what.output or Path(f"{what.study}_{what.dataset}")
    options = {name: value for name, value in common(how, what.dataset).items() if name != "preset"}
    made = plan_study(
        *(what.study, what.dataset, what.images or packaged_photograph(), output),
        prior=what.prior or what.dataset,
        tasks=what.tasks,
        solvers=what.solvers,
        steps=what.steps,
        seeds=what.seeds,
        **options,
    )

    def finish(summary: Any) -> tuple[list[str], Any]:
        ledger = compare(made, summary.groups)
        known = f"the paper has {ledger.published_known} of these {len(ledger.entries)} numbers"
        told = [f"differs from the paper: {difference}" for difference in made.differences]
        return [*told, f"{ledger.write(output)}: {known}"], ledger

    return work(made.plan, how, output, f"{what.study} on {what.dataset}: {STUDIES[what.study].title}", finish)
