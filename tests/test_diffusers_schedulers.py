"""Schedulers of diffusers say what noise a network was trained on: its levels, and what is predicted."""

from typing import Any

import numpy as np
import pytest

import ddiff_jax as dd
from convert_weights import diffusers_schedulers
from ddiff_jax.card import build_schedule

pytestmark = pytest.mark.once

TABLES = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "linear_zero_snr": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "squaredcos_zero_snr": {
        **{"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True, "prediction_type": "sample"}
    },
}


def chosen(scheduler, **flags):
    return diffusers_schedulers.choose({"_class_name": "DDIMScheduler", **scheduler}, **flags)


@pytest.mark.parametrize("name", TABLES)
def test_schedulers_have_the_levels_of_diffusers(golden, name):
    card, _ = chosen(TABLES[name])
    with np.load(golden("diffusers_schedules.npz")) as recorded:
        got, want = levels(card)[recorded["timesteps"]], recorded[name]
        np.testing.assert_allclose(got[:-1], want[:-1], rtol=3e-6)
        if name.endswith("zero_snr"):
            assert want[-1] == 0 and 0 < got[-1] <= 2**-24
        else:
            np.testing.assert_allclose(got[-1], want[-1], rtol=2e-5)  # 1 - 0.999 in float32


def levels(card):
    schedule = build_schedule(card["schedule"])
    assert isinstance(schedule, dd.VPSchedule)
    return np.asarray(schedule.alpha_bar)


def test_other_tables_of_schedulers():
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, 50))) * (0.02 - 1e-4) + 1e-4
    card, _ = chosen({"beta_schedule": "sigmoid", "num_train_timesteps": 50})
    np.testing.assert_allclose(levels(card), np.cumprod(1 - betas))
    card, _ = chosen({"trained_betas": betas.tolist(), "beta_schedule": "unknown"})
    np.testing.assert_allclose(levels(card), np.cumprod(1 - betas))
    card, _ = chosen({"trained_betas": np.linspace(1e-4, 0.02, 300).tolist()})
    assert card["schedule"]["name"] == "linear" and card["schedule"]["num_timesteps"] == 300


def test_noise_without_signal_is_left_out_where_the_noise_is_predicted():
    card, notes = chosen({"rescale_betas_zero_snr": True})
    assert len(levels(card)) == 999 and any("last level left out" in note for note in notes)
    assert len(levels(chosen({"rescale_betas_zero_snr": True}, prediction="v")[0])) == 1000
    card, _ = chosen({"rescale_betas_zero_snr": True, "prediction_type": "sample"}, prediction="eps")
    assert len(levels(card)) == 999 and card["prediction"] == "eps"


def test_flow_and_edm_schedulers_and_clipping():
    card, _ = chosen({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 500})
    assert card == {"prediction": "flow", "schedule": {"name": "flow", "time_scale": 500}}
    flow = {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
    assert chosen({**flow, "lambda_min_clipped": -float("inf")})[0]["prediction"] == "flow"
    card, _ = chosen({"_class_name": "EDMEulerScheduler", "sigma_data": 0.7})
    assert (card["prediction"], card["sigma_data"]) == ("edm", 0.7)
    assert build_schedule(card["schedule"]) == dd.EDMSchedule()
    card, _ = chosen({"clip_sample": False})
    assert card["clip"] is False
    assert chosen({"clip_sample_range": 2.0})[0]["clip"] is False
    card, notes = chosen({}, noise_schedule="cosine", num_timesteps=10)
    assert card["schedule"] == {"name": "cosine", "num_timesteps": 10} and card["prediction"] == "eps" and not notes


def test_schedulers_that_are_not_known_are_refused():
    cases = [
        ({"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler is not known"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "is not known"),
        ({"_class_name": 3}, "has no _class_name"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "of an EDM scheduler"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type continuous"),
        ({"beta_schedule": "laplace"}, "beta_schedule 'laplace' is not known"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction' is not known"),
        ({"num_train_timesteps": 1}, "at least 2"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps must be from 0"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps must be int"),
        ({"beta_end": float("nan")}, "beta_end must be from 0"),
        ({"trained_betas": [0.5, float("inf")]}, "trained_betas must be from 0"),
        ({"trained_betas": [0.5, 1.5]}, "trained_betas of the scheduler makes no"),
        ({"trained_betas": []}, "trained_betas of the scheduler makes no"),
    ]
    for scheduler, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            chosen(scheduler)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="give --prediction with another schedule"):
        chosen({"_class_name": "FlowMatchEulerDiscreteScheduler"}, noise_schedule="linear")
    incomplete: list[dict[str, Any]] = [{}, {"prediction": "v"}, {"noise_schedule": "linear"}]
    for flags in incomplete:
        with pytest.raises(ValueError, match="give --noise-schedule and --prediction"):
            diffusers_schedulers.choose(None, **flags)
    card, _ = diffusers_schedulers.choose(None, noise_schedule="linear", prediction="v")
    assert (card["schedule"]["name"], card["prediction"], card["clip"]) == ("linear", "v", True)
