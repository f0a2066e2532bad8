"""Metrics of radio interferometry: chi-squares of what its instruments measure, and images up to a shift.

A chi-square is about 1 where the model is the truth and the noise is Gaussian and as large as said; below 1 a model
fits the noise. That of closures exceeds 1 where visibilities are weaker than two of their noise.

Source: the definitions of ehtim (Chael et al. 2018), which InverseBench takes over.
Differs: InverseBench prints 1 / chi2 where chi2 < 1, and the best of several restorations; these are plain.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from ddiff_jax.operators import ClosureData, Closures
from ddiff_jax.types import Image, Scalar


def chi2_vis(
    vis: Complex[Array, "*M"],
    measured: Complex[Array, "*M"],
    sigma: Float[Array, "*M"],
    *,
    where: Bool[Array, "*M"] | None = None,
) -> Float[Array, ""]:
    """Compute sum |(V - V_obs) / sigma|^2 / (2 M) of visibilities.

    Args:
        vis: V of the model.
        measured: V_obs.
        sigma: noise of the real and of the imaginary part.
        where: which entries count; None are all.
    """
    return _mean((jnp.abs(vis - measured) / sigma) ** 2 / 2, where)


def chi2_amp(
    amplitude: Float[Array, "*M"],
    measured: Float[Array, "*M"],
    sigma: Float[Array, "*M"],
    *,
    where: Bool[Array, "*M"] | None = None,
) -> Float[Array, ""]:
    """Compute the mean of ((|V| - |V|_obs) / sigma)^2 of amplitudes.

    Args:
        amplitude: |V| of an image.
        measured: |V|_obs.
        sigma: standard deviation of every one of them.
        where: which count; None is all.
    """
    return _mean(((amplitude - measured) / sigma) ** 2, where)


def chi2_cp(
    phase: Float[Array, "*T"],
    measured: Float[Array, "*T"],
    sigma: Float[Array, "*T"],
    *,
    where: Bool[Array, "*T"] | None = None,
) -> Float[Array, ""]:
    """Compute the mean of 2 (1 - cos(psi - psi_obs)) / sigma^2 of closure phases, all in radian.

    Args:
        phase: psi of an image.
        measured: psi_obs.
        sigma: standard deviation of every one of them.
        where: which count; None is all.
    """
    return _mean(2 * (1 - jnp.cos(phase - measured)) / sigma**2, where)


def chi2_ca(
    log_amplitude: Float[Array, "*Q"],
    measured: Float[Array, "*Q"],
    sigma: Float[Array, "*Q"],
    *,
    where: Bool[Array, "*Q"] | None = None,
) -> Float[Array, ""]:
    """Compute the mean of ((lambda - lambda_obs) / sigma)^2 of log closure amplitudes.

    Args:
        log_amplitude: lambda of an image.
        measured: lambda_obs.
        sigma: standard deviation of every one of them.
        where: which count; None is all.
    """
    return _mean(((log_amplitude - measured) / sigma) ** 2, where)


def closure_chi2(operator: Closures, x: Image, data: ClosureData) -> dict[str, Float[Array, ""]]:
    """Compute the chi-squares of an image: "cp" of closure phases, "ca" of log closure amplitudes, "flux".

    Args:
        operator: closures.
        x: [H, W, 1] in [-1, 1].
        data: as `Closures.from_visibilities` makes them.

    Returns:
        Name to number; NaN where nothing of a kind was observed, no "flux" where the operator measures none.
    """
    got, measured = operator.split(operator.forward(x)), operator.split(data.y)
    count, total = operator.triangles.shape[0], len(data.y)
    last = total - operator.has_flux
    phases, amplitudes = slice(0, count), slice(2 * count, last)
    found = {
        "cp": chi2_cp(got.phases, measured.phases, data.sigma_y[phases], where=data.observed[phases]),
        "ca": chi2_ca(
            got.log_amplitudes, measured.log_amplitudes, data.sigma_y[amplitudes], where=data.observed[amplitudes]
        ),
    }
    if got.flux is not None and measured.flux is not None:
        found["flux"] = ((got.flux - measured.flux) / data.sigma_y[-1]) ** 2
    return found


def _mean(values: Float[Array, "*M"], where: Bool[Array, "*M"] | None) -> Float[Array, ""]:
    if where is None:
        return jnp.mean(values)
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.sum(where, dtype=values.dtype)


def shifted_psnr(x: Image, truth: Image, *, fwhm: Scalar = 0.0) -> Float[Array, ""]:
    """Compute the PSNR after the best shift, for instruments that do not know where on the sky an image is.

    All shifts by whole pixels are tried, what leaves on one side comes in on the other, and both images are clamped to
    [-1, 1] first; the data range is 2, as in `psnr` of the protocol "standard".

    Args:
        x: the restored image [H, W, C].
        truth: the clean image.
        fwhm: full width at half maximum, in pixels, of a Gaussian that blurs both images, so that detail that the
            instrument cannot resolve does not count; 0 is none.

    Raises:
        ValueError: the shapes differ.

    Source: the black-hole metric of InverseBench, raw and blurred by 10, 15 and 20 micro-arcseconds.
    Differs: every pixel of shift, where InverseBench tries a grid of 30 x 30 up to half the width.
    """
    if x.shape != truth.shape:
        raise ValueError(f"the two images must have one shape; got {x.shape} and {truth.shape}")
    axes, size = (0, 1), x.shape[:2]
    std = jnp.asarray(fwhm, x.dtype) / (8 * jnp.log(jnp.asarray(2.0, x.dtype))) ** 0.5
    rows, columns = (np.asarray(f(n)) for f, n in zip((np.fft.fftfreq, np.fft.rfftfreq), size, strict=True))
    squared = jnp.asarray(rows[:, None, None] ** 2 + columns[None, :, None] ** 2, x.dtype)
    blur = jnp.exp(-2 * (jnp.pi * std) ** 2 * squared)  # a Gaussian is one of the frequencies, too

    def smooth(v: Image) -> tuple[Array, Image]:
        spectrum = jnp.fft.rfft2((jnp.clip(v, -1, 1) + 1) / 2, axes=axes)
        spectrum = blur.astype(spectrum.dtype) * spectrum
        return spectrum, jnp.fft.irfft2(spectrum, s=size, axes=axes)

    (x_spectrum, x), (spectrum, truth) = smooth(x), smooth(truth)
    correlation = jnp.fft.irfft2(jnp.conj(x_spectrum) * spectrum, s=size, axes=axes).sum(-1)
    shift = jnp.stack(jnp.unravel_index(jnp.argmax(correlation), size))
    return -10 * jnp.log10(jnp.mean((jnp.roll(x, shift, axes) - truth) ** 2))
