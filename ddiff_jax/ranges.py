"""Do the numbers of an array look like what they are taken for? Images and their measurements are in [-1, 1] here."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from ddiff_jax.files import Caution, Notes, Unusable

OVERSHOOT = 0.05  # by which a resized or filtered image may leave the range
FAR = 1.5  # beyond this, and more than noise, the numbers of a measured picture are in other units
DIM = 0.15  # below 0, beyond which no noise carries black pixels of a picture in [0, 1] that is taken for [-1, 1]
QUIET = 0.9  # share of the noise level below which the size of a measurement cannot fall by chance


def _to_range(least: float, most: float, name: str) -> str:
    """Spell the formula that brings an array into [-1, 1], as far as its range gives away where it comes from."""
    if least >= -most / 4:  # from black up, apart from noise
        if most <= FAR:
            return f"2 * {name} - 1"
        if 16 < most <= 280:
            return f"{name} / 127.5 - 1"
        if 280 < most <= 72000:
            return f"{name} / 32767.5 - 1 (of 16 bits; of 12 it is {name} / 2047.5 - 1)"
    if max(-least, most) <= FAR:
        return f"np.clip({name}, -1, 1)"
    return f"2 * ({name} - black) / (white - black) - 1"


def check_image(path: Path, x: Shaped[np.ndarray, "..."]) -> Notes:
    """Check a clean image that comes as floats.

    Returns:
        A caution if it looks like an image in [0, 1].

    Raises:
        Unusable: it leaves [-1, 1], so that every PSNR would be wrong.
    """
    least, most = float(x.min()), float(x.max())
    if max(-least, most) > 1 + OVERSHOOT:
        raise Unusable(
            f"{path} holds values from {least:.4g} to {most:.4g}; an image is in [-1, 1] here, black to white: "
            f"save {_to_range(least, most, 'x')}"
        )
    if least >= 0:
        return [
            Caution(
                f"never goes below 0 ({least:.4g} to {most:.4g}), but -1 is black here and 0 is grey; "
                f"if this image is in [0, 1], save {_to_range(least, most, 'x')}"
            )
        ]
    return []


def check_picture_measurement(y: Shaped[np.ndarray, "..."], sigma_y: float, white: float) -> Notes:
    """Doubt a measurement that is a picture and comes as floats.

    Args:
        y: what was observed of it.
        sigma_y: its noise level.
        white: what the operator makes of a white image; a kernel that sums to 2 doubles the range.

    Returns:
        A caution if the numbers are far beyond the range, or look like a picture in [0, 1].
    """
    if not y.size:
        return []
    least, most = float(y.min()), float(y.max())
    if max(-least, most) > FAR * max(white, 1) + 5 * sigma_y:
        start = f"holds values from {least:.4g} to {most:.4g}, far beyond [-1, 1]"
    elif least >= -min(3 * sigma_y, DIM):
        start = f"never goes below {least:.2g} (up to {most:.4g}), but -1 is black here and 0 is grey"
    else:
        return []
    formula = _to_range(least, most, "y")
    return [Caution(f"{start}; if it is in other units, save {formula}, with --sigma scaled likewise")]


def check_noise_level(y: Shaped[np.ndarray, "..."], sigma_y: float) -> Notes:
    """Doubt a noise level that is larger than the whole measurement, noise included.

    Args:
        y: what was observed.
        sigma_y: standard deviation of its noise, as given.
    """
    size = math.sqrt(float(np.mean(np.abs(y.astype(np.complex128)) ** 2))) if y.size else math.inf
    if size >= QUIET * sigma_y:
        return []
    levels = f": if it was meant for levels of 255, give --sigma {sigma_y / 127.5:.3g}" if sigma_y > 1 else ""
    return [
        Caution(
            f"--sigma {sigma_y:g} is larger than the whole measurement (root mean square {size:.3g}), noise included; "
            f"it is in units of the measurement{levels}"
        )
    ]
