"""Estimate how noisy a picture is."""

import numpy as np
from jaxtyping import Bool, Shaped

FEWEST = 64  # coefficients; the median of fewer is off by more than about 15%
# Daubechies' wavelet with two vanishing moments, the high-pass half: blind to smooth pictures.
ROOT = np.sqrt(3.0)
HIGH_PASS = np.array([1 - ROOT, ROOT - 3, 3 + ROOT, -1 - ROOT]) / (4 * np.sqrt(2))
NORMAL_MEDIAN = 0.6744897501960817  # median of |n| for n ~ N(0, 1)


def estimate_sigma(y: Shaped[np.ndarray, "H W C"], observed: Bool[np.ndarray, "H W c"] | None = None) -> float:
    """Estimate the standard deviation of white Gaussian noise in a picture.

    The median of the absolute diagonal coefficients of the finest wavelet scale, over 0.6745. Few edges reach this
    scale and the median ignores few, so the estimate is close for photographs at full size and for blurred ones; fine
    texture and small pictures of large scenes push it up.

    Args:
        y: picture, real; all channels are taken together.
        observed: true where a pixel was, for all channels or each; coefficients that touch others are left out.

    Returns:
        The estimate, in units of y.

    Raises:
        ValueError: fewer than 64 coefficients remain, too few for a median.

    Source: Donoho and Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage".
    """
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(y, np.float64), (4, 4), axis=(0, 1))
    kept = np.ones(windows.shape[:2], bool)
    if observed is not None:
        kept = np.lib.stride_tricks.sliding_window_view(observed.all(-1), (4, 4)).all((-2, -1))
    coefficients = np.einsum("hwcij,i,j->hwc", windows[kept][:, None], HIGH_PASS, HIGH_PASS)
    if coefficients.size < FEWEST:
        raise ValueError(
            f"the noise level cannot be estimated from {coefficients.size} places where 4x4 observed pixels meet "
            f"(at least {FEWEST} are wanted); give --sigma a number"
        )
    return float(np.median(np.abs(coefficients)) / NORMAL_MEDIAN)
