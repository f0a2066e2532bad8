"""Closure quantities of an interferometer: what the unknown gains of its stations leave of the visibilities."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Complex, Float, Int
from numpy.typing import ArrayLike

from ddiff_jax.operators._affine import Affine
from ddiff_jax.operators._interferometry import Pulse, interferometry
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import Image, ImageShape, Measurement, Scalar

# What is added to |B|^2 of a triple product and to |V|^2 of a visibility, in units of a white pixel: without it neither
# phase nor logarithm is finite at the black image, where all visibilities vanish.
PRODUCT, POWER = 1e-20, 1e-12


class ClosureSets(NamedTuple):
    """Which visibilities are closed, as indices into their list.

    Args:
        triangles: [T, 3], the baselines (i j), (j k), (k i).
        conjugates: [T, 3], 1 where the list has that baseline in the other direction.
        quadrangles: [Q, 4], the baselines (a b), (c d), over (a d), (b c); amplitudes have no direction.
    """

    triangles: np.ndarray
    conjugates: np.ndarray
    quadrangles: np.ndarray


class ClosureData(NamedTuple):
    """What an observation says of closure quantities: `Problem(operator, *data[:2], observed=data.observed)`.

    Args:
        y: the measurement, as `Closures.forward` orders it.
        sigma_y: standard deviations; 1 where nothing was observed.
        observed: where all visibilities of a set are strong enough.
    """

    y: Float[Array, " K"]
    sigma_y: Float[Array, " K"]
    observed: Bool[Array, " K"]


class ClosureParts(NamedTuple):
    """The parts of a measurement of closures.

    Args:
        phases: [T], in radian, from -pi to pi.
        log_amplitudes: [Q].
        flux: the total flux; None where it was not measured.
    """

    phases: Float[Array, " T"]
    log_amplitudes: Float[Array, " Q"]
    flux: Float[Array, ""] | None


@pytree_dataclass
class Closures:
    """y = [cos psi, sin psi, lambda, F]: closure phases as points of the unit circle, log closure amplitudes, flux.

    A station's unknown complex gain multiplies all its visibilities. It cancels in

        psi = arg(V_ij V_jk V_ki)   and   lambda = ln|V_ab| + ln|V_cd| - ln|V_ad| - ln|V_bc|.

    Phases enter by cosine and sine, so that the data term is smooth where they wrap around: half the squared distance
    of two points of the circle is 1 - cos of the angle between them. Two numbers stand for one then, which `counts`
    says. Noise of one time shares baselines; like its peers, this operator takes it for independent.

    Closures do not know where on the sky an image is, nor, without `flux`, how bright it is. These are no
    `equivalents`: a shifted image measures the same only where the sky around it is black. Compare with the truth by
    `metrics.shifted_psnr`.

    Args:
        instrument: the visibilities, in units of a white pixel.
        triangles: as in `ClosureSets`.
        conjugates: as in `ClosureSets`.
        quadrangles: as in `ClosureSets`.
        sigma: [M], noise of the visibilities, of which `from_visibilities` makes that of the closures.
        sigma_flux: noise of the total flux.
        scale: flux of a white pixel.
        has_flux: whether the total flux is measured.
    """

    instrument: Affine
    triangles: Int[Array, "T 3"]
    conjugates: Bool[Array, "T 3"]
    quadrangles: Int[Array, "Q 4"]
    sigma: Float[Array, " M"]
    sigma_flux: Float[Array, ""]
    scale: Float[Array, ""]
    has_flux: bool = static_field()

    @property
    def image_shape(self) -> ImageShape:
        """(H, W, 1) of the input."""
        return self.instrument.image_shape

    def forward(self, x: Image) -> Measurement:
        """Map [H, W, 1] to [2 T + Q + 1], or one less without the flux; real."""
        vis = self.instrument.forward(x)
        return self._close(vis, _log_amplitudes(vis), self.scale.astype(x.dtype) * jnp.sum((x + 1) / 2))

    def counts(self) -> Float[Array, " K"]:
        """Count half a number for cosine and sine each, one for all others."""
        halves, ones = 2 * self.triangles.shape[0], self.quadrangles.shape[0] + self.has_flux
        return jnp.concatenate([jnp.full(halves, 0.5), jnp.ones(ones)])

    def split(self, y: Measurement) -> ClosureParts:
        """Take a measurement apart; phases of points off the unit circle are those of the nearest on it."""
        count = self.triangles.shape[0]
        cosine, sine, rest = y[:count], y[count : 2 * count], y[2 * count :]
        amplitudes = rest[: self.quadrangles.shape[0]]
        return ClosureParts(jnp.arctan2(sine, cosine), amplitudes, rest[-1] if self.has_flux else None)

    def from_visibilities(
        self,
        vis: Complex[Array, " M"] | Complex[np.ndarray, " M"],
        flux: Scalar | None = None,
        *,
        debias: bool = False,
        snr_cut: float = 0.0,
    ) -> ClosureData:
        """Close measured visibilities, and find the noise of what comes out.

        To first order, the noise of a phase in radian and that of the logarithm of an amplitude are both sigma / |V| of
        the measured visibility, and add up in squares. Below |V| of two sigma that is too small, and the noise no
        longer Gaussian: chi-squares of the truth exceed 1; `snr_cut=2` leaves such sets out.

        Args:
            vis: [M], in the units of `sigma`.
            flux: the total flux in these units, as a shorter baseline or a single dish measured it; None if the
                operator measures none.
            debias: as ehtim does by default, take sqrt(|V|^2 - sigma^2), at least sigma, for an amplitude, and add
                (sigma / |V|)^2 / 2 of that to its logarithm. The two nearly cancel, since the logarithm of a noisy
                amplitude has hardly a bias; errors of weak ones grow.
            snr_cut: a set is left unobserved if any of its |V| / sigma is less.

        Raises:
            ValueError: the flux is missing or not asked for.
        """
        if self.has_flux != (flux is not None):
            raise ValueError(
                "the operator measures the total flux: give flux, in the units of the visibilities, or build it with "
                "flux=False"
                if self.has_flux
                else "the operator was built with flux=False: leave flux out"
            )
        vis = jnp.asarray(vis)
        real = jnp.finfo(vis.dtype).dtype
        sigma = self.sigma.astype(real)
        snr = jnp.abs(vis) / sigma
        seen = (snr >= snr_cut) & (snr > 0)
        noise = 1 / jnp.where(seen, snr, 1.0)
        logs, log_noise = _log_amplitudes(vis / self.scale.astype(vis.dtype)), noise
        if debias:
            square = snr**2 - 1
            log_noise = jnp.where(square > 0, 1 / jnp.sqrt(jnp.where(square > 0, square, 1.0)), 1.0)
            logs = jnp.log(sigma / log_noise) + 0.5 * log_noise**2
        y = self._close(vis, logs, jnp.asarray(0 if flux is None else flux, real))
        phase, amplitude = (
            jnp.sqrt(jnp.sum(of_one[sets] ** 2, 1))
            for of_one, sets in ((noise, self.triangles), (log_noise, self.quadrangles))
        )
        strong = [jnp.all(seen[sets], 1) for sets in (self.triangles, self.quadrangles)]
        sigma_y = self._join(phase, phase, amplitude, self.sigma_flux.astype(real))
        observed = self._join(strong[0], strong[0], strong[1], jnp.ones((), bool))
        return ClosureData(y, jnp.where(observed, sigma_y, 1.0), observed)

    def _close(self, vis: Complex[Array, " M"], logs: Float[Array, " M"], flux: Float[Array, ""]) -> Float[Array, " K"]:
        sides = vis[self.triangles]
        first, second, third = jnp.where(self.conjugates, jnp.conj(sides), sides).T
        product = first * second * third
        re, im = jnp.real(product), jnp.imag(product)
        length = jnp.sqrt(re**2 + im**2 + jnp.asarray(PRODUCT, re.dtype))
        over, under = logs[self.quadrangles[:, :2]], logs[self.quadrangles[:, 2:]]
        return self._join(re / length, im / length, over.sum(1) - under.sum(1), flux)

    def _join(self, cosine: Array, sine: Array, amplitudes: Array, flux: Array) -> Array:
        return jnp.concatenate([cosine, sine, amplitudes, *([flux[None]] if self.has_flux else [])])


def _log_amplitudes(vis: Complex[Array, " M"]) -> Float[Array, " M"]:
    power = jnp.real(vis) ** 2 + jnp.imag(vis) ** 2
    return 0.5 * jnp.log(power + jnp.asarray(POWER, power.dtype))


def closures(
    shape: ImageShape,
    *,
    u: ArrayLike | Array,
    v: ArrayLike | Array,
    sigma: ArrayLike | float,
    pixel: Scalar,
    triangles: ArrayLike,
    conjugates: ArrayLike,
    quadrangles: ArrayLike,
    flux: bool = True,
    sigma_flux: Scalar | None = None,
    scale: Scalar = 1.0,
    pulse: Pulse = "triangle",
) -> Closures:
    """Build closure phases, log closure amplitudes and the total flux of given sets of baselines.

    Args:
        shape: image shape (H, W, 1).
        u: [M], eastward baselines in wavelengths.
        v: [M], northward baselines in wavelengths.
        sigma: [M] or one number: noise of the real and of the imaginary part of the visibilities, in their units.
        pixel: side of a pixel, in radian.
        triangles: [T, 3], which visibilities form a triangle; see `minimal_closures`.
        conjugates: [T, 3], 1 (or true) where one of them is to be conjugated because it runs the other way.
        quadrangles: [Q, 4], the two visibilities above and the two below the line of a closure amplitude.
        flux: whether the total flux was measured; without it the brightness of the image is open.
        sigma_flux: its noise, in the units of the visibilities; None is sqrt(8) scale, the weight that InverseBench
            gives it.
        scale: flux of a white pixel, in the units of the visibilities.
        pulse: shape of a pixel, as in `interferometry`.

    Returns:
        Operator; input [H, W, 1] in [-1, 1], measurement [2 T + Q + 1], real. Its `from_visibilities` turns measured
        visibilities into the measurement and its noise.

    Raises:
        ValueError: as `interferometry`, or sets that are no indices of visibilities, noise that is not positive and
            finite, or nothing to measure.

    Source: the data term of InverseBench's black-hole problem: its loss is 4 times the negative log-likelihood.
    Differs: an ordinary Gaussian likelihood, which every solver can use; neither value nor gradient is NaN at black.
    """
    instrument = interferometry(shape, u=u, v=v, pixel=pixel, pulse=pulse)
    count = instrument.offset.shape[0]
    sets = ClosureSets(
        _indices("triangles", triangles, 3, count),
        _indices("conjugates", conjugates, 3, 2),
        _indices("quadrangles", quadrangles, 4, count),
    )
    if sets.triangles.shape != sets.conjugates.shape:
        raise ValueError(
            f"conjugates must say of every side of the triangles whether it runs the other way; got shapes "
            f"{sets.conjugates.shape} and {sets.triangles.shape}"
        )
    if not (flux or sets.triangles.size or sets.quadrangles.size):
        raise ValueError("nothing is measured: no triangle, no quadrangle and no flux")
    noise = np.asarray(sigma, np.float64)
    if noise.shape not in ((), (count,)):
        raise ValueError(f"sigma must be one number, or one per visibility, [{count}]; got shape {noise.shape}")
    sigma_flux = 8**0.5 * scale if sigma_flux is None else sigma_flux
    for name, value in {"sigma": noise, "sigma_flux": sigma_flux, "scale": scale}.items():
        if not isinstance(value, Tracer) and not (np.all(np.isfinite(value)) and np.all(np.asarray(value) > 0)):
            raise ValueError(f"{name} must be positive and finite; got {value}")
    return Closures(
        instrument,
        jnp.asarray(sets.triangles, jnp.int32),
        jnp.asarray(sets.conjugates, bool),
        jnp.asarray(sets.quadrangles, jnp.int32),
        jnp.asarray(np.broadcast_to(noise, (count,)), float),
        jnp.asarray(sigma_flux, float),
        jnp.asarray(scale, float),
        has_flux=flux,
    )


def closure_interferometry(
    shape: ImageShape,
    *,
    u: ArrayLike,
    v: ArrayLike,
    time: ArrayLike,
    t1: ArrayLike,
    t2: ArrayLike,
    pixel: Scalar,
    sigma: ArrayLike | float | None = None,
    flux: bool = True,
    sigma_flux: Scalar | None = None,
    scale: Scalar = 1.0,
    pulse: Pulse = "triangle",
) -> Closures:
    """Build the closure quantities of an observation: a minimal set of all that its stations close.

    Args:
        shape: image shape (H, W, 1).
        u: [M], eastward baselines in wavelengths.
        v: [M], northward baselines in wavelengths.
        time: [M]; visibilities of exactly the same time are closed.
        t1: [M], number of a baseline's first station, from 0 on.
        t2: [M], of its second one.
        pixel: side of a pixel, in radian.
        sigma: as in `closures`; None is 1, where noise is not asked for.
        flux: as in `closures`.
        sigma_flux: as in `closures`.
        scale: as in `closures`.
        pulse: as in `closures`.

    Returns:
        Operator as from `closures`.

    Raises:
        ValueError: as `closures` and `minimal_closures`.
    """
    sets = minimal_closures(t1, t2, time)
    return closures(
        shape,
        u=u,
        v=v,
        sigma=1.0 if sigma is None else sigma,
        pixel=pixel,
        **sets._asdict(),
        flux=flux,
        sigma_flux=sigma_flux,
        scale=scale,
        pulse=pulse,
    )


def minimal_closures(t1: ArrayLike, t2: ArrayLike, time: ArrayLike, num_stations: int | None = None) -> ClosureSets:
    """List closures that hold all that closures can tell, and none that follows from others.

    At every time the stations s_0, s_1, .. that observe, in the order of their numbers, form the triangles
    (s_0, s_i, s_j) with 1 <= i < j, and for i from 3 and j from 1 to i - 1 the quadrangles (s_0, s_i, s_j, s_k) with
    k = 1 if j = i - 1, else j + 1. Of n stations these are (n - 1)(n - 2) / 2 and n (n - 3) / 2. A set that lacks a
    baseline is left out.

    Args:
        t1: [M], number of a baseline's first station, from 0 on.
        t2: [M], of its second one.
        time: [M], in any unit; visibilities of exactly the same time are closed.
        num_stations: how many stations there are; None takes the numbers as they come.

    Returns:
        Sets for `closures`, by time, in this order.

    Raises:
        ValueError: the three are not rows of one length, stations are no numbers below num_stations, a station is
            paired with itself, or a baseline occurs twice at one time.

    Source: the order is that of ehtim's minimal sets, so that files of both can be compared.
    """
    first, second = _stations("t1", t1, num_stations), _stations("t2", t2, num_stations)
    when = np.asarray(time, np.float64)
    if not first.shape == second.shape == when.shape:
        raise ValueError(
            f"t1, t2 and time must have one number per visibility; got shapes {first.shape}, {second.shape} and "
            f"{when.shape}"
        )
    if np.any(first == second):
        raise ValueError("a station is paired with itself; leave autocorrelations out, with their visibilities")
    triangles: list[list[tuple[int, int]]] = []
    quadrangles: list[list[int]] = []
    for now in np.unique(when):
        rows = np.flatnonzero(when == now)
        at: dict[tuple[int, int], tuple[int, int]] = {}  # stations to the visibility, and whether it is the conjugate
        for row in rows.tolist():
            a, b = int(first[row]), int(second[row])
            if (a, b) in at:
                raise ValueError(
                    f"the baseline of stations {a} and {b} occurs twice at time {now:g}: average the two, or give "
                    "channels and scans times of their own"
                )
            at[a, b], at[b, a] = (row, 0), (row, 1)
        stations = sorted({station for pair in at for station in pair})
        triangles += [[at[side] for side in sides] for sides in _triangles(stations) if all(s in at for s in sides)]
        quadrangles += [[at[s][0] for s in sides] for sides in _quadrangles(stations) if all(s in at for s in sides)]
    closed = np.asarray(triangles, np.int32).reshape(-1, 3, 2)
    return ClosureSets(closed[..., 0], closed[..., 1], np.asarray(quadrangles, np.int32).reshape(-1, 4))


Sides = list[tuple[int, int]]


def _triangles(stations: Sequence[int]) -> list[Sides]:
    """List the baselines of every triangle of the minimal set."""
    first, *others = stations
    return [[(first, a), (a, b), (b, first)] for a, b in itertools.combinations(others, 2)]


def _quadrangles(stations: Sequence[int]) -> list[Sides]:
    """List the baselines of every quadrangle of the minimal set, the two below the line last."""
    a, found = stations[0], []
    for i in range(3, len(stations)):
        for j in range(1, i):
            b, c, d = stations[i], stations[j], stations[1 if j == i - 1 else j + 1]
            found.append([(a, b), (c, d), (a, d), (b, c)])
    return found


def _whole(name: str, values: ArrayLike, what: str) -> np.ndarray:
    """Return whole numbers as integers; files of measurements hold floats."""
    found = np.asarray(values)
    if found.dtype.kind not in "biuf" or not np.all(np.isfinite(found)) or np.any(found != np.round(found)):
        raise ValueError(f"{name} must hold {what}, whole numbers; got {found.dtype}{list(found.shape)} with others")
    return found.astype(np.int64)


def _indices(name: str, values: ArrayLike, width: int, count: int) -> np.ndarray:
    found = _whole(name, values, f"numbers from 0 to {count - 1}")
    found = found.reshape(0, width) if not found.size else found
    if found.ndim != 2 or found.shape[1] != width or np.any((found < 0) | (found >= count)):
        raise ValueError(
            f"{name} must have shape [.., {width}] and hold numbers from 0 to {count - 1}; got shape {found.shape}"
            + (f" and numbers from {found.min()} to {found.max()}" if found.size else "")
        )
    return found


def _stations(name: str, values: ArrayLike, count: int | None) -> np.ndarray:
    found = _whole(name, values, "numbers of stations from 0 on")
    if found.ndim != 1 or np.any(found < 0) or (count is not None and np.any(found >= count)):
        below = "" if count is None else f", all below num_stations, {count}"
        raise ValueError(f"{name} must be one row of numbers of stations from 0 on{below}; got shape {found.shape}")
    return found
