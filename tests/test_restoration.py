"""Settings as values: what Python asks for and what people type are the same settings."""

import shlex
from pathlib import Path

import numpy as np
import pytest

import ddiff_jax as dd
from ddiff_jax.cli.flags import peek
from ddiff_jax.cli.settings import Options, flags_of, read
from ddiff_jax.config import presets, task_preset
from ddiff_jax.evaluation import Plan
from ddiff_jax.names import UnknownName
from ddiff_jax.restoration import resolve
from ddiff_jax.restoration.spelling import GENERAL
from ddiff_jax.solvers import SOLVERS, DDiff, Fixed

TASKS = [task for task in presets()["faces64"] if task not in ("inpainting", "blur")]


@pytest.mark.parametrize("task", TASKS)
def test_what_is_typed_and_what_is_asked_for_are_the_same(task):
    typed = read(["--task", task, "--seed", "3"]).settings
    assert typed.as_dict() == resolve(task=task, seed=3).as_dict()
    assert typed.solver == dd.preset(typed.dataset, task)
    assert typed.prior == typed.dataset == ("phantoms64" if task in presets()["phantoms64"] else "faces64")
    assert resolve(task=task, prior="faces64").dataset == resolve(task=task, preset="faces64").prior == "faces64"


def test_an_operator_by_name_takes_the_prior_and_the_preset_of_its_task():
    named = resolve(operator_name="sparse_tomography", operator={"num_angles": 9})
    assert (named.prior, named.dataset) == ("phantoms64", "phantoms64")
    assert named.solver == dd.preset("phantoms64", "sparse_tomography")


def test_nothing_typed_is_nothing_asked_for():
    assert read([]).settings.as_dict() == resolve().as_dict()
    assert peek([], {"task": "x"}) == peek(["--task"], {"task": "x"}) == {"task": "x"}


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_command_behind_a_cell_repeats_it(solver, tmp_path):
    mask = tmp_path / "a mask.npy"
    np.save(mask, np.ones((64, 64)))
    made = Plan(
        images=("x.png",),
        tasks=("random_inpainting", "gaussian_blur"),
        solvers=(solver,),
        sigmas=(0.1,),
        values="published",
        resize=True,
        changes={
            "random_inpainting": {"mask": mask},
            "gaussian_blur": {"std": 2.5},
            **{name: values for name, values in CHANGES.items() if name == solver},
        },
    )
    for cell in made.cells():
        settings = made.settings(cell)
        words = shlex.split(made.command(cell, settings))
        assert words[:3] == ["ddiff", "restore", "IMAGES"]
        assert read(words[3:]).settings.as_dict() == settings.as_dict()
        assert settings.operator == {"random_inpainting": "inpainting"}.get(cell.task, "gaussian_blur")


CHANGES = {
    "ddiff": {"gamma": None, "num_steps": 7},
    "ddiff_hqs": {"num_steps": 9},
    "dps": {"num_steps": 11},
    "daps": {"tau": None},
}


def test_every_general_flag_is_known_to_the_spelling():
    assert set(GENERAL) == set(Options.__dataclass_fields__)


def test_no_two_flags_have_one_name():
    for dataset in presets():
        for task in presets()[dataset]:
            for solver in SOLVERS:
                flags = flags_of(task_preset(dataset, task), solver)
                names = [flag.name for flag in (*flags.operator.values(), *flags.solver.values())]
                assert len(names) == len(set(names))
                assert not set(names) & set(GENERAL)


def test_changes_replace_the_preset():
    settings = resolve(solver="ddiff", steps=7, changes={"gamma": 12.0}, sigma=0.2)
    assert settings.solver == DDiff(Fixed(12.0), num_steps=7)
    assert settings.sigma_y == 0.2
    assert resolve(task="gaussian_blur", operator={"std": 1.5}).arguments["std"] == 1.5
    given = resolve(task="random_inpainting", operator={"mask": "holes.png", "threshold": 0.5, "invert_mask": True})
    assert (given.operator, given.files, given.arguments) == ("inpainting", {"mask": Path("holes.png")}, {})
    assert (given.threshold, given.invert_mask) == (0.5, True)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"task": "superresolution"}, "unknown task for faces64 'superresolution'; did you mean 'super_resolution'"),
        ({"solver": "ddif"}, "unknown solver 'ddif'; did you mean 'ddiff'"),
        ({"changes": {"gama": 1.0}}, "unknown key in solver ddiff: 'gama'; did you mean 'gamma'"),
        ({"operator": {"factr": 2}}, "unknown key in the operator of super_resolution: 'factr'; did you mean 'factor'"),
        ({"values": "publised"}, "unknown values 'publised'; did you mean 'published'"),
        ({"preset": "face64"}, "unknown dataset 'face64'; did you mean 'faces64'"),
    ],
)
def test_what_is_misspelt_is_an_error_of_its_own(asked, message):
    with pytest.raises(UnknownName, match=message):
        resolve(**asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"steps": 3, "changes": {"num_steps": 4}}, "is given 4 steps and 3 steps; say it once"),
        ({"seed": -1}, "--seed must be from 0 to 4294967295; got -1"),
        ({"seed": 2**32}, "--seed must be from 0 to 4294967295"),
        ({"restarts": 0}, "--restarts must be at least 1; got 0"),
        ({"sigma": 12.75}, "--sigma 12.75 is larger than the range of pictures here"),
        ({"sigma": "auto"}, "--sigma auto estimates the noise of a measurement: give --measured"),
        ({"photons": 10.0, "sigma": 0.2}, "not both"),
        ({"task": "inpainting"}, "the operator inpainting needs --mask"),
        ({"operator": {"factor": 3}, "label": 2}, "this prior has no classes"),
        ({"task": "random_inpainting", "operator": {"threshold": 0.5}}, "say how to read a mask: give --mask"),
    ],
)
def test_what_does_not_go_together_is_refused(asked, message):
    with pytest.raises(ValueError, match=message) as found:
        resolve(**asked)
    assert not isinstance(found.value, UnknownName)


def test_a_plan_says_everything_once():
    for changes, message in (
        ({"ddiff": {"num_steps": 5}}, r"ddiff is given num_steps 5, but steps 3 are asked for in all cells"),
        ({"super_resolution": {"sigma": 0.3}}, r"is given sigma 0.3, but sigmas 0.1 are asked"),
        ({"dif": {"gamma": 1.0}}, "unknown task or solver that is changed 'dif'; did you mean 'ddiff'"),
    ):
        with pytest.raises(ValueError, match=message):
            Plan(images=("x.png",), steps=(3,), sigmas=(0.1,), changes=changes)
    close = Plan(images=("x.png",), sigmas=(0.1, 0.1000001, 1.0)).cells()
    assert [cell.path.split("/")[1] for cell in close] == ["ddiff-sigma0.1", "ddiff-sigma0.1000001", "ddiff-sigma1"]
