"""What the readers of volumes share: one image of an array whose other axes count images."""

import math
from collections.abc import Sequence

import numpy as np

from ddiff_jax.files import Unusable
from ddiff_jax.limits import check_unfolded
from ddiff_jax.readers.places import Place, checked


def check_numbers(place: Place, dtype: np.dtype, what: str = "it") -> None:
    """Refuse what holds no numbers.

    Raises:
        Unusable: strings, records, objects.
    """
    if dtype.kind not in "biufc":
        raise Unusable(f"{place.file}: {what} holds {dtype}, and no numbers")


def check_size(place: Place, shape: Sequence[int], itemsize: int, share: int = 1) -> None:
    """Refuse an array that is too large, or has no entries.

    Raises:
        TooLarge: it is too large.
        Unusable: it is empty.
    """
    count = math.prod(shape)
    if not count:
        raise Unusable(f"{place.file} holds no numbers: its array has shape {tuple(shape)}")
    check_unfolded(place.file, count * (itemsize + 8), f"an array of shape {tuple(shape)}", share)


def index_of(place: Place, counts: Sequence[int], axes: str) -> tuple[int, ...] | None:
    """Read which image of a volume is meant.

    Args:
        place: says it.
        counts: lengths of the axes that count images; none where there is one image.
        axes: what these axes are, for the message.

    Returns:
        One number for each of these axes; None for the whole volume.

    Raises:
        Unusable: it does not say, or there is no such image.
    """
    if place.is_whole:
        return None
    numbers = place.numbers
    if numbers is None and math.prod(counts) == 1:
        return (0,) * len(counts)
    if numbers is None or len(numbers) != len(counts):
        sizes = " x ".join(map(str, counts)) or "one"
        wanted = ",".join("0" * len(counts))
        cure = f"name one as {place.file}[{wanted}], or all as one array by [...]" if counts else "leave [...] out"
        raise Unusable(f"{place.file} holds {sizes} images ({axes}); {cure}")
    return tuple(checked(place, number, count) for number, count in zip(numbers, counts, strict=True))
