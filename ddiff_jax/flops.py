"""How many floating-point operations a function takes, counted in its trace: XLA's own count has to lower it first."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core

# Arrays as such, and what only moves numbers.
FREE = frozenset(
    "broadcast_in_dim concatenate convert_element_type copy dynamic_slice dynamic_update_slice gather iota pad reshape "
    "rev select_n slice squeeze stop_gradient transpose".split()
)


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """Count the operations of one call, a multiplication and an addition being two.

    Args:
        function: anything that can be traced.
        args: arrays, or their shapes and types.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> float:
    return sum(map(_of, jaxpr.eqns), 0.0)


def _of(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    size = sum(map(_size, equation.outvars))
    if name == "conv_general_dilated":
        return 2.0 * _products(equation)
    if name == "dot_general":
        left, ((contracted, _), _) = _shape(equation.invars[0]), params["dimension_numbers"]
        return 2.0 * size * math.prod(left[axis] for axis in contracted)
    if name in ("cond", "switch"):
        return max(_count(branch.jaxpr) for branch in params["branches"])
    found = [_count(jaxpr) for jaxpr in inner_programs(equation)]
    if found:
        return sum(found) * params.get("length", 1)  # a loop without a length counts once
    read = sum(map(_size, equation.invars)) if name.startswith("reduce") else size
    return 0.0 if name in FREE else float(read)


def inner_programs(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    """List the programs inside of an operation: bodies of loops, branches, and what is compiled as one."""
    found: list[core.Jaxpr] = []
    for value in equation.params.values():
        for one in value if isinstance(value, tuple) else (value,):
            one = getattr(one, "jaxpr", one)
            if isinstance(one, core.Jaxpr):
                found.append(one)
    return found


def _products(equation: core.JaxprEqn) -> float:
    """Count the products of a convolution, as XLA does: those with the zeros around an image are none."""
    params, spec = equation.params, equation.params["dimension_numbers"]
    (image, kernel), (made,) = map(_shape, equation.invars), map(_shape, equation.outvars)
    count = made[spec.out_spec[0]] * made[spec.out_spec[1]] * kernel[spec.rhs_spec[1]]
    dilations = zip(
        params["lhs_dilation"], params["rhs_dilation"], params["window_strides"], params["padding"], strict=True
    )
    for axis, (within, between, stride, (before, _)) in enumerate(dilations, start=2):
        at = np.arange(made[spec.out_spec[axis]])[:, None] * stride - before
        at = at + np.arange(kernel[spec.rhs_spec[axis]]) * between
        inside = (at >= 0) & (at <= (image[spec.lhs_spec[axis]] - 1) * within) & (at % within == 0)
        count *= int(inside.sum())
    return float(count)


def _shape(variable: Any) -> tuple[int, ...]:
    return getattr(variable.aval, "shape", ())


def _size(variable: Any) -> int:
    return math.prod(_shape(variable))
