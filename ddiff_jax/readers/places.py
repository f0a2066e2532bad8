"""Which array of a file is meant: PATH, PATH:NAME, PATH[INDEX] or PATH:NAME[INDEX]."""

import dataclasses
import os
import re
from pathlib import Path

from ddiff_jax.files import Unusable

ENDINGS = {
    ".npz": "npz",
    **dict.fromkeys((".h5", ".hdf5"), "hdf5"),
    **dict.fromkeys((".fits", ".fit", ".fts"), "fits"),
    **dict.fromkeys((".dcm", ".dicom"), "dicom"),
    **dict.fromkeys((".nii.gz", ".nii"), "nifti"),
    **dict.fromkeys((".tif", ".tiff"), "tiff"),
}
"""Endings of files that may hold several arrays, or arrays of several images, to their formats."""

_ENDING = "|".join(map(re.escape, ENDINGS))
_PLACE = re.compile(
    rf"(?P<file>.+?(?:{_ENDING}))(?::(?P<name>[^\[\]:]+))?(?:\[(?P<index>[^\[\]]+)\])?", re.IGNORECASE | re.DOTALL
)
_WHOLE, _RANGE = "...", re.compile(r"(-?\d+)?:(-?\d+)?")

Index = tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an array is.

    Args:
        file: the file.
        name: of the array in it; empty leaves the choice to the format.
        index: what stands in brackets; empty where nothing does.
    """

    file: Path
    name: str = ""
    index: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether all images of a volume are asked for as one array."""
        return self.index == _WHOLE

    @property
    def numbers(self) -> Index:
        """The numbers in brackets; None if there are none.

        Raises:
            Unusable: something else stands there.
        """
        if not self.index or self.is_whole:
            return None
        parts = [part.strip() for part in self.index.split(",")]
        if not all(re.fullmatch(r"-?\d{1,9}", part) for part in parts):
            raise Unusable(
                f"{self.file}[{self.index}]: brackets hold the number of an image, counted from 0, or ... for all as "
                "one array; a range such as [10:20] is for inputs"
            )
        return tuple(map(int, parts))

    def chosen(self, count: int) -> list[int]:
        """List the images that are meant, of so many.

        Raises:
            Unusable: there is no such image.
        """
        found = _RANGE.fullmatch(self.index)
        if found:
            first, last = (None if text is None else int(text) for text in found.groups())
            chosen = list(range(count))[first:last]
        else:
            chosen = [checked(self, number, count) for number in self.numbers or range(count)]
        if not chosen:
            raise Unusable(f"{self.file}[{self.index}] names no image; there are {count}, counted from 0")
        return chosen

    def at(self, number: int) -> Path:
        """Name one image as a path."""
        return Path(f"{self.file}{f':{self.name}' * bool(self.name)}[{number}]")

    @property
    def stem(self) -> str:
        """Name the array without the file's ending, fit for a file name."""
        known = ending(self.file)
        stem = self.file.name[: -len(known)] if known in ENDINGS else self.file.stem
        inside = re.sub(r"\W+", "_", self.name).strip("_")
        return "_".join(filter(None, (stem, inside)))


def checked(place: Place, number: int, count: int) -> int:
    """Count from 0 what may be counted from the end.

    Raises:
        Unusable: there is no such image.
    """
    if not -count <= number < count:
        raise Unusable(f"{place.file} has no image {number}: it holds {count}, counted from 0")
    return number % count


def ending(path: Path) -> str:
    """Tell the ending of a file, in lower case; ".nii.gz" counts as one."""
    name = path.name.lower()
    return next((known for known in ENDINGS if name.endswith(known) and name != known), path.suffix.lower())


def place_of(path: Path) -> Place:
    """Take a path apart; a file that has such a name itself is meant as it is."""
    found = None if os.path.exists(path) else _PLACE.fullmatch(str(path))
    if found is None or not (found["name"] or found["index"]):
        return Place(path)
    return Place(Path(found["file"]), found["name"] or "", found["index"] or "")
