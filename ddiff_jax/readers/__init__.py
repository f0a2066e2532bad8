"""Scientific files: what each format holds becomes one array of numbers, in the units of whoever made it.

A format is one module with two functions of a `Place`: `count(place)`, how many images its volume holds (None where it
is one array), and `load(place, share)`, the array and notes. Numbers are as the format's own rules of scaling have
them; axes stay as they are stored, images [rows, columns].
"""

import importlib
from types import ModuleType

from ddiff_jax.files import Unusable
from ddiff_jax.readers import tiff
from ddiff_jax.readers.places import ENDINGS, Index, Place, checked, ending, place_of

PACKAGES = {"hdf5": "h5py", "fits": "astropy", "dicom": "pydicom", "nifti": "nibabel"}
"""Formats, which are extras of this package as well, to the packages that they need."""


def reader(place: Place) -> ModuleType | None:
    """Find the module that reads a file; None for pictures and NumPy's arrays.

    Raises:
        Unusable: the package that it needs is not installed.
    """
    name = ENDINGS.get(ending(place.file))
    if name in (None, "npz"):
        return None
    if name == "tiff":
        return tiff if tiff.is_array(place.file) else None
    try:
        importlib.import_module(PACKAGES[name])
    except ImportError as error:
        raise Unusable(
            f"{place.file}: {PACKAGES[name]} reads such files; install it with: pip install 'ddiff-jax[{name}]'"
        ) from error
    return importlib.import_module(f"ddiff_jax.readers.{name}")


__all__ = ["ENDINGS", "PACKAGES", "Index", "Place", "checked", "ending", "place_of", "reader", "tiff"]
