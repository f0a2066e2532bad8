"""Layers that the networks of images share, channels last."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped


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


@dataclasses.dataclass(frozen=True)
class Style:
    """What all blocks of one network have in common.

    Args:
        groups: of channels in every norm.
        group_width: channels that a group has at least; narrower layers have fewer groups.
        epsilon: added to the variances in norms.
        activation: key of `ACTIVATIONS`.
        param_dtype: type in which parameters are made where the computation is in `dtype`; all others are float32.
        for_training: make the pass backwards quick, without derivatives forwards (`jax.jvp`).
    """

    groups: int = 32
    group_width: int = 1
    epsilon: float = 1e-5
    activation: str = "silu"
    param_dtype: str = "float32"
    for_training: bool = False

    def activate(self, x: Array) -> Array:
        """Apply the activation."""
        return ACTIVATIONS[self.activation](x)


def parameter(
    module: nn.Module, name: str, init: Callable[..., Array], shape: tuple[int, ...], dtype: DTypeLike
) -> Any:  # an array, of NumPy where it was given so
    """Do what `module.param` does, in half of the time that a network's trace takes.

    Flax traces the initialiser of every parameter that is there already, to compare shapes.
    """
    if module.is_initializing() or not module.has_variable("params", name):
        return module.param(name, init, shape, dtype)
    value = module.get_variable("params", name)
    if value.shape != shape:
        raise ScopeParamShapeError(name, "/".join(module.path), value.shape, shape)
    return value


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
}
PUBLISHED = Style()


class Conv(nn.Module):
    """Square convolution that keeps the size, or halves it with stride 2; a kernel of even size only halves.

    Args:
        features: channels of the result.
        size: of the kernel.
        stride: 1 or 2.
        style: of the network.
        uneven: with stride 2, pad one row below and one column on the right instead of one on each side.
    """

    features: int
    size: int = 3
    stride: int = 1
    style: Style = PUBLISHED
    uneven: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w D"]:
        """Convolve in the type of x."""
        shape, made = (self.size, self.size, x.shape[-1], self.features), jnp.dtype(self.style.param_dtype)
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), shape, made).astype(x.dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,), made).astype(x.dtype)
        if self.size == 1:
            multiply = product if self.style.for_training else jnp.matmul
            y = multiply(x, kernel[0, 0])  # a 1x1 convolution is a matrix product, and quicker as one
        else:
            margin = (self.size - 1) // 2
            pad = (0, 1) if self.uneven else (margin, margin)
            y = jax.lax.conv_general_dilated(
                x, kernel, (self.stride,) * 2, (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        y = y + bias.reshape(1, 1, 1, -1)
        return bounded(y) if self.style.for_training else y


class Linear(nn.Module):
    """Matrix product on vectors, plus bias."""

    features: int
    style: Style = PUBLISHED
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "N C"]) -> Float[Array, "N D"]:
        """Multiply in the type of x."""
        shape, made = (x.shape[-1], self.features), jnp.dtype(self.style.param_dtype)
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), shape, made).astype(x.dtype)
        if not self.use_bias:
            return x @ kernel
        return x @ kernel + parameter(self, "bias", nn.initializers.zeros, (self.features,), made).astype(x.dtype)[None]


class GroupNorm(nn.Module):
    """Group normalisation with statistics in float32, and an optional scale and shift per image on top.

    Args:
        style: of the network; says how many groups.
        dtype: type of the result; None keeps that of x.
    """

    style: Style = PUBLISHED
    dtype: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], modulation: tuple[Float[Array, "N C"], Float[Array, "N C"]] | None = None
    ) -> Float[Array, "N H W C"]:
        """Normalise; then y (1 + scale) + shift if modulated."""
        num_images, _, _, channels = x.shape
        groups = min(self.style.groups, channels // self.style.group_width)
        scale = parameter(self, "scale", nn.initializers.ones, (channels,), jnp.float32)[None]
        shift = parameter(self, "bias", nn.initializers.zeros, (channels,), jnp.float32)[None]

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
        mean, variance = (a.reshape(num_images, groups, channels // groups) for a in (mean, variance))
        group_mean = mean.mean(-1, keepdims=True)
        inv_std = jax.lax.rsqrt((variance + jnp.square(mean - group_mean)).mean(-1) + self.style.epsilon)
        inv_std, scaled_mean = _to_channels(jnp.stack([inv_std, inv_std * group_mean[..., 0]]), channels)
        # Everything per channel is folded into one multiply-add on the image.
        gain, offset = inv_std * scale, shift - scaled_mean * scale
        if modulation is not None:
            extra_scale, extra_shift = (m.astype(jnp.float32) for m in modulation)
            gain, offset = gain * (1 + extra_scale), offset * (1 + extra_scale) + extra_shift
        return (wide * gain[:, None, None] + offset[:, None, None]).astype(self.dtype or x.dtype)


def _to_channels(values: Float[Array, "K N G"], channels: int) -> Float[Array, "K N C"]:
    """Copy the groups' values to their channels."""
    groups = values.shape[-1]
    width = channels // groups

    def product(values: Array) -> Array:
        # XLA for CPUs would fuse the copy into the loop over pixels and repeat it, with all that leads to it, for each
        # of them, which doubles the time of a norm. A product with a 0-1 matrix stays outside.
        return jnp.matmul(values, jnp.repeat(jnp.eye(groups, dtype=values.dtype), width, axis=1), precision="highest")

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


