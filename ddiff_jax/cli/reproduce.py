"""`ddiff reproduce`: the paper's tables and figures, beside the published numbers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ddiff_jax.cli.evaluate import Common, common, packaged_photograph, work
from ddiff_jax.cli.flags import parse, peek

DESCRIPTION = """Run a table or a figure of the paper and write a ledger: published value, ours, difference, verdict.

examples:
  ddiff reproduce table1 --dataset faces64                          in miniature, with what is packaged
  ddiff reproduce table1 --dataset ffhq --images ffhq256/ --prior ffhq --lpips-alex lpips_alex
  ddiff reproduce noise --dataset faces64 --images photos/ --subset 8 --values default --steps 50

Writes ledger.md and ledger.json beside what `ddiff evaluate` writes. Killed at any moment, the same command continues.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to reproduce.

    Args:
        study: Table or figure; noise and steps are the sweeps.
        dataset: Whose presets and published numbers.
        images: Folder or files of clean images; for faces64 the packaged photograph unless given.
        tasks: Only these tasks.
        solvers: Only these methods.
        seeds: Roots of all random numbers.
        steps: Step counts instead of the published ones, for a quick look.
    """

    study: Annotated[Literal["table1", "table2", "noise", "steps"], tyro.conf.Positional]
    dataset: Literal["ffhq", "imagenet", "faces64"]
    images: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    solvers: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    steps: tuple[int, ...] = ()


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    dataset = peek(argv, "--dataset", "faces64")
    study = next((a for a in argv if a in ("table1", "table2", "noise", "steps")), "reproduced")
    default = Common(Path(f"{study}_{dataset}"), prior=dataset, values="published")
    command = dataclasses.make_dataclass(
        "Command", [("what", Options), ("how", Common, dataclasses.field(default_factory=lambda: default))]
    )
    parsed: Any = parse(command, argv, prog="ddiff reproduce", description=DESCRIPTION)
    from ddiff_jax.reproduction import STUDIES, ledger, plan_study, write_ledger

    what, how = parsed.what, parsed.how
    if how.preset is not None:
        raise ValueError("--preset is decided by --dataset; leave it out")
    if not what.images and what.dataset != "faces64":
        raise ValueError(f"give --images: a folder of clean {what.dataset} images, 256x256")
    options = {name: value for name, value in common(how).items() if name != "preset"}
    made = plan_study(
        *(what.study, what.dataset, what.images or packaged_photograph(), how.output),
        tasks=what.tasks,
        solvers=what.solvers,
        steps=what.steps,
        seeds=what.seeds,
        **options,
    )

    def finish(summary: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        book = ledger(made, summary)
        path = write_ledger(how.output, book)
        known = f"{book['published_known']} of {len(book['rows'])} published numbers are known"
        return [*(f"differs from the paper: {d}" for d in made.differences), f"{path}: {known}"], book

    return work(made.plan, how, f"{what.study} on {what.dataset}: {STUDIES[what.study].title}", finish)
