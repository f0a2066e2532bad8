"""What X-rays leave of themselves: transmission through an object in Hounsfield units, and its logarithm."""

from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ddiff_jax.operators.base import LinearOperator
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.types import Image, ImageShape, Measurement, Scalar

Numbers = TypeVar("Numbers", float, np.ndarray, Array)

WATER = 0.2
"""Linear attenuation of water in 1 / cm at the mean energy of usual X-ray tubes, about 65 keV."""

WINDOW = (-1000.0, 1000.0)
"""Hounsfield units of x = -1, air, and of x = 1, twice as dense as water: x = 0 is water."""


def from_hounsfield(hounsfield: Numbers, window: tuple[float, float] = WINDOW) -> Numbers:
    """Map Hounsfield units to the range of images: the ends of the window to -1 and 1. Nothing is clipped.

    Args:
        hounsfield: numbers of any shape.
        window: lowest and highest value of the range.

    Raises:
        ValueError: the window is not (low, high) with low < high.
    """
    low, high = check_window(window)
    return (hounsfield - low) * (2 / (high - low)) - 1


def to_hounsfield(x: Numbers, window: tuple[float, float] = WINDOW) -> Numbers:
    """Undo `from_hounsfield`. Differences, such as a standard deviation, are (high - low) / 2 times those of x.

    Args:
        x: an image in [-1, 1].
        window: as there.
    """
    low, high = check_window(window)
    return low + (x + 1) * ((high - low) / 2)


def hounsfield_to_attenuation(hounsfield: Numbers, water: float = WATER) -> Numbers:
    """Compute the linear attenuation, in the unit of `water`: HU = 1000 (mu / water - 1).

    Args:
        hounsfield: numbers of any shape.
        water: linear attenuation of water, 1 / cm at about 65 keV.
    """
    return water * (1 + hounsfield / 1000)


def attenuation_to_hounsfield(attenuation: Numbers, water: float = WATER) -> Numbers:
    """Undo `hounsfield_to_attenuation`.

    Args:
        attenuation: linear, in the unit of `water`.
        water: linear attenuation of water, 1 / cm at about 65 keV.
    """
    return 1000 * (attenuation / water - 1)


def check_window(window: tuple[float, float]) -> tuple[float, float]:
    """Return the two ends of a window.

    Raises:
        ValueError: they are not two finite numbers in rising order.
    """
    if len(window) != 2 or not -np.inf < window[0] < window[1] < np.inf:
        raise ValueError(f"the window must be (low, high) in Hounsfield units with low < high; got {window}")
    return window


@pytree_dataclass
class Transmission:
    """y = exp(-A(scale x + water)): the share of the photons that arrives, by the law of Beer and Lambert.

    Args:
        geometry: A, line integrals in units of the longer side of the image.
        scale: attenuation across that length by one unit of x, in nats.
        level: the same of x = 0.
    """

    geometry: LinearOperator
    scale: Float[Array, ""]
    level: Float[Array, ""]

    @property
    def image_shape(self) -> ImageShape:
        """(H, W, C) of the input."""
        return self.geometry.image_shape

    def attenuation(self, x: Image) -> Measurement:
        """Integrate the attenuation along every ray, in nats: minus the logarithm of what arrives."""
        return self.geometry.forward(self.scale.astype(x.dtype) * x + self.level.astype(x.dtype))

    def forward(self, x: Image) -> Measurement:
        """Map an image to the share of the photons that arrives in every cell, 1 where nothing is in their way."""
        return jnp.exp(-self.attenuation(x))


def transmission(
    geometry: LinearOperator,
    *,
    length: Scalar,
    water: Scalar = WATER,
    window: tuple[float, float] = WINDOW,
) -> Transmission:
    """Build what a CT scanner measures before the logarithm, of an image in Hounsfield units.

    The image is x = -1 at the lower end of the window and 1 at its upper end, linear in between; see `from_hounsfield`.
    Outside of the image nothing attenuates. With the noise model `Counts` this is the likelihood of raw data, nonlinear
    in x. Where some hundred photons arrive, `post_log` makes of them a linear problem of nearly the same content.

    Args:
        geometry: `fan_beam_tomography`, `tomography`, or another linear operator that measures line integrals divided
            by the longer side of the image.
        length: longer side of the image, in cm (or in the unit whose inverse is that of `water`).
        water: linear attenuation of water, per cm. It depends on the energy: about 0.21 at 60 keV, 0.18 at 80 keV and
            0.17 at 100 keV.
        window: Hounsfield units of x = -1 and x = 1.

    Returns:
        Operator; input [H, W, C], measurement as that of `geometry`, positive.

    Raises:
        TypeError: the geometry is not linear.
        ValueError: a length or the attenuation is not positive and finite, or the window is none.

    Example:
        >>> from ddiff_jax.operators import sparse_fan_beam_tomography
        >>> scan = transmission(sparse_fan_beam_tomography((64, 64, 1)), length=20.0)
        >>> float(scan.forward(-jnp.ones((64, 64, 1))).min())  # air
        1.0
    """
    if not isinstance(geometry, LinearOperator):
        raise TypeError(f"the geometry must be a linear operator, such as tomography; got {type(geometry).__name__}")
    for name, value in {"length": length, "water": water}.items():
        if not isinstance(value, Tracer) and not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive, finite number; got {value}")
    low, high = check_window(window)
    across = length * water  # nats through water along the longer side
    return Transmission(
        geometry,
        scale=jnp.asarray(across * (high - low) / 2000, float),
        level=jnp.asarray(across * (1 + (high + low) / 2000), float),
    )


def post_log(
    operator: Transmission, counts: Measurement, incident: Scalar | Array, background: Scalar | Array = 0.0
) -> tuple[Measurement, Measurement]:
    """Turn counted photons into a linear problem: `Problem(operator.geometry, *post_log(operator, counts, incident))`.

    ln(incident / (counts - background)) is the attenuation along a ray, with a standard deviation that follows from
    the counts: rays through bone are noisier. Below about a hundred counts the logarithm is biased and its noise no
    longer Gaussian: keep the counts, and their likelihood `Counts`.

    Args:
        operator: what was measured with.
        counts: [T, D, C].
        incident: photons sent to every cell; one number or one for each, that broadcasts to the counts.
        background: expected counts that did not come through the object, scattered or dark.

    Returns:
        y in the units of `operator.geometry`, and sigma_y for every entry. A cell that counts no more than the
        background is taken to have 0.1 photons, with the variance of one: it says that much came through, no more.

    Raises:
        ValueError: y is no measurement of the operator.

    Source: for the weights, Sauer and Bouman, "A local update strategy for iterative reconstruction from projections",
    IEEE TSP 1993; 0.1 photons as in Leuschner et al., "LoDoPaB-CT", Scientific Data 2021.
    """
    ones = jnp.ones(operator.image_shape, counts.dtype)
    air = operator.geometry.forward(ones)
    if counts.shape != air.shape:
        raise ValueError(f"counts must be one measurement, {air.shape}; got shape {counts.shape}: vmap over a batch")
    incident, background, scale, level = (
        jnp.asarray(value, counts.dtype) for value in (incident, background, operator.scale, operator.level)
    )
    arrived = jnp.maximum(counts - background, 0.1)
    attenuation = jnp.log(incident / arrived)
    sigma = jnp.sqrt(jnp.maximum(counts, 1)) / arrived
    return (attenuation - level * air) / scale, sigma / scale
