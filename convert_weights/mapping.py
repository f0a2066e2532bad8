"""Map tensors of a file onto the parameters of a module: every key used once, every parameter filled, or an error."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Path = tuple[str, ...]
LISTED = 20  # lines of each kind in an error; a wrong guess of the architecture makes hundreds


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one kind of tensor is stored in the file and here.

    Args:
        convert: from the file's array to ours.
        file_shape: from our shape to the file's.
    """

    convert: Callable[[np.ndarray], np.ndarray]
    file_shape: Callable[[Shape], Shape]


SAME = Layout(lambda a: a, lambda s: s)
LINEAR = Layout(lambda a: a.T, lambda s: s[::-1])
CONV = Layout(lambda a: a.transpose(2, 3, 1, 0), lambda s: (s[3], s[2], s[0], s[1]))
POINT = Layout(lambda a: a.T[None, None], lambda s: (s[3], s[2]))  # a Linear that is a 1x1 convolution here
CONV_1D = Layout(lambda a: a.transpose(2, 1, 0)[None], lambda s: (s[3], s[2], s[1]))

Target = tuple[Path, Layout]


def check(shapes: Mapping[str, Shape], targets: Mapping[str, Target], wanted: Mapping[Path, Shape], what: str) -> None:
    """Check that keys and parameters match one to one, with equal shapes.

    Args:
        shapes: key to shape, of the file.
        targets: key to parameter, of the architecture.
        wanted: parameter to shape, of the module.
        what: the architecture, for the error.

    Raises:
        ValueError: they do not; lists missing, unexpected and mis-shaped keys with what was wanted.
    """
    filled = [path for path, _ in targets.values()]
    if sorted(filled) != sorted(wanted):
        lost = sorted(set(wanted).symmetric_difference(filled))
        raise ValueError(f"no key, or more than one, is known for the parameters {lost[:LISTED]} of {what}")
    expected = {key: layout.file_shape(wanted[path]) for key, (path, layout) in targets.items()}
    missing = [f"missing     {key}: wanted {expected[key]}" for key in expected if key not in shapes]
    unexpected = [f"unexpected  {key}: has {shapes[key]}" for key in shapes if key not in expected]
    misshaped = [
        f"mis-shaped  {key}: has {shapes[key]}, wanted {expected[key]}"
        for key in expected
        if key in shapes and tuple(shapes[key]) != expected[key]
    ]
    if missing or unexpected or misshaped:
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(misshaped)} mis-shaped"
        lines = [line for kind in (missing, unexpected, misshaped) for line in _abridge(kind)]
        raise ValueError(f"the weights do not fit {what}: {counts}\n  " + "\n  ".join(lines))


def _abridge(lines: list[str]) -> Iterable[str]:
    yield from lines[:LISTED]
    if len(lines) > LISTED:
        yield f"... and {len(lines) - LISTED} more {lines[0].split()[0]}"


def convert(tensors: Mapping[str, np.ndarray], targets: Mapping[str, Target]) -> dict[str, Any]:
    """Bring checked tensors into our layout, as a nested dict of contiguous float32 arrays."""
    from flax.traverse_util import unflatten_dict

    leaves = {
        path: np.ascontiguousarray(layout.convert(tensors[key]), np.float32) for key, (path, layout) in targets.items()
    }
    return unflatten_dict(leaves)
