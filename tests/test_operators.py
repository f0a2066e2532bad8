import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddiff_jax import operators

pytestmark = pytest.mark.once

PARITY = 1e-5  # the recorded outputs are float32
# The draws of the released DDiff code with seed 0 (`mask_gen` in ddiff_sample.py).
BOX_ROW, BOX_COL, NUM_HIDDEN = 60, 63, 46234


@pytest.fixture(scope="module")
def recorded(request):
    folder = request.path.parent / "golden"
    with np.load(folder / "operators.npz") as data:
        return dict(data)


def image(recorded, size):
    return jnp.asarray(recorded[f"image_{size}"].astype(np.float32) / 127.5 - 1)


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_super_resolution_matches_the_original(recorded, size, factor):
    got = operators.super_resolution((size, size, 3), factor=factor).forward(image(recorded, size))
    np.testing.assert_allclose(got, recorded[f"bicubic_down{factor}_{size}"], atol=PARITY, rtol=0)


@pytest.mark.parametrize("size", [64, 256])
def test_gaussian_blur_matches_the_original(recorded, size):
    got = operators.gaussian_blur((size, size, 3), size=61, std=3.0).forward(image(recorded, size))
    every = 8 if size == 256 else 1
    np.testing.assert_allclose(got[::every, ::every], recorded[f"gaussian_blur_{size}"], atol=PARITY, rtol=0)


@pytest.mark.parametrize("size", [64, 256])
def test_fft_blur_equals_the_original_with_a_symmetric_and_a_motion_kernel(recorded, size):
    every = 8 if size == 256 else 1
    for kernel, result in (("gaussian_kernel_61_3", "gaussian_blur"), ("motion_kernel_61_05", "motion_blur")):
        got = operators.blur((size, size, 3), kernel=recorded[kernel]).forward(image(recorded, size))
        np.testing.assert_allclose(got[::every, ::every], recorded[f"{result}_{size}"], atol=PARITY, rtol=0)


def test_golden_image_of_the_specification():
    i, j, c = np.meshgrid(np.arange(256), np.arange(256), np.arange(3), indexing="ij")
    x = (0.9 * np.sin(0.05 * i + 0.11 * j + c) * np.cos(0.013 * i - 0.029 * j)).astype(np.float32)
    small = operators.super_resolution((256, 256, 3), factor=4).forward(jnp.asarray(x))
    np.testing.assert_allclose(small[0, :4, 0], [0.19473872, 0.5530960, 0.7796153, 0.83658177], atol=PARITY)
    np.testing.assert_allclose(small[63, 60:, 2], [0.29989162, 0.5229075, 0.60234356, 0.5381558], atol=PARITY)
    np.testing.assert_allclose(np.sum(np.asarray(small), dtype=np.float64), -57.1255953, atol=1e-3)
    blurred = operators.gaussian_blur((256, 256, 3), size=61, std=3.0).forward(jnp.asarray(x))
    np.testing.assert_allclose(blurred[0, :4, 0], [0.3228378, 0.33366117, 0.3645728, 0.4113569], atol=PARITY)
    np.testing.assert_allclose(blurred[128, 128, 1], -0.17369439, atol=PARITY)
    np.testing.assert_allclose(np.sum(np.asarray(blurred), dtype=np.float64), -934.1634, atol=1e-2)


def test_bicubic_taps_are_the_published_integers():
    row = operators.super_resolution((256, 256, 3), factor=4).row_factor[8]
    want = [-7, -45, -75, -49, 93, 399, 745, 987, 987, 745, 399, 93, -49, -75, -45, -7]
    np.testing.assert_allclose(row[26:42] * 4096, want, atol=1e-3)
    assert np.count_nonzero(row) == 16


def test_singular_values_of_the_factors_are_the_published_ones():
    factor = np.asarray(operators.super_resolution((256, 256, 3), factor=4).row_factor, np.float64)
    values = np.linalg.svd(factor, compute_uv=False)
    np.testing.assert_allclose([values[-1], values[0]], [0.348517, 0.5], atol=1e-5)
    blur = np.asarray(operators.gaussian_blur((256, 256, 3), size=61, std=3.0).row_factor, np.float64)
    np.testing.assert_allclose(np.linalg.svd(blur, compute_uv=False)[0], 1.002208, atol=1e-5)


