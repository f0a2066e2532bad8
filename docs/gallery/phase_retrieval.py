"""Phase retrieval fails at times: how do I get the best of several runs?
======================================================================

A detector far away measures only amplitudes of the Fourier transform. Many images fit them nearly, and a run may end
at one that is wrong. How do I choose among runs without knowing the truth?
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
operator = dd.operators.phase_retrieval(truth.shape, oversample=2.0)
y = dd.simulate(operator, truth, sigma_y, jax.random.key(0))

# %%
# ``solve_restarts`` solves the problem from several keys and keeps, for every image, the run whose misfit is least. No
# truth is needed for that. All runs are one batch.

prior = dd.load_prior("faces64")
solver = dd.preset("faces64", "phase_retrieval", num_steps=50)
keys = dd.image_keys(jax.random.key(1), jnp.arange(1))
runs = dd.solve_restarts(solver, prior, dd.Problem(operator, y[None], sigma_y), keys, restarts=5)

# %%
# Amplitudes cannot tell an image from its negative, nor from the image turned by 180 degrees. ``nearest_equivalent``
# undoes both for the comparison with the truth, and for nothing else.

images = [dd.nearest_equivalent(operator, x, truth) for x in runs.x[0]]
quality = [float(psnr(x, truth, protocol="standard")) for x in images]
for run, (misfit, decibel) in enumerate(zip(runs.misfit[0], quality, strict=True)):
    print(f"run {run}: misfit {misfit:.5f}, {decibel:.1f} dB{', chosen' * bool(run == runs.chosen[0])}")

# %%
# The runs that failed have a larger misfit: the one with the least is good. Choosing by the misfit works where runs
# end in different minima. Where all runs fit down to the noise it prefers the one that fits the noise best, which
# means nothing.

figure, panels = plt.subplots(1, 6, figsize=(11, 2.4), layout="constrained")
for axis, (name, x) in zip(panels, [("truth", truth), *((f"run {i}", x) for i, x in enumerate(images))], strict=True):
    axis.imshow((np.clip(x, -1, 1) + 1) / 2)
    axis.set(title=name, xticks=[], yticks=[])
for spine in panels[1 + int(runs.chosen[0])].spines.values():
    spine.set(color="tab:green", linewidth=4)
for axis, misfit in zip(panels[1:], runs.misfit[0], strict=True):
    axis.set(xlabel=f"misfit {misfit:.4f}")
plt.show()
