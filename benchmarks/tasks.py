"""Restore the packaged photograph from every kind of measurement with the packaged prior, and tabulate how well.

    python benchmarks/tasks.py [--values published] [--output FOLDER] [--tasks super_resolution ...] [--json tasks.json]

Every task is `ddiff restore --task TASK` with its values, phase retrieval the best of five runs by the misfit; the
pictures stay in the output folder.
"""

import argparse
import json
from pathlib import Path

from ddiff_jax import cli
from ddiff_jax.cli.settings import REQUIRED, operator_parameters
from ddiff_jax.config import VALUES, presets, task_preset


def runnable() -> list[str]:
    """List the tasks that need no file from the user."""
    found = []
    for name in presets()["faces64"]:
        task = task_preset("faces64", name)
        needed = {p for p, (_, default) in operator_parameters(task.operator).items() if default is REQUIRED}
        if needed <= task.arguments.keys():
            found.append(name)
    return found


def main() -> None:
    """Run the tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("tasks"))
    parser.add_argument("--tasks", nargs="+", default=runnable())
    parser.add_argument("--values", choices=VALUES, default="default")
    parser.add_argument("--steps", type=int, help="instead of those of the values")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    rows = []
    print("| task | PSNR (dB) | SSIM | misfit | noise power |\n|---|---|---|---|---|")
    for task in arguments.tasks:
        folder = arguments.output / task
        command = ["restore", "--task", task, "--values", arguments.values, "--output", str(folder), "--quiet"]
        command += [] if arguments.steps is None else ["--steps", str(arguments.steps)]
        if task == "phase_retrieval":
            command += ["--restarts", "5"]  # as the paper, but chosen by the misfit
        if cli.main(command):
            raise SystemExit(f"{task} failed")
        (row,) = json.loads((folder / "metrics.json").read_text())["images"]
        row["psnr"] = row.get("psnr_resolved") or row["psnr"]  # amplitudes leave the sign and the half turn open
        rows.append({"task": task, **{k: row[k] for k in ("psnr", "ssim", "misfit", "misfit_excess")}})
        power = row["misfit"] - row["misfit_excess"]
        print(f"| {task} | {row['psnr']:.2f} | {row['ssim']:.3f} | {row['misfit']:.5f} | {power:.5f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
