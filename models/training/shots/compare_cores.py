"""Every core of the library behind the encoder of the shipped weights, at equal size and trained alike.

    python compare_cores.py --pack PACK --cache CACHE --out RUN [--only KIND …]
    python compare_cores.py --pack PACK --cache CACHE --out RUN --smoke          all of it in a minute, tiny

The encoder stays as it is: RUN/vectors.npz holds what it gives for sequences that it was not trained on. For each core this
writes RUN/KIND.safetensors, a composite for the library, and prints a row: parameters of the core, and F1 by kind on the
sequences that score.py judges.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import export
from edits import CLASSES, KEPT_OUT, Editor, load
from model import LOOK_AHEAD, MEAN, STD, library_config
from score import Counts, probabilities
from train import RECIPE, groups_of, loss_of

from cores import build  # noqa: I001  (its folder is put on the path by model.py)

SHIPPED = Path(__file__).resolve().parents[2] / "builtin/shots.safetensors"
SEED = 11  # another than that of the shipped weights
D = 96
# 205 thousand parameters each, within 3 %.
CORES = {
    "mamba": {"layers": 3, "d_state": 16, "dt_rank": 6},
    "mamba2": {"layers": 3, "d_state": 64, "head_dim": 32},
    "s4d": {"layers": 4, "states": 32, "hidden": 48},
    "moe_mamba": {"layers": 2, "d_state": 16, "dt_rank": 6, "experts": 4, "hidden": 44},
    "bst": {"layers": 2, "heads": 4, "hidden": 96, "states": 16, "window": 32},
}


def vectors(shipped, args, file):
    """Vectors (n, T, F) and labels (n, T, classes) to train on, vectors and transitions to judge by; kept in `file`."""
    if not file.is_file():
        clips = load(args.pack, args.cache)
        train = Editor([c for i, c in enumerate(clips) if i % KEPT_OUT], SEED, RECIPE["frames"])
        judge = Editor(clips[::KEPT_OUT], 2 * 10**6 + RECIPE["seed"], RECIPE["frames"])

        def encoded(frames):
            x = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
            return shipped.encoder(x).numpy()

        made, began = {"x": [], "labels": [], "judged": [], "truth": []}, time.time()
        for i in range(args.sequences):
            frames, labels, _ = train.sequence(i)
            made["x"].append(encoded(frames))
            made["labels"].append(labels)
            if i % 500 == 499:
                print(f"{i + 1} sequences, {time.time() - began:.0f} s", flush=True)
        for i in range(args.judged):
            frames, _, truth = judge.sequence(i)
            made["judged"].append(encoded(np.concatenate([frames, np.repeat(frames[-1:], LOOK_AHEAD, 0)])))
            made["truth"].append(json.dumps([[int(a), int(b), k] for a, b, k in truth]))
        np.savez(file, **{k: np.stack(v) for k, v in made.items()})
    found = np.load(file)
    truth = [[tuple(t) for t in json.loads(str(text))] for text in found["truth"]]
    return torch.from_numpy(found["x"]), torch.from_numpy(found["labels"]), torch.from_numpy(found["judged"]), truth


class OnVectors(nn.Module):
    def __init__(self, kind, joined, likeness):
        super().__init__()
        self.in_proj = nn.Linear(joined, D)
        self.core, self.config = build(kind, D, **CORES[kind])
        self.head = nn.Linear(D, len(CLASSES))
        self.likeness = likeness
        with torch.no_grad():
            self.head.bias.fill_(-3.0)

    def forward(self, v):
        return self.head(self.core(self.in_proj(torch.cat([v, self.likeness(v)], -1))))


def train(model, x, labels, steps, batch):
    optimizer = torch.optim.AdamW(groups_of(model, RECIPE["weight_decay"]), betas=(0.9, 0.99))
    average = {k: w.detach().clone() for k, w in model.state_dict().items()}
    order = np.random.default_rng(SEED)
    began = time.time()
    for step in range(steps):
        fall = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        lr = RECIPE["least_lr"] + (RECIPE["lr"] - RECIPE["least_lr"]) * fall
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / RECIPE["warmup"])
        chosen = order.choice(len(x), batch, replace=False)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(x[chosen]), labels[chosen]) + 0.01 * model.core.balance()
        loss.backward()
        if torch.isfinite(nn.utils.clip_grad_norm_(model.parameters(), RECIPE["clip"])):
            optimizer.step()
        keep = min(RECIPE["ema"], (step + 1) / (step + 11))
        with torch.no_grad():
            for name, w in model.state_dict().items():
                average[name].lerp_(w, 1 - keep)
        if step % 100 == 99:
            print(f"step {step + 1}: loss {float(loss.detach()):.3f}, {time.time() - began:.0f} s", flush=True)
    model.load_state_dict(average)


def write(shipped, model, file):
    """The encoder and what was trained behind it, as the library reads it."""
    weights = {f"encoder.{k}": w for k, w in shipped.encoder.state_dict().items()} | model.state_dict()
    pool = shipped.encoder.pool
    config = {**library_config({"pool": pool, "similarity": shipped.similarity}), "core": model.config}
    stored = {k: w.contiguous().half() for k, w in weights.items()}
    save_file(stored, file, {"config": json.dumps(config), "format": "pt"})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pack", type=Path, required=True, help="folder with manifest.json (edits.py)")
    p.add_argument("--cache", type=Path, required=True, help="folder for what is prepared")
    p.add_argument("--out", type=Path, required=True, help="folder of this run")
    p.add_argument("--only", nargs="*", choices=CORES, default=list(CORES), help="these cores")
    p.add_argument("--sequences", type=int, default=4000, help="to train on")
    p.add_argument("--judged", type=int, default=200, help="sequences of shots kept out")
    p.add_argument("--steps", type=int, default=600)
    p.add_argument("--batch", type=int, default=12)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--smoke", action="store_true", help="tiny settings")
    args = p.parse_args()
    if args.smoke:
        args.sequences, args.judged, args.steps, args.batch = 4, 2, 3, 2
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    shipped, _ = export.read(SHIPPED)
    with torch.no_grad():
        x, labels, judged, truth = vectors(shipped, args, args.out / "vectors.npz")
    rows = []
    for kind in args.only:
        torch.manual_seed(args.seed)
        model = OnVectors(kind, x.shape[-1] + shipped.similarity, shipped.likeness)
        began = time.process_time()
        train(model, x, labels, args.steps, args.batch)
        minutes = (time.process_time() - began) / 60
        counts = Counts()
        with torch.no_grad():
            for v, transitions in zip(judged, truth):
                counts.add(probabilities(model(v[None])[0].numpy(), LOOK_AHEAD), transitions)
        write(shipped, model, args.out / f"{kind}.safetensors")
        size = sum(w.numel() for w in model.core.parameters())
        scores = " | ".join(f"{v:.3f}" for v in counts.f1().values())
        rows.append(f"| {kind} | {size} | {minutes:.1f} | {scores} |")
        print(rows[-1], flush=True)
    print("| core | parameters | minutes | " + " | ".join([*CLASSES, "all"]) + " |", *rows, sep="\n")


if __name__ == "__main__":
    main()
