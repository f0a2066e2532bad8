import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.solvers import FilteredBackProjection

pytestmark = pytest.mark.once

VALUES = 1e-6  # of the largest, float32 against dense float64
SOLUTIONS = 1e-4  # by conjugate gradients in float32
FBP = 1e-5
# Relative root mean squares on 14 to 20 pixels: ASTRA integrates over pixels, Joseph's method interpolates.
ASTRA, DISC = 0.06, 0.08
SCANS = ["square", "cm", "oblong"]


def close(got, want, bound):
    np.testing.assert_allclose(np.asarray(got)[..., 0], want, atol=bound * np.abs(want).max(), rtol=0)


def scan(data):
    """Build the operator of a golden file."""
    return operators.fan_beam_tomography(
        (*data["x"].shape, 1),
        angles=data["angles"],
        source_distance=float(data["R_s"]),
        detector_distance=float(data["R_d"]),
        num_detectors=int(data["n_det"]),
        spacing=float(data["spacing"]),
        pixel=float(data["pixel"]),
    )


def image(array):
    return jnp.asarray(array, jnp.float32)[..., None]


@pytest.fixture(params=SCANS)
def data(request, golden):
    return np.load(golden(f"instruments/fan_{request.param}.npz"))


def test_projections_and_their_adjoint_are_those_of_the_dense_matrix(data):
    operator = scan(data)
    forward, adjoint = jax.jit(operator.forward), jax.jit(operator.adjoint)
    close(forward(image(data["x"])), data["y"], VALUES)
    close(adjoint(image(data["v"])), data["adjoint_v"], VALUES)
    close(forward(jnp.ones(operator.image_shape)), data["row_sums"], VALUES)
    close(adjoint(jnp.ones((*data["y"].shape, 1))), data["column_sums"], VALUES)
    close(forward(image(data["disc_image"])), data["y_disc_joseph"], VALUES)


def test_projections_are_near_those_of_another_projector_and_near_the_chords_of_a_disc(data):
    forward = jax.jit(scan(data).forward)
    for name, want, bound in (("x", "y_astra_line", ASTRA), ("disc_image", "y_disc_analytic", DISC)):
        difference = np.asarray(forward(image(data[name])))[..., 0] - data[want]
        assert np.linalg.norm(difference) < bound * np.linalg.norm(data[want])


def test_least_squares(data):
    operator = scan(data)
    solve = jax.jit(operator.prox)
    y = image(data["y_noisy"])
    close(solve(image(data["z"]), y, jnp.float32(data["rho"])), data["prox"], SOLUTIONS)
    close(solve(jnp.zeros(operator.image_shape), y, jnp.float32(data["lam"])), data["tikhonov"], SOLUTIONS)
    norm = operators.spectral_norm(operator, jax.random.key(0), num_iterations=100)
    np.testing.assert_allclose(norm, data["norm"], rtol=1e-3)


@pytest.mark.parametrize("name", ["square", "cm"])
def test_filtered_back_projection(name, golden):
    data = np.load(golden(f"instruments/fan_{name}.npz"))
    close(jax.jit(scan(data).filtered_back_projection)(image(data["y_noisy"])), data["fbp"], FBP)


def test_with_the_source_far_away_it_is_the_parallel_beam():
    row, column = np.mgrid[:32, :32] - 15.5
    blob = image(np.exp(-((row - 3) ** 2 + (column + 5) ** 2) / 50))
    given = {"angles": np.arange(0.0, 180.0, 11.0), "num_detectors": 46}
    far = operators.fan_beam_tomography((32, 32, 1), source_distance=1e7, detector_distance=0, spacing=1, **given)
    parallel = operators.tomography((32, 32, 1), **given)
    want = np.asarray(jax.jit(parallel.forward)(blob))[..., 0]
    # Linear interpolation against a band-limited image: 1/8 pixel^2 over the square of the blob's width at most.
    close(jax.jit(far.forward)(blob), want, 0.005)


def test_the_detector_sees_all_of_the_image_by_default():
    for shape in ((9, 9, 1), (7, 12, 1)):
        operator = operators.sparse_fan_beam_tomography(shape, num_angles=7)
        cells = operator.length.shape[1]
        wide = operators.sparse_fan_beam_tomography(shape, num_angles=7, num_detectors=cells + 40)
        seen, all_of_it = (jax.jit(scan.adjoint)(jnp.ones((7, scan.length.shape[1], 1))) for scan in (operator, wide))
        np.testing.assert_allclose(seen, all_of_it, atol=1e-6)


