r"""Writes trained weights as a composite of the library (docs/composites.md), and golden files to judge it by.

    python export.py RUN/model.pt ../../builtin/shots.safetensors --golden ../../../tests/golden/composite_shots.safetensors
    python export.py --tiny ../../../tests/golden/composite_similarity.safetensors

Weights are stored as f16. A golden file holds frames (1, n, 3, height, width), normalised, the scores (1, n, classes), and
the vectors remembered at the end, computed in double precision from the stored weights.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model import CONFIG, Transitions, library_config


def write(model_pt, path):
    """RUN/model.pt to safetensors."""
    saved = torch.load(model_pt, weights_only=False)
    weights = {k: w.contiguous().half() for k, w in saved["weights"].items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, {"config": json.dumps(library_config(saved["config"])), "format": "pt"})
    print(f"{path}: {sum(w.numel() for w in weights.values())} parameters, {path.stat().st_size} bytes")


def read(path):
    """A file of `write` as a network that is ready to run."""
    with safe_open(path, "pt") as f:
        config = json.loads(f.metadata()["config"])
    weights = {k: w.float() for k, w in load_file(path).items()}
    convs = sorted(k for k in weights if k.startswith("encoder.convs.") and k.endswith("weight"))
    layers = len({k.split(".")[2] for k in weights if k.startswith("core.layers.")})
    first = "core.layers.0.mixer."
    model = Transitions(
        channels=tuple(len(weights[k]) for k in convs),
        pool=tuple(config["encoder"]["pool"]),
        width=len(weights["encoder.proj.weight"]),
        similarity=config["encoder"]["similarity"],
        d_model=len(weights["core.norm_f.weight"]),
        layers=layers,
        d_state=weights[first + "A_log"].shape[1],
        dt_rank=weights[first + "dt_proj.weight"].shape[1],
    )
    model.load_state_dict(weights)
    return model.eval(), config


def judged(model, n, height, width):
    """Tensors of a golden file: blocks of noise that change now and then."""
    rng = np.random.default_rng(4)
    frame, frames = rng.normal(size=(3, height, width)), []
    for t in range(n):
        if t % 5 == 3:
            frame = rng.normal(rng.uniform(-1, 1, (3, 1, 1)), rng.uniform(0.2, 1), (3, height, width))
        frames.append(frame + rng.normal(0, 0.05, frame.shape))
    x = torch.from_numpy(np.stack(frames)).float()
    model = model.double()
    with torch.no_grad():
        v = model.encoder(x.double())[None]
        y = model.head(model.core(model.in_proj(torch.cat([v, model.likeness(v)], -1))))
        unit = v / (v.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    last = unit[:, -model.similarity :].flip(1)
    return {"__input__": x[None], "__output__": y.float(), "__state__.last": last.float().contiguous()}


def golden(weights, path):
    """The golden file of a file of `write`."""
    model, config = read(weights)
    size = config["input"]["height"], config["input"]["width"]
    fields = {**config, "weights_from": f"../../models/builtin/{weights.name}"}
    save_file(judged(model, model.similarity + 6, *size), path, {"config": json.dumps(fields)})


def tiny(path):
    """A small random network, its weights inside the file, and what it gives."""
    torch.manual_seed(3)
    config = {**CONFIG, "channels": (5, 7), "pool": (2, 3), "width": 6, "similarity": 4, "d_model": 8, "layers": 2}
    model = Transitions(**{**config, "d_state": 3, "dt_rank": 1})
    with torch.no_grad():
        # Nothing stays at a value that hides an error.
        for name, w in model.named_parameters():
            if "norm" in name or name.endswith((".D", "A_log")):
                w.add_(torch.randn_like(w) * 0.3)
        model.head.weight.mul_(4)
    fields = library_config(config)
    fields["input"].update(height=11, width=14)
    weights = {k: w.clone() for k, w in model.state_dict().items()}
    save_file({**weights, **judged(model, 12, 11, 14)}, path, {"config": json.dumps(fields)})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, nargs="?", help="model.pt of train.py")
    p.add_argument("file", type=Path, nargs="?", help="safetensors to write")
    p.add_argument("--golden", type=Path, help="also write this golden file")
    p.add_argument("--tiny", type=Path, help="write the golden file of a small random network")
    args = p.parse_args()
    if args.tiny:
        tiny(args.tiny)
    if args.model and args.file:
        write(args.model, args.file)
        if args.golden:
            golden(args.file, args.golden)


if __name__ == "__main__":
    main()
