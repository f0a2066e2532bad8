"""Files of instruments: written with the libraries of their fields, read as arrays; damaged ones end in one line."""

import gzip
import struct
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
from astropy.io import fits
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

from ddiff_jax import image_files, readers
from ddiff_jax.files import Unusable
from ddiff_jax.restoration.jobs import find_jobs

RNG = np.random.default_rng(0)
KSPACE = (RNG.normal(size=(3, 2, 6, 5)) + 1j * RNG.normal(size=(3, 2, 6, 5))).astype(np.complex64)
CUBE = RNG.normal(size=(3, 6, 5)).astype(np.float32)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(name):
    return image_files.read(Path(name), 1)[0]


def inputs(*names, folder="out"):
    return {job.stem: str(job.path) for job in find_jobs(names, Path(folder)).jobs}


def refused(name, message):
    with pytest.raises(Unusable, match=message) as caught:
        read(name)
    text = str(caught.value)
    assert "\n" not in text and str(readers.place_of(Path(name)).file) in text


def save_hdf5(name="scan.h5", **datasets):
    with h5py.File(name, "w") as file:
        for key, value in datasets.items():
            file[key.replace("__", "/")] = value


def save_dicom(name, frames, *, slope=1.0, intercept=-1024.0, syntax=ExplicitVRLittleEndian, **tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    data = FileDataset(name, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = CTImageStorage, meta.MediaStorageSOPInstanceUID, "CT"
    data.Rows, data.Columns = frames.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.RescaleSlope, data.RescaleIntercept = slope, intercept
    if frames.ndim == 3:
        data.NumberOfFrames = len(frames)
    data.PixelData = frames.astype("<u2").tobytes()
    for key, value in tags.items():
        setattr(data, key, value)
    data.save_as(name, enforce_file_format=True)


# HDF5


def test_kspace_of_many_slices_is_one_input_per_slice():
    save_hdf5(kspace=KSPACE, mask=np.ones(5), reconstruction_rss=CUBE)
    assert inputs("scan.h5") == {f"scan_00{k}": f"scan.h5[{k}]" for k in range(3)}
    for k in range(3):
        np.testing.assert_array_equal(read(f"scan.h5[{k}]"), KSPACE[k])
    np.testing.assert_array_equal(read("scan.h5[-1]"), KSPACE[2])
    np.testing.assert_array_equal(read("scan.h5:kspace[...]"), KSPACE)
    np.testing.assert_array_equal(read("scan.h5:reconstruction_rss"), CUBE)
    np.testing.assert_array_equal(read("scan.h5:reconstruction_rss[1]"), CUBE[1])
    assert list(inputs("scan.h5[1:]")) == ["scan_001", "scan_002"]
    assert inputs("scan.h5:reconstruction_rss[-1]") == {"scan_reconstruction_rss_002": "scan.h5:reconstruction_rss[2]"}
    with pytest.raises(Unusable, match="has no image 3: it holds 3, counted from 0"):
        inputs("scan.h5[3]")
    with pytest.raises(Unusable, match="names no image"):
        inputs("scan.h5[5:9]")
    refused("scan.h5", r"holds 3 images .* name one as scan.h5\[0\], or all as one array by \[...\]")
    refused("scan.h5[a]", "brackets hold the number of an image")
    refused("scan.h5:maps[0]", "has no maps; it holds kspace, mask, reconstruction_rss")


def test_single_coil_kspace_gets_an_axis_of_coils_and_other_files_their_only_array():
    save_hdf5("single.h5", kspace=KSPACE[:, 0])
    assert read("single.h5[1]").shape == (1, 6, 5)
    save_hdf5("deep.hdf5", group__inner__x=CUBE[0])
    np.testing.assert_array_equal(read("deep.hdf5"), CUBE[0])
    np.testing.assert_array_equal(read("deep.hdf5:group/inner/x[2]"), CUBE[0, 2])
    refused("deep.hdf5:group", "is a group; name one of group/inner/x")
    save_hdf5("two.h5", a=CUBE, b=CUBE)
    refused("two.h5", "must hold one array, or one called kspace, or name it PATH:NAME; it holds a, b")


def test_hdf5_reaches_into_no_other_file():
    save_hdf5("other.h5", x=CUBE)
    with h5py.File("links.h5", "w") as file:
        file["outer"] = h5py.ExternalLink("other.h5", "/x")
        file["soft"] = h5py.SoftLink("/inner")
        file["inner"] = CUBE
        layout = h5py.VirtualLayout(shape=CUBE.shape, dtype=CUBE.dtype)
        layout[:] = h5py.VirtualSource("other.h5", "x", shape=CUBE.shape)
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", (4,), "f4", external=[("raw.bin", 0, 16)])
        file["text"] = "words"
    refused("links.h5:outer", "outer is a link to somewhere else")
    refused("links.h5:soft", "soft is a link to somewhere else")
    refused("links.h5:virtual", "has its numbers in other files")
    refused("links.h5:raw", "has its numbers in other files")
    refused("links.h5:text", "holds object, and no numbers")
    assert read("links.h5:inner").shape == CUBE.shape


def test_hdf5_that_is_damaged_or_unfolds_too_far(monkeypatch):
    save_hdf5(kspace=KSPACE)
    whole = Path("scan.h5").read_bytes()
    Path("short.h5").write_bytes(whole[: len(whole) // 2])
    Path("text.h5").write_text("no such file")
    refused("short.h5", "cannot be read as HDF5")
    refused("text.h5", "cannot be read as HDF5")
    refused("missing.h5", "No such file")
    with h5py.File("bomb.h5", "w") as file:
        file.create_dataset("x", (2**20, 2**20), "f4", chunks=(1024, 1024), compression="gzip")
        file.create_dataset("chunk", (1, 2**27), "f4", chunks=(1, 2**27), compression="gzip")
    assert Path("bomb.h5").stat().st_size < 10**6
    refused("bomb.h5:x", "too large: an array of shape")
    refused("bomb.h5:chunk[0]", "in chunks of")
    assert inputs("short.h5", "missing.h5") == {"short": "short.h5", "missing": "missing.h5"}


# FITS


def test_fits_images_cubes_extensions_and_scales():
    fits.PrimaryHDU(CUBE[0]).writeto("image.fits")
    np.testing.assert_array_equal(read("image.fits"), CUBE[0])
    counts = RNG.integers(0, 60000, (4, 6, 5)).astype(np.uint16)  # unsigned ones are stored with BZERO
    unscaled = fits.ImageHDU(np.arange(30, dtype=np.int16).reshape(6, 5), name="SCI")
    unscaled.header["BSCALE"], unscaled.header["BZERO"] = 0.5, 10.0
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(counts, name="COUNTS"), unscaled]).writeto("cube.fits")
    assert list(inputs("cube.fits")) == [f"cube_00{k}" for k in range(4)]
    np.testing.assert_array_equal(read("cube.fits[2]"), counts[2].astype(np.float32))
    np.testing.assert_array_equal(read("cube.fits:1[...]"), counts.astype(np.float32))
    np.testing.assert_allclose(read("cube.fits:SCI"), 0.5 * np.arange(30).reshape(6, 5) + 10)
    refused("cube.fits:ERR", "has no image called ERR")
    table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.ones(3))], name="TAB")
    fits.HDUList([fits.PrimaryHDU(), table]).writeto("table.fits")
    refused("table.fits", "has no image")
    refused("table.fits:TAB", "is no image but a BinTableHDU")


