"""What solvers, operators and priors of one's own are made of: the public parts behind those of the package.

An operator is a pytree with a method `forward(x)`; `LinearOperator` adds adjoint and least squares, and
`DecomposableOperator` makes both exact from a method `svd`. `ddiff_jax.check_operator` looks it over.

A prior is a pytree with `schedule`, `image_shape` and `denoise(x_t, level)`; `ddiff_jax.from_denoiser` makes one of a
function.

A solver is a pytree with `needs`, `cost`, `grid`, `init`, `step` and `estimate`, see `Solver`. All that depends on the
step alone is a column of the grid. This one denoises, goes some way down the gradient of the data term, and adds noise:

    >>> import jax, jax.numpy as jnp
    >>> import ddiff_jax as dd
    >>> from ddiff_jax import extend
    >>> @dd.pytree_dataclass
    ... class Descent:
    ...     length: float = 0.5
    ...     num_steps: int = dd.static_field(default=50)
    ...     needs = extend.Needs()
    ...
    ...     def __post_init__(self):
    ...         extend.coerce(self, length="positive")
    ...
    ...     def cost(self, operator):
    ...         return extend.Cost(network_evaluations=1, operator_gradients=1, normal_draws=1)
    ...
    ...     def grid(self, schedule):
    ...         return extend.walk(schedule, self.num_steps)  # this step's level and the next, cleaner one
    ...
    ...     def init(self, prior, problem, point, noise, x_init=None):
    ...         return extend.start(prior, point[0], noise) if x_init is None else x_init
    ...
    ...     def step(self, prior, problem, state, point, noise):
    ...         level, cleaner = point
    ...         z = prior.denoise(state, level)
    ...         misfit, gradient = problem.misfit_and_gradient(z)
    ...         x = z - self.length * gradient
    ...         return cleaner.signal * x + cleaner.sigma * noise.draw(0, x.shape), extend.StepInfo(misfit)
    ...
    ...     def estimate(self, state):
    ...         return state
    >>> prior = dd.GaussianPrior(0.0, 0.25, dd.linear_schedule(), (8, 8, 3))
    >>> operator = dd.operators.super_resolution((8, 8, 3), factor=2)
    >>> y, keys = jnp.zeros((2, 4, 4, 3)), dd.image_keys(jax.random.key(0), jnp.arange(2))
    >>> dd.solve(Descent(num_steps=5), prior, dd.Problem(operator, y, 0.05), keys).x.shape
    (2, 8, 8, 3)
"""

from ddiff_jax.levels import Level, Schedule, walk
from ddiff_jax.likelihood import Likelihood, sum_of_squares
from ddiff_jax.metrics import measure
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import (
    DecomposableOperator,
    Decomposition,
    LinearOperator,
    Operator,
    dot_test,
    observed_entries,
    spectral_norm,
)
from ddiff_jax.priors.base import LearnedVariance, PredictsNoise, Prior, predict, to_schedule
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.restoration.noise_level import estimate_sigma
from ddiff_jax.solvers.base import (
    Cost,
    Needs,
    Solver,
    StepInfo,
    check_choice,
    coerce,
    count_steps,
    derivative_norm,
    norm,
    ratio,
    root,
    size_factor,
    start,
    wide,
)
from ddiff_jax.solvers.sampling import Sampler, without_data
from ddiff_jax.solvers.step_length import Fixed, StepLength, ToTheNoise
from ddiff_jax.types import Column, Image, ImageShape, Measurement, Params, PRNGKey, Scalar, float_type, to_type

__all__ = [
    "Column",
    "Cost",
    "DecomposableOperator",
    "Decomposition",
    "Fixed",
    "Image",
    "ImageShape",
    "LearnedVariance",
    "Level",
    "Likelihood",
    "LinearOperator",
    "Measurement",
    "Needs",
    "Noise",
    "Operator",
    "PRNGKey",
    "Params",
    "PredictsNoise",
    "Prior",
    "Sampler",
    "Scalar",
    "Schedule",
    "Solver",
    "StepInfo",
    "StepLength",
    "ToTheNoise",
    "check_choice",
    "coerce",
    "count_steps",
    "derivative_norm",
    "dot_test",
    "estimate_sigma",
    "float_type",
    "measure",
    "norm",
    "observed_entries",
    "predict",
    "pytree_dataclass",
    "ratio",
    "root",
    "size_factor",
    "spectral_norm",
    "start",
    "static_field",
    "sum_of_squares",
    "to_schedule",
    "to_type",
    "walk",
    "wide",
    "without_data",
]
