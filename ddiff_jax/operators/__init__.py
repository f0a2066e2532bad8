"""Measurement operators. `OPERATORS` names the factory of every task."""

from collections.abc import Callable

from ddiff_jax.operators.base import LinearOperator, Operator, dot_test
from ddiff_jax.operators.blur import Blur, blur
from ddiff_jax.operators.inpainting import (
    Inpainting,
    box_inpainting,
    inpainting,
    random_inpainting,
    released_box_mask,
    released_random_mask,
)
from ddiff_jax.operators.separable import Separable, gaussian_blur, super_resolution

OPERATORS: dict[str, Callable[..., Operator]] = {
    "super_resolution": super_resolution,
    "box_inpainting": box_inpainting,
    "random_inpainting": random_inpainting,
    "inpainting": inpainting,
    "gaussian_blur": gaussian_blur,
    "blur": blur,
}

__all__ = [
    "OPERATORS",
    "Blur",
    "Inpainting",
    "LinearOperator",
    "Operator",
    "Separable",
    "blur",
    "box_inpainting",
    "dot_test",
    "gaussian_blur",
    "inpainting",
    "random_inpainting",
    "released_box_mask",
    "released_random_mask",
    "super_resolution",
]