def test_fits_that_is_damaged_or_packed(tmp_path):
    fits.PrimaryHDU(RNG.normal(size=(60, 60))).writeto("image.fits")
    whole = Path("image.fits").read_bytes()
    Path("short.fits").write_bytes(whole[:5760])
    refused("short.fits", "is truncated")
    Path("text.fits").write_text("words")
    refused("text.fits", "does not start with SIMPLE")
    Path("packed.fits").write_bytes(gzip.compress(whole))
    refused("packed.fits", "does not start with SIMPLE; unpack it")
    Path("header.fits").write_bytes(whole[:80] + b" " * 10**6)
    refused("header.fits", "its header has no end")
    huge = whole.replace(b"NAXIS1  =                   60", b"NAXIS1  =           6000000000")
    Path("huge.fits").write_bytes(huge)
    refused("huge.fits", "is truncated")


# DICOM


def test_dicom_in_hounsfield_units_and_by_frames():
    stored = RNG.integers(0, 4096, (6, 5))
    save_dicom("slice.dcm", stored, slope=2.0)
    array, notes = image_files.read(Path("slice.dcm"), 1)
    np.testing.assert_array_equal(array, 2 * stored - 1024)
    assert notes == ["scaled by slope 2 and intercept -1024, in HU"]
    frames = RNG.integers(0, 4096, (3, 6, 5))
    save_dicom("frames.dcm", frames)
    assert list(inputs("frames.dcm[0:2]")) == ["frames_000", "frames_001"]
    np.testing.assert_array_equal(read("frames.dcm[2]"), frames[2] - 1024)
    refused("frames.dcm", "holds 3 images")
    transformation = pydicom.Dataset()
    transformation.RescaleSlope, transformation.RescaleIntercept, transformation.RescaleType = 3.0, 1.0, "US"
    shared = pydicom.Dataset()
    shared.PixelValueTransformationSequence = [transformation]
    save_dicom("enhanced.dcm", frames, SharedFunctionalGroupsSequence=[shared])
    np.testing.assert_array_equal(read("enhanced.dcm[1]"), 3 * frames[1] + 1)


