"""How many steps do I need?
=========================

Every step costs one evaluation of the network. Where do more of them stop paying?
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

sigma_y = 0.05
operator = dd.operators.super_resolution(truth.shape, factor=4)
y = dd.simulate(operator, truth, sigma_y, jax.random.key(0))

# %%
# The same measurement is restored from two keys with 5, 15 and 50 steps. However many there are, they lead from the
# same noise level, where the walk starts at what the data say, to the same last one.

prior = dd.load_prior("faces64")
keys = dd.image_keys(jax.random.key(1), jnp.arange(2))
problem = dd.Problem(operator, jnp.stack([y, y]), sigma_y)
steps, images, quality = [5, 15, 50], [], []
for num_steps in steps:
    solution = dd.solve(dd.solvers.DDiff(num_steps=num_steps), prior, problem, keys)
    images.append(solution.x[0])
    quality.append([float(psnr(x, truth, protocol="standard")) for x in solution.x])
    print(f"{num_steps:3} steps: {np.mean(quality[-1]):.1f} dB")

# %%
# A handful of steps gives a face already; more remove blotches and sharpen edges. In PSNR the gain is small and soon
# as small as the difference between two keys. The default of ``ddiff restore`` is 100; the published values take 999.
# Tables with intervals over several photographs are in the benchmarks.

figure, panels = plt.subplots(1, 4, figsize=(9, 2.6), width_ratios=[1.5, 1, 1, 1], layout="constrained")
panels[0].semilogx(steps, quality, "o-")
panels[0].set_xticks(steps, labels=[str(n) for n in steps])
panels[0].minorticks_off()
panels[0].set(xlabel="evaluations", ylabel="PSNR, dB", title="two keys")
for axis, num_steps, x in zip(panels[1:], steps, images, strict=True):
    axis.imshow((np.clip(x, -1, 1) + 1) / 2)
    axis.set(title=f"{num_steps} steps", xticks=[], yticks=[])
plt.show()
