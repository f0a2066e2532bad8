"""How do I restore an image of few photons?
=========================================

In the dark the noise is that of counting: it grows with the root of the signal, and a camera adds an offset, a gain
and noise of reading. Which likelihood takes a camera's numbers as they are?
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
# ``PoissonGaussian`` is a camera: of a white pixel it expects ``photons``, writes ``gain`` numbers for each, adds
# ``offset``, and reads with an error of ``read``. ``y`` keeps the camera's own numbers.

camera = dd.PoissonGaussian(photons=12.0, gain=4.0, offset=100.0, read=5.0)
operator = dd.operators.gaussian_blur(truth.shape, size=9, std=1.0)
y = dd.simulate(operator, truth, 1.0, jax.random.key(0), camera)
print(f"the camera's numbers: {float(y.min()):.0f} to {float(y.max()):.0f}")

# %%
# A solver that can take any likelihood is given this one; ``sigma_y`` plays no part in it and is a typical standard
# deviation. Solvers that assume Gaussian noise get the same numbers by ``as_gaussian``: in the units of the image,
# with a level per entry. The last line is what is often done instead: one level for all.

prior = dd.load_prior("faces64")
keys = dd.image_keys(jax.random.key(1), jnp.arange(1))
solver = dd.solvers.DDiff(num_steps=40, output="x")

typical = float(jnp.mean(camera.levels(y)))
image_units, level = camera.as_gaussian(y)
problems = {
    "the camera's likelihood": dd.Problem(operator, y[None], typical, camera),
    "Gaussian, per entry": dd.Problem(operator, image_units[None], level[None]),
    "Gaussian, one level": dd.Problem(operator, image_units[None], jnp.full_like(level, jnp.mean(level))[None]),
}
found = {name: dd.solve(solver, prior, problem, keys).x[0] for name, problem in problems.items()}
for name, x in found.items():
    print(f"{name}: {psnr(x, truth, protocol='standard'):.1f} dB")

# %%
# All three see a face in what looks like noise. The camera's likelihood needs no other choice. The levels of
# ``as_gaussian`` are estimated from the noisy numbers themselves: at few photons a pixel that is dark by chance passes
# for a certain one, which darkens the result and leaves noise in it. One level for all has no such bias and comes
# close to the likelihood here, where most of what is seen is the prior's.


def show(**images):
    """Draw images side by side."""
    _, axes = plt.subplots(1, len(images), figsize=(2.1 * len(images), 2.4), layout="constrained")
    for axis, (name, x) in zip(axes, images.items(), strict=True):
        axis.imshow((np.clip(x, -1, 1) + 1) / 2)
        axis.set_title(name, fontsize=10)
        axis.set(xticks=[], yticks=[])


show(measurement=image_units, **found, truth=truth)
plt.show()
