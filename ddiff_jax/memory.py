"""How much memory a run takes, estimated in its trace: a compiler knows it only after it has compiled."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.extend import core

from ddiff_jax.flops import inner_programs

# Compilers join these with what uses their results, so that the results are never stored.
JOINED = frozenset(
    "abs add and broadcast_in_dim ceil clamp convert_element_type cos div eq erf exp expm1 floor ge gt integer_pow "
    "iota is_finite le log log1p logistic lt max min mul ne neg not or pow reshape rsqrt select_n sign sin slice sqrt "
    "square squeeze stop_gradient sub tanh xor".split()
)
COSTLY = frozenset("cos div erf exp expm1 log log1p logistic pow rsqrt sin sqrt tanh".split())  # never computed twice
# These can read what was joined: they loop over their operands' entries as they are.
READERS = JOINED | {"reduce_sum", "reduce_max", "reduce_min", "transpose", "concatenate", "pad", "rev", "argmax"}

# Of a device's memory that a plan may use. Of XLA's own count for the packaged network estimates are 0.96, with a
# gradient 0.6 to 0.7: there the run may still not fit.
SHARE = 0.8
GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What a run of `solve` holds on one device, in bytes.

    Args:
        weights: the prior's arrays.
        images: measurements, operator, states and tables of the whole batch.
        step: what a step computes with, for one image.
        num_images: images of the batch.
        at_once: images that a step takes at a time.
        available: the device's memory.
    """

    weights: int
    images: int
    step: int
    num_images: int
    at_once: int
    available: int

    def of_runs(self, count: int) -> "MemoryPlan":
        """Plan for several runs of every image, side by side."""
        more = count if self.at_once == self.num_images else 1
        return dataclasses.replace(
            self, images=count * self.images, num_images=count * self.num_images, at_once=more * self.at_once
        )

    @property
    def total(self) -> int:
        """All that is held during a step."""
        return self.weights + self.images + self.at_once * self.step

    @property
    def fits(self) -> bool:
        """Whether the device has so much to give."""
        return self.total <= SHARE * self.available

    @property
    def most_at_once(self) -> int:
        """How many images a step could take at a time, at least 1."""
        return max(1, int((SHARE * self.available - self.weights - self.images) // max(self.step, 1)))

    def __str__(self) -> str:
        """Say it in a line."""
        held = f"weights {self.weights / GIB:.2f}, images {self.images / GIB:.2f}"
        step = f"a step {self.step / GIB:.2f} for each of {self.at_once} at a time"
        return f"about {self.total / GIB:.2f} of {self.available / GIB:.1f} GiB ({held}, {step})"


def device_bytes(device: Any) -> int:
    """Find the memory of a device: its own, or what the machine lets this process have."""
    limit = None if device.platform == "cpu" else (device.memory_stats() or {}).get("bytes_limit")
    return int(limit or min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _container_bytes()))


def _container_bytes() -> float | int:
    """Read the limit of a Linux control group, of version 2 or 1, if there is one."""
    for place in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((CGROUP / place).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return math.inf


def peak_bytes(function: Callable[..., Any], *args: Any) -> int:
    """Estimate the most that is stored at one time during a call, beside its arguments.

    Every result is held from where it is made to where it was used last; what loops over entries is joined to what uses
    it. What libraries for convolutions need beside that is unknown to a trace.

    Args:
        function: anything that can be traced.
        args: arrays, or their shapes and types.
    """
    return _peak(jax.make_jaxpr(function)(*args).jaxpr)


def tree_bytes(tree: Any) -> int:
    """Add up what the arrays of a tree take; shapes and types will do."""
    return sum(_bytes(jax.typeof(leaf) if not hasattr(leaf, "shape") else leaf) for leaf in jax.tree.leaves(tree))


def _peak(jaxpr: core.Jaxpr) -> int:
    equations = jaxpr.eqns
    users: dict[Any, list[int]] = {}
    for i, equation in enumerate(equations):
        for variable in _variables(equation.invars):
            users.setdefault(variable, []).append(i)
    returned = set(_variables(jaxpr.outvars))
    # From the last to the first: what is joined to its users holds its own operands until those are done.
    last: dict[Any, int] = dict.fromkeys(returned, len(equations))
    joined: set[Any] = set()
    for i in range(len(equations) - 1, -1, -1):
        equation = equations[i]
        held = i
        for variable in equation.outvars:
            uses = users.get(variable, [])
            last.setdefault(variable, max(uses, default=i))
            is_read = all(equations[use].primitive.name in READERS for use in uses)
            is_joined = equation.primitive.name in JOINED and variable not in returned and uses and is_read
            if is_joined and (len(uses) == 1 or equation.primitive.name not in COSTLY):
                joined.add(variable)
                held = max(held, last[variable])
        for variable in _variables(equation.invars):
            last[variable] = max(last.get(variable, 0), held)
    own = {variable for equation in equations for variable in equation.outvars}
    ends: dict[int, list[Any]] = {}
    for variable in own - joined:
        ends.setdefault(last[variable], []).append(variable)
    stored = most = 0
    for i, equation in enumerate(equations):
        made = sum(_bytes(v.aval) for v in equation.outvars if v not in joined)
        freed = sum(_bytes(v.aval) for v in ends.get(i, []) if v not in equation.outvars)
        # Entry by entry, a result takes the place of an operand that nobody needs any more.
        reused = min(made, freed) if equation.primitive.name in READERS else 0
        within = max(map(_peak, inner_programs(equation)), default=0)
        # What a loop returns is held beside its body; what any other program returns is counted within.
        needed = made + within if equation.primitive.name in ("scan", "while") else max(made - reused, within)
        most = max(most, stored + needed)
        stored += made - freed - sum(_bytes(v.aval) for v in ends.get(i, []) if v in equation.outvars)
    return most


def _variables(found: Sequence[Any]) -> list[Any]:
    return [variable for variable in found if not isinstance(variable, core.Literal)]


def _bytes(array: Any) -> int:
    size = math.prod(getattr(array, "shape", ()))
    dtype = getattr(array, "dtype", None)
    return size * getattr(dtype, "itemsize", 4)
