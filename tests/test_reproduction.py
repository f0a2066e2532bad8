"""The paper's studies: their plans, the published numbers, and the ledger's verdicts."""

import collections
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from test_evaluation import (
    quick_prior,  # noqa: F401 - a fixture that every test here uses as well
    save_photos,
)

from ddiff_jax import cli
from ddiff_jax.config import config_folder
from ddiff_jax.evaluation import Group, Mean, ledger, reproduction
from ddiff_jax.evaluation.published import Published, parse, published
from ddiff_jax.evaluation.reproduction import plan_study
from ddiff_jax.operators import gaussian_blur, released_box_mask
from ddiff_jax.report.page import _ledger
from ddiff_jax.schedule import linear_schedule
from ddiff_jax.solvers.base import count_steps

pytestmark = pytest.mark.once


def test_the_published_numbers_are_read_strictly_and_none_is_there_twice():
    source, entries = published()
    assert "2505.17353" in source
    found = {(e.table, e.dataset, e.task, e.solver, e.metric): e for e in entries}
    counts = collections.Counter((e.table, e.dataset) for e in entries)
    assert len(found) == len(entries) == 384  # 8 tasks, 4 methods, 4 metrics
    assert counts == {("table1", "ffhq"): 128, ("table1", "imagenet"): 128, ("table2", "ffhq"): 128}
    assert sum(e.half_width is not None for e in entries) == 96  # Table S1: 2 data sets, 8 tasks, 2 methods, 3 metrics
    assert {e.metric for e in entries if e.not_comparable} == {"misfit"}
    values = {
        ("table1", "ffhq", "super_resolution", "ddiff", "psnr_paper"): (30.07, 0.41),
        ("table1", "imagenet", "phase_retrieval", "daps", "lpips_alex"): (0.397, 0.032),
        ("table1", "imagenet", "high_dynamic_range", "diffpir", "ssim_paper"): (0.637, None),
        ("table1", "ffhq", "phase_retrieval", "ddiff", "misfit"): (1.469, None),
        ("table2", "ffhq", "phase_retrieval", "ddiff", "misfit"): (0.0028, None),
        ("table2", "ffhq", "nonlinear_blur", "diff_pnp_admm", "psnr_paper"): (5.23, None),
    }
    for key, value in values.items():
        assert (found[key].value, found[key].half_width) == value
    # In random inpainting DDiff-HQS is last in the paper too.
    ablation = {s: found["table2", "ffhq", "random_inpainting", s, "psnr_paper"].value for s in SOLVERS_OF_TABLE2}
    assert sorted(ablation, key=lambda name: ablation[name])[0] == "ddiff_hqs"


SOLVERS_OF_TABLE2 = reproduction.STUDIES["table2"].solvers


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ddiff:   [30.07 ± 0.41,", "ddiff:   [", "super_resolution, ddiff must hold one value each for psnr_paper"),
        ("30.07 ± 0.41", "30.07 +- 0.41", "ddiff, psnr_paper: a value must be a number, or like"),
        ("30.07 ± 0.41", ".nan", "a value must be a number"),
        ("daps:    [29.34", "ddiff:    [29.34", "published.yaml: key 'ddiff' stands twice, again in line"),
        ("daps:    [29.34", "dabs:    [29.34", "unknown solver in .* 'dabs'; did you mean 'daps'"),
        ("  table2:", "  table3:", "unknown key in .* 'table3'; did you mean"),
        ("\n    imagenet:", "\n    imagenet1k:", "unknown dataset in .* 'imagenet1k'"),
        ("      nonlinear_blur:", "      non_linear_blur:", "unknown task in .* 'non_linear_blur'"),
        ("lpips_alex,", "lpips,", "unknown key in .* 'lpips'; did you mean"),
        ("source:", "sauce:", "unknown key in .* 'sauce'; did you mean 'source'"),
    ],
)
def test_a_slip_in_the_published_numbers_is_found(old, new, message):
    text = (config_folder() / "published.yaml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(ValueError, match=message):
        parse(text.replace(old, new), "published.yaml")


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
    sweeps = (made.plan.solvers, made.plan.sigmas, made.plan.seeds, made.plan.steps)
    assert len(made.plan.cells()) == len(made.plan.tasks) * math.prod(map(len, sweeps))
    if study == "noise":
        assert {0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5} == set(made.plan.sigmas)
        assert "phase_retrieval" in made.plan.tasks
    if study == "table1":
        assert len(made.plan.tasks) == 8
        assert ("nonlinear_blur" in made.plan.tasks) == (dataset != "faces64")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"changes": {"ddiff": {"gamma": 3.0}}}, "ddiff with gamma 3.0, as asked for"),
        ({"changes": {"gaussian_blur": {"sigma": 0.1}}}, "gaussian_blur with sigma 0.1, as asked for"),
        ({"dtype": "bfloat16"}, "dtype bfloat16"),
        ({"label": 3}, "label 3"),
    ],
)
def test_what_is_asked_for_otherwise_is_said_and_not_compared_with_the_paper(options, said, tmp_path):
    made = plan_study("table1", "ffhq", ["photo.png"], tmp_path, prior="faces64", **options)
    assert said in made.differences
    assert not made.same_protocol
    plain = plan_study("table1", "ffhq", ["photo.png"], tmp_path, prior="faces64", dtype="float32", label=None)
    assert plain.same_protocol
    assert plain.differences == ()


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
            count_steps(settings.solver, schedule)


