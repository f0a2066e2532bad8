"""The prior that knows nothing, for solvers that ask none."""

from ddiff_jax.levels import Level, Schedule
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import linear_schedule
from ddiff_jax.types import Image, ImageShape


@pytree_dataclass
class NoPrior:
    """Say only which shape images have: what `TotalVariation` and the other classical solvers need of a prior.

    Args:
        image_shape: shape of the images, channels last.
    """

    image_shape: ImageShape = static_field()

    @property
    def schedule(self) -> Schedule:
        """The published noise levels, which nobody walks."""
        return linear_schedule()

    def denoise(self, x_t: Image, level: Level) -> Image:
        """Refuse.

        Raises:
            ValueError: always; there is nothing to denoise with.
        """
        raise ValueError(
            "NoPrior cannot denoise: it serves the solvers that ask no network (ZeroFilled, PseudoInverse, "
            "FilteredBackProjection, Tikhonov, TotalVariation, RichardsonLucy); give the others a prior, such as "
            'load_prior("faces64")'
        )
