"""The pictures and the page of an evaluation."""

import base64
import dataclasses
import io
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from test_evaluation import plan, quick, save_photos

from ddiff_jax import evaluation, report
from ddiff_jax.evaluation import Group, Mean
from ddiff_jax.evaluation import run as runner
from ddiff_jax.evaluation.ledger import Entry, Ledger
from ddiff_jax.metrics import METRICS
from ddiff_jax.report import curves, page
from ddiff_jax.report.gallery import Gallery
from ddiff_jax.report.pictures import GAP, HEAD, LABEL, MARGIN, SIDE, mosaic, strips
from ddiff_jax.solvers import SOLVERS, DDiff


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """An evaluation of two solvers at two noise levels, with one image that cannot be read."""
    base = tmp_path_factory.mktemp("report")
    photos = save_photos(base / "photos", 2)
    (photos / "<b>.png").write_text("no picture, and a name that must not become part of the page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "load_prior", quick)
        patch.setitem(SOLVERS, "second", DDiff)
        changes = {"ddiff": {"gamma": 3.0}}  # by default it has no gamma, and so no dual variable
        wanted = plan(photos, solvers=("ddiff", "second"), sigmas=(0.05, 0.2), steps=(9,), changes=changes)
        return evaluation.evaluate(wanted, base / "out", say=lambda _: None)


class Links(HTMLParser):
    """Collects what a browser would fetch, and the scripts."""

    def __init__(self):
        super().__init__()
        self.links, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_holds_everything_and_fetches_nothing(found):
    text = report.write_report(found, "a < b").read_text()
    parser = Links()
    parser.feed(text)
    assert parser.links
    assert all(link.startswith("data:image/png;base64,") for link in parser.links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "<title>a &lt; b</title>" in text
    assert "&lt;b&gt;" in text
    assert "b" not in parser.tags[-3:]
    assert "4 of 12 rows are marked" in text
    assert "no weights: &#8209;&#8209;lpips&#8209;vgg" in text
    assert all(f"<th>{m.title}</th>" in text for m in METRICS.values() if m.general)
    assert "up to sign and turn" not in text  # of a blur
    assert found.rows[0].input_sha256 in text  # the settings name the inputs


def test_the_viewer_has_every_picture(found):
    text = report.write_report(found).read_text()
    (document,) = re.findall(r'<script id="pictures" type="application/json">(.*?)</script>', text, re.S)
    data = json.loads(document)
    assert [scene["title"] for scene in data["scenes"]] == [
        "gaussian blur, noise 0.05",
        "gaussian blur, noise 0.2",
    ] or [scene["title"] for scene in data["scenes"]] == [
        "gaussian blur, noise 0.05, 9 steps",
        "gaussian blur, noise 0.2, 9 steps",
    ]
    for scene in data["scenes"]:
        assert set(scene["pictures"]) == {"photo0", "photo1"}
        for pictures in scene["pictures"].values():
            assert list(pictures) == ["measurement", "ddiff", "second"]
            assert pictures["ddiff"]["text"].endswith(" dB")
    code = data["truths"]["photo0"].removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(code))).size == (64, 64)
    assert data["coarse"]


def test_the_best_of_every_noise_level_is_bold():
    means = {("a", 0.1): 20.0, ("b", 0.1): 21.0, ("a", 0.2): 9.0, ("b", 0.2): 8.0, ("a", 0.3): 5.0}
    groups = [
        Group("t", sigma_y, None, solver, "single", 1, {"ok": 1}, {n: Mean(1, mean) for n in METRICS}, 1.0, 0.0, 1.0)
        for (solver, sigma_y), mean in means.items()
    ]
    assert page._best(groups, METRICS["psnr_paper"]) == {1, 2}  # nothing to compare at 0.3
    assert page._best(groups, METRICS["lpips_alex"]) == {0, 3}
    assert page._best(groups, METRICS["misfit"]) == set()


