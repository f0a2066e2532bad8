"""What do I do with an image that is larger than the prior?
=========================================================

The prior has learned from images of 64x64 pixels. How can it restore one that is larger, without seams and without
training a new one?
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
# The image: two views of the packaged photograph side by side, cut so that no face fills a window.

photograph = Image.open(files("ddiff_jax") / "assets" / "sample.png")
face = np.asarray(photograph, np.float32) / 127.5 - 1
truth = jnp.asarray(np.concatenate([face[:, 8:], face[:, ::-1], face], axis=1)[:, :136])

sigma_y = 0.05
operator = dd.operators.gaussian_blur(truth.shape, size=13, std=1.5)
y = dd.simulate(operator, truth, sigma_y, jax.random.key(0))

# %%
# ``with_shape`` makes a prior of another size. At every noise level it denoises overlapping windows and blends the
# estimates; operator and data are those of the whole image, and so is what the solver sees. Memory does not grow with
# the number of windows.

prior = dd.with_shape(dd.load_prior("faces64"), truth.shape, overlap=16)
print(f"windows along each axis: {prior.counts}; their borders along the second: {prior.seams[1]}")

solver = dd.solvers.DDiff(num_steps=30, directions=2)
keys = dd.image_keys(jax.random.key(1), jnp.arange(1))
restored = dd.solve(solver, prior, dd.Problem(operator, y[None], sigma_y), keys).x[0]
for name, x in {"measurement": y, "restoration": restored}.items():
    print(f"{name}: {psnr(x, truth, protocol='standard'):.1f} dB")

# %%
# Look at the borders, which the ticks below the restoration mark: there is no seam. What windows cannot give is
# agreement over distances beyond their side, other than by the data; and a prior of faces knows nothing of streets.

figure, panels = plt.subplots(3, 1, figsize=(5.5, 8), layout="constrained")
for axis, (name, x) in zip(panels, {"measurement": y, "restoration": restored, "truth": truth}.items(), strict=True):
    axis.imshow((np.clip(x, -1, 1) + 1) / 2)
    axis.set(title=name, yticks=[], xticks=np.array(prior.seams[1]) - 0.5 if name == "restoration" else [])
    axis.tick_params(labelbottom=False, length=8, width=2)
plt.show()
