"""How do I use my own network as a prior?
=======================================

A network of Equinox, of Flax or a plain function that removes noise is a prior as soon as it is said what it predicts.
What does that take, and is the network good at every noise level?
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import ddiff_jax as dd
from ddiff_jax.phantoms import phantoms

# %%
# The network
# -----------
#
# A small residual network of dilated convolutions, ``D(x, sigma)``: it is given a noisy image and the noise level and
# returns the clean image. As is usual, the input is scaled to unit variance, and the network adds to what is left of
# the input. Equinox has channels first.


class Network(eqx.Module):
    """A denoiser of images [1, H, W]."""

    layers: list
    embedding: eqx.nn.MLP

    def __init__(self, key, width=16):
        first, *middle, last, embed = jax.random.split(key, 7)
        conv = lambda i, o, key, d=1: eqx.nn.Conv2d(i, o, 3, padding=d, dilation=d, key=key)  # noqa: E731
        dilated = [conv(width, width, k, d) for k, d in zip(middle, (2, 4, 8, 2), strict=True)]
        self.layers = [conv(1, width, first), *dilated, conv(width, 1, last)]
        self.embedding = eqx.nn.MLP(1, width, 32, 1, key=embed)

    def __call__(self, x, sigma):
        """Estimate the clean image in x_0 + sigma n."""
        scale = jnp.sqrt(sigma**2 + 0.25)
        h = self.layers[0](x / scale) + self.embedding(jnp.log(sigma)[None])[:, None, None]
        for layer in self.layers[1:-1]:
            h = h + layer(jax.nn.silu(h))
        return 0.25 / scale**2 * x + 0.5 * sigma / scale * self.layers[-1](jax.nn.silu(h))


# %%
# A few seconds of training on random phantoms, so that there is something to look at. Yours is trained already.

images = jnp.asarray(phantoms(512, 24, seed=1)).transpose(0, 3, 1, 2)
net = Network(jax.random.key(0))
weights, skeleton = eqx.partition(net, eqx.is_array)
optimiser = optax.adam(optax.cosine_decay_schedule(5e-3, 300))


@jax.jit
def update(weights, state, key):
    """Make one update with 16 images."""
    pick, level, noise = jax.random.split(key, 3)
    x = images[jax.random.randint(pick, (16,), 0, len(images))]
    sigma = jnp.exp(-0.8 + 1.3 * jax.random.normal(level, (16,)))
    noisy = x + sigma[:, None, None, None] * jax.random.normal(noise, x.shape)

    def loss(weights):
        error = (jax.vmap(eqx.combine(weights, skeleton))(noisy, sigma) - x) ** 2
        return jnp.mean(error.mean((1, 2, 3)) * (sigma**2 + 0.25) / (0.25 * sigma**2))

    updates, state = optimiser.update(jax.grad(loss)(weights), state)
    return optax.apply_updates(weights, updates), state


state = optimiser.init(weights)
for key in jax.random.split(jax.random.key(1), 300):
    weights, state = update(weights, state, key)

# %%
# The prior
# ---------
#
# ``from_denoiser`` takes a function of the weights, one image with channels last, and the noise level. ``kind`` says
# what it predicts: networks that predict the noise, v or a velocity are taken the same way. ``EDMSchedule`` says
# between which noise levels solvers walk and that the function is told sigma itself.


def denoise(weights, x, sigma):
    """Call the network with channels first."""
    return eqx.combine(weights, skeleton)(x.transpose(2, 0, 1), sigma).transpose(1, 2, 0)


schedule = dd.EDMSchedule(sigma_min=0.01, sigma_max=20.0, conditioning="sigma", time_scale=1.0)
prior = dd.from_denoiser(denoise, kind="denoiser", params=weights, image_shape=(24, 24, 1), schedule=schedule)

# %%
# Does it denoise at every level? A solver visits all of them, from pure noise down, so the error of a network has to
# stay below that of the mean image and fall with the noise.

test = jnp.asarray(phantoms(24, 24, seed=2))
sigmas = np.geomspace(0.02, 10, 9)
noise = jax.random.normal(jax.random.key(2), test.shape)


@jax.jit
def error_at(sigma):
    """Compute the root mean squared error of the denoised test images."""
    x = jax.vmap(lambda x, n: prior.denoise(x + sigma * n, prior.schedule.at(sigma)))(test, noise)
    return jnp.sqrt(jnp.mean((x - test) ** 2))


errors = np.array([error_at(sigma) for sigma in sigmas])
of_mean = float(jnp.sqrt(jnp.mean((test - images.transpose(0, 2, 3, 1).mean(0)) ** 2)))

# %%
# Then every solver takes it. Here a phantom is restored of which half of the pixels are missing.

truth = test[4]
operator = dd.operators.random_inpainting(truth.shape, jax.random.key(3), fraction=0.5)
y = dd.simulate(operator, truth, 0.05, jax.random.key(4))
problem = dd.Problem(operator, y[None], 0.05)
solver = dd.solvers.DDiff(num_steps=50)
restored = dd.solve(solver, prior, problem, dd.image_keys(jax.random.key(5), jnp.arange(1))).x[0]
print(f"root mean squared error: {float(jnp.sqrt(jnp.mean((restored - truth) ** 2))):.3f}")

# %%
# The error falls with the noise and stays below both dotted lines at moderate noise, so that the network helps there.
# It was trained for seconds: ``ddiff check-prior`` makes the same judgement of a real one, with a linear filter to
# compare with.

figure, panels = plt.subplots(1, 4, figsize=(9, 2.5), width_ratios=[1.5, 1, 1, 1], layout="constrained")
panels[0].loglog(sigmas, errors, "o-", label="network")
panels[0].loglog(sigmas, sigmas, ":", color="gray", label="noisy image")
panels[0].axhline(of_mean, linestyle=":", color="black", label="mean image")
panels[0].set(xlabel="sigma", title="error", ylim=(0.01, 2))
panels[0].legend(frameon=False, fontsize=8)
for axis, (name, x) in zip(
    panels[1:], {"measurement": problem.y[0], "restoration": restored, "truth": truth}.items(), strict=True
):
    axis.imshow(np.where(x[..., 0] == 0, np.nan, x[..., 0]), cmap="gray", vmin=-1, vmax=1)
    axis.set(title=name, xticks=[], yticks=[], facecolor="tab:blue")
plt.show()
