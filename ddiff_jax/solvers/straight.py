"""What solvers share that walk the straight path from noise to image, on whatever levels the prior knows."""

import numpy as np

from ddiff_jax.levels import Level, Schedule
from ddiff_jax.priors.base import Prior, predict
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.types import Column, Image


@pytree_dataclass
class OnPath:
    """Where a step stands on the path x_t = t x_0 + (1 - t) n.

    Args:
        t: 0 is noise alone and 1 the image, the time of flow matching; `FlowSchedule` lists s = 1 - t.
        level: the prior's own level with the same noise-to-signal ratio (1 - t) / t.
        gain: gain x_t is x_t as the prior has it there.
    """

    t: Column
    level: Level
    gain: Column

    def denoise(self, prior: Prior, x_t: Image) -> Image:
        """Estimate E[x_0 | x_t], not clipped if the prior can tell it so."""
        return predict(prior, self.gain * x_t, self.level)[0]


def straight_path(schedule: Schedule, num_steps: int) -> OnPath:
    """List the levels t = 0, 1 / num_steps, ..., 1 - 1 / num_steps of the straight path.

    A flow network is told the same times, scaled as it wants them. Beyond the noisiest level of the schedule, as at
    t = 0, the prior is asked at that one, with the same noise.

    Args:
        schedule: whose levels the prior knows.
        num_steps: at least 1.
    """
    t = np.arange(num_steps, dtype=np.float64) / num_steps
    level = Level(t, 1 - t, t)
    own = schedule.at(level.ratio)
    is_noisy = level.sigma > level.signal  # by the noise there, since the signal may be 0, and the other way round
    return OnPath(t, own, np.where(is_noisy, own.sigma, own.signal) / np.where(is_noisy, level.sigma, level.signal))
