"""The ADM UNet of guided-diffusion, channels last."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Shaped

from ddiff_jax.models.layers import (
    Attention,
    Conv,
    GroupNorm,
    Linear,
    Resample,
    ResBlock,
    Style,
    average_pool,
    keep,
    repeat_pixels,
    timestep_embedding,
)
from ddiff_jax.models.network import Network


class UNet(Network):
    """The network of Dhariwal and Nichol 2021, in every configuration that public checkpoints use.

    `module.apply({"params": params}, x, t)` maps images x [N, H, W, C] and timesteps t [N] to [N, H, W, D] in
    float32; D = 2 C with a learned variance, of which the first C channels are the predicted noise. H and W are
    multiples of 2^(levels - 1). Class-conditional networks take labels `y` [N].

    Args:
        in_channels: C.
        out_channels: D.
        model_channels: base width.
        channel_mult: width of every level in units of the base width, finest first; fractions allowed.
        num_res_blocks: residual blocks per level going down; one more going up.
        attention_levels: levels with attention after every block, 0 the finest. The middle has it by itself.
        head_width: channels per attention head; used when num_heads is None.
        num_heads: attention heads, the same at every level.
        scale_shift_norm: the timestep scales and shifts the second norm; False adds it before.
        resblock_updown: residual blocks resample; False leaves that to plain layers.
        conv_resample: these plain layers convolve.
        num_classes: number of labels, None if the network is unconditional.
        attention_order: "legacy" or "new", how the weights of q, k and v are laid out.
        middle_attention: the middle has attention.
        group_width: channels that a group of a norm has at least; the groups are 32 or fewer.
        emb_width: width of the timestep's embedding; None is four times the base width.
        dtype: type of the computation, "float32" or "bfloat16"; the statistics of the norms, the softmax, the embedding
            of the timestep, the last layer and the output are float32 always.
        param_dtype: type in which parameters are made where the computation is in `dtype`; all others are float32.
            They are taken in either type; `cast` stores them in the type that is computed with.
        remat: a pass backwards computes every block once more instead of keeping all that is inside, so that solvers
            that guide through the network fit several images into memory.
        for_training: make the pass backwards quick, with more memory (nothing is computed once more) and without
            derivatives forwards (`jax.jvp`).

    Source: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021; `UNetModel` in
    guided_diffusion/unet.py of guided-diffusion.
    """

    in_channels: int = 3
    out_channels: int = 6
    model_channels: int = 128
    channel_mult: tuple[int | float, ...] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: int = 1
    attention_levels: tuple[int, ...] = (4,)
    head_width: int = 64
    num_heads: int | None = None
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    conv_resample: bool = True
    num_classes: int | None = None
    attention_order: str = "legacy"
    middle_attention: bool = True
    group_width: int = 1
    emb_width: int | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = True
    for_training: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], t: Shaped[Array, " N"], y: Int[Array, " N"] | None = None
    ) -> Float[Array, "N H W D"]:
        """Predict the noise, and the variance if learned."""
        self.check(x.shape, y is not None)
        dtype = jnp.dtype(self.dtype)
        widths = [int(mult * self.model_channels) for mult in self.channel_mult]
        last = len(widths) - 1
        emb_width = self.emb_width or 4 * self.model_channels
        emb = Linear(emb_width, name="time_1")(timestep_embedding(t, self.model_channels))
        emb = Linear(emb_width, name="time_2")(nn.silu(emb))
        if self.num_classes is not None:
            shape = (self.num_classes, emb_width)
            table = self.param("label", nn.initializers.normal(), shape, jnp.float32)
            emb = emb + table[y]
        emb = nn.silu(emb).astype(dtype)

        block = nn.remat(ResBlock) if self.remat and not self.for_training else ResBlock
        style = Style(group_width=self.group_width, param_dtype=self.param_dtype, for_training=self.for_training)

        def res(h: Array, width: int, name: str, resample: Callable[[Array], Array] = keep) -> Array:
            return block(width, self.scale_shift_norm, resample, style=style, name=name)(h, emb)

        def attend(h: Array, name: str) -> Array:
            num_heads = self.num_heads or h.shape[-1] // self.head_width
            return Attention(num_heads, self.attention_order == "legacy", style=style, name=name)(h)

        def resample(h: Array, name: str, *, up: bool) -> Array:
            if self.resblock_updown:
                return res(h, h.shape[-1], name, repeat_pixels if up else average_pool)
            return Resample(up, self.conv_resample, style=style, name=name)(h)

        h = Conv(widths[0], style=style, name="conv_in")(x.astype(dtype))
        skips = [h]
        for level, width in enumerate(widths):
            for i in range(self.num_res_blocks):
                h = res(h, width, f"down_{level}_{i}")
                if level in self.attention_levels:
                    h = attend(h, f"down_{level}_{i}_attention")
                skips.append(h)
            if level != last:
                h = resample(h, f"down_{level}_resample", up=False)
                skips.append(h)
        h = res(h, widths[-1], "middle_0")
        if self.middle_attention:
            h = attend(h, "middle_attention")
        h = res(h, widths[-1], "middle_1")
        for level, width in reversed(list(enumerate(widths))):
            for i in range(self.num_res_blocks + 1):
                h = res(jnp.concatenate([h, skips.pop()], axis=-1), width, f"up_{level}_{i}")
                if level in self.attention_levels:
                    h = attend(h, f"up_{level}_{i}_attention")
            if level != 0:
                h = resample(h, f"up_{level}_resample", up=True)
        # The last layer computes in float32, as guided-diffusion's float16 mode does: its output is the noise itself.
        h = nn.silu(GroupNorm(style, "float32", name="norm_out")(h))
        return Conv(self.out_channels, name="conv_out")(h)

    @property
    def num_levels(self) -> int:
        """Count the levels."""
        return len(self.channel_mult)

    def check(self, shape: tuple[int, ...], labelled: bool) -> None:
        """Refuse inputs that the network does not take, and an unknown order of attention."""
        super().check(shape, labelled)
        if self.attention_order not in ("legacy", "new"):
            raise ValueError(f"the attention order must be legacy or new; got {self.attention_order!r}")
