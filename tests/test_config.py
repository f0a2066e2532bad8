import dataclasses
import itertools
import re
from typing import Any

import pytest
import yaml

import ddiff_jax as dd
from ddiff_jax import config
from ddiff_jax.operators import OPERATORS
from ddiff_jax.solvers import DAPS, DPS, SOLVERS, DDiff, DDiffHQS, DiffPIR, DiffPnPADMM, Fixed, REDDiff

pytestmark = pytest.mark.once

# Of the paper's table of hyper-parameters: gamma, t0 and the noise schedule. The other fields are the released code's.
PUBLISHED = [
    ("ffhq", "super_resolution", 18, 1, "full"),
    ("ffhq", "box_inpainting", 30, 1, "full"),
    ("ffhq", "random_inpainting", 50, 1, "full"),
    ("ffhq", "gaussian_blur", 2.9, 50, "posterior"),
    ("ffhq", "motion_blur", 2.9, 80, "posterior"),
    ("ffhq", "phase_retrieval", 38, 1, "full"),
    ("ffhq", "high_dynamic_range", 3.5, 120, "posterior"),
    ("imagenet", "super_resolution", 18, 1, "full"),
    ("imagenet", "box_inpainting", 50, 1, "full"),
    ("imagenet", "random_inpainting", 50, 1, "full"),
    ("imagenet", "gaussian_blur", 1.8, 50, "posterior"),
    ("imagenet", "high_dynamic_range", 3.8, 100, "posterior"),
    ("faces64", "gaussian_blur", 2.9, 50, "posterior"),
]
RIVALS = [
    ("ffhq", "super_resolution", "diffpir", DiffPIR(7.0, 0.25)),
    ("ffhq", "high_dynamic_range", "diffpir", DiffPIR(7.0, 0.3, num_steps=99)),
    ("imagenet", "inpainting", "diffpir", DiffPIR(1.0, 1.0, num_steps=19)),
    ("imagenet", "box_inpainting", "dps", DPS(0.5)),
    ("imagenet", "motion_blur", "dps", DPS(0.3)),
    ("faces64", "phase_retrieval", "dps", DPS(1.0)),
    ("faces64", "camera_blur", "daps", DAPS(1e-5, langevin_steps=200)),
    ("faces64", "super_resolution", "red_diff", REDDiff(0.25, 0.1)),
    ("faces64", "blur", "red_diff", REDDiff(0.25, 0.5)),
    ("ffhq", "gaussian_blur", "diff_pnp_admm", DiffPnPADMM(Fixed(2.9))),
    ("ffhq", "gaussian_blur", "ddiff_hqs", DDiffHQS()),
]
OUTSIDE_THE_PAPER = {"colourisation": 250, "undersampled_fourier": 250, "sparse_tomography": 250}
UNPUBLISHED = {*OUTSIDE_THE_PAPER, "low_light", "sparse_fan_beam_tomography"}
# Solvers that need a value which only publications give: where there are none, people must say it.
NO_DEFAULT = {"dps": "zeta", "daps": "lr", "diff_pnp_admm": "gamma", "diff_pnp_hqs": "gamma"}
# What `default` keeps of the published values, because nothing better was measured.
KEPT = [("ffhq", "phase_retrieval"), ("imagenet", "phase_retrieval"), ("faces64", "phase_retrieval")]
TASK = "{operator: blur, arguments: {}, sigma_y: 0.1, %s}"


@pytest.mark.parametrize(("dataset", "task", "gamma", "t0", "schedule"), PUBLISHED)
def test_published_values_are_those_of_the_paper(dataset, task, gamma, t0, schedule):
    wanted = DDiff(Fixed(gamma, before=3.3, after=0.1, t_gamma=90), t0=t0, noise_schedule=schedule, num_steps=None)
    assert dd.preset(dataset, task, values="published") == wanted


@pytest.mark.parametrize(("dataset", "task", "solver", "wanted"), RIVALS)
def test_rivals_have_their_published_values_in_both_choices(dataset, task, solver, wanted):
    assert dd.preset(dataset, task, solver, values="published") == dd.preset(dataset, task, solver) == wanted


@pytest.mark.parametrize(("dataset", "task"), [row[:2] for row in PUBLISHED])
def test_default_values_find_the_step_length_in_a_hundred_evaluations(dataset, task):
    wanted = DDiff(num_steps=100) if dataset == "faces64" else DDiff(num_steps=100, sigma_max=20)
    if (dataset, task) in KEPT:
        wanted = dd.preset(dataset, task, values="published")
    assert dd.preset(dataset, task) == wanted


@pytest.mark.parametrize(("task", "steps"), OUTSIDE_THE_PAPER.items())
def test_where_nothing_is_published_the_default_serves(task, steps):
    assert dd.preset("faces64", task, values="published") == dd.preset("faces64", task) == DDiff(num_steps=steps)
    with pytest.raises(ValueError, match=f"solver dps has no preset for faces64/{task} and no default for zeta"):
        dd.preset("faces64", task, "dps")
    assert dd.preset("faces64", task, "dps", zeta=0.3) == DPS(0.3)