def test_dicom_that_is_damaged_or_holds_no_picture():
    save_dicom("slice.dcm", RNG.integers(0, 4096, (60, 50)))
    whole = Path("slice.dcm").read_bytes()
    Path("short.dcm").write_bytes(whole[:-3000])
    refused("short.dcm", "cannot be read as DICOM")
    Path("text.dcm").write_text("words")
    refused("text.dcm", "cannot be read as DICOM")
    save_dicom("huge.dcm", RNG.integers(0, 9, (6, 5)), Rows=65535, Columns=65535)
    refused("huge.dcm", "too large: an array of shape")
    save_dicom("deflated.dcm", RNG.integers(0, 9, (6, 5)), syntax=DeflatedExplicitVRLittleEndian)
    refused("deflated.dcm", "compressed as a whole")
    empty = pydicom.dcmread("slice.dcm")
    del empty.PixelData
    empty.save_as("empty.dcm")
    refused("empty.dcm", "holds no picture")


# NIfTI


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_slices_along_the_last_axis_and_scaled(ending):
    volume = RNG.integers(0, 1000, (6, 5, 4)).astype(np.int16)
    image = nibabel.Nifti1Image(volume, np.eye(4))
    image.header.set_slope_inter(0.5, -7)
    nibabel.save(image, f"brain{ending}")
    stored = np.asarray(nibabel.load(f"brain{ending}").dataobj)  # pyright: ignore[reportAttributeAccessIssue]
    assert inputs(f"brain{ending}").keys() == {f"brain_00{k}" for k in range(4)}
    np.testing.assert_allclose(read(f"brain{ending}[3]"), stored[..., 3])
    np.testing.assert_allclose(read(f"brain{ending}[...]"), stored)
    nibabel.save(nibabel.Nifti1Image(np.stack([volume, volume], -1), np.eye(4)), f"time{ending}")
    np.testing.assert_allclose(read(f"time{ending}[2,1]"), volume[..., 2])
    refused(f"time{ending}", r"holds 4 x 2 images .*\[0,0\]")
    assert inputs(f"time{ending}[2,1]") == {"time_2_1": f"time{ending}[2,1]"}


def test_nifti_that_is_damaged_or_unfolds_too_far():
    nibabel.save(nibabel.Nifti1Image(np.ones((60, 50, 4), np.float32), np.eye(4)), "brain.nii")
    whole = Path("brain.nii").read_bytes()
    Path("short.nii").write_bytes(whole[:-100])
    refused("short.nii", "is truncated")
    Path("text.nii").write_text("words")
    refused("text.nii", "cannot be read as NIfTI")
    header = bytearray(whole[:352])
    struct.pack_into("<4h", header, 40, 3, 32000, 32000, 32000)
    Path("huge.nii.gz").write_bytes(gzip.compress(bytes(header) + bytes(10**6)))
    refused("huge.nii.gz[0]", "too large: a compressed array")
    struct.pack_into("<h", header, 70, 128)  # colours
    Path("colours.nii").write_bytes(bytes(header) + bytes(1000))
    refused("colours.nii", "and no numbers")


# TIFF of floats, .npz


