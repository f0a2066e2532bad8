"""The one table of metrics: what each is called, how its numbers are written, and which direction is better."""

import dataclasses

from ddiff_jax.metrics._fidelity import PROTOCOLS
from ddiff_jax.metrics._perceptual import BACKBONES


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric, as tables, pages and curves show it.

    Args:
        name: in records, tables and `measure`.
        quantity: what it is for people, such as "PSNR".
        variant: protocol or network; empty where there is one only.
        form: of its numbers, such as ".2f".
        higher_is_better: None where neither is.
        unit: such as "dB", or empty.
        principal: drawn and compared; the others stand in tables alone.
        general: defined for every operator; the others have a place only where they were measured.
    """

    name: str
    quantity: str
    variant: str
    form: str
    higher_is_better: bool | None
    unit: str = ""
    principal: bool = False
    general: bool = True

    @property
    def title(self) -> str:
        """Name it so that it cannot be mistaken for another."""
        return f"{self.quantity} ({self.variant})" if self.variant else self.quantity

    def number(self, value: float) -> str:
        """Write a value."""
        return format(value, self.form)

    def span(self, interval: tuple[float, float]) -> str:
        """Write an interval."""
        return f"{self.number(interval[0])} to {self.number(interval[1])}"

    def say(self, value: float) -> str:
        """Write a value in a sentence."""
        return " ".join(filter(None, (self.quantity, self.number(value), self.unit)))


_NETWORKS = {"alex": "AlexNet", "vgg": "VGG16"}
_MEASURED = (
    *(Metric(f"psnr_{p}", "PSNR", p, ".2f", True, unit="dB", principal=p == "paper") for p in PROTOCOLS),
    *(Metric(f"ssim_{p}", "SSIM", p, ".3f", True, principal=p == "paper") for p in PROTOCOLS),
    *(Metric(f"lpips_{b}", "LPIPS", _NETWORKS[b], ".3f", False, principal=True) for b in BACKBONES),
    Metric("misfit", "misfit", "", ".5f", None, principal=True),  # below the noise power it fits the noise
    Metric("misfit_excess", "misfit excess", "", "+.5f", None),
    # Only where the operator cannot tell some images apart; in the protocol "standard".
    Metric("psnr_resolved", "PSNR up to sign and turn", "standard", ".2f", True, unit="dB", general=False),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _MEASURED}
