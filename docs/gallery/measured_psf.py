"""How do I deblur with a point spread function that I measured?
=============================================================

The image of a bead or of a star shows how an instrument spreads a point. How does such a picture become the kernel of
an operator, and what does it bring beside a guess?
"""

from importlib.resources import files

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import ddiff_jax as dd
from ddiff_jax.metrics import psnr

# %%
# The instrument moves during the exposure. It takes two pictures: one of a point on a dark ground, which has an offset
# and noise of its own, and one of what is of interest.

photograph = Image.open(files("ddiff_jax") / "assets" / "sample.png")
truth = jnp.asarray(np.asarray(photograph), jnp.float32) / 127.5 - 1
side, sigma_y = 15, 0.03

instrument = dd.operators.blur(truth.shape, kernel=dd.operators.motion_kernel(3, size=side))
y = dd.simulate(instrument, truth, sigma_y, jax.random.key(0))

point = jnp.zeros((33, 33, 1)).at[16, 16].set(1000.0)
seen_point = dd.operators.blur(point.shape, kernel=instrument.kernel).forward(point)[..., 0]
bead = 100 + seen_point + 2 * jax.random.normal(jax.random.key(1), seen_point.shape)

# %%
# From the picture to the kernel: subtract what a dark region shows, cut out the point, drop what is only noise, and
# divide by the sum. Then turn the kernel by 180 degrees. Blurs here are cross-correlations, ``y[i] = sum_k kernel[k]
# x[i + k]``, so the picture of a point is the kernel seen from the other side.

dark = np.median(bead[:6])
noise = np.std(bead[:6])
middle = slice(16 - side // 2, 16 + side // 2 + 1)
psf = np.asarray(bead)[middle, middle] - dark
psf = np.where(psf > 3 * noise, psf, 0)
measured = (psf / psf.sum())[::-1, ::-1]

at = np.arange(side) - side // 2
guessed = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * 2.5**2))
guessed /= guessed.sum()

# %%
# One batch restores the picture with every kernel: operators of one shape are stacked, and ``operator_axis=0`` says
# so. A blur is ill-conditioned, so that every step may go along two directions instead of one.

kernels = {"measured": measured, "turned": measured[::-1, ::-1], "guessed": guessed}
operators = [dd.operators.blur(truth.shape, kernel=kernel) for kernel in kernels.values()]
stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *operators)
problem = dd.Problem(stack, jnp.stack([y] * 3), sigma_y, operator_axis=0)

solver = dd.solvers.DDiff(num_steps=40, directions=2)
keys = dd.image_keys(jax.random.key(2), jnp.arange(3))
solution = dd.solve(solver, dd.load_prior("faces64"), problem, keys)

chi_square = problem.map(dd.Problem.chi_square, solution.x)
for name, x, chi in zip(kernels, solution.x, chi_square, strict=True):
    print(f"{name:9}: {psnr(x, truth, protocol='standard'):.1f} dB, chi-square {chi:.2f}")

# %%
# Only the measured kernel restores the edges. The other two show what a wrong operator does: the result fits the data
# as well as it can and is wrong. Without a truth the misfit tells it: chi-square, the squared residual in units of the
# noise, should be about one.


def show(**images):
    """Draw images side by side."""
    _, axes = plt.subplots(1, len(images), figsize=(2 * len(images), 2.3), layout="constrained")
    for axis, (name, x) in zip(axes, images.items(), strict=True):
        axis.imshow((np.clip(x, -1, 1) + 1) / 2) if x.ndim == 3 else axis.imshow(x, cmap="magma")
        axis.set(title=name, xticks=[], yticks=[])


show(bead=bead, measurement=y, **dict(zip(kernels, solution.x, strict=True)), truth=truth)
plt.show()
