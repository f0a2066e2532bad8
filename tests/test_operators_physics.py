import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddiff_jax import operators

pytestmark = pytest.mark.once

PARITY = 1e-5  # the recorded outputs are float32
SUM = 2e-2  # of 196608 or more float32 numbers of size 1, recorded with nine digits
ROUNDING = {jnp.float32: 1e-5, jnp.float64: 1e-12}  # relative
DERIVATIVE = 1e-5  # relative; float64 against a central difference


@pytest.fixture(scope="module")
def recorded(request):
    with np.load(request.path.parent / "golden" / "operators.npz") as data:
        return dict(data)


def measure(operator, x):
    return np.asarray(jax.jit(lambda operator, x: operator.forward(x))(operator, x))


def image(recorded, size):
    return jnp.asarray(recorded[f"image_{size}"].astype(np.float32) / 127.5 - 1)


def specified_image():
    i, j, c = np.meshgrid(np.arange(256), np.arange(256), np.arange(3), indexing="ij")
    x = 0.9 * np.sin(0.05 * i + 0.11 * j + c) * np.cos(0.013 * i - 0.029 * j)
    return jnp.asarray(x.astype(np.float32))


@pytest.mark.parametrize("size", [64, 256])
def test_operators_match_the_original(recorded, size):
    x, shape = image(recorded, size), (size, size, 3)
    pixel, frequency = (8, 12) if size == 256 else (1, 1)  # the recording keeps every 8th and every 12th
    cases = {
        "motion_blur": (operators.motion_blur(shape, 0), pixel),
        "phase_amplitude_signed": (operators.phase_retrieval(shape), frequency),
        "phase_amplitude_unit": (operators.phase_retrieval(shape, image_range=(0, 1)), frequency),
        "hdr": (operators.high_dynamic_range(shape), pixel),
    }
    for name, (operator, every) in cases.items():
        got = measure(operator, x)[::every, ::every]
        np.testing.assert_allclose(got, recorded[f"{name}_{size}"], atol=PARITY, rtol=0, err_msg=name)


def test_golden_numbers_of_the_specification():
    x, shape = specified_image(), (256, 256, 3)
    blurred = measure(operators.motion_blur(shape, 0), x)
    np.testing.assert_allclose(blurred[0, :4, 0], [0.6236452, 0.6080085, 0.5898914, 0.5695781], atol=PARITY)
    np.testing.assert_allclose(blurred[128, 128, 1], 0.07005854, atol=PARITY)
    np.testing.assert_allclose(blurred[255, 252:, 2], [0.24362668, 0.2426877, 0.23821954, 0.2307768], atol=PARITY)
    np.testing.assert_allclose(blurred.sum(dtype=np.float64), -750.853053, atol=SUM)

    signed = measure(operators.phase_retrieval(shape), x)
    assert signed.shape == (384, 384, 3)
    np.testing.assert_allclose(
        signed[192, 190:195, 0], [0.180744, 0.189413, 0.00263501, 0.189413, 0.180744], atol=PARITY
    )
    np.testing.assert_allclose(signed[0, 0, 2], 0.00158075, atol=PARITY)
    np.testing.assert_allclose(signed.sum(dtype=np.float64), 8432.67909, atol=SUM)
    np.testing.assert_allclose((signed.astype(np.float64) ** 2).sum(), 39974.34, rtol=1e-6)  # Parseval

    unit = measure(operators.phase_retrieval(shape, image_range=(0, 1)), x)
    centre = [17.581608, 35.251137, 85.33202, 35.25114, 17.581608]
    np.testing.assert_allclose(unit[192, 190:195, 0], centre, rtol=1e-6)
    np.testing.assert_allclose(unit.sum(dtype=np.float64), 8904.71741, atol=SUM)

    clipped = measure(operators.high_dynamic_range(shape), x)
    np.testing.assert_allclose(clipped.sum(dtype=np.float64), -1391.161637, atol=SUM)


