import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from ddiff_jax import operators
from ddiff_jax.operators._motion_blur import _photograph, _trajectory

pytestmark = pytest.mark.once

ROUNDING = 1e-7  # of sums of float32 weights below 0.02


@pytest.fixture(scope="module")
def published(request):
    with np.load(request.path.parent / "golden" / "operators.npz") as data:
        return data["motion_kernel_61_05"]


def test_kernel_of_seed_0_is_the_published_one_to_the_last_bit(published):
    kernel = operators.motion_kernel(0)
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, published)
    rows, cols = np.nonzero(kernel)
    assert (rows.min(), rows.max(), cols.min(), cols.max(), rows.size) == (14, 46, 16, 50, 149)
    picture = _photograph(_trajectory(np.random.RandomState(0), 0.5, 61), 61)
    assert (picture.sum(), picture.max()) == (4928, 85)


def test_trajectory_of_seed_0_is_the_published_one():
    path = _trajectory(np.random.RandomState(0), 0.5, 61)
    assert len(path) == 23
    np.testing.assert_allclose(path[0], 34.0037275 + 31.9950247j, rtol=1e-8)
    np.testing.assert_allclose(path[-1], 100.3747402 + 88.1006300j, rtol=1e-8)


def test_skipping_gives_the_second_kernel_of_a_seed():
    second = operators.motion_kernel(0, num_skipped=1)
    np.testing.assert_allclose(second.max(), 0.01891253, rtol=1e-6)
    assert np.count_nonzero(second) == 162


@pytest.mark.parametrize("intensity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [3, 35, 61, 105])  # softened by a Gaussian of radius 0, 0, 1 and 2
def test_drawing_equals_the_program_that_the_original_draws_with(size, intensity):
    for seed in range(3):
        path = _trajectory(np.random.RandomState(seed), intensity, size)
        diagonal = (2 * (2 * size) ** 2) ** 0.5
        canvas = Image.new("RGB", (2 * size, 2 * size))
        ImageDraw.Draw(canvas).line([(p.real, p.imag) for p in path], width=max(1, int(diagonal / 150)))
        canvas = canvas.filter(ImageFilter.GaussianBlur(radius=int(diagonal * 0.01)))
        want = np.asarray(canvas.resize((size, size), resample=Image.Resampling.LANCZOS).convert("L"))
        np.testing.assert_array_equal(_photograph(path, size), want)


def test_binning_adds_up_blocks(published):
    binned = operators.motion_kernel(0, binning=2)
    assert binned.shape == (31, 31)
    np.testing.assert_allclose(binned[:30, :30], published[:60, :60].reshape(30, 2, 30, 2).sum((1, 3)), atol=ROUNDING)
    np.testing.assert_allclose(binned[30, :30], published[60, :60].reshape(30, 2).sum(1), atol=ROUNDING)
    np.testing.assert_allclose(binned.sum(), 1, rtol=1e-6)


def test_operator_holds_the_kernel_and_a_key_makes_a_seed():
    operator = operators.motion_blur((16, 20, 3), 7, intensity=0.8, size=15)
    assert isinstance(operator, operators.Blur)
    np.testing.assert_array_equal(operator.kernel, operators.motion_kernel(7, intensity=0.8, size=15))
    first, again, other = (operators.motion_blur((16, 16, 1), jax.random.key(k), size=9) for k in (0, 0, 1))
    assert first == again
    assert first != other
    np.testing.assert_allclose(first.kernel.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"intensity": 1.1}, r"\[0, 1\]"),
        ({"intensity": float("nan")}, r"\[0, 1\]"),
        ({"size": 10}, "odd"),
        ({"size": 107}, "3 to 105"),
        ({"size": 13.5}, "odd"),
        ({"size": 61}, "larger image"),
        ({"size": 15, "binning": 4}, "odd sides"),
        ({"binning": 0}, "whole number above 0"),
        ({"key": -1}, "seed"),
        ({"key": 2**32}, "seed"),
    ],
)
def test_wrong_arguments_are_refused(changes, message, unchecked):
    with pytest.raises(ValueError, match=message):
        operators.motion_blur((16, 16, 3), **({"key": 0, "size": 9} | changes))


def test_traced_keys_are_refused():
    with pytest.raises(TypeError, match="outside of jit and vmap"):
        jax.vmap(lambda key: operators.motion_blur((16, 16, 3), key, size=9))(jax.random.split(jax.random.key(0)))