def test_all_solvers_of_a_study_spend_the_same_evaluations(tmp_path):
    made = plan_study("steps", "faces64", ["photo.png"], tmp_path, tasks=["box_inpainting"], prior="faces64")
    spent = {}
    for cell in made.plan.cells():
        settings = made.plan.settings(cell)
        num_steps = count_steps(settings.solver, linear_schedule())
        cost = settings.solver.cost(gaussian_blur((64, 64, 3), size=3, std=1.0)) * num_steps
        spent.setdefault(cell.steps, {})[cell.solver] = cost.network_evaluations
    assert list(spent) == [20, 50, 100, 250, 999]
    for steps, solvers in spent.items():
        assert set(solvers) == {"ddiff", "daps", "ddiff_hqs", "diffpir", "dps"}
        np.testing.assert_allclose(list(solvers.values()), steps, rtol=0.002)  # 200 steps of DAPS are 1000 evaluations


def test_the_masks_are_those_of_the_released_code(tmp_path):
    made = plan_study("table1", "ffhq", ["photo.png"], tmp_path, tasks=["box_inpainting"])
    np.testing.assert_array_equal(np.load(made.plan.changes["box_inpainting"]["mask"]), released_box_mask())


def summed_up(mean, interval):
    metrics = {name: Mean(0, why="no weights") for name in ("ssim_paper", "lpips_alex", "misfit_excess")}
    metrics |= {"psnr_paper": Mean(10, mean, None, interval), "misfit": Mean(10, 0.1, None, interval)}
    start = ("super_resolution", 0.05, None, "ddiff", "single", 10, {"ok": 10})
    return [Group(*start, metrics, network_evaluations=999.0, network_gradients=0.0, seconds=2.5)]


@pytest.mark.parametrize(
    ("mean", "interval", "changes", "verdict"),
    [
        (30.0, (29.0, 31.0), {}, "agrees"),
        (32.0, (31.0, 33.0), {}, "agrees"),  # 1.5 above: less than the root of 1.2^2 + 1.0^2
        (32.1, (31.1, 33.1), {}, "higher (better)"),
        (28.9, (27.9, 29.9), {}, "lower (worse)"),
        (31.6, (30.6, 32.6), {"half_width": None}, "higher (better), by our interval alone"),
        (31.4, (30.4, 32.4), {"half_width": None}, "agrees, by our interval alone"),
        (30.0, None, {}, "one image: no verdict"),
        (None, None, {}, "not measured: not finite"),
        (30.0, (29.0, 31.0), {"not_comparable": "formula unknown"}, "not comparable"),
        (30.0, (29.0, 31.0), {"dataset": "imagenet"}, "the paper has no such number"),
    ],
)
def test_the_verdict_follows_from_both_intervals(monkeypatch, tmp_path, mean, interval, changes, verdict):
    entry = Published("table1", "ffhq", "super_resolution", "ddiff", "psnr_paper", 30.5, 1.2)
    monkeypatch.setattr(ledger, "published", lambda: ("somewhere", [dataclasses.replace(entry, **changes)]))
    groups = summed_up(mean, interval)
    book = ledger.compare(plan_study("table1", "ffhq", ["photo.png"], tmp_path), groups)
    ours = next(entry for entry in book.entries if entry.metric == "psnr_paper")
    assert ours.verdict == verdict
    if ours.verdict == "not comparable":
        assert (ours.difference, ours.note) == (None, "formula unknown")
    if mean == 30.0 and verdict == "agrees":
        assert (ours.difference, ours.difference_half_width) == pytest.approx((-0.5, np.hypot(1.0, 1.2)))
        line = next(line for line in ledger.as_markdown(book).splitlines() if "| psnr_paper |" in line)
        assert "| 30.5 ± 1.2 | 30 | 29 to 31 | 10 | 999 | 2.5 | -0.5 ± 1.6 |  | agrees |" in line
        fewer = plan_study("table1", "ffhq", ["photo.png"], tmp_path, steps=[3])
        assert ledger.compare(fewer, groups).entries[0].verdict == "not comparable: another protocol"


