"""Independent float64 versions, in NumPy, of what the package computes; and the published test functions."""

import itertools

import numpy as np


def timesteps(num_steps, spacing="even", total=1000):
    """Timesteps of a walk over a table, ending at the clean image, -1; written down apart from the package."""
    count = total if num_steps is None else num_steps
    if spacing == "even":
        walked = np.round(np.linspace(total - 1, 0, count))
    elif spacing == "strided":
        walked = np.arange(count)[::-1] * total // count
    else:
        walked = total - 1 - np.minimum(np.floor(total * np.sqrt(np.linspace(0, 1, count))), total - 1)
    return np.append(walked, -1).astype(int)


def to_least(num_steps, spacing="even", total=1000):
    """The same for num_steps updates that end at timestep 0."""
    return timesteps(total if num_steps is None else num_steps + 1, spacing, total)[:-1]


ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def channels_last(flat, n):
    """Reshape a flat (3, n, n) sequence, cast to float32 as the fixtures were, to (n, n, 3)."""
    return np.asarray(flat, np.float32).reshape(3, n, n).transpose(1, 2, 0)


def wave(n):
    """Test image of the fixtures, (n, n, 3)."""
    i, k, c = np.meshgrid(np.arange(n), np.arange(n), np.arange(3), indexing="ij")
    return (0.8 * np.sin(0.4 * i + 0.7 * k + c)).astype(np.float32)


def start(n):
    """Starting state of the fixtures."""
    return channels_last(np.sqrt(2) * np.sin(0.9 * (np.arange(3 * n * n) + 1)), n)


def perturbation(n):
    """Measurement noise of the fixtures."""
    return channels_last(0.05 * np.sqrt(2) * np.sin(1.7 * (np.arange(3 * n * n) + 1)), n)


def tape_row(m, n):
    """Noise number m of the fixtures."""
    return channels_last(np.sqrt(2) * np.sin(12.9898 * m + 78.233 * (np.arange(3 * n * n) + 1)), n)


def gaussian_denoise(x_t, t, mean, var, clip):
    """E[x_0 | x_t] for independent Gaussian pixels."""
    ab = ALPHA_BAR[t]
    eps = np.sqrt(1 - ab) * (x_t - np.sqrt(ab) * mean) / (ab * var + 1 - ab)
    x0 = (x_t - np.sqrt(1 - ab) * eps) / np.sqrt(ab)
    return np.clip(x0, -1, 1) if clip else x0


def ddiff(
    matrix,
    y,
    x_t,
    timesteps,
    tape,
    *,
    gamma,
    t0,
    posterior,
    denoise,
    dual=True,
    normalise=True,
    sigma_y=0.05,
    a=3.3,
    b=0.1,
    t_gamma=90,
):
    """Walk DDiff's published loop on flat vectors with a dense operator matrix; return states, x and u."""
    u = np.zeros_like(x_t)
    states, x = [], None
    for k, (t, s) in enumerate(itertools.pairwise(timesteps)):
        ab, ab_s = ALPHA_BAR[t], ALPHA_BAR[s]
        z = denoise(x_t, t)
        v = z - u
        g = matrix.T @ (matrix @ v - y)
        g = g / np.linalg.norm(g) if normalise else g / sigma_y**2
        x = v - gamma * (a if t > t_gamma else b) * g
        eps = (x_t - np.sqrt(ab) * x) / np.sqrt(1 - ab)
        n = tape[k] if t > t0 else 0.0
        s_t = np.sqrt((1 - ab_s) / (1 - ab) * (1 - ab / ab_s))
        if posterior:
            x_t = np.sqrt(ab_s) * (x + u) + np.sqrt(1 - ab_s - s_t**2) * eps + s_t * n
        else:
            x_t = np.sqrt(ab_s) * (x + u) + np.sqrt(1 - ab_s) * n
        if dual:
            u = u + x - z
        states.append(x_t)
    return np.stack(states), x, u


def ddiff_memoryless(matrix, y, x_t, timesteps, tape, *, gamma, t0, denoise, a=3.3, b=0.1, t_gamma=90):
    """Walk the form without dual variable: the gradient is taken at a look-back point (full noise only)."""
    back = np.zeros_like(x_t)
    for k, (t, s) in enumerate(itertools.pairwise(timesteps)):
        z = denoise(x_t, t)
        g = matrix.T @ (matrix @ (z + back) - y)
        step = gamma * (a if t > t_gamma else b) * g / np.linalg.norm(g)
        n = tape[k] if t > t0 else 0.0
        x_t = np.sqrt(ALPHA_BAR[s]) * (z - step) + np.sqrt(1 - ALPHA_BAR[s]) * n
        back = step
    return x_t
