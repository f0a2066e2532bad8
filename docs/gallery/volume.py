"""How do I restore a volume with a prior for pictures?
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
# them. Here every slice that is measured is mixed with its neighbours and blurred a little, and more than half of the
# voxels were lost.

depth = 12
prior = dd.SlicePrior(pictures_prior, depth)

turn = np.linspace(0, 1, depth)[:, None, None, None]
truth = jnp.asarray((1 - turn) * phantom(0, 8, 32) + turn * phantom(0, 6, 32), jnp.float32)  # one becomes the other

mixing = 0.7 * jnp.eye(depth) + 0.15 * (jnp.eye(depth, k=1) + jnp.eye(depth, k=-1))
across = dd.operators.gaussian_blur(shape, size=3, std=0.5)


def forward(volume):
    """Mix the slices, and blur each."""
    return jax.vmap(across.forward)(jnp.tensordot(mixing, volume, 1))


operator = dd.operators.from_function(forward, prior.image_shape, linear=True)
observed = jax.random.bernoulli(jax.random.key(0), 0.45, truth.shape)
sigma_y = 0.05
y = dd.simulate(operator, truth, sigma_y, jax.random.key(1))

# %%
# Solvers see an image with one more axis and need not know.

problem = dd.Problem(operator, y[None], sigma_y, observed=observed[None])
solver = dd.solvers.DDiff(num_steps=50, directions=4, output="x", climb=20)
restored = dd.solve(solver, prior, problem, dd.image_keys(jax.random.key(2), jnp.arange(1))).x[0]
print(f"root mean squared error: {float(jnp.sqrt(jnp.mean((restored - truth) ** 2))):.3f}")

# %%
# The upper row shows one slice, the lower one a section through all slices; what was lost is blue. Within a slice the
# prior fills the gaps. Along the depth it knows nothing, so that neighbouring slices may differ in what no voxel told:
# that only the data, or a prior of volumes, can mend.

stacks = {"measurement": jnp.where(observed, y, jnp.nan), "restoration": restored, "truth": truth}
figure, panels = plt.subplots(2, 3, figsize=(7, 3.8), height_ratios=[2.2, 1], layout="constrained")
for column, (name, x) in zip(panels.T, stacks.items(), strict=True):
    for axis, section in zip(column, (x[depth // 2], x[:, 16]), strict=True):
        axis.imshow(section[..., 0], cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[], facecolor="tab:blue")
    column[0].set(title=name)
plt.show()
