"""Every solver's published loop in plain NumPy, in float64, on flat vectors with a dense operator matrix.

The prior is Gaussian with independent pixels, N(mean, var). Noise is a tape: entry [k, i] is draw i of step k.
"""

import dataclasses
import itertools

import numpy as np
from oracles import ALPHA_BAR

SIGMA = np.sqrt((1 - ALPHA_BAR) / ALPHA_BAR)


@dataclasses.dataclass
class Model:
    """Operator, measurement and prior."""

    matrix: np.ndarray
    y: np.ndarray
    sigma_y: float
    mean: float = 0.0
    var: float = 0.25
    observed: np.ndarray | None = None  # hidden entries of y are 0 here; None is all observed

    def __post_init__(self):
        self.num_observed = self.y.size
        if self.observed is not None:
            self.y, self.num_observed = np.where(self.observed, self.y, 0.0), self.observed.sum()

    def eps(self, x_t, ab):
        return np.sqrt(1 - ab) * (x_t - np.sqrt(ab) * self.mean) / (ab * self.var + 1 - ab)

    def x0_hat(self, x_t, ab):
        return (x_t - np.sqrt(1 - ab) * self.eps(x_t, ab)) / np.sqrt(ab)

    def slope(self, ab):
        """Derivative of x0_hat."""
        return np.sqrt(ab) * self.var / (ab * self.var + 1 - ab)

    def clipped(self, x_t, ab):
        return np.clip(self.x0_hat(x_t, ab), -1, 1)

    def residual(self, x):
        return self.matrix @ x - self.y

    def gradient(self, x):
        return self.matrix.T @ self.residual(x)

    def prox(self, z, rho):
        left = self.matrix.T @ self.matrix + rho * np.eye(z.size)
        return np.linalg.solve(left, self.matrix.T @ self.y + rho * z)


def level(t):
    """Cumulative product at t; 1 at t = -1."""
    return 1.0 if t < 0 else ALPHA_BAR[t]


def normalised(g):
    return g / np.linalg.norm(g)


def diff_pnp(model, w, timesteps, *, gamma, dual):
    u = np.zeros_like(w)
    x = w
    for t in timesteps:
        z = model.clipped(w, ALPHA_BAR[t])
        x = z - u - gamma * (3.3 if t > 90 else 0.1) * normalised(model.gradient(z - u))
        u = u + x - z if dual else u
        w = x + u
    return x


def ddiff_accumulating(model, x_t, timesteps, tape, *, gamma, t0):
    """ADMM with the dual variable updated against the next z (full noise)."""
    u, x = np.zeros_like(x_t), None
    for k, (t, s) in enumerate(itertools.pairwise(timesteps)):
        z = model.clipped(x_t, ALPHA_BAR[t])
        u = u if x is None else u + x - z
        x = z - u - gamma * (3.3 if t > 90 else 0.1) * normalised(model.gradient(z - u))
        n = tape[k, 0] if t > t0 else 0.0
        x_t = np.sqrt(ALPHA_BAR[s]) * (x + u) + np.sqrt(1 - ALPHA_BAR[s]) * n
    return x_t


def ddiff_to_the_noise(model, x_t, timesteps, tape):
    """DDiff without gamma (full noise) on the published walk."""
    for k, (t, s) in enumerate(itertools.pairwise(timesteps)):
        n = tape[k, 0] if t > 1 else 0.0
        x = to_the_noise(model, model.clipped(x_t, ALPHA_BAR[t]))
        x_t = np.sqrt(ALPHA_BAR[s]) * x + np.sqrt(1 - ALPHA_BAR[s]) * n
    return x_t


def to_the_noise(model, z):
    """Step from z along the gradient, to a root of the residual on the line."""
    r, g = model.residual(z), model.gradient(z)
    push, aim = model.matrix @ g, model.num_observed * model.sigma_y**2
    if r @ r <= aim:
        return z
    roots = np.roots([push @ push, -2 * (r @ push), r @ r - aim])
    step = min(roots.real) if np.all(np.isreal(roots)) else (r @ push) / (push @ push)
    return z - step * g


def ddiff_geometric(model, x_t, count, tape, *, first, last):
    """DDiff without gamma (full noise) over `count` levels of geometric noise-to-signal ratios, and then the image."""
    x = x_t
    for k, ratio in enumerate(first * (last / first) ** (np.arange(count) / (count - 1))):
        x = to_the_noise(model, model.clipped(x_t, 1 / (1 + ratio**2)))
        following = ratio * (last / first) ** (1 / (count - 1))
        x_t = (x + following * tape[k, 0]) / np.sqrt(1 + following**2)
    return x


def diffpir(model, x, timesteps, tape, *, lam, zeta, eta, step):
    for k, (t, s) in enumerate(itertools.pairwise(timesteps)):
        ab, ab_s = ALPHA_BAR[t], ALPHA_BAR[s]
        z = model.clipped(x, ab)
        rho = lam * max(model.sigma_y / 2, 0.001) ** 2 / SIGMA[t] ** 2
        if step == "prox":
            x_0 = model.prox(z, rho)
        else:
            g = model.gradient(z)
            curvature = np.sum((model.matrix @ g) ** 2) / np.sum(g**2)
            x_0 = z - g / (rho if step == "gradient" else rho + curvature)
        eps = (x - np.sqrt(ab) * x_0) / np.sqrt(1 - ab)
        inner = eta * np.sqrt((1 - ab_s) / (1 - ab)) * np.sqrt(1 - ab / ALPHA_BAR[t - 1])
        std = np.sqrt((1 - zeta) * inner**2 + zeta * (1 - ab_s))
        x = np.sqrt(ab_s) * x_0 + np.sqrt(1 - zeta) * np.sqrt(1 - ab_s - inner**2) * eps + std * tape[k, 0]
    return x


