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
# estimates; operator and data are those of the whole image, and so is what the solver sees. Without overlap every
# window stands alone.

prior = dd.load_prior("faces64")
solver = dd.solvers.DDiff(num_steps=30, directions=2)
keys = dd.image_keys(jax.random.key(1), jnp.arange(1))
problem = dd.Problem(operator, y[None], sigma_y)

found = {}
for overlap in (16, 0):
    windows = dd.with_shape(prior, truth.shape, overlap=overlap, taper="cosine" if overlap else "uniform")
    found[overlap] = dd.solve(solver, windows, problem, keys).x[0]
    print(f"overlap of {overlap} pixels: {psnr(found[overlap], truth, protocol='standard'):.1f} dB")

# %%
# Neither has a visible seam here, since the data reach across. What windows cannot give is agreement over distances
# beyond their side, and a prior of faces knows nothing of streets.

pictures = {
    "measurement": y,
    "windows that overlap by a quarter": found[16],
    "windows side by side": found[0],
    "truth": truth,
}
figure, panels = plt.subplots(2, 2, figsize=(9, 4.8), layout="constrained")
for axis, (name, x) in zip(panels.flat, pictures.items(), strict=True):
    axis.imshow((np.clip(x, -1, 1) + 1) / 2)
    axis.set(title=name, xticks=[], yticks=[])
plt.show()