def test_units_of_length_cancel():
    shape, given = (10, 10, 1), {"angles": [0.0, 50.0, 170.0], "num_detectors": 16}
    x = jax.random.normal(jax.random.key(0), shape)
    a = operators.fan_beam_tomography(shape, source_distance=30, detector_distance=5, spacing=1.3, **given)
    b = operators.fan_beam_tomography(
        shape, source_distance=7.5, detector_distance=1.25, spacing=0.325, pixel=0.25, **given
    )
    np.testing.assert_allclose(a.forward(x), b.forward(x), atol=1e-6)
    np.testing.assert_array_equal(
        operators.fan_beam_tomography(shape, pixel=0.25, **given).centre[0],
        operators.fan_beam_tomography(shape, **given).centre[0],
    )


def test_derivatives_with_respect_to_the_geometry_equal_central_differences(x64):
    shape = (14, 11, 2)
    x = jax.random.normal(jax.random.key(0), shape, jnp.float64)
    where = {
        "angles": jnp.asarray([3.0, 48.0, 100.0, 222.0]),
        "source_distance": jnp.asarray(40.0),
        "detector_distance": jnp.asarray(9.0),
        "spacing": jnp.asarray(1.2),
        "pixel": jnp.asarray(0.9),
    }
    steps = {"angles": jnp.asarray([1.0, -2.0, 0.5, 1.5]), **{name: jnp.asarray(1.0) for name in list(where)[1:]}}

    @jax.jit
    def value(geometry):
        return jnp.sum(jnp.sin(3 * operators.fan_beam_tomography(shape, **geometry).forward(x)))

    slopes = jax.jit(jax.grad(value))(where)
    h = 1e-6
    for name, step in steps.items():
        up, down = ({**where, name: where[name] + sign * h * step} for sign in (1, -1))
        quotient = (value(up) - value(down)) / (2 * h)
        np.testing.assert_allclose(jnp.vdot(slopes[name], step), quotient, rtol=1e-5, atol=1e-9, err_msg=name)


def test_every_image_can_have_its_own_geometry():
    shape, angles = (8, 8, 1), jnp.asarray([[0.0, 90.0, 200.0], [10.0, 33.0, 300.0]])
    stack = jax.jit(jax.vmap(lambda angles: operators.fan_beam_tomography(shape, angles=angles)))(angles)
    x = jax.random.normal(jax.random.key(0), (2, *shape))
    got = jax.vmap(lambda operator, x: operator.forward(x))(stack, x)
    for i in range(2):
        one = operators.fan_beam_tomography(shape, angles=np.asarray(angles[i]))
        # Traced, its tables are computed in float32.
        np.testing.assert_allclose(got[i], one.forward(x[i]), atol=2e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: operators.sparse_fan_beam_tomography((48, 48, 1), num_angles=180),
        lambda: operators.sparse_tomography((48, 48, 1), num_angles=120),
        lambda: operators.tomography((48, 48, 1), angles=np.arange(120) * 3.0 + 0.5),
        lambda: operators.sparse_fan_beam_tomography((40, 52, 1), num_angles=180, pixel=0.4),
    ],
    ids=["fan", "half circle", "circle", "oblong"],
)
def test_back_projection_of_a_disc_is_the_disc(make):
    operator = make()
    row, column = (np.arange(n) - (n - 1) / 2 for n in operator.image_shape[:2])
    from_disc = np.hypot(row[:, None] - 4, column + 6)
    disc = image(from_disc <= 11)
    run = jax.jit(lambda operator, x, outside: operator.filtered_back_projection(operator.forward(x), outside=outside))
    got = np.asarray(run(operator, disc, 0.0))[..., 0]
    inside, outside = got[from_disc < 8.5], got[(from_disc > 14) & (np.hypot(row[:, None], column) < 19)]
    # The disc's jagged edge leaves streaks of 1 or 2 per cent; means know nothing of them.
    assert abs(inside.mean() - 1) < 2e-3 and abs(outside.mean()) < 2e-3
    assert inside.std() < 0.03 and outside.std() < 0.03
    # Air around the image: with x = -1 there its own border is no edge.
    air = np.asarray(run(operator, 2 * disc - 1, -1.0))[..., 0]
    np.testing.assert_allclose(air, 2 * got - 1, atol=2e-5)


