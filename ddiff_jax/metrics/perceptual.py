"""LPIPS as a value: a network with its weights, called on two images."""

from pathlib import Path
from typing import Any

from jaxtyping import Array, Float

from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, Params

BACKBONES = ("alex", "vgg")


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


def load_lpips(folder: str | Path, backbone: str | None = None) -> Perceptual:
    """Load LPIPS weights that `ddiff convert` wrote.

    Args:
        folder: where they are.
        backbone: "alex" or "vgg" where the caller needs a certain one; None takes either.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: they are damaged, of another kind, or of another backbone.
    """
    from ddiff_jax.checkpoint import load_weights

    module, params, _ = load_weights(folder, "lpips")
    if backbone not in (None, module.backbone):
        raise ValueError(f"{folder} holds LPIPS on the backbone {module.backbone}, wanted {backbone}")
    return Perceptual(params, module)
