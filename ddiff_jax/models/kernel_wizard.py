"""KernelWizard, the network of BKSE that blurs an image as a kernel code tells it to."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddiff_jax.architecture import abstract_params
from ddiff_jax.checkpoint import named_leaves
from ddiff_jax.operators._nonlinear_blur import NUM_LEVELS, STRIDE
from ddiff_jax.types import Params

_LAST_WIDTH = 64  # the width at full resolution does not follow num_features in the original


def _conv(features: int, stride: int = 1, *, name: str) -> nn.Conv:
    # This is the physics of a measurement, so it stays exact where the backend's default would round to TF32.
    return nn.Conv(features, (3, 3), stride, padding=1, precision=jax.lax.Precision.HIGHEST, name=name)


def _pixel_shuffle(x: Float[Array, "N H W C4"]) -> Float[Array, "N H2 W2 C"]:
    """Spread groups of 4 channels over 2x2 pixels: out[2i + a, 2j + b, c] = in[i, j, 4c + 2a + b]."""
    num, height, width, channels = x.shape
    x = x.reshape(num, height, width, channels // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(num, 2 * height, 2 * width, channels // 4)


# The convolutions of the U-Net are 4x4 of stride 2. A tap a = 2 A + parity of such a kernel sees the pixels of one
# parity of rows, shifted by A pairs of rows, likewise for columns. On pairs of pixels they are one matrix product:
# at the few places of the bottleneck, XLA's direct convolution of 512 channels is up to thirty times slower on a CPU.


def _matmul(x: Float[Array, "... I"], matrix: Float[Array, "I O"]) -> Float[Array, "... O"]:
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


class Halve(nn.Module):
    """Convolution 4x4 of stride 2, zero padding 1, no bias; kernel [A, B, row parity, column parity, in, out]."""

    num_features: int

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 F"]:
        """Map features to half the resolution."""
        num, height, width, channels = x.shape
        shape = (2, 2, 2, 2, channels, self.num_features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows, cols = height // 2, width // 2
        pairs = x.reshape(num, rows + 1, 2, cols + 1, 2, channels)
        patches = jnp.stack([pairs[:, a : a + rows, :, b : b + cols] for a in range(2) for b in range(2)], 1)
        patches = patches.transpose(0, 2, 4, 1, 3, 5, 6).reshape(num, rows, cols, 16 * channels)
        return _matmul(patches, kernel.reshape(16 * channels, self.num_features))


class Double(nn.Module):
    """Transposed convolution 4x4 of stride 2, padding 1: y[2i + a - 1] += w[a] x[i] along both axes.

    Kernel [in, A, B, row parity, column parity, out]. Nothing is multiplied with the zeros between the pixels that
    a convolution of the dilated input would see.
    """

    num_features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 F"]:
        """Map features to twice the resolution."""
        num, height, width, channels = x.shape
        shape = (channels, 2, 2, 2, 2, self.num_features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        parts = _matmul(x, kernel.reshape(channels, 16 * self.num_features))
        parts = parts.reshape(num, height, width, 2, 2, 4 * self.num_features)
        pairs = sum(
            jnp.pad(parts[:, :, :, a, b], ((0, 0), (a, 1 - a), (b, 1 - b), (0, 0))) for a in range(2) for b in range(2)
        )
        y = jnp.reshape(pairs, (num, height + 1, width + 1, 2, 2, self.num_features)).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(num, 2 * height + 2, 2 * width + 2, self.num_features)[:, 1:-1, 1:-1]
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.num_features,), jnp.float32)
            y = y + bias[None, None, None]
        return y


class ResidualBlock(nn.Module):
    """f + conv2(ReLU(conv1(f)))."""

    num_features: int

    @nn.compact
    def __call__(self, f: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Map features to features."""
        h = nn.relu(_conv(self.num_features, name="conv1")(f))
        return f + _conv(self.num_features, name="conv2")(h)


class FeatureExtractor(nn.Module):
    """E: an image at full resolution to features at a quarter of it."""

    num_features: int
    num_blocks: int

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N H4 W4 C"]:
        """Extract the features of images in [0, 1]."""
        for i, stride in enumerate((1, 2, 2)):
            x = nn.leaky_relu(_conv(self.num_features, stride, name=f"conv_{i}")(x), 0.1)
        for i in range(self.num_blocks):
            x = ResidualBlock(self.num_features, name=f"block_{i}")(x)
        return x