def test_the_mosaic_shows_the_pictures_in_their_places(found):
    gallery = Gallery(found)
    canvas = np.asarray(mosaic(gallery, gallery.scenes, ["photo1"]))
    with Image.open(found.folder / "images" / "photo1.png") as picture:
        truth = np.repeat(np.repeat(np.asarray(picture.convert("RGB")), SIDE // 64, 0), SIDE // 64, 1)
    left, top = MARGIN + LABEL + 3 * (SIDE + GAP), MARGIN + HEAD  # after measurement and two solvers
    for line in range(2):
        place = top + line * (SIDE + GAP)
        np.testing.assert_array_equal(canvas[place : place + SIDE, left : left + SIDE], truth)
    corner = canvas[top + SIDE - 20 : top + SIDE - 4, left - SIDE - GAP + 4 : left - GAP - 100]
    assert corner.min() == 0  # the caption's box
    assert corner.max() == 255


def test_strips_show_the_last_estimate_last(found):
    gallery = Gallery(found)
    picture = strips(gallery, gallery.scenes[0])
    assert picture is not None
    (strip,) = {path for path in gallery.strips(gallery.scenes[0]).values() if "ddiff" in str(path)}
    with Image.open(strip) as whole, Image.open(gallery.restored(gallery.scenes[0], "ddiff", "photo0")) as last:
        assert whole.size == (8 * 64, 64)
        np.testing.assert_array_equal(np.asarray(whole)[:, -64:], np.asarray(last))


def test_curves_are_the_summary(found):
    figure = curves.against(Gallery(found), "gaussian_blur", "sigma_y")
    axis = next(a for a in figure.axes if a.get_ylabel().startswith("PSNR"))
    for solver, line in zip(("ddiff", "second"), axis.get_lines(), strict=True):
        groups = [g for g in found.summary.groups if g.solver == solver]
        np.testing.assert_array_equal(line.get_xdata(), [0.05, 0.2])
        np.testing.assert_allclose(line.get_ydata(), [g.metrics["psnr_paper"].mean for g in groups])


def test_a_sweep_of_steps_is_drawn_against_evaluations_and_against_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "load_prior", quick)
    photos = save_photos(tmp_path / "photos", 1)
    swept = evaluation.evaluate(plan(photos, steps=(2, 4)), tmp_path / "out", say=lambda _: None)
    gallery = Gallery(swept)
    assert curves.swept(gallery) == ["network_evaluations", "seconds"]
    groups = sorted(swept.summary.groups, key=lambda group: group.seconds or 0.0)
    for name, label in {"network_evaluations": "network evaluations per image", "seconds": "seconds per image"}.items():
        axis = curves.against(gallery, "gaussian_blur", name).axes[0]
        assert axis.get_xlabel().startswith(label)
        assert axis.get_xscale() == "log"
        np.testing.assert_allclose(sorted(axis.get_lines()[0].get_xdata()), sorted(getattr(g, name) for g in groups))
    text = report.write_report(swept).read_text()
    assert "Quality against time" in text
    assert "<th>misfit excess</th>" in text


def test_convergence_is_what_the_steps_reported(found):
    gallery = Gallery(found)
    figure = curves.traces(gallery, gallery.scenes[0])
    assert figure is not None
    line = figure.axes[0].get_lines()[0]
    records = [json.loads(p.read_text()) for p in sorted((found.folder / "records").rglob("ddiff-sigma0.05*/*/*.json"))]
    assert len(records) == 2
    np.testing.assert_allclose(line.get_ydata(), np.mean([r["trace"]["misfit"] for r in records], axis=0))
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 10))
    assert [axis.get_ylabel() for axis in figure.axes] == ["mean squared misfit", "||x - z||", "||u||"]
    dual = np.mean([r["trace"]["dual"] for r in records], axis=0)
    np.testing.assert_allclose(figure.axes[2].get_lines()[0].get_ydata(), dual)


def test_a_study_stands_beside_the_published_numbers(found):
    ours = Entry(
        *("blur", "ddiff", 0.05, None, "single", "psnr_paper", 29.876, 0.41, 30.0, (29.0, 31.0), 4, 999.0, 1.0),
        *(0.124, 1.1, "agrees", "a < b"),
    )
    entries = (ours, dataclasses.replace(ours, published=None, verdict="the paper has no such number"))
    book = Ledger("table1", "a study", "ffhq", "a paper", ("other photographs",), entries)
    text = report.write_report(found, ledger=book).read_text()
    assert "<td>29.876 ± 0.41</td><td>30.00</td><td>29.00 to 31.00</td><td>4</td><td>agrees; a &lt; b</td>" in text
    assert "It has 1 of the 2 numbers here" in text
    assert "<li>other photographs</li>" in text
    assert "the paper has no such number" not in text
    assert "Beside the published numbers" not in report.write_report(found).read_text()


def test_without_matplotlib_the_page_says_so(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = report.write_report(found).read_text()
    assert "No curves: curves need matplotlib; install it with: pip install" in text
    assert "Estimates on the way" in text
    with pytest.raises(ImportError, match="curves need matplotlib"):
        curves.against(Gallery(found), "gaussian_blur", "sigma_y")
