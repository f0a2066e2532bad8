"""What do I do with dead pixels, and with noise that differs between pixels?
==========================================================================

A detector has pixels that tell nothing, a bright column that is noisy, and a cloud that hides a part. How does a
solver learn which numbers to trust?
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
# Two arrays describe the detector. ``observed`` is true where a number means something. ``sigma`` is the standard
# deviation of the noise of every entry; here it rises from left to right.

photograph = Image.open(files("ddiff_jax") / "assets" / "sample.png")
truth = jnp.asarray(np.asarray(photograph), jnp.float32) / 127.5 - 1
rng = np.random.default_rng(0)

observed = rng.random((64, 64, 1)) > 0.3  # dead pixels
observed[:, ::8] = False  # dead columns
observed[24:36, 20:44] = False  # a cloud over the eyes
sigma = np.broadcast_to(np.geomspace(0.03, 0.6, 64, dtype=np.float32)[None, :, None], truth.shape)

# %%
# The detector sees the image itself: its operator is the identity. What ``y`` holds where nothing was observed changes
# nothing; here it is NaN.

operator = dd.operators.from_function(lambda x: x, truth.shape, linear=True)
y = dd.simulate(operator, truth, sigma, jax.random.key(0))
y = jnp.where(observed, y, jnp.nan)

# %%
# Both arrays belong to the problem, and every solver that accepts the operator is right with them. For a batch they
# have an axis of images, of length 1 where all have the same. The second problem takes the mean noise level for all
# pixels. DiffPIR solves a least-squares problem per step, which weighs every entry by its noise at once.

prior = dd.load_prior("faces64")
solver = dd.solvers.DiffPIR(num_steps=40)
keys = dd.image_keys(jax.random.key(1), jnp.arange(1))
seen = jnp.asarray(observed)[None]
level = float(np.sqrt(np.mean(sigma**2)))

found = {}
for name, noise in {"noise per entry": sigma[None], "one noise level": np.full_like(sigma[None], level)}.items():
    problem = dd.Problem(operator, y[None], noise, observed=seen)
    found[name] = dd.solve(solver, prior, problem, keys).x[0]
    print(f"{name}: {psnr(found[name], truth, protocol='standard'):.1f} dB")

# %%
# Look at the right side. With one level its noise is taken for structure. With a level per entry it is what the prior
# finds likely, and the left side, which was measured well, counts for more. Under the cloud both invent: no number
# tells of the eyes.
#
# DDiff takes levels per entry too. Where they differ by more than ten times, as here, its single gradient step per
# noise level leaves the noisy part to chance: give it several ``directions``, or a solver with a least-squares step.


def show(**images):
    """Draw images side by side."""
    _, axes = plt.subplots(1, len(images), figsize=(2 * len(images), 2.3), layout="constrained")
    for axis, (name, x) in zip(axes, images.items(), strict=True):
        axis.imshow((np.clip(np.nan_to_num(x, nan=-1), -1, 1) + 1) / 2)
        axis.set(title=name, xticks=[], yticks=[])


show(measurement=y, **found, truth=truth)
plt.show()
