"""Which solver is best on my problem, at equal cost?
==================================================

Papers compare methods with different numbers of evaluations of the network. What do they find of the same measurement,
with the same prior, when each is given about as many?
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
operator = dd.operators.gaussian_blur(truth.shape, size=15, std=1.5)
y = dd.simulate(operator, truth, sigma_y, jax.random.key(0))

# %%
# All solvers are values with the same interface; problem, prior and keys do not change. ``preset`` gives the values of
# a task for a prior. Every solution says what it cost.

solvers = {
    "Tikhonov": dd.solvers.Tikhonov(),
    "DDiff": dd.preset("faces64", "gaussian_blur", "ddiff", num_steps=40),
    "DDiff, climbing": dd.preset("faces64", "gaussian_blur", "ddiff", num_steps=40, directions=4, climb=10),
    "DiffPIR": dd.preset("faces64", "gaussian_blur", "diffpir", num_steps=40),
    "DDRM": dd.preset("faces64", "gaussian_blur", "ddrm", num_steps=40),
}
prior = dd.load_prior("faces64")
problem = dd.Problem(operator, y[None], sigma_y)
keys = dd.image_keys(jax.random.key(1), jnp.arange(1))

found = {}
for name, solver in solvers.items():
    solution = dd.solve(solver, prior, problem, keys)
    x = found[name] = solution.x[0]
    chi_square = float(dd.Problem(operator, y, sigma_y).chi_square(x))
    cost, quality = solution.cost.network_evaluations, psnr(x, truth, protocol="standard")
    print(f"{name:15} {cost:3} evaluations, {quality:.1f} dB, chi-square {chi_square:.2f}")

# %%
# Look at the hair and the teeth: the differences between solvers are there. A blur is ill-conditioned. DDRM inverts it
# by its singular value decomposition, DiffPIR by least squares; DDiff makes one gradient step per noise level, and
# comes closer where its steps may go along several directions and the last ones climb to a maximum of the posterior. A
# chi-square far from one says that a solver left the data unmet, or fitted their noise. One image decides nothing:
# ``ddiff evaluate`` compares on a folder, with intervals.

figure, panels = plt.subplots(1, 7, figsize=(12, 2.2), layout="constrained")
for axis, (name, x) in zip(panels, {"measurement": y, **found, "truth": truth}.items(), strict=True):
    axis.imshow((np.clip(x, -1, 1) + 1) / 2)
    axis.set(title=name, xticks=[], yticks=[])
plt.show()
