"""Priors for images of other sizes: windows blended, smaller images embedded, and what solvers make of them."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from test_conformance import KINDS_OF_SOLVERS, SERVED_BY, SOLVER_EXAMPLES, every_day
from test_solver_laws import recorded
from weights import smoothing_prior

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.metrics import seam_ratio
from ddiff_jax.operators import DecomposableOperator
from ddiff_jax.operators._cropped import cropped
from ddiff_jax.priors import EmbeddedPrior, PaddedPrior, WindowedPrior, with_shape
from ddiff_jax.priors.windows import TAPERS, Taper, unclipped

pytestmark = pytest.mark.once

ROUNDING = 2e-6  # of float32, in sums of a few weights
GOLDEN = 1e-5  # of float64 arrays read in float32


def level_of(prior, k=0):
    return jax.tree.map(lambda column: jnp.float32(column[k]), prior.schedule.levels(10))


def local(window=(8, 8, 2), clip=False):
    """Denoise with a 3x3 mean: what lies beyond a window changes the estimate near its border."""

    def mean(x, t):
        padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)), "edge")
        return 2 * sum(padded[i : i + x.shape[0], j : j + x.shape[1]] for i in range(3) for j in range(3)) / 9

    return dd.from_denoiser(mean, kind="denoiser", image_shape=window, clip=clip)


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_windows_are_those_of_the_reference(golden, monkeypatch):
    found = np.load(golden("windows.npz"))
    ramp, add, x = (jnp.asarray(found[name], jnp.float32) for name in ("ramp", "add", "x"))
    prior = dd.from_denoiser(lambda x, t: ramp * x + add, kind="denoiser", image_shape=(8, 8, 2), clip=False)
    overlap, level = int(found["overlap"]), level_of(prior)
    cases: tuple[tuple[Taper, int | None], ...] = (("cosine", None), ("linear", 1), ("uniform", 8))
    still = {
        (taper, block): WindowedPrior(prior, x.shape, overlap, taper, block=block) for taper, block in cases
    }  # of 35: the last 8 are filled up
    moved = {taper: WindowedPrior(prior, x.shape, overlap, taper, shift=True) for taper in TAPERS}
    shifts = iter([*found["shifted_shift"]] * 3)
    monkeypatch.setattr(jax.random, "randint", lambda *_: jnp.int32(next(shifts)))
    made, shifted = jax.jit(
        lambda x: jax.tree.map(
            lambda prior: prior.denoise(x, level), (still, moved), is_leaf=lambda leaf: isinstance(leaf, WindowedPrior)
        )
    )(x)
    for (taper, block), x_0 in made.items():
        assert still[taper, block].counts == (len(found["plain_rows"]), len(found["plain_columns"]))
        np.testing.assert_allclose(x_0, found[f"plain_{taper}"], atol=GOLDEN)
        np.testing.assert_allclose(shifted[taper], found[f"shifted_{taper}"], atol=GOLDEN)


@pytest.mark.parametrize("shift", [False, True])
def test_what_acts_pixel_by_pixel_passes_through_any_windows(shift):
    prior = gaussian_prior((8, 8, 3), mean=0.1, var=0.3, clip=False)
    whole, x = dataclasses.replace(prior, image_shape=(21, 30, 3)), draw((21, 30, 3))

    @jax.jit
    def all_of_them(x):
        return [
            (*windows.predict(x, level_of(prior, k)), *whole.predict(x, level_of(prior, k))) for k, windows in cases
        ]

    cases = [
        (k, WindowedPrior(prior, (21, 30, 3), overlap, taper, shift))
        for k, (overlap, taper) in enumerate(zip((0, 3, (2, 6)), TAPERS, strict=True))
    ]
    assert cases[0][1].image_shape == (21, 30, 3) and cases[0][1].schedule == prior.schedule
    for x_0, eps, expected_x_0, expected_eps in all_of_them(x):
        np.testing.assert_allclose(x_0, expected_x_0, atol=ROUNDING)
        np.testing.assert_allclose(eps, expected_eps, atol=ROUNDING)


def test_signals_and_volumes_have_windows_too():
    for shape, window in (((50, 1), (16, 1)), ((9, 8, 11, 2), (4, 8, 4, 2))):
        prior, x = gaussian_prior(window, clip=False), draw(shape)
        expected = dataclasses.replace(prior, image_shape=shape).denoise(x, level_of(prior))
        found = WindowedPrior(prior, shape).denoise(x, level_of(prior))
        np.testing.assert_allclose(found, expected, atol=ROUNDING)


def test_one_window_is_the_prior_itself():
    prior, x = local(clip=True), draw((8, 8, 2))
    windows, level = WindowedPrior(prior, (8, 8, 2), shift=True), level_of(prior)
    for name in ("denoise", "predict", "denoise_with_variance"):
        one, other = (jax.tree.leaves(getattr(p, name)(x, level)) for p in (windows, prior))
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert with_shape(prior, (8, 8, 2)) is prior


def test_clipping_comes_after_blending():
    clipping, x = local(clip=True), 3 * draw((13, 8, 2))
    level = level_of(clipping)
    blended = WindowedPrior(unclipped(clipping)[0], (13, 8, 2)).denoise(x, level)
    assert jnp.max(jnp.abs(blended)) > 1.2
    for prior in (clipping, dd.OnSchedule(clipping, clipping.schedule)):
        windows = WindowedPrior(prior, (13, 8, 2))
        np.testing.assert_array_equal(windows.denoise(x, level), jnp.clip(blended, -1, 1))
        np.testing.assert_array_equal(windows.denoise_with_variance(x, level)[0], jnp.clip(blended, -1, 1))
        np.testing.assert_allclose(windows.predict(x, level)[0], blended, atol=ROUNDING)


def test_the_offsets_follow_the_level_and_the_seed():
    prior, x = local(), draw((29, 31, 2))
    windows, levels = WindowedPrior(prior, x.shape, 2, shift=True), prior.schedule.levels(8)
    rows = [jax.tree.map(lambda column, k=k: jnp.float32(column[k]), levels) for k in range(8)]
    starts = {tuple(int(cut.starts[1]) for cut in windows._cuts(row)) for row in rows}
    assert len(starts) > 4  # of 36 possible pairs
    again = WindowedPrior(prior, x.shape, 2, shift=True)
    np.testing.assert_array_equal(windows.denoise(x, rows[1]), again.denoise(x, rows[1]))
    other = WindowedPrior(prior, x.shape, 2, shift=True, seed=1)
    assert not np.array_equal(windows.denoise(x, rows[1]), other.denoise(x, rows[1]))


def test_gradients_pass_through_windows(x64):
    prior = local()
    x, v = (draw((13, 17, 2), seed).astype(jnp.float64) for seed in (0, 1))
    level = jax.tree.map(lambda row: row.astype(jnp.float64), level_of(prior, 5))
    windows = WindowedPrior(prior, x.shape, 3, block=4)

    def value(x):
        return jnp.sum(jnp.sin(windows.predict(x, level)[0]))

    step = 1e-5
    expected = (value(x + step * v) - value(x - step * v)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(value)(x), v), expected, rtol=1e-7)


def test_memory_does_not_grow_with_the_number_of_windows():
    prior = smoothing_prior()
    level = level_of(prior, 5)

    def program(gradient, side):
        def value(x):
            windows = WindowedPrior(dataclasses.replace(prior, image_shape=(16, 16, 3)), x.shape, 0, block=2)
            return jnp.sum(windows.denoise(x, level) ** 2)

        made = jax.grad(value) if gradient else value
        compiled = jax.jit(made).lower(jax.ShapeDtypeStruct((side, side, 3), jnp.float32)).compile()
        return cast(Any, compiled.memory_analysis())

    for gradient in (False, True):
        small, large = (program(gradient, side).temp_size_in_bytes for side in (32, 128))  # 4 windows and 64
        images = 4 * 3 * (128**2 - 32**2)  # bytes by which one image grew
        # A few images' worth: sums, and the cotangents of x_t. Every window kept would be one image more per layer.
        assert large - small <= (4 if gradient else 3) * images, (gradient, small, large)


def test_a_wrong_window_says_what_is_wrong(unchecked):
    prior = local()
    for wrong, message in (
        ({"shape": (7, 9, 2)}, "smaller images are embedded"),
        ({"shape": (9, 9, 3)}, "the channels must be the same"),
        ({"overlap": 8}, "below the window's side"),
        ({"overlap": (1, 2, 3)}, "one for each of 2 axes"),
        ({"taper": "cosin"}, "must be one of cosine, linear, uniform"),
        ({"block": 0}, "at least one window"),
        ({"seed": -1}, "from 0 to"),
    ):
        with pytest.raises(ValueError, match=message):
            WindowedPrior(**{"prior": prior, "shape": (9, 9, 2), **wrong})
    with pytest.raises(ValueError, match="put them inside"):
        WindowedPrior(EmbeddedPrior(prior, (8, 4, 2)), (9, 9, 2))
    with pytest.raises(ValueError, match="do not lie inside"):
        EmbeddedPrior(prior, (9, 4, 2))
    with pytest.raises(ValueError, match="rank and the channels"):
        with_shape(prior, (9, 9, 1))
    with pytest.raises(ValueError, match="tell what sizes they take"):
        with_shape(prior, (9, 9, 2), how="whole")


def test_hard_tiles_are_seen_and_smooth_ones_are_not():
    smooth = np.cumsum(np.random.default_rng(1).standard_normal((128, 128)), axis=1)
    smooth = 0.5 * np.sin(smooth / 8) + 0.05 * np.random.default_rng(2).standard_normal((128, 128))
    truth = jnp.asarray(smooth[..., None], jnp.float32)
    offsets = 0.2 * np.random.default_rng(3).standard_normal((300,))

    def offset(x, t):  # another one in every window, by what it sees
        return x + jnp.asarray(offsets, x.dtype)[jnp.abs(jnp.sum(x) * 1000).astype(jnp.int32) % 300]

    prior = dd.from_denoiser(offset, kind="denoiser", image_shape=(32, 32, 1), clip=False)
    relative = {}
    cases: tuple[tuple[int, Taper], ...] = ((0, "cosine"), (8, "uniform"), (8, "cosine"), (16, "cosine"))
    for overlap, taper in cases:
        windows = WindowedPrior(prior, truth.shape, overlap, taper)
        x = windows.denoise(truth, level_of(prior, 9))
        relative[overlap, taper] = float(seam_ratio(x, windows.seams) / seam_ratio(truth, windows.seams))
    assert relative[0, "cosine"] >= 1.5, relative
    assert max(relative[8, "cosine"], relative[16, "cosine"]) <= 1.05 < relative[8, "uniform"], relative
    with pytest.raises(ValueError, match="one window has none"):
        seam_ratio(truth, ((), ()))
    with pytest.raises(ValueError, match="between two of its 128 pixels"):
        seam_ratio(truth, ((128,), ()))


SHAPE = (12, 20, 3)


@jax.jit
def restore(solver, prior, operator, y, tape, x_init=None):
    """Restore a batch in one program, whose noise is a tape: drawing it would take half of the compilation."""
    x_init = 2 * tape[:, 0, 0] if x_init is None else x_init

    def one(y, tape, x_init):
        return dd.solve_one(solver, prior, dd.Problem(operator, y, 0.05), jax.random.key(0), tape, x_init).x

    return jax.vmap(one)(y, tape, x_init)


SERVED = [name for name, by in SERVED_BY.items() if by == "super_resolution"]


@pytest.mark.parametrize("name", every_day(SERVED, KINDS_OF_SOLVERS))
def test_every_solver_restores_through_windows_and_no_image_feels_another(name):
    prior = with_shape(gaussian_prior((8, 8, 3)), SHAPE, overlap=2, shift=True)
    operator, solver = operators.super_resolution(SHAPE, factor=4), SOLVER_EXAMPLES[name](2)
    y, x_init = draw((4, 3, 5, 3)), 2 * draw((4, *SHAPE), 1)
    tape = recorded(solver, prior, operator, y[0])
    x = restore(solver, prior, operator, y, tape, x_init)
    assert x.shape == (4, *SHAPE) and np.isfinite(x).all()
    turned = jax.tree.map(lambda rows: rows[::-1], (y.at[1].set(jnp.nan), tape, x_init))
    again = restore(solver, prior, operator, *turned)[::-1]
    np.testing.assert_array_equal(again[np.array([0, 2, 3])], x[np.array([0, 2, 3])])
    if name not in ("ddiff", "ddrm", "dps"):
        return
    # The prior acts pixel by pixel, so that windows change nothing.
    whole = restore(solver, gaussian_prior(SHAPE), operator, y, tape, x_init)
    np.testing.assert_allclose(x, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["ddiff", "diffpir", "ddrm", "dps"])
def test_smaller_images_are_the_middle_of_the_priors(name):
    shape = (6, 20, 3)  # larger along one axis, smaller along the other
    prior = with_shape(gaussian_prior((8, 8, 3)), shape)
    operator, solver = operators.super_resolution(shape, factor=2), SOLVER_EXAMPLES[name](2)
    x = restore(solver, prior, operator, draw((2, 3, 10, 3)), draw((2, 2, 5, 8, 20, 3), 1))
    assert x.shape == (2, *shape) and np.isfinite(x).all()


def test_solve_crops_as_solve_one_does():
    shape = (6, 20, 3)
    prior = with_shape(gaussian_prior((8, 8, 3)), shape)
    solver, operator = SOLVER_EXAMPLES["ddiff"](2), operators.super_resolution(shape, factor=2)
    y, tape = draw((2, 3, 10, 3)), draw((2, 2, 5, 8, 20, 3), 1)
    solution = dd.solve(
        *(solver, prior, dd.Problem(operator, y, 0.05), dd.image_keys(jax.random.key(0), jnp.arange(2))),
        noise=tape,
        x_init=2 * tape[:, 0, 0],
    )
    np.testing.assert_allclose(solution.x, restore(solver, prior, operator, y, tape), atol=1e-5)


def test_an_operator_on_the_middle_keeps_what_it_can_do():
    inner, outer = (6, 4, 3), (8, 7, 3)
    operator = operators.super_resolution(inner, factor=2)
    seen = cast(DecomposableOperator, cropped(operator, inner, outer))
    z, y = draw(outer), draw((3, 2, 3), 1)
    assert operators.dot_test(seen, z, y) < 1e-6
    dense = jax.jacobian(seen.forward)(z).reshape(y.size, z.size)
    rho = 0.3
    expected = jnp.linalg.solve(dense.T @ dense + rho * jnp.eye(z.size), dense.T @ y.ravel() + rho * z.ravel())
    np.testing.assert_allclose(seen.prox(z, y, rho).ravel(), expected, atol=1e-5)
    np.testing.assert_allclose(seen.pseudo_inverse(y).ravel(), jnp.linalg.pinv(dense) @ y.ravel(), atol=1e-4)
    parts = seen.svd()
    np.testing.assert_allclose(parts.to_image(parts.s * parts.from_measurement(y)), seen.adjoint(y), atol=1e-5)
    hidden = cropped(operators.inpainting(inner, np.eye(6, 4)), inner, outer)
    seen_entries = operators.observed_entries(hidden, inner)
    assert seen_entries is not None and seen_entries.sum() == 12 and operators.measures_picture(hidden)
    nonlinear = cropped(operators.phase_retrieval(inner, oversample=1.0), inner, outer)
    assert not hasattr(nonlinear, "adjoint")
    for other in operators.equivalent_images(nonlinear, z):
        np.testing.assert_allclose(nonlinear.forward(other), nonlinear.forward(z), atol=1e-4)


def test_a_network_that_takes_any_size_is_padded_to_a_multiple():
    from weights import normal_like

    from ddiff_jax import checkpoint

    fields = {"model_channels": 32, "channel_mult": (1, 1), "attention_levels": (), "head_width": 32}
    module = checkpoint.build_module("adm_unet", fields)
    params = normal_like(checkpoint.abstract_params(module), 0.02)
    prior = dd.DiffusionPrior(params, dd.linear_schedule(), module, (16, 16, 3))
    whole = with_shape(prior, (21, 18, 3), how="whole")
    assert isinstance(whole, PaddedPrior) and whole.prior.image_shape == (22, 18, 3)
    x, level = draw((21, 18, 3)), level_of(prior, 5)
    expected = whole.prior.denoise(jnp.concatenate([x, x[-2:-1]]), level)[:21]
    np.testing.assert_array_equal(whole.denoise(x, level), expected)
    for made in (whole.predict(x, level), whole.denoise_with_variance(x, level)):
        assert [leaf.shape for leaf in made] == [(21, 18, 3)] * 2
    assert isinstance(with_shape(prior, (22, 18, 3), how="whole"), dd.DiffusionPrior)
