"""How do I reconstruct CT from few views, in Hounsfield units?
============================================================

A scanner counted photons at few angles. How do counts become Hounsfield units, and what does a prior add to filtered
back-projection?
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.phantoms import phantom

# %%
# The prior is a small network that comes with the package, trained on random cross-sections that are piecewise smooth.
# None of them is the object below.

prior = dd.load_prior("phantoms64")

# %%
# The window says which Hounsfield units are -1 and 1. The geometry measures line integrals from a point source to a
# flat detector. ``transmission`` makes of them the share of the photons that arrives, and ``Counts`` counts these.

window, pixel, photons = (-1000.0, 1000.0), 0.5, 2e4  # HU, cm, photons per cell
truth = jnp.asarray(phantom(7, 9, 64))
geometry = operators.sparse_fan_beam_tomography(truth.shape, num_angles=24, pixel=pixel)
scan = operators.transmission(geometry, length=pixel * 64, window=window)
counts = dd.simulate(scan, truth, 1.0, jax.random.key(0), dd.Counts(photons))
print(f"counts: {float(counts.min()):.0f} to {float(counts.max()):.0f} of {photons:.0f}")

# %%
# ``post_log`` takes the logarithm. It returns line integrals, and the standard deviation of each: rays through much
# matter are noisier. Both go into the problem. Rays are far from orthogonal, so every step of DDiff may go along
# several directions. The last steps climb: they add no noise, and weigh data and prior as the posterior does.

y, sigma = operators.post_log(scan, counts, photons)
air = operators.from_hounsfield(-1000.0, window)
back_projection = geometry.filtered_back_projection(y, outside=air)

solver = dd.solvers.DDiff(num_steps=60, directions=10, output="x", climb=30)
keys = dd.image_keys(jax.random.key(1), jnp.arange(1))
problem = dd.Problem(geometry, y[None], sigma[None])
restored = dd.solve(solver, prior, problem, keys).x[0]

results = {"back-projection": back_projection, "DDiff": restored}
one = dd.Problem(geometry, y, sigma)
for name, x in results.items():
    error = operators.to_hounsfield(x - truth, window) - operators.to_hounsfield(0.0, window)
    print(f"{name}: error {float(jnp.sqrt(jnp.mean(error**2))):.0f} HU, chi-square {float(one.chi_square(x)):.2f}")

# %%
# Back-projection of few views leaves streaks, and does not know that some rays are noisier than others. DDiff fits the
# data down to their noise (chi-square near one) with an image that the prior finds likely. ``to_hounsfield`` gives the
# units back; it works for differences of images too, less what it makes of 0.

figure, panels = plt.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
for axis, (name, x) in zip(panels, {"truth": truth, **results}.items(), strict=True):
    shown = axis.imshow(operators.to_hounsfield(x[..., 0], window), cmap="gray", vmin=-1000, vmax=800)
    axis.set(title=name, xticks=[], yticks=[])
figure.colorbar(shown, ax=panels, label="HU")
plt.show()
