"""How do I restore inside of a program of my own, on all devices?
===============================================================

``solve`` drives a batch from the host. A program of one's own, a pipeline or a training, wants a pure function
instead. How does it combine with ``jit`` and ``vmap``, and which mesh spreads it over devices?
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import ddiff_jax as dd
from ddiff_jax.phantoms import phantoms

# %%
# A small prior for the purpose: patches of pixels are correlated as in an image that was smoothed. A network would be
# ``dd.load_prior(...)``.

shape = (32, 32, 1)
frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(32, 1 / 32)] * 2))
power = jnp.asarray(60.0 / (1 + frequency**2) ** 1.5, jnp.float32)[..., None]


def denoise(x, sigma):
    """Estimate the clean image: a Wiener filter."""
    spectrum = jnp.fft.fft2(x + 0.5, axes=(0, 1))
    return jnp.fft.ifft2(spectrum * power / (power + sigma**2), axes=(0, 1)).real - 0.5


prior = dd.from_denoiser(denoise, kind="denoiser", image_shape=shape)

# %%
# The function restores one image. It is pure: its result depends on its arguments alone, among them the key.

operator = dd.operators.random_inpainting(shape, jax.random.key(0), fraction=0.6)
solver = dd.solvers.DDiff(num_steps=50)
sigma_y = 0.05


def restore(y, key):
    """Restore one image, and say how well it fits."""
    problem = dd.Problem(operator, y, sigma_y)
    x = dd.solve_one(solver, prior, problem, key).x
    return x, problem.chi_square(x)


# %%
# ``vmap`` makes it one of a batch, ``jit`` compiles it. The mesh has one axis, over which images are spread: all
# devices that there are. Where inputs lie decides where the work is done; no device needs anything of another.

mesh = jax.make_mesh((jax.device_count(),), ("images",))
by_image = NamedSharding(mesh, PartitionSpec("images"))

count = 6 * jax.device_count()
truth = jnp.asarray(phantoms(count, 32, seed=2))
keys = dd.image_keys(jax.random.key(1), jnp.arange(count))
y = jax.vmap(lambda x, key: dd.simulate(operator, x, sigma_y, key))(truth, keys)

restore_all = jax.jit(
    jax.shard_map(jax.vmap(restore), mesh=mesh, in_specs=PartitionSpec("images"), out_specs=PartitionSpec("images"))
)
x, chi_square = jax.device_get(restore_all(*jax.device_put((y, keys), by_image)))
print(f"{count} images on {jax.device_count()} device(s); chi-square {', '.join(f'{c:.2f}' for c in chi_square[:6])}")

# %%
# Every image has its own norms and its own key, so that its result does not depend on its neighbours nor on the number
# of devices. One image alone is the same up to rounding:

alone, _ = jax.jit(restore)(y[3], keys[3])
print(f"largest difference to the image in its batch: {float(jnp.max(jnp.abs(alone - x[3]))):.1e}")

# %%
# The upper row shows the measurements, with what is hidden in blue, the lower one what was restored. ``dd.solve(...,
# mesh=mesh)`` does the same for a batch that is driven from the host, with progress and snapshots.

figure, panels = plt.subplots(2, 6, figsize=(9, 3.2), layout="constrained")
for images, row in zip((dd.Problem(operator, y, sigma_y).y, x), panels, strict=True):
    for image, axis in zip(images, row, strict=False):
        axis.imshow(np.where(image[..., 0] == 0, np.nan, image[..., 0]), cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[], facecolor="tab:blue")
panels[0, 0].set(ylabel="measured")
panels[1, 0].set(ylabel="restored")
plt.show()
