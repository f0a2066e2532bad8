"""How do I restore a face from 16x16 pixels?
==========================================

What can be known of a face of which only 16x16 noisy pixels were measured? The packaged prior has learned from many
faces what others look like, and DDiff looks for one that it finds likely and that explains the pixels.

This is the shortest complete example: an operator, a measurement, a prior, a solver.
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
# Images are arrays ``[height, width, channels]`` with values in [-1, 1]. The operator averages blocks of 4x4 pixels,
# and ``simulate`` adds noise of standard deviation 0.05, in the same units.

photograph = Image.open(files("ddiff_jax") / "assets" / "sample.png")
truth = jnp.asarray(np.asarray(photograph), jnp.float32) / 127.5 - 1

sigma_y = 0.05
operator = dd.operators.super_resolution(truth.shape, factor=4)
y = dd.simulate(operator, truth, sigma_y, jax.random.key(0))

# %%
# ``solve`` takes a batch, here of one measurement. Every image has its own key.

prior = dd.load_prior("faces64")
solver = dd.solvers.DDiff(num_steps=50)
keys = dd.image_keys(jax.random.key(1), jnp.arange(1))
solution = dd.solve(solver, prior, dd.Problem(operator, y[None], sigma_y), keys)
restored = solution.x[0]

enlarged = jnp.repeat(jnp.repeat(y, 4, axis=0), 4, axis=1)
for name, x in {"measurement, enlarged": enlarged, "DDiff": restored}.items():
    print(f"{name}: {psnr(x, truth, protocol='standard'):.1f} dB")

# %%
# Look at the eyes and the mouth: in the measurement they are single pixels. The smile is lost, since they do not show
# it, and the prior finds a closed mouth likely. The error, shown twice as bright, is small where the face is smooth
# and largest at edges. What is sharp there was filled in by the prior: it is likely, and it need not be true.


def show(**images):
    """Draw images side by side."""
    _, axes = plt.subplots(1, len(images), figsize=(2 * len(images), 2.3), layout="constrained")
    for axis, (name, x) in zip(axes, images.items(), strict=True):
        axis.imshow((np.clip(x, -1, 1) + 1) / 2)
        axis.set(title=name, xticks=[], yticks=[])


show(measurement=y, restoration=restored, truth=truth, error=2 * jnp.abs(restored - truth) - 1)
plt.show()

# %%
# A measurement that already exists takes the place of ``simulate``: bring its values into [-1, 1], and state the
# standard deviation of its noise in the same units as ``sigma_y``.
