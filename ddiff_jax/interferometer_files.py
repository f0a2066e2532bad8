"""Observations of radio interferometers: .npz files of arrays, and UVFITS as observatories publish it.

FITS files are read by astropy (`pip install 'ddiff-jax[fits]'`); nothing else of it is needed.
"""

import dataclasses
import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Complex, Float, Int, Shaped

from ddiff_jax.atomic import replacing
from ddiff_jax.containers import check_npy, zip_archive
from ddiff_jax.files import Unusable, decoding, opened
from ddiff_jax.limits import check_unfolded
from ddiff_jax.operators import ClosureSets, minimal_closures

NEEDED = ("u", "v", "sigma", "time", "t1", "t2", "stations")
OPTIONAL = ("vis", "rf", "source")
# Pairs of polarisations whose mean is the total intensity, by their number in FITS, and that intensity itself.
INTENSITIES = ((1,), (-1, -2), (-5, -6))
NAMES = {1: "I", -1: "RR", -2: "LL", -3: "RL", -4: "LR", -5: "XX", -6: "YY", -7: "XY", -8: "YX"}
MANY = 65536  # baselines of more than 255 antennas are numbered 2048 a1 + a2 + 65536, others 256 a1 + a2
HOURS = 24.0


@dataclasses.dataclass(frozen=True)
class Observation:
    """What an interferometer measured, or where it would.

    Args:
        u: eastward baselines in wavelengths.
        v: northward baselines.
        sigma: noise of the real and of the imaginary part of every visibility, in Jansky.
        time: in hours since the beginning of the first day.
        t1: number of the first station in `stations`.
        t2: of the second one.
        stations: their names.
        vis: the visibilities in Jansky; None where there are none yet.
        rf: observing frequency in Hertz, one number or one per visibility; None if not known.
        source: what was looked at.

    Raises:
        ValueError: the arrays are not of one length, hold numbers that are not finite, noise that is not positive, or
            numbers of stations that there are not.
    """

    u: Float[np.ndarray, " M"]
    v: Float[np.ndarray, " M"]
    sigma: Float[np.ndarray, " M"]
    time: Float[np.ndarray, " M"]
    t1: Int[np.ndarray, " M"]
    t2: Int[np.ndarray, " M"]
    stations: tuple[str, ...]
    vis: Complex[np.ndarray, " M"] | None = None
    rf: float | Float[np.ndarray, " M"] | None = None
    source: str = ""

    def __post_init__(self):
        rows = {name: getattr(self, name) for name in ("u", "v", "sigma", "time", "t1", "t2", "vis")}
        rows = {name: values for name, values in rows.items() if values is not None}
        shapes = {name: np.shape(values) for name, values in rows.items()}
        if len({*shapes.values()}) != 1 or len(shapes["u"]) != 1 or shapes["u"] == (0,):
            raise ValueError(f"an observation needs one number per visibility in every array; got shapes {shapes}")
        for name, values in rows.items():
            if not np.all(np.isfinite(values)):
                raise ValueError(f"{name} must be finite; leave flagged visibilities out")
        if not np.all(self.sigma > 0):
            raise ValueError("sigma, the noise of the visibilities, must be positive; leave flagged ones out")
        for name in ("t1", "t2"):
            found = getattr(self, name)
            if found.dtype.kind not in "iu" or np.any((found < 0) | (found >= len(self.stations))):
                raise ValueError(f"{name} must number the {len(self.stations)} stations from 0 on")
        if self.rf is not None and np.shape(self.rf) not in ((), shapes["u"]):
            raise ValueError(f"rf must be one frequency or one per visibility; got shape {np.shape(self.rf)}")

    def closure_sets(self) -> ClosureSets:
        """List a minimal set of closures, of visibilities of one time and one frequency.

        Raises:
            ValueError: a baseline occurs twice at one time and frequency.
        """
        frequency = np.broadcast_to(0.0 if self.rf is None else self.rf, self.u.shape)
        _, scan = np.unique(np.stack([self.time, frequency]), axis=1, return_inverse=True)
        return minimal_closures(self.t1, self.t2, scan.reshape(-1), len(self.stations))


def read_observation(path: str | Path) -> Observation:
    """Read a file of visibilities.

    Args:
        path: .npz with the arrays of `Observation` under their names, or UVFITS.

    Raises:
        Unusable: it cannot be read, is neither, or holds what cannot be used; the message says what.
        ImportError: UVFITS without astropy.
    """
    path = Path(path)
    with opened(path) as file:
        start = file.read(6)
    if start.startswith(b"PK\3\4"):
        return _read_npz(path)
    if start == b"SIMPLE":
        return _read_uvfits(path)
    raise Unusable(f"{path} is neither an .npz archive nor a FITS file; give UVFITS, or arrays saved by numpy.savez")


