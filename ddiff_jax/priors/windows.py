"""Priors for images larger than those that they were trained on: overlapping windows, blended at every step."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddiff_jax import _execution
from ddiff_jax.levels import Level, Schedule
from ddiff_jax.noise import check_seed, root_key
from ddiff_jax.priors.base import Latent, Prior, denoise_with_variance, predict
from ddiff_jax.priors.derived import OnSchedule
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape

Taper = Literal["cosine", "linear", "uniform"]
TAPERS: tuple[Taper, ...] = get_args(Taper)

PART = 4  # windows overlap by one part in so many of their side, unless told otherwise


@pytree_dataclass
class _Cuts:
    """The windows along one axis: where they start, and the share of every pixel that is theirs."""

    starts: Int[Array, " K"]
    shares: Float[Array, "K p"]


@pytree_dataclass
class WindowedPrior:
    """A prior for images larger than those of another prior, which denoises windows of them.

    At every step the windows R_k x_t (R_k crops) are denoised and blended, with smooth weights W_k per pixel:

        x0_hat = sum_k W_k R_k^T D(R_k x_t) / sum_k W_k

    Noise, data and operator are those of the whole image, and so is what a solver sees. Blending the noise, the score
    or v is the same thing, since all of them are affine in x0_hat pixel by pixel. What the prior clips is clipped after
    blending. Along an axis of n pixels, with windows of p pixels that overlap by o, s = p - o and a shift 0 <= a < s,
    windows start at clip(k s - a, 0, n - p): they never leave the image, so nothing is padded, and one that lies where
    the one before does has no weight. An axis as long as the window has one window, and an image as large as the
    prior's is denoised by the prior itself. Windows are taken a block at a time, so memory does not grow with their
    number, forwards nor backwards; they are added in a fixed order, and results differ between blocks by rounding only.

    What windows cannot give is agreement over distances beyond p, other than by the data; and a prior of faces knows
    nothing of streets.

    Args:
        prior: of images [..., C] of the windows' size.
        shape: of the whole images, channels last, of the same rank; no axis is shorter than the window's.
        overlap: of neighbouring windows in pixels, at least 0 and less than the window's side; one number or one per
            axis. None is a quarter of the side. Half of it takes four times the pixels, a quarter 1.8 times.
        taper: how weights fall towards the border of a window. With t_j = (j + 1/2) / o at its pixel j < o, "cosine" is
            sin^2(pi t_j / 2), "linear" t_j and "uniform" 1, which leaves visible seams.
        shift: move the windows by another random offset at every noise level. It costs up to one more window per axis.
        seed: of the offsets, 0 to 2**32 - 1. They depend on it and on the level alone, so that all images of a batch
            and all evaluations at one level have the same ones.
        block: windows that are denoised at a time; None takes as many as suit the machine.

    Raises:
        ValueError: shape, overlap, taper, seed or block are not as above, or the prior's images are decoded.

    Source: Bar-Tal et al., "MultiDiffusion: fusing diffusion paths for controlled image generation", ICML 2023; random
    offsets: Hu et al., "Learning image priors through patch-based diffusion models for solving inverse problems",
    NeurIPS 2024, whose patches do not overlap.
    Differs: smooth weights instead of uniform ones, no padding, and the denoised image is blended, not the noisy one.
    """

    prior: Prior
    shape: ImageShape = static_field()
    overlap: int | tuple[int, ...] | None = static_field(default=None)
    taper: Taper = static_field(default="cosine")
    shift: bool = static_field(default=False)
    seed: int = static_field(default=0)
    block: int | None = static_field(default=None)

    def __post_init__(self):
        if isinstance(self.prior, Latent):
            raise ValueError(
                "windows lie in a prior's own images: put them inside, LatentPrior(WindowedPrior(prior.prior, shape), "
                "prior.decoder, prior.params); for an EmbeddedPrior use ddiff_jax.priors.with_shape"
            )
        shape, window = tuple(map(int, self.shape)), tuple(self.prior.image_shape)
        if len(shape) != len(window) or shape[-1] != window[-1] or any(n < p for n, p in self._sides(shape)):
            raise ValueError(
                f"windows of shape {window} do not cover images of shape {shape}: the channels must be the same and "
                "no side shorter; smaller images are embedded into one window by ddiff_jax.priors.with_shape"
            )
        sides = window[:-1]
        overlap = tuple(p // PART for p in sides) if self.overlap is None else self.overlap
        overlap = (overlap,) * len(sides) if isinstance(overlap, int) else tuple(map(int, overlap))
        if len(overlap) != len(sides) or any(not 0 <= o < p for o, p in zip(overlap, sides, strict=True)):
            raise ValueError(
                f"the overlap must be a number of pixels, or one for each of {len(sides)} axes, from 0 to below the "
                f"window's side, {' x '.join(map(str, sides))}; got {self.overlap}"
            )
        if self.taper not in TAPERS:
            raise ValueError(f"the taper must be one of {', '.join(TAPERS)}; got {self.taper!r}")
        if self.block is not None and self.block < 1:
            raise ValueError(f"a block must hold at least one window; got {self.block}")
        check_seed(self.seed, "the seed of the windows' offsets")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "overlap", overlap)

    @property
    def image_shape(self) -> ImageShape:
        """Shape of the whole images."""
        return self.shape

    @property
    def schedule(self) -> Schedule:
        """The noise levels of the windows' prior."""
        return self.prior.schedule

    @property
    def counts(self) -> tuple[int, ...]:
        """How many windows there are along every axis; all of their combinations are denoised at every step."""
        return tuple(
            1 if n == p else math.ceil((n - p) / (p - o)) + (2 if self.shift else 1) for n, p, o in self._axes()
        )

    @property
    def seams(self) -> tuple[tuple[int, ...], ...]:
        """For every axis, the places b where a window starts or ends between pixels b - 1 and b; without a shift."""
        found = []
        for n, p, o in self._axes():
            starts = _starts(n, p, o)
            found.append(tuple(sorted({b for start in starts for b in (start, start + p) if 0 < b < n})))
        return tuple(found)

    def denoise(self, x_t: Image, level: Level) -> Image:
        """Estimate E[x_0 | x_t], clipped if the windows' prior clips."""
        if self._is_one:
            return self.prior.denoise(x_t, level)
        prior, clips = unclipped(self.prior)
        x_0 = self._blend(lambda x: prior.denoise(x, level), x_t, level)
        return jnp.clip(x_0, -1, 1) if clips else x_0

    def predict(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Estimate E[x_0 | x_t], not clipped, and the noise."""
        return self._blend(lambda x: predict(self.prior, x, level), x_t, level)

    def denoise_with_variance(self, x_t: Image, level: Level) -> tuple[Image, Image]:
        """Estimate E[x_0 | x_t], and v as the windows' prior has learned it, blended likewise."""
        if self._is_one:
            return denoise_with_variance(self.prior, x_t, level)
        prior, clips = unclipped(self.prior)
        x_0, v = self._blend(lambda x: denoise_with_variance(prior, x, level), x_t, level)
        return jnp.clip(x_0, -1, 1) if clips else x_0, v

    @property
    def _is_one(self) -> bool:
        return self.shape == tuple(self.prior.image_shape)

    def _sides(self, shape: ImageShape) -> list[tuple[int, int]]:
        return list(zip(shape[:-1], self.prior.image_shape[:-1], strict=True))

    def _axes(self) -> list[tuple[int, int, int]]:
        """List the lengths of the axes, of the windows along them, and of their overlaps."""
        overlap: Any = self.overlap  # one per axis since __post_init__
        return [(n, p, o) for (n, p), o in zip(self._sides(self.shape), overlap, strict=True)]

    def _cuts(self, level: Level) -> list[_Cuts]:
        """Lay the windows of a level."""
        key, cuts = root_key(self.seed), []
        for number in (level.signal, level.sigma):  # of which one at least tells two levels apart
            key = jax.random.fold_in(key, jax.lax.bitcast_convert_type(jnp.asarray(number, jnp.float32), jnp.uint32))
        for axis, (n, p, o) in enumerate(self._axes()):
            if not self.shift or n == p:
                starts = np.asarray(_starts(n, p, o), np.int32)
                is_new = np.ones(len(starts), bool)
            else:
                a = jax.random.randint(jax.random.fold_in(key, axis), (), 0, p - o, jnp.int32)
                starts = jnp.clip(np.arange(self.counts[axis], dtype=np.int32) * (p - o) - a, 0, n - p)
                is_new = jnp.concatenate([jnp.ones(1, bool), starts[1:] != starts[:-1]])
            cuts.append(_cut(starts, is_new, n, _taper(p, o, self.taper)))
        return cuts

    def _blend(self, function: Callable[[Image], Any], x_t: Image, level: Level) -> Any:
        """Call a function of one window for all of them, and blend what it returns: one image or several."""
        if self._is_one:
            return function(x_t)
        window, cuts = tuple(self.prior.image_shape), self._cuts(level)
        numbers = np.asarray(list(itertools.product(*map(range, self.counts))), np.int32)
        block = min(self.block or _execution.windows_at_a_time(window), len(numbers))
        missing = -len(numbers) % block
        is_there = np.arange(len(numbers) + missing) < len(numbers)
        numbers = np.concatenate([numbers, np.repeat(numbers[-1:], missing, axis=0)])  # to fill the last block

        # Only x_t and the places are kept for a pass backwards, not what the network computes on its way.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def on_windows(x_t: Image, corners: list[Array]) -> Any:
            origin = jnp.zeros((), jnp.int32)
            return jax.vmap(lambda *corner: function(jax.lax.dynamic_slice(x_t, (*corner, origin), window)))(*corners)

        def weight(number: Array, counts: Array) -> Array:
            spans = [tuple(p if a == axis else 1 for a in range(len(window))) for axis, p in enumerate(window[:-1])]
            shares = [
                cut.shares[number[a]].reshape(span) for a, (cut, span) in enumerate(zip(cuts, spans, strict=True))
            ]
            return jnp.where(counts, functools.reduce(jnp.multiply, shares), 0)

        def add(total: Image, made: Image, corner: list[Array], share: Array) -> Image:
            where = (*corner, jnp.zeros((), jnp.int32))
            old = jax.lax.dynamic_slice(total, where, window)
            return jax.lax.dynamic_update_slice(total, old + share.astype(made.dtype) * made, where)

        def of_block(totals: Any, of_windows: tuple[Array, Array]) -> tuple[Any, None]:
            numbers, is_there = of_windows
            corners = [jnp.asarray(cut.starts)[numbers[:, axis]] for axis, cut in enumerate(cuts)]
            made = on_windows(x_t, corners)

            def with_window(totals: Any, i: int) -> Any:
                corner, share = [c[i] for c in corners], weight(numbers[i], is_there[i])
                return jax.tree.map(lambda total, one: add(total, one[i], corner, share), totals, made)

            return functools.reduce(with_window, range(block), totals), None

        like = jax.eval_shape(function, jax.ShapeDtypeStruct(window, x_t.dtype))
        totals = jax.tree.map(lambda leaf: jnp.zeros(self.shape, leaf.dtype), like)
        totals = _execution.alike(totals, (x_t, level, self.prior))
        blocks = (numbers.reshape(-1, block, len(cuts)), is_there.reshape(-1, block))
        totals, _ = jax.lax.scan(of_block, totals, jax.tree.map(jnp.asarray, blocks))
        return totals


def _starts(n: int, p: int, overlap: int) -> list[int]:
    """List where windows start that are not shifted, each place once."""
    return sorted({min(k * (p - overlap), n - p) for k in range(math.ceil((n - p) / (p - overlap)) + 1)})


def _taper(p: int, overlap: int, taper: Taper) -> np.ndarray:
    """Tabulate how the weight of a window of p pixels falls towards both of its ends."""
    t = np.minimum((np.arange(p) + 0.5) / overlap, 1.0) if overlap else np.ones(p)
    ramp = {"cosine": np.sin(np.pi * t / 2) ** 2, "linear": t, "uniform": np.ones(p)}[taper]
    return np.minimum(ramp, ramp[::-1])


def _cut(starts: Any, is_new: Any, n: int, taper: np.ndarray) -> _Cuts:
    """Share every pixel of an axis out among the windows that hold it, by their weights there."""
    xp: Any = np if isinstance(starts, np.ndarray) else jnp
    p = len(taper)
    taper = xp.asarray(taper, xp.float64 if xp is np else jnp.result_type(float))
    place = np.arange(n)[None, :] - starts[:, None]
    is_inside = (place >= 0) & (place < p) & is_new[:, None]
    total = xp.sum(xp.where(is_inside, taper[xp.clip(place, 0, p - 1)], 0), axis=0)
    shares = xp.where(is_new[:, None], taper[None, :] / total[starts[:, None] + np.arange(p)[None, :]], 0)
    return _Cuts(jnp.asarray(starts), jnp.asarray(shares, jnp.result_type(float)))


def unclipped(prior: Prior) -> tuple[Prior, bool]:
    """Find a prior that denoises like another but never clips, and tell whether the other does."""
    if isinstance(prior, OnSchedule):
        inner, clips = unclipped(prior.prior)
        return dataclasses.replace(prior, prior=inner), clips
    known: Any = prior
    has_choice = dataclasses.is_dataclass(prior) and any(field.name == "clip" for field in dataclasses.fields(prior))
    if not has_choice or not known.clip:
        return prior, False
    return dataclasses.replace(known, clip=False), True
