"""What the shapes of a UNet cannot tell, for the networks that OpenAI and DPS published: recognised by their shapes."""

import dataclasses
import hashlib
from collections.abc import Mapping

from convert_weights.mapping import Shape


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network was trained, as far as its weights do not show.

    Args:
        files: names of the files, for messages.
        image_size: side of the training images.
        noise_schedule: key of `ddiff_jax.card.SCHEDULES`.
        num_timesteps: levels of the schedule.
        rescale_timesteps: the network is given t * 1000 / T.
        attention_order: "legacy" or "new".
        head_width: channels per attention head, or None.
        num_heads: heads per attention layer, or None.
    """

    files: str
    image_size: int
    noise_schedule: str = "linear"
    num_timesteps: int = 1000
    rescale_timesteps: bool = False
    attention_order: str = "legacy"
    head_width: int | None = 64
    num_heads: int | None = None


IMPROVED = {"noise_schedule": "cosine", "num_timesteps": 4000, "head_width": None, "num_heads": 4}

# Source: the flags in the READMEs of openai/guided-diffusion, openai/improved-diffusion and openai/consistency_models
# and the defaults of their scripts; DPS's model_config.yaml. Files that share their shapes share every setting. Left
# out are the upsamplers and the classifiers, which are no priors.
PUBLISHED: dict[str, Settings] = {
    "b879ba9ed4fe94bb": Settings("64x64_diffusion.pt", 64, noise_schedule="cosine", attention_order="new"),
    "d91b9be2449a697e": Settings("128x128_diffusion.pt", 128, head_width=None, num_heads=4),
    "408c4d65687d2b6d": Settings("256x256_diffusion.pt", 256),
    "b9c90be1570d1541": Settings("256x256_diffusion_uncond.pt and lsun_{bedroom,cat,horse}.pt", 256),
    "f95458c996170da9": Settings("512x512_diffusion.pt", 512),
    "47cc71b580397ca5": Settings("ffhq_10m.pt", 256),
    "5a42ef114f79713a": Settings("imagenet64_uncond_100M_1500K.pt", 64, rescale_timesteps=True, **IMPROVED),
    "001b621871f3fa9d": Settings("cifar10_uncond_50M_500K.pt", 32, rescale_timesteps=True, **IMPROVED),
    "59179ffdc09597c8": Settings("imagenet64_cond_270M_250K.pt", 64, **IMPROVED),
    "8f9f572cfec2212c": Settings("edm_imagenet64_ema.pt", 64),
    "932306e8a8baf0ab": Settings("edm_bedroom256_ema.pt and edm_cat256_ema.pt", 256),
    "0313288a27e5d1d5": Settings("lsun_uncond_100M_1200K_bs128.pt", 256, head_width=None, num_heads=1),
}


def signature(shapes: Mapping[str, Shape]) -> str:
    """Sum up names and shapes in 16 hexadecimal digits."""
    lines = sorted(f"{name} {tuple(shape)}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def find(shapes: Mapping[str, Shape]) -> Settings | None:
    """Find the published network that has exactly these names and shapes."""
    return PUBLISHED.get(signature(shapes))
