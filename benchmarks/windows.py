"""Restore a photograph that is larger than the packaged prior, through windows, and look for seams.

    python benchmarks/windows.py                              # quick: 20 steps, overlap of a quarter
    python benchmarks/windows.py --steps 100 --overlap 32     # and so on; --task as for `ddiff restore`
    python benchmarks/windows.py --save windows.png           # truth, bicubic, total variation and DDiff side by side

The photograph is a part of scikit-image's "astronaut" (NASA, public domain), 384 rows of 512 pixels. Prints PSNR (range
2, clamped) of bicubic interpolation, of total variation at the best of several weights for this very photograph, and of
every variant of windows, with the seam ratio of the restoration and of the photograph at the same lines, the PSNR close
to the lines and elsewhere, chi^2 per number, and the seconds with and without compiling.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import skimage.data

import ddiff_jax as dd
from ddiff_jax import image_files, metrics
from ddiff_jax.config import task_preset
from ddiff_jax.operators import OPERATORS

WEIGHTS = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08)  # of total variation
BAND = 4  # pixels on both sides of a line


def photograph(rows: int, columns: int) -> np.ndarray:
    """Cut the upper part of the photograph out, in [-1, 1]."""
    return (skimage.data.astronaut()[:rows, :columns] / 127.5 - 1).astype(np.float32)


def near(shape: tuple[int, ...], seams: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Mark the pixels close to lines."""
    mask = np.zeros(shape[:2], bool)
    for b in seams[0]:
        mask[max(b - BAND, 0) : b + BAND] = True
    for b in seams[1]:
        mask[:, max(b - BAND, 0) : b + BAND] = True
    return mask


def psnr(x: np.ndarray, truth: np.ndarray, where: Any = None) -> float:
    """Compute the PSNR of some pixels."""
    error = (np.clip(x, -1, 1) - truth) ** 2
    return float(10 * np.log10(4 / np.mean(error if where is None else error[where])))


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="super_resolution")
    parser.add_argument("--solver", default="ddiff")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", default="384x512", help="rows x columns of the photograph")
    parser.add_argument("--overlap", type=int, nargs="*", default=[16])
    parser.add_argument("--taper", nargs="*", default=["cosine"])
    parser.add_argument("--shift", action="store_true")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()

    truth = photograph(*map(int, options.size.split("x")))
    prior, found = dd.load_prior("faces64"), task_preset("faces64", options.task)
    make, key = OPERATORS[found.operator], jax.random.key(1)
    is_random = "key" in make.__code__.co_varnames[: make.__code__.co_argcount]
    operator: Any = make(truth.shape, *([key] if is_random else []), **found.arguments)
    y = dd.simulate(operator, jnp.asarray(truth), found.sigma_y, jax.random.key(0))
    shown, rows = [truth], []
    problem, keys = dd.Problem(operator, y[None], found.sigma_y), dd.image_keys(jax.random.key(0), jnp.arange(1))
    if hasattr(operator, "adjoint"):
        nothing = dd.NoPrior(truth.shape)
        solutions = [dd.solve(dd.solvers.TotalVariation(weight), nothing, problem, keys) for weight in WEIGHTS]
        made = [np.asarray(solution.x[0]) for solution in solutions]
        scores = [psnr(x, truth) for x in made]
        shown.append(made[int(np.argmax(scores))])
        rows.append({"what": f"total variation, {WEIGHTS[int(np.argmax(scores))]}", "psnr": max(scores)})
    if options.task == "super_resolution":
        bicubic = np.asarray(jax.image.resize(y, truth.shape, "bicubic"))
        shown.insert(1, bicubic)
        rows.insert(0, {"what": "bicubic", "psnr": psnr(bicubic, truth)})
    for row in rows:
        print(json.dumps(row), flush=True)
    for overlap in options.overlap:
        for taper in options.taper:
            windows = dd.WindowedPrior(prior, truth.shape, overlap, taper, options.shift)
            lines = dd.WindowedPrior(prior, truth.shape, overlap).seams
            solver = dd.preset("faces64", options.task, options.solver, num_steps=options.steps)
            clock = [time.monotonic()]
            solution = dd.solve(
                *(solver, windows, problem, keys),
                num_chunks=1,
                on_chunk=lambda _, clock=clock: clock.append(time.monotonic()),
            )
            x = np.asarray(solution.x[0])
            clock.append(time.monotonic())
            band = near(x.shape, lines)
            row = {
                "what": f"{options.solver}, {options.steps} steps, overlap {overlap} {taper}"
                + ", shifted" * options.shift,
                "windows": windows.counts,
                "psnr": psnr(x, truth),
                "ssim": float(metrics.ssim(jnp.asarray(x), jnp.asarray(truth), protocol="standard")),
                "psnr_near_lines": psnr(x, truth, band),
                "psnr_elsewhere": psnr(x, truth, ~band),
                "seam_ratio": float(metrics.seam_ratio(jnp.asarray(x), lines)),
                "seam_ratio_of_truth": float(metrics.seam_ratio(jnp.asarray(truth), lines)),
                "chi_squared": float(problem.map(dd.Problem.misfit, solution.x)[0]) / found.sigma_y**2,
                "seconds_compiling": clock[1] - clock[0],
                "seconds": clock[-1] - clock[1],
            }
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
            shown.append(x)
    if options.save:
        image_files.write_png(options.save, np.concatenate(shown, axis=1))


if __name__ == "__main__":
    main()
