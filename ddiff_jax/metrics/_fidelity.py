"""PSNR and SSIM against the true image, each in two named protocols.

"paper" is what the released DDiff code reports: the raw restoration, neither clamped nor quantised, and as data range
the span of that one true image, max - min, which is at most 2 and differs from image to image. "standard" is what most
others mean: both images clamped to [-1, 1], data range 2 (the same numbers as images in [0, 1] with data range 1).
Numbers of different protocols are not comparable; every table names its own.

Source: "paper" is how ddiff_sample.py of DDiff calls scikit-image's `peak_signal_noise_ratio` and
`structural_similarity`; scikit-image 0.26 defines both SSIMs.
"""

from typing import Literal, get_args

import dm_pix
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddiff_jax.types import Image

ProtocolName = Literal["paper", "standard"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)

WINDOW: dict[ProtocolName, int] = {"paper": 5, "standard": 11}  # pixels; uniform and Gaussian (standard deviation 1.5)
K1, K2 = 0.01, 0.03


def _check(x: Image, truth: Image, protocol: ProtocolName) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"the protocol must be one of {', '.join(PROTOCOLS)}; got {protocol!r}")
    if x.shape != truth.shape:
        raise ValueError(f"the two images must have one shape; got {x.shape} and {truth.shape}")


def psnr(x: Image, truth: Image, *, protocol: ProtocolName) -> Float[Array, ""]:
    """Compute 10 log10(D^2 / mean (x - truth)^2) over all pixels and channels, in dB.

    Args:
        x: the restored image, range [-1, 1].
        truth: the clean image, range [-1, 1].
        protocol: "paper" (raw, D = max - min of the truth) or "standard" (clamped, D = 2).

    Returns:
        Infinity for equal images, NaN where x holds NaN.

    Raises:
        ValueError: unknown protocol, or the shapes differ.
    """
    _check(x, truth, protocol)
    if protocol == "paper":
        data_range = jnp.max(truth) - jnp.min(truth)
    else:
        x, truth, data_range = jnp.clip(x, -1, 1), jnp.clip(truth, -1, 1), 2.0
    return 20 * jnp.log10(data_range) - 10 * jnp.log10(jnp.mean((x - truth) ** 2))


def ssim(x: Image, truth: Image, *, protocol: ProtocolName) -> Float[Array, ""]:
    """Compute the structural similarity, the mean over channels of every channel's own.

    "paper": uniform window of 5x5, sample covariances (divided by 24), data range max - min of the truth, the outer
    2 pixels left out of the mean. "standard": Gaussian window of 11x11 with standard deviation 1.5, clamped images,
    the outer 5 pixels left out.

    Args:
        x: the restored image, range [-1, 1].
        truth: the clean image, range [-1, 1].
        protocol: "paper" or "standard".

    Raises:
        ValueError: unknown protocol, the shapes differ, or the images are smaller than the window.
    """
    _check(x, truth, protocol)
    if min(x.shape[:2]) < WINDOW[protocol]:
        raise ValueError(
            f"SSIM in the {protocol} protocol needs images of at least {WINDOW[protocol]} pixels a side; "
            f"got {x.shape[0]}x{x.shape[1]}"
        )
    if protocol == "paper":
        return _uniform_ssim(x, truth)
    # Whatever promotion our caller allows, this library relies on JAX's own.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        unit = ((jnp.clip(v, -1, 1) + 1) / 2 for v in (x, truth))
        return jnp.asarray(dm_pix.ssim(*unit, filter_size=WINDOW[protocol], k1=K1, k2=K2), jnp.float32)


def _uniform_ssim(x: Image, truth: Image) -> Float[Array, ""]:
    data_range = jnp.max(truth) - jnp.min(truth)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    side = WINDOW["paper"]
    count = side**2

    def mean(v: Image) -> Float[Array, "h w C"]:
        return (
            jax.lax.reduce_window(v, jnp.zeros((), v.dtype), jax.lax.add, (side, side, 1), (1, 1, 1), "VALID") / count
        )

    def covariance(v: Image, w: Image) -> Float[Array, "h w C"]:
        return (mean(v * w) - mean(v) * mean(w)) * (count / (count - 1))

    mean_x, mean_t = mean(x), mean(truth)
    luminance = (2 * mean_x * mean_t + c1) / (mean_x**2 + mean_t**2 + c1)
    structure = (2 * covariance(x, truth) + c2) / (covariance(x, x) + covariance(truth, truth) + c2)
    return jnp.mean(luminance * structure)
