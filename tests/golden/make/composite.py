"""Makes the golden files of our composites: encoder, core and head written from their equations, in float64.

    python composite.py OUT

Needs torch, numpy and safetensors; runs on the processor. Convolutions and poolings are PyTorch's, log-mel frames, Mamba,
S4D and everything between are written out below, step by step, apart from the Rust code.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

OUT = pathlib.Path(sys.argv[1])
torch.set_num_threads(1)


def silu(v):
    return v / (1 + np.exp(-v))


def softplus(v):
    return np.log1p(np.exp(v))


def gelu(v):
    return v / 2 * (1 + torch.erf(torch.from_numpy(v / np.sqrt(2))).numpy())


def below(w, prefix):
    return {k[len(prefix):]: v for k, v in w.items() if k.startswith(prefix)}


def rms_norm(x, w):
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-5) * w


def layer_norm(x, w, bias):
    x = x - x.mean(-1, keepdims=True)
    return rms_norm(x, w) + bias


# Encoders: a step's input to a vector.

def conv_encoder(w, frames, pool):
    x = torch.from_numpy(frames)
    for i in range(sum(k.startswith("convs.") and k.endswith(".weight") for k in w)):
        kernel, bias = (torch.from_numpy(w[f"convs.{i}.{n}"]) for n in ["weight", "bias"])
        x = F.silu(F.conv2d(x, kernel, bias, stride=2, padding=1))
    pooled = torch.cat([x.mean((2, 3)), F.adaptive_avg_pool2d(x, pool).flatten(1)], 1).numpy()
    return pooled @ w["proj.weight"].T + w["proj.bias"]


def log_mel(samples, rate, frame, hop, bins):
    """Kaldi's fbank; frame t ends with sample (t + 1) hop, zeros in front."""
    fft = 1 << (frame - 1).bit_length()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / (frame - 1))

    def mel(f):
        return 1127 * np.log(1 + f / 700)

    edges = np.linspace(mel(20.0), mel(rate / 2), bins + 2)
    at = mel(np.arange(fft // 2) * rate / fft)
    up = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.maximum(0, np.minimum(up, down))
    padded = np.concatenate([np.zeros(frame - hop), samples])
    out = []
    for t in range(len(samples) // hop):
        f = padded[t * hop:t * hop + frame]
        f = f - f.mean()
        f = f - 0.97 * np.concatenate([f[:1], f[:-1]])
        power = np.abs(np.fft.rfft(f * window, fft)[:fft // 2]) ** 2
        out.append(np.log(np.maximum(bank @ power, 2.0 ** -23)))
    return np.array(out)


def mel_encoder(w, samples, front, rate, per_step):
    frames = log_mel(samples, rate, rate * front["frame_length_ms"] // 1000, rate * front["frame_shift_ms"] // 1000,
                     front["num_mel_bins"])
    frames = (frames - front["mean"]) / (2 * front["std"])
    return frames.reshape(-1, per_step * front["num_mel_bins"]) @ w["proj.weight"].T + w["proj.bias"]


# Mixers: one stream (T, D), and the state at its end.

def mamba(w, u, rate):
    (e, n), r, k = w["A_log"].shape, w["dt_proj.weight"].shape[1], w["conv1d.weight"].shape[2]
    xz = u @ w["in_proj.weight"].T
    padded = np.concatenate([np.zeros((k - 1, e)), xz[:, :e]])
    h, y = np.zeros((e, n)), []
    for t in range(len(u)):
        c = silu((padded[t:t + k].T * w["conv1d.weight"][:, 0]).sum(1) + w["conv1d.bias"])
        dt, b, read = np.split(w["x_proj.weight"] @ c, [r, r + n])
        delta = rate * softplus(w["dt_proj.weight"] @ dt + w["dt_proj.bias"])
        h = np.exp(-delta[:, None] * np.exp(w["A_log"])) * h + np.outer(delta * c, b)
        y.append(w["out_proj.weight"] @ ((h @ read + w["D"] * c) * silu(xz[t, e:])))
    return np.array(y), {"conv": padded[len(padded) - k + 1:].T, "ssm": h}


def s4d(w, u, rate):
    def pairs(name):
        return w[name][..., 0] + 1j * w[name][..., 1]

    a = -np.exp(w["layer.kernel.A_real"]) - 1j * w["layer.kernel.A_imag"]
    dt = rate * np.exp(w["layer.kernel.inv_dt"])
    da = np.exp(dt * a)
    db = (da - 1) / a * pairs("layer.kernel.B")[0]
    c, x, y = pairs("layer.kernel.C")[0], np.zeros_like(a), []
    for step in u:
        x = da * x + db * step[:, None]
        v = gelu(2 * (c * x).sum(1).real + w["layer.D"][0] * step)
        v, gate = np.split(w["output_linear.0.weight"] @ v + w["output_linear.0.bias"], 2)
        y.append(v / (1 + np.exp(-gate)))
    return np.array(y), {"ssm": np.stack([x.real, x.imag], -1)}


def network(w, vectors, mixer, difference, rate):
    """Vectors (T, F) to scores; the state."""
    states = {}
    if difference:
        before = np.concatenate([np.zeros_like(vectors[:1]), vectors[:-1]])
        states["previous"] = vectors[-1]
        vectors = np.concatenate([vectors, before], 1)
    x = vectors @ w["in_proj.weight"].T + w["in_proj.bias"]
    core, i = below(w, "core."), 0

    def norm(v, name):
        if f"{name}.bias" in core:
            return layer_norm(v, core[f"{name}.weight"], core[f"{name}.bias"])
        return rms_norm(v, core[f"{name}.weight"])

    while layer := below(core, f"layers.{i}."):
        y, state = mixer(below(layer, "mixer."), norm(x, f"layers.{i}.norm"), rate)
        states |= {f"layer{i}.{k}": v for k, v in state.items()}
        x = x + y
        if "norm2.weight" in layer:
            a, b = np.split(norm(x, f"layers.{i}.norm2") @ layer["mlp.fc1.weight"].T, 2, 1)
            x = x + (a * silu(b)) @ layer["mlp.fc2.weight"].T
        i += 1
    return norm(x, "norm_f") @ w["head.weight"].T + w["head.bias"], states


# Files.

def draw(shapes, seed):
    rng, w = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        last = name.rsplit(".", 1)[-1]
        v = rng.normal(size=shape)
        if "norm" in name and last == "weight":
            v = 1 + 0.2 * v
        elif last == "A_real":
            v = 0.5 * v - 0.5
        elif last == "A_imag":
            v = 3 * np.abs(v)
        elif last == "inv_dt":
            v = v - 2.5
        elif last == "A_log":
            v = 0.7 * v
        elif last in ["weight"] and len(shape) > 1:
            v = v / np.sqrt(np.prod(shape[1:]))
        elif last == "bias":
            v = 0.3 * v
        w[name] = v.astype(np.float32)
    return w


def write(name, w, config, x, split, run):
    """`x` (B, T, …): its first `split` steps, then the others from the state."""
    double = {k: v.astype(np.float64) for k, v in w.items()}
    x = x.astype(np.float32)
    tensors = dict(w, __input__=x[:, :split], __cont_input__=x[:, split:])
    runs = [run(double, row.astype(np.float64), 1.0) for row in x]
    heads = [run(double, row[:split].astype(np.float64), 1.0) for row in x]
    y = np.stack([scores for scores, _ in runs])
    tensors |= {"__output__": y[:, :split], "__cont_output__": y[:, split:]}
    for what, ends in [("__state__", heads), ("__cont_state__", runs)]:
        tensors |= {f"{what}.{k}": np.stack([s[k] for _, s in ends]) for k in ends[0][1]}
    for rate in [0.5, 2.0]:
        other = [run(double, row[:split].astype(np.float64), rate)[0] for row in x]
        tensors[f"__output__.dt_scale_{rate}"] = np.stack(other)
    tensors = {k: np.ascontiguousarray(v, dtype=np.float32) for k, v in tensors.items()}
    save_file(tensors, OUT / f"{name}.safetensors", {"config": json.dumps(config)})


def mlp(prefix, d, f):
    return {f"{prefix}norm2.weight": (d,), f"{prefix}mlp.fc1.weight": (2 * f, d), f"{prefix}mlp.fc2.weight": (d, f)}


def conv_mamba():
    height, width, pool, f, d, e, n, r = 15, 18, [2, 3], 14, 16, 24, 6, 2
    shapes = {"encoder.convs.0.weight": (8, 3, 3, 3), "encoder.convs.0.bias": (8,), "encoder.convs.1.weight": (10, 8, 3, 3),
              "encoder.convs.1.bias": (10,), "encoder.proj.weight": (f, 10 * 7), "encoder.proj.bias": (f,),
              "in_proj.weight": (d, 2 * f), "in_proj.bias": (d,), "core.norm_f.weight": (d,), "head.weight": (3, d),
              "head.bias": (3,)}
    for i in range(2):
        name = f"core.layers.{i}."
        sizes = {"A_log": (e, n), "D": (e,), "in_proj.weight": (2 * e, d), "conv1d.weight": (e, 1, 4), "conv1d.bias": (e,),
                 "x_proj.weight": (r + 2 * n, e), "dt_proj.weight": (e, r), "dt_proj.bias": (e,), "out_proj.weight": (d, e)}
        shapes |= {f"{name}norm.weight": (d,)} | {f"{name}mixer.{k}": s for k, s in sizes.items()}
    shapes |= mlp("core.layers.1.", d, 20)
    config = {"family": "composite", "version": 1, "step_rate": 25.0,
              "input": {"height": height, "width": width, "mean": [0.4, 0.45, 0.5], "std": [0.2, 0.25, 0.3], "crop": 1.0},
              "encoder": {"kind": "conv", "pool": pool, "difference": True}, "core": {"kind": "mamba"},
              "head": {"kind": "linear", "classes": ["none", "cut", "dissolve"], "activation": "softmax", "look_ahead": 2}}

    def run(w, frames, rate):
        return network(w, conv_encoder(below(w, "encoder."), frames, pool), mamba, True, rate)

    x = np.random.default_rng(2).normal(size=(2, 14, 3, height, width))
    write("composite_conv_mamba", draw(shapes, 1), config, x, 9, run)


def mel_s4d():
    rate, bins, f, d, n = 8000, 12, 10, 12, 6
    front = {"kind": "kaldi_fbank", "num_mel_bins": bins, "frame_length_ms": 25, "frame_shift_ms": 10, "mean": 1.5, "std": 2.5}
    shapes = {"encoder.proj.weight": (f, 2 * bins), "encoder.proj.bias": (f,), "in_proj.weight": (d, f), "in_proj.bias": (d,),
              "core.norm_f.weight": (d,), "core.norm_f.bias": (d,), "head.weight": (2, d), "head.bias": (2,)}
    for i in range(2):
        name = f"core.layers.{i}."
        sizes = {"layer.D": (1, d), "layer.kernel.inv_dt": (d, 1), "layer.kernel.A_real": (d, n),
                 "layer.kernel.A_imag": (d, n), "layer.kernel.B": (1, d, n, 2), "layer.kernel.C": (1, d, n, 2),
                 "output_linear.0.weight": (2 * d, d), "output_linear.0.bias": (2 * d,)}
        shapes |= {f"{name}norm.weight": (d,), f"{name}norm.bias": (d,)} | {f"{name}mixer.{k}": s for k, s in sizes.items()}
    config = {"family": "composite", "version": 1, "input": {"rate": rate, "hop": 160},
              "encoder": {"kind": "mel", "frontend": front}, "core": {"kind": "s4d", "disc": "zoh"},
              "head": {"kind": "linear", "classes": ["speech", "music"], "activation": "sigmoid"}}

    def run(w, blocks, dt):
        vectors = mel_encoder(below(w, "encoder."), blocks.reshape(-1), front, rate, 2)
        return network(w, vectors, s4d, False, dt)

    t = np.arange(34 * 160) / rate
    noise = np.random.default_rng(4).normal(size=(2, len(t)))
    x = 0.4 * np.sin(2 * np.pi * (300 + 900 * t) * t) * np.array([[1.0], [0.3]]) + 0.05 * noise
    write("composite_mel_s4d", draw(shapes, 3), config, x.reshape(2, 34, 160), 21, run)


conv_mamba()
mel_s4d()
