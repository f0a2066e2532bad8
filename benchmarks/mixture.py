"""What every solver finds where the posterior is known: a mixture of three Gaussians in the plane, one number measured.

    python benchmarks/mixture.py --runs 500

The posterior is a mixture again, with weights, means and variances in closed form. The table says which share of the
runs ends at which of its components (beside the posterior's own weights), how far they end from the MAP, and how much
less likely than the MAP the median result is.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import ddiff_jax as dd
from ddiff_jax.config import preset
from ddiff_jax.operators import DecomposableOperator, Decomposition

SHAPE = (2, 1)
SIGMA_Y = 0.2
WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-0.6, 0.5], [0.1, -0.5], [0.6, 0.3]])
VARIANCES = np.array([0.02, 0.04, 0.01])
DIRECTION = np.array([0.8, 0.6])
Y = 0.35


@dd.pytree_dataclass
class Projection(DecomposableOperator):
    """y = d . x with a unit vector d, which is its own singular value decomposition."""

    direction: jax.Array
    image_shape: tuple[int, ...] = dd.static_field()

    def forward(self, x: jax.Array) -> jax.Array:
        """Map [2, 1] to [1]."""
        return self.direction @ x

    def svd(self) -> Decomposition:
        """Decompose the operator."""
        return Decomposition(
            jnp.ones(1), self.forward, lambda c: self.direction[:, None] * c, lambda y: y.astype(self.direction.dtype)
        )


def posterior() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the weights, means and covariances of the posterior's components."""
    weights, means, covariances = [], [], []
    for weight, mean, variance in zip(WEIGHTS, MEANS, VARIANCES, strict=True):
        spread = variance * DIRECTION @ DIRECTION + SIGMA_Y**2
        residual = Y - DIRECTION @ mean
        weights.append(weight * np.exp(-0.5 * residual**2 / spread) / np.sqrt(spread))
        means.append(mean + variance * DIRECTION * residual / spread)
        covariances.append(variance * np.eye(2) - np.outer(variance * DIRECTION, variance * DIRECTION) / spread)
    return np.array(weights) / np.sum(weights), np.array(means), np.array(covariances)


def log_posterior(x: np.ndarray) -> np.ndarray:
    """Compute log p(x | y) of points [..., 2]."""
    densities = [
        weight
        * np.exp(-0.5 * np.einsum("...i,ij,...j", x - mean, np.linalg.inv(cov), x - mean))
        / np.sqrt(np.linalg.det(2 * np.pi * cov))
        for weight, mean, cov in zip(*posterior(), strict=True)
    ]
    return np.log(np.maximum(np.sum(densities, axis=0), 1e-300))


def highest() -> np.ndarray:
    """Find the MAP: the highest of the maxima that start at the components' means."""
    found = [scipy.optimize.minimize(lambda x: -log_posterior(x), mean).x for mean in posterior()[1]]
    return max(found, key=log_posterior)


def candidates() -> dict[str, Any]:
    """Name the solvers with the values that they run with."""
    made: dict[str, Any] = {
        "DDiff, 20": dd.solvers.DDiff(num_steps=20),
        "DDiff, 100": dd.solvers.DDiff(num_steps=100),
        "DDiff, 999": dd.solvers.DDiff(),
    }
    for name in ("ddiff", "diffpir", "dps", "daps", "red_diff", "ddrm", "pigdm", "ddnm"):
        made[f"{name}, published"] = preset("ffhq", "super_resolution", name, values="published")
    return made


def main() -> None:
    """Run every solver from many keys and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prior = dd.MixturePrior(*map(jnp.asarray, (WEIGHTS, MEANS[..., None], VARIANCES)), schedule=dd.linear_schedule())
    operator = Projection(jnp.asarray(DIRECTION, jnp.float32), SHAPE)
    keys = dd.image_keys(jax.random.key(options.seed), jnp.arange(options.runs))
    y = jnp.full((options.runs, 1), Y)
    weights, means, _ = posterior()
    best = highest()
    print(f"posterior weights {np.round(weights, 3)}, MAP {np.round(best, 3)}")
    print("| solver | weights | mean distance to the MAP | median log p(MAP) - log p(x) |")
    print("|---|---|---|---|")
    for name, solver in candidates().items():
        x = np.asarray(dd.solve(solver, prior, dd.Problem(operator, y, SIGMA_Y), keys).x, np.float64)[..., 0]
        x = x[np.all(np.isfinite(x), axis=1)]
        nearest = np.argmin(np.linalg.norm(x[:, None] - means[None], axis=2), axis=1)
        share = np.bincount(nearest, minlength=3) / options.runs
        distance = np.linalg.norm(x - best, axis=1)
        gap = np.median(log_posterior(best) - log_posterior(x))
        shares = " / ".join(f"{value:.2f}" for value in share)
        print(f"| {name} | {shares} | {distance.mean():.3f} | {gap:.2f} |", flush=True)


if __name__ == "__main__":
    main()