@pytest.mark.parametrize("steps", [1, 20, 250, 251, 999, None])
@pytest.mark.parametrize("values", config.VALUES)
def test_the_number_of_steps_changes_nothing_else(values, steps):
    few, some = (dd.preset("faces64", "gaussian_blur", values=values, num_steps=n) for n in (steps, 7))
    assert dataclasses.replace(few, num_steps=7) == some  # pyright: ignore[reportArgumentType] - a dataclass


def test_the_shipped_tasks_are_these():
    both = ["blur", "box_inpainting", "gaussian_blur", "high_dynamic_range", "inpainting", "motion_blur"]
    both += ["nonlinear_blur", "phase_retrieval", "random_inpainting", "super_resolution"]
    small = [*both, "camera_blur", "low_light", *OUTSIDE_THE_PAPER]
    small.remove("nonlinear_blur")  # its network takes no images of 64x64
    sections = ("sparse_fan_beam_tomography", "sparse_tomography", "undersampled_fourier")
    wanted = {"faces64": tuple(sorted(small)), "ffhq": tuple(both), "imagenet": tuple(both), "phantoms64": sections}
    assert config.presets() == wanted


def test_every_shipped_preset_builds_every_solver():
    built = 0
    for dataset, tasks in config.presets().items():
        for task in tasks:
            values = config.task_preset(dataset, task)
            assert values.operator in OPERATORS
            assert values.sigma_y > 0
            for choice, solver in itertools.product(config.VALUES, SOLVERS):
                missing = NO_DEFAULT.get(solver) if task in UNPUBLISHED else None
                if missing is not None:
                    with pytest.raises(ValueError, match=f"no preset for {dataset}/{task} and no .* for {missing};"):
                        dd.preset(dataset, task, solver, choice)
                    continue
                found = dd.preset(dataset, task, solver, choice)
                assert type(found) is SOLVERS[solver]
                length = getattr(found, "step_length", None)
                for name, value in values.hyper_parameters(solver, choice).items():
                    said = getattr(found, name) if hasattr(found, name) else getattr(length, name)
                    assert said == pytest.approx(value), f"{dataset}/{task}, {choice}: {name} of {solver}"
                built += 1
    # 37 tasks, 2 choices, all solvers; for 7 tasks nothing is published, and 4 solvers cannot do without.
    assert built == 37 * 2 * len(SOLVERS) - 7 * 2 * 4


# What names a source: a file of a released code, or another solver of the same file whose values these are.
SOURCE = re.compile(
    r"# (\S+\.(py|sh|ya?ml|md) of (DDiff|DiffPIR|DPS|DAPS|RED-diff|Flower|PnP-Flow|TDS|DDS|PnP-DM)\b"
    r"|as (?P<other>\w+)$)"
)
CODE = {"ddiff": "DDiff", "diffpir": "DiffPIR", "dps": "DPS", "daps": "DAPS", "red_diff": "RED-diff"}
CODE.update(flower="Flower", pnp_flow="PnP-Flow", tds="TDS", dds="DDS", pnp_dm="PnP-DM")


def published_lines(path):
    """Find the lines that hold published values, by solver; without values, a solver's own defaults serve."""
    root: Any = yaml.compose(path.read_text())
    sections = {key.value: value for key, value in root.value}
    lines, section = path.read_text().splitlines(), sections.get("published")
    return {key.value: lines[key.start_mark.line] for key, _ in (section.value or [] if section else [])}


