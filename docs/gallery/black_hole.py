"""How do I image a black hole from closure quantities?
====================================================

A few telescopes around the world measure visibilities, each with a complex gain that nobody knows. Closure phases and
closure amplitudes do not contain the gains. Are they enough for an image?
"""

import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ddiff_jax as dd
from ddiff_jax import operators

# %%
# The telescopes
# --------------
#
# Places of seven observatories (latitude, longitude, rounded), a source at the declination of Sagittarius A*, and one
# observation every half hour. While the earth turns, every pair of telescopes that see the source measures at another
# baseline.

places = np.deg2rad([[-23, -68], [33, -110], [19, -97], [20, -155], [-90, 0], [37, -3], [45, 6]])
wavelength, declination = 1.3e-3, np.deg2rad(-29)  # metres
latitude, longitude = places.T
earth = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], 1)
rows = []
for hour in np.arange(0, 24, 0.5):
    turn = np.deg2rad(15 * hour)
    to_source = [np.cos(declination) * np.cos(turn), -np.cos(declination) * np.sin(turn), np.sin(declination)]
    east = np.array([np.sin(turn), np.cos(turn), 0])
    north = np.cross(to_source, east)
    up = np.flatnonzero(earth @ to_source > np.sin(np.deg2rad(10)))
    for a, b in itertools.combinations(up, 2):
        baseline = 6.371e6 / wavelength * (earth[b] - earth[a])
        rows.append([hour, a, b, baseline @ east, baseline @ north])
time, first, second, u, v = np.transpose(rows)
first, second = first.astype(int), second.astype(int)

# %%
# The source and the prior
# ------------------------
#
# The source is a crescent, drawn from a family. The prior is a Gaussian with the mean and the covariance of other
# members: their principal components have independent standard normal coefficients, which are the unknowns.

side, micro_arcsecond = 32, np.pi / 180 / 3600 / 1e6
where = (np.arange(side) - (side - 1) / 2) * 4.0  # micro-arcseconds
radius, angle = np.hypot(*np.meshgrid(where, where)), np.arctan2(*np.meshgrid(-where, -where))


def crescents(rng, count):
    """Draw rings that are brighter on one side."""
    limits = (15, 30), (8, 16), (0.3, 0.95), (0, 2 * np.pi)
    size, width, contrast, turn = (rng.uniform(low, high, (count, 1, 1)) for low, high in limits)
    ring = np.exp(-(((radius - size) / width) ** 2) * 4 * np.log(2)) * (1 + contrast * np.cos(angle - turn))
    return (2 * ring / ring.max((1, 2), keepdims=True) - 1)[..., None]


truth = jnp.asarray(crescents(np.random.default_rng(3), 1)[0], jnp.float32)
others = crescents(np.random.default_rng(1), 1500).reshape(1500, -1)
_, spread, axes = np.linalg.svd(others - others.mean(0), full_matrices=False)
mean, basis = (jnp.asarray(a, jnp.float32) for a in (others.mean(0), (spread[:24, None] * axes[:24]).T / 1500**0.5))
picture = operators.from_function(lambda c: (mean + basis @ c[:, 0]).reshape(truth.shape), (24, 1))
prior = dd.GaussianPrior(0.0, 1.0, dd.linear_schedule(), (24, 1))

# %%
# What was observed
# -----------------
#
# Visibilities with noise, times gains of a random size and phase per telescope and time. ``minimal_closures`` lists
# the triangles and quadrangles, ``from_visibilities`` forms their closures with a noise level for each.

flux = 2.3  # of the whole image, Jansky
view = {"u": u, "v": v, "pixel": 4 * micro_arcsecond, "scale": flux / float(jnp.sum((truth + 1) / 2))}
sigma = np.full(len(u), 0.02, np.float32)
visibilities = dd.simulate(operators.interferometry(truth.shape, **view), truth, sigma, jax.random.key(0))

rng = np.random.default_rng(2)
gains = np.exp(0.2 * rng.standard_normal((48, 7)) + 2j * np.pi * rng.random((48, 7)))
scan = np.round(2 * time).astype(int)
gain = gains[scan, first] * np.conj(gains[scan, second])
observed = (np.asarray(visibilities) * gain).astype(np.complex64)

sets = operators.minimal_closures(first, second, time)
closures = operators.closures(truth.shape, **view, sigma=sigma * np.abs(gain), sigma_flux=0.1 * flux, **sets._asdict())
data = closures.from_visibilities(observed, flux, snr_cut=2.0)
print(f"{len(u)} visibilities; {len(sets.triangles)} triangles, {len(sets.quadrangles)} quadrangles")

# %%
# The image
# ---------
#
# Closures are not linear in the image, and a run may end in a local minimum. Six keys are restored; those whose
# chi-square is more than twice the least are left out, for which no truth is needed.

keys = dd.image_keys(jax.random.key(1), jnp.arange(6))
y, seen = (jnp.repeat(a[None], 6, axis=0) for a in (data.y, data.observed))
problem = dd.Problem(operators.compose(closures, picture), y, data.sigma_y[None], observed=seen)
solution = dd.solve(dd.solvers.DDiff(num_steps=120, levels="even", output="x", directions=2), prior, problem, keys)
chi_square = np.asarray(problem.map(dd.Problem.chi_square, solution.x))
kept = chi_square < 2 * chi_square.min()
images = jax.vmap(picture.forward)(solution.x)[kept]
print(f"chi-square of the runs: {', '.join(f'{c:.2f}' for c in np.sort(chi_square))}; {kept.sum()} kept")

# %%
# The least chi-square stays above one: the few components of the prior do not hold the crescent exactly.
#
# On the left every point is a baseline: the gaps between the tracks are what has to be filled. The image shows the
# ring and its bright side, although no phase of a visibility was usable. The spread over keys is not the posterior's
# uncertainty, DDiff aims at one image; it shows where the answers of several runs agree.

figure, panels = plt.subplots(1, 4, figsize=(10, 2.7), layout="constrained")
panels[0].plot(np.append(u, -u) / 1e9, np.append(v, -v) / 1e9, ".", markersize=2)
panels[0].set(title="baselines", xlabel="u, billion wavelengths", aspect="equal")
shown = {"truth": (truth + 1) / 2, "mean of the runs": (images.mean(0) + 1) / 2, "spread over keys": images.std(0)}
for axis, (name, x) in zip(panels[1:], shown.items(), strict=True):
    axis.imshow(x[..., 0], cmap="afmhot", vmin=0, vmax=1)
    axis.set(title=name, xticks=[], yticks=[])
plt.show()
