"""Where a magnetic resonance scanner samples the spectrum: columns by rule, as published codes draw them, or spokes."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.types import ImageShape, PRNGKey

Pattern = Literal["random", "equispaced", "equispaced_fraction"]


def column_mask(
    width: int,
    key: PRNGKey,
    *,
    acceleration: float = 4.0,
    centre_fraction: float = 0.08,
    pattern: Pattern = "random",
) -> Float[Array, " W"]:
    """Choose the columns of a Cartesian scan: phase encoding along the width, the lowest frequencies always among them.

    | pattern | columns beside the centre | how many in all |
    |---|---|---|
    | `random` | any, without replacement | round(W / acceleration) |
    | `equispaced` | every acceleration-th, a whole number | about W / acceleration, and most of the centre on top |
    | `equispaced_fraction` | evenly spaced, as many fewer as the centre has | about W / acceleration |

    Args:
        width: W, the number of columns.
        key: draws the columns, or where evenly spaced ones begin; the same on every device.
        acceleration: see the table; at least 1.
        centre_fraction: round(W * centre_fraction) columns around zero frequency, at W // 2, are sampled.
        pattern: see the table.

    Returns:
        1 where a column is sampled, 0 where it is not.

    Raises:
        ValueError: acceleration is below 1, or no whole number where it must be, centre_fraction outside [0, 1], more
            columns in the centre than are sampled in all, none sampled, or no such pattern.

    Source: the mask functions of fastMRI (Zbontar et al. 2018): acceleration 4 with centre fraction 0.08, 8 with 0.04.
    Differs: its random pattern keeps each outer column with a fixed probability, so that only the expected number is
    given; its streams are NumPy's, see `released_fastmri_mask`.
    """
    num_centre = _check_rule(width, acceleration, centre_fraction, pattern)
    centre = np.zeros(width, bool)
    centre[_centre(width, num_centre)] = True
    if pattern == "random":
        outside = jax.random.permutation(key, np.flatnonzero(~centre))[: round(width / acceleration) - num_centre]
        return jnp.asarray(centre, jnp.float32).at[outside].set(1)
    num_offsets = round(_spacing(width, num_centre, acceleration, pattern))
    masks = [centre | _every(width, num_centre, acceleration, offset, pattern) for offset in range(num_offsets)]
    return jnp.asarray(np.array(masks), jnp.float32)[jax.random.randint(key, (), 0, num_offsets)]


def released_fastmri_mask(
    width: int,
    *,
    acceleration: int = 4,
    centre_fraction: float = 0.08,
    pattern: Pattern = "random",
    seed: int = 0,
    offset: int | None = None,
) -> Float[np.ndarray, " W"]:
    """Reproduce a mask of fastMRI, bit for bit.

    Args:
        width: W, the number of columns.
        acceleration: as there.
        centre_fraction: as there.
        pattern: random for its `RandomMaskFunc`, equispaced and equispaced_fraction for the two called so.
        seed: of NumPy's legacy generator; there it is made from the name of the file.
        offset: where evenly spaced columns begin; None draws it, as there.

    Returns:
        Mask of 0 and 1 for `mri`.

    Raises:
        ValueError: as in `column_mask`.

    Source: `fastmri/data/subsample.py` of fastMRI.
    """
    num_centre = _check_rule(width, acceleration, centre_fraction, pattern)
    generator = np.random.RandomState(seed)
    generator.randint(1)  # it chooses among pairs of acceleration and centre fraction first, here one
    if pattern == "random":
        probability = (width / acceleration - num_centre) / max(width - num_centre, 1)
        mask = generator.uniform(size=width) < probability
    else:
        num_offsets = round(_spacing(width, num_centre, acceleration, pattern))
        offset = int(generator.randint(0, num_offsets)) if offset is None else offset
        mask = _every(width, num_centre, acceleration, offset, pattern)
    mask[_centre(width, num_centre)] = True
    return mask.astype(np.float32)


def released_inversebench_mask(
    width: int = 320, *, acceleration: int = 4, pattern: Literal["random", "equispaced"] = "random", seed: int = 0
) -> Float[np.ndarray, " W"]:
    """Reproduce a mask of InverseBench's compressed-sensing MRI, bit for bit; its standard problem is the default.

    Args:
        width: W, the number of columns.
        acceleration: as there; the centre has 8% of the columns up to 6, and 4% above.
        pattern: as there.
        seed: of NumPy's legacy generator.

    Returns:
        Mask of 0 and 1 for `mri`.

    Raises:
        ValueError: acceleration is below 1, more columns in the centre than are sampled in all, or no such pattern.

    Source: `inverse_problems/multi_coil_mri.py` of InverseBench.
    """
    num_centre = math.floor(width * (0.08 if acceleration <= 6 else 0.04))
    _check_rule(width, acceleration, num_centre / width, pattern)
    mask = np.zeros(width, np.float32)
    mask[(width - num_centre) // 2 : (width + num_centre) // 2] = 1
    outer = np.flatnonzero(mask == 0)
    if pattern == "random":
        count = math.floor(width / acceleration) - num_centre
        mask[np.random.RandomState(seed).choice(outer, count, replace=False)] = 1
    else:
        mask[outer[::acceleration]] = 1
    return mask


def radial_trajectory(
    shape: ImageShape, *, num_spokes: int, num_samples: int | None = None
) -> Float[np.ndarray, "M 2"]:
    """List the samples of a radial scan: diameters through zero frequency, each turned by the golden angle.

    Args:
        shape: image shape; height and width count.
        num_spokes: diameters; pi / 2 times the longer side of the image would sample everything.
        num_samples: on each, evenly spaced, zero frequency among them; None takes the longer side.

    Returns:
        (k_y, k_x) of every sample, spoke by spoke, in cycles per field of view, for `noncartesian_mri`; from minus to
        plus half of the height and of the width.

    Raises:
        ValueError: num_spokes or num_samples is not a whole number above 0.

    Source: Winkelmann et al., "An optimal radial profile order based on the golden ratio for time-resolved MRI", IEEE
    TMI 2007. The angle is pi (3 - sqrt 5), of which whole diameters see the same as of the paper's 111.25 degrees.
    """
    height, width = shape[:2]
    num_samples = max(height, width) if num_samples is None else num_samples
    for name, count in (("num_spokes", num_spokes), ("num_samples", num_samples)):
        if int(count) != count or count < 1:
            raise ValueError(f"{name} must be a whole number above 0; got {count}")
    angle = np.arange(num_spokes)[:, None] * np.pi * (3 - math.sqrt(5))
    radius = (np.arange(num_samples) - num_samples // 2) / num_samples
    return np.stack([height * radius * np.sin(angle), width * radius * np.cos(angle)], -1).reshape(-1, 2)


def _centre(width: int, num_centre: int) -> slice:
    first = (width - num_centre + 1) // 2
    return slice(first, first + num_centre)


def _spacing(width: int, num_centre: int, acceleration: float | int, pattern: str) -> float | int:
    if pattern == "equispaced":
        return acceleration
    return acceleration * (num_centre - width) / (num_centre * acceleration - width)


def _every(width: int, num_centre: int, acceleration: float | int, offset: int, pattern: str) -> np.ndarray:
    """Sample evenly spaced columns from an offset on; those of `equispaced_fraction` spare the last column."""
    mask = np.zeros(width, bool)
    end = width if pattern == "equispaced" else width - 1
    mask[np.around(np.arange(offset, end, _spacing(width, num_centre, acceleration, pattern))).astype(int)] = True
    return mask


def _check_rule(width: int, acceleration: float | int, centre_fraction: float, pattern: str) -> int:
    """Return the number of columns in the centre, or refuse a rule that cannot be followed."""
    if pattern not in ("random", "equispaced", "equispaced_fraction"):
        raise ValueError(f"pattern must be random, equispaced or equispaced_fraction; got {pattern!r}")
    if not 1 <= acceleration < math.inf or not 0 <= centre_fraction <= 1:
        raise ValueError(
            f"acceleration must be at least 1 and centre_fraction in [0, 1]; got {acceleration} and {centre_fraction}"
        )
    if pattern == "equispaced" and round(acceleration) != acceleration:
        raise ValueError(
            f"equispaced columns are a whole number apart; got acceleration {acceleration}: round it, or take "
            "equispaced_fraction"
        )
    num_lines, num_centre = round(width / acceleration), round(width * centre_fraction)
    is_full = pattern == "equispaced_fraction" and num_centre * acceleration >= width > num_centre
    if not max(num_centre, 1) <= num_lines or is_full:
        raise ValueError(
            f"acceleration {acceleration} samples {num_lines} of {width} columns, centre_fraction {centre_fraction} "
            f"wants {num_centre} in the centre; lower one of the two"
        )
    return num_centre
