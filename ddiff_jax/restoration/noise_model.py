"""The noise of measurements as people state it: one level, a map of levels, photons, or the numbers of a camera."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddiff_jax.config import Task
from ddiff_jax.likelihood import Gaussian, Likelihood, Poisson, PoissonGaussian
from ddiff_jax.operators import OPERATOR_TYPES, Operator, measures_picture, observed_entries
from ddiff_jax.problem import check_sigma

CAMERA = ("gain", "offset", "read")  # what a camera's numbers need besides the photons


def read_noise(
    task: Task, asked: float | str | Path | None, photons: float | None, camera: Mapping[str, float | None]
) -> tuple[float, Likelihood]:
    """Decide the noise level and the noise model.

    Args:
        task: whose values serve where nothing is asked for.
        asked: level, "auto", or the file of a map.
        photons: count at white.
        camera: numbers by the names in `CAMERA`; None where nothing is asked for.

    Returns:
        The typical standard deviation in units of the measurement (what counts photons scatters in mid-grey so), and
        the model.

    Raises:
        ValueError: they are out of range or do not go together.
    """
    told = {name: value for name, value in camera.items() if value is not None}
    photons = task.photons if photons is None else photons
    if photons is None:
        if told:
            flags = ", ".join(f"--{name}" for name in told)
            raise ValueError(f"{flags}: a camera counts photons; give --photons too, those expected at white")
        sigma_y = asked if isinstance(asked, float | int) else task.sigma_y
        check_sigma(sigma_y)
        return sigma_y, Gaussian()
    if asked not in (None, "auto", task.sigma_y):
        raise ValueError("give --sigma for Gaussian noise or --photons for Poisson noise, not both")
    if told:
        likelihood = PoissonGaussian(photons, **told)
        return float(jnp.sqrt(likelihood.gain**2 * photons / 2 + likelihood.read**2)), likelihood
    counted = Poisson(photons)  # refuses what is no number of photons
    return task.sigma_y if photons == task.photons else math.sqrt(2 / photons), counted


def check_estimable(measured: bool, makes: Any, likelihood: Likelihood) -> None:
    """Refuse to estimate a noise level where there is nothing to estimate it from.

    Args:
        measured: whether there are measurements.
        makes: class of the operator, None if it is not known yet.
        likelihood: the noise model.

    Raises:
        ValueError: there is nothing.
    """
    if not measured:
        raise ValueError("--sigma auto estimates the noise of a measurement: give --measured, or a number")
    if not isinstance(likelihood, Gaussian) or not (makes is None or measures_picture(makes)):
        able = [name for name, made in OPERATOR_TYPES.items() if measures_picture(made)]
        raise ValueError(
            f"--sigma auto needs a measurement that is a picture with Gaussian noise, as {', '.join(able)} make; "
            "give --sigma a number"
        )


def spelled_out(likelihood: Likelihood) -> dict[str, Any]:
    """Spell out a noise model in plain types."""
    name, numbers = "gaussian", ()
    if isinstance(likelihood, Poisson):
        name, numbers = "poisson", ("photons",)
    elif isinstance(likelihood, PoissonGaussian):
        name, numbers = "poisson_gaussian", ("photons", *CAMERA)
    return {"name": name, **{number: float(getattr(likelihood, number)) for number in numbers}}


def levels_of_entries(
    path: Path, levels: np.ndarray, shape: tuple[int, ...], operator: Operator, scale: float
) -> tuple[np.ndarray, float]:
    """Give every entry of a measurement its noise level.

    Args:
        path: where the levels come from, for messages.
        levels: broadcast to the measurement; axes that are missing at their end count as 1.
        shape: of the measurement.
        operator: says what is observed.
        scale: of the file's units in ours.

    Returns:
        The levels, in the shape of the measurement, and the root of their mean square where something is observed.

    Raises:
        ValueError: they are no such numbers.
    """
    levels = np.asarray(levels, np.float32) * np.float32(scale)
    levels = levels.reshape(*levels.shape, *(1,) * (len(shape) - levels.ndim)) if levels.ndim < len(shape) else levels
    try:
        levels = np.broadcast_to(levels, shape)
    except ValueError:
        raise ValueError(
            f"{path} holds noise levels of shape {levels.shape}, which do not broadcast to the measurement's {shape}"
        ) from None
    seen = observed_entries(operator, shape)
    seen = np.ones(shape, bool) if seen is None else np.asarray(seen)
    bad = int(np.sum(~(np.isfinite(levels[seen]) & (levels[seen] > 0))))
    if bad:
        raise ValueError(
            f"{path} must hold positive, finite standard deviations where something was observed; {bad} are not"
        )
    levels = np.where(seen, levels, 1.0).astype(np.float32)
    return levels, float(np.sqrt(np.mean(levels[seen].astype(np.float64) ** 2)))


def in_units_of_images(likelihood: Likelihood, y: np.ndarray) -> np.ndarray:
    """Show a measurement in the units of A(x): a camera's numbers are in others."""
    if not isinstance(likelihood, PoissonGaussian):
        return y
    return np.asarray(likelihood.as_gaussian(jnp.asarray(y))[0])