@pytest.mark.parametrize(
    "path", sorted(config.config_folder().glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_every_published_value_names_its_source(path):
    lines = published_lines(path)
    for solver, line in lines.items():
        source = SOURCE.search(line)
        assert source, f"{path}: write where the values of {solver} come from, as in '# README.md of DDiff': {line}"
        other = source["other"]
        assert other in lines if other else source[3] == CODE[solver], line
    text = path.read_text()
    assert lines or "published:  # nothing" in text, f"{path} says nothing of published values"
    assert text.startswith(f"# {path.stem}: " if path.stem != config.DEFAULTS else "# What the tasks of "), path


def test_presets_say_only_what_differs():
    for dataset, tasks in config.presets().items():
        shared = yaml.safe_load((config.config_folder() / dataset / "defaults.yaml").read_text())
        for task in tasks:
            own = yaml.safe_load((config.config_folder() / dataset / f"{task}.yaml").read_text())
            for choice in config.VALUES:
                for solver, values in (own.get(choice) or {}).items():
                    assert values != shared[choice].get(solver), f"{dataset}/{task} repeats {choice} of {solver}"
                    assert values or solver in shared[choice], f"{dataset}/{task} says nothing of {solver}"


def test_changes_replace_preset_values():
    assert dd.preset("faces64", "super_resolution", gamma=3.0, num_steps=20) == DDiff(Fixed(3.0), num_steps=20)
    published: dict[str, Any] = {"dataset": "faces64", "task": "gaussian_blur", "values": "published"}
    rest: dict[str, Any] = {"t0": 50, "noise_schedule": "posterior"}
    assert dd.preset(**published, after=0.2) == DDiff(Fixed(2.9, after=0.2), **rest)
    assert dd.preset(**published, step_length=Fixed(1.0, 2.0)) == DDiff(Fixed(1.0, 2.0), **rest)
    assert dd.preset(**published, gamma=None) == DDiff(**rest)
    assert dd.preset(**published, solver="ddiff_hqs", after=0.5) == DDiffHQS(Fixed(90.0, 1.0, 0.5))


def test_a_task_takes_the_place_of_what_tasks_share_solver_by_solver():
    shared = "{sigma_y: 0.1, default: {ddiff: {num_steps: 9}}, published: {dps: {zeta: 1}, red_diff: {lam: 2, lr: 3}}}"
    text = "{operator: blur, arguments: {}, published: {red_diff: {lr: 4}, ddrm: {eta: 1}}}"
    task = config.parse_task(text, "here", shared)
    assert task.sigma_y == 0.1
    assert task.default == {"ddiff": {"num_steps": 9}}
    assert task.published == {"dps": {"zeta": 1}, "red_diff": {"lr": 4}, "ddrm": {"eta": 1}}
    assert task.hyper_parameters("dps", "default") == {"zeta": 1}
    assert task.hyper_parameters("pigdm", "published") == {}
    none = config.parse_task("operator: blur\narguments: {}\npublished:", "here", shared)
    assert none.published == {}
    assert none.hyper_parameters("ddiff", "published") == {"num_steps": 9}


def test_round_trip_through_yaml():
    task = config.task_preset("ffhq", "gaussian_blur")
    assert config.parse_task(yaml.safe_dump(dataclasses.asdict(task)), "here") == task


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dd.preset("fhq", "super_resolution", "ddiff"), "unknown dataset 'fhq'; did you mean 'ffhq'"),
        (lambda: dd.preset("ffhq", "superresolution", "ddiff"), "did you mean 'super_resolution'"),
        (lambda: dd.preset("ffhq", "defaults"), "unknown task for ffhq 'defaults'"),
        (lambda: dd.preset("ffhq", "super_resolution", "ddif"), "unknown solver 'ddif'; did you mean 'ddiff'"),
        (lambda: dd.preset("ffhq", "super_resolution", values="publshed"), "values 'publshed'; did you mean 'publis"),
        (lambda: dd.preset("ffhq", "super_resolution", "ddiff", gama=1.0), "did you mean 'gamma'"),
        (lambda: dd.preset("ffhq", "super_resolution", before=2.0), "before would play no part; give gamma a number"),
        (lambda: dd.preset("ffhq", "blur", gamma=None, normalise=False), "normalise would play no part"),
        (lambda: dd.preset("ffhq", "blur", gamma=1.0, step_length=Fixed(2.0)), "a step_length or its gamma, not both"),
        (lambda: dd.preset("ffhq", "blur", "diff_pnp_hqs", gamma=None), "have a fixed length; give gamma a number"),
        (lambda: config.build_solver("daps", {}), "solver daps has no default for lr"),
        (lambda: config.parse_task("[1, 2]", "here"), "here must hold the keys"),
        (lambda: config.parse_task("operator: blur\nsigma: 1", "here"), "'sigma'; did you mean 'sigma_y'"),
        (
            lambda: config.parse_task("operator: blurr", "here"),
            "unknown operator in here: 'blurr'; did you mean 'blur'",
        ),
        (lambda: config.parse_task("operator: blur", "here"), "lacks arguments, sigma_y"),
        (lambda: config.parse_task(TASK % "default: {dpss: {}}", "here"), "key in here, default: 'dpss'; did you"),
        (lambda: config.parse_task(TASK % "published: {dps: {zetta: 1}}", "here"), "dps: 'zetta'; did you mean 'zeta'"),
        (
            lambda: config.parse_task(TASK % "photons: 1", "here", "{sigma: 1}"),
            "defaults of here: 'sigma'; did you mean",
        ),
        (
            lambda: config.parse_task(TASK % "photons: 1\n, photons: 2", "here"),
            "here: key 'photons' stands twice, ag.*2",
        ),
        (lambda: config.parse_task(TASK % "default: {dps: {zeta: 1, zeta: 2}}", "here"), "'zeta' stands twice"),
    ],
)
def test_misspelt_names_are_answered_with_the_nearest(call, message):
    with pytest.raises(ValueError, match=message):
        call()
