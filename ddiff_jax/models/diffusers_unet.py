"""The UNet of diffusers, channels last."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Shaped

from ddiff_jax.models.layers import (
    ACTIVATIONS,
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

Resampling = Literal["conv", "block"]


class UNet2D(Network):
    """`UNet2DModel` of diffusers, with a sinusoidal embedding of the timestep.

    `module.apply({"params": params}, x, t)` maps images x [N, H, W, C] and timesteps t [N], which may be fractional, to
    [N, H, W, D] in float32. H and W are multiples of 2^(levels - 1). Class-conditional networks take labels `y` [N].
    What `num_res_blocks`, `dtype`, `param_dtype` and `remat` are, see `UNet`.

    Args:
        in_channels: C.
        out_channels: D; 2 C with a learned variance, of which the first C channels are the prediction.
        widths: channels of every level, finest first.
        num_res_blocks: residual blocks per level going down; one more going up.
        down_attention: levels with attention after every block going down, 0 the finest.
        up_attention: those going up.
        down_resample: what leads from every level but the coarsest to the next: a convolution or a residual block.
        up_resample: what leads from every level but the finest, to which the first entry leads, to the one before.
        uneven: convolutions that halve the size pad one row below and one column on the right, not one on each side.
        middle: there are blocks between the way down and the way up.
        middle_attention: they have attention.
        middle_groups: of the norm of this attention; None as everywhere, 0 no norm.
        middle_divisor: of what the blocks in the middle and their attention give.
        head_width: channels per attention head; None is one head.
        groups: of channels in every norm.
        epsilon: added to the variances in norms.
        scale_shift_norm: the timestep scales and shifts the second norm; False adds it before.
        wave_order: which comes first in the embedding of the timestep, cosines or sines.
        wave_shift: see `timestep_embedding`.
        emb_width: width of the timestep's embedding; None is four times the finest level's.
        activation: of the residual blocks, key of `ACTIVATIONS`.
        num_classes: number of labels, None if the network is unconditional.
        centred: images in [0, 1] are meant: the network computes 2 x - 1 first.
        dtype: type of the computation, "float32" or "bfloat16".
        param_dtype: type in which parameters are made where the computation is in `dtype`.
        remat: a pass backwards computes every block once more.

    Source: `UNet2DModel` of huggingface/diffusers; the network of Ho et al., "Denoising Diffusion Probabilistic
        Models", NeurIPS 2020, is one of its configurations.
    """

    in_channels: int = 3
    out_channels: int = 3
    widths: tuple[int, ...] = (224, 448, 672, 896)
    num_res_blocks: int = 2
    down_attention: tuple[int, ...] = (1, 2, 3)
    up_attention: tuple[int, ...] = (1, 2, 3)
    down_resample: tuple[Resampling, ...] = ("conv", "conv", "conv")
    up_resample: tuple[Resampling, ...] = ("conv", "conv", "conv")
    uneven: bool = False
    middle: bool = True
    middle_attention: bool = True
    middle_groups: int | None = None
    middle_divisor: float | int = 1.0
    head_width: int | None = 8
    groups: int = 32
    epsilon: float | int = 1e-5
    scale_shift_norm: bool = False
    wave_order: Literal["cos", "sin"] = "cos"
    wave_shift: float | int = 0
    emb_width: int | None = None
    activation: str = "silu"
    num_classes: int | None = None
    centred: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], t: Shaped[Array, " N"], y: Int[Array, " N"] | None = None
    ) -> Float[Array, "N H W D"]:
        """Predict what the network was trained to predict."""
        self.check(x.shape, y is not None)
        style = Style(
            groups=self.groups, epsilon=self.epsilon, activation=self.activation, param_dtype=self.param_dtype
        )
        emb = self._embed(t, y, style).astype(jnp.dtype(self.dtype))
        block = nn.remat(ResBlock) if self.remat else ResBlock

        def res(h: Array, width: int, name: str, resample: Callable[[Array], Array] = keep, gain: float = 1.0) -> Array:
            return block(width, self.scale_shift_norm, resample, gain, style=style, name=name)(h, emb)

        def attend(h: Array, name: str, groups: int | None = None, gain: float = 1.0) -> Array:
            own = dataclasses.replace(style, groups=groups or style.groups)
            num_heads = h.shape[-1] // (self.head_width or h.shape[-1])
            name = f"{name}_attention"
            return Attention(num_heads, False, groups != 0, gain, style=own, apart=True, name=name)(h)

        def resample(h: Array, how: Resampling, name: str, *, up: bool) -> Array:
            if how == "block":
                return res(h, h.shape[-1], name, repeat_pixels if up else average_pool)
            return Resample(up, True, self.uneven, style=style, name=name)(h)

        x = 2 * x - 1 if self.centred else x
        h = Conv(self.widths[0], style=style, name="conv_in")(x.astype(jnp.dtype(self.dtype)))
        skips = [h]
        for level, width in enumerate(self.widths):
            for i in range(self.num_res_blocks):
                h = res(h, width, f"down_{level}_{i}")
                if level in self.down_attention:
                    h = attend(h, f"down_{level}_{i}")
                skips.append(h)
            if level + 1 < len(self.widths):
                h = resample(h, self.down_resample[level], f"down_{level}_resample", up=False)
                skips.append(h)
        if self.middle:
            gain = 1 / self.middle_divisor
            h = res(h, self.widths[-1], "middle_0", gain=gain)
            if self.middle_attention:
                h = attend(h, "middle", self.middle_groups, gain)
            h = res(h, self.widths[-1], "middle_1", gain=gain)
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.num_res_blocks + 1):
                h = res(jnp.concatenate([h, skips.pop()], axis=-1), width, f"up_{level}_{i}")
                if level in self.up_attention:
                    h = attend(h, f"up_{level}_{i}")
            if level > 0:
                h = resample(h, self.up_resample[level - 1], f"up_{level}_resample", up=True)
        # In float32, as in `UNet`: what comes out is the prediction itself.
        h = nn.silu(GroupNorm(style, "float32", name="norm_out")(h))
        return Conv(self.out_channels, name="conv_out")(h)

    def _embed(self, t: Array, y: Array | None, style: Style) -> Array:
        emb_width = self.emb_width or 4 * self.widths[0]
        waves = timestep_embedding(t, self.widths[0], self.wave_order, float(self.wave_shift))
        emb = Linear(emb_width, name="time_1")(waves)
        emb = Linear(emb_width, name="time_2")(nn.silu(emb))
        if self.num_classes is not None:
            emb = emb + self.param("label", nn.initializers.normal(), (self.num_classes, emb_width), jnp.float32)[y]
        return style.activate(emb)

    @property
    def num_levels(self) -> int:
        """Count the levels."""
        return len(self.widths)

    def check(self, shape: tuple[int, ...], labelled: bool) -> None:
        """Refuse inputs that the network does not take, and fields that do not go together."""
        levels = len(self.widths)
        super().check(shape, labelled)
        if not len(self.down_resample) == len(self.up_resample) == levels - 1:
            raise ValueError(
                f"{levels} levels need {levels - 1} entries in down_resample and in up_resample; got "
                f"{len(self.down_resample)} and {len(self.up_resample)}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"the activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}")
        if not (self.middle_divisor > 0 and self.epsilon >= 0 and self.groups > 0):
            raise ValueError(
                "middle_divisor and groups must be above 0 and epsilon at least 0; got "
                f"{self.middle_divisor}, {self.groups} and {self.epsilon}"
            )
        if any(width < 1 or width % self.groups for width in self.widths):
            raise ValueError(f"widths must be multiples of the {self.groups} groups of norms; got {self.widths}")
        if not self.widths[0] // 2 > self.wave_shift:
            raise ValueError(
                f"wave_shift must be below half of the first width, {self.widths[0]}; got {self.wave_shift}"
            )
        attended = {self.widths[i] for i in (*self.down_attention, *self.up_attention) if 0 <= i < levels}
        if self.middle and self.middle_attention:
            attended.add(self.widths[-1])
            if self.middle_groups and self.widths[-1] % self.middle_groups:
                raise ValueError(
                    f"the last width must be a multiple of the {self.middle_groups} groups of the attention in the "
                    f"middle; got {self.widths[-1]}"
                )
        if self.head_width is not None and (self.head_width < 1 or any(width % self.head_width for width in attended)):
            raise ValueError(
                f"widths with attention must be multiples of the {self.head_width} channels of a head; got "
                f"{sorted(attended)}"
            )
