"""MMPS in plain float64 NumPy with dense matrices, and the closed-form problems that its numbers are known for."""

import itertools

import numpy as np
from oracles import ALPHA_BAR, timesteps

MEAN, VAR = 0.5, 0.04  # of both modes of a pixel, at plus and minus MEAN


def flat(sequence, n=8):
    """Numbers over the flat (channel, row, column) index that the recorded values are given in."""
    j = np.arange(3 * n * n)
    return sequence(j + 1)


START = flat(lambda j: np.sqrt(2) * np.sin(0.9 * j))


def noise(m):
    return flat(lambda j: np.sqrt(2) * np.sin(12.9898 * m + 78.233 * j))


def image(n=8):
    c, i, k = np.meshgrid(np.arange(3), np.arange(n), np.arange(n), indexing="ij")
    return (0.8 * np.sin(0.4 * i + 0.7 * k + c)).ravel()


def box(n=8, size=4):
    """Means over blocks of every channel, as a matrix: channels first, then blocks by rows."""
    mean = np.kron(np.eye(n // size), np.full((1, size), 1 / size))
    return np.kron(np.eye(3), np.kron(mean, mean))


def measured():
    matrix = box()
    j = np.arange(len(matrix))
    return matrix, matrix @ image() + 0.05 * np.sqrt(2) * np.sin(1.7 * (j + 1))


def mirror(size=192):
    """A reflection that mixes all pixels."""
    h = np.cos(0.3 * np.arange(size) + 0.2)
    return np.eye(size) - 2 * np.outer(h, h) / (h @ h)


def mixing_denoiser(x, sigma):
    """D(x, sigma) of mirrored pixels with two modes each, and its Jacobian."""
    mix = mirror()
    z, total = mix @ x, VAR + sigma**2
    lean = np.tanh(MEAN * z / total)
    slope = (VAR + sigma**2 * MEAN**2 / total * (1 - lean**2)) / total
    return mix @ ((VAR * z + sigma**2 * MEAN * lean) / total), mix @ (slope[:, None] * mix)


def gmres(matrix, b, iterations):
    """Least residual over the Krylov space, by an orthonormal basis of it and least squares."""
    basis = [b / np.linalg.norm(b)]
    for _ in range(iterations - 1):
        v = matrix @ basis[-1]
        for _ in range(2):
            v = v - np.array(basis).T @ (np.array(basis) @ v)
        basis.append(v / np.linalg.norm(v))
    basis = np.array(basis).T
    return basis @ np.linalg.lstsq(matrix @ basis, b, rcond=None)[0]


def cg(matrix, b, iterations):
    u, r, p = np.zeros_like(b), b, b
    for _ in range(iterations):
        q = matrix @ p
        length = (r @ r) / (p @ q)
        u, after = u + length * p, r - length * q
        r, p = after, after + (after @ after) / (r @ r) * p
    return u


SOLVE = {"cg": cg, "gmres": gmres, "exact": lambda system, b, _: np.linalg.solve(system, b)}


def system(denoiser, matrix, y, sigma_y, x, sigma):
    """Compute D, S A^T, M and b at one point; the covariance S is sigma^2 J^T, as everywhere."""
    x_0, jacobian = denoiser(x, sigma)
    back = sigma**2 * jacobian.T @ matrix.T
    return x_0, back, sigma_y**2 * np.eye(len(y)) + matrix @ back, y - matrix @ x_0


def posterior_denoiser(denoiser, matrix, y, sigma_y, solver, iterations=0):
    """Make D_y(x, sigma) of D and its Jacobian."""

    def at(x, sigma):
        x_0, back, m, b = system(denoiser, matrix, y, sigma_y, x, sigma)
        return x_0 + back @ SOLVE[solver](m, b, iterations)

    return at


def ddim(at, x_t, num_steps, eta):
    """Walk strided timesteps with noise 1, 2, ..."""
    for k, (t, s) in enumerate(itertools.pairwise(timesteps(num_steps, "strided"))):
        ab, ab_s = ALPHA_BAR[t], 1.0 if s < 0 else ALPHA_BAR[s]
        x_0 = at(x_t / np.sqrt(ab), np.sqrt((1 - ab) / ab))
        eps = (x_t - np.sqrt(ab) * x_0) / np.sqrt(1 - ab)
        std = eta * np.sqrt((1 - ab / ab_s) * (1 - ab_s) / (1 - ab))
        x_t = np.sqrt(ab_s) * x_0 + std * noise(k + 1) + np.sqrt(max(1 - ab_s - std**2, 0.0)) * eps
    return x_t


def poly(num_steps, first=80.0, last=0.01):
    share = np.arange(num_steps) / max(num_steps - 1, 1)
    return np.append((first ** (1 / 7) + share * (last ** (1 / 7) - first ** (1 / 7))) ** 7, 0.0)


def heun(at, x, sigmas):
    """Walk down the levels of x_0 + sigma n."""
    for s, s_next in itertools.pairwise(sigmas):
        slope = (x - at(x, s)) / s
        euler = x + (s_next - s) * slope
        if s_next == 0:
            return euler
        x = x + (s_next - s) / 2 * (slope + (euler - at(euler, s_next)) / s_next)
    return x


def ddpm(at, x, sigmas, tape):
    for n, (s, s_next) in zip(tape, itertools.pairwise(sigmas), strict=True):
        x_0 = at(x, s)
        x = x_0 + (s_next / s) ** 2 * (x - x_0) + s_next * np.sqrt(1 - (s_next / s) ** 2) * n
    return x
