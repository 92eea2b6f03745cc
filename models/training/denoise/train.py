"""Trains the denoiser.

    python train.py --cache CACHE --out RUN            the recipe of the shipped weights
    python train.py --cache CACHE --out RUN --smoke    all of it in under two minutes, tiny

Writes into RUN: log.csv, curves.png, checkpoint.pt (to go on from with --resume), and model.pt (averaged weights and
configuration).
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mixing import Mixer
from model import CONFIG, Denoiser

RECIPE = {
    "steps": 3000,
    "batch": {0: 8, 300: 4},  # examples from a step on
    "samples": 32_000,  # 2 s
    "long_from": 0.85,  # share of the steps after which examples are twice as long and half as many
    "lr": 2e-3,
    "warmup": 150,
    "fall": 0.3,  # share of the steps over which the learning rate goes down
    "weight_decay": 0.01,
    "clip": 3.0,
    "ema": 0.998,
    "stft_weight": 4.0,
    "seed": 1,
    "validation": 6,  # batches
    "log": 25,  # steps
    "save": 100,  # steps
}
SMOKE = {
    **RECIPE,
    "steps": 12,
    "batch": {0: 2},
    "samples": 8_000,
    "warmup": 3,
    "ema": 0.8,
    "validation": 1,
    "log": 2,
    "save": 6,
}
SMOKE_CONFIG = {"channels": [4, 4, 6, 6, 8, 8], "d_model": 8, "layers": 2, "expand": 2, "d_state": 4, "d_conv": 4}
WINDOWS = (256, 512, 1024)


class Batches(Dataset):
    """Batch i of the recipe."""

    def __init__(self, mixer, recipe, steps, first=0, long_from=None):
        self.mixer, self.recipe, self.steps, self.first = mixer, recipe, steps, first
        self.long = steps if long_from is None else int(steps * long_from)

    def __len__(self):
        return self.steps

    def __getitem__(self, i):
        twice = 2 if i >= self.long else 1
        size = [b for step, b in self.recipe["batch"].items() if step <= i][-1]
        size, n = max(size // twice, 1), self.recipe["samples"] * twice
        return tuple(torch.from_numpy(a) for a in self.mixer.batch(self.first + i, size, n))


def db(ratio):
    return 10 * torch.log10(ratio)


def si_sdr(estimate, clean):
    """Scale-invariant signal to distortion ratio in dB of (B, T)."""
    scale = (estimate * clean).sum(1, keepdim=True) / clean.pow(2).sum(1, keepdim=True).clamp_min(1e-12)
    target = scale * clean
    return db(target.pow(2).sum(1).clamp_min(1e-12) / (estimate - target).pow(2).sum(1).clamp_min(1e-12))


def losses(estimate, clean, noisy):
    """(waveform loss in dB, spectral loss), means over the batch.

    Waveform: the error's energy against the clean one's, in dB, with a bottom at -35 dB; where nobody speaks, the
    energy left over against the input's. Spectral: distance of magnitudes to the power 0.3 at three resolutions, levels
    evened out.
    """
    power = clean.pow(2).sum(1)
    total = noisy.pow(2).sum(1).clamp_min(1e-9)
    silent = power < 1e-6 * total
    error = (estimate - clean).pow(2).sum(1)
    against = torch.where(silent, total, power)
    wave = db((error / against).clamp_min(1e-9) + 10**-3.5).mean()
    spectral, level = 0.0, noisy.pow(2).mean(1, keepdim=True).sqrt().clamp_min(1e-5)
    for n in WINDOWS:
        window = torch.hann_window(n)
        bins = [torch.stft(x / level, n, n // 4, window=window, return_complex=True) for x in (estimate, clean)]
        a, b = ((torch.view_as_real(z).pow(2).sum(-1) + 1e-6).pow(0.15) / n**0.15 for z in bins)
        spectral = spectral + (a - b).abs().mean() / len(WINDOWS)
    return wave, spectral


def learning_rate(step, recipe):
    """Linear rise, then steady, then linear fall to nothing over the last steps: until the fall begins, a run can be
    made longer or shorter with --resume and other --steps."""
    rise = (step + 1) / recipe["warmup"]
    fall = (recipe["steps"] - step) / (recipe["steps"] * recipe["fall"])
    return recipe["lr"] * min(rise, fall, 1.0)


def validate(model, batches):
    """Mean gain of SI-SDR in dB over the noisy examples with speech among `batches` (training voices, other draws)."""
    gains = []
    with torch.no_grad():
        for noisy, clean, divisors in batches:
            before, after = si_sdr(noisy, clean), si_sdr(model(noisy, divisors), clean)
            gains.append((after - before)[(clean.pow(2).sum(1) > 0) & (before < 25)])
    return float(torch.cat(gains).mean())


def curves(out, rows):
    """Draws log.csv."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(1, 3, figsize=(13, 3.5))
    labels = {"wave": "error against speech, dB", "spectral": "spectral loss", "gain": "SI-SDR gain, dB"}
    for axis, (key, label) in zip(axes, labels.items()):
        at = [(int(r["step"]), float(r[key])) for r in rows if r[key] != ""]
        axis.plot(*zip(*at)) if at else None
        axis.set(xlabel="step", ylabel=label)
        axis.grid(True)
    plt.tight_layout()
    plt.savefig(out / "curves.png", dpi=90)
    plt.close("all")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cache", type=Path, required=True, help="folder that data.py prepared")
    p.add_argument("--out", type=Path, required=True, help="folder of this run")
    p.add_argument("--smoke", action="store_true", help="tiny settings, under two minutes")
    p.add_argument("--steps", type=int, help="instead of the recipe's")
    p.add_argument("--level-rule", choices=["none", "smoothed"], default="smoothed")
    p.add_argument("--threads", type=int, default=1, help="of the network; one more process mixes")
    p.add_argument("--resume", action="store_true", help="go on from checkpoint.pt")
    args = p.parse_args()
    recipe, config = (dict(SMOKE), SMOKE_CONFIG) if args.smoke else (dict(RECIPE), CONFIG)
    recipe["steps"] = args.steps or recipe["steps"]
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(recipe["seed"])

    model = Denoiser(**config, level_rule=args.level_rule)
    average = Denoiser(**config, level_rule=args.level_rule)
    average.load_state_dict(model.state_dict())
    print(f"{model.parameters_count()} parameters, {model.macs_per_second() / 1e6:.0f} M MAC/s", flush=True)
    free = lambda name, w: w.ndim <= 1 or name.endswith("A_log")  # noqa: E731
    decayed = [w for name, w in model.named_parameters() if not free(name, w)]
    other = [w for name, w in model.named_parameters() if free(name, w)]
    groups = [{"params": decayed, "weight_decay": recipe["weight_decay"]}, {"params": other, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    start, rows, spent = 0, [], 0.0
    if args.resume:
        saved = torch.load(args.out / "checkpoint.pt", weights_only=False)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        start, rows, spent = saved["step"], saved["rows"], saved["spent"]

    mixer = Mixer(args.cache, recipe["seed"], model.hop, model.frame, args.level_rule)
    held = Batches(mixer, recipe, recipe["validation"], first=1_000_000_000)
    validation = [held[i] for i in range(len(held))]
    batches = Batches(mixer, recipe, recipe["steps"], long_from=recipe["long_from"])
    order = range(start, recipe["steps"])
    loader = DataLoader(batches, batch_size=None, sampler=order, num_workers=1, prefetch_factor=4)
    began, sums, count = time.time() - spent, np.zeros(2), 0
    for step, (noisy, clean, divisors) in enumerate(loader, start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        wave, spectral = losses(model(noisy, divisors), clean, noisy)
        loss = wave * 0.1 + recipe["stft_weight"] * spectral
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
        if torch.isfinite(norm):
            optimizer.step()
        keep = min(recipe["ema"], (step + 1) / (step + 10))
        with torch.no_grad():
            for a, w in zip(average.parameters(), model.parameters()):
                a.lerp_(w, 1 - keep)
        sums += [wave.item(), spectral.item()]
        count += 1
        last = step + 1 == recipe["steps"]
        if (step + 1) % recipe["log"] == 0 or last:
            gain = f"{validate(average, validation):.2f}" if (step + 1) % recipe["save"] == 0 or last else ""
            row = {
                "step": step + 1,
                "wave": f"{sums[0] / count:.3f}",
                "spectral": f"{sums[1] / count:.4f}",
                "lr": f"{optimizer.param_groups[0]['lr']:.2e}",
                "norm": f"{norm:.2f}",
                "gain": gain,
                "seconds": f"{time.time() - began:.0f}",
            }
            rows.append(row)
            print(row, flush=True)
            sums[:], count = 0, 0
            with open(args.out / "log.csv", "w", newline="") as f:
                writer = csv.DictWriter(f, row.keys())
                writer.writeheader()
                writer.writerows(rows)
            if gain:
                saved = {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "rows": rows,
                    "spent": time.time() - began,
                }
                torch.save(saved, args.out / "checkpoint.pt")
                info = {"config": {**config, "level_rule": args.level_rule}, "recipe": recipe, "step": step + 1}
                torch.save({**info, "weights": average.state_dict()}, args.out / "model.pt")
                curves(args.out, rows)


if __name__ == "__main__":
    main()