@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 10, 3)])
@pytest.mark.parametrize("image_range", [(-1, 1), (0, 1)])
def test_phase_retrieval_is_the_centred_amplitude_at_any_size(shape, image_range):
    x = np.random.RandomState(0).uniform(-1, 1, shape)
    operator = operators.phase_retrieval(shape, oversample=3.0, image_range=image_range)
    shown = x if image_range == (-1, 1) else (x + 1) / 2
    pads = [(int(3.0 / 8 * side),) * 2 for side in shape[:2]]
    padded = np.pad(shown, (*pads, (0, 0)))
    want = np.fft.fftshift(np.abs(np.fft.fft2(padded, axes=(0, 1), norm="ortho")), axes=(0, 1))
    np.testing.assert_allclose(measure(operator, jnp.asarray(x, jnp.float32)), want, atol=PARITY)


def test_phase_retrieval_has_no_gradient_where_the_amplitude_vanishes(x64):
    operator = operators.phase_retrieval((6, 5, 2))
    gradient = jax.jit(jax.vmap(jax.grad(lambda x: jnp.sum((operator.forward(x) - 1) ** 2))))
    for dtype in (jnp.float32, jnp.float64):
        # The black image has amplitude 0 everywhere, the constant channel of the second nearly everywhere.
        x = jnp.zeros((2, 6, 5, 2), dtype).at[1, :, :, 0].set(0.5)
        got = gradient(x)
        assert got.dtype == dtype
        assert jnp.isfinite(got).all()
        np.testing.assert_array_equal(got[0], 0)
        assert jnp.abs(got[1, :, :, 0]).max() > 0


def test_phase_retrieval_cannot_tell_the_sign_unless_the_range_is_unit():
    x = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, (8, 8, 3)), jnp.float32)
    signed, unit = (operators.phase_retrieval((8, 8, 3), image_range=r) for r in ((-1, 1), (0, 1)))
    np.testing.assert_allclose(measure(signed, x), measure(signed, -x), atol=PARITY)
    assert np.abs(measure(unit, x) - measure(unit, -x)).max() > 0.1


def test_high_dynamic_range_passes_the_derivative_on_the_closed_interval():
    operator = operators.high_dynamic_range((1, 7, 1))
    x = jnp.asarray([-0.6, -0.5, -0.2, 0.0, 0.5, 0.50001, 1.0], jnp.float32).reshape(1, 7, 1)
    y, pull = jax.vjp(operator.forward, x)
    np.testing.assert_allclose(y.ravel(), [-1, -1, -0.4, 0, 1, 1, 1], rtol=1e-6)
    (gradient,) = pull(jnp.ones_like(y))
    np.testing.assert_array_equal(gradient.ravel(), [0, 2, 2, 2, 2, 0, 0])


def test_camera_blur_mixes_light_and_not_picture_values():
    # Half of a black and half of a white pixel is half the light, which the sRGB curve shows as 188 of 255.
    kernel = np.array([[0.5, 0.5, 0.0]])
    operator = operators.CameraBlur(operators.blur((4, 4, 1), kernel=kernel))
    x = jnp.asarray(np.tile([-1.0, 1.0], 8).reshape(4, 4, 1), jnp.float32)
    shown = (measure(operator, x) + 1) * 127.5
    np.testing.assert_array_equal(np.round(shown[:, 1:]), 188)


