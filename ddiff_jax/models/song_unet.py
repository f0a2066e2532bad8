"""The networks of Song et al. 2021, DDPM++ and NCSN++, as EDM trains them, channels last."""

import functools
import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Shaped

from ddiff_jax.models.layers import (
    Attention,
    Conv,
    GroupNorm,
    Linear,
    ResBlock,
    Style,
    average_pool,
    keep,
    repeat_pixels,
    smooth_double,
    smooth_half,
    timestep_embedding,
)
from ddiff_jax.models.network import Network

HALF = math.sqrt(0.5)


class SongUNet(Network):
    """DDPM++ (positional embedding, plain resampling) and NCSN++ (Fourier features, residual input, smooth resampling).

    `module.apply({"params": params}, x, t)` maps images x [N, H, W, C] and t [N], which tells of the noise, to
    [N, H, W, D] in float32. H and W are multiples of 2^(levels - 1). Class-conditional networks take labels `y` [N].

    Args:
        in_channels: C.
        out_channels: D.
        model_channels: base width, that of the first convolution.
        channel_mult: width of every level in units of the base width, finest first; fractions allowed.
        num_res_blocks: residual blocks per level going down; one more going up.
        attention_levels: levels with attention, 0 the finest: after every block going down and the last one going up.
            The middle has it by itself.
        emb_width: width of the timestep's embedding.
        noise_width: width of the sinusoids or features of t before it.
        fourier: random Fourier features of t instead of sinusoids.
        smooth: resample with the filter [1, 3, 3, 1] instead of means and repeated pixels.
        encoder: "residual" and "skip" bring the image itself, made smaller, to every level; "standard" does not.
        decoder: "skip" adds up the results of all levels; "standard" takes that of the finest.
        num_classes: number of labels, None if the network is unconditional.
        group_width: channels that a group of a norm has at least; the groups are 32 or fewer.
        dtype: type of the computation, "float32" or "bfloat16"; the statistics of the norms, the softmax, the embedding
            of the timestep, the last layers and the output are float32 always.
        param_dtype: as in `UNet`.
        remat: as in `UNet`.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021, in the
        form of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022.
    """

    in_channels: int = 3
    out_channels: int = 3
    model_channels: int = 128
    channel_mult: tuple[int | float, ...] = (2, 2, 2)
    num_res_blocks: int = 4
    attention_levels: tuple[int, ...] = (1,)
    emb_width: int = 512
    noise_width: int = 128
    fourier: bool = False
    smooth: bool = False
    encoder: Literal["standard", "skip", "residual"] = "standard"
    decoder: Literal["standard", "skip"] = "standard"
    num_classes: int | None = None
    group_width: int = 4
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], t: Shaped[Array, " N"], y: Int[Array, " N"] | None = None
    ) -> Float[Array, "N H W D"]:
        """Predict what the network was trained to predict."""
        self.check(x.shape, y is not None)
        widths = [int(mult * self.model_channels) for mult in self.channel_mult]
        last = len(widths) - 1
        emb = self._embed(t, y).astype(jnp.dtype(self.dtype))
        style = Style(group_width=self.group_width, epsilon=1e-6, param_dtype=self.param_dtype)
        conv = functools.partial(Conv, style=style)
        block = nn.remat(ResBlock) if self.remat else ResBlock
        down, up = (smooth_half, smooth_double) if self.smooth else (average_pool, repeat_pixels)

        def res(h: Array, width: int, name: str, resample: Callable[[Array], Array] = keep) -> Array:
            # Blocks that resample have a kernel in their skip, whether the width changes or not.
            with_skip = None if resample is keep else True
            return block(width, False, resample, HALF, with_skip, style=style, name=name)(h, emb)

        def attend(h: Array, name: str) -> Array:
            return Attention(1, True, gain=HALF, style=style, name=f"{name}_attention")(h)

        def result(h: Array, level: int) -> Array:
            # In float32, as in `UNet`: what comes out is the prediction itself.
            h = nn.silu(GroupNorm(style, "float32", name=f"out_{level}_norm")(h))
            return Conv(self.out_channels, name=f"out_{level}")(h)

        h = image = x.astype(jnp.dtype(self.dtype))
        skips = []
        for level, width in enumerate(widths):
            if level == 0:
                h = conv(self.model_channels, name="conv_in")(h)
            else:
                h = res(h, h.shape[-1], f"down_{level - 1}_resample", down)
            if level and self.encoder == "residual":
                # A 3x3 convolution and the filter after it are one convolution, whose kernel has the filter in it.
                kernel_size = 6 if self.smooth else 4
                h = image = HALF * (h + conv(h.shape[-1], kernel_size, 2, name=f"down_{level}_image")(image))
            elif level and self.encoder == "skip":
                image = down(image)
                h = h + conv(h.shape[-1], 1, name=f"down_{level}_image")(image)
            skips.append(h)
            for i in range(self.num_res_blocks):
                h = res(h, width, f"down_{level}_{i}")
                if level in self.attention_levels:
                    h = attend(h, f"down_{level}_{i}")
                skips.append(h)
        h = attend(res(h, widths[-1], "middle_0"), "middle")
        h = res(h, widths[-1], "middle_1")
        out = None
        for level, width in reversed(list(enumerate(widths))):
            if level != last:
                h = res(h, h.shape[-1], f"up_{level + 1}_resample", up)
            for i in range(self.num_res_blocks + 1):
                h = res(jnp.concatenate([h, skips.pop()], axis=-1), width, f"up_{level}_{i}")
            if level in self.attention_levels:
                h = attend(h, f"up_{level}_{self.num_res_blocks}")
            if self.decoder == "skip":
                out = result(h, level) if out is None else up(out) + result(h, level)
        return result(h, 0) if out is None else out

    def _embed(self, t: Array, y: Array | None) -> Array:
        """Embed t and the label; activated."""
        if self.fourier:
            frequencies = self.param("frequencies", nn.initializers.normal(16), (self.noise_width // 2,), jnp.float32)
            phase = 2 * jnp.pi * t.astype(jnp.float32)[:, None] * frequencies[None]
            emb = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
        else:
            emb = timestep_embedding(t, self.noise_width, "sin", 1.0)
        if self.num_classes is not None:
            chosen = math.sqrt(self.num_classes) * jax.nn.one_hot(y, self.num_classes)
            emb = emb + Linear(self.noise_width, name="label")(chosen)
        emb = nn.silu(Linear(self.emb_width, name="time_1")(emb))
        return nn.silu(Linear(self.emb_width, name="time_2")(emb))

    @property
    def num_levels(self) -> int:
        """Count the levels."""
        return len(self.channel_mult)