def test_released_masks_are_the_published_ones():
    box = operators.released_box_mask()
    assert np.count_nonzero(box == 0) == 128 * 128
    assert not box[BOX_ROW : BOX_ROW + 128, BOX_COL : BOX_COL + 128].any()
    scattered = operators.released_random_mask().ravel()
    assert np.count_nonzero(scattered == 0) == NUM_HIDDEN
    assert np.flatnonzero(scattered == 0).sum() == 1514980961
    np.testing.assert_array_equal(np.flatnonzero(scattered)[:10], [5, 10, 11, 13, 19, 20, 21, 26, 30, 41])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 9), margin=st.integers(0, 3))
def test_box_keeps_its_size_and_its_margin(seed, size, margin):
    shape = (17, 16, 3)
    operator = operators.box_inpainting(shape, jax.random.key(seed), size=size, margin=margin)
    rows, cols = np.nonzero(np.asarray(operator.mask)[..., 0] == 0)
    assert len(rows) == size**2
    assert rows.min() >= margin and cols.min() >= margin
    assert rows.max() < 17 - margin and cols.max() < 16 - margin


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7, 1.0])
def test_random_mask_hides_exactly_its_share(fraction):
    operator = operators.random_inpainting((20, 15, 3), jax.random.key(1), fraction=fraction)
    assert np.count_nonzero(np.asarray(operator.mask) == 0) == round(fraction * 300)


def test_a_given_mask_is_used_as_it_is():
    mask = np.eye(8)
    x = jax.random.normal(jax.random.key(0), (8, 8, 3))
    for given_mask in (mask, mask[..., None], mask.astype(bool)):
        y = operators.inpainting((8, 8, 3), given_mask).forward(x)
        np.testing.assert_array_equal(y, np.asarray(x) * mask[..., None])


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_super_resolution_by_any_factor_keeps_constants_and_ramps(factor):
    size = 12 * factor
    operator = operators.super_resolution((size, size, 1), factor=factor)
    np.testing.assert_allclose(operator.forward(jnp.full((size, size, 1), 0.7)), 0.7, atol=PARITY)
    ramp = jnp.broadcast_to(jnp.arange(size, dtype=jnp.float32)[:, None, None], (size, size, 1))
    centres = (np.arange(12) + 0.5) * factor - 0.5
    # Away from the mirrored border a symmetric kernel reproduces a straight line at the centre of every cell.
    np.testing.assert_allclose(operator.forward(ramp)[3:-3, 0, 0], centres[3:-3], atol=1e-3)


X_SHAPE = (16, 16, 3)
BAD = {
    "factor does not divide": (lambda: operators.super_resolution((15, 16, 3), factor=4), "does not divide"),
    "no factor": (lambda: operators.super_resolution(X_SHAPE, factor=0), "whole number"),
    "shape": (lambda: operators.super_resolution((16, 0, 3), factor=4), r"\(H, W, C\)"),
    "even kernel": (lambda: operators.gaussian_blur(X_SHAPE, size=4, std=1.0), "odd"),
    "no width": (lambda: operators.gaussian_blur(X_SHAPE, size=5, std=0.0), "positive"),
    "kernel larger than the image": (lambda: operators.gaussian_blur(X_SHAPE, size=61, std=3.0), "larger image"),
    "large kernel array": (lambda: operators.blur(X_SHAPE, kernel=np.ones((33, 33))), "larger image"),
    "even kernel array": (lambda: operators.blur(X_SHAPE, kernel=np.ones((4, 5))), "odd sides"),
    "colour kernel": (lambda: operators.blur(X_SHAPE, kernel=np.ones((5, 5, 3))), "2-D"),
    "zero kernel": (lambda: operators.blur(X_SHAPE, kernel=np.zeros((5, 5))), "not all zero"),
    "NaN kernel": (lambda: operators.blur(X_SHAPE, kernel=np.full((5, 5), np.nan)), "finite"),
    "box too large": (lambda: operators.box_inpainting(X_SHAPE, jax.random.key(0), size=12, margin=3), "not fit"),
    "fraction": (lambda: operators.random_inpainting(X_SHAPE, jax.random.key(0), fraction=70.0), r"\[0, 1\]"),
    "mask shape": (lambda: operators.inpainting(X_SHAPE, np.ones((8, 8))), "height and width"),
    "mask values": (lambda: operators.inpainting(X_SHAPE, np.full((16, 16), 0.5)), "threshold"),
    "mask of ones": (lambda: operators.inpainting(X_SHAPE, np.ones((16, 16))), "hides no pixel"),
    "mask of zeros": (lambda: operators.inpainting(X_SHAPE, np.zeros((16, 16))), "hides every pixel"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused_with_the_remedy(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()
