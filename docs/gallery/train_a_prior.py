"""Can I train a prior of my own in a minute?
==========================================

A useful prior takes minutes to hours (``ddiff train``). How far does one come in well under a minute on a laptop, and
what does the training consist of?
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ddiff_jax as dd
from ddiff_jax.denoising import LinearFilter
from ddiff_jax.phantoms import phantoms
from ddiff_jax.training.recipe import Recipe
from ddiff_jax.training.state import as_prior, learning_rate, make_update, new_state

# %%
# The images are random phantoms of 16x16 pixels. A recipe says everything else that decides the weights: the network,
# what it predicts, and how it is optimised. The command line does the same from a folder of pictures, and judges and
# saves as it goes.

images = phantoms(1000, 16, seed=1)
recipe = Recipe(
    {
        "in_channels": 1,
        "out_channels": 1,
        "model_channels": 32,
        "channel_mult": (1,),
        "num_res_blocks": 1,
        "attention_levels": (),
        "head_width": 32,
    },
    image_shape=(16, 16, 1),
    steps=150,
    batch_size=16,
    learning_rate=3e-3,
    warmup_steps=20,
    decay_steps=60,
    linear_rank=64,
)

# %%
# The network's output is added to that of the best linear denoiser, which is known before any training: where there is
# more noise than image, little more can be known.

linear = LinearFilter.fit(images[:400]).leading(64, recipe.image_shape)
state = new_state(recipe, linear=linear)
begin = as_prior(recipe, jax.tree.map(jnp.copy, state.params), linear)

update = make_update(recipe)  # gives the memory of the old state to the new one
rng = np.random.default_rng(0)
for step in range(recipe.steps):
    batch = images[rng.integers(0, len(images), recipe.batch_size)]
    state = update(state, batch, learning_rate(recipe, step))
prior = as_prior(recipe, state.averages[1], linear)

# %%
# The judgement is that of ``ddiff check-prior``: the error of denoising held-out images at several noise levels,
# beside what needs no network.

test = jnp.asarray(phantoms(64, 16, seed=2))
noise = jax.random.normal(jax.random.key(0), test.shape)
sigmas = np.geomspace(0.05, 10, 8)


@jax.jit
def error_of(prior, sigma):
    """Compute the root mean squared error of the denoised test images."""
    level = prior.schedule.at(sigma)
    x_t = level.signal * test + level.sigma * noise
    return jnp.sqrt(jnp.mean((jax.vmap(lambda x: prior.denoise(x, level))(x_t) - test) ** 2))


curves = {name: [float(error_of(made, s)) for s in sigmas] for name, made in {"before": begin, "after": prior}.items()}

# %%
# Restorations say more than curves: phantoms that were held out, of which more than half of the pixels are missing
# (blue).

count = 6
operator = dd.operators.random_inpainting(recipe.image_shape, jax.random.key(1), fraction=0.55)
keys = dd.image_keys(jax.random.key(2), jnp.arange(count))
y = jax.vmap(lambda x, key: dd.simulate(operator, x, 0.05, key))(test[:count], keys)
problem = dd.Problem(operator, y, 0.05)
restored = dd.solve(dd.solvers.DDiff(num_steps=50), prior, problem, keys).x
error = jnp.sqrt(jnp.mean((restored - test[:count]) ** 2))
print(f"denoising at sigma = {sigmas[2]:.2f}: {curves['before'][2]:.3f} before, {curves['after'][2]:.3f} after")
print(f"restorations: root mean squared error {float(error):.3f}")

# %%
# Training lowers the error where there is less noise than image, by a factor that still grows when the training ends.
# Outlines come back and fine detail does not: this is what so short a training gives. The next step is ``ddiff
# phantoms ct`` and ``ddiff train``, whose report shows the same curves.

figure = plt.figure(figsize=(10, 3.2), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 2.2])
axis = left.subplots()
for name, curve in curves.items():
    axis.loglog(sigmas, curve, "o-", label=f"{name} training")
axis.set(xlabel="noise-to-signal ratio", title="error of denoising")
axis.legend(frameon=False)
for row, (name, stack) in zip(
    right.subplots(3, count), {"measured": problem.y, "restored": restored, "truth": test}.items(), strict=True
):
    row[0].set(ylabel=name)
    for panel, x in zip(row, stack, strict=False):
        panel.imshow(np.where(x[..., 0] == 0, np.nan, x[..., 0]), cmap="gray", vmin=-1, vmax=1)
        panel.set(xticks=[], yticks=[], facecolor="tab:blue")
plt.show()
