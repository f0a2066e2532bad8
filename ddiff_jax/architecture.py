"""Networks on cards: which there are, how one is built, and which parameters it takes."""

import functools
import importlib
from collections.abc import Mapping
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp

from ddiff_jax.card import check_types
from ddiff_jax.files import quote
from ddiff_jax.limits import MOST_BLOCKS
from ddiff_jax.names import check_keys, check_name
from ddiff_jax.noise import root_key
from ddiff_jax.priors.network import takes_all
from ddiff_jax.types import ImageShape, Params

# Kind of network: file and class in `ddiff_jax.models`, imported when needed because they import Flax.
MODULES = {
    "adm_unet": ("unet", "UNet"),
    "song_unet": ("song_unet", "SongUNet"),
    "diffusers_unet": ("diffusers_unet", "UNet2D"),
    "kernel_wizard": ("kernel_wizard", "KernelWizard"),
    "lpips": ("lpips", "LPIPS"),
}
PRIORS = ("adm_unet", "song_unet", "diffusers_unet")  # the kinds that denoise


def build_module(kind: str, architecture: Mapping[str, Any]) -> Any:
    """Build the network of a card; imports Flax.

    Raises:
        ValueError: the kind is unknown, or the architecture has fields that the network does not know, or that are of
            another type.
    """
    check_name("kind of network", kind, MODULES)
    file, name = MODULES[kind]
    module = getattr(importlib.import_module(f"ddiff_jax.models.{file}"), name)
    hints = {name: hint for name, hint in get_type_hints(module).items() if name not in ("name", "parent")}
    try:
        check_keys(f"a network of kind {kind}", architecture, hints)
        check_types(architecture, hints)
        made = module(**{k: tuple(v) if isinstance(v, list) else v for k, v in architecture.items()})
        num_blocks = getattr(made, "num_blocks", 0)
        if not 0 <= num_blocks <= MOST_BLOCKS:
            raise ValueError(f"it has {num_blocks} residual blocks; up to {MOST_BLOCKS} are built")
        return made
    except (TypeError, ValueError) as error:
        raise ValueError(f"the architecture does not describe a network of kind {kind}: {quote(error)}") from error


def abstract_params(module: Any) -> Params:
    """Shapes and types of a network's parameters, without making them."""
    if getattr(module, "remat", False):  # which changes no parameter, and takes half of the time to trace
        module = module.clone(remat=False)
    return jax.eval_shape(module.init, root_key(0), *module.example_inputs())["params"]


def params_as_stored(kind: str, module: Any, image_shape: ImageShape, stored: Mapping[str, Any]) -> Params | None:
    """Give a prior's network the parameters whose shapes are stored, where it takes exactly these, in float32.

    To ask a network for its parameters is to trace it, and so is to denoise with them. This is the trace that denoising
    remembers, so where it is enough, weights are loaded in half of the time.

    Args:
        kind: of the network.
        module: the network.
        image_shape: shape of the images that it will denoise.
        stored: shapes by name, "middle_0/conv_1/kernel".

    Returns:
        None where `abstract_params` has to tell.
    """
    if kind not in PRIORS or {module.dtype, module.param_dtype} != {"float32"}:
        return None
    params: dict[str, Any] = {}
    try:
        for name, shape in stored.items():
            *path, last = name.split("/")
            inner = functools.reduce(lambda inner, part: inner.setdefault(part, {}), path, params)
            inner[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
        fits = len(jax.tree.leaves(params)) == len(stored) and takes_all(module, params, image_shape)
    except Exception:  # what does not fit, a comparison with the network's own tells
        return None
    return params if fits else None