def test_the_papers_pick_by_the_truth_is_kept_and_marked_beside_the_misfits(monkeypatch, tmp_path):
    made = plan_study("table1", "ffhq", ["photo.png"], tmp_path, prior="faces64")
    assert made.plan.oracle and made.same_protocol
    assert not plan_study("table1", "ffhq", ["photo.png"], tmp_path, tasks=["gaussian_blur"]).plan.oracle
    entry = Published("table1", "ffhq", "super_resolution", "ddiff", "psnr_paper", 30.5, 1.2)
    monkeypatch.setattr(ledger, "published", lambda: ("somewhere", [entry]))
    (group,) = summed_up(30.0, (29.0, 31.0))
    gaps = {"psnr_paper": Mean(10, 0.75, 0.4, (0.5, 1.0))}
    groups = [
        dataclasses.replace(group, pick="oracle"),
        dataclasses.replace(group, pick="residual", oracle_gaps=gaps),
    ]
    book = ledger.compare(made, groups)
    paper, ours = (entry for entry in book.entries if entry.metric == "psnr_paper")
    assert (paper.pick, paper.published, paper.oracle_gap) == ("oracle", 30.5, None)
    assert paper.note == "run picked by the truth, as in the paper"
    assert (ours.published, ours.note, ours.oracle_gap, ours.oracle_gap_interval) == (None, "", 0.75, (0.5, 1.0))
    text = ledger.as_markdown(book)
    assert "| -0.5 ± 1.6 |  | agrees; run picked by the truth, as in the paper |" in text
    assert "|  | 0.75 ± 0.25 | the paper has no such number |" in text
    assert "which no user can" in text and "which no user can" not in ledger.as_markdown(ledger.compare(made, [group]))
    assert "agrees; run picked by the truth, as in the paper" in _ledger(book)


def test_the_command_writes_the_ledger(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["reproduce", "table1", "--dataset", "faces64", "--subset", "1", "--steps", "3", "--solvers", "ddiff"]
    assert cli.main([*command, "--tasks", "gaussian_blur", "--no-cache", "--no-report"]) == 0
    assert "differs from the paper: 3 network evaluations" in capsys.readouterr().err
    (cell,) = json.loads(Path("table1_faces64/summary.json").read_text())["cells"]
    solver = cell["settings"]["solver"]
    assert (solver["step_length"]["gamma"], solver["noise_schedule"], solver["num_steps"]) == (2.9, "posterior", 3)
    book = json.loads(Path("table1_faces64/ledger.json").read_text())
    assert {row["metric"] for row in book["rows"]} == {
        *("psnr_paper", "ssim_paper", "lpips_alex", "misfit", "misfit_excess")
    }
    assert book["rows"][0]["published"] is None
    (group,) = json.loads(Path("table1_faces64/summary.json").read_text())["groups"]
    measured = {row["metric"]: row["ours"] for row in book["rows"] if row["ours"] is not None}
    assert measured == {name: group["metrics"][name]["mean"] for name in measured}
    assert set(measured) == {"psnr_paper", "ssim_paper", "misfit", "misfit_excess"}  # LPIPS has no weights here
    lines = Path("table1_faces64/ledger.md").read_text().splitlines()
    assert sum(line.startswith("| gaussian_blur | ddiff | 0.05 | 3 |") for line in lines) == 5


def test_a_photograph_called_like_a_study_does_not_name_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_photos(tmp_path / "noise", 1)
    command = ["reproduce", "--dataset", "faces64", "--images", "noise", "--steps", "3", "--solvers", "ddiff"]
    command += ["--tasks", "gaussian_blur", "--no-cache", "--no-report"]
    assert cli.main([*command[:1], "table1", *command[1:]]) == 0
    assert Path("table1_faces64/ledger.md").is_file()
    assert not Path("noise_faces64").exists()


def test_the_help_lists_every_study_from_one_place(capsys, monkeypatch):
    monkeypatch.setitem(
        reproduction.STUDIES, "table9", dataclasses.replace(reproduction.STUDIES["noise"], title="more")
    )
    assert cli.main(["reproduce", "--help"]) == 0
    out = capsys.readouterr().out
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert all([name, study.title] in lines for name, study in reproduction.STUDIES.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table1", "--dataset", "ffhq"), "give --images"),
        (("table3", "--dataset", "ffhq"), "unknown study 'table3'; did you mean"),
        (("table1", "--dataset", "ffqh"), "unknown dataset 'ffqh'; did you mean 'ffhq'"),
        (("table1", "--dataset", "faces64", "--preset", "ffhq"), "decided by --dataset"),
        (("table1", "--dataset", "faces64", "--tasks", "nonlinear_blur"), "unknown task for faces64"),
        (("table1", "--dataset", "ffhq", "--images", "x.png"), "no weights at"),
    ],
)
def test_wrong_commands_say_what_is_wrong(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err