def smooth_half(x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
    """Halve the size with the filter [1, 3, 3, 1] / 8 along both axes, zeros outside."""
    for axis in (1, 2):
        x = _halve(x, axis)
    return x


def smooth_double(x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
    """Double the size with the filter [1, 3, 3, 1] / 4 along both axes, zeros outside."""
    for axis in (1, 2):
        x = _double(x, axis)
    return x


def _halve(x: Array, axis: int) -> Array:
    pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    return (3 * (even + odd) + _shifted(odd, axis, 1) + _shifted(even, axis, -1)) / 8


def _double(x: Array, axis: int) -> Array:
    even, odd = ((3 * x + _shifted(x, axis, by)) / 4 for by in (1, -1))
    return jnp.stack([even, odd], axis + 1).reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def _shifted(x: Array, axis: int, by: int) -> Array:
    """Move by one pixel up (1) or down (-1) the axis; a zero takes the free place."""
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (by, -by, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), pads)


def keep(x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """Keep the size."""
    return x


class ResBlock(nn.Module):
    """Two convolutions around the timestep's modulation, plus a skip; may resample before the first.

    Args:
        features: channels of the result.
        scale_shift_norm: the timestep scales and shifts the second norm; False adds it before.
        resample: changes the size of what comes in and of what is normalised.
        gain: factor of the result.
        with_skip: whether the skip has a kernel; None where the number of channels changes.
        style: of the network.
    """

    features: int
    scale_shift_norm: bool
    resample: Callable[[Array], Array] = keep
    gain: float = 1.0
    with_skip: bool | None = None
    style: Style = PUBLISHED

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], emb: Float[Array, "N E"]) -> Float[Array, "N h w D"]:
        """Apply; `emb` is the activated timestep embedding."""
        conv, linear = functools.partial(Conv, style=self.style), functools.partial(Linear, style=self.style)
        norm = functools.partial(GroupNorm, self.style)
        x = bounded(x) if self.style.for_training else x
        h = self.resample(self.style.activate(norm(name="norm_1")(x)))
        x = self.resample(x)
        h = conv(self.features, name="conv_1")(h)
        if self.scale_shift_norm:
            scale, shift = jnp.split(linear(2 * self.features, name="emb")(emb), 2, axis=-1)
            h = norm(name="norm_2")(h, (scale, shift))
        else:
            h = norm(name="norm_2")(h + linear(self.features, name="emb")(emb)[:, None, None])
        h = conv(self.features, name="conv_2")(self.style.activate(h))
        if x.shape[-1] != self.features if self.with_skip is None else self.with_skip:
            x = conv(self.features, size=1, name="skip")(x)
        return _scaled(x + h, self.gain)


def _scaled(x: Array, gain: float) -> Array:
    return x if gain == 1 else gain * x


class Attention(nn.Module):
    """Self-attention over all pixels, plus a skip.

    Args:
        num_heads: how many.
        legacy_order: the weights order the channels head by head, each with its q, k and v; False all q, all k, all v.
        normalise: whether a norm comes first.
        gain: factor of the result.
        style: of the network.
        apart: q, k and v have kernels of their own instead of one for all; then there is no order.
    """

    num_heads: int
    legacy_order: bool
    normalise: bool = True
    gain: float = 1.0
    style: Style = PUBLISHED
    apart: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Apply; the softmax runs in float32."""
        num_images, height, width, channels = x.shape
        conv = functools.partial(Conv, size=1, style=self.style)
        seen = GroupNorm(self.style, name="norm")(x) if self.normalise else x
        if self.apart:
            heads = (num_images, height * width, self.num_heads, channels // self.num_heads)
            q, k, v = (conv(channels, name=name)(seen).reshape(heads) for name in "qkv")
        else:
            order = (self.num_heads, 3) if self.legacy_order else (3, self.num_heads)
            qkv = conv(3 * channels, name="qkv")(seen)
            qkv = qkv.reshape(num_images, height * width, *order, channels // self.num_heads)
            q, k, v = jnp.moveaxis(qkv, 3 if self.legacy_order else 2, 0)
        logits = jnp.einsum("nqhd,nkhd->nhqk", q, k).astype(jnp.float32) / math.sqrt(q.shape[-1])
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        h = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(x.shape)
        return _scaled(x + conv(channels, name="out")(h), self.gain)


class Resample(nn.Module):
    """Resampling outside of a residual block: a strided convolution or pooling, repeated pixels with or without one.

    Args:
        up: double the size instead of halving it.
        convolve: with a convolution.
        uneven: as in `Conv`.
        style: of the network.
    """

    up: bool
    convolve: bool
    uneven: bool = False
    style: Style = PUBLISHED

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
        """Halve or double the size."""
        if not self.convolve:
            return repeat_pixels(x) if self.up else average_pool(x)
        if self.up:
            return Conv(x.shape[-1], style=self.style, name="conv")(repeat_pixels(x))
        return Conv(x.shape[-1], stride=2, uneven=self.uneven, style=self.style, name="conv")(x)


def timestep_embedding(
    t: Shaped[Array, " N"], width: int, order: Literal["cos", "sin"] = "cos", shift: float = 0
) -> Float[Array, "N E"]:
    """Embed timesteps, integer or fractional, by cosines and sines of geometric frequencies.

    Args:
        t: what the network is told.
        width: E.
        order: which comes first.
        shift: the frequencies fall to 10000^(-(n - 1) / (n - shift)), n = E / 2.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / (half - shift))
    phase = t.astype(jnp.float32)[:, None] * frequencies[None]
    waves = (jnp.cos(phase), jnp.sin(phase))
    return jnp.pad(jnp.concatenate(waves if order == "cos" else waves[::-1], axis=-1), ((0, 0), (0, width % 2)))
