"""Calibration of solvers whose law is known: the label each deserves, what is written, and what a stop leaves."""

import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddiff_jax as dd
from ddiff_jax import calibration, extend
from ddiff_jax.calibration import Cell, Coverage, Exact, Findings, Measures, calibrate, draw, labels, suite
from ddiff_jax.cli import calibrate as command
from ddiff_jax.solvers.base import draw_given_data

pytestmark = pytest.mark.once

SHAPE, VAR, SIGMA_Y, COUNT = (4, 4, 1), 0.25, 0.3, 100
STD = math.sqrt(VAR)
KEY = jax.random.key(3)

OWN = """
import sys
sys.path.insert(0, {tests!r})
from test_calibrate import Draw, gaussian_cell as cell, Draw as make
solver = Draw()
number = 3.0
"""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """x ~ N(0, v) and y = x + sigma n, pixel by pixel."""

    @property
    def var(self):
        return VAR * SIGMA_Y**2 / (VAR + SIGMA_Y**2)

    def truths(self, key, count):
        return STD * jax.random.normal(key, (count, *SHAPE))

    def samples(self, key, y, count):
        return self.mean(y)[:, None] + math.sqrt(self.var) * jax.random.normal(key, (y.shape[0], count, *SHAPE))

    def mean(self, y):
        return VAR / (VAR + SIGMA_Y**2) * y

    def variance(self, y):
        return jnp.full((y.shape[0],), math.prod(SHAPE) * self.var)

    def log_density(self, x, y) -> Any:
        return -jnp.sum((x - self.mean(y)[:, None]) ** 2, axis=(2, 3, 4)) / (2 * self.var)


@dataclasses.dataclass(frozen=True)
class WithoutDensity(Pixels):
    def log_density(self, x, y):
        return None


def gaussian_cell(name="G4", posterior=None, **options):
    prior = dd.GaussianPrior(0.0, VAR, dd.linear_schedule(), SHAPE)
    operator = dd.operators.super_resolution(SHAPE, factor=1)
    return Cell(name, prior, operator, SIGMA_Y, posterior or Pixels(), COUNT, **options)


@dd.pytree_dataclass
class Draw:
    """Draw from the posterior of a Gaussian prior in one step, then move and stretch what was drawn."""

    shift: float = 0.0
    width: float = 1.0
    bound: float = 1e9
    aim = "posterior"
    needs = extend.Needs(methods=("prox",), gaussian_noise=True)

    def __post_init__(self):
        extend.coerce(self, shift="non-negative", width="non-negative", bound="positive")

    def cost(self, operator):
        return extend.Cost(operator_solves=2, normal_draws=2)

    def grid(self, schedule):
        return {"step": np.zeros(1)}

    def init(self, prior, problem, point, noise, x_init=None):
        return jnp.zeros(prior.image_shape)

    def step(self, prior, problem, state, point, noise):
        centre = problem.operator.prox(jnp.zeros_like(state), problem.y, (problem.sigma_y / STD) ** 2)
        x = draw_given_data(problem, jnp.zeros_like(state), jnp.float32(STD), noise, 0)
        x = centre + self.shift + self.width * (x - centre)
        return jnp.where(jnp.max(jnp.abs(problem.y)) > self.bound, jnp.nan, x), extend.StepInfo(problem.misfit(x))

    def estimate(self, state):
        return state


@pytest.fixture(scope="module")
def drawn():
    return draw(gaussian_cell(), KEY)


def measured(found) -> Measures:
    assert found.measures is not None
    return found.measures


# What is found


@pytest.mark.parametrize(
    ("solver", "label"),
    [
        (Exact(), "posterior"),
        (Draw(), "posterior"),
        (Draw(width=0.1), "point"),
        (Draw(width=0.7), "overconfident"),
        (Draw(width=1.5), "diffuse"),
        (Draw(width=1.09), "approximate"),
        (Draw(shift=0.06), "biased"),
    ],
)
def test_every_label_is_that_of_a_law_which_deserves_it(drawn, solver, label):
    found = calibrate(solver, drawn)
    assert found.label == label, found
    if isinstance(solver, Draw):
        assert measured(found).spread == pytest.approx(float(solver.width), abs=0.03)
        excess = float(solver.shift) ** 2 / Pixels().var
        assert measured(found).gap == pytest.approx(10 * math.log10(1 + excess), abs=5 * measured(found).gap_error)


