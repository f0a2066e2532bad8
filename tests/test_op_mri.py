"""Multi-coil MRI against reference implementations and dense linear algebra in float64."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddiff_jax as dd
from ddiff_jax import operators, solvers
from ddiff_jax.types import to_type

pytestmark = pytest.mark.once

ROUNDING = 1e-6  # of the largest value; float32
EXACT = 2e-5  # prox by the decomposition: values of up to 1 / rho times rounding
ITERATED = 1e-4  # prox by conjugate gradients, which stop at a residual of 1e-6; five times as much at rho = 0.003
SEEN = 5e-3  # pseudo-inverse: rounding over the smallest singular value that counts, 3.5e-4
DERIVATIVE = 1e-6  # float64 against a central difference
COLUMNS = ["mri_even", "mri_odd", "mri_single"]


def distance(a, b):
    return np.abs(np.asarray(a) - b).max() / np.abs(b).max()


def load(golden, name) -> tuple[Any, Any]:
    case = np.load(golden(f"instruments/{name}.npz"))
    return operators.mri(case["x"].shape, mask=case["mask"], maps=case["maps"]), case


@jax.jit
def measured(operator, images):
    return jax.vmap(operator.forward)(images)


def dense(operator):
    """Write A as a real matrix in float64, real and imaginary parts of the measurement below each other."""
    with jax.enable_x64(True):
        images = jnp.eye(int(np.prod(operator.image_shape))).reshape(-1, *operator.image_shape)
        columns = np.asarray(measured(operator, images)).reshape(len(images), -1).T
    return np.concatenate([np.real(columns), np.imag(columns)])


@pytest.mark.parametrize("name", [*COLUMNS, "mri_poisson"])
def test_values_are_those_of_the_reference_implementations(name, golden):
    operator, case = load(golden, name)
    assert type(operator) is (operators.ColumnMRI if name in COLUMNS else operators.MRI)
    assert hasattr(operator, "svd") is (name in COLUMNS)
    ready = operators.prepared_operator(operator)
    arguments = [jnp.asarray(case[key]) for key in ("x", "v", "z", "y_noisy")]
    found = jax.jit(reconstructions)(operator, ready, *arguments, jnp.float32(case["rho"]), jnp.float32(case["lam"]))
    for key, (value, tolerance) in found.items():
        assert distance(value, case[key.partition(" ")[0]]) < tolerance, key
    if name in COLUMNS:
        np.testing.assert_allclose(ready.factors.values.max(), case["norm"], rtol=ROUNDING)


def reconstructions(operator, ready, x, v, z, y, rho, lam):
    """Compute what the files hold, in one program, with the tolerance of each."""
    exact = EXACT if ready is not operator and hasattr(ready, "svd") else ITERATED
    return {
        "y": (operator.forward(x), ROUNDING),
        "adjoint_v": (operator.adjoint(v), ROUNDING),
        "zero_filled": (operators.zero_filled(operator, y), 2 * ROUNDING),
        "mvue": (operators.mvue(operator, y), 2 * ROUNDING),
        "rss": (operators.root_sum_of_squares(operator, y), 2 * ROUNDING),
        "quantile99": (operators.mvue_scale(operator, y), 2 * ROUNDING),
        "prox": (operator.prox(z, y, rho), ITERATED),
        "tikhonov": (operator.prox(jnp.zeros_like(z), y, lam), 5 * ITERATED),
        "prox by the decomposition": (ready.prox(z, y, rho), exact),
        "tikhonov by the decomposition": (ready.prox(jnp.zeros_like(z), y, lam), 5 * exact),
    }


def test_the_image_of_odd_size_is_not_that_of_swapped_shifts(golden):
    for name in ("mri_even", "mri_odd"):
        operator, case = load(golden, name)
        away = distance(operator.forward(jnp.asarray(case["x"])), case["y_inversebench"])
        assert away < ROUNDING if name == "mri_even" else away > 0.1


@pytest.mark.parametrize("name", COLUMNS)
def test_rows_decompose(name, golden):
    operator, case = load(golden, name)
    assert operator.factors is None
    parts = operator.prepared().svd()
    np.testing.assert_allclose(np.sort(parts.s[..., 0] ** 2), np.sort(case["row_eigenvalues"]), atol=ROUNDING)
    x, y = jnp.asarray(case["x"]), jnp.asarray(case["y_noisy"])
    np.testing.assert_allclose(parts.to_image(parts.from_image(x)), x, atol=10 * ROUNDING)
    seen = np.asarray(parts.s) * (np.asarray(parts.inverse()) > 0)
    c = parts.from_measurement(operator.forward(x))
    np.testing.assert_allclose(c, seen * np.asarray(parts.from_image(x)), atol=1e-4)
    pseudo_inverse = jax.jit(operator.pseudo_inverse)(y)  # decomposed while it is compiled
    assert distance(pseudo_inverse, case["pseudo_inverse"]) < SEEN
    again = operator.forward(operator.pseudo_inverse(operator.forward(pseudo_inverse)))
    np.testing.assert_allclose(again, operator.forward(pseudo_inverse), atol=1e-4)


@pytest.mark.parametrize("axes", ["coils", "columns", "whole"])
def test_weights_of_coils_and_columns_keep_the_decomposition(axes, golden):
    operator, _ = load(golden, "mri_odd")
    shape = {"coils": (4, 1, 1), "columns": (13,), "whole": (4, 15, 13)}[axes]
    root = np.random.RandomState(0).uniform(0, 2, shape if axes != "whole" else (4, 1, 13)).astype(np.float32)
    root = np.broadcast_to(root, shape)
    weighted = operator.prepared().weighted(jnp.asarray(root))
    assert type(weighted) is operators.ColumnMRI and weighted.factors is None
    want = np.concatenate([np.broadcast_to(root, (4, 15, 13)).ravel()] * 2)[:, None] * dense(operator)
    np.testing.assert_allclose(dense(weighted), want, atol=ROUNDING)
    s = np.repeat(np.asarray(weighted.svd().s).ravel(), 2)  # every complex one is two real ones
    np.testing.assert_allclose(np.sort(s)[::-1], np.linalg.svd(want, compute_uv=False), atol=2e-5)


def test_other_weights_do_not(golden):
    operator, _ = load(golden, "mri_even")
    root = jnp.asarray(np.random.RandomState(0).uniform(0.5, 2, (3, 16, 12)), jnp.float32)
    assert operator.weighted(root) is None
    assert jax.eval_shape(operator.weighted, root) is None  # unknown numbers
    assert isinstance(jax.eval_shape(operator.weighted, root[:, :1]), operators.ColumnMRI)


def test_a_stack_is_prepared_row_by_row_and_solved(golden):
    shape, keys = (6, 8, 2), jax.random.split(jax.random.key(0), 3)
    each = [operators.multicoil_mri(shape, key, num_coils=2, acceleration=2.0) for key in keys]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    made = jax.vmap(lambda key: operators.multicoil_mri(shape, key, num_coils=2, acceleration=2.0))(keys)
    assert made == stack
    assert stack.prepared() == jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.prepared() for one in each))
    prior = dd.GaussianPrior(jnp.zeros(()), jnp.asarray(0.25), dd.linear_schedule(), shape)
    x = jax.random.normal(jax.random.key(1), (3, *shape)) / 2
    y = jnp.stack([one.forward(image) for one, image in zip(each, x, strict=True)])
    solver = solvers.DDRM(num_steps=5)
    solution = dd.solve(solver, prior, dd.Problem(stack, y, 0.0, operator_axis=0), keys)
    for i, one in enumerate(each):
        np.testing.assert_allclose(one.forward(solution.x[i]), y[i], atol=1e-4)  # no noise: it fits
    # Not so where the operator is an argument: what to do is said.
    with pytest.raises(ValueError, match=r"hand over operator\.prepared\(\)"):
        jax.jit(dd.solve_one)(solver, prior, dd.Problem(each[0], y[0], 0.0), keys[0])
    ready = dd.Problem(each[0].prepared(), y[0], 0.0)
    np.testing.assert_allclose(jax.jit(dd.solve_one)(solver, prior, ready, keys[0]).x, solution.x[0], atol=1e-4)


def test_the_mean_of_samples_is_the_posterior_mean():
    shape, num, sigma = (4, 8, 2), 200, 0.1
    operator = operators.multicoil_mri(shape, jax.random.key(0), num_coils=3, acceleration=2.0).prepared()
    prior = dd.GaussianPrior(jnp.zeros(()), jnp.asarray(0.25), dd.linear_schedule(), shape)
    y = dd.simulate(operator, jax.random.normal(jax.random.key(1), shape) / 2, sigma, jax.random.key(2))
    many = dd.Problem(operator, jnp.broadcast_to(y, (num, *y.shape)), sigma)
    solver = solvers.PiGDM(var=0.25, guidance="score", num_steps=100)
    x = dd.solve(solver, prior, many, dd.image_keys(jax.random.key(3), jnp.arange(num))).x
    want = operator.prox(jnp.zeros(shape), y, sigma**2 / 0.25)
    assert np.abs((x.mean(0) - want) / x.std(0)).max() * np.sqrt(num) < 5  # standard errors
    assert distance(x.mean(0), np.asarray(want)) < 0.2 < distance(operator.adjoint(y), np.asarray(want))


def test_derivatives_with_respect_to_the_maps_equal_central_differences(golden, x64):
    operator, case = load(golden, "mri_even")
    operator = to_type(operator, jnp.float64)
    x, y, z = (jnp.asarray(case[key]).astype(t) for key, t in (("x", float), ("y_noisy", complex), ("z", float)))
    direction = jax.random.normal(jax.random.key(0), operator.maps.shape, operator.maps.dtype)

    def turned(operator, h):
        return dataclasses.replace(operator, maps=operator.maps + h * direction)

    def misfit(h):
        return dd.Problem(turned(operator, h), y, 0.1).nll(x)

    def minimiser(operator):
        return lambda h: jnp.vdot(turned(operator, h).prox(z, y, 0.05), x)

    # The prepared operator's factors are those of h = 0 and only solve: what is differentiated are the equations.
    for slope, value in (
        (jax.jit(jax.grad(misfit)), jax.jit(misfit)),
        (jax.jit(jax.grad(minimiser(operator.prepared()))), jax.jit(minimiser(operator))),
    ):
        quotient = (value(1e-5) - value(-1e-5)) / 2e-5
        np.testing.assert_allclose(slope(0.0), quotient, rtol=DERIVATIVE)


def test_maps_of_a_birdcage(golden):
    case = np.load(golden("instruments/birdcage.npz"))
    for name in case.files:
        num_coils, height, width = map(int, name.split("x"))
        maps = operators.birdcage_maps((height, width, 2), num_coils)
        np.testing.assert_allclose(maps, case[name], atol=ROUNDING)
        np.testing.assert_allclose(np.sum(np.abs(maps) ** 2, 0), 1)


def test_masks_are_those_of_the_published_codes(golden):
    case, seen = np.load(golden("instruments/mri_masks.npz")), 0
    for name in case.files:
        found = re.match(r"(fastmri|inversebench)_(\w+)_W(\d+)_R(\d)(?:_cf([\d.]+))?_(seed|offset)(\d)$", name)
        if not found:
            continue
        code, pattern, width, acceleration, share, by, number = found.groups()
        rule = {"acceleration": int(acceleration), "pattern": pattern, by: int(number)}
        if code == "fastmri":
            mask = operators.released_fastmri_mask(int(width), centre_fraction=float(share), **rule)
        else:
            mask = operators.released_inversebench_mask(int(width), **rule)
        np.testing.assert_array_equal(mask, case[name])
        seen += 1
    assert seen == 36


@pytest.mark.parametrize("width", [64, 65])
def test_columns_follow_their_rule_for_every_key(width):
    draw = jax.jit(operators.column_mask, static_argnames=("width", "acceleration", "pattern"))
    for pattern in ("random", "equispaced", "equispaced_fraction"):
        masks = {
            tuple(np.asarray(draw(width, jax.random.key(i), acceleration=4.0, pattern=pattern))) for i in range(12)
        }
        assert len(masks) > 2
        if pattern == "random":
            assert {sum(mask) for mask in masks} == {round(width / 4)}
            assert all(mask[width // 2] for mask in masks)
        else:  # the published rule, from any offset
            known = {
                tuple(operators.released_fastmri_mask(width, pattern=pattern, offset=i).tolist()) for i in range(5)
            }
            assert masks <= known


def test_whitened_coils_have_independent_noise(golden):
    case = np.load(golden("instruments/mri_whitening.npz"))
    y, maps = operators.prewhiten(case["y"], case["maps"], case["psi"])
    assert distance(y, case["y_white"]) < ROUNDING
    assert distance(maps, case["maps_white"]) < ROUNDING
    noise = np.random.RandomState(0).randn(2, 4, 20000)
    scan = np.linalg.cholesky(case["psi"]) @ (noise[0] + 1j * noise[1]) / np.sqrt(2)
    white, _ = operators.prewhiten(scan, case["maps"], operators.noise_covariance(scan))
    np.testing.assert_allclose(operators.noise_covariance(white), 2 * np.eye(4), atol=1e-5)  # 1 per real number
    np.testing.assert_allclose(operators.noise_covariance(scan), case["psi"], atol=0.05 * np.abs(case["psi"]).max())


def test_radial_samples_are_those_of_the_exact_transform(golden):
    case = np.load(golden("instruments/mri_radial.npz"))
    shape = case["x"].shape
    trajectory = operators.radial_trajectory(shape, num_spokes=9, num_samples=16)
    np.testing.assert_allclose(trajectory, case["k"], atol=1e-12)
    operator = operators.radial_mri(shape, num_spokes=9, num_samples=16, maps=case["maps"])
    assert distance(operator.forward(jnp.asarray(case["x"], jnp.float32)), case["y"]) < 2 * ROUNDING
    assert distance(operator.adjoint(jnp.asarray(case["v"], jnp.complex64)), case["adjoint_v"]) < 2 * ROUNDING


def test_on_whole_numbers_the_exact_transform_is_the_fast_one(x64):
    height, width, _ = shape = (7, 10, 2)
    k = np.stack(np.meshgrid(np.arange(7) - 3, np.arange(10) - 5, indexing="ij"), -1).reshape(-1, 2)
    maps = operators.birdcage_maps(shape, 2)
    x = jax.random.normal(jax.random.key(0), shape)
    fast = operators.mri(shape, mask=np.ones(shape[:2]), maps=maps)
    exact = operators.noncartesian_mri(shape, trajectory=k, maps=maps)
    np.testing.assert_allclose(exact.forward(x).reshape(2, height, width), fast.forward(x), atol=1e-12)
    v = jax.random.normal(jax.random.key(1), (2, 70), complex)
    assert operators.dot_test(exact, x, v) < 1e-12


def test_chunks_do_not_change_the_transform():
    from ddiff_jax.operators._separable_dft import phases, separable_dft

    generator = np.random.RandomState(0)
    rows, columns = (phases(generator.uniform(-4, 4, 23), np.arange(n) / n) for n in (5, 6))
    for z in (generator.randn(2, 5, 6), generator.randn(2, 5, 6) + 1j * generator.randn(2, 5, 6)):
        want = np.einsum("mr,nrc,mc->nm", rows, z, columns)
        given = jnp.asarray(z, jnp.complex64 if np.iscomplexobj(z) else jnp.float32)
        for chunk in (7, 1000):
            y = separable_dft(given, jnp.asarray(rows), jnp.asarray(columns), chunk=chunk)
            assert distance(y, want) < ROUNDING


SHAPE = (8, 10, 2)
MAPS = operators.birdcage_maps(SHAPE, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: operators.mri((8, 10, 3), mask=np.ones(10)), r"\(H, W, 2\)"),
        (lambda: operators.mri(SHAPE, mask=np.ones(8)), "sampling mask"),
        (lambda: operators.mri(SHAPE, mask=np.full(10, 0.5)), "only 0"),
        (lambda: operators.mri(SHAPE, mask=np.zeros(10)), "nothing is measured"),
        (lambda: operators.mri(SHAPE, mask=np.ones(10), maps=np.moveaxis(MAPS, 0, -1)), "coils first"),
        (lambda: operators.mri(SHAPE, mask=np.ones(10), maps=MAPS[0]), r"maps\[None\]"),
        (lambda: operators.mri(SHAPE, mask=np.ones(10), maps=np.abs(MAPS)), "complex"),
        (lambda: operators.mri(SHAPE, mask=np.ones(10), maps=0 * MAPS), "not all 0"),
        (lambda: operators.multicoil_mri(SHAPE, jax.random.key(0), num_coils=0), "num_coils"),
        (lambda: operators.multicoil_mri(SHAPE, jax.random.key(0), acceleration=0.5), "acceleration"),
        (lambda: operators.multicoil_mri(SHAPE, jax.random.key(0), centre_fraction=0.9), "lower one"),
        (lambda: operators.column_mask(64, jax.random.key(0), pattern="poisson"), "pattern must be"),  # pyright: ignore
        (lambda: operators.column_mask(64, jax.random.key(0), acceleration=2.5, pattern="equispaced"), "whole number"),
        (lambda: operators.prewhiten(np.ones((2, 4), complex), MAPS, np.eye(3)), "coils first"),
        (lambda: operators.prewhiten(np.ones((3, 4), complex), MAPS, np.triu(np.ones((3, 3)))), "Hermitian"),
        (lambda: operators.prewhiten(np.ones((3, 4), complex), MAPS, np.ones((3, 3))), "positive definite"),
        (lambda: operators.noise_covariance(np.ones((4, 3), complex)), "coils come first"),
        (lambda: operators.radial_mri(SHAPE, num_spokes=0), "num_spokes"),
        (lambda: operators.noncartesian_mri(SHAPE, trajectory=np.ones((2, 5))), r"\(M, 2\)"),
        (lambda: operators.noncartesian_mri(SHAPE, trajectory=[[0.0, np.nan]]), "cycles per field of view"),
        (lambda: operators.noncartesian_mri(SHAPE, trajectory=[[4.5, 0.0]]), "cycles per field of view"),
    ],
)
def test_wrong_arguments_are_refused(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_coil_of_ones_is_what_is_meant_by_no_maps_and_maps_are_normalised_on_demand():
    x = jax.random.normal(jax.random.key(0), SHAPE)
    alone = operators.mri(SHAPE, mask=np.ones(10))
    np.testing.assert_allclose(jnp.linalg.norm(alone.forward(x).ravel()), jnp.linalg.norm(x.ravel()), rtol=1e-5)
    scaled = MAPS * np.random.RandomState(0).uniform(0.1, 9, (8, 10))
    scaled[:, 0] = 0
    maps = operators.mri(SHAPE, mask=np.ones(10), maps=scaled, normalise=True).maps
    np.testing.assert_allclose(maps[:, 1:], MAPS[:, 1:], atol=ROUNDING)
    np.testing.assert_array_equal(maps[:, 0], 0)
