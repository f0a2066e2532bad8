"""Images of other sizes than the prior's: what is done with them, what is said of it, and what a measurement tells."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from ddiff_jax.card import Card
from ddiff_jax.priors import EmbeddedPrior, NoPrior, PaddedPrior, Prior, WindowedPrior, with_shape
from ddiff_jax.types import ImageShape

Fit = Literal["windows", "whole", "refuse"]
FITS: tuple[Fit, ...] = get_args(Fit)
ENLARGED = 4  # an argument that is wrong for images of the prior's size, and of so many times its sides, is wrong


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How images of other sizes than the prior's are restored.

    Args:
        fit: "windows" blends overlapping windows of the prior's size and embeds smaller images into one, "whole" shows
            the network the whole image at once, "refuse" takes the prior's size only.
        overlap: of windows in pixels; None is a quarter of their side.
        shift: whether windows move at every step.
        image_size: (height, width) of the images, where the input does not tell it; None is the prior's.
    """

    fit: Fit = "windows"
    overlap: int | None = None
    shift: bool = True
    image_size: tuple[int, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Spell them out by the names of their flags, in plain types."""
        size = None if self.image_size is None else f"{self.image_size[1]}x{self.image_size[0]}"
        return {"fit": self.fit, "overlap": self.overlap, "shift_windows": self.shift, "image_size": size}


def read_sizes(fit: str, overlap: int | None, shift: bool, image_size: str | None, card: Card) -> Sizes:
    """Read and check what is asked for.

    Args:
        fit: one of `FITS`.
        overlap: pixels.
        shift: whether windows move.
        image_size: width x height, such as 512x384.
        card: of the prior.

    Raises:
        ValueError: it is out of range, or does not go together.
    """
    if fit not in FITS:
        raise ValueError(f"--fit must be one of {', '.join(FITS)}; got {fit!r}")
    height, width, _ = card.image_shape
    if overlap is not None and not 0 <= overlap < min(height, width):
        raise ValueError(f"--overlap must be from 0 to {min(height, width) - 1} for windows of {width}x{height} pixels")
    size = None
    if image_size is not None:
        sides = image_size.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise ValueError(f"--image-size must be width x height in pixels, such as 512x384; got {image_size!r}")
        size = int(sides[1]), int(sides[0])
        if fit == "refuse" and size != (height, width):
            raise ValueError(f"--fit refuse takes images of the prior's size only, {width}x{height}; got {image_size}")
    return Sizes(fit, overlap, shift, size)  # pyright: ignore[reportArgumentType] - looked up above


def fitted(prior: Prior, sizes: Sizes, shape: ImageShape) -> Any:
    """Make the prior for images of a shape."""
    if tuple(shape) == tuple(prior.image_shape):
        return prior
    if isinstance(prior, NoPrior):
        return NoPrior(shape)
    how = "whole" if sizes.fit == "whole" else "windows"
    return with_shape(prior, shape, how=how, overlap=sizes.overlap, shift=sizes.shift)


def evaluations(prior: Any) -> tuple[Any, int]:
    """Find the prior whose network is evaluated, and how often that is for one denoised image."""
    if isinstance(prior, EmbeddedPrior | PaddedPrior):
        return evaluations(prior.prior)
    return (prior.prior, math.prod(prior.counts)) if isinstance(prior, WindowedPrior) else (prior, 1)


def describe(prior: Any, own: ImageShape) -> str:
    """Say how a prior that is fitted to images of another shape than its own sees them."""
    now, was = size_of(prior.image_shape), size_of(own)
    if isinstance(prior, EmbeddedPrior):
        around = describe(prior.prior, own)
        small = f"{size_of(prior.shape)} pixels are the middle of {now}, of which the prior makes up the rest"
        return f"{small}; {around}" if around else small
    if isinstance(prior, WindowedPrior):
        lengths = sorted(set(prior.overlap[axis] for axis, count in enumerate(prior.counts) if count > 1))  # pyright: ignore[reportOptionalSubscript,reportIndexIssue] - one per axis
        return (
            f"{now} pixels in {' x '.join(map(str, reversed(prior.counts)))} windows of {was} that overlap by "
            f"{' and '.join(map(str, lengths))}{', at other places in every step' if prior.shift else ''}"
        )
    if tuple(prior.image_shape) == tuple(own) or isinstance(prior, NoPrior):
        return ""
    return f"{now} pixels at once, of a network trained on {was}"


def caution(name: str, own: ImageShape) -> str:
    """Say what a prior cannot know of images of other sizes."""
    return (
        f"{name} has seen pictures of {size_of(own)} pixels of the kind that it was trained on, and nothing larger: "
        "what it adds to other pictures is in their style, and only the data make distant parts agree"
    )


class SizeNotes:
    """What is said of images of other sizes than the prior's: of every size once, and what it cannot give before all.

    Args:
        name: of the prior.
    """

    def __init__(self, name: str):
        self._name, self._told = name, set[str]()

    def of(self, prior: Any, own: ImageShape) -> list[str]:
        """List what is still to be said of a prior that is fitted to images of another shape than its own."""
        told = describe(prior, own)
        if not told or told in self._told:
            return []
        notes = [told] if self._told else [caution(self._name, own), told]
        self._told.add(told)
        return notes


def arguments_to_try(shape: ImageShape, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[int, int, int]]:
    """List shapes of images for which an operator may be buildable, if it is for any."""
    height, width, channels = shape
    sides = [(height, width), (ENLARGED * height, ENLARGED * width)]
    for sides_of in itertools.chain(sides, (a.shape[:2] for a in arrays.values() if a.ndim >= 2)):
        yield (*sides_of, channels)  # pyright: ignore[reportReturnType] - two sides and the channels


def shape_behind(
    y_shape: tuple[int, ...],
    shape: tuple[int, int, int],
    arguments: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    fits: Callable[[tuple[int, int, int]], bool],
) -> tuple[int, int, int] | None:
    """Find the shape of the image behind a measurement.

    Args:
        y_shape: of the measurement.
        shape: of the image, if nothing speaks against it.
        arguments: numbers of the operator, one of which may be a factor between the two.
        arrays: of the operator, which may have the image's size.
        fits: tells whether the operator makes such a measurement of images of a shape; raises a ValueError where there
            is none for them.

    Returns:
        The first that makes such a measurement: the one given, the measurement's own, one larger by a factor, or that
        of an array; None if none does.
    """
    channels, candidates = shape[2], [tuple(shape)]
    if len(y_shape) >= 2:
        whole = [v for v in arguments.values() if isinstance(v, int) and not isinstance(v, bool) and v > 1]
        candidates += [(factor * y_shape[0], factor * y_shape[1], channels) for factor in (1, *whole)]
    candidates += [(*array.shape[:2], channels) for array in arrays.values() if array.ndim >= 2]
    for candidate in dict.fromkeys(candidates):
        try:
            if fits(candidate):  # pyright: ignore[reportArgumentType] - three numbers
                return candidate  # pyright: ignore[reportReturnType]
        except ValueError:
            continue
    return None


def size_of(shape: Sequence[int]) -> str:
    """Write the size of images [H, W, C] as people do, 640x480."""
    return f"{shape[1]}x{shape[0]}"
