"""How do I use an operator of my own?
===================================

A camera without a lens: a mask of holes casts a shadow of the scene on the detector, and every pixel sees many places
at once. Is a function that computes this enough, and how do I know that it is sound?
"""

from importlib.resources import files

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import ddiff_jax as dd
from ddiff_jax.metrics import psnr

photograph = Image.open(files("ddiff_jax") / "assets" / "sample.png")
truth = jnp.asarray(np.asarray(photograph), jnp.float32) / 127.5 - 1

# %%
# Any object with a method ``forward`` is an operator. Its arrays are fields, so that they can be stacked, changed
# without compiling anew, and learned. ``forward`` takes one image; batches are made by ``jax.vmap``.


@dd.pytree_dataclass
class CodedAperture:
    """A mask of holes in front of a bare detector, whose pixels differ in gain."""

    mask: jax.Array
    gain: jax.Array

    def forward(self, x):
        """Add up shifted copies of the scene, one per hole."""
        spectrum = jnp.fft.rfft2(x, axes=(0, 1)) * jnp.fft.rfft2(self.mask)[..., None]
        return self.gain[..., None] * jnp.fft.irfft2(spectrum, s=x.shape[:2], axes=(0, 1))


rng = np.random.default_rng(0)
holes = np.zeros((64, 64), np.float32)
holes[:24, :24] = rng.random((24, 24)) < 0.06
camera = CodedAperture(
    jnp.asarray(holes / np.sqrt(holes.sum())), jnp.asarray(rng.uniform(0.8, 1.2, (64, 64)), jnp.float32)
)

# %%
# ``check_operator`` looks it over before any time is spent: shapes and types, whether value and gradient are finite,
# ``jit`` and ``vmap``, the gradient against differences, and whether it is linear.

print(dd.check_operator(camera, truth.shape))

# %%
# It says that the operator is linear, and how to say so: ``from_function(..., linear=True)`` adds the adjoint, which
# more solvers need. DDiff needs ``forward`` alone.

operator = dd.operators.from_function(camera.forward, truth.shape, linear=True)
sigma_y = 0.05
y = dd.simulate(operator, truth, sigma_y, jax.random.key(0))

prior = dd.load_prior("faces64")
keys = dd.image_keys(jax.random.key(1), jnp.arange(1))
problem = dd.Problem(operator, y[None], sigma_y)
solvers = {
    "without a prior": dd.solvers.Tikhonov(),
    "DDiff": dd.solvers.DDiff(num_steps=40, directions=4),
}
found = {name: dd.solve(solver, prior, problem, keys).x[0] for name, solver in solvers.items()}
for name, x in found.items():
    print(f"{name}: {psnr(x, truth, protocol='standard'):.1f} dB")

# %%
# Nothing is to be recognised in the measurement, and yet it holds nearly all of the image. Regularised inversion
# brings it back with noise in the frequencies that the mask passes badly; there the prior decides.


def show(**images):
    """Draw images side by side."""
    _, axes = plt.subplots(1, len(images), figsize=(2 * len(images), 2.3), layout="constrained")
    for axis, (name, x) in zip(axes, images.items(), strict=True):
        axis.imshow((np.clip(x, -1, 1) + 1) / 2) if x.ndim == 3 else axis.imshow(x, cmap="gray")
        axis.set(title=name, xticks=[], yticks=[])


span = float(jnp.quantile(jnp.abs(y), 0.995))
show(holes=holes, measurement=y / span, **found, truth=truth)
plt.show()