@pytest.mark.parametrize("name", calibration.DEFAULT)
def test_exact_samples_pass_on_the_default_cells(name):
    found = calibrate(Exact(), calibration.CELLS[name](), KEY, num_problems=100)
    assert found.label == "posterior", found
    assert min(measured(found).sbc_p_value, measured(found).tarp_p_value) > 1e-3
    assert abs(measured(found).energy) < 4 * measured(found).energy_error


def test_results_do_not_depend_on_blocks(drawn):
    whole, parts = measured(calibrate(Draw(), drawn)), measured(calibrate(Draw(), drawn, block=30))
    assert whole.density_ranks == parts.density_ranks
    assert whole.gap == pytest.approx(parts.gap, abs=1e-5)


def test_a_cell_and_its_draw_give_the_same(drawn):
    there, here = calibrate(Draw(), drawn, name="mine"), calibrate(Draw(), gaussian_cell(), KEY, name="mine")
    assert dataclasses.replace(there, seconds=0.0) == dataclasses.replace(here, seconds=0.0)
    assert there.solver == "mine" and there.aim == "posterior" and there.num_problems == COUNT


def test_problems_that_diverge_are_counted_and_left_out(drawn):
    bound = np.sort(np.max(np.abs(drawn.y), axis=(1, 2, 3)))[-6]  # five measurements are beyond
    found = calibrate(Draw(bound=float(bound)), drawn)
    assert found.num_diverged == 5 and sum(measured(found).tarp_ranks) == COUNT - 5
    lost = calibrate(Draw(bound=1e-6), drawn)
    assert lost.measures is None and lost.label == "diverged" and lost.num_diverged == COUNT


def test_without_a_density_labels_go_by_coordinate():
    found = calibrate(Draw(), gaussian_cell(posterior=WithoutDensity()), KEY)
    assert measured(found).density is None and measured(found).density_ranks is None
    assert measured(found).coverage == measured(found).coordinate and found.label == "posterior"


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="19, 39, 59"):
        calibrate(Draw(), gaussian_cell(), KEY, num_samples=20)
    with pytest.raises(ValueError, match="at least 10 problems"):
        calibrate(Draw(), gaussian_cell(), KEY, num_problems=3)
    with pytest.raises(TypeError, match="needs a key"):
        calibrate(Draw(), gaussian_cell())


def test_one_measurement_with_many_samples():
    cell = gaussian_cell()
    exact, right, narrow = (
        calibration.compare(s, cell, KEY, 1000) for s in (Exact(), Draw(), Draw(width=0.7, bound=1e9))
    )
    assert exact.ratio == pytest.approx(1, abs=0.25) and right.ratio == pytest.approx(1, abs=0.25)
    assert abs(exact.energy) < 0.01 and abs(right.energy) < 0.01 and right.null == exact.null
    assert narrow.ratio > 2 and narrow.energy > 0.02
    lost = calibration.compare(Draw(bound=1e-6), cell, KEY, 1000)
    assert lost.num_diverged == 1000 and math.isinf(lost.ratio)
    with pytest.raises(ValueError, match="at least 100"):
        calibration.compare(Draw(), cell, KEY, 10)


# Labels


def findings(solver="s", cell="G4", ninety=0.9, gap=0.0, spread=1.0, wrong_modes=False):
    coverage = Coverage((0.5, ninety), (0.05, 0.03))
    other = Coverage((0.1, 0.1), (0.01, math.nan))  # which plays no part
    measures = Measures(
        *(coverage, other, (1,) * 20, (0.1,) * 10, (2,) * 20, 0.1, 0.5, ((1, 2),) * 8, 0.5),
        *(gap, math.nan, gap, gap, spread, 0.0, 0.1),
    )
    return Findings(solver, cell, "posterior", 100, 19, wrong_modes=wrong_modes, measures=measures)