class Adapter(nn.Module):
    """G: a U-Net whose bottleneck reads the kernel code next to the features."""

    num_features: int

    @nn.compact
    def __call__(self, x: Float[Array, "N H4 W4 C"], kernel_code: Float[Array, "N h w K"]) -> Float[Array, "N H4 W4 C"]:
        """Turn the features of an image into those of the blur."""
        widths = [self.num_features * factor for factor in (1, 2, 4, 8, 8)]
        skips = []
        for level, width in enumerate(widths):
            if level:
                x = nn.leaky_relu(x, 0.2)
                skips.append(x)
            x = Halve(width, name=f"down_{level}")(x)
        x = jnp.concatenate([x, kernel_code], -1)
        for level in reversed(range(NUM_LEVELS)):
            up = Double(widths[max(level - 1, 0)], use_bias=level == 0, name=f"up_{level}")
            x = up(nn.relu(x))
            if level:
                x = jnp.concatenate([x, skips.pop()], -1)
        return jnp.tanh(x)


class ReconTrunk(nn.Module):
    """T: the features of the blur to a picture at full resolution."""

    num_features: int
    num_blocks: int

    @nn.compact
    def __call__(self, x: Float[Array, "N H4 W4 C"]) -> Float[Array, "N H W 3"]:
        """Draw what the blur adds to the image."""
        for i in range(self.num_blocks):
            x = ResidualBlock(self.num_features, name=f"block_{i}")(x)
        for i, width in enumerate((self.num_features, _LAST_WIDTH)):
            x = nn.leaky_relu(_pixel_shuffle(_conv(4 * width, name=f"up_{i}")(x)), 0.1)
        x = nn.leaky_relu(_conv(_LAST_WIDTH, name="conv_0")(x), 0.1)
        return _conv(3, name="conv_1")(x)


class KernelWizard(nn.Module):
    """The blur model of BKSE: p + T(G(E(p), k)) for an image p and a kernel code k.

    A frozen, hashable value; pure in its weights: `apply({"params": params}, p, k)`. All arithmetic runs at the
    precision of the arrays (no TF32 on GPUs).

    Args:
        num_features: width nf of the features.
        kernel_dim: channels of the kernel code.
        num_front_blocks: residual blocks of the feature extractor.
        num_back_blocks: residual blocks of the reconstruction trunk.

    Source: Tran et al., "Explore Image Deblurring via Encoded Blur Kernel Space", CVPR 2021; `KernelWizard` in
    models/kernel_encoding/kernel_wizard.py of BKSE. The defaults are the options of the published GOPRO_wVAE weights,
    options/generate_blur/default.yml.
    """

    num_features: int = 64
    kernel_dim: int = 512
    num_front_blocks: int = 10
    num_back_blocks: int = 20

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], kernel_code: Float[Array, "N h w K"]) -> Float[Array, "N H W 3"]:
        """Blur images.

        Args:
            x: images in [0, 1], height and width multiples of 128.
            kernel_code: one vector per 128x128 pixels.

        Returns:
            Blurred images, not clamped: range about [0, 1].
        """
        features = FeatureExtractor(self.num_features, self.num_front_blocks, name="feature_extractor")(x)
        features = Adapter(self.num_features, name="adapter")(features, kernel_code)
        return x + ReconTrunk(self.num_features, self.num_back_blocks, name="recon_trunk")(features)

    @property
    def num_blocks(self) -> int:
        """Count the residual blocks."""
        return max(self.num_front_blocks, 0) + max(self.num_back_blocks, 0)

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Describe the smallest inputs that the network takes."""
        x = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, 3), jnp.float32)
        return x, jax.ShapeDtypeStruct((1, 1, 1, self.kernel_dim), jnp.float32)


def kernel_wizard(params: Params) -> KernelWizard:
    """Find the network that weights belong to, by their names and shapes.

    Raises:
        ValueError: they are not those of a KernelWizard; the message lists what does not fit.
    """
    given = _shapes(params)
    num_features = (given.get("feature_extractor/conv_0/bias") or (0,))[0]
    kernel_dim = (given.get("adapter/up_4/kernel") or (0,))[0] - 8 * num_features
    if min(num_features, kernel_dim) < 1:
        parts = sorted({name.partition("/")[0] for name in given})
        raise ValueError(
            "params must be the weights of a KernelWizard, a nested dict or the folder of a converted checkpoint; "
            f"got one that holds {', '.join(parts) or 'nothing'}: convert GOPRO_wVAE.pth with `ddiff convert`"
        )
    num_blocks = [
        sum(name.startswith(part) and name.endswith("conv1/bias") for name in given)
        for part in ("feature_extractor/block_", "recon_trunk/block_")
    ]
    module = KernelWizard(num_features, kernel_dim, *num_blocks)
    wanted = _shapes(abstract_params(module))
    names = [name for name in sorted(given | wanted) if given.get(name) != wanted.get(name)]
    wrong = [f"{name} is {given.get(name, 'missing')}, not {wanted.get(name, 'known')}" for name in names]
    if wrong:
        raise ValueError(
            f"the weights do not fit a KernelWizard of {num_features} features, a code of {kernel_dim} channels and "
            f"{num_blocks} residual blocks: {'; '.join(wrong)}"
        )
    return module


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {name: jnp.shape(weight) for name, weight in named_leaves(params).items()}
