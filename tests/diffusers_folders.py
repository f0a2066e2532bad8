"""Small networks of diffusers, in folders as it saves them."""

import json

import numpy as np
from safetensors.numpy import save_file
from weights import synthetic

SETTINGS = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 4,
    "add_attention": False,
}
SCHEDULER = {"_class_name": "DDPMScheduler"}
PIPELINE = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def shapes_of(settings, *, old=False):
    """List names and shapes of a UNet2DModel; `old` names the layers of attention as in 2022."""
    shapes, widths = {}, settings["block_out_channels"]
    count, last = settings.get("layers_per_block", 2), len(widths) - 1
    width = settings.get("time_embedding_dim") or 4 * widths[0]
    shift = settings.get("resnet_time_scale_shift", "default") != "default"

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def residual(name, i, o):
        layer(f"{name}.norm1", i)
        layer(f"{name}.conv1", o, i, 3, 3)
        layer(f"{name}.time_emb_proj", 2 * o if shift else o, width)
        layer(f"{name}.norm2", o)
        layer(f"{name}.conv2", o, o, 3, 3)
        if i != o:
            layer(f"{name}.conv_shortcut", o, i, 1, 1)

    def attend(name, c, norm=True):
        if norm:
            layer(f"{name}.group_norm", c)
        for part in ("query", "key", "value", "proj_attn") if old else ("to_q", "to_k", "to_v", "to_out.0"):
            layer(f"{name}.{part}", *((c, c, 1, 1) if old == "convolutions" else (c, c)))

    def resample(name, kind, c, field):
        if "Resnet" in kind or ("Attn" in kind and settings.get(field) == "resnet"):
            residual(name, c, c)
        else:
            layer(f"{name}.conv", c, c, 3, 3)

    layer("conv_in", widths[0], settings.get("in_channels", 3), 3, 3)
    layer("time_embedding.linear_1", width, widths[0])
    layer("time_embedding.linear_2", width, width)
    if settings.get("num_class_embeds"):
        shapes["class_embedding.weight"] = (settings["num_class_embeds"], width)
    c, skips = widths[0], [widths[0]]
    for level, kind in enumerate(settings["down_block_types"]):
        for i in range(count):
            residual(f"down_blocks.{level}.resnets.{i}", c, widths[level])
            c = widths[level]
            if "Attn" in kind:
                attend(f"down_blocks.{level}.attentions.{i}", c)
            skips.append(c)
        if level < last:
            resample(f"down_blocks.{level}.downsamplers.0", kind, c, "downsample_type")
            skips.append(c)
    if settings.get("mid_block_type", "") is not None:
        residual("mid_block.resnets.0", c, c)
        if settings.get("add_attention", True):
            attend("mid_block.attentions.0", c, not shift or settings.get("attn_norm_num_groups") is not None)
        residual("mid_block.resnets.1", c, c)
    for n, kind in enumerate(settings["up_block_types"]):
        for i in range(count + 1):
            residual(f"up_blocks.{n}.resnets.{i}", c + skips.pop(), widths[last - n])
            c = widths[last - n]
            if "Attn" in kind:
                attend(f"up_blocks.{n}.attentions.{i}", c)
        if n < last:
            resample(f"up_blocks.{n}.upsamplers.0", kind, c, "upsample_type")
    layer("conv_norm_out", c)
    layer("conv_out", settings.get("out_channels", 3), c, 3, 3)
    return shapes


def write_json(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))


def write_weights(path, settings=SETTINGS, factor=1.0, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.float32(factor) * array for name, array in synthetic(shapes_of(settings, **more)).items()}
    save_file(tensors, path)


def write_parts(folder, settings=SETTINGS):
    """Write weights in two parts and their index; returns the index's path."""
    names = list(tensors := synthetic(shapes_of(settings)))
    places = {}
    for n, part in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model-{n:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / f"{WEIGHTS}.index.json"
    write_json(index, {"metadata": {"total_size": 1}, "weight_map": places})
    return index


def write_pipeline(folder, settings=SETTINGS, scheduler=SCHEDULER, network="unet"):
    """Write a whole pipeline; returns the folder."""
    write_json(folder / "model_index.json", PIPELINE)
    write_json(folder / network / "config.json", settings)
    if scheduler is not None:
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_weights(folder / network / WEIGHTS, settings)
    return folder