def write_observation(path: str | Path, observation: Observation) -> None:
    """Write an observation as .npz, whole or not at all."""
    given = {f.name: getattr(observation, f.name) for f in dataclasses.fields(observation)}
    memory = io.BytesIO()
    arrays = {name: np.asarray(value) for name, value in given.items() if value is not None}
    np.savez_compressed(memory, **arrays)  # pyright: ignore[reportArgumentType] - its flag is not among the names
    with replacing(Path(path)) as file:
        file.write(memory.getbuffer())


def _made(path: Path, **arrays: Any) -> Observation:
    try:
        return Observation(**arrays)
    except ValueError as error:
        raise Unusable(f"{path}: {error}") from error


def _read_npz(path: Path) -> Observation:
    with opened(path) as file, decoding(path, "cannot be read as an archive of arrays"):
        with zip_archive(file, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)) as archive:
            held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            lacking = [name for name in NEEDED if name not in held]
            if lacking:
                raise Unusable(f"{path} must hold the arrays {', '.join(NEEDED)}; it lacks {', '.join(lacking)}")
            found, size = {}, 0
            for name in (*NEEDED, *(n for n in OPTIONAL if n in held)):
                with archive.open(held[name]) as stream:
                    kinds = "U" if name in ("stations", "source") else "biufc"
                    shape, dtype = check_npy(stream, held[name].file_size, kinds)
                    size += math.prod(shape) * dtype.itemsize
                    check_unfolded(path, size, "what it holds")
                    stream.seek(0)
                    found[name] = np.lib.format.read_array(stream, allow_pickle=False)
                    stream.read(1)  # compares the checksum
    arrays: dict[str, Any] = {name: _floats(path, name, found[name]) for name in ("u", "v", "sigma", "time")}
    arrays |= {name: found[name] for name in ("t1", "t2")}
    if "vis" in found:
        arrays["vis"] = found["vis"].astype(np.complex128)
    if "rf" in found:
        rf = _floats(path, "rf", found["rf"])
        arrays["rf"] = float(rf) if rf.ndim == 0 else rf
    source = str(found["source"].reshape(-1)[0]) if "source" in found and found["source"].size else ""
    return _made(path, **arrays, stations=tuple(map(str, found["stations"].reshape(-1))), source=source)


def _floats(path: Path, name: str, values: np.ndarray) -> Shaped[np.ndarray, "..."]:
    if values.dtype.kind == "c":
        raise Unusable(f"{path}: {name} must hold real numbers; it holds {values.dtype}")
    return values.astype(np.float64)


