"""The noise schedule of a checkpoint: as a flag says, as buffers in the file say, as published, or assumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np

from convert_weights.published import Settings
from ddiff_jax.card import build_schedule
from ddiff_jax.image_files import load_array
from ddiff_jax.limits import LARGEST
from ddiff_jax.names import nearest
from ddiff_jax.schedule import VPSchedule

TABLES = ("alphas_cumprod", "betas", "u")  # u: ratios of noise to signal, noisiest first and last 0
BUFFERS = frozenset(
    (
        "alphas alphas_cumprod alphas_cumprod_next alphas_cumprod_prev betas decay initted "
        "log_one_minus_alphas_cumprod logvar loss_weight lvlb_weights num_updates p2_loss_weight "
        "posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 posterior_variance snr "
        "sqrt_alphas_cumprod sqrt_alphas_cumprod_prev sqrt_one_minus_alphas_cumprod sqrt_recip_alphas "
        "sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod step u"
    ).split()
)
"""Last parts of the names of tensors that training codes keep beside a network, none of which is a weight."""

LINEAR = (1e-4, 0.02)
LATENT = (0.00085, 0.012)  # of latent diffusion
CLOSE = 1e-4  # relative, of signal and of noise; what float32 buffers and their float32 products leave


def is_buffer(name: str) -> bool:
    """Tell whether a name is that of a known buffer."""
    return name.rpartition(".")[2] in BUFFERS


def read_table(buffers: Mapping[str, np.ndarray], prefix: str) -> tuple[str, np.ndarray] | None:
    """Find the table of noise levels among a file's buffers: alpha_bar, or what makes it.

    Args:
        buffers: array by full name.
        prefix: of the network's names; where there are several tables, the nearest counts.

    Returns:
        The buffer's name, and alpha_bar in the buffer's own precision; None if there is no table.

    Raises:
        ValueError: the nearest tables contradict each other.
    """
    tables = {
        name: a
        for name, a in buffers.items()
        if name.rpartition(".")[2] in TABLES and a.ndim == 1 and 1 < a.size <= LARGEST
    }
    if not tables:
        return None
    distance = {name: _shared(name, prefix) for name in tables}
    near = [name for name in tables if distance[name] == max(distance.values())]
    near.sort(key=lambda name: TABLES.index(name.rpartition(".")[2]))
    (first, *rest), levels = near, {name: _alpha_bar(name, tables[name]) for name in near}
    for name in rest:
        if not _close(levels[name], levels[first]):
            raise ValueError(f"the buffers {first} and {name} state different noise schedules")
    return first, levels[first]


def _shared(name: str, prefix: str) -> int:
    """Count the words that a name and a prefix begin with in common."""
    pairs = zip(name.split("."), prefix.split("."), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(name.count("."), prefix.count(".")))


def _alpha_bar(name: str, table: np.ndarray) -> np.ndarray:
    if name.rpartition(".")[2] == "betas":
        return np.cumprod(1 - table.astype(np.float64)).astype(table.dtype if table.itemsize < 4 else np.float64)
    if name.rpartition(".")[2] == "u":
        # Kept in its own precision: each of its numbers was computed from the next, and roundings add up.
        return (1 / (1 + table[-2::-1].astype(np.float64) ** 2)).astype(table.dtype)
    return table


def _close(got: np.ndarray, want: np.ndarray) -> bool:
    if got.shape != want.shape:
        return False
    precisions = [ml_dtypes.finfo(table.dtype) for table in (got, want)]
    rounding = max(float(precision.eps) for precision in precisions)
    least = max(float(precision.smallest_subnormal) for precision in precisions)
    a, b = got.astype(np.float64), want.astype(np.float64)
    return bool(np.all(np.abs(a - b) <= CLOSE * np.minimum(b, 1 - b) + 8 * rounding * b + least))


def recognise(table: np.ndarray) -> dict[str, Any]:
    """Name the schedule that a table is, or list its levels.

    Raises:
        ValueError: it is no decreasing table in (0, 1), or one of half precision that has no name.
    """
    count, exact = table.size, table.dtype.itemsize >= 4
    listed = {"name": "table", "alpha_bar": [float(level) for level in table]}
    guesses = [linear(count), linear(count, LINEAR), {"name": "cosine", "num_timesteps": count}]
    guesses += [linear(count, ends, "scaled_linear") for ends in (LINEAR, LATENT)]
    if exact:
        build_schedule(listed)
        # Four digits are what a float32 table keeps of its first beta.
        ends = (float(f"{beta:.4g}") for beta in (1 - table[0], 1 - table[-1] / table[-2]))
        start, end = ends
        guesses += [linear(count, (start, end), name) for name in ("linear", "scaled_linear") if 0 < start <= end < 1]
    for guess in guesses:
        if _close(table, table_of(guess)):
            return guess
    if not exact:
        raise ValueError(f"its numbers in {table.dtype} are too coarse for a schedule without a name")
    return listed


def linear(count: int, ends: tuple[float, float] | None = None, name: str = "linear") -> dict[str, Any]:
    """Write a linear schedule down for a card; without ends OpenAI's, which shrink as the timesteps become more."""
    start, end = ends or (0.1 / max(count, 1), 20 / max(count, 1))
    return {"name": name, "num_timesteps": count, "beta_start": start, "beta_end": end}


