import dataclasses

import numpy as np
import pytest
import yaml

import ddiff_jax as dd
from ddiff_jax import config
from ddiff_jax.operators import OPERATORS
from ddiff_jax.solvers import SOLVERS, DDiff

PUBLISHED = [
    ("ffhq", "super_resolution", 18, 1, "full"),
    ("ffhq", "box_inpainting", 30, 1, "full"),
    ("ffhq", "random_inpainting", 50, 1, "full"),
    ("ffhq", "gaussian_blur", 2.9, 50, "posterior"),
    ("imagenet", "super_resolution", 18, 1, "full"),
    ("imagenet", "box_inpainting", 50, 1, "full"),
    ("imagenet", "random_inpainting", 50, 1, "full"),
    ("imagenet", "gaussian_blur", 1.8, 50, "posterior"),
]
FEW_OF_NONE = "{operator: blur, arguments: {}, sigma_y: 0.1, solvers: {dps: {}}, few_steps: {dpss: {20: {}}}}"


@pytest.mark.parametrize(("dataset", "task", "gamma", "t0", "schedule"), PUBLISHED)
def test_presets_hold_the_published_values(dataset, task, gamma, t0, schedule):
    assert dd.preset(dataset, task, "ddiff") == DDiff(gamma=float(gamma), t0=t0, noise_schedule=schedule)


def test_every_shipped_preset_builds_its_solvers_and_names_its_operator():
    count = 0
    for dataset, tasks in config.presets().items():
        for task in tasks:
            values = config.task_preset(dataset, task)
            assert values.operator in OPERATORS
            assert values.sigma_y > 0
            for solver in values.solvers:
                assert isinstance(dd.preset(dataset, task, solver), SOLVERS[solver])
                count += 1
            for solver, few in values.few_steps.items():
                assert all(isinstance(dd.preset(dataset, task, solver, num_steps=n), SOLVERS[solver]) for n in few)
    assert count >= len(PUBLISHED) + 4


def test_every_preset_names_its_source():
    for path in config.config_folder().glob("*/*.yaml"):
        assert path.read_text().startswith("# "), path


def test_changes_replace_preset_values():
    solver = dd.preset("faces64", "super_resolution", "ddiff", gamma=3.0, num_steps=20)
    assert isinstance(solver, DDiff)
    assert (solver.gamma, solver.num_steps) == (np.float32(3), 20)


def test_few_steps_have_values_of_their_own():
    assert dd.preset("faces64", "gaussian_blur", num_steps=250) == DDiff(num_steps=250)
    published = DDiff(gamma=2.9, t0=50, noise_schedule="posterior", num_steps=251)
    assert dd.preset("faces64", "gaussian_blur", num_steps=251) == published
    assert dd.preset("faces64", "gaussian_blur", num_steps=20, gamma=3.0) == DDiff(gamma=3.0, num_steps=20)


def test_the_smallest_count_that_serves_is_taken():
    text = "{operator: blur, arguments: {}, sigma_y: 0.1, solvers: {dps: {zeta: 1}}, few_steps: {dps: %s}}"
    task = config.parse_task(text % "{20: {zeta: 2}, 50: {zeta: 3}}", "here")
    found = [task.hyper_parameters("dps", steps)["zeta"] for steps in (None, 1, 20, 21, 50, 51)]
    assert found == [1, 2, 2, 3, 3, 1]


def test_round_trip_through_yaml():
    task = config.task_preset("ffhq", "gaussian_blur")
    assert config.parse_task(yaml.safe_dump(dataclasses.asdict(task)), "here") == task


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dd.preset("fhq", "super_resolution", "ddiff"), "unknown dataset 'fhq'; did you mean 'ffhq'"),
        (lambda: dd.preset("ffhq", "superresolution", "ddiff"), "did you mean 'super_resolution'"),
        (lambda: dd.preset("ffhq", "super_resolution", "ddif"), "unknown solver 'ddif'; did you mean 'ddiff'"),
        (lambda: dd.preset("ffhq", "super_resolution", "ddiff", gama=1.0), "did you mean 'gamma'"),
        (lambda: config.parse_task("[1, 2]", "here"), "here must hold the keys"),
        (lambda: config.parse_task("operator: blur\nsigma: 1", "here"), "'sigma'; did you mean 'sigma_y'"),
        (lambda: config.parse_task("operator: blur", "here"), "lacks arguments, sigma_y, solvers"),
        (lambda: config.parse_task(FEW_OF_NONE, "here"), "unknown key in here, few_steps: 'dpss'; did you mean 'dps'"),
    ],
)
def test_misspelt_names_are_answered_with_the_nearest(call, message):
    with pytest.raises(ValueError, match=message):
        call()
