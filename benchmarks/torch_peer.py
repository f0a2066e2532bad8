"""The same network, loop and training in PyTorch, for comparisons of speed and of results.

Written for the benchmarks: weights come from our parameters, memory is channels-last, and nothing is computed that the
loop does not need. `unet` takes our module and parameters; `restore` is DDiff as in `ddiff_jax/solvers/ddiff.py`, and
`Trainer` an update of the weights as in `ddiff_jax/training/state.py`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(params: Any, *, stride: int = 1) -> nn.Conv2d:
    kernel = np.asarray(params["kernel"])  # [k, k, in, out]
    size, _, width, features = kernel.shape
    conv = nn.Conv2d(width, features, size, stride=stride, padding=size // 2)
    conv.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1))
    conv.bias.data = torch.tensor(np.asarray(params["bias"]))  # pyright: ignore[reportOptionalMemberAccess] - it has one
    return conv


def _linear(params: Any) -> nn.Linear:
    kernel = np.asarray(params["kernel"])
    linear = nn.Linear(*kernel.shape)
    linear.weight.data = torch.tensor(kernel.T.copy())
    linear.bias.data = torch.tensor(np.asarray(params["bias"]))
    return linear


class _Norm(nn.GroupNorm):
    def __init__(self, params: Any):
        super().__init__(32, len(params["scale"]))
        self.weight.data = torch.tensor(np.asarray(params["scale"]))
        self.bias.data = torch.tensor(np.asarray(params["bias"]))


class _Res(nn.Module):
    def __init__(self, params: Any, scale_shift: bool, resample: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.norm_1, self.norm_2 = _Norm(params["norm_1"]), _Norm(params["norm_2"])
        self.conv_1, self.conv_2 = _conv(params["conv_1"]), _conv(params["conv_2"])
        self.emb = _linear(params["emb"])
        self.skip = _conv(params["skip"]) if "skip" in params else None
        self.scale_shift, self.resample = scale_shift, resample

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = F.silu(self.norm_1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv_1(h)
        e = self.emb(emb)[:, :, None, None].to(h.dtype)
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm_2(h) * (1 + scale) + shift
        else:
            h = self.norm_2(h + e)
        h = self.conv_2(F.silu(h))
        return (x if self.skip is None else self.skip(x)) + h


class _Attention(nn.Module):
    def __init__(self, params: Any, num_heads: int, legacy: bool):
        super().__init__()
        self.norm, self.qkv, self.out = _Norm(params["norm"]), _conv(params["qkv"]), _conv(params["out"])
        self.num_heads, self.legacy = num_heads, legacy

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).flatten(2)
        order = (self.num_heads, 3) if self.legacy else (3, self.num_heads)
        q, k, v = qkv.reshape(n, *order, c // self.num_heads, -1).unbind(2 if self.legacy else 1)
        h = F.scaled_dot_product_attention(*(a.transpose(-1, -2) for a in (q, k, v)))
        return x + self.out(h.transpose(-1, -2).reshape(n, c, height, width))


def _up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _down(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


class Unet(nn.Module):
    """The network of a `ddiff_jax.models.UNet`: residual resampling, no classes."""

    def __init__(self, module: Any, params: Any):
        super().__init__()
        if not module.resblock_updown or module.num_classes is not None:
            raise ValueError("this peer is written for networks with residual resampling and without classes")
        self.width = module.model_channels
        self.time_1, self.time_2 = _linear(params["time_1"]), _linear(params["time_2"])
        self.conv_in, self.conv_out = _conv(params["conv_in"]), _conv(params["conv_out"])
        self.norm_out = _Norm(params["norm_out"])
        self.blocks = nn.ModuleDict()
        for name, values in params.items():
            if name.endswith("attention"):
                channels = len(values["norm"]["scale"])
                heads = module.num_heads or channels // module.head_width
                self.blocks[name] = _Attention(values, heads, module.attention_order == "legacy")
            elif name.startswith(("down", "up", "middle")):
                resample = (_up if name.startswith("up") else _down) if name.endswith("resample") else None
                self.blocks[name] = _Res(values, module.scale_shift_norm, resample)
        self.levels, self.num_res_blocks = len(module.channel_mult), module.num_res_blocks
        self.attended = module.attention_levels
        half = self.width // 2
        self.register_buffer("frequencies", torch.exp(-math.log(10000) * torch.arange(half) / half))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map [N, C, H, W] and t [N] to the predicted noise and variance."""
        phase = t.float()[:, None] * self.frequencies[None]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript] - a buffer
        emb = F.silu(self.time_2(F.silu(self.time_1(torch.cat([phase.cos(), phase.sin()], dim=1)))))
        blocks = self.blocks
        h = self.conv_in(x)
        skips = [h]
        for level in range(self.levels):
            for i in range(self.num_res_blocks):
                h = blocks[f"down_{level}_{i}"](h, emb)
                if level in self.attended:
                    h = blocks[f"down_{level}_{i}_attention"](h)
                skips.append(h)
            if level != self.levels - 1:
                h = blocks[f"down_{level}_resample"](h, emb)
                skips.append(h)
        h = blocks["middle_1"](blocks["middle_attention"](blocks["middle_0"](h, emb)), emb)
        for level in reversed(range(self.levels)):
            for i in range(self.num_res_blocks + 1):
                h = blocks[f"up_{level}_{i}"](torch.cat([h, skips.pop()], dim=1), emb)
                if level in self.attended:
                    h = blocks[f"up_{level}_{i}_attention"](h)
            if level:
                h = blocks[f"up_{level}_resample"](h, emb)
        return self.conv_out(F.silu(self.norm_out(h)))