@pytest.mark.parametrize(
    ("numbers", "label"),
    [
        ({}, "posterior"),
        ({"ninety": 0.83}, "posterior"),  # 2.3 standard errors
        ({"ninety": 0.81}, "approximate"),  # 3
        ({"gap": 0.1}, "biased"),
        ({"ninety": 0.79}, "overconfident"),
        ({"ninety": 0.82, "spread": 0.84}, "overconfident"),
        ({"ninety": 0.98, "gap": 0.2, "spread": 1.2}, "diffuse"),
        ({"ninety": 0.98, "spread": 1.05, "gap": 0.2}, "biased"),
        ({"ninety": 0.1, "spread": 0.29}, "point"),
    ],
)
def test_labels_go_by_their_bounds(numbers, label):
    assert findings(**numbers).label == label


def test_wrong_modes_take_a_solver_that_is_right_on_gaussians():
    on_mixture = findings(cell="M8/blur", gap=0.6, ninety=0.7, wrong_modes=True)
    right, wrong = findings(), findings(cell="G8", gap=1.0)
    assert labels([right, on_mixture])["s", "M8/blur"] == "wrong modes"
    assert labels([right, wrong, on_mixture])["s", "M8/blur"] == "overconfident"
    assert labels([on_mixture])["s", "M8/blur"] == "overconfident"
    assert labels([right, dataclasses.replace(on_mixture, wrong_modes=False)])["s", "M8/blur"] == "overconfident"
    assert set(labels([right, on_mixture]).values()) <= calibration.LABELS.keys()


def test_findings_survive_json():
    for found in (findings(), dataclasses.replace(findings(), measures=None, why="no svd")):
        again = Findings.of(json.loads(json.dumps(found.as_dict(), allow_nan=False)))
        assert repr(again) == repr(found)  # NaN is not equal to itself


# What is written


def test_the_tables_name_the_cells_of_every_label():
    all_findings = [findings(), findings(cell="M8", ninety=0.1), dataclasses.replace(findings("t"), aim="map")]
    all_findings.append(Findings("u", "G4", None, 100, 19, why="it needs svd"))
    words = labels(all_findings)
    assert calibration.sentences(all_findings, words)[0] == "s: posterior on G4; overconfident on M8"
    text, page = calibration.to_text(all_findings, words), calibration.to_document(all_findings, words)
    for written in (text, page):
        assert "t*" in written.replace("\\", "") and "0.90(3)" in written and "u: it needs svd" in written
    assert "## M8: 100 problems" in page


def test_the_page_holds_everything_and_its_drawings_are_whole(tmp_path):
    all_findings = [findings("<b>", "a & b"), dataclasses.replace(findings("t", "a & b"), measures=None)]
    page = calibration.write_page(all_findings, labels(all_findings), tmp_path).read_text()
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 3 + 4  # three kinds of coverage, four kinds of ranks
    for drawing in drawings:
        ET.fromstring(drawing)
    assert "&lt;b&gt;" in page and "<b>" not in page and "$" not in page
    assert not re.search(r'(src|href)="?http|url\(', page)


# The suite and its command


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Make a module of one's own in the current folder, under a name that nothing has imported."""
    name = f"mine{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(OWN.format(tests=str(Path(__file__).parent)))
    return name


QUICK = ("--problems", 20, "--no-cache")


def test_the_command_measures_what_is_ones_own_and_goes_on(ddiff, own, monkeypatch):
    call = ("calibrate", "--solver", f"{own}:solver", "exact", "--cell", f"{own}:cell", *QUICK)
    code, out, err = ddiff(*call)
    assert code == 0 and f"{own}:solver" in out and "[2/2] exact" in err, err
    assert (Path("calibration") / "report.html").exists()
    assert (Path("calibration") / "calibration.md").read_text().startswith("# Calibration")
    first = json.loads((Path("calibration") / "calibration.json").read_text())["findings"]
    assert [row["solver"] for row in first] == [f"{own}:solver", "exact"] and first[0]["num_problems"] == 20
    monkeypatch.setattr(suite, "draw", lambda *a: pytest.fail("was measured already"))
    code, out, err = ddiff(*call, "--json")
    assert code == 0 and json.loads(out)["findings"] == first and err.count("(found before)") == 2


