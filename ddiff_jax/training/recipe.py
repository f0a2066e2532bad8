"""How a prior is trained, as a value: network, objective, optimiser and averages, checked before anything runs."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from ddiff_jax.card import build_schedule
from ddiff_jax.levels import Schedule
from ddiff_jax.names import check_name
from ddiff_jax.noise import check_seed
from ddiff_jax.priors.network import SIGMA_DATA, Prediction

# What each prediction is trained on where nothing else is said: a schedule as cards have it.
OWN_SCHEDULES: dict[str, dict[str, Any]] = {
    "edm": {"name": "edm"},
    "flow": {"name": "flow"},
}
LINEAR: dict[str, Any] = {"name": "linear", "num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights but the images.

    Args:
        architecture: fields of `ddiff_jax.models.UNet`, channels included; 2 C outputs learn the variance of a
            sampler's step as well.
        image_shape: (H, W, C).
        steps: updates in all.
        prediction: what the network predicts.
        schedule: the noise levels, as on a card; None takes the linear schedule of 1000 timesteps for eps, v and x0,
            EDM's for edm and the straight path for flow.
        sigma_data: standard deviation of clean images, for edm.
        batch_size: images per update, over all devices.
        learning_rate: after the warm-up.
        warmup_steps: updates over which the rate rises from 0.
        decay_steps: updates at the end over which the rate falls to 0 in a straight line; 0 keeps it constant.
        clip_norm: largest norm of the gradient.
        weight_decay: of AdamW.
        beta2: of AdamW, how long squared gradients are remembered.
        linear_rank: principal directions of the linear denoiser that the network's output is added to; 0 is none.
        flip: mirror every image left to right half of the time.
        dtype: type of the network's computation; weights, norms, loss and optimiser are float32 always.
        averages: relative widths of the two averages of the weights that are kept, of which any other is made.
        average: relative width of the average that becomes the prior.
        seed: root of all random numbers: weights, order of the images, levels, noise and mirroring.

    Raises:
        ValueError: a value is outside its range, or they do not fit together.

    Source: Salimans and Ho 2022 for v; Karras et al. 2022 for edm; Karras et al. 2024, "Analyzing and improving the
        training dynamics of diffusion models", for the averages; Hu et al. 2024, "MiniCPM", for warm-up, constant rate
        and late decay.
    """

    architecture: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    steps: int
    prediction: Prediction = "v"
    schedule: Mapping[str, Any] | None = None
    sigma_data: float = SIGMA_DATA
    batch_size: int = 32
    learning_rate: float = 4e-4
    warmup_steps: int = 200
    decay_steps: int = 0
    clip_norm: float = 1.0
    weight_decay: float = 0.01
    beta2: float = 0.99
    linear_rank: int = 0
    flip: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    averages: tuple[float, float] = (0.05, 0.10)
    average: float = 0.10
    seed: int = 0

    def __post_init__(self):
        check_name("prediction", self.prediction, get_args(Prediction))
        if self.schedule is None:
            object.__setattr__(self, "schedule", OWN_SCHEDULES.get(self.prediction, LINEAR))
        build_schedule(self.schedule or {})  # says what is wrong with it
        check_seed(self.seed)
        for name in ("steps", "batch_size"):
            _check(name, getattr(self, name), 1, math.inf)
        for name in ("warmup_steps", "decay_steps", "weight_decay", "linear_rank"):
            _check(name, getattr(self, name), 0, math.inf)
        _check("warmup_steps + decay_steps", self.warmup_steps + self.decay_steps, 0, self.steps)
        for name in ("learning_rate", "clip_norm", "sigma_data"):
            _check(name, getattr(self, name), 1e-12, math.inf)
        _check("beta2", self.beta2, 0, 0.999999)
        for width in (*self.averages, self.average):
            _check("the relative width of an average", width, 1e-4, 0.28)
        if self.averages[0] >= self.averages[1]:
            raise ValueError(f"the two averages must have different widths, the shorter one first; got {self.averages}")

    @property
    def levels(self) -> Schedule:
        """The noise levels, built."""
        return build_schedule(self.schedule or {})

    @property
    def decay_start(self) -> int:
        """The update from which the rate falls."""
        return self.steps - self.decay_steps

    def as_dict(self) -> dict[str, Any]:
        """List the values as JSON holds them."""
        return dataclasses.asdict(self)


def _check(name: str, value: float | int, low: float | int, high: float | int) -> None:
    if not low <= value <= high or (isinstance(value, float) and math.isnan(value)):
        bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be {bounds}; got {value}")


@dataclasses.dataclass(frozen=True)
class Preset:
    """A network that is known to work, and values to train it with.

    Args:
        side: images are side x side.
        architecture: of the network, without channels.
        learn_variance: whether it also predicts the variance of a sampler's step.
        values: fields of `Recipe`.
        about: one line for people.
    """

    side: int
    architecture: Mapping[str, Any]
    learn_variance: bool
    values: Mapping[str, Any]
    about: str

    def recipe(self, channels: int, **changes: Any) -> Recipe:
        """Make the recipe for images with so many channels; runs of other lengths slow down in proportion."""
        outputs = channels * (2 if self.learn_variance else 1)
        architecture = {**self.architecture, "in_channels": channels, "out_channels": outputs}
        values = {**self.values, **changes}
        if "steps" in changes:
            share = self.values.get("decay_steps", 0) / self.values["steps"]
            lengths = {"decay_steps": round(share * values["steps"]), "warmup_steps": values["steps"] // 10}
            lengths["warmup_steps"] = min(lengths["warmup_steps"], self.values.get("warmup_steps", Recipe.warmup_steps))
            values = {**values, **lengths, **changes}
        return Recipe(architecture, (self.side, self.side, channels), **values)


PRESETS: dict[str, Preset] = {
    "tiny32": Preset(
        32,
        {"model_channels": 32, "channel_mult": (1, 2, 2), "attention_levels": (2,), "head_width": 32},
        False,
        {"steps": 2000, "decay_steps": 600, "learning_rate": 1e-3, "batch_size": 32, "linear_rank": 64},
        "32x32, 1.4 million parameters, for CPUs",
    ),
    "small64": Preset(
        64,
        {"model_channels": 32, "channel_mult": (1, 1, 2, 2), "attention_levels": (3,), "head_width": 32},
        False,
        {"steps": 6000, "decay_steps": 1500, "learning_rate": 1e-3, "batch_size": 16, "linear_rank": 64},
        "64x64, 1.5 million parameters",
    ),
    "faces64": Preset(
        64,
        {"model_channels": 32, "channel_mult": (1, 2, 4, 4), "attention_levels": (2,), "head_width": 32},
        True,
        {"steps": 100_000, "decay_steps": 30_000, "batch_size": 64},
        "64x64, 5.2 million parameters, the network of the packaged prior of faces",
    ),
    "adm256": Preset(
        256,
        {"model_channels": 128, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_levels": (4,), "head_width": 64},
        True,
        {
            **{"steps": 500_000, "decay_steps": 100_000, "batch_size": 64, "learning_rate": 1e-4},
            **{"warmup_steps": 2000, "dtype": "bfloat16"},
        },
        "256x256, 94 million parameters, the network that FFHQ's prior has, for accelerators",
    ),
}