def unet(module: Any, params: Any, device: str) -> Unet:
    """Build the network with our weights."""
    return Unet(module, params).to(device=device, memory_format=torch.channels_last).eval()  # pyright: ignore - the stubs lack memory_format with device


def table(grid: Any) -> dict[str, list[float]]:
    """List the columns of DDiff's table of steps: t, gamma, signal, sigma_t, next_signal, w_eps, w_n."""
    columns = {"t": grid.level.time, "signal": grid.level.signal, "sigma_t": grid.level.sigma}
    columns |= {name: getattr(grid, name) for name in ("gamma", "next_signal", "w_eps", "w_n")}
    return {name: np.asarray(values).tolist() for name, values in columns.items()}


def restore(
    network: Callable[[Tensor, Tensor], Tensor],
    forward: Callable[[Tensor], Tensor],
    y: Tensor,
    shape: tuple[int, int, int, int],
    grid: dict[str, list[float]],
    length_scale: float,
    generator: torch.Generator,
    *,
    prediction: str = "eps",
    autocast: torch.dtype | None = None,
    x_init: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Run DDiff over the rows of our grid.

    Args:
        network: from `unet`, compiled or not.
        forward: the operator on [N, C, H, W].
        y: measurements.
        shape: of the images, [N, C, H, W].
        grid: from `table`.
        length_scale: what gamma is multiplied by for this image size.
        generator: draws the noise.
        prediction: what the network predicts, "eps" or "v".
        autocast: type of the network's computation where it differs from float32.
        x_init: first state.
        noise: draws to replay, [K, N, C, H, W].
    """
    device = y.device

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    x_t = draw() if x_init is None else x_init
    u = torch.zeros_like(x_t)
    for k, t in enumerate(grid["t"]):
        row = {name: values[k] for name, values in grid.items()}
        with torch.no_grad(), torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            out = network(x_t.contiguous(memory_format=torch.channels_last), torch.full(shape[:1], t, device=device))[
                :, : shape[1]
            ].float()
        if prediction == "v":
            z = row["signal"] * x_t - row["sigma_t"] * out
        else:
            z = (x_t - row["sigma_t"] * out) / row["signal"]
        z = z.clamp(-1, 1)
        v = (z - u).requires_grad_()
        value = 0.5 * (forward(v) - y).square().sum()
        (g,) = torch.autograd.grad(value, v)
        with torch.no_grad():
            size = g.flatten(1).norm(dim=1).clamp_min(1e-20)[:, None, None, None]
            x = v - row["gamma"] * length_scale * g / size
            eps_hat = (x_t - row["signal"] * x) / row["sigma_t"]
            x_t = row["next_signal"] * (x + u) + row["w_eps"] * eps_hat
            if row["w_n"]:
                x_t = x_t + row["w_n"] * (draw() if noise is None else noise[k])
            u = u + x - z
    return x_t


def separable(row_factor: np.ndarray, col_factor: np.ndarray, device: str) -> Callable[[Tensor], Tensor]:
    """Build a separable operator, y = R x C^T per channel, from our factors."""
    rows, cols = (torch.tensor(np.asarray(a), device=device) for a in (row_factor, col_factor))
    return lambda x: torch.einsum("ph,nchw,qw->ncpq", rows, x, cols)


def masked(mask: np.ndarray, device: str) -> Callable[[Tensor], Tensor]:
    """Build inpainting from our mask [H, W, 1]."""
    kept = torch.tensor(np.asarray(mask).transpose(2, 0, 1), device=device)
    return lambda x: kept * x


class Trainer:
    """AdamW on the loss of v, with clipping and two averages of the weights.

    Args:
        network: from `unet`; it is trained in place.
        signal: of every timestep, float32 [T].
        sigma: as signal.
        rates: learning rate of the first updates, of which the last stays.
        beta2: of AdamW.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient.
        shares: how much of each average stays at an update.
        autocast: type of the network's computation where it differs from float32.
        compiled: whether PyTorch compiles the network.
    """

    def __init__(
        self,
        network: Unet,
        signal: np.ndarray,
        sigma: np.ndarray,
        *,
        rates: list[float],
        beta2: float,
        weight_decay: float,
        clip_norm: float,
        shares: tuple[float, ...],
        autocast: torch.dtype | None = None,
        compiled: bool = False,
    ):
        self._params = list(network.train().parameters())
        self._device = self._params[0].device
        self._network: Any = torch.compile(network) if compiled else network
        self._signal, self._sigma = (torch.tensor(a, device=self._device) for a in (signal, sigma))
        self._optimiser = torch.optim.AdamW(
            self._params, lr=rates[0], betas=(0.9, beta2), weight_decay=weight_decay, fused=True
        )
        self._rates, self._clip_norm, self._shares, self._autocast = rates, clip_norm, shares, autocast
        self._averages = [[p.detach().clone() for p in self._params] for _ in shares]
        self._updates = 0

    def draw(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw mirrored images, noise and timesteps for 8-bit images [N, C, H, W]."""
        x_0 = batch.to(self._device).float() / 127.5 - 1
        mirrored = torch.rand(len(x_0), 1, 1, 1, device=self._device) < 0.5
        x_0 = torch.where(mirrored, x_0.flip(3), x_0)
        t = torch.randint(len(self._signal), (len(x_0),), device=self._device)
        return x_0, torch.randn_like(x_0), t

    def update(self, x_0: Tensor, n: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Make an update; return the loss and the norm of the gradient, still on the device."""
        signal, sigma = self._signal[t][:, None, None, None], self._sigma[t][:, None, None, None]
        x_t = (signal * x_0 + sigma * n).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, self._autocast or torch.bfloat16, enabled=self._autocast is not None):
            out = self._network(x_t, t)
        loss = (out.float() - (signal * n - sigma * x_0)).square().mean()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._params, self._clip_norm)
        for group in self._optimiser.param_groups:
            group["lr"] = self._rates[min(self._updates, len(self._rates) - 1)]
        self._optimiser.step()
        self._updates += 1
        with torch.no_grad():
            for average, share in zip(self._averages, self._shares, strict=True):
                torch._foreach_lerp_(average, self._params, 1 - share)
        return loss.detach(), norm.detach()
