"""From the raw k-space of a multi-coil scanner to an image, its uncertainty and its residual.

    pip install pydicom
    python docs/examples/mri.py --output mri

The data are simulated as a laboratory has them: in the scanner's own unit, a quarter of the columns, 8 coils whose
noise correlates, and a scan of that noise. The object is the magnitude of the slice that comes with pydicom, with a
smooth phase, or without pydicom a head after Shepp and Logan.

There is no trained prior for complex images here. The one below is made by hand and plain: images are Gaussian, with a
power spectrum that falls with the cube of the frequency and the energy of the zero-filled image. It knows nothing of
anatomy, and what it can do at best is known: the mean of its posterior is the solution of a linear system, which the
table has as the last line. A trained prior takes its place as `load_prior(...)` or `from_denoiser(...)` and nothing
else changes; then that line is gone, and the others are better.

The spread is that of several keys, about the mean of which the error is measured: where samples are those of the
posterior and the prior is right, error / spread is 1. DDiff aims at one image that fits, so its spread is no posterior.

It writes the images as arrays and as one picture: truth, zero-filled, the means of DDiff and of DDRM, and then the
spread and the error of DDRM, both twice as bright.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import ddiff_jax as dd
from ddiff_jax import operators, solvers

COILS, SAMPLES = 8, 8


def slice_of_a_scan() -> np.ndarray:
    """Read a magnitude image, or draw one: its 99% quantile is 1."""
    try:
        import pydicom
        from pydicom.data import get_testdata_file

        pixels = pydicom.dcmread(str(get_testdata_file("MR_small.dcm"))).pixel_array.astype(np.float64)
    except ImportError:
        at = (np.arange(64) - 31.5) / 32
        pixels = np.zeros((64, 64))
        # Grey level added, half axes, centre, tilt in degrees.
        for level, a, b, x, y, tilt in (
            (1.0, 0.69, 0.92, 0, 0, 0), (-0.8, 0.6624, 0.874, 0, -0.0184, 0), (-0.2, 0.11, 0.31, 0.22, 0, -18),
            (-0.2, 0.16, 0.41, -0.22, 0, 18), (0.1, 0.21, 0.25, 0, 0.35, 0), (0.1, 0.05, 0.05, 0, 0.1, 0),
            (0.1, 0.05, 0.05, 0, -0.1, 0), (0.1, 0.05, 0.02, -0.08, -0.6, 0), (0.1, 0.02, 0.05, 0.06, -0.6, 0),
        ):  # fmt: skip
            cos, sin = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
            across, up = at[None, :] - x, -at[:, None] - y
            pixels += level * (((across * cos + up * sin) / a) ** 2 + ((up * cos - across * sin) / b) ** 2 <= 1)
    return pixels / np.quantile(pixels, 0.99)


def scan(key: jax.Array) -> dict[str, np.ndarray]:
    """Make what a scanner saves, in an arbitrary unit, and the image that it should lead to."""
    magnitude = slice_of_a_scan()
    rows, columns = (np.arange(n)[:, None] / n - 0.5 for n in magnitude.shape)
    phase = 1.5 * rows + 2.0 * columns.T**2 - 0.8 * rows * columns.T
    truth = np.stack([magnitude * np.cos(phase), magnitude * np.sin(phase)], -1).astype(np.float32)
    maps = operators.birdcage_maps(truth.shape, COILS)
    columns_key, *keys = jax.random.split(key, 4)
    mask = np.asarray(operators.column_mask(truth.shape[1], columns_key, acceleration=4.0))

    unit = 3.7e-5
    mixing = 0.03 * (np.eye(COILS) + 0.4 * np.asarray(jax.random.normal(keys[0], (COILS, COILS), jnp.complex64)))
    clean = operators.mri(truth.shape, mask=mask, maps=maps).forward(jnp.asarray(truth))
    noise = jax.random.normal(keys[1], clean.shape, clean.dtype)
    silence = jax.random.normal(keys[2], (COILS, 4000), clean.dtype)
    return {
        "kspace": unit * mask * (np.asarray(clean) + np.einsum("cd,dhw->chw", mixing, noise)),
        "noise_scan": unit * mixing @ np.asarray(silence),
        "maps": maps,
        "mask": mask,
        "truth": unit * truth,
    }


def prepared(raw: dict[str, np.ndarray]) -> tuple[operators.MRI, jax.Array, float, float]:
    """Whiten the coils and choose units: operator, measurement, its noise level, and what an image of 1 means."""
    y, maps = operators.prewhiten(raw["kspace"], raw["maps"], operators.noise_covariance(raw["noise_scan"]))
    gain = float(jnp.sqrt(jnp.max(jnp.sum(jnp.abs(maps) ** 2, 0))))  # brings ||A|| to about 1
    operator = operators.mri((*raw["mask"].shape * 2, 2), mask=raw["mask"], maps=maps / gain)
    unit = float(operators.mvue_scale(operator, y / gain))
    return operator, y / (gain * unit), 1 / (gain * unit), unit


def spectrum_of(image: jax.Array) -> jax.Array:
    """Guess the variance of the real and of the imaginary part of every frequency."""
    fy, fx = (jnp.fft.fftfreq(n, 1 / n) for n in image.shape[:2])
    power = (1 + fy[:, None] ** 2 + fx[None, :] ** 2) ** -1.5
    return jnp.sum(image**2) / (2 * jnp.sum(power)) * power


def posterior_mean(operator: operators.MRI, y: jax.Array, sigma_y: float, power: jax.Array) -> jax.Array:
    """Solve for the mean of the posterior: x = C^(1/2) w with (B^H B + sigma_y^2) w = B^H y and B = A C^(1/2)."""

    def root(w: jax.Array) -> jax.Array:  # C^(1/2), which is symmetric
        z = jnp.fft.ifft2(jnp.sqrt(power) * jnp.fft.fft2(operators.from_channels(w)))
        return operators.to_channels(z)

    def normal(w: jax.Array) -> jax.Array:
        return root(operator.adjoint(operator.forward(root(w)))) + sigma_y**2 * w

    w, _ = jax.jit(lambda b: jax.scipy.sparse.linalg.cg(normal, b, tol=1e-4, maxiter=500))(root(operator.adjoint(y)))
    return root(w)


def spectral_prior(image: jax.Array) -> dd.DiffusionPrior:
    """Make the Gaussian prior that the head of this file tells of; `image` has about the energy of its images."""
    power = spectrum_of(image)[..., None]

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        spectrum = jnp.fft.fft2(operators.from_channels(x))[..., None]
        return operators.to_channels(jnp.fft.ifft2((spectrum * power / (power + sigma**2))[..., 0]))

    # 1% of the pixels are above 1, and the phase turns all about: nothing to clip.
    return dd.from_denoiser(denoise, kind="denoiser", image_shape=image.shape, clip=False)


def psnr(x: np.ndarray, truth: np.ndarray) -> float:
    """Compare magnitudes; the range is that of the truth."""
    x, truth = np.hypot(x[..., 0], x[..., 1]), np.hypot(truth[..., 0], truth[..., 1])
    return float(10 * np.log10(truth.max() ** 2 / np.mean((np.clip(x, 0, truth.max()) - truth) ** 2)))


def main() -> None:
    """Scan, reconstruct, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("mri"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    scan_key, key = jax.random.split(jax.random.key(arguments.seed))

    raw = scan(scan_key)
    operator, y, sigma_y, unit = prepared(raw)
    truth = raw["truth"] / unit  # for the judgement alone
    zero_filled = operators.mvue(operator, y)
    prior = spectral_prior(zero_filled)

    problem = dd.Problem(operator, jnp.broadcast_to(y, (SAMPLES, *y.shape)), sigma_y)
    keys = dd.image_keys(key, jnp.arange(SAMPLES))
    made = {"zero-filled": np.asarray(zero_filled)[None]}
    # DDiff aims at one image that fits the noise level. DDRM samples, by the singular value decomposition.
    for solver in (solvers.DDiff(num_steps=100, output="x"), solvers.DDRM(num_steps=50, eta=1.0)):
        made[type(solver).__name__] = np.asarray(dd.solve(solver, prior, problem, keys).x)

    made["best known"] = np.asarray(posterior_mean(operator, y, sigma_y, spectrum_of(zero_filled)))[None]

    one = dd.Problem(operator, y, sigma_y)
    columns = f"{np.sum(raw['mask']):.0f} of {raw['mask'].size} columns"
    print(f"{columns}, {COILS} coils, noise level {sigma_y:.4f}, unit {unit:.3g}")
    print(f"{'':12} PSNR dB  of the mean  chi2 per number observed  error / spread")
    print(f"{'truth':12} {'':20} {float(one.misfit(jnp.asarray(truth))) / sigma_y**2:10.2f}")
    for name, x in made.items():
        chi2 = np.mean([float(one.misfit(jnp.asarray(image))) for image in x]) / sigma_y**2
        spread, error = x.std(0, ddof=1) if len(x) > 1 else np.zeros(()), x.mean(0) - truth
        ratio = f"{np.sqrt(np.mean(error**2) / np.mean(spread**2)):.2f}" if len(x) > 1 else "-"
        each = np.mean([psnr(image, truth) for image in x])
        print(f"{name:12} {each:7.2f} {psnr(x.mean(0), truth):12.2f} {chi2:25.2f} {ratio:>15}")

    arguments.output.mkdir(parents=True, exist_ok=True)
    means = {name: x.mean(0) for name, x in made.items()}
    spread = made["DDRM"].std(0, ddof=1)
    np.savez(arguments.output / "mri.npz", x=unit * means["DDiff"], samples=unit * made["DDRM"], std=unit * spread)
    shown = [truth, means["zero-filled"], means["DDiff"], means["DDRM"], 2 * spread, 2 * (means["DDRM"] - truth)]
    row = (
        np.concatenate([np.hypot(x[..., 0], x[..., 1]) for x in shown], 1) / np.hypot(*np.moveaxis(truth, -1, 0)).max()
    )
    picture = Image.fromarray((np.clip(row, 0, 1) * 255).round().astype(np.uint8))
    picture.resize((4 * row.shape[1], 4 * row.shape[0]), Image.Resampling.NEAREST).save(arguments.output / "mri.png")


if __name__ == "__main__":
    main()
