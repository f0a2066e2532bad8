"""The network and the samplers of deepinv, in a process of their own; `benchmarks/peers.py` installs and asks.

    python benchmarks/peers/deepinv_peer.py FOLDER

FOLDER holds `network.json` and `weights.safetensors` (our architecture and parameters), the factors `rows.npy` and
`columns.npy` of the operator, and arrays to work on. Every line of the input is a job in JSON, every answer a line that
begins with PEER. Images outside of this process are [N, H, W, C] in [-1, 1].

The network is deepinv's own `DiffUNet`: its blocks, its forward pass and its rule for the timestep of a noise level.
Only its constructor is replaced, which knows two sets of widths and not ours.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import deepinv as dinv
import numpy as np
import torch
from deepinv.models.diffunet import AttentionBlock, DiffUNet, ResBlock, TimestepEmbedSequential, normalization
from safetensors.numpy import load_file
from torch import Tensor, nn


def fill(layer: nn.Module, weights: dict[str, np.ndarray], name: str) -> None:
    """Copy one of our layers into one of theirs."""
    if f"{name}.scale" in weights:
        value = weights[f"{name}.scale"]
    else:
        kernel = weights[f"{name}.kernel"]  # [in, out] or [k, k, in, out]
        value = kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
    layer.weight.data = torch.tensor(value.copy()).reshape(layer.weight.shape)
    layer.bias.data = torch.tensor(weights[f"{name}.bias"])


class Network(DiffUNet):
    """deepinv's `DiffUNet` with our widths and weights."""

    def __init__(self, config: dict[str, Any], weights: dict[str, np.ndarray]):
        nn.Module.__init__(self)
        self.model_channels, self.num_classes, self.dtype = config["model_channels"], None, torch.float32
        self.weights, self.config = weights, config
        wide = 4 * self.model_channels
        self.time_embed = nn.Sequential(nn.Linear(self.model_channels, wide), nn.SiLU(), nn.Linear(wide, wide))
        fill(self.time_embed[0], weights, "time_1")
        fill(self.time_embed[2], weights, "time_2")
        last, count = len(config["channel_mult"]) - 1, config["num_res_blocks"]
        blocks = [[self._conv("conv_in")]]
        for level in range(last + 1):
            blocks += [self._attended(f"down_{level}_{i}", level) for i in range(count)]
            blocks += [[self._res(f"down_{level}_resample", down=True)]] if level < last else []
        self.input_blocks = nn.ModuleList(TimestepEmbedSequential(*layers) for layers in blocks)
        middle = [self._res("middle_0"), self._attention("middle_attention"), self._res("middle_1")]
        self.middle_block = TimestepEmbedSequential(*middle)
        blocks = []
        for level in reversed(range(last + 1)):
            blocks += [self._attended(f"up_{level}_{i}", level) for i in range(count + 1)]
            blocks[-1] += [self._res(f"up_{level}_resample", up=True)] if level else []
        self.output_blocks = nn.ModuleList(TimestepEmbedSequential(*layers) for layers in blocks)
        norm = normalization(len(weights["norm_out.scale"]))
        fill(norm, weights, "norm_out")
        self.out = nn.Sequential(norm, nn.SiLU(), self._conv("conv_out"))
        del self.weights, self.config
        # Its table of noise levels, betas from 1e-4 to 0.02 in 1000 steps, is the one that our prior was trained with.
        below, signal = self.get_alpha_prod()[-2:]
        self.register_buffer("sqrt_1m_alphas_cumprod", below)
        self.register_buffer("sqrt_alphas_cumprod", signal)
        self.eval().requires_grad_(False)

    def _conv(self, name: str) -> nn.Conv2d:
        size, _, width, features = self.weights[f"{name}.kernel"].shape
        conv = nn.Conv2d(width, features, size, padding=size // 2)
        fill(conv, self.weights, name)
        return conv

    def _res(self, name: str, **resample: bool) -> ResBlock:
        width, features = self.weights[f"{name}.conv_1.kernel"].shape[2:]
        shift = self.config["scale_shift_norm"]
        block = ResBlock(
            width, 4 * self.model_channels, 0.0, out_channels=features, use_scale_shift_norm=shift, **resample
        )
        layers = {"norm_1": block.in_layers[0], "conv_1": block.in_layers[2], "emb": block.emb_layers[1]}
        layers |= {"norm_2": block.out_layers[0], "conv_2": block.out_layers[3]}
        if f"{name}.skip.kernel" in self.weights:
            layers["skip"] = block.skip_connection
        for part, layer in layers.items():
            fill(layer, self.weights, f"{name}.{part}")
        return block

    def _attention(self, name: str) -> AttentionBlock:
        new = self.config["attention_order"] == "new"
        channels = len(self.weights[f"{name}.norm.scale"])
        block = AttentionBlock(
            channels, num_head_channels=self.config["head_width"], use_new_attention_order=new
        )  # the head's width is a parameter of the block, so ours of 32 fits where its networks have 64
        for part, layer in (("norm", block.norm), ("qkv", block.qkv), ("out", block.proj_out)):
            fill(layer, self.weights, f"{name}.{part}")
        return block

    def _attended(self, name: str, level: int) -> list[nn.Module]:
        attends = level in self.config["attention_levels"]
        return [self._res(name)] + ([self._attention(f"{name}_attention")] if attends else [])


NAMES = ("eager", "channels_last", "compiled")


def variant(name: str, config: dict[str, Any], weights: dict[str, np.ndarray]) -> Network:
    """Build the network as it comes, with channels last, or with that and compiled; all are deepinv's code."""
    net = Network(config, weights)
    if name != "eager":
        net = net.to(memory_format=torch.channels_last)
    if name == "compiled":
        # The network alone: around it deepinv turns noise levels into tensors, which would compile for each anew.
        net.forward_diffusion = torch.compile(net.forward_diffusion, dynamic=False)
    return net


def super_resolution(rows: np.ndarray, columns: np.ndarray, sigma: float) -> dinv.physics.DecomposablePhysics:
    """Build y = R x C^T per channel with its singular value decomposition, which DDRM needs and the proxes use.

    deepinv's own downsampling is a circular convolution without a decomposition; this is our operator to the digit.
    """
    (u_r, s_r, v_r), (u_c, s_c, v_c) = (np.linalg.svd(a.astype(np.float64)) for a in (rows, columns))
    sides = (len(v_r), len(v_c))
    values = np.zeros((1, 3, *sides), np.float32)
    values[:, :, : len(s_r), : len(s_c)] = np.outer(s_r, s_c)
    u_r, v_r, u_c, v_c = (torch.tensor(a.astype(np.float32)) for a in (u_r, v_r, u_c, v_c))  # v is V^T
    kept = (slice(None), slice(None), slice(len(s_r)), slice(len(s_c)))

    def u_adjoint(y: Tensor) -> Tensor:
        padded = y.new_zeros(*y.shape[:2], *sides)
        padded[kept] = u_r.T @ y @ u_c
        return padded

    return dinv.physics.DecomposablePhysics(
        U=lambda c: u_r @ c[kept] @ u_c.T,
        U_adjoint=u_adjoint,
        V=lambda c: v_r.T @ c @ v_c,
        V_adjoint=lambda x: v_r @ x @ v_c.T,
        mask=torch.tensor(values),
        img_size=(3, *sides),
        noise_model=dinv.physics.GaussianNoise(sigma=sigma),
    )


def sampler(method: str, steps: int, net: Network, sigma: float) -> Any:
    """Build a sampler with the values that deepinv gives it; sigma is that of images in [0, 1].

    What is not said is the default of its constructor (deepinv/sampling/diffusion.py): DDRM eta 0.85, eta_b 1;
    DiffPIR lambda 7, zeta 0.1, which its example demo_diffpir.py uses with zeta 0.3; DPS weight 1 on the residual norm.
    """
    if method == "ddrm":  # noise levels from 1 to 0 in equal steps, as its constructor has for 100 of them
        return dinv.sampling.DDRM(net, sigmas=np.linspace(1, 0, steps))
    if method == "ddrm_levels":  # the network's own levels, as the code of the paper walks them; not deepinv's default
        t = np.arange(steps)[::-1] * 1000 // steps
        levels = (net.sqrt_1m_alphas_cumprod / net.sqrt_alphas_cumprod).numpy().astype(float)
        return dinv.sampling.DDRM(net, sigmas=levels[t] / 2)
    if method in ("diffpir", "diffpir_0.3"):
        zeta = 0.3 if method.endswith("0.3") else 0.1
        fidelity = dinv.optim.data_fidelity.L2()
        return dinv.sampling.DiffPIR(net, fidelity, sigma=sigma, max_iter=steps, zeta=zeta)
    if method in ("dps", "dps_annealed"):  # "annealed" with weight 1 is what demo_noisy_data_fidelity.py takes
        guidance = "annealed" if method.endswith("annealed") else "norm"
        return dinv.sampling.DPS(net, num_steps=steps + 1, guidance=guidance)  # one evaluation fewer than its points
    if method == "pigdm":  # the walk of DPS, with the guidance and the weight of demo_noisy_data_fidelity.py
        dps = dinv.sampling.DPS(net, num_steps=steps + 1)
        fidelity = dinv.sampling.PiGDMDataFidelity(denoiser=net, weight=1.0)
        return dinv.sampling.PosteriorDiffusion(fidelity, denoiser=net, sde=dps.sde, solver=dps.solver)
    raise ValueError(f"unknown method {method!r}")


def main() -> None:
    """Answer jobs until the input ends."""
    folder = Path(sys.argv[1])
    config = json.loads((folder / "network.json").read_text())
    sigma = config["sigma_y"] / 2  # of images in [0, 1]
    torch.set_num_threads(config["threads"])
    weights = load_file(folder / "weights.safetensors")
    nets = {name: variant(name, config, weights) for name in NAMES}
    physics = super_resolution(np.load(folder / "rows.npy"), np.load(folder / "columns.npy"), sigma)

    def read(name: str) -> Tensor:
        return torch.tensor(np.load(folder / name).transpose(0, 3, 1, 2)).contiguous()

    def evaluate(net: Network, x: Tensor, t: Tensor) -> Tensor:
        if job["variant"] != "eager":
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return net.forward_diffusion(x, t)

    for line in sys.stdin:
        job = json.loads(line)
        answer: dict[str, Any] = {}
        if job["do"] == "hello":
            answer = {"deepinv": dinv.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
        elif job["do"] == "network":
            net, x, t = nets[job["variant"]], read(job["x"]), torch.tensor(np.load(folder / job["t"]))
            begin = time.perf_counter()
            out = evaluate(net, x, t)
            answer["seconds"] = time.perf_counter() - begin
            np.save(folder / job["output"], out[:, :3].numpy().transpose(0, 2, 3, 1))
        elif job["do"] == "forward":
            x = physics.A((read(job["x"]) + 1) / 2)
            np.save(folder / job["output"], (2 * x - 1).numpy().transpose(0, 2, 3, 1))
        elif job["do"] == "solve":
            y, model = (read(job["y"]) + 1) / 2, sampler(job["method"], job["steps"], nets[job["variant"]], sigma)
            torch.manual_seed(job["seed"])
            begin = time.perf_counter()
            x = model(y, physics)
            answer["seconds"] = time.perf_counter() - begin
            np.save(folder / job["output"], (2 * x - 1).float().detach().numpy().transpose(0, 2, 3, 1))
        print("PEER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
