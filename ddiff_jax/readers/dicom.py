"""DICOM: the frames of a file, with slope and intercept applied, so that CT is in Hounsfield units."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddiff_jax.files import Notes, Unusable, decoding, opened
from ddiff_jax.readers.places import Place
from ddiff_jax.readers.volumes import check_size, index_of

DEFLATED = "1.2.840.10008.1.2.1.99"  # the whole file is compressed, and may unfold to anything
INVERTED = "MONOCHROME1"


def count(place: Place) -> int | None:
    """Count the frames; None if there is one."""
    with _dataset(place) as dataset:
        return frames if (frames := _frames(dataset)) > 1 else None


def load(place: Place, share: int = 1) -> tuple[np.ndarray, Notes]:
    """Load a frame in the units of its modality; colours in levels of 0 to 255 as they are stored."""
    from pydicom.pixels.utils import pixel_array

    with _dataset(place) as dataset:
        samples = int(dataset.get("SamplesPerPixel", 1))
        index = index_of(place, (_frames(dataset),), "frames")
        if index is None:
            raise Unusable(f"{place.file}: frames are read one by one; name one as {place.file}[0]")
        shape = (int(dataset.Rows), int(dataset.Columns), samples)
        # Some decoders unfold all frames to give one.
        check_size(place, (*shape, _frames(dataset)), max(1, int(dataset.BitsAllocated) // 8), share)
        array = np.asarray(pixel_array(dataset, index=index[0])).astype(np.float64)
        slope, intercept, units = _scale(dataset, index[0])
        notes: Notes = []
        if (slope, intercept) != (1, 0):
            notes.append(f"scaled by slope {slope:g} and intercept {intercept:g}{f', in {units}' * bool(units)}")
        if dataset.get("PhotometricInterpretation") == INVERTED:
            notes.append("small numbers are white in it (MONOCHROME1); they are kept as they are")
        return (array * slope + intercept).astype(np.float32), notes


def _frames(dataset: Any) -> int:
    return max(1, int(dataset.get("NumberOfFrames", 1) or 1))


def _scale(dataset: Any, frame: int) -> tuple[float, float, str]:
    """Find slope, intercept and unit: in the file, or in the groups of an enhanced one, the frame's own first."""
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    places = [groups[frame]] if frame < len(groups) else []
    places += list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    found = [inner[0] for group in places if (inner := group.get("PixelValueTransformationSequence"))]
    for each in (*found, dataset):
        if "RescaleSlope" in each:
            units = str(each.get("RescaleType", "") or ("HU" if dataset.get("Modality") == "CT" else ""))
            return float(each.RescaleSlope), float(each.get("RescaleIntercept", 0)), units
    return 1.0, 0.0, ""


@contextlib.contextmanager
def _dataset(place: Place) -> Iterator[Any]:
    import pydicom
    from pydicom.filereader import read_file_meta_info

    with opened(place.file) as file, decoding(place.file, "cannot be read as DICOM"):
        meta = read_file_meta_info(place.file)
        if str(meta.get("TransferSyntaxUID", "")) == DEFLATED:
            raise Unusable(f"{place.file} is compressed as a whole; save it with another transfer syntax")
        dataset = pydicom.dcmread(file)
        if place.name:
            raise Unusable(f"{place.file} holds one array; leave :{place.name} out")
        if "PixelData" not in dataset or not {"Rows", "Columns", "BitsAllocated"} <= set(dataset.dir()):
            raise Unusable(f"{place.file} holds no picture: it has no pixel data, or not their size")
        yield dataset
