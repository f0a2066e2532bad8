"""
How do I restore a volume with a prior for pictures?
====================================================

Priors of volumes are rare, priors of pictures are not. Can one restore a stack of slices whose measurement mixes them?
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ddiff_jax as dd
from ddiff_jax.phantoms import phantom, phantoms

# %%
# The prior of pictures is a Gaussian with the mean and the power spectrum of random phantoms; a network is used the
# same way.


def wiener(pictures):
    """Make a Gaussian prior with the mean of some pictures and the power of their cosine coefficients."""
    mean, axes = jnp.asarray(pictures.mean(axis=0)), (0, 1)
    power = jnp.mean(jax.scipy.fft.dctn(pictures - mean, axes=(1, 2), norm="ortho") ** 2, axis=0)

    def denoise(x, sigma):
        spectrum = jax.scipy.fft.dctn(x - mean, axes=axes, norm="ortho")
        return mean + jax.scipy.fft.idctn(power / (power + sigma**2) * spectrum, axes=axes, norm="ortho")

    return dd.from_denoiser(denoise, kind="denoiser", image_shape=mean.shape, clip=False)


shape = (32, 32, 1)
pictures_prior = wiener(phantoms(400, 32, seed=1))

# %%
# ``SlicePrior`` denoises every slice by itself. Volumes are ``[depth, height, width, channels]``, with any operator on
# them. This one is a microscope whose focus is long: every slice that is measured is a mean over five, weighted, and
# also blurred.

depth = 12
prior = dd.SlicePrior(pictures_prior, depth)

turn = np.linspace(0, 1, depth)[:, None, None, None]
truth = jnp.asarray((1 - turn) * phantom(0, 8, 32) + turn * phantom(0, 6, 32))  # one object becomes another

along = jnp.exp(-((jnp.arange(depth)[:, None] - jnp.arange(depth)[None, :]) ** 2) / 2.0)
along = along / along.sum(axis=1, keepdims=True)
across = dd.operators.gaussian_blur(shape, size=5, std=1.0)


def focus(volume):
    """Mix the slices, and blur each."""
    return jax.vmap(across.forward)(jnp.tensordot(along, volume, 1))


operator = dd.operators.from_function(focus, prior.image_shape, linear=True)
sigma_y = 0.05
y = dd.simulate(operator, truth, sigma_y, jax.random.key(0))

# %%
# Solvers see an image with one more axis and need not know.

problem = dd.Problem(operator, y[None], sigma_y)
keys = dd.image_keys(jax.random.key(1), jnp.arange(1))
restored = dd.solve(dd.solvers.DDiff(num_steps=50, directions=3, output="x"), prior, problem, keys).x[0]
for name, x in {"measurement": y, "restoration": restored}.items():
    print(f"{name}: root mean squared error {float(jnp.sqrt(jnp.mean((x - truth) ** 2))):.3f}")

# %%
# The upper row shows one slice, the lower one a section through all slices. Edges are sharper in the slices, which the
# prior knows. Along the depth it knows nothing: there only the data speak. A prior along the depth, such as
# smoothness, is the operator's or the solver's to add.

stacks = {"measurement": y, "restoration": restored, "truth": truth}
figure, panels = plt.subplots(2, 3, figsize=(7, 3.8), height_ratios=[2.2, 1], layout="constrained")
for column, (name, x) in zip(panels.T, stacks.items(), strict=True):
    for axis, section in zip(column, (x[depth // 2], x[:, 16]), strict=True):
        axis.imshow(section[..., 0], cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
    column[0].set(title=name)
plt.show()