def test_back_projection_is_refused_where_its_formula_is_wrong():
    y = jnp.zeros((3, 13, 1))
    uneven = operators.fan_beam_tomography((8, 8, 1), angles=[0.0, 20.0, 240.0])
    with pytest.raises(ValueError, match="evenly spaced over 360 degrees; their steps are between 20 and 220"):
        uneven.filtered_back_projection(y)
    with pytest.raises(ValueError, match="evenly spaced over 360"):  # half of the circle
        operators.fan_beam_tomography((8, 8, 1), angles=[0.0, 60.0, 120.0]).filtered_back_projection(y)
    even = operators.sparse_fan_beam_tomography((8, 8, 1), num_angles=3)
    with pytest.raises(ValueError, match=r"one measurement of the operator, \(3, 13, 1\); got shape \(2, 3, 13, 1\)"):
        even.filtered_back_projection(jnp.zeros((2, 3, 13, 1)))


def test_the_solver_is_refused_where_its_formula_is_wrong():
    operator = operators.tomography((8, 8, 1), angles=[0.0, 20.0, 170.0])
    problem, keys = dd.Problem(operator, jnp.zeros((2, 3, 12, 1)), 0.1), jax.random.split(jax.random.key(0))
    with pytest.raises(ValueError, match="evenly spaced over 180 degrees"):
        dd.solve(FilteredBackProjection(), dd.NoPrior((8, 8, 1)), problem, keys)


def test_the_solver_is_the_formula_with_air_around():
    operator = operators.sparse_fan_beam_tomography((12, 10, 1), num_angles=40)
    y = jax.random.normal(jax.random.key(0), (40, 20, 1))
    problem, key = dd.Problem(operator, y, 0.1), jax.random.key(1)
    run = jax.jit(dd.solve_one)
    got = run(FilteredBackProjection(), dd.NoPrior((12, 10, 1)), problem, key)
    want = jax.jit(functools.partial(operator.filtered_back_projection, outside=-1.0))(y)
    np.testing.assert_allclose(got.x, want, atol=1e-5)
    slope = jax.grad(lambda level: run(FilteredBackProjection(level), dd.NoPrior((12, 10, 1)), problem, key).x.sum())
    ones = jax.jit(functools.partial(operator.filtered_back_projection, outside=0.0))(operator.forward(1 + 0 * want))
    np.testing.assert_allclose(slope(jnp.float32(-0.4)), jnp.sum(1 - ones), rtol=1e-3)
    got = run(FilteredBackProjection(outside=0.0), dd.NoPrior((12, 10, 1)), problem, key)
    np.testing.assert_allclose(got.x, jax.jit(operator.filtered_back_projection)(y), atol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"angles": [[0.0]]}, r"one row.*\(1, 1\)"),
        ({"angles": []}, "one row"),
        ({"angles": [0.0, np.inf]}, "finite"),
        ({"num_detectors": 0}, "num_detectors"),
        ({"num_detectors": 2.5}, "num_detectors"),
        ({"source_distance": 5.0}, r"source_distance.*above half of the image's diagonal, 5.657"),
        ({"source_distance": 0.0}, "source_distance"),
        ({"source_distance": 20.0, "pixel": 4.0}, r"22.63 in the unit of pixel=4"),
        ({"detector_distance": -1.0}, "detector_distance"),
        ({"spacing": 0.0}, "spacing must be a positive length"),
        ({"pixel": float("nan")}, "pixel must be a positive length"),
    ],
)
def test_what_is_no_scanner_is_refused(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        operators.fan_beam_tomography((8, 8, 1), **{"angles": [0.0, 90.0], **arguments})


@pytest.mark.parametrize("num_angles", [0, -1, 2.5])
def test_a_number_of_angles_is_a_number(num_angles, unchecked):
    with pytest.raises(ValueError, match="num_angles must be a whole number above 0"):
        operators.sparse_fan_beam_tomography((8, 8, 1), num_angles=num_angles)