def test_camera_response_is_the_standard_curve_with_a_finite_slope_everywhere(x64):
    from ddiff_jax.operators._camera_blur import KNEE, SLOPE, from_light, to_light

    picture = jnp.linspace(0, 1, 2001, dtype=jnp.float64)
    standard = np.where(picture <= 0.04045, picture / 12.92, ((np.asarray(picture) + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(to_light(picture), standard, atol=2e-6)  # the standard rounds its constants
    for curve, knee in ((to_light, KNEE), (from_light, KNEE / SLOPE)):
        at = jnp.asarray([-3, -1, -knee, -1e-30, 0, 1e-30, knee, 1, 3], jnp.float64)
        slope = jax.vmap(jax.grad(curve))(at)
        h = 1e-7
        quotient = (curve(at + h) - curve(at - h)) / (2 * h)
        np.testing.assert_allclose(slope, quotient, rtol=DERIVATIVE)
        assert (slope > 0).all()
    np.testing.assert_allclose(from_light(to_light(at)), at, atol=1e-12)


def test_camera_blur_keeps_a_constant_image():
    x = jnp.full((16, 16, 3), 0.3, jnp.float32)
    np.testing.assert_allclose(measure(operators.camera_blur((16, 16, 3), 3, size=9), x), 0.3, atol=PARITY)


def test_colourisation_measures_luma():
    x = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, (5, 4, 3)), jnp.float32)
    r, g, b = np.moveaxis(np.asarray(x), 2, 0)
    y = measure(operators.colourisation((5, 4, 3)), x)
    assert y.shape == (5, 4, 1)
    np.testing.assert_allclose(y[..., 0], 0.299 * r + 0.587 * g + 0.114 * b, atol=1e-6)
    y = measure(operators.colourisation((5, 4, 3), standard="rec709"), x)
    np.testing.assert_allclose(y[..., 0], 0.2126 * r + 0.7152 * g + 0.0722 * b, atol=1e-6)
    white = jnp.ones((5, 4, 3), jnp.float32)
    np.testing.assert_allclose(measure(operators.colourisation((5, 4, 3)), white), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 10, 1)])
def test_fourier_is_the_centred_orthonormal_transform(shape):
    x = np.random.RandomState(0).uniform(-1, 1, shape)
    mask = np.random.RandomState(1).rand(*shape[:2]) < 0.5
    axes = (0, 1)
    want = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes), axes=axes, norm="ortho"), axes)
    y = measure(operators.fourier(shape, mask), jnp.asarray(x, jnp.float32))
    assert np.iscomplexobj(y)
    np.testing.assert_allclose(y, mask[..., None] * want, atol=PARITY)


def test_fourier_with_all_frequencies_is_inverted_by_its_adjoint():
    x = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, (6, 9, 3)), jnp.float32)
    operator = operators.fourier((6, 9, 3), np.ones((6, 9)))
    back = jax.jit(lambda x: operator.adjoint(operator.forward(x)))(x)
    np.testing.assert_allclose(back, x, atol=PARITY)


@pytest.mark.parametrize(
    "width, acceleration, centre", [(64, 4.0, 0.08), (21, 3.0, 0.0), (40, 1.0, 0.08), (64, 4.0, 0.25)]
)
def test_undersampled_fourier_samples_whole_columns(width, acceleration, centre):
    def make(seed):
        key = jax.random.key(seed)
        return operators.undersampled_fourier((5, width, 3), key, acceleration=acceleration, centre_fraction=centre)

    mask = np.asarray(make(0).mask)[..., 0]
    np.testing.assert_array_equal(mask, np.tile(mask[0], (5, 1)))
    assert mask[0].sum() == round(width / acceleration)
    num_centre = round(width * centre)
    first = (width - num_centre + 1) // 2
    assert mask[0, first : first + num_centre].all()
    assert make(0) == make(0)
    if num_centre < mask[0].sum() < width:
        assert make(0) != make(1)


def test_undersampled_fourier_can_be_drawn_under_vmap():
    keys = jax.random.split(jax.random.key(0), 3)

    def make(key):
        return operators.undersampled_fourier((4, 16, 1), key)

    stacked = jax.vmap(make)(keys)
    for i in range(3):
        assert jax.tree.map(lambda leaf, i=i: leaf[i], stacked) == make(keys[i])


