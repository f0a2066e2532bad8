"""A black hole from closure quantities: visibilities with noise and unknown station gains, image, uncertainty, fit.

    pip install ddiff-jax
    python docs/examples/black_hole.py --output black_hole

What is real: where nine stations of the Event Horizon Telescope stand and how noisy their baselines are, from a
simulated observation of Sgr A* that Wu et al. 2024 published under the MIT licence (black_hole_uv.npz beside this file;
every fifth of its times). `ddiff_jax.interferometer_files.read_observation` reads your own UVFITS the same way.

What is made up: the source, a crescent, and the prior. It is a Gaussian with the mean and the covariance of 2000 other
crescents: their first 24 principal components have independent standard normal coefficients, `GaussianPrior(0, 1)`.
So it knows that there is a smooth ring about as large as this one, and not where it is bright; it is no network and
has seen no photograph, and the truth was drawn from the same family, which real sources were not. The uncertainty is
that of DDiff under this prior: how far its answers to other random keys lie apart. DDiff aims at good images, not at
exact samples of the posterior, and the closures are not linear: an answer may end in a local minimum. Those whose
chi-square is more than twice the best one's are left out of average and uncertainty, which no truth is needed for.

The dirty image and least squares are given the true visibilities' phases, which gains spoil; closures are not.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ddiff_jax as dd
from ddiff_jax import image_files, metrics, operators, solvers
from ddiff_jax.interferometer_files import read_observation

MICRO_ARCSECOND = np.pi / 180 / 3600 / 1e6
SIDE, FIELD = 32, 128.0  # pixels, and micro-arcseconds; the longest baseline resolves 24 of these
FLUX, FLUX_NOISE = 2.3, 0.1  # Jansky, and what a shorter baseline leaves open of it
COMPONENTS = 24


def crescents(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw rings [count, SIDE, SIDE, 1] in [-1, 1] that are brighter on one side, in a faint halo."""
    where = (np.arange(SIDE) - (SIDE - 1) / 2) * FIELD / SIDE
    radius, angle = np.hypot(*np.meshgrid(where, where)), np.arctan2(*np.meshgrid(-where, -where))

    def blob(distance: np.ndarray, width: np.ndarray) -> np.ndarray:
        return np.exp(-4 * np.log(2) * (distance / width) ** 2)

    diameter, width, contrast, turn, halo = (
        rng.uniform(low, high, (count, 1, 1))
        for low, high in ((30, 60), (10, 20), (0.1, 0.9), (0, 2 * np.pi), (0, 0.15))
    )
    ring = blob(radius - diameter / 2, width) * (1 + contrast * np.cos(angle - turn))
    images = ring + halo * blob(radius, diameter + 10)
    return (2 * images / images.max((1, 2), keepdims=True) - 1)[..., None]


