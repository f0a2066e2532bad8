"""Networks. The only modules that import Flax."""

from ddiff_jax.models.unet import UNet

__all__ = ["UNet"]
