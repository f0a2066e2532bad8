"""The paper's tables and figures as evaluations; `ledger` sets what they find beside the published numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddiff_jax import image_files
from ddiff_jax.config import presets
from ddiff_jax.evaluation.plan import Plan
from ddiff_jax.names import check_name
from ddiff_jax.solvers import DAPS, SOLVERS

DATASETS = ("ffhq", "imagenet", "faces64")

TASKS = (
    *("super_resolution", "box_inpainting", "random_inpainting", "gaussian_blur", "motion_blur"),
    *("phase_retrieval", "nonlinear_blur", "high_dynamic_range"),
)
# The network of the nonlinear blur wants 256x256 images; at 64x64 an analytic nonlinear blur takes its place.
STAND_INS = {"faces64": {"nonlinear_blur": "camera_blur"}}
# Restarts, of which the paper keeps the best by PSNR against the truth: so its pick is kept here, marked, beside the
# one that a user could make.
RUNS = {"phase_retrieval": 5}
OURS = {
    "label": None,
    "dtype": "float32",
}  # options that the paper has no choice of, and what they are without being said
EVALUATIONS_PER_STEP = {"daps": DAPS.ode_steps}  # of the network, where it is not one


@dataclasses.dataclass(frozen=True)
class Study:
    """One table or figure of the paper.

    Args:
        title: what it shows.
        tasks: its rows.
        solvers: its columns; the first is the paper's method.
        sigmas: noise levels; empty for that of the presets, 0.05.
        steps: network evaluations; empty for the published numbers of steps.
        metrics: what it reports.
        changes: as in `Plan`.
    """

    title: str
    tasks: tuple[str, ...]
    solvers: tuple[str, ...]
    sigmas: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ("psnr_paper", "ssim_paper", "lpips_alex", "misfit", "misfit_excess")
    changes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


# To the paper's columns table1 adds two more solvers. The sweeps are its Figures 3 and 5, which print no numbers: their
# levels and counts, and which of the linear tasks they show, are our choice.
STUDIES = {
    "table1": Study("all tasks and methods", TASKS, ("ddiff", "daps", "dps", "diffpir", "red_diff", "ddiff_hqs")),
    "table2": Study(
        "ablation of the noise and of the dual variable",
        TASKS,
        ("ddiff", "ddiff_hqs", "diff_pnp_admm", "diff_pnp_hqs"),
    ),
    "noise": Study(
        "quality against the noise level",
        ("super_resolution", "gaussian_blur", "phase_retrieval"),
        ("ddiff", "daps", "dps", "diffpir"),
        sigmas=(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    ),
    "steps": Study(
        "quality against the cost",
        ("super_resolution", "gaussian_blur"),
        ("ddiff", "daps", "ddiff_hqs", "diffpir", "dps"),
        steps=(20, 50, 100, 250, 999),
        # Its own quadratic spacing repeats timesteps beyond 500 steps.
        changes={"diffpir": {"spacing": "uniform"}},
    ),
}


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """A study made ready to run.

    Args:
        study: key of `STUDIES`.
        dataset: of the images.
        plan: what to evaluate.
        differences: what differs from the paper, in words.
        same_protocol: whether the differences leave single numbers comparable, as fewer images do.
    """

    study: str
    dataset: str
    plan: Plan
    differences: tuple[str, ...]
    same_protocol: bool


def plan_study(
    name: str,
    dataset: str,
    images: Sequence[str],
    folder: Path,
    *,
    tasks: Sequence[str] = (),
    solvers: Sequence[str] = (),
    steps: Sequence[int] = (),
    values: str = "published",
    **options: Any,
) -> Reproduction:
    """Plan one table or figure.

    Args:
        name: key of `STUDIES`.
        dataset: one of `DATASETS`: says the presets.
        images: clean images.
        folder: for masks that the paper fixes.
        tasks: only these.
        solvers: only these.
        steps: network evaluations instead of the published number of steps.
        values: "published", or "default" for our choice of hyper-parameters.
        options: of `Plan`.

    Raises:
        ValueError: an unknown name.
    """
    check_name("study", name, STUDIES)
    check_name("dataset", dataset, DATASETS)
    study = STUDIES[name]
    stand_ins = STAND_INS.get(dataset, {})
    wanted = tuple(tasks) or tuple(stand_ins.get(task, task) for task in study.tasks)
    for task in wanted:
        check_name(f"task for {dataset}", task, presets()[dataset])
    for solver in solvers:
        check_name("solver", solver, SOLVERS)
    chosen = tuple(solvers) or tuple(solver for solver in study.solvers if solver in SOLVERS)
    differences = []
    absent = [solver for solver in study.solvers if solver not in SOLVERS]
    if absent and not solvers:
        differences.append(f"this version has no {', '.join(absent)}")
    if dataset == "faces64":
        differences.append("another data set and another prior than the paper's, 64x64")
        differences += [f"{ours} stands for {theirs}" for theirs, ours in stand_ins.items() if ours in wanted]
    if values != "published":
        differences.append(f"the {values} values of this library instead of the published ones")
    if steps:
        differences.append(f"{', '.join(map(str, steps))} network evaluations instead of the published number")
    if options.get("subset") is not None:
        differences.append(f"the first {options['subset']} of the images only")
    changes = {solver: dict(values) for solver, values in study.changes.items() if solver in chosen}
    differences += [
        f"{solver} with {', '.join(f'{name} {value}' for name, value in values.items())}"
        for solver, values in changes.items()
    ]
    asked = options.pop("changes", {})
    for what, values_of in asked.items():
        changes[what] = {**changes.get(what, {}), **values_of}
    differences += [
        f"{what} with {', '.join(f'{name} {value}' for name, value in values.items())}, as asked for"
        for what, values in asked.items()
    ]
    other = {name: options[name] for name in OURS if options.get(name) not in (None, OURS[name])}
    differences += [f"{name} {value}" for name, value in other.items()]
    for task, path in _fixed_masks(dataset, wanted, folder).items():
        changes[task] = {"mask": path, **changes.get(task, {})}
    plan = Plan(
        images=tuple(images),
        tasks=wanted,
        solvers=chosen,
        sigmas=study.sigmas or (None,),
        steps=tuple(steps) or study.steps or (None,),
        evaluations_per_step={name: count for name, count in EVALUATIONS_PER_STEP.items() if name in chosen},
        runs={task: count for task, count in RUNS.items() if task in wanted},
        oracle=any(task in wanted for task in RUNS),
        preset=dataset,
        values=values,
        changes=changes,
        **options,
    )
    same_protocol = dataset != "faces64" and not steps and values == "published" and not asked and not other
    return Reproduction(name, dataset, plan, tuple(differences), same_protocol)


def _fixed_masks(dataset: str, tasks: Sequence[str], folder: Path) -> dict[str, Path]:
    """Write the masks that the released code uses for every image, where the images are of its size."""
    if dataset == "faces64":
        return {}
    from ddiff_jax.operators import released_box_mask, released_random_mask

    masks = {"box_inpainting": released_box_mask, "random_inpainting": released_random_mask}
    paths = {}
    for task, make in masks.items():
        if task in tasks:
            paths[task] = folder / "masks" / f"{task}.npy"
            paths[task].parent.mkdir(parents=True, exist_ok=True)
            image_files.write_array(paths[task], np.asarray(make()))
    return paths