def dps(model, x, timesteps, tape, *, zeta):
    for k, (t, s) in enumerate(itertools.pairwise(timesteps)):
        ab, ab_s = ALPHA_BAR[t], level(s)
        alpha = ab / ab_s
        beta = 1 - alpha
        z = model.clipped(x, ab)
        mean = beta * np.sqrt(ab_s) / (1 - ab) * z + (1 - ab_s) * np.sqrt(alpha) / (1 - ab) * x
        inside = np.abs(model.x0_hat(x, ab)) < 1
        hidden = (model.y.size - model.num_observed) * model.sigma_y**2  # what noise there adds on average
        size = np.sqrt(np.sum(model.residual(z) ** 2) + hidden)
        gradient = model.slope(ab) * inside * model.gradient(z) / size
        if s >= 0:  # v = 0: half the way between the logarithms of both variances
            mean = mean + np.sqrt(np.sqrt(beta * beta * (1 - ab_s) / (1 - ab))) * tape[k, 0]
        x = mean - zeta * gradient
    return x


def spaced(a, b, r):
    return (a ** (1 / 7) + r * (b ** (1 / 7) - a ** (1 / 7))) ** 7


def daps(model, x, num_steps, tape, *, lr, ode_steps, langevin_steps, published, momentum=None, tau=0.01):
    """Noise levels as the paper and its released code have them: for both variants, with the continuous timestep."""
    for i in range(num_steps):
        share = i / (num_steps - 1) if published else i / num_steps
        sigma = spaced(100, 0.1, share)
        next_sigma = 0.0
        if i + 1 < num_steps:
            next_sigma = spaced(100, 0.1, (i + 1) / (num_steps - 1 if published else num_steps))
        if published:
            nodes = [spaced(sigma, 0.01, j / (ode_steps - 1)) for j in range(ode_steps)] + [0.0]
        else:
            nodes = [spaced(sigma, 0.01, j / ode_steps) for j in range(ode_steps + 1)]
        w = x
        for node, next_node in itertools.pairwise(nodes):
            time = (np.sqrt(0.1**2 + 2 * 19.9 * np.log(1 + node**2)) - 0.1) / 19.9
            ratio = np.exp(np.interp(999 * time, np.arange(1000), 2 * np.log(SIGMA)))
            denoised = w - node * model.eps(w / np.sqrt(1 + node**2), 1 / (1 + ratio))
            w = w + (next_node - node) * (w - denoised) / node
        x_0 = w
        eta = lr * (1 + i / (num_steps if published else num_steps + 1) * (0.01 - 1))
        v = None if momentum is None else tape[i, langevin_steps + 1]
        for j in range(langevin_steps):
            weight = 1 / tau**2 if published else 2 / tau**2
            force = -weight * model.gradient(w) + (x_0 - w) / sigma**2
            if momentum is None:
                w = w + eta * force + np.sqrt(2 * eta) * tape[i, j]
            else:
                v = momentum * v + np.sqrt(eta) * force + np.sqrt(2 * (1 - momentum)) * tape[i, j]
                w = w + np.sqrt(eta) * v
        x = w + next_sigma * tape[i, langevin_steps]
    return x


WEIGHTS = {
    "linear": lambda s: s,
    "sqrt": lambda s: s**0.5,
    "square": lambda s: s**2,
    "log": lambda s: np.log(1 + s),
    "trunc_linear": lambda s: min(s, 1.0),
    "power2over3": lambda s: s ** (2 / 3),
    "const": lambda s: 1.0,
}


def red_diff(model, mu, timesteps, tape, *, lam, lr, weighting, sigma_x0=0.0):
    first, second = np.zeros_like(mu), np.zeros_like(mu)
    x = mu
    for k, t in enumerate(timesteps):
        ab, n = ALPHA_BAR[t], tape[k, 0]
        x = mu + sigma_x0 * (tape[k, 1] if sigma_x0 else 0.0)
        e = model.eps(np.sqrt(ab) * x + np.sqrt(1 - ab) * n, ab)
        gradient = model.gradient(x) / model.y.size + lam * WEIGHTS[weighting](SIGMA[t]) / mu.size * (e - n)
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        mu = mu - lr * (first / (1 - 0.9 ** (k + 1))) / (np.sqrt(second / (1 - 0.99 ** (k + 1))) + 1e-8)
    return x


def sampling(model, x, timesteps, tape, *, eta):
    for k, (t, s) in enumerate(itertools.pairwise(timesteps)):
        ab, ab_s = ALPHA_BAR[t], level(s)
        x_0 = model.clipped(x, ab)
        eps = (x - np.sqrt(ab) * x_0) / np.sqrt(1 - ab)
        c1 = eta * np.sqrt((1 - ab_s) / (1 - ab) * (1 - ab / ab_s))
        x = np.sqrt(ab_s) * x_0 + np.sqrt(max(1 - ab_s - c1**2, 0.0)) * eps + c1 * tape[k, 0]
    return x
