"""Operations counted in a trace, beside what XLA counts after lowering."""

import jax
import jax.numpy as jnp
import pytest

import ddiff_jax as dd
from ddiff_jax.flops import count_flops

pytestmark = pytest.mark.once


def by_xla(function, *args):
    return (jax.jit(function).lower(*args).cost_analysis() or {})["flops"]


def test_products_are_counted_exactly():
    a, b = jnp.zeros((3, 4, 5)), jnp.zeros((3, 5, 6))
    assert count_flops(jnp.matmul, a, b) == by_xla(jnp.matmul, a, b) == 2 * 3 * 4 * 5 * 6


def test_a_loop_counts_as_often_as_it_runs():
    def looped(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)[0]

    assert count_flops(looped, jnp.zeros((4, 4))) == pytest.approx(7 * 2 * 4**3)


def test_of_branches_the_costliest_counts():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

    assert count_flops(either, jnp.zeros((4, 4))) == pytest.approx(2 * 4**3, abs=4)


def test_the_packaged_network_is_within_a_percent_of_what_xla_counts():
    prior = dd.load_prior("faces64")
    x, level = jnp.zeros(prior.image_shape), jax.tree.map(jnp.float32, prior.schedule.levels(1)[0])

    def denoise(prior, x, level):
        return prior.denoise(x, level)

    assert count_flops(denoise, prior, x, level) == pytest.approx(by_xla(denoise, prior, x, level), rel=0.01)


@pytest.mark.parametrize(("stride", "padding", "between"), [(1, "SAME", 1), (2, ((1, 1), (0, 1)), 1), (1, "VALID", 2)])
def test_a_convolution_has_the_products_that_xla_counts(stride, padding, between):
    def convolve(x, kernel):
        spec = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 2, padding, rhs_dilation=(between,) * 2, dimension_numbers=spec
        )

    x, kernel = jnp.zeros((2, 9, 7, 3)), jnp.zeros((3, 3, 3, 5))
    assert count_flops(convolve, x, kernel) == pytest.approx(by_xla(convolve, x, kernel), rel=0.01)
