r"""Writes trained weights as safetensors, and golden files to judge other implementations by.

    python export.py RUN/model.pt ../../builtin/denoise.safetensors --half --start START/model.pt \
        --golden ../../../tests/golden/band_mask_denoise.safetensors
    python export.py --tiny ../../../tests/golden/band_mask_tiny.safetensors [--core KIND]

A golden file holds an input (n,), the output in line with it (n,), the mask (frames, bins, 2) and the speech logits
(frames,), computed in double precision from the stored weights.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model import RATE, Denoiser
from cores import SMALL  # noqa: I001  (its folder is put on the path by model.py)

FAMILY = "band_mask"
STARTED = 0.5  # share of the weights that the run began with: the mean of two ends of training does better than either


def metadata(model, **more):
    """What stands in the file beside the tensors; the other sizes follow from their shapes."""
    fields = {"family": FAMILY, "sample_rate": RATE, "window": model.window, "hop": model.hop}
    if model.core:
        fields["core"] = model.core_fields
    return {"config": json.dumps({**fields, **more}), "format": "pt"}


def write(model_pt, path, half, start):
    """RUN/model.pt to safetensors: f32, or f16 with `half`; a share of it from the network that the run began with."""
    saved = torch.load(model_pt, weights_only=False)
    kind = torch.float16 if half else torch.float32
    weights = saved["weights"]
    if start:
        before = torch.load(start, weights_only=False)["weights"]
        weights = {k: w.lerp(before[k], STARTED) for k, w in weights.items()}
    weights = {k: w.contiguous().to(kind) for k, w in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # The core's sizes are for `read`; the library sees them in the shapes.
    save_file(weights, path, metadata(Denoiser(**saved["config"]), name=path.stem, sizes=saved["config"].get("core")))
    print(f"{path}: {sum(w.numel() for w in weights.values())} parameters, {path.stat().st_size} bytes")


def numbered(weights, start, end):
    """Tensors START0END, START1END, … in order."""
    found = []
    while f"{start}{len(found)}{end}" in weights:
        found.append(weights[f"{start}{len(found)}{end}"])
    return found


def read(path):
    """A file of `write` as a network that is ready to run."""
    with safe_open(path, "pt") as f:
        config = json.loads(f.metadata()["config"])
    weights = {k: w.float() for k, w in load_file(path).items()}
    bands = [w.shape[1] // 3 for w in numbered(weights, "encode.", ".weight")]
    d_band, into = len(weights["norm_f.weight"]), numbered(weights, "blocks.", ".full.in_proj.weight")
    if into:
        model = Denoiser(
            config["hop"],
            bands,
            d_band,
            d_full=len(into[0]),
            blocks=len(into),
            d_state=weights["blocks.0.band.mixer.A_log"].shape[1],
            d_state_full=weights["blocks.0.full.mixer.A_log"].shape[1],
        )
    else:
        model = Denoiser(config["hop"], bands, d_band, len(weights["in_proj.weight"]), core=config["sizes"])
    model.load_state_dict(weights)
    return model.eval()


def synthetic(n, seed=7):
    """A noisy, voice-like signal, full scale 1: float32 (n,)."""
    rng = np.random.default_rng(seed)
    time = np.arange(n) / RATE
    phase = 2 * np.pi * np.cumsum(130 + 30 * np.sin(2 * np.pi * 3 * time)) / RATE
    voice = np.zeros(n)
    for k in range(1, 30):
        formants = sum(np.exp(-(((k * 130 - f) / 180) ** 2)) for f in (600, 1400, 2600))
        voice += (formants + 0.02) * np.sin(k * phase)
    voice *= np.clip(np.sin(2 * np.pi * 2.5 * time), 0, 1)
    return (0.05 * voice + 0.02 * rng.standard_normal(n)).astype(np.float32)


def judged(model, n):
    """Tensors of a golden file."""
    x = synthetic(n)
    with torch.no_grad():
        y, _, mask, vad = model.double()(torch.from_numpy(x).double()[None], details=True)
    tensors = {"__input__": torch.from_numpy(x), "__output__": y[0].float()}
    tensors["__tap__.mask"] = torch.view_as_real(mask[0]).float().contiguous()
    tensors["__tap__.vad"] = vad[0].float()
    return tensors


def golden(weights, path):
    """The golden file of a file of `write`."""
    model = read(weights)
    fields = metadata(model, name=weights.stem, weights_from=f"../../models/builtin/{weights.name}")
    save_file(judged(model, 9600), path, fields)


def tiny(path, kind):
    """A small random network, its weights inside the file, and what it gives; with a core where `kind` names one."""
    torch.manual_seed(3)
    config = {"hop": 20, "bands": [1, 2, 5, 9, 16], "d_band": 6}
    if kind:
        sizes = dict(SMALL[kind])
        config |= {"d_full": sizes.pop("d_model"), "core": {"kind": kind, **sizes}}
    else:
        config |= {"d_full": 10, "blocks": 2, "d_state": 4, "d_state_full": 5}
    model = Denoiser(**config)
    with torch.no_grad():
        # Nothing stays at a value that hides an error.
        for name, w in model.named_parameters():
            if "norm" in name or name.endswith((".D", "A_log", "bias", "rel_embedding")) and "dt_proj" not in name:
                w.add_(torch.randn_like(w) * 0.3)
        for part in model.decode:
            part.weight.mul_(8)
        model.input_norm.mean.add_(torch.randn_like(model.input_norm.mean))
        model.input_norm.scale.mul_(1 + 0.5 * torch.rand_like(model.input_norm.scale))
    weights = {k: w.clone() for k, w in model.state_dict().items()}
    save_file({**weights, **judged(model, 1600)}, path, metadata(model, name="tiny"))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, nargs="?", help="model.pt of train.py")
    p.add_argument("file", type=Path, nargs="?", help="safetensors to write")
    p.add_argument("--half", action="store_true", help="store f16")
    p.add_argument("--start", type=Path, help="model.pt that the run started from, to be part of the mean")
    p.add_argument("--golden", type=Path, help="also write this golden file")
    p.add_argument("--tiny", type=Path, help="write the golden file of a small random network")
    p.add_argument("--core", choices=SMALL, help="of one with this core")
    args = p.parse_args()
    if args.tiny:
        tiny(args.tiny, args.core)
    if args.model and args.file:
        write(args.model, args.file, args.half, args.start)
        if args.golden:
            golden(args.file, args.golden)


if __name__ == "__main__":
    main()
