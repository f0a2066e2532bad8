"""LPIPS, version 0.1: a distance of images in the features of AlexNet or VGG16."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Convolutions as (features, kernel side, stride, padding), "pool" between them. The features after the activation of
# the convolutions numbered in TAPS are compared. Source: torchvision's `alexnet` and `vgg16`; the taps are those of
# pretrained_networks.py in the lpips package.
LAYERS = {
    "alex": [(64, 11, 4, 2), "pool", (192, 5, 1, 2), "pool", (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)],
    "vgg": [
        *[(64, 3, 1, 1)] * 2,
        *["pool", *[(128, 3, 1, 1)] * 2],
        *["pool", *[(256, 3, 1, 1)] * 3],
        *["pool", *[(512, 3, 1, 1)] * 3],
        *["pool", *[(512, 3, 1, 1)] * 3],
    ],
}
TAPS = {"alex": (0, 1, 2, 3, 4), "vgg": (1, 3, 6, 9, 12)}
POOL_SIDE = {"alex": 3, "vgg": 2}  # both of stride 2, without padding
MIN_SIDE = {"alex": 31, "vgg": 16}  # pixels; below, a pool finds nothing to look at

# Mean and standard deviation of ImageNet for images in [-1, 1], as the lpips package writes them.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
TINY = 1e-10  # added to norms of features, as in the package


class LPIPS(nn.Module):
    """d(a, b) = sum over taps of mean over places of sum over channels of w (a / |a| - b / |b|)^2.

    Args:
        backbone: "alex" (what the DDiff paper reports) or "vgg" (DPS, DiffPIR). Their numbers are not comparable.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018;
    `LPIPS` in the `lpips` package, version 0.1.4, default settings.
    """

    backbone: Literal["alex", "vgg"]

    @property
    def min_side(self) -> int:
        """Smallest side of an image, in pixels."""
        return MIN_SIDE[self.backbone]

    @nn.compact
    def __call__(
        self, a: Float[Array, "N H W 3"], b: Float[Array, "N H W 3"], *, per_tap: bool = False
    ) -> Float[Array, " N"] | Float[Array, "N 5"]:
        """Compare images in [-1, 1].

        Args:
            a: images; nothing is clamped.
            b: as many, of the same size.
            per_tap: return the five terms of the sum instead, [N, 5].

        Raises:
            ValueError: unknown backbone, or images too small for its pools.
        """
        if self.backbone not in LAYERS:
            raise ValueError(f"the backbone must be one of {', '.join(LAYERS)}; got {self.backbone!r}")
        if min(a.shape[1:3]) < self.min_side:
            raise ValueError(
                f"LPIPS on {self.backbone} needs images of at least {self.min_side} pixels a side; got {a.shape[1:3]}"
            )
        features = jnp.concatenate([a, b])
        shift, scale = (jnp.asarray(of_channels, features.dtype)[None, None, None] for of_channels in (SHIFT, SCALE))
        features = (features - shift) / scale
        terms, index = [], 0
        for layer in LAYERS[self.backbone]:
            if isinstance(layer, str):
                side = POOL_SIDE[self.backbone]
                features = nn.max_pool(features, (side, side), (2, 2))
                continue
            num_features, side, stride, padding = layer
            features = nn.Conv(
                *(num_features, (side, side), stride),
                padding=padding,
                # A metric is the same number on every device, so TF32 stays out of it.
                precision=jax.lax.Precision.HIGHEST,
                name=f"conv_{index}",
            )(features)
            features = nn.relu(features)
            if index in TAPS[self.backbone]:
                terms.append(self._term(features, len(terms)))
            index += 1
        found = jnp.stack(terms, axis=-1)
        return found if per_tap else jnp.sum(found, axis=-1)

    def _term(self, features: Float[Array, "NN h w F"], tap: int) -> Float[Array, " N"]:
        unit = features / (jnp.sqrt(jnp.sum(features**2, axis=-1, keepdims=True)) + TINY)
        first, second = jnp.split(unit, 2)
        weigh = nn.Conv(*(1, (1, 1)), use_bias=False, precision=jax.lax.Precision.HIGHEST, name=f"linear_{tap}")
        return jnp.mean(weigh((first - second) ** 2), axis=(1, 2, 3))

    @staticmethod
    def example_inputs() -> tuple[Array, Array]:
        """Inputs of `__call__` that only fix shapes."""
        return jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 64, 64, 3))
