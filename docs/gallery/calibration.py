"""Which solver samples the posterior?
===================================

The spread of samples is an uncertainty only if the samples are those of the posterior. On a problem whose posterior is
known it can be measured: how often does the truth lie in the region that should hold it with a given probability?
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

from ddiff_jax import calibration

# %%
# The cell ``G8/sample`` has Gaussian images of 8x8 pixels, of which half were measured. Its denoiser is exact, so that
# what is wrong is the solver's doing. Truths are drawn from the prior and measured; every solver draws samples of
# every measurement.

cell = calibration.CELLS["G8/sample"]()
drawn = calibration.draw(cell, jax.random.key(0), num_problems=60, num_samples=19)

entries = [calibration.find_solver(name) for name in ("exact", "mmps", "dps", "ddnm", "ddiff")]
findings = {entry.name: calibration.calibrate(entry.solver, drawn, name=entry.name) for entry in entries}
for name, found in findings.items():
    spread = found.measures.spread
    print(f"{name:7} {found.evaluations:4} evaluations, spread {spread:.2f} of the exact one: {found.label}")

# %%
# The figure counts. A curve on the diagonal is calibrated: regions that should hold half of the truths hold half of
# them. Below it a solver is overconfident: its samples lie closer together than the posterior's, and a region drawn
# around them misses the truth. Above it the samples scatter too widely. ``exact`` draws from the posterior itself; its
# distance from the diagonal is that of chance.


def coverage(found):
    """Tell which share of truths lies in the regions of highest density that should hold 0, ..., 100%."""
    ranks = np.cumsum(found.measures.density_ranks)
    return np.concatenate([[0], ranks / ranks[-1]])


figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
axis.plot([0, 1], [0, 1], color="lightgray", linewidth=4)
for name, found in findings.items():
    share = coverage(found)
    axis.plot(np.linspace(0, 1, len(share)), share, marker=".", label=name)
axis.set(xlabel="share that the region should hold", ylabel="share of truths inside", title="coverage, by density")
axis.legend(frameon=False)
plt.show()

# %%
# Six cells and all solvers are measured by ``ddiff calibrate``. The best solver on one cell need not be the best on
# others.
