"""DDiff-HQS: the ablation of DDiff without dual variable, as released."""

import dataclasses
from typing import Literal

from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.ddiff import DDiff
from ddiff_jax.solvers.step_length import Fixed, StepLength


@pytree_dataclass
class DDiffHQS(DDiff):
    """DDiff with other values: half-quadratic splitting instead of ADMM, and much else that changed with it.

    The released ablation drops the dual variable, and at once takes one step length (90) for every task and every
    timestep, the posterior's noise for every task, and t0 = 1. For the controlled form, in which nothing but the
    dual variable changes, take `DDiff` with the values of its task and `dual="off"`.

    Aim: one image (MAP). The hyper-parameters are those of `DDiff`.

    Source: `hqs_ddim` in the authors' released code, the DDiff-HQS row of the paper.
    Differs: as released it stops with an error, because the step length is not passed on.
    """

    step_length: StepLength = dataclasses.field(default_factory=lambda: Fixed(90.0, before=1.0, after=1.0))
    noise_schedule: Literal["full", "posterior"] = static_field(default="posterior")
    dual: Literal["released", "accumulating", "off"] | None = static_field(default="off")
