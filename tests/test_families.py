"""A prior of every family that converts restores, and the page lists the families that there are."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convert_weights
import ddiff_jax as dd
from convert_weights.families import table
from ddiff_jax import architecture
from ddiff_jax.noise import image_keys, root_key

pytestmark = pytest.mark.once

# One small network of each with random weights, so that what is restored is no picture; OpenAI's are in other tests.
PRIORS = {
    "openai_consistency.pt": {"image_size": 16, "head_width": 16},
    "ib_song_vp.pt": {"precond": "vp"},
    "nvidia_ncsnpp.pkl": {},
    "ib_dhariwal_edm.pt": {},
    "diffusers_sharded": {},
}
SOLVERS = {
    "ddiff": dd.solvers.DDiff(num_steps=3),
    "dps": dd.solvers.DPS(zeta=0.3, num_steps=3),
    "daps": dd.solvers.DAPS(1e-5, num_steps=2, ode_steps=2, langevin_steps=2),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Convert a file once, whoever asks."""
    folder, made = tmp_path_factory.mktemp("converted"), {}

    def get(name):
        if name not in made:
            source = Path(__file__).parent / "golden" / name
            convert_weights.convert(source, folder / name, probe=False, **PRIORS[name])
            made[name] = dd.load_prior(folder / name)
        return made[name]

    return get


# What a solver asks beside denoising, such as passes backwards, is asked of one family every day.
@pytest.mark.parametrize(
    ("name", "solver"),
    [
        pytest.param(name, solver, marks=[pytest.mark.slow] if solver == "daps" or (solver == "dps" and i) else [])
        for i, name in enumerate(PRIORS)
        for solver in SOLVERS
    ],
)
def test_every_family_restores(converted, name, solver):
    prior = converted(name)
    prior = prior if prior.module.num_classes is None else prior.with_label(1)
    operator = dd.operators.super_resolution(prior.image_shape, factor=2)
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, *prior.image_shape)), jnp.float32)
    y, keys = jax.vmap(operator.forward)(x), image_keys(root_key(0), jnp.arange(1))
    found, other = (dd.solve(SOLVERS[solver], prior, dd.Problem(operator, y, 0.05), keys).x for y in (y, -y))
    assert found.shape == x.shape
    assert np.isfinite(np.asarray(found)).all()
    assert not np.allclose(found, other)  # the measurement is looked at


def test_the_page_lists_what_converts():
    page = (Path(__file__).parents[1] / "docs" / "how_to" / "convert.md").read_text(encoding="utf-8")
    assert "\n".join(table(convert_weights.FAMILIES)) in page


def test_every_kind_of_prior_has_a_family():
    kinds = {family.KIND for family in convert_weights.FAMILIES}
    assert kinds == set(architecture.MODULES)
    assert {*architecture.PRIORS} < kinds