@pytest.mark.parametrize("shape, dtype", [((16, 16, 3), jnp.float32), ((9, 12, 1), jnp.float64)])
def test_composition_is_one_operator_after_the_other(shape, dtype, x64):
    soft = operators.blur(shape, kernel=np.random.RandomState(0).rand(3, 5))
    spectrum = operators.fourier(shape, np.random.RandomState(1).rand(*shape[:2]) < 0.5)
    x = jax.random.uniform(jax.random.key(1), shape, dtype, -0.9, 0.9)

    linear = operators.compose(spectrum, soft)
    assert isinstance(linear, operators.LinearOperator)
    y = measure(linear, x)
    assert jnp.finfo(y.dtype).dtype == dtype
    np.testing.assert_allclose(y, measure(spectrum, jnp.asarray(measure(soft, x))), atol=ROUNDING[dtype])
    v = jax.random.normal(jax.random.key(2), y.shape, y.dtype)
    assert jax.jit(operators.dot_test)(linear, x, v) < ROUNDING[dtype]

    clipped = operators.compose(operators.high_dynamic_range(shape, scale=0.3), soft)
    assert not isinstance(clipped, operators.LinearOperator)
    assert clipped.image_shape == shape
    want = measure(clipped, x)
    assert want.dtype == dtype
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), clipped)
    both = jax.jit(jax.vmap(lambda operator: operator.forward(x)))(stacked)
    np.testing.assert_allclose(both[1], want, atol=ROUNDING[dtype])


def test_composition_may_change_the_shape_on_the_way():
    small = operators.super_resolution((16, 12, 3), factor=4)
    grey = operators.compose(operators.colourisation((4, 3, 3)), small)
    assert grey.image_shape == (16, 12, 3)
    assert measure(grey, jnp.zeros((16, 12, 3), jnp.float32)).shape == (4, 3, 1)
    with pytest.raises(ValueError, match=r"measures shape \(4, 3, 3\).*\(16, 12, 3\)"):
        operators.compose(operators.colourisation((16, 12, 3)), small)


def test_composition_takes_any_operator_outside_and_wants_the_shape_inside():
    class Square:
        def forward(self, x):
            return x**2

    soft = operators.blur((8, 8, 1), kernel=np.ones((3, 3)))
    assert operators.compose(Square(), soft).image_shape == (8, 8, 1)
    with pytest.raises(ValueError, match=r"the inner operator .* give Square a static field image_shape"):
        operators.compose(soft, Square())


SHAPE = (16, 16, 3)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: operators.phase_retrieval(SHAPE, oversample=-1), "oversample"),
        (lambda: operators.phase_retrieval(SHAPE, oversample=float("nan")), "oversample"),
        (lambda: operators.phase_retrieval(SHAPE, image_range=(0, 255)), r"\(-1, 1\) or \(0, 1\)"),
        (lambda: operators.high_dynamic_range(SHAPE, scale=0), "positive"),
        (lambda: operators.high_dynamic_range(SHAPE, scale=float("inf")), "finite"),
        (lambda: operators.camera_blur(SHAPE, 0), "larger image"),
        (lambda: operators.colourisation((16, 16, 1)), "3 channels"),
        (lambda: operators.colourisation(SHAPE, standard="rec2020"), "rec601, rec709"),  # pyright: ignore[reportArgumentType] - a wrong type on purpose
        (lambda: operators.fourier(SHAPE, np.ones((16, 15))), r"\(16, 16\)"),
        (lambda: operators.fourier(SHAPE, np.full((16, 16), 0.5)), "threshold"),
        (lambda: operators.fourier(SHAPE, np.zeros((16, 16))), "nothing is measured"),
        (lambda: operators.undersampled_fourier(SHAPE, jax.random.key(0), acceleration=0.5), "at least 1"),
        (lambda: operators.undersampled_fourier(SHAPE, jax.random.key(0), centre_fraction=0.5), "in the centre"),
        (lambda: operators.undersampled_fourier(SHAPE, jax.random.key(0), acceleration=1e3), "samples 0"),
    ],
)
def test_wrong_arguments_are_refused(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()