def _read_uvfits(path: Path) -> Observation:
    """Read the total intensity of every visibility that was not flagged.

    Where both polarisations of a pair were measured, I is their mean. Where one is flagged the other stands for it,
    since most sources are hardly polarised in that basis. Channels and intermediate frequencies become visibilities of
    their own, at their own baselines in wavelengths.
    """
    try:
        from astropy.io import fits
    except ImportError as error:
        raise ImportError("UVFITS is read by astropy; install it with: pip install 'ddiff-jax[fits]'") from error
    with opened(path) as file, decoding(path, "cannot be read as UVFITS"):
        with fits.open(file, memmap=False, ignore_missing_simple=False) as content:
            primary: Any = content[0]
            head = primary.header
            if not head.get("GROUPS"):
                raise Unusable(f"{path} is a FITS file without random groups, so no UVFITS")
            axes = [int(head[f"NAXIS{n}"]) for n in range(2, int(head["NAXIS"]) + 1)]
            numbers = int(head["GCOUNT"]) * (int(head["PCOUNT"]) + math.prod(axes))
            check_unfolded(path, numbers * (8 + abs(int(head["BITPIX"])) // 8), f"{head['GCOUNT']} groups of data")
            return _made(path, **_groups(path, content))


def _groups(path: Path, content: Any) -> dict[str, Any]:
    head, groups = content[0].header, content[0].data
    parameters = [name.upper() for name in groups.parnames]
    u_name, v_name = (next((p for p in parameters if p.split("-")[0].rstrip() == n), "") for n in ("UU", "VV"))
    missing = [n for n, p in (("UU", u_name), ("VV", v_name)) if not p]
    missing += [n for n in ("BASELINE", "DATE") if n not in parameters]
    if missing:
        raise Unusable(f"{path} lacks the group parameters {', '.join(missing)}; it has {', '.join(parameters)}")

    tables = {table.name: table for table in content[1:]}
    if "AIPS AN" not in tables:
        raise Unusable(f"{path} has no table of antennas, AIPS AN")
    antennas = tables["AIPS AN"].data
    numbers = np.asarray(antennas["NOSTA"] if "NOSTA" in antennas.names else np.arange(len(antennas)) + 1)
    places = {int(number): place for place, number in enumerate(numbers)}

    data = np.asarray(groups.data, np.float64)  # [groups, .., re im weight], the last axis of FITS first
    # FITS counts axes the other way round, the first one, of length 0, included.
    kinds = [str(head.get(f"CTYPE{n}", "")).split("-")[0].strip() for n in range(data.ndim, 1, -1)]
    order = [kinds.index(kind) + 1 for kind in ("IF", "FREQ", "STOKES", "COMPLEX") if kind in kinds]
    others = [axis for axis in range(1, data.ndim) if axis not in order]
    absent = {"FREQ", "STOKES", "COMPLEX"} - {*kinds}
    if absent or any(data.shape[axis] != 1 for axis in others):
        raise Unusable(f"{path} must have the axes COMPLEX, STOKES and FREQ, and one field; it has {', '.join(kinds)}")
    data = np.transpose(data, (0, *others, *order))
    data = data.reshape(len(data), -1, *data.shape[-3:])  # [groups, IF, channel, polarisation, part]
    if data.shape[-1] < 3:
        raise Unusable(f"{path} holds no weights: of the noise nothing is known")

    def axis_values(kind: str) -> np.ndarray:
        n = len(kinds) + 1 - kinds.index(kind)
        steps = np.arange(1, int(head[f"NAXIS{n}"]) + 1) - float(head.get(f"CRPIX{n}", 1))
        return float(head[f"CRVAL{n}"]) + float(head.get(f"CDELT{n}", 1)) * steps

    frequency = np.zeros((data.shape[1], 1)) + axis_values("FREQ")
    if data.shape[1] > 1:
        if "AIPS FQ" not in tables:
            raise Unusable(f"{path} has several intermediate frequencies and no table of them, AIPS FQ")
        frequency = frequency + np.asarray(tables["AIPS FQ"].data["IF FREQ"], np.float64).reshape(-1)[:, None]

    vis, sigma = _intensity(path, data, np.round(axis_values("STOKES")).astype(int))
    kept = np.isfinite(sigma)
    if not kept.any():
        raise Unusable(f"every visibility in {path} is flagged: no weight is positive")
    row = np.nonzero(kept)[0]

    code = np.floor(np.asarray(groups.par("BASELINE"), np.float64)).astype(np.int64)  # the fraction is the subarray
    first = np.where(code < MANY, code // 256, (code - MANY) // 2048)
    second = np.where(code < MANY, code % 256, (code - MANY) % 2048)
    unknown = {*first.tolist(), *second.tolist()} - places.keys()
    if unknown:
        raise Unusable(f"{path} has baselines of antennas that its table lacks: {sorted(unknown)[:5]}")
    pairs = [np.asarray([places[n] for n in numbers.tolist()], np.int64)[row] for numbers in (first, second)]
    date = np.asarray(groups.par("DATE"), np.float64)  # Julian; astropy adds up the two parameters of this name
    midnight = np.floor(date.min() - 0.5) + 0.5
    every = np.broadcast_to(frequency, kept.shape)[kept]
    return {
        "u": np.asarray(groups.par(u_name), np.float64)[row] * every,
        "v": np.asarray(groups.par(v_name), np.float64)[row] * every,
        "sigma": sigma[kept],
        "time": (date[row] - midnight) * HOURS,
        "t1": pairs[0],
        "t2": pairs[1],
        "stations": tuple(str(name).strip() for name in antennas["ANNAME"]),
        "vis": vis[kept],
        "rf": float(frequency.flat[0]) if frequency.size == 1 else every,
        "source": str(head.get("OBJECT", "")).strip(),
    }


def _intensity(path: Path, data: np.ndarray, stokes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Form the total intensity and its noise, infinite where nothing is left of it.

    Args:
        path: for messages.
        data: [.., polarisations, re im weight].
        stokes: the number of every polarisation.
    """
    wanted = next((pair for pair in INTENSITIES if {*pair} <= {*stokes.tolist()}), None)
    if wanted is None:
        held = ", ".join(NAMES.get(n, str(n)) for n in stokes.tolist())
        raise Unusable(f"{path} must hold I, or RR and LL, or XX and YY; it holds {held}")
    parts = data[..., [stokes.tolist().index(n) for n in wanted], :]
    seen = (parts[..., 2] > 0) & np.isfinite(parts).all(-1)
    values = np.where(seen, parts[..., 0] + 1j * parts[..., 1], 0)
    power = np.where(seen, 1 / np.where(seen, parts[..., 2], 1), 0)  # sigma^2 of every polarisation
    count = seen.sum(-1)
    present = np.maximum(count, 1)
    sigma = np.where(count > 0, np.sqrt(power.sum(-1)) / present, np.inf)
    return values.sum(-1) / present, sigma
