"""Can I learn a parameter through the solver?
===========================================

DDiff with steps of fixed length has a number to choose, gamma; an instrument may have a gain that nobody measured.
What ``solve_one`` restores can be differentiated with respect to both. Which values does gradient descent find?
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import ddiff_jax as dd
from ddiff_jax.phantoms import phantoms

# %%
# The prior is a Gaussian with the mean and the power spectrum of random phantoms, whose denoiser is a Wiener filter. A
# network would take its place in one line, as ``dd.load_prior(...)``.


def wiener(pictures):
    """Make a Gaussian prior with the mean of some pictures and the power of their cosine coefficients."""
    mean, axes = jnp.asarray(pictures.mean(axis=0)), (0, 1)
    power = jnp.mean(jax.scipy.fft.dctn(pictures - mean, axes=(1, 2), norm="ortho") ** 2, axis=0)

    def denoise(x, sigma):
        spectrum = jax.scipy.fft.dctn(x - mean, axes=axes, norm="ortho")
        return mean + jax.scipy.fft.idctn(power / (power + sigma**2) * spectrum, axes=axes, norm="ortho")

    return dd.from_denoiser(denoise, kind="denoiser", image_shape=mean.shape, clip=False)


shape = (16, 16, 1)
prior = wiener(phantoms(400, 16, seed=1))
truth = jnp.asarray(phantoms(8, 16, seed=2))

# %%
# The camera blurs, and multiplies by a gain. It is a plain pytree: its gain is an array, so that it has a derivative.


@dd.pytree_dataclass
class Camera:
    """A blur and a gain."""

    gain: jax.Array

    def forward(self, x):
        """Measure one image."""
        return self.gain * blur.forward(x)


blur = dd.operators.gaussian_blur(shape, size=5, std=1.0)
sigma_y, true_gain = 0.05, 1.3
keys = dd.image_keys(jax.random.key(0), jnp.arange(8))
y = jax.vmap(lambda x, key: dd.simulate(Camera(jnp.float32(true_gain)), x, sigma_y, key))(truth, keys)


def restore(log_gamma, gain, y, key):
    """Restore one image."""
    solver = dd.solvers.DDiff(dd.solvers.Fixed(jnp.exp(log_gamma)), num_steps=30, noise_schedule="posterior")
    return dd.solve_one(solver, prior, dd.Problem(Camera(gain), y, sigma_y), key).x


@jax.jit
def loss(log_gamma, gain):
    """Compute the mean squared error of eight restorations, whose truth is known."""
    x = jax.vmap(lambda y, key: restore(log_gamma, gain, y, key))(y, keys)
    return jnp.mean((x - truth) ** 2)


# %%
# Gradient descent on both at once, by Adam. Gamma is positive, so that its logarithm is learned. The draws of the
# solver are those of the keys and stay the same, so that the loss is a smooth function.

values = (jnp.log(60.0), jnp.float32(0.7))
optimiser = optax.adam(0.1)
state, path = optimiser.init(values), []
slope = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
for _ in range(60):
    value, gradient = slope(*values)
    path.append([float(jnp.exp(values[0])), float(values[1]), float(value)])
    updates, state = optimiser.update(gradient, state)
    values = optax.apply_updates(values, updates)
gammas, gains, losses = np.transpose(path)
print(f"gamma {gammas[0]:.0f} -> {gammas[-1]:.0f}, gain {gains[0]:.2f} -> {gains[-1]:.2f}")
print(f"mean squared error {losses[0]:.4f} -> {losses[-1]:.4f}")

# %%
# Was that the minimum? The curve on the right is the error for many values of gamma at the learned gain: descent ends
# at its lowest place. The gain approaches the true one, though nobody measured it: with a wrong one the prior and the
# data disagree.

log_gammas = jnp.linspace(jnp.log(4.0), jnp.log(80.0), 25)
curve = jax.vmap(lambda log_gamma: loss(log_gamma, values[1]))(log_gammas)

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
left.plot(losses)
left.set(title="error while learning", xlabel="updates", ylabel="mean squared error")
middle.plot(gains, label="learned")
middle.axhline(true_gain, color="black", linestyle=":", label="true")
middle.set(title="the gain", xlabel="updates")
middle.legend(frameon=False)
right.semilogx(jnp.exp(log_gammas), curve, color="gray")
right.plot(gammas[-1], losses[-1], "o", label="learned")
right.set_xticks([5, 10, 20, 50], labels=["5", "10", "20", "50"])
right.minorticks_off()
right.set(title="error against gamma", xlabel="gamma")
right.legend(frameon=False)
plt.show()
