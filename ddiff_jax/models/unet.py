"""The ADM UNet of guided-diffusion, channels last."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Shaped

from ddiff_jax.checkpoint import abstract_params
from ddiff_jax.types import Params

GROUPS = 32
EPSILON = 1e-5


@jax.custom_vjp
def product(x: Float[Array, "... C"], kernel: Float[Array, "C D"]) -> Float[Array, "... D"]:
    """Multiply; in the kernel's gradient it is x that is transposed.

    By JAX's own rule it is the gradient of the result, and XLA for CPUs computes that again in the order of the
    transposed copy, slowly.
    """
    return x @ kernel


def _product_gradients(saved: tuple[Array, Array], change: Array) -> tuple[Array, Array]:
    x, kernel = saved
    flat_x, flat_change = (a.reshape(-1, a.shape[-1]) for a in (x, change))
    return change @ kernel.T, jax.lax.dot_general(flat_x, flat_change, (((0,), (0,)), ((), ())))


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_gradients)


@jax.custom_vjp
def bounded(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x, and keep XLA for CPUs from simplifying and fusing the pass backwards across this place.

    Without such bounds it computes the sums of many blocks' gradients anew in each block.
    """
    return x


def _bounded_gradient(_: None, change: Array) -> tuple[Array]:
    return (jax.lax.platform_dependent(change, cpu=jax.lax.optimization_barrier, default=lambda change: change),)


bounded.defvjp(lambda x: (x, None), _bounded_gradient)


class Conv(nn.Module):
    """Square convolution that keeps the size, or halves it with stride 2; parameters are made in `param_dtype`."""

    features: int
    size: int = 3
    stride: int = 1
    param_dtype: str = "float32"
    for_training: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w D"]:
        """Convolve in the type of x."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.dtype(self.param_dtype)).astype(
            x.dtype
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.dtype(self.param_dtype)).astype(x.dtype)
        if self.size == 1:
            multiply = product if self.for_training else jnp.matmul
            y = multiply(x, kernel[0, 0])  # a 1x1 convolution is a matrix product, and quicker as one
        else:
            pad = self.size // 2
            y = jax.lax.conv_general_dilated(
                x, kernel, (self.stride,) * 2, ((pad, pad),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        y = y + bias.reshape(1, 1, 1, -1)
        return bounded(y) if self.for_training else y


class Linear(nn.Module):
    """Matrix product plus bias on vectors; parameters are made in `param_dtype`."""

    features: int
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "N C"]) -> Float[Array, "N D"]:
        """Multiply in the type of x."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.dtype(self.param_dtype)).astype(
            x.dtype
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.dtype(self.param_dtype)).astype(x.dtype)
        return x @ kernel + bias[None]


