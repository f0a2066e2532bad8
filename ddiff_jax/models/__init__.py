"""Networks. The only modules that import Flax."""

from ddiff_jax.models.diffusers_unet import UNet2D
from ddiff_jax.models.song_unet import SongUNet
from ddiff_jax.models.unet import UNet

__all__ = ["SongUNet", "UNet", "UNet2D"]
