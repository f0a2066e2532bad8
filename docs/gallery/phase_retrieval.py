"""Phase retrieval fails at times: how do I get the best of several runs?
======================================================================

A detector far behind a sample measures only the amplitudes of the Fourier transform. Many images fit them nearly, and
a run may end at one that is wrong. How do I choose among runs without knowing the truth?
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ddiff_jax as dd
from ddiff_jax import operators

# %%
# The sample is a cluster of five particles. The prior is a Gaussian with the mean and the covariance of other
# clusters: their principal components have independent standard normal coefficients, which are the unknowns. A network
# would be ``dd.load_prior(...)``, with many more steps; the benchmarks have its results on photographs.

at = np.arange(32) - 15.5


def clusters(rng, count):
    """Draw pictures of five particles in the dark."""
    total = np.zeros((count, 32, 32))
    for _ in range(5):
        limits = (0, 9), (0, 2 * np.pi), (1.8, 3.2), (0.4, 1)
        radius, angle, width, height = (rng.uniform(low, high, (count, 1, 1)) for low, high in limits)
        y, x = at[:, None] - radius * np.sin(angle), at[None, :] - radius * np.cos(angle)
        total = np.maximum(total, height * np.exp(-(x**2 + y**2) / (2 * width**2)))
    return (2 * total - 1)[..., None]


truth = jnp.asarray(clusters(np.random.default_rng(0), 1)[0], jnp.float32)
others = clusters(np.random.default_rng(1), 3000).reshape(3000, -1)
_, spread, axes = np.linalg.svd(others - others.mean(0), full_matrices=False)
basis = jnp.asarray((spread[:120, None] * axes[:120]).T / np.sqrt(3000), jnp.float32)
mean = jnp.asarray(others.mean(0), jnp.float32)
picture = operators.from_function(lambda c: (mean + basis @ c[:, 0]).reshape(truth.shape), (120, 1))
prior = dd.GaussianPrior(0.0, 1.0, dd.linear_schedule(), (120, 1))

# %%
# ``image_range=(0, 1)`` says that what surrounds the image is black. The operator of the problem is the detector after
# the picture that the coefficients make.

sigma_y = 0.02
detector = operators.phase_retrieval(truth.shape, oversample=2.0, image_range=(0, 1))
y = dd.simulate(detector, truth, sigma_y, jax.random.key(0))
problem = dd.Problem(operators.compose(detector, picture), y[None], sigma_y)

# %%
# ``solve_restarts`` solves the problem from several keys and keeps, for every image, the run whose misfit is least. No
# truth is needed for that. All runs are one batch.

solver = dd.solvers.DDiff(num_steps=300, levels="even", output="x")
keys = dd.image_keys(jax.random.key(1), jnp.arange(1))
runs = dd.solve_restarts(solver, prior, problem, keys, restarts=5)

# %%
# Amplitudes cannot tell an image from the same image turned by 180 degrees. ``nearest_equivalent`` undoes that for the
# comparison with the truth, and for nothing else.

images = [dd.nearest_equivalent(detector, picture.forward(c), truth) for c in runs.x[0]]
chosen = int(runs.chosen[0])
chi_square = np.asarray(runs.misfit[0]) / sigma_y**2
for run, (x, chi) in enumerate(zip(images, chi_square, strict=True)):
    error = float(jnp.sqrt(jnp.mean((x - truth) ** 2)))
    print(f"run {run}: chi-square {chi:.2f}, error {error:.3f}{', chosen' * (run == chosen)}")

# %%
# The run with the least misfit, framed, is the one that is right: the others ended in local minima, where particles
# are in wrong places. Choosing by the misfit works where runs end in different minima. Where all fit down to the noise
# it prefers the one that fits the noise best, which means nothing; then the images that are left are equally good
# answers to an ambiguous question.

figure, panels = plt.subplots(1, 7, figsize=(12, 2.1), layout="constrained")
shown = {"amplitudes": jnp.log(y + 0.01), "truth": truth, **{f"run {i}": x for i, x in enumerate(images)}}
for axis, (name, x) in zip(panels, shown.items(), strict=True):
    axis.imshow(x[..., 0], cmap="gray", **({} if name == "amplitudes" else {"vmin": -1, "vmax": 1}))
    axis.set(title=name, xticks=[], yticks=[])
for spine in panels[2 + chosen].spines.values():
    spine.set(color="tab:green", linewidth=4)
plt.show()