class GroupNorm(nn.Module):
    """Group normalisation with statistics in float32, and an optional scale and shift per image on top.

    Args:
        dtype: type of the result; None keeps that of x.
    """

    dtype: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], modulation: tuple[Float[Array, "N C"], Float[Array, "N C"]] | None = None
    ) -> Float[Array, "N H W C"]:
        """Normalise; then y (1 + scale) + shift if modulated."""
        num_images, _, _, channels = x.shape
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)[None]
        shift = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)[None]

        wide = x.astype(jnp.float32)
        # Per channel first, then over a group by the law of total variance: as exact as over the group at once, and the
        # long reductions keep the channel axis.
        mean = wide.mean((1, 2))
        if jnp.finfo(x.dtype).bits >= 32:
            variance = jnp.square(wide - mean[:, None, None]).mean((1, 2))
        else:
            # Both sums in one pass over the image: a second one costs 15% of all that a network reads and writes. What
            # cancels in the difference, 1e-7 of the mean square, is less than the rounding of x adds to its variance.
            variance = jnp.maximum(jnp.square(wide).mean((1, 2)) - jnp.square(mean), 0)
        mean, variance = (a.reshape(num_images, GROUPS, channels // GROUPS) for a in (mean, variance))
        group_mean = mean.mean(-1, keepdims=True)
        inv_std = jax.lax.rsqrt((variance + jnp.square(mean - group_mean)).mean(-1) + EPSILON)
        inv_std, scaled_mean = _to_channels(jnp.stack([inv_std, inv_std * group_mean[..., 0]]), channels)
        # Everything per channel is folded into one multiply-add on the image.
        gain, offset = inv_std * scale, shift - scaled_mean * scale
        if modulation is not None:
            extra_scale, extra_shift = (m.astype(jnp.float32) for m in modulation)
            gain, offset = gain * (1 + extra_scale), offset * (1 + extra_scale) + extra_shift
        return (wide * gain[:, None, None] + offset[:, None, None]).astype(self.dtype or x.dtype)


def _to_channels(values: Float[Array, "K N G"], channels: int) -> Float[Array, "K N C"]:
    """Copy the groups' values to their channels."""
    width = channels // GROUPS

    def product(values: Array) -> Array:
        # XLA for CPUs would fuse the copy into the loop over pixels and repeat it, with all that leads to it, for each
        # of them, which doubles the time of a norm. A product with a 0-1 matrix stays outside.
        return jnp.matmul(values, jnp.repeat(jnp.eye(GROUPS, dtype=values.dtype), width, axis=1), precision="highest")

    return jax.lax.platform_dependent(values, cpu=product, default=lambda values: jnp.repeat(values, width, axis=-1))


def average_pool(x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
    """Halve the size by 2x2 means."""
    num_images, height, width, channels = x.shape
    return x.reshape(num_images, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def repeat_pixels(x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
    """Double the size by repeating pixels."""
    num_images, height, width, channels = x.shape
    repeated = jnp.broadcast_to(x[:, :, None, :, None], (num_images, height, 2, width, 2, channels))
    return repeated.reshape(num_images, 2 * height, 2 * width, channels)


def keep(x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """Keep the size."""
    return x


class ResBlock(nn.Module):
    """Two convolutions around the timestep's modulation, plus a skip; may resample before the first."""

    features: int
    scale_shift_norm: bool
    resample: Callable[[Array], Array] = keep
    param_dtype: str = "float32"
    for_training: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], emb: Float[Array, "N E"]) -> Float[Array, "N h w D"]:
        """Apply; `emb` is the activated timestep embedding."""
        conv = functools.partial(Conv, param_dtype=self.param_dtype, for_training=self.for_training)
        linear = functools.partial(Linear, param_dtype=self.param_dtype)
        x = bounded(x) if self.for_training else x
        h = self.resample(nn.silu(GroupNorm(name="norm_1")(x)))
        x = self.resample(x)
        h = conv(self.features, name="conv_1")(h)
        if self.scale_shift_norm:
            scale, shift = jnp.split(linear(2 * self.features, name="emb")(emb), 2, axis=-1)
            h = GroupNorm(name="norm_2")(h, (scale, shift))
        else:
            h = GroupNorm(name="norm_2")(h + linear(self.features, name="emb")(emb)[:, None, None])
        h = conv(self.features, name="conv_2")(nn.silu(h))
        if x.shape[-1] != self.features:
            x = conv(self.features, size=1, name="skip")(x)
        return x + h


class Attention(nn.Module):
    """Self-attention over all pixels, plus a skip."""

    num_heads: int
    legacy_order: bool
    param_dtype: str = "float32"
    for_training: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Apply; the softmax runs in float32."""
        num_images, height, width, channels = x.shape
        conv = functools.partial(Conv, size=1, param_dtype=self.param_dtype, for_training=self.for_training)
        qkv = conv(3 * channels, name="qkv")(GroupNorm(name="norm")(x))
        # Legacy weights order the channels head by head, each with its q, k and v; new ones all q, all k, all v.
        order = (self.num_heads, 3) if self.legacy_order else (3, self.num_heads)
        qkv = qkv.reshape(num_images, height * width, *order, channels // self.num_heads)
        q, k, v = jnp.moveaxis(qkv, 3 if self.legacy_order else 2, 0)
        logits = jnp.einsum("nqhd,nkhd->nhqk", q, k).astype(jnp.float32) / math.sqrt(q.shape[-1])
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        h = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(x.shape)
        return x + conv(channels, name="out")(h)


class Resample(nn.Module):
    """Resampling outside of a residual block: a strided convolution or pooling, repeated pixels with or without one."""

    up: bool
    convolve: bool
    param_dtype: str = "float32"
    for_training: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
        """Halve or double the size."""
        if not self.convolve:
            return repeat_pixels(x) if self.up else average_pool(x)
        stride = 1 if self.up else 2
        shared = {"param_dtype": self.param_dtype, "for_training": self.for_training}
        conv = Conv(x.shape[-1], stride=stride, name="conv", **shared)
        return conv(repeat_pixels(x) if self.up else x)


def timestep_embedding(t: Shaped[Array, " N"], width: int) -> Float[Array, "N E"]:
    """Embed timesteps, integer or fractional: cosines first, then sines, of geometric frequencies."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / half)
    phase = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.pad(jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1), ((0, 0), (0, width % 2)))


class UNet(nn.Module):
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
        attention_levels: levels with attention after every block, 0 the finest. The middle always has it.
        head_width: channels per attention head; used when num_heads is None.
        num_heads: attention heads, the same at every level.
        scale_shift_norm: the timestep scales and shifts the second norm; False adds it before.
        resblock_updown: residual blocks resample; False leaves that to plain layers.
        conv_resample: these plain layers convolve.
        num_classes: number of labels, None if the network is unconditional.
        attention_order: "legacy" or "new", how the weights of q, k and v are laid out.
        dtype: type of the computation, "float32" or "bfloat16"; the statistics of the norms, the softmax, the embedding
            of the timestep, the last layer and the output are float32 always.
        param_dtype: type in which parameters are made where the computation is in `dtype`; all others are float32.
            They are taken in either type; `cast` stores them in the type that is computed with.
        for_training: make the pass backwards quick, with more memory and without derivatives forwards (`jax.jvp`).
            Where it is off, a pass backwards computes every block once more instead of keeping all that is inside, so
            that solvers that guide through the network fit several images into memory.

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
    dtype: str = "float32"
    param_dtype: str = "float32"
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
        emb = Linear(4 * self.model_channels, name="time_1")(timestep_embedding(t, self.model_channels))
        emb = Linear(4 * self.model_channels, name="time_2")(nn.silu(emb))
        if self.num_classes is not None:
            shape = (self.num_classes, 4 * self.model_channels)
            table = self.param("label", nn.initializers.normal(), shape, jnp.float32)
            emb = emb + table[y]
        emb = nn.silu(emb).astype(dtype)

        block = ResBlock if self.for_training else nn.remat(ResBlock)
        shared = {"param_dtype": self.param_dtype, "for_training": self.for_training}

        def res(h: Array, width: int, name: str, resample: Callable[[Array], Array] = keep) -> Array:
            return block(width, self.scale_shift_norm, resample, name=name, **shared)(h, emb)

        def attend(h: Array, name: str) -> Array:
            num_heads = self.num_heads or h.shape[-1] // self.head_width
            return Attention(num_heads, self.attention_order == "legacy", name=name, **shared)(h)

        def resample(h: Array, name: str, *, up: bool) -> Array:
            if self.resblock_updown:
                return res(h, h.shape[-1], name, repeat_pixels if up else average_pool)
            return Resample(up, self.conv_resample, name=name, **shared)(h)

        h = Conv(widths[0], name="conv_in", **shared)(x.astype(dtype))
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
        h = nn.silu(GroupNorm("float32", name="norm_out")(h))
        return Conv(self.out_channels, name="conv_out")(h)

    def cast(self, params: Params) -> Params:
        """Store weights in the types in which the computation takes them.

        The results stay the same, but bfloat16 takes half the memory, and no step has to convert the weights again.
        """
        stored = abstract_params(self.clone(param_dtype=self.dtype))
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, stored)

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Describe the smallest inputs that the network takes."""
        side = 2 ** (len(self.channel_mult) - 1)
        inputs = (
            jax.ShapeDtypeStruct((1, side, side, self.in_channels), jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.int32),
        )
        return inputs if self.num_classes is None else (*inputs, jax.ShapeDtypeStruct((1,), jnp.int32))

    @property
    def num_blocks(self) -> int:
        """Count the residual blocks, resampling ones included."""
        levels = len(self.channel_mult)
        return levels * (2 * self.num_res_blocks + 3)

    def check(self, shape: tuple[int, ...], labelled: bool) -> None:
        """Refuse inputs that the network does not take.

        Args:
            shape: of the images, [N, H, W, C].
            labelled: whether they come with labels.

        Raises:
            ValueError: a side is no multiple, or channels or labels differ.
        """
        multiple = 2 ** (len(self.channel_mult) - 1)
        if shape[1] % multiple or shape[2] % multiple or shape[3] != self.in_channels:
            raise ValueError(
                f"this network takes images whose height and width are multiples of {multiple}, with "
                f"{self.in_channels} channels; got {shape[1]}x{shape[2]}x{shape[3]}"
            )
        if self.attention_order not in ("legacy", "new"):
            raise ValueError(f"the attention order must be legacy or new; got {self.attention_order!r}")
        if labelled != (self.num_classes is not None):
            wanted = "labels y" if self.num_classes is not None else "no labels"
            raise ValueError(f"this network takes {wanted} (num_classes = {self.num_classes})")
