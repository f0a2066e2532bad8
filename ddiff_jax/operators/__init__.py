"""Measurement operators. `OPERATORS` names the factory of every task, `OPERATOR_TYPES` what each makes."""

from collections.abc import Callable

from ddiff_jax.operators._affine import Affine, affine, linear_part
from ddiff_jax.operators._blur import Blur, blur
from ddiff_jax.operators._camera_blur import CameraBlur, camera_blur
from ddiff_jax.operators._colourisation import Colourisation, colourisation
from ddiff_jax.operators._compose import Composition, LinearComposition, compose
from ddiff_jax.operators._equivalents import nearest_equivalent
from ddiff_jax.operators._fourier import Fourier, fourier, undersampled_fourier
from ddiff_jax.operators._function import Function, LinearFunction, from_function
from ddiff_jax.operators._high_dynamic_range import HighDynamicRange, high_dynamic_range
from ddiff_jax.operators._inpainting import (
    Inpainting,
    box_inpainting,
    inpainting,
    random_inpainting,
    released_box_mask,
    released_random_mask,
)
from ddiff_jax.operators._masked import LinearMasked, Masked, masked
from ddiff_jax.operators._motion_blur import motion_blur, motion_kernel
from ddiff_jax.operators._nonlinear_blur import NonlinearBlur, nonlinear_blur, released_kernel_code
from ddiff_jax.operators._phase_retrieval import PhaseRetrieval, phase_retrieval
from ddiff_jax.operators._tomography import Tomography, sparse_tomography, tomography
from ddiff_jax.operators._weighted import LinearWeighted, Weighted, weighted
from ddiff_jax.operators.base import (
    Ambiguous,
    DecomposableOperator,
    Decomposition,
    LinearOperator,
    Operator,
    PartlyObserved,
    Redundant,
    Weighable,
    dot_test,
    entry_counts,
    equivalent_images,
    known_image_shape,
    measures_picture,
    observed_entries,
    spectral_norm,
)
from ddiff_jax.operators.separable import Separable, gaussian_blur, super_resolution

OPERATORS: dict[str, Callable[..., Operator]] = {
    "super_resolution": super_resolution,
    "box_inpainting": box_inpainting,
    "random_inpainting": random_inpainting,
    "inpainting": inpainting,
    "gaussian_blur": gaussian_blur,
    "blur": blur,
    "motion_blur": motion_blur,
    "phase_retrieval": phase_retrieval,
    "nonlinear_blur": nonlinear_blur,
    "high_dynamic_range": high_dynamic_range,
    "camera_blur": camera_blur,
    "colourisation": colourisation,
    "fourier": fourier,
    "undersampled_fourier": undersampled_fourier,
    "tomography": tomography,
    "sparse_tomography": sparse_tomography,
}

# What each of them makes: methods and markers can be looked up without building anything.
OPERATOR_TYPES: dict[str, type[Operator]] = {
    "super_resolution": Separable,
    "box_inpainting": Inpainting,
    "random_inpainting": Inpainting,
    "inpainting": Inpainting,
    "gaussian_blur": Separable,
    "blur": Blur,
    "motion_blur": Blur,
    "phase_retrieval": PhaseRetrieval,
    "nonlinear_blur": NonlinearBlur,
    "high_dynamic_range": HighDynamicRange,
    "camera_blur": CameraBlur,
    "colourisation": Colourisation,
    "fourier": Fourier,
    "undersampled_fourier": Fourier,
    "tomography": Tomography,
    "sparse_tomography": Tomography,
}

# What some make up, and which factory takes it as an array instead: a mask, a kernel, angles.
GIVEN_FORMS = {
    "box_inpainting": "inpainting",
    "random_inpainting": "inpainting",
    "gaussian_blur": "blur",
    "motion_blur": "blur",
    "undersampled_fourier": "fourier",
    "sparse_tomography": "tomography",
}


def serving(*needs: str) -> list[str]:
    """List the names in `OPERATORS` whose operators have all these methods."""
    return [name for name, made in OPERATOR_TYPES.items() if all(hasattr(made, need) for need in needs)]


__all__ = [
    "GIVEN_FORMS",
    "OPERATORS",
    "OPERATOR_TYPES",
    "Affine",
    "Ambiguous",
    "Blur",
    "CameraBlur",
    "Colourisation",
    "Composition",
    "DecomposableOperator",
    "Decomposition",
    "Fourier",
    "Function",
    "HighDynamicRange",
    "Inpainting",
    "LinearComposition",
    "LinearFunction",
    "LinearMasked",
    "LinearOperator",
    "LinearWeighted",
    "Masked",
    "NonlinearBlur",
    "Operator",
    "PartlyObserved",
    "PhaseRetrieval",
    "Redundant",
    "Separable",
    "Tomography",
    "Weighable",
    "Weighted",
    "affine",
    "blur",
    "box_inpainting",
    "camera_blur",
    "colourisation",
    "compose",
    "dot_test",
    "entry_counts",
    "equivalent_images",
    "fourier",
    "from_function",
    "gaussian_blur",
    "high_dynamic_range",
    "inpainting",
    "known_image_shape",
    "linear_part",
    "masked",
    "measures_picture",
    "motion_blur",
    "motion_kernel",
    "nearest_equivalent",
    "nonlinear_blur",
    "observed_entries",
    "phase_retrieval",
    "random_inpainting",
    "released_box_mask",
    "released_kernel_code",
    "released_random_mask",
    "serving",
    "sparse_tomography",
    "spectral_norm",
    "super_resolution",
    "tomography",
    "undersampled_fourier",
    "weighted",
]
