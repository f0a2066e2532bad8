"""The networks of EDM a second time: names and shapes of their tensors, and what they compute, name by name."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def edm_shapes(
    side,
    base,
    mult,
    blocks,
    attention,
    *,
    song=True,
    channels=3,
    outputs=None,
    labels=0,
    augment=0,
    noise=1,
    fourier=False,
    taps=2,
    encoder="standard",
    decoder="standard",
    emb=4,
):
    """List the tensors of a SongUNet or DhariwalUNet in the order of its file, `model.` left out."""
    shapes, last = {}, len(mult) - 1
    width_emb, width_noise = emb * base, noise * base if song else base
    outputs = outputs or channels

    def layer(name, out, *rest, bias=True):
        shapes[f"{name}.weight"] = (out, *rest)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def block(name, cin, cout, *, resample=False, attend=False):
        layer(f"{name}.norm0", cin)
        layer(f"{name}.conv0", cout, cin, 3, 3)
        if resample:
            shapes[f"{name}.conv0.resample_filter"] = (1, 1, taps, taps)
        layer(f"{name}.affine", cout if song else 2 * cout, width_emb)
        layer(f"{name}.norm1", cout)
        layer(f"{name}.conv1", cout, cout, 3, 3)
        if cin != cout or (song and resample):
            layer(f"{name}.skip", cout, cin, 1, 1)
        if resample:
            shapes[f"{name}.skip.resample_filter"] = (1, 1, taps, taps)
        if attend and (song or cout >= 64):
            layer(f"{name}.norm2", cout)
            layer(f"{name}.qkv", 3 * cout, cout, 1, 1)
            layer(f"{name}.proj", cout, cout, 1, 1)

    if fourier:
        shapes["map_noise.freqs"] = (width_noise // 2,)
    if labels and song:
        layer("map_label", width_noise, labels)
    if augment:
        layer("map_augment", width_noise if song else base, augment, bias=False)
    layer("map_layer0", width_emb, width_noise)
    layer("map_layer1", width_emb, width_emb)
    if labels and not song:
        layer("map_label", width_emb, labels, bias=False)
    c, image, skips = channels, channels, []
    for level, m in enumerate(mult):
        prefix = f"enc.{side >> level}x{side >> level}"
        if level == 0:
            c = base if song else base * m
            layer(f"{prefix}_conv", c, channels, 3, 3)
        else:
            block(f"{prefix}_down", c, c, resample=True)
            if encoder == "residual":
                layer(f"{prefix}_aux_residual", c, image, 3, 3)
                shapes[f"{prefix}_aux_residual.resample_filter"] = (1, 1, taps, taps)
                image = c
            if encoder == "skip":
                shapes[f"{prefix}_aux_down.resample_filter"] = (1, 1, taps, taps)
                layer(f"{prefix}_aux_skip", c, image, 1, 1)
        skips.append(c)
        for i in range(blocks):
            block(f"{prefix}_block{i}", c, base * m, attend=side >> level in attention)
            c = base * m
            skips.append(c)
    for level in range(last, -1, -1):
        prefix, m = f"dec.{side >> level}x{side >> level}", mult[level]
        if level == last:
            block(f"{prefix}_in0", c, c, attend=True)
            block(f"{prefix}_in1", c, c)
        else:
            block(f"{prefix}_up", c, c, resample=True)
        for i in range(blocks + 1):
            attend = side >> level in attention and (not song or i == blocks)
            block(f"{prefix}_block{i}", c + skips.pop(), base * m, attend=attend)
            c = base * m
        if song and (level == 0 or decoder == "skip"):
            if level != last and decoder == "skip":
                shapes[f"{prefix}_aux_up.resample_filter"] = (1, 1, taps, taps)
            layer(f"{prefix}_aux_norm", c)
            layer(f"{prefix}_aux_conv", outputs, c, 3, 3)
    if not song:
        layer("out_norm", c)
        layer("out_conv", outputs, c, 3, 3)
    return shapes


def tensors_of(shapes, seed=0):
    """Draw weights of a network; filters are those that images are resampled with."""
    random, made = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape) / math.sqrt(max(math.prod(shape[1:]), 1))
        if name.endswith("resample_filter"):
            row = np.asarray((1, 1) if shape[-1] == 2 else (1, 3, 3, 1))
            values = (np.outer(row, row) / row.sum() ** 2).reshape(shape)
        elif len(shape) == 1:
            values = 0.2 * values + (1 if "norm" in name and name.endswith("weight") else 0)
        made[name] = values.astype(np.float32)
    return made


def conv(x, w, pad, stride=1):
    return jax.lax.conv_general_dilated(x, w, (stride, stride), [(pad, pad)] * 2)


def down(x, f):
    n, c, h, w = x.shape
    flat = x.reshape(n * c, 1, h, w)
    return conv(flat, f, (f.shape[-1] - 1) // 2, 2).reshape(n, c, h // 2, w // 2)


def up(x, f):
    n, c, h, w = x.shape
    spread = jnp.zeros((n * c, 1, 2 * h - 1, 2 * w - 1)).at[:, :, ::2, ::2].set(x.reshape(n * c, 1, h, w))
    return conv(spread, 4 * f, f.shape[-1] - 1 - (f.shape[-1] - 1) // 2).reshape(n, c, 2 * h, 2 * w)


def run(tensors, x, t, y=None, *, group_width=4):
    """Compute a network's output [N, D, H, W] from x [N, C, H, W], tensor by tensor."""
    p = {k: jnp.asarray(v) for k, v in tensors.items()}
    song = "out_conv.weight" not in p
    gain = math.sqrt(0.5) if song else 1.0

    def dense(name, e):
        return e @ p[f"{name}.weight"].T + (p[f"{name}.bias"][None] if f"{name}.bias" in p else 0)

    def plane(name, h, pad):
        return conv(h, p[f"{name}.weight"], pad) + p[f"{name}.bias"][None, :, None, None]

    def norm(name, h):
        n, c = h.shape[:2]
        groups = min(32, c // group_width)
        g = h.reshape(n, groups, -1)
        g = (g - g.mean(-1, keepdims=True)) / jnp.sqrt(g.var(-1, keepdims=True) + (1e-6 if song else 1e-5))
        scale, shift = (p[f"{name}.{k}"][None, :, None, None] for k in ("weight", "bias"))
        return g.reshape(h.shape) * scale + shift

    def block(name, h):
        move = (lambda a: a) if f"{name}.conv0.resample_filter" not in p else (up if name.endswith("up") else down)
        extra = (p[f"{name}.conv0.resample_filter"],) if f"{name}.conv0.resample_filter" in p else ()
        u = plane(f"{name}.conv0", move(jax.nn.silu(norm(f"{name}.norm0", h)), *extra), 1)
        e = dense(f"{name}.affine", emb)[:, :, None, None]
        if song:
            u = jax.nn.silu(norm(f"{name}.norm1", u + e))
        else:
            scale, shift = jnp.split(e, 2, 1)
            u = jax.nn.silu(norm(f"{name}.norm1", u) * (1 + scale) + shift)
        h = move(h, *extra)
        h = plane(f"{name}.skip", h, 0) if f"{name}.skip.weight" in p else h
        h = gain * (h + plane(f"{name}.conv1", u, 1))
        if f"{name}.qkv.weight" in p:
            n, c, height, width = h.shape
            heads = 1 if song else c // 64
            qkv = plane(f"{name}.qkv", norm(f"{name}.norm2", h), 0).reshape(n, heads, c // heads, 3, height * width)
            q, k, v = (qkv[:, :, :, j] for j in range(3))
            w = jax.nn.softmax(jnp.einsum("nhdq,nhdk->nhqk", q, k) / math.sqrt(c // heads), axis=-1)
            h = gain * (h + plane(f"{name}.proj", jnp.einsum("nhqk,nhdk->nhdq", w, v).reshape(h.shape), 0))
        return h

    width = tensors["map_layer0.weight"].shape[1]
    if "map_noise.freqs" in p:
        phase = 2 * jnp.pi * t[:, None] * p["map_noise.freqs"][None]
    else:
        half = width // 2
        phase = t[:, None] * (1e-4 ** (jnp.arange(half) / (half - 1 if song else half)))[None]
    emb = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)][:: 1 if song else -1], 1)
    labels = jnp.zeros((1, 1)) if y is None else jax.nn.one_hot(y, tensors["map_label.weight"].shape[1])
    if song:
        emb = emb if y is None else emb + dense("map_label", labels * math.sqrt(labels.shape[1]))
        emb = jax.nn.silu(dense("map_layer1", jax.nn.silu(dense("map_layer0", emb))))
    else:
        emb = dense("map_layer1", jax.nn.silu(dense("map_layer0", emb)))
        emb = jax.nn.silu(emb if y is None else emb + dense("map_label", labels))

    names = dict.fromkeys(".".join(k.split(".")[:2]) for k in tensors if k.startswith(("enc.", "dec.")))
    h, image, result, skips, out = x, x, x, [], None
    for name in names:
        if name.endswith("_conv") and name.startswith("enc"):
            h = plane(name, h, 1)
            skips.append(h)
        elif name.endswith("aux_residual"):
            f = p[f"{name}.resample_filter"]
            r = conv(image, p[f"{name}.weight"], 1 + (f.shape[-1] - 1) // 2)
            n, c, height, wide = r.shape
            r = conv(r.reshape(n * c, 1, height, wide), f, 0, 2).reshape(n, c, *h.shape[2:])
            h = skips[-1] = image = gain * (h + r + p[f"{name}.bias"][None, :, None, None])
        elif name.endswith("aux_down"):
            image = down(image, p[f"{name}.resample_filter"])
        elif name.endswith("aux_skip"):
            h = skips[-1] = h + plane(name, image, 0)
        elif name.endswith("aux_up"):
            out = up(out, p[f"{name}.resample_filter"])
        elif name.endswith("aux_norm"):
            result = jax.nn.silu(norm(name, h))
        elif name.endswith("aux_conv"):
            out = plane(name, result, 1) if out is None else out + plane(name, result, 1)
        else:
            if h.shape[1] != tensors[f"{name}.norm0.weight"].shape[0]:
                h = jnp.concatenate([h, skips.pop()], 1)
            h = block(name, h)
            if name.startswith("enc"):
                skips.append(h)
    return out if song else plane("out_conv", jax.nn.silu(norm("out_norm", h)), 1)
