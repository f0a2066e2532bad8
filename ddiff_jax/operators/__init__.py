"""Measurement operators. `OPERATORS` names the factory of every task, `OPERATOR_TYPES` what each makes."""

from collections.abc import Callable

from ddiff_jax.operators._affine import Affine, affine, linear_part
from ddiff_jax.operators._back_projection import Rays, Scan
from ddiff_jax.operators._blur import Blur, blur
from ddiff_jax.operators._camera_blur import CameraBlur, camera_blur
from ddiff_jax.operators._closures import (
    ClosureData,
    ClosureParts,
    Closures,
    ClosureSets,
    closure_interferometry,
    closures,
    minimal_closures,
)
from ddiff_jax.operators._coils import (
    birdcage_maps,
    from_channels,
    mvue,
    mvue_scale,
    noise_covariance,
    prewhiten,
    to_channels,
    zero_filled,
)
from ddiff_jax.operators._colourisation import Colourisation, colourisation
from ddiff_jax.operators._compose import Composition, LinearComposition, compose
from ddiff_jax.operators._equivalents import nearest_equivalent
from ddiff_jax.operators._fan_beam import FanBeam, fan_beam_tomography, sparse_fan_beam_tomography
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
from ddiff_jax.operators._interferometry import Visibilities, interferometry
from ddiff_jax.operators._masked import LinearMasked, Masked, masked
from ddiff_jax.operators._motion_blur import motion_blur, motion_kernel
from ddiff_jax.operators._mri import MRI, ColumnMRI, mri, multicoil_mri, root_sum_of_squares
from ddiff_jax.operators._mri_sampling import (
    column_mask,
    radial_trajectory,
    released_fastmri_mask,
    released_inversebench_mask,
)
from ddiff_jax.operators._noncartesian_mri import NonCartesianMRI, noncartesian_mri, radial_mri
from ddiff_jax.operators._nonlinear_blur import NonlinearBlur, nonlinear_blur, released_kernel_code
from ddiff_jax.operators._phase_retrieval import PhaseRetrieval, phase_retrieval
from ddiff_jax.operators._tomography import Tomography, sparse_tomography, tomography
from ddiff_jax.operators._transmission import (
    Transmission,
    attenuation_to_hounsfield,
    from_hounsfield,
    hounsfield_to_attenuation,
    post_log,
    to_hounsfield,
    transmission,
)
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
    prepared_operator,
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
    "mri": mri,
    "multicoil_mri": multicoil_mri,
    "tomography": tomography,
    "sparse_tomography": sparse_tomography,
    "fan_beam_tomography": fan_beam_tomography,
    "sparse_fan_beam_tomography": sparse_fan_beam_tomography,
    "interferometry": interferometry,
    "closure_interferometry": closure_interferometry,
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
    "mri": MRI,
    "multicoil_mri": ColumnMRI,
    "tomography": Tomography,
    "sparse_tomography": Tomography,
    "fan_beam_tomography": FanBeam,
    "sparse_fan_beam_tomography": FanBeam,
    "interferometry": Affine,
    "closure_interferometry": Closures,
}

# What some make up, and which factory takes it as an array instead: a mask, a kernel, angles.
GIVEN_FORMS = {
    "box_inpainting": "inpainting",
    "random_inpainting": "inpainting",
    "gaussian_blur": "blur",
    "motion_blur": "blur",
    "undersampled_fourier": "fourier",
    "multicoil_mri": "mri",
    "sparse_tomography": "tomography",
    "sparse_fan_beam_tomography": "fan_beam_tomography",
}

# What solvers by least squares see of those that are affine.
LINEAR_PARTS: dict[str, type[LinearOperator]] = {"interferometry": Visibilities}


def serving(*needs: str) -> list[str]:
    """List the names in `OPERATORS` whose operators, or their linear parts, have all these methods."""
    types = {**OPERATOR_TYPES, **LINEAR_PARTS}
    return [name for name, made in types.items() if all(hasattr(made, need) for need in needs)]


__all__ = [
    "GIVEN_FORMS",
    "LINEAR_PARTS",
    "MRI",
    "OPERATORS",
    "OPERATOR_TYPES",
    "Affine",
    "Ambiguous",
    "Blur",
    "CameraBlur",
    "ClosureData",
    "ClosureParts",
    "ClosureSets",
    "Closures",
    "Colourisation",
    "ColumnMRI",
    "Composition",
    "DecomposableOperator",
    "Decomposition",
    "FanBeam",
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
    "NonCartesianMRI",
    "NonlinearBlur",
    "Operator",
    "PartlyObserved",
    "PhaseRetrieval",
    "Rays",
    "Redundant",
    "Scan",
    "Separable",
    "Tomography",
    "Transmission",
    "Visibilities",
    "Weighable",
    "Weighted",
    "affine",
    "attenuation_to_hounsfield",
    "birdcage_maps",
    "blur",
    "box_inpainting",
    "camera_blur",
    "closure_interferometry",
    "closures",
    "colourisation",
    "column_mask",
    "compose",
    "dot_test",
    "entry_counts",
    "equivalent_images",
    "fan_beam_tomography",
    "fourier",
    "from_channels",
    "from_function",
    "from_hounsfield",
    "gaussian_blur",
    "high_dynamic_range",
    "hounsfield_to_attenuation",
    "inpainting",
    "interferometry",
    "known_image_shape",
    "linear_part",
    "masked",
    "measures_picture",
    "minimal_closures",
    "motion_blur",
    "motion_kernel",
    "mri",
    "multicoil_mri",
    "mvue",
    "mvue_scale",
    "nearest_equivalent",
    "noise_covariance",
    "noncartesian_mri",
    "nonlinear_blur",
    "observed_entries",
    "phase_retrieval",
    "post_log",
    "prepared_operator",
    "prewhiten",
    "radial_mri",
    "radial_trajectory",
    "random_inpainting",
    "released_box_mask",
    "released_fastmri_mask",
    "released_inversebench_mask",
    "released_kernel_code",
    "released_random_mask",
    "root_sum_of_squares",
    "serving",
    "sparse_fan_beam_tomography",
    "sparse_tomography",
    "spectral_norm",
    "super_resolution",
    "to_channels",
    "to_hounsfield",
    "tomography",
    "transmission",
    "undersampled_fourier",
    "weighted",
    "zero_filled",
]
