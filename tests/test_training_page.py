"""The page of a training, from the files of its folder alone."""

import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from judgements import judgement

from ddiff_jax.training import curves
from ddiff_jax.training.log import Log, read_log
from ddiff_jax.training.page import MOST_GRIDS, Run, write_page

pytestmark = pytest.mark.once

HOSTILE = '</title><script>alert("1")</script>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 60 logged steps that was judged ten times, and once beyond the checkpoint that it was taken up from."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text(json.dumps({"num_parameters": 1_234_567, "images": HOSTILE}))
    judgement([9.0, 9.0, 9.0]).save(folder / "judgements" / "00000700")
    with Log(folder) as log:
        for step in range(1, 61):
            numbers = {"loss": 1 / step, "images_seen": 32 * step, "seconds": 70.0 * step, "learning_rate": 1e-4}
            log.write(10 * step, numbers)
            if step % 6 == 0:
                found = judgement([30 / step, 0.1, 0.02], psnr=20.0 + step, shade=step)
                found.save(folder / "judgements" / f"{10 * step:08d}")
                log.judged(10 * step, found)
    return folder


class Page(HTMLParser):
    """Collects what a browser would fetch, the tags, and the cells of every row."""

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.rows, self.inside = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.rows += [[]] * (tag == "tr")

    def handle_data(self, data):
        if self.inside == "td" and data.strip():
            self.rows[-1] = [*self.rows[-1], data]


def grids(text):
    (document,) = re.findall(r'<script id="grids" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(document)


def test_the_page_holds_everything_and_fetches_nothing(folder):
    path = write_page(folder, HOSTILE)
    assert path == folder / "report.html"
    text = path.read_text()
    page = Page(text)
    assert len(page.links) == 3  # two figures and the restorations
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert page.tags.count("script") == 2 and page.tags.count("title") == 1
    for fact in ("step</b> 600", "images seen</b> 1,920", "time</b> 1 h 10 min", "learning rate</b> 0.0001"):
        assert f"<b>{fact}" in text
    assert "<b>parameters</b> 1,234,567" in text and "judged 10 times, last at 1.92k images" in text
    assert '<div class="warning">At 1 of 3 noise levels (sigma/signal 0.01) a linear filter' in text


def test_the_table_marks_the_levels_that_are_lost(folder):
    rows = Page(write_page(folder, "run").read_text()).rows
    assert ["150", "999.0", "0.5000", "0.5000", "0.5200", "1.000"] in rows
    assert ["0.01", "0.0", "0.0200", "0.0100", "0.5200", "2.000", "lost"] in rows
    assert ["super resolution", "81.00", "80.00; 82.00"] in rows


def test_earlier_samples_are_few_and_the_last_ones_are_among_them(folder):
    found = grids(write_page(folder, "run").read_text())
    assert len(found) == MOST_GRIDS
    assert [found[0]["text"], found[-1]["text"]] == ["192 images", "1.92k images"]
    assert len({grid["source"] for grid in found}) == MOST_GRIDS


def test_curves_are_the_log_and_the_judgements(folder):
    run = Run.read(folder)
    assert [judgement.step for judgement in run.judgements] == list(range(60, 601, 60))  # none beyond the log
    over_time, denoising = curves.over_time(run.lines, run.judgements), curves.denoising(run.judgements)
    assert over_time is not None and denoising is not None
    losses, psnr = over_time.axes
    seen = 32 * np.arange(1, 61)
    assert losses.get_xlabel() == psnr.get_xlabel() == "images seen"
    np.testing.assert_array_equal(losses.get_lines()[0].get_xdata(), seen)
    np.testing.assert_array_equal(losses.get_lines()[0].get_ydata(), 1 / np.arange(1, 61))
    mean = next(line for line in psnr.get_lines() if line.get_label() == "super resolution")
    np.testing.assert_array_equal(mean.get_xdata(), seen[5::6])
    np.testing.assert_array_equal(mean.get_ydata(), 21.0 + np.arange(6, 61, 6))
    errors, ratio = denoising.axes
    lines = {line.get_label(): line.get_ydata() for line in errors.get_lines()}
    assert len(lines) == curves.SHOWN + 2
    np.testing.assert_array_equal(lines["network, 1.92k images"], [0.5, 0.1, 0.02])
    np.testing.assert_array_equal(lines["linear filter"], [0.5, 0.2, 0.01])
    assert errors.get_xscale() == errors.get_yscale() == ratio.get_xscale() == ratio.get_yscale() == "log"
    np.testing.assert_array_equal(ratio.get_lines()[-1].get_xdata(), [0.01])  # what is lost


def test_smooth_curves_are_means_over_what_is_finite():
    values = np.array([1.0, 2.0, np.nan, 6.0, 8.0, np.inf, np.inf, np.inf])
    smooth = curves._smooth(values, 3)
    np.testing.assert_allclose(smooth, [1.5, 1.5, 4.0, 7.0, 7.0, 8.0, np.nan, np.nan])


def test_without_matplotlib_the_page_says_so_and_has_its_tables(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = write_page(folder, "run").read_text()
    assert "No curves: curves need matplotlib; install it with: pip install &#x27;ddiff-jax[report]&#x27;" in text
    assert Page(text).rows and grids(text)


def test_a_folder_with_nothing_in_it_has_a_page(tmp_path):
    text = write_page(tmp_path, "run").read_text()
    assert "not judged yet" in text and not Page(text).links and grids(text) == []


def test_a_network_that_diverged_has_a_page(tmp_path):
    with Log(tmp_path) as log:
        for step in range(2):
            log.write(step, {"loss": np.nan})
    judgement([np.nan] * 3, psnr=np.nan).save(tmp_path / "judgements" / "1")
    text = write_page(tmp_path, "run").read_text()
    assert "<b>loss</b> not finite" in text and "The network gives NaN or infinity at 3 of 3 noise levels" in text
    assert ["super resolution", "not finite", "diverged; diverged"] in Page(text).rows


def test_what_is_damaged_is_told_and_left_out(tmp_path):
    with Log(tmp_path) as log:
        log.write(1, {"loss": 1.0})
        log.write(2, {"loss": 0.5})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step"')
    judgement([0.1, 0.1, 0.01]).save(tmp_path / "judgements" / "00000001")
    for name, text in {"<b>": "{", "00000002": "[]"}.items():
        (tmp_path / "judgements" / name).mkdir()
        (tmp_path / "judgements" / name / "judgement.json").write_text(text)
    (tmp_path / "judgements" / "00000001" / "restorations.png").unlink()
    (tmp_path / "run.json").write_text("no")
    text = write_page(tmp_path, "run").read_text()
    assert "damaged lines of log.jsonl: 1" in text and "run.json: " in text
    assert text.count("is no judgement of a training") == 2 and "judgements/&lt;b&gt;/judgement.json" in text
    assert "judged 1 time, last at step 1" in text and len(grids(text)) == 1
    assert "b" in Page(text).tags and len(read_log(tmp_path / "log.jsonl")[0]) == 2
