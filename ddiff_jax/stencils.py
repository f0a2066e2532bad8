"""Masks and blur kernels from files: what they mean is settled here, or the file is refused with the reason."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from ddiff_jax import image_files, pictures
from ddiff_jax.files import Caution, Notes, Unusable

NEAR = 0.1  # share of the range by which a lossy mask may stray from black or white
SHARE = 4  # copies that are made here of a mask
SHOWN = 8  # so many different values look like labels, and are listed


def _read_grey(path: Path, what: str) -> Shaped[np.ndarray, "..."]:
    """Read a picture that must hold one value per pixel, in levels of 255, or an array as it is."""
    if image_files.is_array(path):
        return image_files.load_array(path, SHARE)
    levels, notes = pictures.read_levels(path, share=SHARE)
    if levels.ndim == 3:
        if np.any(levels != levels[..., :1]):
            labels = "; of a label image save (image == label)" * any("palette" in note for note in notes)
            raise Unusable(f"{path} is in colour; a {what} has one value per pixel: save it as a grey picture{labels}")
        levels = levels[..., 0]
    return levels * 255


def check_threshold(threshold: float | None) -> None:
    """Refuse a threshold of a mask that is no share.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(
            f"--threshold is a share of white, between 0 and 1; got {threshold:g} (level 128 of 255 is 0.5)"
        )


def read_mask(
    path: Path, threshold: float | None = None, *, invert: bool = False
) -> tuple[Float[np.ndarray, "..."], Notes]:
    """Read a mask: white (1, true) is observed, black (0, false) is hidden.

    Without a threshold only what is clearly black and white is taken, as a lossy format leaves it.

    Args:
        path: a grey picture, or an array of booleans, of 0 and 1, of levels to 255, or of -1 to 1.
        threshold: share of white from which on a pixel is observed.
        invert: white marks the holes.

    Returns:
        The mask of 0 and 1, and notes that say what became of pixels in between and how much is observed.

    Raises:
        Unusable: unreadable, in colour, labels, or values in between and no threshold.
    """
    check_threshold(threshold)
    share = _share_of_white(path, _read_grey(path, "mask"), threshold)
    between = np.minimum(share, 1 - share)
    if threshold is None and (count := int(np.sum(between > NEAR))):
        found = np.unique(share)
        labels = f" (it holds {len(found)} values; of a label image save image == label)" * (len(found) <= SHOWN)
        raise Unusable(
            f"{path} is no mask of black and white: {count} of {share.size} pixels lie between black and white, as on "
            f"soft or antialiased edges{labels}; add --threshold 0.5 to take for observed what is at least half white"
        )
    mask = (share >= (threshold or 0.5)).astype(np.float32)
    notes: Notes = []
    if moved := int(np.sum(between > 0)):
        up = int(mask[between > 0].sum())
        notes.append(f"{moved} of {mask.size} pixels of the mask moved to white ({up}) or black ({moved - up})")
    if invert:
        mask = 1 - mask
    kinds = ("black", "white") if invert else ("white", "black")
    hint = "; if white marks the holes, add --invert-mask" if not invert and mask.mean() < 0.5 else ""
    return mask, [*notes, f"{mask.mean():.1%} of the pixels observed ({kinds[0]}), the rest hidden{hint}"]


def read_argument(
    name: str, path: Path, threshold: float | None = None, *, invert: bool = False
) -> tuple[Shaped[np.ndarray, "..."], Notes]:
    """Read an array for an operator: a mask or a kernel where its argument is called so, else whatever is there.

    Args:
        name: of the argument.
        path: a picture or an array, see `image_files.read`.
        threshold: of a mask, as in `read_mask`.
        invert: of a mask, as in `read_mask`.

    Raises:
        Unusable: it cannot be read as that.
    """
    if name == "mask":
        return read_mask(path, threshold, invert=invert)
    return read_kernel(path) if name == "kernel" else (image_files.read_array(path), [])


def _share_of_white(path: Path, values: Shaped[np.ndarray, "..."], threshold: float | None) -> Float[np.ndarray, "..."]:
    """Map black to 0 and white to 1, by the range that the values are in."""
    if values.dtype.kind not in "biuf" or not np.all(np.isfinite(values)):
        raise Unusable(f"{path} is not a mask: it holds {values.dtype} or NaN; save 0 (hidden) and 1 (observed)")
    values = values.astype(np.float32)
    least, most = float(values.min(initial=0)), float(values.max(initial=0)) + 0.0  # which is never -0
    if np.isin(values, (0, 1)).all():
        return values
    if -1 <= least < 0 and most <= 1:
        if threshold is None:
            raise Unusable(
                f"{path} holds values from {least:g} to {most:g}, in the range of images; a mask holds 0 (hidden) and "
                "1 (observed): save (mask + 1) / 2, or add --threshold 0.5"
            )
        return (values + 1) / 2
    white = next((white for white in (1, 255, 65535) if most <= white), None)
    if least < 0 or white is None:
        raise Unusable(f"{path} is not a mask: it holds values from {least:g} to {most:g}; save 0 and 1")
    if white == 255 and most <= NEAR * white and np.all(values == np.round(values)):
        found = np.unique(values)
        listed = ", ".join(f"{value:g}" for value in found[:SHOWN]) + ", ..." * (len(found) > SHOWN)
        raise Unusable(
            f"{path} is a label image, not a mask: it holds {listed}; save (image == label) for the label that is "
            "observed"
        )
    return values / np.float32(white)


def read_kernel(path: Path) -> tuple[Float[np.ndarray, "..."], Notes]:
    """Read a blur kernel: a grey picture, which is divided by its sum, or an array of floats, taken as it is.

    Raises:
        Unusable: unreadable, in colour, black, complex, or integers that do not sum to 1.
    """
    values = _read_grey(path, "blur kernel")
    if values.dtype.kind == "c":
        raise Unusable(
            f"{path} holds {values.dtype}; a blur kernel is real: of a transfer function save "
            "np.fft.fftshift(np.fft.ifft2(otf)).real"
        )
    total = float(values.sum(dtype=np.float64))
    if not image_files.is_array(path):
        if total <= 0:
            raise Unusable(f"{path} is black; a blur kernel needs weight somewhere")
        return (values / total).astype(np.float32), ["kernel divided by its sum"]
    if values.dtype.kind != "f" and total != 1:
        raise Unusable(
            f"{path} holds {values.dtype} that sum to {total:g}; a kernel that keeps the brightness sums to 1: save "
            "kernel / kernel.sum() (or floats, if this sum is meant)"
        )
    kernel = values.astype(np.float32)
    if abs(total - 1) < 1e-3:
        return kernel, []
    cure = "save kernel / kernel.sum() to keep the brightness"
    return kernel, [Caution(f"the kernel sums to {total:.4g}, not to 1, and is used so; {cure}")]
