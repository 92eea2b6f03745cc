r"""Writes trained weights as safetensors, and a golden file to judge other implementations by.

    python export.py RUN/model.pt ../../builtin/denoise.safetensors \
        --golden ../../../tests/golden/builtin_denoise.safetensors
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model import CONFIG, RATE, Denoiser

NAME = "denoise"


def write(model_pt, path, half):
    """RUN/model.pt to safetensors: f32, or f16 with `half`. The configuration goes into the metadata."""
    saved = torch.load(model_pt, weights_only=False)
    config = {"family": "cleanumamba", "name": NAME, "sample_rate": RATE, **saved["config"], "steps": saved["step"]}
    weights = {k: w.contiguous().to(torch.float16 if half else torch.float32) for k, w in saved["weights"].items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, {"config": json.dumps(config), "format": "pt"})
    count = sum(w.numel() for w in weights.values())
    print(f"{path}: {count} parameters, {path.stat().st_size} bytes")


def read(path):
    """A file of `write` as a network that is ready to run, and its configuration."""
    with safe_open(path, "pt") as f:
        config = json.loads(f.metadata()["config"])
    model = Denoiser(**{k: config[k] for k in CONFIG}, level_rule=config["level_rule"])
    model.load_state_dict({k: w.float() for k, w in load_file(path).items()})
    return model.eval(), config


def synthetic(seed=7, hops=176):
    """A noisy, voice-like signal of `hops` hops of 64 samples (176: 0.704 s), full scale 1: float32 (n,)."""
    rng, n = np.random.default_rng(seed), hops * 64
    time = np.arange(n) / RATE
    phase = 2 * np.pi * np.cumsum(130 + 30 * np.sin(2 * np.pi * 3 * time)) / RATE
    voice = np.zeros(n)
    for k in range(1, 30):
        formants = sum(np.exp(-(((k * 130 - f) / 180) ** 2)) for f in (600, 1400, 2600))
        voice += (formants + 0.02) * np.sin(k * phase)
    voice *= np.clip(np.sin(2 * np.pi * 2.5 * time), 0, 1)
    noise = rng.standard_normal(n)
    return (0.05 * voice + 0.02 * noise).astype(np.float32)


def golden(weights, path):
    """Input, output under the file's own level rule, and what a running stream has given under a fixed level, computed
    in double precision."""
    model, config = read(weights)
    x = synthetic()
    level = np.float32(x.std(ddof=1, dtype=np.float64))
    with torch.no_grad():
        model.double()
        wide = torch.from_numpy(x).double()[None]
        y = model(wide)[0].float()
        fixed = model(wide, torch.full((1, model.hops(len(x))), float(level) + 1e-3, dtype=torch.float64))[0].float()
    config = {
        **{k: config[k] for k in ("family", "name", "sample_rate", "level_rule")},
        "weights_from": f"../../models/builtin/{weights.name}",
        "note": "__output__: under level_rule; __output_stream_fixed_std__: divisor __std__ + 1e-3",
    }
    given = fixed[: len(x) - 2 * model.hop].clone()  # the last two hops wait for their frames
    tensors = {"__input__": torch.from_numpy(x), "__output__": y, "__std__": torch.tensor([level])}
    tensors["__output_stream_fixed_std__"] = given
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"config": json.dumps(config)})
    print(f"{path}: {len(x)} samples")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, help="model.pt of train.py")
    p.add_argument("file", type=Path, help="safetensors to write")
    p.add_argument("--half", action="store_true", help="store f16")
    p.add_argument("--golden", type=Path, help="also write this golden file")
    args = p.parse_args()
    write(args.model, args.file, args.half)
    if args.golden:
        golden(args.file, args.golden)


if __name__ == "__main__":
    main()
