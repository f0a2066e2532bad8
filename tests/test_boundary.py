"""Wrong calls of `solve`, `solve_one` and `solve_restarts` end in a sentence with the cure, not in JAX's own errors."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.solvers import DDiff, Fixed

pytestmark = pytest.mark.once

SHAPE = (8, 8, 3)
SOLVER, PRIOR = DDiff(Fixed(20.0), num_steps=2), gaussian_prior(SHAPE)
SMALL = operators.super_resolution(SHAPE, factor=2)  # measures (4, 4, 3)
FOURIER = operators.undersampled_fourier(SHAPE, jax.random.key(0), acceleration=2.0)
KEYS = dd.image_keys(jax.random.key(0), jnp.arange(2))
Y = jnp.zeros((2, 4, 4, 3))


@pytest.fixture(autouse=True)
def as_users_have_it(unchecked):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def batch(**changes: Any) -> dict[str, Any]:
    return {"solver": SOLVER, "prior": PRIOR, "operator": SMALL, "y": Y, "sigma_y": 0.1, "keys": KEYS, **changes}


def call(run: Any, **given: Any) -> Any:
    """Put the problem together and solve it, as people write it."""
    fields = ("operator", "y", "sigma_y", "likelihood", "observed", "operator_axis")
    problem = dd.Problem(**{name: given.pop(name) for name in fields if name in given})
    return run(given.pop("solver"), given.pop("prior"), problem, given.pop("keys"), **given)


def solve(**given: Any) -> dd.Solution:
    return call(dd.solve, **given)


def restarts(**given: Any) -> dd.Restarts:
    return call(dd.solve_restarts, restarts=2, **given)


def refused(error, message, **changes):
    """Check that all three refuse a batch, and that `solve_one` refuses its first image."""
    given = batch(**changes)
    for run in (solve, restarts):
        with pytest.raises(error, match=message):
            run(**given)


def refused_one(error, message, **changes):
    given = batch(y=Y[0], **changes)
    with pytest.raises(error, match=message):
        problem = dd.Problem(given["operator"], given["y"], given["sigma_y"])
        dd.solve_one(given["solver"], given["prior"], problem, KEYS[0])


@pytest.mark.parametrize("shape", [(), (3,), (4, 4), (4, 4, 1), (1, 1, 1), (8, 8, 3), (3, 4, 4)])
def test_a_measurement_of_another_shape_is_refused(shape):
    text = r"Separable measures \(4, 4, 3\) of an image of shape \(8, 8, 3\): look at the order of its axes"
    refused(ValueError, text, y=jnp.zeros((2, *shape)))
    with pytest.raises(ValueError, match=text):
        dd.solve_one(SOLVER, PRIOR, dd.Problem(SMALL, jnp.zeros(shape), 0.1), KEYS[0])


def test_real_and_complex_measurements_are_told_apart():
    refused(ValueError, "y is complex64, Separable measures float32", y=Y.astype(complex))
    refused(ValueError, "y is float32, Fourier measures complex64", operator=FOURIER, y=jnp.zeros((2, *SHAPE)))
    with pytest.raises(ValueError, match="y is float32, Fourier measures complex64"):
        dd.solve_one(SOLVER, PRIOR, dd.Problem(FOURIER, jnp.zeros(SHAPE), 0.1), KEYS[0])


def test_grey_levels_are_refused():
    text = r"y must hold floats .* got uint8: .* level / 127.5 - 1"
    refused(TypeError, text, y=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(TypeError, match=text):
        dd.Problem(SMALL, np.zeros((4, 4, 3), np.uint8), 0.1)  # pyright: ignore[reportArgumentType] - on purpose


class NoPytree:
    """An operator, and a prior, that JAX does not know how to take apart."""

    schedule, image_shape = PRIOR.schedule, SHAPE

    def forward(self, x):
        return x[::2, ::2]

    def eps(self, x_t, t):
        return x_t

    def denoise(self, x_t, t):
        return x_t


@dd.pytree_dataclass
class HoldsName:
    name: Any

    def forward(self, x):
        return x[::2, ::2]


@dd.pytree_dataclass
class HoldsRows:
    rows: Any = dd.static_field()

    def forward(self, x):
        return x[::2, ::2]


@dd.pytree_dataclass
class Broken:
    def forward(self, x):
        return x[:, jnp.arange(8) % 2 > 0]  # a mask of jax.numpy: its True entries cannot be counted


@dd.pytree_dataclass
class TwoArrays:
    def forward(self, x):
        return x, x


OPERATORS = {
    "function": (lambda x: x[::2, ::2], TypeError, r"got a function: .* operators.from_function\(function, shape\)"),
    "name": ("super_resolution", TypeError, "the operator must be an object with forward; got the name 'super_res"),
    "class": (HoldsName, TypeError, "got the class HoldsName itself: call it"),
    "none": (None, TypeError, "got a NoneType"),
    "no pytree": (NoPytree(), TypeError, "of type NoPytree, which is no pytree: put @ddiff_jax.pytree_dataclass"),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_no_operator_is_refused(name):
    operator, error, message = OPERATORS[name]
    refused(error, message, operator=operator)
    refused_one(error, message, operator=operator)


def test_operators_that_fail_are_named_with_the_way_to_look_closer():
    for text, operator in {
        r"Broken.forward fails on an image of shape \(8, 8, 3\).*NonConcreteBooleanIndexError": Broken(),
        "TwoArrays.forward must return one array; it returns tuple": TwoArrays(),
    }.items():
        refused((TypeError, ValueError), text, operator=operator)
        refused_one((TypeError, ValueError), text, operator=operator)
    with pytest.raises(ValueError, match=r"check_operator\(operator, \(8, 8, 3\)\) looks closer"):
        solve(**batch(operator=Broken()))


def test_what_a_compiled_program_cannot_take_is_refused_by_its_place():
    refused(
        TypeError,
        r"\.name of the operator, of type HoldsName, is a str, not an array: .*static",
        operator=HoldsName("a"),
    )
    refused(
        TypeError, r"\.rows of the operator, of type HoldsRows, is an array in a static", operator=HoldsRows(np.ones(2))
    )
    refused(TypeError, "the prior is of type NoPytree, which is no pytree", prior=NoPytree())


def test_what_is_no_solver_prior_likelihood_or_problem_is_refused():
    for what, wrong, text in (
        ("solver", "ddiff", "got the name 'ddiff': take one of ddiff_jax.solvers"),
        ("solver", DDiff, "got the class DDiff itself: call it"),
        ("prior", "faces64", r'got the name \'faces64\': take ddiff_jax.load_prior\("faces64"\)'),
        ("prior", lambda x: x, "the prior must be an object with schedule, .*got a function"),
    ):
        refused(TypeError, text, **{what: wrong})
        refused_one(TypeError, text, **{what: wrong})
    refused(TypeError, "got the class Poisson itself", likelihood=dd.Poisson)
    with pytest.raises(TypeError, match=r"got a Separable: take Problem\(operator, y, sigma_y\)"):
        dd.solve_one(SOLVER, PRIOR, SMALL, KEYS[0])  # pyright: ignore[reportArgumentType] - on purpose


def test_a_shared_operator_is_no_stack_and_a_stack_is_not_shared():
    text = r"y, whose shape is \(2, 4, 4, 3\), but the operator's .row_factor has shape \(4, 8\): leave operator_axis"
    refused(ValueError, text, operator_axis=0)
    masks = [operators.random_inpainting(SHAPE, key, fraction=0.5) for key in KEYS]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *masks)
    refused(ValueError, r"say operator_axis=0 to `Problem`", operator=stack, y=jnp.zeros((2, *SHAPE)))
    with jax.numpy_rank_promotion("raise"):
        text = r"a stack of operators, one per image, is Problem\(.*operator_axis=0"
        refused(ValueError, text, operator=stack, y=jnp.zeros((2, *SHAPE)))
    refused(ValueError, "operator_axis must be None .* or 0 .*; got 1", operator_axis=1)


def test_inside_other_programs_solve_points_to_solve_one():
    text = "cannot run inside jit, vmap, grad or scan; use solve_one there"
    calls = {
        "jit": lambda: jax.jit(lambda y: solve(**batch(y=y)).x)(Y),
        "jit of constants": lambda: jax.jit(lambda: solve(**batch()).x)(),
        "vmap": lambda: jax.vmap(lambda y: solve(**batch(y=y)).x)(Y[None]),
        "vmap over keys": lambda: jax.vmap(lambda keys: solve(**batch(keys=keys)).x)(KEYS[None]),
        "grad": lambda: jax.grad(lambda s: solve(**batch(sigma_y=s)).x.sum())(0.1),
        "grad of a value": lambda: jax.grad(
            lambda g: solve(**batch(solver=dataclasses.replace(SOLVER, step_length=Fixed(g)))).x.sum()
        )(1.0),
        "restarts": lambda: jax.jit(lambda y: restarts(**batch(y=y)).misfit)(Y),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=text):
            call()
            pytest.fail(name)


def test_starts_levels_and_keys_of_another_kind_are_refused():
    for x_init in (jnp.zeros((2, *SHAPE), complex), np.zeros((2, *SHAPE), np.uint8)):
        with pytest.raises(TypeError, match="x_init must hold real floats"):
            solve(**batch(x_init=x_init))
        with pytest.raises(TypeError, match="x_init must hold real floats"):
            dd.solve_one(SOLVER, PRIOR, dd.Problem(SMALL, Y[0], 0.1), KEYS[0], x_init=x_init[0])
    refused(
        ValueError,
        r"as many axes as y.*got shape \(2, 1\)",
        sigma_y=jnp.ones((2, 1)),
    )
    with pytest.raises(
        ValueError, match=r"of one image; this one has sigma_y of shape \(2,\): a batch is restored by `solve`"
    ):
        dd.solve_one(SOLVER, PRIOR, dd.Problem(SMALL, Y[0], jnp.ones(2)), KEYS[0])
    for key in (KEYS, jax.random.key_data(KEYS[0]), 0):
        with pytest.raises(TypeError, match="key must be one typed JAX key"):
            dd.solve_one(SOLVER, PRIOR, dd.Problem(SMALL, Y[0], 0.1), key)  # pyright: ignore[reportArgumentType]
    refused(TypeError, "keys must be typed JAX keys", keys=0)


def test_one_image_is_not_a_batch_and_a_batch_not_one_image():
    text = r"y has shape \(2, 4, 4, 3\), Separable measures \(4, 4, 3\) of one image: a batch is restored by `solve`"
    with pytest.raises(ValueError, match=text):
        dd.solve_one(SOLVER, PRIOR, dd.Problem(SMALL, Y, 0.1), KEYS[0])
    masks = jax.vmap(lambda key: operators.random_inpainting(SHAPE, key, fraction=0.5))(KEYS)
    stack = dd.Problem(masks, jnp.zeros((2, *SHAPE)), 0.1, operator_axis=0)
    with pytest.raises(ValueError, match="this one has a stack of operators: a batch is restored by `solve`"):
        dd.solve_one(SOLVER, PRIOR, stack, KEYS[0])
    refused(ValueError, "y must have a leading axis of 2, .*there is solve_one", y=Y[0])
    four = dd.image_keys(jax.random.key(0), jnp.arange(4))
    refused(
        ValueError, r"\(4, 4, 3\), that of one measurement by Separable: for one image use solve_one", y=Y[0], keys=four
    )


def test_good_calls_pass_with_numpy_arrays_and_plain_numbers():
    assert solve(**batch(y=np.zeros((2, 4, 4, 3)), sigma_y=np.float64(0.1))).finite.all()