def test_tiff_of_floats_are_arrays_and_others_pictures():
    for x in (CUBE[0], CUBE.transpose(1, 2, 0), RNG.normal(size=(4, 3, 2)).astype(np.float32)):
        image_files.write_tiff(Path("x.tiff"), x)
        np.testing.assert_array_equal(read("x.tiff"), x)
        assert image_files.is_array(Path("x.tiff"))
    tifffile = pytest.importorskip("tifffile")
    image_files.write_tiff(Path("x.tiff"), CUBE.transpose(1, 2, 0))
    np.testing.assert_array_equal(tifffile.imread("x.tiff"), CUBE.transpose(1, 2, 0))
    for kind, order in (("f2", "<"), ("f4", ">"), ("f8", "<")):
        tifffile.imwrite("y.tif", CUBE[0].astype(kind), byteorder=order, photometric="minisblack")
        np.testing.assert_allclose(read("y.tif"), CUBE[0], rtol=1e-3 if kind == "f2" else 1e-7)
    tifffile.imwrite("wide.tif", (CUBE[0] * 100 + 500).astype(np.uint16), photometric="minisblack")
    assert not image_files.is_array(Path("wide.tif"))


def test_tiff_that_is_damaged():
    image_files.write_tiff(Path("x.tiff"), RNG.normal(size=(40, 30)).astype(np.float32))
    whole = bytearray(Path("x.tiff").read_bytes())
    (start,) = struct.unpack_from("<I", whole, 4)
    width = start + 2 + 8  # the value of the first entry
    struct.pack_into("<I", whole, width, 2**31)
    Path("huge.tiff").write_bytes(whole)
    refused("huge.tiff", "too large: an array of shape")
    struct.pack_into("<I", whole, width, 60)
    Path("wide.tiff").write_bytes(whole)
    refused("wide.tiff", "is truncated")
    Path("short.tiff").write_bytes(whole[: start + 20])
    refused("short.tiff", "not an image|truncated")


def test_arrays_of_npz_have_names():
    np.savez("many.npz", a=CUBE, b=KSPACE)
    np.testing.assert_array_equal(read("many.npz:a"), CUBE)
    np.testing.assert_array_equal(read("many.npz:b"), KSPACE)
    assert inputs("many.npz:a", "many.npz:b") == {"many_a": "many.npz:a", "many_b": "many.npz:b"}
    refused("many.npz:c", "has no array c; it holds a, b")
    refused("many.npz", "holds a, b; many.npz:NAME names another")
    refused("many.npz:a[0]", "holds one array without names")


def test_complex_and_flat_arrays_become_images():
    both, _ = image_files.as_image(KSPACE[0, 0], 2)
    np.testing.assert_array_equal(both, np.stack([KSPACE[0, 0].real, KSPACE[0, 0].imag], -1))
    np.testing.assert_array_equal(image_files.as_numbers(both), KSPACE[0, 0])
    np.testing.assert_allclose(image_files.as_picture(both)[..., 0], 2 * np.abs(KSPACE[0, 0]) - 1, rtol=1e-5)
    flat, notes = image_files.as_image(CUBE[0], 3)
    assert flat.shape == (6, 5, 3) and notes == ["grey replicated to all channels"]


# The doors


def test_names_that_files_have_are_names():
    np.save("x.npy", CUBE)
    Path("x.npy").rename("odd.h5[0]")
    assert readers.place_of(Path("odd.h5[0]")).file == Path("odd.h5[0]")
    assert readers.ending(Path("a/b.NII.gz")) == ".nii.gz"
    assert readers.place_of(Path("gone.h5:a/b[1:3]")) == readers.Place(Path("gone.h5"), "a/b", "1:3")


def test_a_folder_of_volumes(tmp_path):
    Path("in/deep").mkdir(parents=True)
    save_hdf5("in/scan.h5", kspace=KSPACE)
    fits.PrimaryHDU(CUBE).writeto("in/deep/cube.fits")
    found = find_jobs(["in"], Path("out"), recursive=True).jobs
    assert [job.stem for job in found] == sorted(
        [f"deep/cube_00{k}" for k in range(3)] + [f"scan_00{k}" for k in range(3)]
    )
    assert image_files.source_hash(found[0].path) == image_files.source_hash(found[1].path)
    before = image_files.source_hash(found[0].path)
    fits.PrimaryHDU(CUBE + 1).writeto("in/deep/cube.fits", overwrite=True)
    assert image_files.source_hash(found[0].path) != before


@pytest.mark.parametrize(("name", "package"), readers.PACKAGES.items())
def test_what_is_not_installed_is_named(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    ending = next(e for e, kind in readers.ENDINGS.items() if kind == name)
    Path(f"x{ending}").write_text("x")
    refused(f"x{ending}", rf"{package} reads such files; install it with: pip install 'ddiff-jax\[{name}\]'")
