"""From photon counts to Hounsfield units: fan-beam tomography of a real slice at a low dose.

    pip install pydicom scikit-image
    python docs/examples/ct.py [--photons 3000] [--angles 60] [--keys 4] [--figure ct.png]

The object is CT_small.dcm, a slice of 128x128 pixels in Hounsfield units that comes with pydicom; without pydicom it
is the Shepp-Logan phantom of scikit-image. A scanner sends photons through it, from a point source to a flat detector,
and counts those that arrive. Four reconstructions:

* filtered back-projection of the logarithm, which knows neither noise nor prior;
* DDiff on the logarithm, with one noise level per ray (`post_log`), for several keys;
* DDiff on the counts themselves, with their exact likelihood (`Counts`), for the first key;
* the exact posterior mean of the logarithm's problem, by conjugate gradients: what a perfect solver would find.

The prior is modest, and known: a Gaussian random field, whose cosine coefficients are independent with a power that
falls with the third power of the frequency, as those of most pictures do. It has never seen a CT scan: its mean, water,
and its power are all that was chosen. It stands where a network trained on CT slices would stand; any `Prior` does.
DDiff aims at one point, so that the spread of its results over keys is the solver's own uncertainty, no posterior's.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import ddiff_jax as dd
from ddiff_jax import operators, solvers

WINDOW = (-1000.0, 1500.0)  # Hounsfield units of x = -1 and x = 1


@dd.pytree_dataclass
class RandomField:
    """A stationary Gaussian prior, N(mean, C) with C diagonal for the cosine transform: its denoiser is exact."""

    mean: jax.Array
    power: jax.Array
    schedule: dd.Schedule = dd.static_field()
    image_shape: tuple[int, ...] = dd.static_field()

    def denoise(self, x_t: jax.Array, level: dd.Level) -> jax.Array:
        """Compute E[x_0 | x_t], a Wiener filter."""
        a, b = (jnp.asarray(value, x_t.dtype) for value in (level.signal, level.sigma))
        return self.mean + self.filter(x_t - a * self.mean, a * self.power / (a**2 * self.power + b**2))

    def filter(self, x: jax.Array, gain: jax.Array) -> jax.Array:
        """Multiply cosine coefficients."""
        spectrum = jax.scipy.fft.dctn(x, axes=(0, 1), norm="ortho")
        return jax.scipy.fft.idctn(gain * spectrum, axes=(0, 1), norm="ortho")


def random_field(shape: tuple[int, ...], mean: float, std: float) -> RandomField:
    """Build the prior: power over (1 + (f / f_0)^2)^(3/2), f_0 one period per image."""
    row, column = np.meshgrid(*(np.arange(n) / 2 for n in shape[:2]), indexing="ij")
    power = (1 + row**2 + column**2)[..., None] ** -1.5
    power *= std**2 / power.mean()
    return RandomField(jnp.float32(mean), jnp.asarray(power, jnp.float32), dd.linear_schedule(), shape)


def load() -> tuple[np.ndarray, float, str]:
    """Return an image in Hounsfield units, the side of a pixel in cm, and where it came from."""
    try:
        from pydicom import dcmread
        from pydicom.data import get_testdata_file

        data = dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
        units = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
        return units.astype(np.float64), float(data.PixelSpacing[0]) / 10, "CT_small.dcm"
    except ImportError:
        from skimage.data import shepp_logan_phantom
        from skimage.transform import resize

        return resize(shepp_logan_phantom(), (128, 128), anti_aliasing=True) * 2000 - 1000, 0.15, "Shepp-Logan phantom"


def main() -> None:
    """Measure, reconstruct, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photons", type=float, default=3000, help="sent to every cell")
    parser.add_argument("--angles", type=int, default=60)
    parser.add_argument("--keys", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--figure", help="also draw the images here")
    options = parser.parse_args()
    began = time.perf_counter()

    units, pixel, name = load()
    truth = jnp.asarray(operators.from_hounsfield(units, WINDOW), jnp.float32)[..., None]
    geometry = operators.sparse_fan_beam_tomography(truth.shape, num_angles=options.angles, pixel=pixel)
    scan = operators.transmission(geometry, length=pixel * max(units.shape), window=WINDOW)
    noise = dd.Counts(options.photons)
    counts = dd.simulate(scan, truth, 1.0, jax.random.key(0), noise)
    print(f"{name}: {units.shape}, pixels of {10 * pixel:.3g} mm, {options.angles} angles of {counts.shape[1]} cells")
    print(f"photons: {options.photons:g} sent, {float(counts.min()):.0f} to {float(counts.max()):.0f} counted")

    # Before the image: what surrounds it is air, which is not x = -1 in every window.
    y, sigma = operators.post_log(scan, counts, options.photons)
    air = operators.from_hounsfield(-1000.0, WINDOW)
    back_projected = jax.jit(geometry.filtered_back_projection)(y, outside=air)

    # One problem, restored with several keys.
    keys = dd.image_keys(jax.random.key(1), jnp.arange(options.keys))
    problem = dd.Problem(geometry, jnp.repeat(y[None], options.keys, 0), sigma[None])
    prior = random_field(truth.shape, mean=float(operators.from_hounsfield(0.0, WINDOW)), std=0.4)
    # One line per step leaves the data unmet: rays are far from orthogonal. Two get to the noise.
    solver = solvers.DDiff(num_steps=options.steps, output="x", directions=2)
    solution = dd.solve(solver, prior, problem, keys)
    dd.raise_if_not_finite(solution)
    counted = dd.Problem(scan, counts[None], float(jnp.sqrt(counts.mean())), noise)
    raw = dd.solve(solver, prior, counted, keys[:1])
    dd.raise_if_not_finite(raw)

    single = dd.Problem(geometry, y, sigma)
    exact = jax.jit(posterior_mean)(single, prior)

    def row(what: str, x: jax.Array) -> None:
        error = operators.to_hounsfield(np.asarray(x[..., 0]), WINDOW) - units
        print(f"{what:<34}{np.sqrt(np.mean(error**2)):>9.1f}{np.mean(error):>8.1f}{float(single.chi_square(x)):>12.2f}")

    print(f"\n{'':<34}{'RMSE HU':>9}{'bias HU':>8}{'chi-square':>12}")
    row("the truth", truth)
    row("filtered back-projection", back_projected)
    row("DDiff, logarithm, first key", solution.x[0])
    row(f"DDiff, logarithm, mean of {options.keys}", solution.x.mean(0))
    row("DDiff, counts, first key", raw.x[0])
    row("exact posterior mean", exact)
    spread = np.std(np.asarray(solution.x[..., 0]), 0, ddof=1) * (WINDOW[1] - WINDOW[0]) / 2
    error = np.abs(operators.to_hounsfield(np.asarray(solution.x.mean(0)[..., 0]), WINDOW) - units)
    print(f"\nspread over keys: median {np.median(spread):.1f} HU, largest {spread.max():.1f} HU;", end=" ")
    print(f"its rank correlation with the error: {rank_correlation(spread, error):.2f}")
    print(f"{time.perf_counter() - began:.0f} s")
    if options.figure:
        pictures = {
            "truth": truth,
            "back-projection": back_projected,
            "DDiff": solution.x.mean(0),
            "DDiff, counts": raw.x[0],
        }
        draw(
            {what: operators.to_hounsfield(np.asarray(x[..., 0]), WINDOW) for what, x in pictures.items()},
            spread,
            options.figure,
        )


def posterior_mean(problem: dd.Problem, prior: RandomField) -> jax.Array:
    """Compute the mean of the Gaussian posterior, in coordinates in which the prior is white."""
    white = problem.standardised()
    root = jnp.sqrt(prior.power)

    def normal(z: jax.Array) -> jax.Array:
        x = white.operator.forward(from_white(z))
        return z + to_white(white.operator.adjoint(x)) / white.sigma_y**2

    def from_white(z: jax.Array) -> jax.Array:
        return jax.scipy.fft.idctn(root * z, axes=(0, 1), norm="ortho")

    def to_white(x: jax.Array) -> jax.Array:
        return root * jax.scipy.fft.dctn(x, axes=(0, 1), norm="ortho")

    mean = jnp.full(prior.image_shape, prior.mean)
    residual = white.y - white.operator.forward(mean)
    z, _ = jax.scipy.sparse.linalg.cg(
        normal, to_white(white.operator.adjoint(residual)) / white.sigma_y**2, maxiter=100
    )
    return mean + from_white(z)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Compute Spearman's coefficient."""
    ranks = [np.argsort(np.argsort(values.ravel())) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def draw(pictures: dict[str, np.ndarray], spread: np.ndarray, path: str) -> None:
    """Draw reconstructions and the spread."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(pictures) + 1, figsize=(3 * len(pictures) + 3, 3.3), layout="constrained")
    for axis, (what, picture) in zip(axes, pictures.items(), strict=False):
        axis.imshow(picture, cmap="gray", vmin=-300, vmax=500)
        axis.set_title(f"{what}, HU", fontsize=9)
    image = axes[-1].imshow(spread, cmap="magma")
    axes[-1].set_title("spread over keys, HU", fontsize=9)
    figure.colorbar(image, ax=axes[-1])
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
