"""How far from the posterior's maximum and from its mean solvers end, on mixtures of Gaussians in 64 dimensions.

    python benchmarks/maximum.py --runs 200

Four components of their own covariances on 8 x 8 pixels (`ddiff_jax.calibration.gaussians`), three operators, one run
for each of so many measurements. The posterior is a mixture again, and its maxima are found by climbing, in float64.
The table holds medians over the runs: distances in units of sqrt(trace of the posterior covariance), to the highest
maximum (MAP), to the posterior mean and to the maximum on whose slope the result lies ("own"); how much higher the
log posterior is at these maxima; and the share of runs on the slope of the MAP.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ddiff_jax as dd
from ddiff_jax.calibration.gaussians import MixturePosterior, mixture_components, spectral_problem
from ddiff_jax.calibration.matrices import matrix_operator, picture_matrix
from ddiff_jax.config import preset
from ddiff_jax.problem import simulate

SIDE = 8
CELLS = {  # name of the operator to its noise level, and the task whose published values it runs with
    "quadrants": (0.3, "super_resolution"),
    "sample": (0.05, "random_inpainting"),
    "blur": (0.1, "gaussian_blur"),
}
HEAD = "| operator | solver | to the MAP | to the mean | to its own | below the MAP | below its own | at the MAP |"


def candidates(task: str) -> dict[str, Any]:
    """Name the solvers with the values that they run with."""
    ddiff = dd.solvers.DDiff
    published: Any = preset("ffhq", task, "ddiff", values="published")
    return {
        "DDiff, 100 steps": ddiff(num_steps=100),
        "DDiff, 999 steps": ddiff(),
        "DDiff, published": published,
        "DDiff, published, no dual": dataclasses.replace(published, dual="off"),
        "DDiff, 100, t0 = 200": ddiff(num_steps=100, t0=200.0),
        "DDiff, 100, climb = 5": ddiff(num_steps=100, climb=5),
        "DDiff, 100, climb = 10": ddiff(num_steps=100, climb=10),
        "DDiff, 100, climb = 20": ddiff(num_steps=100, climb=20),
        "DDiff, 100, climb = 40": ddiff(num_steps=100, climb=40),
        "DDiff, 250, climb = 50": ddiff(num_steps=250, climb=50),
        "DDiff, published, climb = 100": dataclasses.replace(published, climb=100),
        "DiffPIR, published": preset("ffhq", task, "diffpir", values="published"),
        "RED-diff, published": preset("ffhq", task, "red_diff", values="published"),
    }


class Cell:
    """One operator with its measurements, and what is known of their posteriors."""

    def __init__(self, operator: str, runs: int, seed: int):
        """Measure as many draws of the prior as there are runs."""
        self.name, (self.sigma_y, self.task) = operator, CELLS[operator]
        matrix = picture_matrix(operator, SIDE)
        self.posterior: MixturePosterior
        self.prior, self.posterior = spectral_problem(mixture_components(SIDE), matrix, self.sigma_y)
        self.operator = matrix_operator(matrix, (SIDE, SIDE, 1))
        self.keys = dd.image_keys(jax.random.key(seed), jnp.arange(runs))
        self.truth = self.posterior.truths(jax.random.key(seed + 1), runs)
        noise = dd.image_keys(jax.random.key(seed + 2), jnp.arange(runs))
        clean = jnp.asarray(self.truth, jnp.float32)
        self.y = jax.vmap(lambda x, key: simulate(self.operator, x, self.sigma_y, key))(clean, noise)
        self.mean, self.width = self.posterior.mean(self.y), np.sqrt(self.posterior.variance(self.y))
        self.maximum = self.posterior.maximum(self.y)
        self.height = self.posterior.log_density(self.maximum[:, None], self.y)[:, 0]

    def solve(self, solver: Any) -> np.ndarray:
        """Restore all measurements."""
        problem = dd.Problem(self.operator, self.y, self.sigma_y)
        return np.asarray(dd.solve(solver, self.prior, problem, self.keys).x, np.float64)

    def row(self, solver: str, x: np.ndarray) -> str:
        """Judge results, one for each measurement."""
        own, own_height = (found[:, 0] for found in self.posterior.climb(x[:, None], self.y))
        height = self.posterior.log_density(x[:, None], self.y)[:, 0]
        distances = [np.median(self._distance(x, other)) for other in (self.maximum, self.mean, own)]
        below = [np.median(top - height) for top in (self.height, own_height)]
        share = np.mean(self._distance(own, self.maximum) < 1e-3)
        cells = [*(f"{d:.2f}" for d in distances), *(f"{b:.2f}" for b in below), f"{share:.2f}"]
        return f"| {self.name} | {solver} | {' | '.join(cells)} |"

    def _distance(self, x: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.linalg.norm((x - other).reshape(len(x), -1), axis=1) / self.width


def main() -> None:
    """Run every solver on every cell and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(HEAD)
    print("|---" * (HEAD.count("|") - 1) + "|")
    for name in CELLS:
        cell = Cell(name, options.runs, options.seed)
        samples = cell.posterior.samples(jax.random.key(options.seed + 3), cell.y, 1)[:, 0]
        for what, x in {"a sample of the posterior": samples, "the posterior mean": cell.mean}.items():
            print(cell.row(what, x), flush=True)
        for what, solver in candidates(cell.task).items():
            print(cell.row(what, cell.solve(solver)), flush=True)


if __name__ == "__main__":
    main()