def main() -> None:
    """Simulate, restore, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for pictures; none by default")
    parser.add_argument("--keys", type=int, default=8, help="answers of DDiff")
    parser.add_argument("--steps", type=int, default=200, help="of each")
    options = parser.parse_args()
    began, shape = time.perf_counter(), (SIDE, SIDE, 1)

    # The observation: visibilities with noise, and gains that nobody knows.
    plan = read_observation(Path(__file__).with_name("black_hole_uv.npz"))
    truth = jnp.asarray(crescents(np.random.default_rng(7), 1)[0], jnp.float32)
    view = {
        "u": plan.u,
        "v": plan.v,
        "pixel": FIELD / SIDE * MICRO_ARCSECOND,
        "scale": FLUX / float(jnp.sum((truth + 1) / 2)),  # Jansky in a white pixel
    }
    interferometer = operators.interferometry(shape, **view)
    sigma = jnp.asarray(plan.sigma, jnp.float32)
    vis = dd.simulate(interferometer, truth, sigma, jax.random.key(0))
    rng = np.random.default_rng(1)
    _, scan = np.unique(plan.time, return_inverse=True)
    gains = np.exp(0.2 * rng.standard_normal((scan.max() + 1, 9)) + 2j * np.pi * rng.random((scan.max() + 1, 9)))
    gain = gains[scan, plan.t1] * np.conj(gains[scan, plan.t2])  # of noise and signal alike
    observed = np.asarray(vis) * gain

    # Closures do not see them. Where a visibility is weaker than two of its noise, its sets are left out.
    closures = operators.closures(
        shape, **view, sigma=plan.sigma * np.abs(gain), sigma_flux=FLUX_NOISE * FLUX, **plan.closure_sets()._asdict()
    )
    data = closures.from_visibilities(observed.astype(np.complex64), FLUX, snr_cut=2.0)
    print(f"{len(vis)} visibilities, {int(closures.counts() @ data.observed)} closures and fluxes of them in use")

    # The prior: coefficients of principal components.
    many = crescents(np.random.default_rng(2), 2000).reshape(2000, -1)
    mean = many.mean(0)
    _, spread, axes = np.linalg.svd(many - mean, full_matrices=False)
    basis = (spread[:COMPONENTS, None] * axes[:COMPONENTS] / np.sqrt(2000)).T
    mean, basis = (jnp.asarray(value, jnp.float32) for value in (mean, basis))
    picture = operators.from_function(lambda c: (mean + basis @ c[:, 0]).reshape(shape), (COMPONENTS, 1))
    prior = dd.GaussianPrior(0.0, 1.0, dd.linear_schedule(), (COMPONENTS, 1))

    # DDiff, from several keys at once; noise per entry, so sigma_y has an axis for the images.
    stack = [jnp.broadcast_to(value, (options.keys, *value.shape)) for value in (data.y, data.observed)]
    problem = dd.Problem(operators.compose(closures, picture), stack[0], data.sigma_y[None], observed=stack[1])
    keys = dd.image_keys(jax.random.key(3), jnp.arange(options.keys))
    solution = dd.solve(solvers.DDiff(num_steps=options.steps, levels="even", output="x"), prior, problem, keys)
    dd.raise_if_not_finite(solution)
    answers = jax.vmap(picture.forward)(solution.x)
    # Phases have local minima. Which answers ended in one the data tell, without the truth.
    misfits = problem.map(dd.Problem.chi_square, solution.x)
    kept = misfits < 2 * misfits.min()
    average, deviation = jnp.clip(answers[kept], -1, 1).mean(0), jnp.clip(answers[kept], -1, 1).std(0)

    # What one does without a prior, here with phases that no gain has spoiled.
    linear: Any = dd.Problem(interferometer, vis, sigma).standardised()
    black = -jnp.ones(shape)
    residual = linear.y - linear.operator.forward(black)
    dirty = linear.operator.adjoint(residual)
    step = jnp.sum(dirty**2) / jnp.sum(jnp.abs(linear.operator.forward(dirty)) ** 2)
    others = {
        "dirty image": black + step * dirty,
        "least squares": linear.operator.prox(black, linear.y, linear.sigma_y**2 / 0.5**2),
    }

    fit = jax.jit(lambda x: metrics.closure_chi2(closures, x, data))
    print(f"{'':16}{'PSNR':>6}{'at 20 uas':>11}   chi2 of phases, amplitudes, flux")
    images = {"truth": truth, "prior's mean": mean.reshape(shape), **others}
    images |= {f"DDiff, key {i}{'' if kept[i] else ' -'}": x for i, x in enumerate(answers)}
    images["DDiff, average"] = average
    for name, x in images.items():
        scores = [metrics.shifted_psnr(x, truth, fwhm=blur * SIDE / FIELD) for blur in (0.0, 20.0)]
        found = fit(x)
        chi2 = ", ".join(f"{float(found[kind]):.2f}" for kind in ("cp", "ca", "flux"))
        print(f"{name:16}{float(scores[0]):6.1f}{float(scores[1]):11.1f}   {chi2}")
    error = jnp.abs(average - truth)
    inside = float(jnp.mean(error < 2 * deviation))
    print(
        f"average of the {int(kept.sum())} answers whose chi2 is less than twice the best one's, without those with -"
    )
    print(f"uncertainty: {float(deviation.mean()):.3f} on average, error {float(error.mean()):.3f}; ", end="")
    print(f"{inside:.0%} of the pixels are within two standard deviations of the truth")
    print(f"{time.perf_counter() - began:.0f} seconds")

    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        shown = {"truth": truth, "average": average, "uncertainty": 4 * deviation - 1, **others}
        for name, x in shown.items():
            large = np.kron(np.asarray(x)[..., 0], np.ones((8, 8)))[..., None]
            image_files.write_png(options.output / f"{name.replace(' ', '_')}.png", large.astype(np.float32))


if __name__ == "__main__":
    main()
