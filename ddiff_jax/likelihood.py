"""Noise models: how a measurement scatters around A(x), and what the data term of a problem is therefore."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.types import Measurement, PRNGKey, Scalar


def sum_of_squares(r: Measurement) -> Float[Array, ""]:
    """Compute ||r||^2, of complex entries as well."""
    return jnp.sum(jnp.real(r * jnp.conj(r)))


@runtime_checkable
class Likelihood(Protocol):
    """What a problem needs to know of its noise.

    One whose y is in other units than A(x) also has `mean(clean)`, the expected y, so that residuals can be taken.
    """

    def data_term(self, clean: Measurement, y: Measurement) -> Float[Array, ""]:
        """Compute the negative log-likelihood of A(x) = clean up to a constant and up to the factor `precision`."""
        ...

    def precision(self, sigma_y: Scalar) -> Float[Array, ""]:
        """Give the factor that turns `data_term` into the negative log-likelihood."""
        ...

    def sample(self, clean: Measurement, sigma_y: Scalar, key: PRNGKey) -> Measurement:
        """Draw a measurement."""
        ...


@pytree_dataclass
class Gaussian:
    """y = A(x) + sigma_y n with n ~ N(0, I); a complex y has this noise in its real and in its imaginary part."""

    def data_term(self, clean: Measurement, y: Measurement) -> Float[Array, ""]:
        """Compute ||clean - y||^2 / 2."""
        return 0.5 * sum_of_squares(clean - y)

    def precision(self, sigma_y: Scalar) -> Float[Array, ""]:
        """Give 1 / sigma_y^2."""
        return 1 / jnp.asarray(sigma_y) ** 2

    def sample(self, clean: Measurement, sigma_y: Scalar | Float[Array, "..."], key: PRNGKey) -> Measurement:
        """Add the noise; sigma_y may differ between entries."""
        real = jnp.finfo(clean.dtype).dtype
        if jnp.iscomplexobj(clean):
            parts = jax.random.normal(key, (2, *clean.shape), real)
            n = jax.lax.complex(parts[0], parts[1])
        else:
            n = jax.random.normal(key, clean.shape, real)
        return clean + jnp.asarray(sigma_y, n.dtype) * n


def _coerce(noise: "Likelihood", least: float = 0.0, **numbers: str) -> None:
    """Turn the named numbers of a noise model into arrays of JAX's default type, in place.

    Raises:
        ValueError: one is not finite, or not above `least`.
    """
    for name, what in numbers.items():
        value = getattr(noise, name)
        if not isinstance(value, Tracer) and not (np.all(np.isfinite(value)) and np.all(np.asarray(value) > least)):
            bound = {0.0: "positive and finite", -np.inf: "finite"}.get(least, "at least 0, and finite")
            raise ValueError(f"{name}, {what}, must be {bound}; got {value}")
        object.__setattr__(noise, name, jnp.asarray(value, float))


class _OfPhotons:
    """Base of the noise models of photons, whose data term is the whole negative log-likelihood."""

    def precision(self, sigma_y: Scalar) -> Float[Array, ""]:
        """Give 1: the data term is the negative log-likelihood."""
        return jnp.ones_like(1.0 * sigma_y)


def _check_real(y: Measurement) -> None:
    if jnp.iscomplexobj(y):
        raise ValueError("photons are counted: a Poisson likelihood needs a real measurement; this one is complex")


def _photons(at_white: Any, x: Measurement) -> Measurement:
    """Turn numbers in units of the image, black -1 and white 1, into photons."""
    _check_real(x)
    return jnp.asarray(at_white, x.dtype) * (x + 1) / 2


def _shifted_poisson(mean: Measurement, count: Measurement, shift: Any) -> Float[Array, ""]:
    """Compute sum m - (k + b) log(m + b) up to a constant; for m < 0 the logarithm goes on as its parabola."""
    shift = jnp.asarray(shift, mean.dtype)
    below = jnp.minimum(mean, 0) / shift
    log = jnp.log1p(jnp.maximum(mean, 0) / shift) + below - below**2 / 2
    return jnp.sum(mean - (count + shift) * log)


@pytree_dataclass
class Poisson(_OfPhotons):
    """Photon counts: k ~ Poisson(m) with m = photons (A(x) + 1) / 2, stored as y = 2 k / photons - 1.

    So black, -1, expects no photon and white, 1, expects `photons`; y is in the units of the image and its standard
    deviation at white is 2 / sqrt(photons).

    The negative log-likelihood is that of m + b photons, sum m - (k + b) log(m + b): least at m = k, as without b, and
    steep but finite at black, where the exact one of b = 0 has a pole that swamps the gradient of all other pixels.
    For m < 0 the logarithm goes on as its parabola.

    `sigma_y` plays no part here; solvers that weigh their steps with it read it as the typical standard deviation.

    Args:
        photons: expected count at white, positive.
        offset: b, positive; small values come close to the exact likelihood. Of the packaged photograph at 30 photons
            100 steps of DDiff restored 12.7, 21.0, 22.7, 22.8 and 22.9 dB with 0.1, 1, 3, 5 and 10 (mean of four
            draws of the noise), and 22.7 dB where Gaussian noise was assumed.

    Raises:
        ValueError: photons or offset is not positive and finite.

    Source: for the shift, Snyder et al. 1993, "Image recovery from data acquired with a charge-coupled-device camera".
    """

    photons: Scalar
    offset: Scalar = 5.0

    def __post_init__(self):
        _coerce(self, photons="the expected count at white", offset="the counts added to it")

    def data_term(self, clean: Measurement, y: Measurement) -> Float[Array, ""]:
        """Compute sum m - (k + b) log(m + b), up to a constant.

        Raises:
            ValueError: the measurement is complex.
        """
        return _shifted_poisson(_photons(self.photons, clean), _photons(self.photons, y), self.offset)

    def sample(self, clean: Measurement, sigma_y: Scalar, key: PRNGKey) -> Measurement:
        """Count photons; a negative expectation counts none.

        Raises:
            ValueError: the measurement is complex.
        """
        counts = jax.random.poisson(key, jnp.maximum(_photons(self.photons, clean), 0)).astype(clean.dtype)
        return 2 * counts / jnp.asarray(self.photons, clean.dtype) - 1


@pytree_dataclass
class PoissonGaussian(_OfPhotons):
    """A camera's numbers: y = gain k + offset + read n with k ~ Poisson(e), e = photons (A(x) + 1) / 2, n ~ N(0, 1).

    So y is in the units of the detector (digital numbers): its mean is gain e + offset, its variance
    gain^2 e + read^2. The negative log-likelihood is that of shifted Poisson noise, sum e + b - (c + b) log(e + b) with
    c = (y - offset) / gain and b = (read / gain)^2, which has the same mean and variance. Its gradient differs from the
    exact one by 2 to 5% for e from 15 to 60, and by 15 to 20% from 3 to 15.

    `sigma_y` plays no part here, as with `Poisson`; it is in units of y.

    Args:
        photons: expected count at white, positive.
        gain: units of y per photon, positive.
        offset: what is read of no light, in units of y.
        read: standard deviation of the read noise in units of y, positive.
        floor: least value of b, positive, see `Poisson.offset`.

    Raises:
        ValueError: a number is not finite, or not positive where it must be.

    Source: Snyder et al. 1993, "Image recovery from data acquired with a charge-coupled-device camera". deepinv's
    `PoissonGaussianNoise(gain, sigma)` has read = sigma, photons = 1 / gain for images in [0, 1], and no offset.
    """

    photons: Scalar
    gain: Scalar = 1.0
    offset: Scalar = 0.0
    read: Scalar = 1.0
    floor: Scalar = 5.0

    def __post_init__(self):
        _coerce(
            self,
            photons="the expected count at white",
            gain="the units of y per photon",
            read="the standard deviation of the read noise",
            floor="the least shift of the counts",
        )
        _coerce(self, -np.inf, offset="what is read of no light")

    def mean(self, clean: Measurement) -> Measurement:
        """Compute gain e + offset, the mean of y.

        Raises:
            ValueError: the measurement is complex.
        """
        gain, offset = (jnp.asarray(v, clean.dtype) for v in (self.gain, self.offset))
        return gain * _photons(self.photons, clean) + offset

    def data_term(self, clean: Measurement, y: Measurement) -> Float[Array, ""]:
        """Compute sum e - (c + b) log(e + b), up to a constant.

        Raises:
            ValueError: the measurement is complex.
        """
        gain, offset, read = (jnp.asarray(v, y.dtype) for v in (self.gain, self.offset, self.read))
        shift = jnp.maximum((read / gain) ** 2, jnp.asarray(self.floor, y.dtype))
        return _shifted_poisson(_photons(self.photons, clean), (y - offset) / gain, shift)

    def sample(self, clean: Measurement, sigma_y: Scalar, key: PRNGKey) -> Measurement:
        """Count photons, and read them out; a negative expectation counts none.

        Raises:
            ValueError: the measurement is complex.
        """
        counting, reading = jax.random.split(key)
        expected = jnp.maximum(_photons(self.photons, clean), 0)
        counts = jax.random.poisson(counting, expected).astype(clean.dtype)
        gain, offset, read = (jnp.asarray(v, clean.dtype) for v in (self.gain, self.offset, self.read))
        return gain * counts + offset + read * jax.random.normal(reading, clean.shape, clean.dtype)

    def levels(self, y: Measurement) -> Measurement:
        """Estimate the standard deviation of every entry from itself, sqrt(max(gain (y - offset), 0) + read^2)."""
        gain, offset, read = (jnp.asarray(v, y.dtype) for v in (self.gain, self.offset, self.read))
        return jnp.sqrt(jnp.maximum(gain * (y - offset), 0) + read**2)

    def as_gaussian(self, y: Measurement) -> tuple[Measurement, Measurement]:
        """Write a measurement as one of A(x) with Gaussian noise per entry, for solvers that assume such noise.

        Returns:
            y in the units of A(x), and the standard deviation of every entry there, for `Problem`.
        """
        scale = 2 / (jnp.asarray(self.photons, y.dtype) * jnp.asarray(self.gain, y.dtype))
        return scale * (y - jnp.asarray(self.offset, y.dtype)) - 1, scale * self.levels(y)


@pytree_dataclass
class Counts(_OfPhotons):
    """Raw counts of photons: k ~ Poisson(m) with m = incident A(x) + background, and y holds k itself.

    For operators that measure which share of the photons arrives, such as `operators.transmission`. The likelihood is
    exact, sum m - k log(m): it has no pole here, since it is the logarithm of A(x) that is linear in the image.

    `sigma_y` plays no part in the likelihood; solvers that weigh their steps with it read it as the typical standard
    deviation of y, the root of the mean count.

    Args:
        incident: photons sent to every cell of the detector; one number, or one for each that broadcasts to y.
        background: expected counts that did not come through the object (scattered, dark); the same.

    Raises:
        ValueError: incident is not positive and finite, or background not at least 0 and finite.
    """

    incident: Scalar | Float[Array, "..."]
    background: Scalar | Float[Array, "..."] = 0.0

    def __post_init__(self):
        _coerce(self, incident="the number of photons sent to every cell")
        _coerce(self, np.nextafter(0.0, -1.0), background="the counts expected without them")

    def mean(self, clean: Measurement) -> Measurement:
        """Compute the expected counts.

        Raises:
            ValueError: the measurement is complex.
        """
        _check_real(clean)
        return jnp.asarray(self.incident, clean.dtype) * clean + jnp.asarray(self.background, clean.dtype)

    def data_term(self, clean: Measurement, y: Measurement) -> Float[Array, ""]:
        """Compute sum m - k log(m), up to a constant.

        Raises:
            ValueError: the measurement is complex.
        """
        mean = self.mean(clean)
        # Where m vanishes, through far more matter than there can be, value and derivative, of k / m, stay finite.
        return jnp.sum(mean - y * jnp.log(jnp.maximum(mean, 1e-30)))

    def sample(self, clean: Measurement, sigma_y: Scalar, key: PRNGKey) -> Measurement:
        """Count photons; a negative expectation counts none.

        Raises:
            ValueError: the measurement is complex.
        """
        return jax.random.poisson(key, jnp.maximum(self.mean(clean), 0)).astype(clean.dtype)


def expected(likelihood: Likelihood, clean: Measurement) -> Measurement:
    """Compute the mean of y where A(x) = clean: what the likelihood's `mean` says, clean itself if it has none."""
    mean = getattr(likelihood, "mean", None)
    return clean if mean is None else mean(clean)
