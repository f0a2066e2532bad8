"""Nonlinear blur: a trained network (BKSE) blurs as a kernel code tells it to."""

from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.operators.base import check_shape
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement, Params

NUM_LEVELS = 5  # how often the network's U-Net halves the features, which lie at every fourth pixel
STRIDE = 4 * 2**NUM_LEVELS  # pixels per place of the kernel code: those of 256x256 images have 2x2 places
CODE_STD = 1.2  # of the published kernel codes


@runtime_checkable
class Blurring(Protocol):
    """A blur network as a value: hashable, and pure in its weights."""

    def apply(self, variables: dict[str, Params], x: Array, kernel_code: Array, /) -> Any:
        """Map images [N, H, W, 3] in [0, 1] and codes [N, h, w, K] to blurred images, not clamped."""
        ...


@pytree_dataclass
class NonlinearBlur:
    """y = clamp(2 f((x + 1) / 2, k) - 1, -1, 1) with a blur network f and a kernel code k.

    To give every image its own code beside shared weights, map over codes:
    `jax.vmap(lambda code, x: dataclasses.replace(operator, kernel_code=code).forward(x))(codes, x)`.

    Args:
        params: weights of the network.
        kernel_code: k, one vector for every 128x128 pixels.
        module: the network, for example `ddiff_jax.models.kernel_wizard.KernelWizard`.
        image_shape: (H, W, 3) of the input.
    """

    params: Params
    kernel_code: Float[Array, "h w K"]
    module: Blurring = static_field()
    image_shape: ImageShape = static_field()
    measures_picture: ClassVar[bool] = True

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, 3] to [H, W, 3] in [-1, 1]."""
        params = jax.tree.map(lambda w: w.astype(x.dtype), self.params)
        blurred = self.module.apply({"params": params}, (x + 1)[None] / 2, self.kernel_code.astype(x.dtype)[None])[0]
        y = 2 * blurred - 1
        # Not jnp.clip: the published (PyTorch) clamp passes the derivative at the ends themselves.
        return jnp.where(jnp.abs(y) <= 1, y, jnp.sign(y))


def nonlinear_blur(
    shape: ImageShape, *, params: Params | str | Path, kernel_code: int | str | Path | np.ndarray | Array = 0
) -> NonlinearBlur:
    """Build the blur of the BKSE network.

    Args:
        shape: image shape (H, W, 3), H and W multiples of 128. The published task is 256x256. The network
            is convolutional and takes the others too, but it was trained at 256x256 only.
        params: folder of converted BKSE weights (`ddiff convert`), or the tree of weights itself.
        kernel_code: a whole number seeds `released_kernel_code`; an array, or a file that holds one, is used as it
            is, [H / 128, W / 128, K] with K = 512 for the published weights.

    Returns:
        Operator; input and measurement [H, W, 3] in [-1, 1].

    Raises:
        ValueError: the image has another number of channels or sides than the network can take, the weights are
            damaged or not those of a KernelWizard, or the code has another shape or values that are not finite.
        FileNotFoundError: there are no converted weights at this path.

    Source: Tran et al., "Explore Image Deblurring via Encoded Blur Kernel Space", CVPR 2021; `adaptKernel` of
    BKSE's `KernelWizard`; as a measurement, `NonlinearBlurOperator` in guided_diffusion/measurements.py of DPS.
    DDiff (`forward` in ddiff_sample.py) and DAPS (`NonlinearBlur`) fix one code for all images, DPS draws another at
    every call.
    Differs: at other sizes than 256x256 every place of the bottleneck gets its own vector of the code. Repeating
    those of 2x2 places would correlate the blur of distant regions, which the network never met.
    """
    from ddiff_jax.models.kernel_wizard import kernel_wizard

    height, width, channels = shape = check_shape(shape)
    if channels != 3 or height % STRIDE or width % STRIDE:
        raise ValueError(
            f"nonlinear_blur needs RGB images with sides that are multiples of {STRIDE}, because the network halves "
            f"them seven times and its kernel code (2x2 vectors at 256x256) sits at what is left; got {shape}: "
            "resize the images, or use camera_blur, which takes any size"
        )
    if isinstance(params, str | Path):
        from ddiff_jax.checkpoint import load_weights

        _, params, _ = load_weights(params, "kernel_wizard")
    module = kernel_wizard(params)
    code = _code(kernel_code, (height // STRIDE, width // STRIDE, module.kernel_dim))
    return NonlinearBlur(jax.tree.map(jnp.asarray, params), jnp.asarray(code, float), module, shape)


def released_kernel_code(shape: tuple[int, int, int] = (2, 2, 512), *, seed: int = 0) -> Float[np.ndarray, "h w K"]:
    """Reproduce the kernel code of the released DDiff code: 1.2 times PyTorch's normal numbers after a seed.

    Up to rounding (4e-7) it is `1.2 * torch.randn(1, K, h, w)` on a CPU.

    Args:
        shape: (h, w, K), at least 16 numbers in all and a multiple of 16.
        seed: of the Mersenne Twister; DDiff's is 0.

    Returns:
        float32; standard deviation 1.2.

    Raises:
        ValueError: the seed is not in [0, 2^32), or the numbers do not fill blocks of 16.

    Source: `forward` in ddiff_sample.py of DDiff; `normal_fill` in ATen/native/cpu/DistributionTemplates.h of PyTorch.
    DAPS draws with NumPy instead:
    `1.2 * np.random.RandomState(0).randn(1, 512, 2, 2)[0].transpose(1, 2, 0)`, to be given as `kernel_code`.

    Example:
        >>> [round(float(number), 3) for number in released_kernel_code()[0, 0, :2]]
        [-1.351, 1.018]
    """
    height, width, kernel_dim = shape
    count = height * width * kernel_dim
    if count < 16 or count % 16:
        raise ValueError(f"kernel codes are drawn in blocks of 16 numbers; got {shape}: give the code as an array")
    if not 0 <= seed < 2**32:
        raise ValueError(f"the seed of a kernel code must lie in [0, 2^32); got {seed}")
    # PyTorch's way: 24 bits make a uniform number; a block of 16 holds 8 radii and 8 angles (Box and Muller).
    raw = np.random.RandomState(seed).randint(2**32, size=(count // 16, 2, 8), dtype=np.uint32)
    uniform = (raw % 2**24).astype(np.float32) / np.float32(2**24)
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, 0])), np.float32(2 * np.pi) * uniform[:, 1]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return np.float32(CODE_STD) * normal.reshape(kernel_dim, height, width).transpose(1, 2, 0)


def _code(given: int | str | Path | np.ndarray | Array, shape: tuple[int, int, int]) -> np.ndarray:
    if isinstance(given, int | np.integer):
        return released_kernel_code(shape, seed=int(given))
    if isinstance(given, str | Path):
        from ddiff_jax.image_files import read_array

        given = read_array(Path(given))
    code = np.asarray(given)
    if code.shape != shape:
        raise ValueError(
            f"the kernel code must have shape {shape}: one vector for every 128x128 pixels, channels last; got "
            f"{code.shape} (from PyTorch's (1, K, h, w): code[0].transpose(1, 2, 0))"
        )
    if code.dtype.kind != "f" or not np.isfinite(code).all():
        raise ValueError(f"the kernel code must hold finite real numbers; got {code.dtype}")
    return code