def table_of(values: Mapping[str, Any]) -> np.ndarray:
    """Compute alpha_bar of a card's schedule that has such a table."""
    return np.asarray(cast(VPSchedule, build_schedule(values)).alpha_bar)


def choose(
    found: tuple[str, np.ndarray] | None,
    known: Settings | None,
    *,
    noise_schedule: str | None = None,
    num_timesteps: int | None = None,
    beta_range: tuple[float, float] | None = None,
) -> tuple[dict[str, Any], str | None]:
    """Choose the schedule of a prior: as the flags say, else as the file's buffer, else as published, else linear.

    Args:
        found: name and numbers of the buffer in the file, if there is one.
        known: settings of the published network that has the file's shapes.
        noise_schedule: name, or path of an `.npy` file of alpha_bar (falling) or of beta.
        num_timesteps: how many levels.
        beta_range: first and last beta.

    Returns:
        The schedule for the card, and a sentence on where it comes from; None if a flag says it all.

    Raises:
        ValueError: the flags do not make a schedule, or contradict the buffer.
    """
    from_buffer = None
    if found is not None:
        try:
            from_buffer = recognise(found[1])
        except ValueError as error:
            if noise_schedule is None:
                raise ValueError(
                    f"the buffer {found[0]} in the file is no noise schedule that can be used ({error}); give the "
                    "right one as --noise-schedule"
                ) from error
    if noise_schedule is None and num_timesteps is None and beta_range is None:
        if from_buffer is not None and found is not None:
            return from_buffer, f"noise schedule read from {found[0]} in the file: {in_words(from_buffer)}"
        if known is not None:
            return _named(known.noise_schedule, known.num_timesteps, None), None
        assumed = linear(1000)
        return assumed, (
            f"noise schedule assumed to be {in_words(assumed)} as in most published networks; --noise-schedule, "
            "--num-timesteps and --beta-range change it"
        )
    name = noise_schedule or (from_buffer or {}).get("name") or (known.noise_schedule if known else "linear")
    count = found[1].size if found is not None else known.num_timesteps if known is not None else 1000
    count = count if num_timesteps is None else num_timesteps
    made = _read(name, num_timesteps, beta_range) if name.endswith(".npy") else _named(name, count, beta_range)
    if from_buffer is not None and found is not None and not _close(found[1], table_of(made)):
        raise ValueError(
            f"the buffer {found[0]} in the file is {in_words(from_buffer)}; --noise-schedule, --num-timesteps and "
            f"--beta-range say {in_words(made)}: leave them out"
        )
    return made, None if noise_schedule else f"noise schedule: {in_words(made)}, of which a flag says a part"


def _named(name: str, count: int, ends: tuple[float, float] | None) -> dict[str, Any]:
    names = ["linear", "cosine", "scaled_linear"]
    if name not in names:
        raise ValueError(f"unknown noise schedule {name!r}; {nearest(name, names)}, or the path of an .npy file")
    if name == "cosine":
        if ends is not None:
            raise ValueError("a cosine schedule has no --beta-range; leave it out")
        made: dict[str, Any] = {"name": name, "num_timesteps": count}
    else:
        made = linear(count, ends or (None if name == "linear" else LINEAR), name)
    build_schedule(made)
    return made


def _read(path: str, count: int | None, ends: tuple[float, float] | None) -> dict[str, Any]:
    table = load_array(Path(path))
    if table.size > LARGEST:
        raise ValueError(f"{path} holds {table.size} numbers; a noise schedule has up to {LARGEST} levels")
    if table.ndim != 1 or table.size < 2 or table.dtype.kind != "f":
        raise ValueError(
            f"{path} must hold one row of real numbers, alpha_bar or beta; got {table.dtype} {table.shape}"
        )
    if ends is not None or count not in (None, table.size):
        raise ValueError(f"{path} holds {table.size} levels already; leave out --num-timesteps and --beta-range")
    falls = table[-1] < table[0]
    return recognise(table if falls else np.cumprod(1 - table.astype(np.float64)))


def in_words(values: Mapping[str, Any]) -> str:
    """Say in words what a card's schedule is."""
    if values["name"] == "table":
        return f"a table of {len(values['alpha_bar'])} levels"
    ends = f", beta {values['beta_start']:g} to {values['beta_end']:g}," if "beta_start" in values else ""
    return f"{values['name'].replace('_', ' ')}{ends} in {values['num_timesteps']} timesteps"
