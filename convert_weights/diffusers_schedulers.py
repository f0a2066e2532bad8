"""What a scheduler of diffusers says of the noise that a network was trained on; its sampler is left alone."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from convert_weights import schedules
from ddiff_jax.card import check_types
from ddiff_jax.files import quote
from ddiff_jax.limits import LARGEST
from ddiff_jax.priors.network import SIGMA_DATA

# What a scheduler may say: type and what holds where it says nothing.
SCHEDULER: dict[str, tuple[Any, Any]] = {
    "num_train_timesteps": (int, 1000),
    "beta_start": (float, 1e-4),
    "beta_end": (float, 0.02),
    "beta_schedule": (str, "linear"),
    "trained_betas": (list[float] | None, None),
    "prediction_type": (str, "epsilon"),
    "rescale_betas_zero_snr": (bool, False),
    "clip_sample": (bool, True),
    "clip_sample_range": (float, 1.0),
    "timestep_type": (str, "discrete"),
    "use_flow_sigmas": (bool, False),
}
EDM: dict[str, tuple[Any, Any]] = {
    "sigma_min": (float, 0.002),
    "sigma_max": (float, 80.0),
    "sigma_data": (float, SIGMA_DATA),
    "prediction_type": (str, "epsilon"),
}
TABLES = re.compile(r"(DDPM|DDIM|PNDM|DPMSolver|UniPC|Euler|Heun|LMS|DEIS|KDPM2)\w*Scheduler")
FLOWS = re.compile(r"FlowMatch(Euler|Heun)Discrete\w*Scheduler")
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
LAST = 2.0**-24  # stands for an alpha_bar of zero, as in diffusers' own Euler scheduler, where the one before is larger
FLAGS = ("eps", "v", "x0")


def choose(
    scheduler: Mapping[str, Any] | None,
    table: tuple[str, np.ndarray] | None = None,
    *,
    prediction: str | None = None,
    **flags: Any,
) -> tuple[dict[str, Any], list[str]]:
    """Choose what a card says of noise: as the flags say, else as the scheduler.

    Args:
        scheduler: its settings, None if there are none.
        table: name and numbers of a buffer in the file of weights.
        prediction: by a flag.
        flags: of the noise schedule, see `schedules.choose`.

    Returns:
        Entries of the card: prediction, schedule, clip, and sigma_data where it is needed; and notes.

    Raises:
        ValueError: there is no scheduler and flags do not say what is needed, or it is one that is not known.
    """
    if prediction not in (None, *FLAGS):
        raise ValueError(f"the prediction must be one of {', '.join(FLAGS)}; got {prediction!r}")
    own = {name: value for name, value in flags.items() if value is not None}
    if scheduler is None and not ((own.get("noise_schedule") or table is not None) and prediction):
        raise ValueError(
            "the folder has no scheduler_config.json, which says what noise the network was trained on; give "
            "--noise-schedule and --prediction"
        )
    found, notes = ({}, []) if scheduler is None else _read(scheduler, prediction)
    if own or scheduler is None:
        if prediction is None and found["prediction"] not in FLAGS:
            raise ValueError(
                f"the scheduler's noise schedule is that of prediction {found['prediction']}; give --prediction with "
                "another schedule, or neither"
            )
        made, said = schedules.choose(table, None, **own)
        found = {"clip": found.get("clip", True), "prediction": found.get("prediction"), "schedule": made}
        notes = [said] if said else []
    if prediction is not None:
        found["prediction"] = prediction
    return found, notes


def _read(scheduler: Mapping[str, Any], prediction: str | None) -> tuple[dict[str, Any], list[str]]:
    """Read the settings of a scheduler; a prediction by a flag counts instead of its own."""
    name = scheduler.get("_class_name")
    if not isinstance(name, str):
        raise ValueError("scheduler_config.json has no _class_name; give --noise-schedule and --prediction")
    said = _said(scheduler, SCHEDULER)
    is_flow = said["prediction_type"] == "flow_prediction" and said["use_flow_sigmas"]
    if FLOWS.fullmatch(name) or (is_flow and TABLES.fullmatch(name)):
        schedule = {"name": "flow", "time_scale": said["num_train_timesteps"]}
        return {"prediction": "flow", "schedule": schedule}, []
    if name.startswith("EDM"):
        return _read_edm(scheduler), []
    if not TABLES.fullmatch(name) or said["timestep_type"] != "discrete":
        kind = name if TABLES.fullmatch(name) is None else f"{name} with timestep_type {said['timestep_type']}"
        raise ValueError(
            f"the scheduler {quote(kind)} is not known; those with a table of noise levels (DDPM, DDIM, PNDM, "
            "DPMSolver, UniPC, Euler, Heun, LMS, DEIS, KDPM2), FlowMatchEulerDiscrete and EDM are. If it only samples, "
            "and the noise of the training is known, remove its file and give --noise-schedule and --prediction"
        )
    kind = said["prediction_type"]
    if kind not in PREDICTIONS:
        raise ValueError(f"prediction_type {quote(repr(kind))} is not known; known: {', '.join(PREDICTIONS)}")
    made, notes = _schedule(said, drops=(prediction or PREDICTIONS[kind]) == "eps")
    clips = said["clip_sample"] and said["clip_sample_range"] == 1
    if not clips:
        notes.append("clean images are not clipped to [-1, 1], as the scheduler has it")
    return {"prediction": PREDICTIONS[kind], "schedule": made, "clip": clips}, notes


def _said(scheduler: Mapping[str, Any], known: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Fill in what a scheduler does not say.

    Raises:
        ValueError: an entry is of another type, or a number that no scheduler has.
    """
    given = {name: scheduler[name] for name in known if name in scheduler}
    try:
        check_types(given, {name: hint for name, (hint, _) in known.items()})
        for name, value in given.items():
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float) and not 0 <= number <= LARGEST:
                    raise ValueError(f"{name} must be from 0 to {LARGEST}; got {quote(repr(number))}")
    except ValueError as error:
        raise ValueError(f"scheduler_config.json describes no noise: {error}") from error
    return {name: given.get(name, default) for name, (_, default) in known.items()}


