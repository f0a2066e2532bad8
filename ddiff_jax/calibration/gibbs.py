"""Posteriors of sparse signals that only a Markov chain can draw from: long runs of Gibbs sampling, kept."""

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ddiff_jax.atomic import replacing
from ddiff_jax.caches import user_cache
from ddiff_jax.calibration.draws import generator, images
from ddiff_jax.calibration.sparse import Signals
from ddiff_jax.types import PRNGKey

REVISION = 1  # of the chains: another one where they would end elsewhere
TINY = 1e-12  # stands for 0 where increments and their variances are divided by


@dataclasses.dataclass(frozen=True)
class Chains:
    """What is kept of the chains of N problems.

    Args:
        mean: [N, d], of x, by the means that it has given the variances of u.
        variance: [N], trace of the covariance of x.
        draws: [N, P, d], states far apart.
    """

    mean: Float[np.ndarray, "N d"]
    variance: Float[np.ndarray, " N"]
    draws: Float[np.ndarray, "N P d"]


@dataclasses.dataclass(frozen=True)
class GibbsPosterior(Signals):
    """The posterior of x = T u given y = A x + sigma_y n for any T and A, by Gibbs sampling.

    Every entry of u is Gaussian given its variance w_i, or 0 where its indicator v_i is. With H = A T, one sweep is:

    1. w_i given u_i and v_i = 1: 1 / w_i is inverse Gaussian (Laplace) or Gamma (Student) distributed; given v_i = 0,
       w_i is drawn from its law.
    2. v_i given w and all other v, with u integrated out, one i after the other.
    3. u where v_i = 1, given w, v and y: Gaussian.

    The chains of one batch of measurements take minutes. They are kept in the user's cache folder, by what they depend
    on, and depend on nothing else.

    Args:
        burn_in: sweeps that are left out.
        num_sweeps: those that count.
        thin: one state in so many is kept.
    """

    burn_in: int = 1000
    num_sweeps: int = 8000
    thin: int = 20

    def mean(self, y: Any) -> Float[np.ndarray, "N ..."]:
        """Estimate E[x | y]."""
        return images(self.chains(y).mean, self.image_shape)

    def variance(self, y: Any) -> Float[np.ndarray, " N"]:
        """Estimate the trace of the posterior covariance."""
        return self.chains(y).variance

    def samples(self, key: PRNGKey, y: Any, count: int) -> Float[np.ndarray, "N count ..."]:
        """Take states of the chains, at random and none twice.

        Raises:
            ValueError: so many are not kept.
        """
        random, draws = generator(key), self.chains(y).draws
        if count > draws.shape[1]:
            raise ValueError(
                f"the chains of one problem keep {draws.shape[1]} states, and {count} are wanted: build the posterior "
                "with more sweeps, or a smaller thin"
            )
        chosen = np.argsort(random.random(draws.shape[:2]), 1)[:, :count]
        return images(np.take_along_axis(draws, chosen[..., None], 1).astype(np.float64), self.image_shape)

    def chains(self, y: Any) -> Chains:
        """Run the chains of a batch of measurements, or read them if they were run before."""
        y = self.measured(y)
        digest = hashlib.sha256()
        for part in (self.synthesis, self.matrix, np.float64(self.sigma_y), y):
            digest.update(np.ascontiguousarray(part, np.float64).tobytes() + str(np.shape(part)).encode())
        digest.update(repr((REVISION, self.law, self.burn_in, self.num_sweeps, self.thin)).encode())
        name = digest.hexdigest()
        path = user_cache() / "calibration" / f"{name[:32]}.npz"
        if path.is_file():
            with np.load(path) as kept:
                return Chains(*(kept[field.name] for field in dataclasses.fields(Chains)))
        found = self._run(np.random.default_rng(int(name[:16], 16)), y)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, **dataclasses.asdict(found))
        return found

    @functools.cached_property
    def _gram(self) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, "d d"]]:
        h = self.matrix @ self.synthesis
        return h, h.T @ h / self.sigma_y**2

    def _run(self, random: np.random.Generator, y: Float[np.ndarray, "N m"]) -> Chains:
        h, _ = self._gram
        seen = y @ h / self.sigma_y**2
        u, v = np.zeros_like(seen), np.full(seen.shape, self.law.p == 1)
        total, squares, draws = np.zeros_like(seen), np.zeros(len(seen)), []
        for sweep in range(-self.burn_in, self.num_sweeps):
            w = self._variances(random, u, v)
            if self.law.p < 1:
                v = self._indicators(random, seen, v, w)
            u, centre = self._coefficients(random, seen, v, w)
            if sweep < 0:
                continue
            x = u @ self.synthesis.T
            total += centre @ self.synthesis.T
            squares += (x**2).sum(1)
            if sweep % self.thin == 0:
                draws.append(x.astype(np.float32))
        mean = total / self.num_sweeps
        return Chains(mean, squares / self.num_sweeps - (mean**2).sum(1), np.stack(draws, 1))

    def _variances(
        self, random: np.random.Generator, u: Float[np.ndarray, "N d"], v: Bool[np.ndarray, "N d"]
    ) -> Float[np.ndarray, "N d"]:
        """Draw the variances given the coefficients."""
        scale = self.law.scale
        if self.law.kind == "gauss":
            return np.full(u.shape, scale**2)
        if self.law.kind == "laplace":
            given = 1 / np.maximum(random.wald(1 / (scale * np.maximum(np.abs(u), TINY)), scale**-2), TINY)
            free = random.exponential(2 * scale**2, u.shape) if self.law.p < 1 else given
        else:
            given = scale**2 * (1.5 + 0.5 * (u / scale) ** 2) / random.gamma(2.0, size=u.shape)
            free = scale**2 * 1.5 / random.gamma(1.5, size=u.shape) if self.law.p < 1 else given
        return np.where(v, given, free)

    def _support(
        self, v: Bool[np.ndarray, "N d"], w: Float[np.ndarray, "N d"]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """List the entries that are not 0, filled up to as many in every problem.

        Returns:
            Their places [N, k], which of them count, their variances (1 for the others), and G [N, k, k] there.
        """
        count = max(1, int(v.sum(1).max()))
        places = np.argsort(~v, 1, kind="stable")[:, :count]
        inside = np.take_along_axis(v, places, 1)
        variances = np.where(inside, np.take_along_axis(w, places, 1), 1.0)
        gram = self._gram[1][places[:, :, None], places[:, None]] * (inside[:, :, None] & inside[:, None])
        return places, inside, variances, gram

    def _coefficients(
        self, random: np.random.Generator, seen: np.ndarray, v: np.ndarray, w: np.ndarray
    ) -> tuple[Float[np.ndarray, "N d"], Float[np.ndarray, "N d"]]:
        """Draw u given w and v, and compute its mean: solve Q u = H^T y / sigma^2 + a draw of covariance Q."""
        places, inside, variances, q = self._support(v, w)
        diagonal = np.arange(q.shape[1])
        q[:, diagonal, diagonal] += 1 / variances
        h, _ = self._gram
        data = random.standard_normal((len(seen), len(h))) @ h / self.sigma_y
        right = np.stack([np.take_along_axis(part, places, 1) for part in (seen + data, seen)], -1)
        right[..., 0] += random.standard_normal(variances.shape) / np.sqrt(variances)
        solution = np.linalg.solve(q, right * inside[..., None])
        u, centre = np.zeros((2, *seen.shape))
        for target, column in ((u, solution[..., 0]), (centre, solution[..., 1])):
            np.put_along_axis(target, places, np.where(inside, column, 0.0), 1)
        return u, centre

    def _indicators(
        self, random: np.random.Generator, seen: np.ndarray, v: np.ndarray, w: np.ndarray
    ) -> Bool[np.ndarray, "N d"]:
        """Draw the indicators one after the other, with u integrated out.

        With B = sigma^2 + H diag(v w) H^T, all that counts is T = H^T B^-1 H and t = H^T B^-1 y. Where an indicator
        changes, they change by one direction.
        """
        places, inside, variances, gram = self._support(v, w)
        root = np.sqrt(variances) * inside
        inner = np.eye(root.shape[1]) + root[:, :, None] * gram * root[:, None]
        full = self._gram[1]
        beside = root[:, :, None] * full[places]
        right = np.concatenate([beside, (root * np.take_along_axis(seen, places, 1))[..., None]], -1)
        solved = np.linalg.solve(inner, right)
        change = np.swapaxes(beside, 1, 2) @ solved
        t_matrix, t = full - change[..., :-1], seen - change[..., -1]
        v, logit = v.copy(), np.log(self.law.p / (1 - self.law.p))
        uniform = random.random(v.shape)
        for i in range(v.shape[1]):
            tau, beta, wi, before = t_matrix[:, i, i], t[:, i], w[:, i], v[:, i].copy()
            left = np.where(before, 1 / np.maximum(1 - wi * tau, TINY), 1.0)  # takes i out
            tau_out, beta_out = tau * left, beta * left
            grown = 1 + wi * tau_out
            odds = logit - 0.5 * np.log(grown) + 0.5 * wi * beta_out**2 / grown
            v[:, i] = np.log(uniform[:, i]) < -np.logaddexp(0.0, -odds)
            flips = np.flatnonzero(v[:, i] != before)
            if len(flips):
                sign = np.where(before[flips], 1.0, -1.0)
                factor = sign * wi[flips] / (1 - sign * wi[flips] * tau[flips])
                row = t_matrix[flips, i]
                t[flips] += (factor * beta[flips])[:, None] * row
                t_matrix[flips] += factor[:, None, None] * row[:, :, None] * row[:, None]
        return v