def test_what_was_found_before_an_interruption_stays(ddiff, own, monkeypatch):
    whole = suite.calibrate

    def interrupted(solver, *args, **options):
        if not isinstance(solver, Exact):
            raise KeyboardInterrupt
        return whole(solver, *args, **options)

    call = ("calibrate", "--solver", "exact", f"{own}:make", "--cell", f"{own}:cell", *QUICK)
    monkeypatch.setattr(suite, "calibrate", interrupted)
    code, out, err = ddiff(*call)
    assert code == 130 and "exact: posterior" in out
    monkeypatch.setattr(suite, "calibrate", whole)
    code, out, err = ddiff(*call)
    assert code == 0 and err.count("(found before)") == 1 and f"{own}:make" in out


def test_other_settings_are_measured_anew(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells, folder, told = [f"{own}:cell"], tmp_path / "records", []
    watch = calibration.Watch(found=lambda findings, again: told.append(again))
    for width, seed in ((1.0, 0), (1.0, 0), (0.5, 0), (0.5, 1)):
        entry = calibration.Entry("mine", Draw(width=width))
        suite.calibrate_all([entry], cells, folder, seed=seed, num_problems=20, watch=watch)
    assert told == [False, True, False, False]


def test_a_solver_that_cannot_be_used_is_told(ddiff, own, monkeypatch):
    code, out, err = ddiff("calibrate", "--solver", "total_variation", "--cell", f"{own}:cell", *QUICK)
    assert code in (0, 1) and "total_variation" in out
    monkeypatch.setattr(Draw, "needs", extend.Needs(methods=("no_such_method",)))
    code, out, err = ddiff("calibrate", "--solver", f"{own}:solver", "--cell", f"{own}:cell", *QUICK)
    assert code == 1 and "not run" in out and "no_such_method" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--solver", "ddif"], "did you mean 'ddiff'?"),
        (["--solver", "exact", "--cell", "nowhere"], "unknown cell 'nowhere'"),
        (["--samples", "20"], "19, 39, 59"),
        (["--problems", "3"], "at least 10 problems"),
        (["--solver", "OWN:number"], "must be a solver"),
        (["--cell", "OWN:number"], "must be a ddiff_jax.calibration.Cell"),
        (["--solver", "ddrm", "--set", "dps:zeta=1"], "unknown solver that is changed 'dps'"),
        (["--solver", "ddrm", "--set", "ddrm:zeta=1"], "unknown flag --zeta"),
        (["--seed", "-1"], "--seed must be from 0"),
    ],
)
def test_mistakes_are_one_line(ddiff, own, arguments, said):
    words = [word.replace("OWN", own) for word in arguments]
    words += [] if "--cell" in words else ["--cell", f"{own}:cell"]
    words += [] if "--solver" in words else ["--solver", "exact"]
    code, _, err = ddiff("calibrate", *words, "--quiet", "--no-cache")
    assert code == 2 and said in err and len(err.splitlines()) == 1, err


def test_every_default_solver_can_be_built_and_settings_name_solvers():
    entries = [calibration.find_solver(name) for name in calibration.default_solvers()]
    assert [entry.name for entry in entries][:2] == ["exact", "ddiff"]
    assert set(suite.SETTINGS) <= set(dd.solvers.SOLVERS)
    with pytest.raises(ValueError, match="two called exact"):
        calibration.calibrate_all([entries[0], entries[0]], [])
    changed: Any = calibration.find_solver("dps", {"zeta": 1.0}).solver
    assert float(changed.zeta) == 1.0 and changed.num_steps == 100
    with pytest.raises(ValueError, match="cannot; change the object"):
        calibration.find_solver("exact", {"zeta": 1.0})
    assert command.FULL_PROBLEMS == 1000
