"""Plain float64 loops of PnP-DM and DDS with dense matrices, and the fixtures of their golden numbers.

Images are arrays [pixels, channels]; a matrix acts on every channel alike.
"""

import itertools
from typing import Any

import numpy as np
from oracles import ALPHA_BAR, perturbation, start, tape_row, timesteps, wave

N = 16
LEAST = 0.0104838433  # of the published list of levels


def flat(image):
    """Order the numbers of an image [H, W, C] as the fixtures do: by channel, row and column."""
    return np.asarray(image, np.float64).transpose(2, 0, 1).ravel()


def pixels(numbers):
    """Make an image [pixels, 3] of numbers in that order."""
    return numbers.reshape(3, -1).T


S, X, P = (pixels(flat(fixture(N))) for fixture in (start, wave, perturbation))


def noise(m, shape=S.shape):
    """Noise number m; that of fewer pixels is the beginning of its numbers."""
    return pixels(flat(tape_row(m, N))[: shape[0] * shape[1]])


def measured(matrix):
    """Measure X, with the fixtures' perturbation."""
    return matrix @ X + pixels(P.T.ravel()[: 3 * len(matrix)])


def box_mean(n=N, factor=4):
    """Mean over squares."""
    rows = np.kron(np.eye(n // factor), np.full((1, factor), 1 / factor))
    return np.kron(rows, rows)


def circular_blur(taps, std, n=N, shift=0):
    """Gaussian blur with periodic borders; the released Fourier blur of PnP-DM is shifted by -1."""
    kernel = np.exp(-0.5 * (np.arange(taps) - taps // 2) ** 2 / std**2)
    kernel /= kernel.sum()
    rows = sum(w * np.roll(np.eye(n), k - taps // 2 + shift, 0) for k, w in enumerate(kernel))
    return np.kron(rows, rows)


def mask():
    """Hide every third pixel along the diagonals."""
    i, k = np.meshgrid(np.arange(N), np.arange(N), indexing="ij")
    return np.diag(((i + k) % 3 != 0).astype(float).ravel())


def bimodal(x, sigma, mu=0.5, var=0.04):
    """E[x_0 | x_0 + sigma n = x] of independent pixels that lie around mu or -mu."""
    total = var + sigma**2
    return (var * x + sigma**2 * mu * np.tanh(mu * x / total)) / total


def prox(matrix, z, y, rho):
    return np.linalg.solve(matrix.T @ matrix + rho * np.eye(len(z)), matrix.T @ y + rho * z)


def draw_given_data(matrix, y, sigma_y, x, rho, draw):
    centre = x + rho * draw(x.shape)
    return prox(matrix, centre, y + sigma_y * draw(y.shape), (sigma_y / rho) ** 2)


def levels(count=100, least=LEAST):
    return (80 ** (1 / 7) + np.arange(count) / (count - 1) * (least ** (1 / 7) - 80 ** (1 / 7))) ** 7


def draw_given_prior(x, rho, table, draw, *, is_sde=True, is_exact=False, denoise=bimodal):
    walked = [*([rho] if is_exact else []), *table[table < rho], 0.0]
    for s, cleaner in itertools.pairwise(walked):
        x = x + (2 if is_sde else 1) * (cleaner - s) / s * (x - denoise(x, s))
        if is_sde and cleaner:
            x = x + np.sqrt(2 * s * (s - cleaner)) * draw(x.shape)
    return x


def pnp_dm(matrix, y, sigma_y, x, rhos, table, draw, **how):
    """Run the chain; returns the last z and the last x."""
    z = x
    for rho in rhos:
        z = draw_given_data(matrix, y, sigma_y, x, rho, draw)
        x = draw_given_prior(z, rho, table, draw, **how)
    return z, x


def langevin(gradient, x, sigma_y, rho, lr, num_steps, draw):
    z = x
    for _ in range(num_steps):
        z = z - lr * gradient(z) / sigma_y**2 - lr / rho**2 * (z - x) + np.sqrt(2 * lr) * draw(x.shape)
    return z


def conjugate_gradients(matrix, h, b, num_steps):
    r = p = b - matrix @ h
    for _ in range(num_steps):
        power = np.sum(r * r)
        if np.sqrt(power) < 1e-5:
            break
        length = power / np.sum(p * (matrix @ p))
        h, r = h + length * p, r - length * (matrix @ p)
        p = r + np.sum(r * r) / power * p
    return h


def dds(matrix, y, x, num_steps, draw, *, gamma: Any, denoise, eta=0.85, cg_steps=5, published=True):
    """Gamma None is the branch without noise, a function is asked at every level; cg_steps None solves exactly."""
    normal, one = matrix.T @ matrix, np.eye(len(x))
    for t, s in itertools.pairwise(timesteps(num_steps, "strided")):
        ab, ab_next = ALPHA_BAR[t], ALPHA_BAR[s] if s >= 0 else 1.0
        z = denoise(x / np.sqrt(ab), np.sqrt((1 - ab) / ab))
        eps = (x - np.sqrt(ab) * z) / np.sqrt(1 - ab)
        if cg_steps is None:
            weight: Any = gamma(ab) if callable(gamma) else gamma
            h = prox(matrix, z, y, 1 / weight)
        elif gamma is None:
            h = conjugate_gradients(normal, z, matrix.T @ y, cg_steps)
        else:
            h = conjugate_gradients(one + gamma * normal, z, z + gamma * matrix.T @ y, cg_steps)
        if published and s == 0:
            x = h
        else:
            fresh = eta * draw(x.shape) + np.sqrt(1 - eta**2) * eps
            x = np.sqrt(ab_next) * h + np.sqrt(1 - ab_next) * fresh
    return x