def _read_edm(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    said = _said(scheduler, EDM)
    if said["prediction_type"] != "epsilon":
        raise ValueError(
            f"prediction_type {quote(repr(said['prediction_type']))} of an EDM scheduler is not known; known: epsilon"
        )
    ends = {name: float(said[name]) for name in ("sigma_min", "sigma_max")}
    return {"prediction": "edm", "schedule": {"name": "edm", **ends}, "sigma_data": float(said["sigma_data"])}


def _sigmoid(count: int, start: float, end: float) -> np.ndarray:
    return (end - start) / (1 + np.exp(-np.linspace(-6, 6, count))) + start


# Names of diffusers to those of ours, or to what computes beta.
NAMED = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
COMPUTED: dict[str, Callable[[int, float, float], np.ndarray]] = {"sigmoid": _sigmoid}


def _schedule(said: Mapping[str, Any], *, drops: bool) -> tuple[dict[str, Any], list[str]]:
    """Describe a table of noise levels for a card; `drops` leaves out a level without any signal."""
    kind, count, ends = said["beta_schedule"], said["num_train_timesteps"], (said["beta_start"], said["beta_end"])
    if count < 2:
        raise ValueError(f"num_train_timesteps must be at least 2; got {count}")
    if said["trained_betas"] is not None:
        kind = "trained_betas"
        made = _recognised(np.cumprod(1 - np.asarray(said["trained_betas"], np.float64)), kind)
    elif kind in COMPUTED:
        made = _recognised(np.cumprod(1 - COMPUTED[kind](count, *ends)), kind)
    elif kind == "squaredcos_cap_v2":
        made = {"name": NAMED[kind], "num_timesteps": count}
    elif kind in NAMED:
        made = schedules.linear(count, (float(ends[0]), float(ends[1])), NAMED[kind])
    else:
        raise ValueError(f"beta_schedule {quote(repr(kind))} is not known; known: {', '.join((*NAMED, *COMPUTED))}")
    notes = [f"noise schedule of the scheduler: {schedules.in_words(made)}"]
    if said["rescale_betas_zero_snr"]:
        made, notes = {"name": "table", "alpha_bar": _without_signal(schedules.table_of(made))}, []
        notes.append(f"noise schedule of the scheduler: {kind}, rescaled to end without signal")
        if drops:
            made["alpha_bar"].pop()
            notes.append("its last level left out: without signal the noise says nothing of the image")
    return made, notes


def _recognised(table: np.ndarray, kind: str) -> dict[str, Any]:
    try:
        return schedules.recognise(table)
    except ValueError as error:
        raise ValueError(f"{kind} of the scheduler makes no noise schedule: {error}") from error


def _without_signal(alpha_bar: np.ndarray) -> list[float]:
    """Shift and scale the signal so that none is left at the last level, where a tiny rest stands for it.

    Source: Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", algorithm 1.
    """
    signal = np.sqrt(alpha_bar)
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    *others, last = (signal[:-1] ** 2).tolist()
    return [*others, last, min(LAST, last / 4)]
