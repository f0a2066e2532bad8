"""Observations in .npz and UVFITS, written here as observatories write them."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest

from ddiff_jax.files import Unusable
from ddiff_jax.interferometer_files import Observation, read_observation, write_observation

pytestmark = pytest.mark.once

NAMES = ("ALMA", "APEX", "LMT")
PAIRS = np.array([(1, 2), (1, 3), (3, 2)] * 2)  # the last one runs the other way
JULIAN = 2457849.5 + np.repeat([3.25, 4.5], 3) / 24
SECONDS = np.random.RandomState(0).uniform(-0.02, 0.02, (2, 6))
RATE = 230e9


def uvfits(path, data, frequency_axis=("FREQ", RATE, 2e9), stokes=(-1, -1), numbers=(1, 2, 3), frequencies=None):
    """Write data [groups, IF, channel, polarisation, (re, im, weight)]."""
    from astropy.io import fits

    body = data[:, None, None].astype(np.float32)
    group = fits.GroupData(
        body,
        bitpix=-32,
        parnames=["UU---SIN", "VV---SIN", "WW---SIN", "BASELINE", "DATE", "DATE"],
        pardata=[
            *SECONDS.astype(np.float32),
            np.zeros(6, np.float32),
            (256 * np.asarray(numbers)[PAIRS[:, 0] - 1] + np.asarray(numbers)[PAIRS[:, 1] - 1]).astype(np.float32),
            np.full(6, 2457849.5, np.float32),
            (JULIAN - 2457849.5).astype(np.float32),
        ],
    )
    hdu = fits.GroupsHDU(group)
    axes = [("COMPLEX", 1, 1), ("STOKES", *stokes), frequency_axis, ("IF", 1, 1), ("RA", 187.7, 1), ("DEC", 12.4, 1)]
    for n, (kind, value, step) in enumerate(axes, 2):
        hdu.header[f"CTYPE{n}"], hdu.header[f"CRVAL{n}"] = kind, value
        hdu.header[f"CDELT{n}"], hdu.header[f"CRPIX{n}"] = step, 1
    hdu.header["OBJECT"] = "M87"
    columns = [
        fits.Column("ANNAME", "8A", array=np.array(NAMES)),
        fits.Column("NOSTA", "1J", array=np.asarray(numbers)),
    ]
    tables = [fits.BinTableHDU.from_columns(columns, name="AIPS AN")]
    if frequencies is not None:
        column = fits.Column("IF FREQ", f"{len(frequencies)}D", array=np.array([frequencies]))
        tables.append(fits.BinTableHDU.from_columns([column], name="AIPS FQ"))
    fits.HDUList([hdu, *tables]).writeto(path)


def read(path) -> Any:
    """Read what has visibilities: no field is None."""
    return read_observation(path)


def numbers(shape, seed=1):
    data = np.random.RandomState(seed).standard_normal((*shape, 3))
    data[..., 2] = np.random.RandomState(seed + 1).uniform(1, 9, shape)
    return data.astype(np.float32).astype(float)


def test_both_hands_become_the_total_intensity(tmp_path):
    data = numbers((6, 1, 1, 4))
    uvfits(tmp_path / "a.uvfits", data)
    got = read(tmp_path / "a.uvfits")
    right, left = data[:, 0, 0, 0], data[:, 0, 0, 1]
    np.testing.assert_allclose(got.vis, (right[:, 0] + left[:, 0] + 1j * (right[:, 1] + left[:, 1])) / 2)
    np.testing.assert_allclose(got.sigma, np.sqrt(1 / right[:, 2] + 1 / left[:, 2]) / 2)
    np.testing.assert_allclose(got.u, SECONDS[0] * RATE, rtol=1e-6)
    np.testing.assert_allclose(got.v, SECONDS[1] * RATE, rtol=1e-6)
    np.testing.assert_array_equal(got.t1, PAIRS[:, 0] - 1)
    np.testing.assert_array_equal(got.t2, PAIRS[:, 1] - 1)
    np.testing.assert_allclose(got.time, np.repeat([3.25, 4.5], 3), atol=1e-5)
    assert (got.stations, got.rf, got.source) == (NAMES, RATE, "M87")
    sets = got.closure_sets()
    np.testing.assert_array_equal(sets.triangles, [[0, 2, 1], [3, 5, 4]])
    np.testing.assert_array_equal(sets.conjugates, [[0, 1, 1], [0, 1, 1]])


def test_flagged_numbers_are_left_out_and_a_single_hand_stands_for_both(tmp_path):
    data = numbers((6, 1, 1, 2))
    data[0, ..., 2] = 0
    data[1, ..., 0, 2], data[2, ..., 1, 2] = -1, 0
    data[3, ..., 0, 0] = np.nan
    uvfits(tmp_path / "a.uvfits", data)
    got = read(tmp_path / "a.uvfits")
    assert len(got.vis) == 5
    for row, hand in ((1, 1), (2, 0), (3, 1)):
        re, im, weight = data[row, 0, 0, hand]
        np.testing.assert_allclose(got.vis[row - 1], re + 1j * im)
        np.testing.assert_allclose(got.sigma[row - 1], weight**-0.5)
    data[..., 2] = 0
    uvfits(tmp_path / "b.uvfits", data)
    with pytest.raises(Unusable, match=r"every visibility in .* is flagged"):
        read_observation(tmp_path / "b.uvfits")


def test_channels_and_intermediate_frequencies_have_baselines_of_their_own(tmp_path):
    data = numbers((6, 2, 3, 1))
    uvfits(tmp_path / "a.uvfits", data, stokes=(1, 1), numbers=(4, 7, 9), frequencies=(0.0, 5e9))
    got = read(tmp_path / "a.uvfits")
    rates = (RATE + np.array([[0.0], [5e9]]) + 2e9 * np.arange(3)).reshape(-1)
    np.testing.assert_allclose(got.u, (SECONDS[0][:, None] * rates).reshape(-1), rtol=1e-6)
    np.testing.assert_allclose(got.rf, np.tile(rates, 6))
    np.testing.assert_allclose(got.vis, (data[..., 0] + 1j * data[..., 1]).reshape(-1))
    np.testing.assert_array_equal(got.t2, np.repeat(PAIRS[:, 1] - 1, 6))
    sets = got.closure_sets()  # 2 times, 6 frequencies
    assert len(sets.triangles) == 12
    assert all(len({got.rf[row] for row in triangle}) == 1 for triangle in sets.triangles)


def small(**changes):
    given = {
        "u": np.arange(3.0),
        "v": np.arange(3.0),
        "sigma": np.ones(3),
        "time": np.zeros(3),
        "t1": np.array([0, 0, 1]),
        "t2": np.array([1, 2, 2]),
        "stations": NAMES,
        **changes,
    }
    return Observation(**given)


@pytest.mark.parametrize(
    "observation", [small(), small(vis=np.arange(3) + 1j, rf=RATE, source="Sgr A*")], ids=["plan", "data"]
)
def test_an_observation_comes_back_from_its_file(observation, tmp_path):
    write_observation(tmp_path / "a.npz", observation)
    got = read(tmp_path / "a.npz")
    for field in dataclasses.fields(Observation):
        np.testing.assert_array_equal(getattr(got, field.name), getattr(observation, field.name), field.name)


def test_golden_files_are_of_this_form(golden):
    got = read(golden("vlbi_16.npz"))
    with np.load(golden("vlbi_16.npz")) as file:
        for mine, theirs in zip(got.closure_sets(), ("cp_index", "cp_conj", "ca_index"), strict=True):
            np.testing.assert_array_equal(mine, file[theirs])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": np.arange(2.0)}, "one number per visibility"),
        ({"u": np.array([0, 1, np.nan])}, "u must be finite"),
        ({"sigma": np.zeros(3)}, "must be positive"),
        ({"t2": np.array([1, 2, 3])}, "t2 must number the 3 stations"),
        ({"rf": np.zeros(2)}, "rf must be one frequency"),
    ],
)
def test_impossible_observations_are_refused(changes, message, unchecked):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def archive(**arrays):
    memory = io.BytesIO()
    np.savez(memory, **arrays)
    return memory.getvalue()


GIVEN = {f.name: np.asarray(getattr(small(), f.name)) for f in dataclasses.fields(Observation)[:7]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither an .npz archive nor a FITS file"),
        (b"SIMPLE  =", "cannot be read as UVFITS"),
        (archive(u=np.ones(3)), "lacks v, sigma, time, t1, t2, stations"),
        (archive(**GIVEN)[:-40], "cannot be read as an archive"),
        (archive(**{**GIVEN, "u": np.array(["a"])}), "holds no numbers"),
        (archive(**{**GIVEN, "v": np.full(3, 1j)}), "v must hold real numbers"),
        (archive(**{**GIVEN, "sigma": np.zeros(3)}), "a.file: sigma, the noise of the visibilities, must be positive"),
        (archive(**{**GIVEN, "t1": np.array([0.0, 0.0, 1.0])}), "t1 must number"),
    ],
)
def test_files_that_are_none_say_why(content, message, tmp_path, unchecked):
    path = tmp_path / "a.file"
    path.write_bytes(content)
    with pytest.raises(Unusable, match=message):
        read_observation(path)


def test_fits_files_that_are_no_visibilities_say_why(tmp_path):
    from astropy.io import fits

    fits.PrimaryHDU(np.zeros((2, 3), np.float32)).writeto(tmp_path / "image.fits")
    with pytest.raises(Unusable, match="no UVFITS"):
        read_observation(tmp_path / "image.fits")
    uvfits(tmp_path / "cross.uvfits", numbers((6, 1, 1, 2)), stokes=(-3, -1))
    with pytest.raises(Unusable, match="it holds RL, LR"):
        read_observation(tmp_path / "cross.uvfits")
    uvfits(tmp_path / "velocity.uvfits", numbers((6, 1, 1, 2)), frequency_axis=("VELO", 1.0, 1.0))
    with pytest.raises(Unusable, match="it has DEC, RA, IF, VELO, STOKES, COMPLEX"):
        read_observation(tmp_path / "velocity.uvfits")
    uvfits(tmp_path / "ifs.uvfits", numbers((6, 2, 1, 2)))
    with pytest.raises(Unusable, match="no table of them, AIPS FQ"):
        read_observation(tmp_path / "ifs.uvfits")
