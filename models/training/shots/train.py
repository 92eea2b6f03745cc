"""Trains the transition finder.

    python train.py --pack PACK --cache CACHE --out RUN            the recipe of the shipped weights
    python train.py --pack PACK --cache CACHE --out RUN --smoke    all of it in a minute, tiny

Writes into RUN: log.csv, curves.png, checkpoint.pt (to go on from with --resume), and model.pt (averaged weights and
configuration).
"""

import argparse
import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from edits import CLASSES, KEPT_OUT, Editor, load
from model import CONFIG, LOOK_AHEAD, Transitions
from score import agree, events, f1, probabilities

RECIPE = {
    "steps": 6251,
    "batch": 12,
    "frames": 100,
    "lr": 2e-3,
    "least_lr": 2e-5,
    "warmup": 100,  # steps
    "weight_decay": 0.02,
    "clip": 1.0,
    "ema": 0.998,
    "seed": 1,
    "validation": 40,  # sequences of the shots kept out
    "log": 50,  # steps
    "save": 250,  # steps
}
SMOKE = {**RECIPE, "steps": 10, "batch": 2, "validation": 2, "log": 5, "save": 5}
SMOKE_CONFIG = {**CONFIG, "channels": (4, 8), "pool": (2, 2), "width": 8, "d_model": 16, "layers": 1, "dt_rank": 1}
RARE = torch.tensor([4.0, 1.0, 1.5, 1.5])  # what a frame of each class counts for


class Sequences(Dataset):
    def __init__(self, editor):
        self.editor = editor

    def __getitem__(self, i):
        frames, labels, _ = self.editor.sequence(i)
        return torch.from_numpy(frames), torch.from_numpy(labels)


def loss_of(logits, labels):
    target = labels[:, : labels.shape[1] - LOOK_AHEAD]
    each = functional.binary_cross_entropy_with_logits(logits[:, LOOK_AHEAD:], target, pos_weight=RARE, reduction="none")
    return each.mean((0, 1)).sum()


def groups_of(model, decay):
    """Parameters for the optimizer: vectors and what sets a system's time are not decayed."""
    free = lambda name, w: w.ndim <= 1 or name.endswith("A_log") or ".kernel." in name  # noqa: E731
    named = list(model.named_parameters())
    return [
        {"params": [w for name, w in named if free(name, w) == flag], "weight_decay": 0.0 if flag else decay}
        for flag in (False, True)
    ]


def validate(model, editor, count):
    """F1, missed and false alarms over sequences of shots that were not trained on."""
    total = np.zeros(3, int)
    with torch.no_grad():
        for i in range(count):
            frames, _, truth = editor.sequence(i)
            x = torch.from_numpy(np.concatenate([frames, np.repeat(frames[-1:], LOOK_AHEAD, 0)]))
            p = probabilities(model(x[None])[0].numpy(), LOOK_AHEAD)
            total += agree([e for e in events(p) if 2 <= e[0] and e[1] <= len(frames) - 3], truth)
    return f1(*total), total


def curves(out, rows):
    """Draws log.csv."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    for axis, (key, label) in zip(axes, {"loss": "loss", "f1": "F1 on shots kept out"}.items()):
        at = [(int(r["step"]), float(r[key])) for r in rows if r[key] != ""]
        axis.plot(*zip(*at)) if at else None
        axis.set(xlabel="step", ylabel=label)
        axis.grid(True)
    plt.tight_layout()
    plt.savefig(out / "curves.png", dpi=70)
    plt.close("all")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pack", type=Path, required=True, help="folder with manifest.json (edits.py)")
    p.add_argument("--cache", type=Path, required=True, help="folder for what is prepared")
    p.add_argument("--out", type=Path, required=True, help="folder of this run")
    p.add_argument("--smoke", action="store_true", help="tiny settings, a minute")
    p.add_argument("--steps", type=int, help="instead of the recipe's")
    p.add_argument("--minutes", type=float, help="as many steps as this time allows; the clock sets the learning rate")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--resume", action="store_true", help="go on from checkpoint.pt")
    args = p.parse_args()
    recipe, config = (dict(SMOKE), SMOKE_CONFIG) if args.smoke else (dict(RECIPE), CONFIG)
    recipe["steps"] = args.steps or recipe["steps"]
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(recipe["seed"])
    clips = load(args.pack, args.cache)
    kept = clips[::KEPT_OUT]
    editor = Editor([c for i, c in enumerate(clips) if i % KEPT_OUT], recipe["seed"], recipe["frames"])
    watch = Editor(kept, 10**6 + recipe["seed"], recipe["frames"])
    model, average = Transitions(**config), Transitions(**config)
    model.encoder.to(memory_format=torch.channels_last)
    average.load_state_dict(model.state_dict())
    print(f"{sum(w.numel() for w in model.parameters())} parameters, {len(clips)} shots, {len(kept)} kept out", flush=True)
    optimizer = torch.optim.AdamW(groups_of(model, recipe["weight_decay"]), betas=(0.9, 0.99))
    start, rows, spent = 0, [], 0.0
    if args.resume:
        saved = torch.load(args.out / "checkpoint.pt", weights_only=False)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        start, rows, spent = saved["step"], saved["rows"], saved["spent"]
    began = time.time() - spent

    def progress(step):
        return (time.time() - began) / (args.minutes * 60) if args.minutes else step / recipe["steps"]

    def numbers():
        step = start
        while progress(step) < 1:
            yield from range(step * recipe["batch"], (step + 1) * recipe["batch"])
            step += 1

    loader = DataLoader(Sequences(editor), recipe["batch"], sampler=numbers(), num_workers=1, prefetch_factor=3, drop_last=True)
    losses, step = [], start
    for frames, labels in loader:
        fall = 0.5 + 0.5 * math.cos(math.pi * min(progress(step), 1))
        lr = recipe["least_lr"] + (recipe["lr"] - recipe["least_lr"]) * fall
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / recipe["warmup"])
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(frames), labels)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
        if torch.isfinite(norm):
            optimizer.step()
        step += 1
        keep = min(recipe["ema"], step / (step + 10))
        with torch.no_grad():
            for a, w in zip(average.parameters(), model.parameters()):
                a.lerp_(w, 1 - keep)
        losses.append(float(loss.detach()))
        last = progress(step) >= 1
        if step % recipe["log"] == 0 or last:
            row = {"step": step, "loss": f"{np.mean(losses):.4f}", "lr": f"{lr:.2e}", "f1": "", "missed": "", "false": ""}
            losses = []
            if step % recipe["save"] == 0 or last:
                score, (_, missed, false) = validate(average, watch, recipe["validation"])
                row.update({"f1": f"{score:.3f}", "missed": int(missed), "false": int(false)})
            row["seconds"] = f"{time.time() - began:.0f}"
            rows.append(row)
            print(row, flush=True)
            if row["f1"]:
                with open(args.out / "log.csv", "w", newline="") as f:
                    writer = csv.DictWriter(f, row.keys())
                    writer.writeheader()
                    writer.writerows(rows)
                saved = {"model": model.state_dict(), "average": average.state_dict(), "step": step, "rows": rows}
                torch.save({**saved, "optimizer": optimizer.state_dict(), "spent": time.time() - began}, args.out / "checkpoint.pt")
                info = {"config": config, "recipe": recipe, "step": step, "weights": average.state_dict(), "classes": CLASSES}
                torch.save(info, args.out / "model.part")
                (args.out / "model.part").rename(args.out / "model.pt")
                curves(args.out, rows)
        if last:
            break


if __name__ == "__main__":
    main()
