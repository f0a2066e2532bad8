"""The paper's studies: their plans, the published numbers, and the ledger's verdicts."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from test_evaluation import quick_prior  # noqa: F401 - a fixture that every test here uses as well

from ddiff_jax import cli, reproduction
from ddiff_jax.operators import released_box_mask
from ddiff_jax.reproduction import Published, ledger, plan_study, published
from ddiff_jax.schedule import linear_schedule


def test_the_published_numbers_are_read_strictly_and_none_is_there_twice():
    source, entries = published()
    assert "2505.17353" in source
    keys = [(e.table, e.dataset, e.task, e.solver, e.metric, e.sigma_y, e.steps) for e in entries]
    assert len(set(keys)) == len(keys) > 0
    # Section 11.4 of the notes: the residuals of table 2 lie just above the noise's power.
    assert all(0.0025 <= e.value < 0.0075 for e in entries if e.table == "table2")


@pytest.mark.parametrize("study", reproduction.STUDIES)
@pytest.mark.parametrize("dataset", reproduction.DATASETS)
def test_every_study_has_a_plan(study, dataset, tmp_path):
    made = plan_study(study, dataset, ["photo.png"], tmp_path, prior="faces64")
    assert made.plan.runs.get("phase_retrieval", 5) == 5
    assert made.plan.preset == dataset
    assert made.plan.values == "published"
    ours = plan_study(study, dataset, ["photo.png"], tmp_path, values="default")
    assert ours.plan.values == "default"
    assert not ours.same_protocol
    assert "the default values of this library instead of the published ones" in ours.differences
    assert made.same_protocol == (dataset != "faces64")
    assert len(made.plan.cells()) > 0
    if study == "noise":
        assert made.plan.sigmas == (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    if study == "table1":
        assert len(made.plan.tasks) == 8
        assert ("nonlinear_blur" in made.plan.tasks) == (dataset != "faces64")


@pytest.mark.parametrize("study", reproduction.STUDIES)
def test_every_cell_of_the_miniature_can_be_set_up(study, tmp_path):
    made, schedule = plan_study(study, "faces64", ["photo.png"], tmp_path, prior="faces64"), linear_schedule()
    assert made.plan.solvers == reproduction.STUDIES[study].solvers
    for cell in made.plan.cells():
        if cell.sigma_y in (None, made.plan.sigmas[0]):  # noise levels change no shapes
            try:
                settings = made.plan.settings(cell)
            except ValueError as error:  # the only reason: nobody has tuned this solver for this task yet
                assert f"solver {cell.solver} has no preset for faces64/{cell.task}" in str(error)
                continue
            jax.eval_shape(settings.solver.grid, schedule)


def test_the_masks_are_those_of_the_released_code(tmp_path):
    made = plan_study("table1", "ffhq", ["photo.png"], tmp_path, tasks=["box_inpainting"])
    flag, path = made.plan.flags["box_inpainting"]
    assert flag == "--mask"
    np.testing.assert_array_equal(np.load(path), released_box_mask())


def summary(mean, interval, n=10):
    group = {"task": "super_resolution", "solver": "ddiff", "sigma_y": 0.05, "steps": None, "pick": "single"}
    metrics = {name: {"n": 0, "why": "no weights"} for name in ("ssim_paper", "lpips_alex")}
    measured = {"n": n, "mean": mean, "interval": interval}
    return {"groups": [{**group, "metrics": {**metrics, "psnr_paper": measured, "misfit": {**measured, "mean": 0.1}}}]}


@pytest.mark.parametrize(
    ("mean", "interval", "changes", "verdict"),
    [
        (30.0, [29.0, 31.0], {}, "agrees"),
        (32.0, [31.0, 33.0], {}, "higher (better)"),
        (20.0, [19.0, 21.0], {}, "lower (worse)"),
        (30.0, None, {}, "one image: no verdict"),
        (None, None, {}, "not measured: not finite"),
        (30.0, [29.0, 31.0], {"comparable": False}, "not comparable"),
        (30.0, [29.0, 31.0], {"dataset": "imagenet"}, "published value not known"),
    ],
)
def test_the_verdict_follows_from_the_interval(monkeypatch, tmp_path, mean, interval, changes, verdict):
    entry = Published("table1", "ffhq", "super_resolution", "ddiff", "psnr_paper", 30.5, True)
    monkeypatch.setattr(reproduction, "published", lambda: ("somewhere", [dataclasses.replace(entry, **changes)]))
    book = ledger(plan_study("table1", "ffhq", ["photo.png"], tmp_path), summary(mean, interval))
    row = next(row for row in book["rows"] if row["metric"] == "psnr_paper")
    assert row["verdict"] == verdict
    if verdict == "agrees":
        assert row["difference"] == pytest.approx(-0.5)
        fewer = plan_study("table1", "ffhq", ["photo.png"], tmp_path, steps=[3])
        assert ledger(fewer, summary(mean, interval))["rows"][0]["verdict"] == "not comparable: another protocol"


def test_the_command_writes_the_ledger(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["reproduce", "table1", "--dataset", "faces64", "--subset", "1", "--steps", "3", "--solvers", "ddiff"]
    assert cli.main([*command, "--tasks", "gaussian_blur", "--no-cache", "--no-report"]) == 0
    assert "differs from the paper: 3 steps" in capsys.readouterr().err
    (cell,) = json.loads(Path("table1_faces64/summary.json").read_text())["cells"]
    solver = cell["settings"]["solver"]
    assert (solver["step_length"]["gamma"], solver["noise_schedule"], solver["num_steps"]) == (2.9, "posterior", 3)
    book = json.loads(Path("table1_faces64/ledger.json").read_text())
    assert {row["metric"] for row in book["rows"]} == {"psnr_paper", "ssim_paper", "lpips_alex", "misfit"}
    assert book["rows"][0]["published"] is None
    assert book["rows"][0]["ours"] > 0
    lines = Path("table1_faces64/ledger.md").read_text().splitlines()
    assert sum(line.startswith("| gaussian_blur | ddiff | 0.05 | 3 |") for line in lines) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table1", "--dataset", "ffhq"), "give --images"),
        (("table3", "--dataset", "ffhq"), "table3"),
        (("table1", "--dataset", "faces64", "--preset", "ffhq"), "decided by --dataset"),
        (("table1", "--dataset", "faces64", "--tasks", "nonlinear_blur"), "unknown task for faces64"),
        (("table1", "--dataset", "ffhq", "--images", "x.png"), "no weights at"),
    ],
)
def test_wrong_commands_say_what_is_wrong(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err
