"""Trains the denoiser.

    python train.py --cache CACHE --out RUN            the recipe of the shipped weights
    python train.py --cache CACHE --out RUN --core s4d the smaller network with a core of this kind
    python train.py --cache CACHE --out RUN --smoke    all of it in under two minutes, tiny

Writes into RUN: log.csv, curves.png, checkpoint.pt (to go on from with --resume), and model.pt (averaged weights and
configuration).
"""

import argparse
import csv
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from mixing import Mixer, pools
from model import CONFIG, CORES, Denoiser, with_core
from perceptual import Intelligible, Perceptual

RECIPE = {
    "steps": 6_680,
    "batch": 8,
    "samples": 32_000,  # 2 s
    "long_from": 0.88,  # share of the steps after which examples are twice as long and half as many
    "lr": 2e-3,
    "least_lr": 2e-5,
    "warmup": 200,  # steps
    "weight_decay": 0.01,
    "clip": 1.0,
    "ema": 0.999,
    "weights": (0.09, 3.0, 0.75, 3.5, 0.2),  # of the losses: waveform a dB, spectrum, quality, intelligibility, speech
    "seed": 4,
    "validation": 6,  # batches
    "log": 50,  # steps
    "save": 200,  # steps
}
# Of the smaller networks; one thread each.
CORE_RECIPE = {**RECIPE, "steps": 2_000}
SMOKE = {**RECIPE, "steps": 20, "batch": 4, "samples": 16_000, "validation": 1, "log": 5, "save": 10}
SMOKE_CONFIG = {**CONFIG, "d_band": 8, "d_full": 16, "blocks": 1, "d_state": 4}
SMOKE_POOLS = {"speech": 24, "noise": 24}
BALANCE = 0.01  # weight of what routers of experts add
LONGEST_WAVE = 25.0  # dB; more is not asked for
AUDIBLE = 0.03  # least share of speech in the power of a clip whose quality counts
SPOKEN = 6  # first bin, 190 Hz, whose energy tells that somebody speaks
LOW = 6.0  # weight of each bin below: few as they are, a recording's rumble there is soon taken for noise
perceptual, intelligible = Perceptual(), Intelligible()


class Batches(Dataset):
    """Batch i of the recipe; twice as long and half as many for i = -1 - j."""

    def __init__(self, mixer, recipe):
        self.mixer, self.size, self.samples = mixer, recipe["batch"], recipe["samples"]

    def __getitem__(self, i):
        size, n = (self.size, self.samples) if i >= 0 else (self.size // 2, self.samples * 2)
        return tuple(torch.from_numpy(a) for a in self.mixer.batch(i if i >= 0 else 10**9 - i, size, n))


def order(step, progress, long_from):
    """Numbers of batches until `progress(step)` is 1, negative ones, which are long, from `long_from` on."""
    while progress(step) < 1:
        yield step if progress(step) < long_from else -1 - step
        step += 1


def db(ratio):
    return 10 * torch.log10(ratio)


def si_sdr(estimate, clean, most=None):
    """Scale-invariant signal to distortion ratio in dB of (B, n), softly limited to `most`."""
    scale = (estimate * clean).sum(1, keepdim=True) / clean.square().sum(1, keepdim=True).clamp_min(1e-12)
    target = scale * clean
    power, error = target.square().sum(1), (estimate - target).square().sum(1)
    if most is not None:
        error = error + power * 10 ** (-most / 10)
    return db((power + 1e-12) / (error + 1e-12))


def compressed(s):
    """Magnitude to the power 0.3 of a spectrum, and the complex numbers (..., 2) with that magnitude."""
    s = torch.view_as_real(s)
    power = s.square().sum(-1) + 1e-6
    magnitude = power.pow(0.15)
    return magnitude, s * (magnitude * power.rsqrt())[..., None]


def spectral_loss(estimate, clean):
    """Squared distance of compressed spectra, magnitudes and complex; what the estimate lacks counts twice in magnitude, bins
    below SPOKEN LOW times."""
    with torch.no_grad():
        mb, cb = compressed(clean)
    ma, ca = compressed(estimate)
    lack = (mb - ma).clamp_min(0)
    each = 0.5 * ((ma - mb).square() + lack.square()) + 0.6 * (ca - cb).square().mean(-1)
    return each.mean() + (LOW - 1) * each[..., :SPOKEN].sum() / each.numel()


def losses(model, noisy, clean):
    """Mean over the batch of: SI-SDR in dB, negative; distance of compressed spectra; negative quality after P.862;
    negative intelligibility after ESTOI; cross entropy of the speech probability."""
    enhanced, _, _, vad = model(noisy, details=True)
    # The level is evened out, so that soft clips count as much as loud ones.
    level = noisy.square().mean(1, keepdim=True).sqrt().clamp_min(1e-5)
    enhanced, clean = enhanced / level, clean / level
    talking = clean.square().mean(1) > 1e-6
    wave = -si_sdr(enhanced, clean, LONGEST_WAVE)[talking].sum() / len(noisy)
    # The spectrum of what comes out, not what the mask made: overlapping frames may disagree.
    target = model.spectrum(clean)
    spectral = spectral_loss(model.spectrum(enhanced), target)
    audible = clean.square().mean(1) > AUDIBLE
    heard = lambda measure: measure(enhanced[audible], clean[audible]).sum() / len(noisy)  # noqa: E731
    quality, clear = (heard(m) if audible.any() else torch.zeros(()) for m in (perceptual, intelligible))
    spoken = target[..., SPOKEN:]  # rumble is no speech
    energy = spoken.real.square().sum(-1) + spoken.imag.square().sum(-1)
    loud = energy > energy.amax(1, keepdim=True) * 1e-3
    active = (energy * loud).sum(1, keepdim=True) / loud.sum(1, keepdim=True).clamp_min(1)
    speech = (energy > active * 10**-3.5) & talking[:, None]
    return wave, spectral, -quality, -clear, functional.binary_cross_entropy_with_logits(vad, speech.float())


def validate(model, batches):
    """Mean gain of SI-SDR in dB, and quality after P.862, over `batches` (kept-out pieces of the pools)."""
    gains, quality = [], []
    with torch.no_grad():
        for noisy, clean in batches:
            enhanced = model(noisy)
            gains.append(si_sdr(enhanced, clean) - si_sdr(noisy, clean))
            quality.append(perceptual(enhanced, clean))
    return float(torch.cat(gains).mean()), float(torch.cat(quality).mean())


def set_statistics(model, batches):
    """Mean and scale of the features from examples. The parts of a bin keep their zero; what never moves is left out."""
    with torch.no_grad():
        f = torch.cat([model.features(model.spectrum(noisy)).flatten(0, 1) for noisy, _ in batches])
        mean, spread = f.mean(0), f.std(0)
        mean[1:] = 0
        model.input_norm.mean.copy_(mean)
        model.input_norm.scale.copy_(torch.where(spread > 1e-4, 1 / spread.clamp_min(1e-4), 0.0))


def parts(name, w, weights):
    """What a weight holds one above the other: the halves of in_proj; step, B and C of x_proj."""
    if name.endswith("mixer.in_proj.weight"):
        return w.chunk(2)
    if name.endswith("mixer.x_proj.weight"):
        states = weights[name.replace("x_proj.weight", "A_log")].shape[1]
        return w.split([len(w) - 2 * states, states, states])
    return [w]


def widened(model, weights):
    """`weights` for `model`, whose path over all bands may be wider than theirs: what is there fills the front of every
    part, what comes new is random, and no weight leads from it to what was there. Norms count it: results move a little."""
    new = model.state_dict()
    for name, old in weights.items():
        for wide, narrow in zip(parts(name, new[name], weights), parts(name, old, weights)):
            if wide.ndim > 1:
                wide[: len(narrow), narrow.shape[1] :] = 0
            wide[tuple(slice(n) for n in narrow.shape)] = narrow
    return new


def curves(out, rows):
    """Draws log.csv."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(1, 4, figsize=(14, 3.2))
    labels = {"wave": "-SI-SDR, dB", "quality": "-quality", "gain": "kept out: SI-SDR gain, dB", "heard": "kept out: quality"}
    for axis, (key, label) in zip(axes, labels.items()):
        at = [(int(r["step"]), float(r[key])) for r in rows if r[key] != ""]
        axis.plot(*zip(*at)) if at else None
        axis.set(xlabel="step", ylabel=label)
        axis.grid(True)
    plt.tight_layout()
    plt.savefig(out / "curves.png", dpi=70)
    plt.close("all")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cache", type=Path, required=True, help="folder that data.py prepared")
    p.add_argument("--out", type=Path, required=True, help="folder of this run")
    p.add_argument("--smoke", action="store_true", help="tiny settings, under two minutes")
    p.add_argument("--core", choices=CORES, help="one path over all bands with this core")
    p.add_argument("--steps", type=int, help="instead of the recipe's")
    p.add_argument("--lr", type=float, help="highest learning rate, instead of the recipe's")
    p.add_argument("--minutes", type=float, help="as many steps as this time allows; the clock sets the learning rate")
    p.add_argument("--threads", type=int, default=2, help="parts of a batch worked on at once; one more process mixes")
    p.add_argument("--start", type=Path, help="model.pt of another run, whose weights to start from")
    p.add_argument("--resume", action="store_true", help="go on from checkpoint.pt")
    args = p.parse_args()
    recipe, config = (dict(SMOKE), SMOKE_CONFIG) if args.smoke else (dict(RECIPE), CONFIG)
    if args.core:
        recipe, config = recipe if args.smoke else dict(CORE_RECIPE), with_core(args.core)
    recipe["steps"] = args.steps or recipe["steps"]
    recipe["lr"] = args.lr or recipe["lr"]
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(recipe["seed"])

    found = pools(args.cache, recipe["seed"], SMOKE_POOLS if args.smoke else None)
    mixer = Mixer(found, recipe["seed"])
    held = Batches(Mixer(found, recipe["seed"], validation=True), recipe)
    validation = [held[i] for i in range(recipe["validation"])]
    model, average = Denoiser(**config), Denoiser(**config)
    examples = Batches(mixer, recipe)
    set_statistics(model, [examples[10**8 + i] for i in range(2 if args.smoke else 12)])
    if args.start:
        model.load_state_dict(widened(model, torch.load(args.start, weights_only=False)["weights"]))
    average.load_state_dict(model.state_dict())
    count = sum(w.numel() for w in model.parameters())
    print(f"{count} parameters", flush=True)
    free = lambda name, w: w.ndim <= 1 or name.endswith("A_log")  # noqa: E731
    groups = [
        {
            "params": [w for name, w in model.named_parameters() if free(name, w) == flag],
            "weight_decay": 0.0 if flag else recipe["weight_decay"],
        }
        for flag in (False, True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
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

    numbers = order(start, progress, recipe["long_from"])
    loader = DataLoader(examples, batch_size=None, sampler=numbers, num_workers=1, prefetch_factor=4)
    sums, count, step = torch.zeros(5), 0, start
    threads = ThreadPoolExecutor(args.threads, initializer=torch.set_num_threads, initargs=(1,))

    def gradients(part):
        """Adds the gradients of a part of the batch to those of the network; its losses (5,)."""
        found = torch.stack(losses(model, *part))
        balance = BALANCE * model.core.balance() if model.core else 0.0
        ((found * found.new_tensor(recipe["weights"])).sum() + balance).div(args.threads).backward()
        return found.detach()

    for noisy, clean in loader:
        fall = 0.5 + 0.5 * math.cos(math.pi * min(progress(step), 1))
        lr = recipe["least_lr"] + (recipe["lr"] - recipe["least_lr"]) * fall
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / recipe["warmup"])
        optimizer.zero_grad(set_to_none=True)
        parts = [(noisy[k :: args.threads], clean[k :: args.threads]) for k in range(args.threads)]
        found = torch.stack(list(threads.map(gradients, parts))).mean(0)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
        if torch.isfinite(norm):
            optimizer.step()
        step += 1
        keep = min(recipe["ema"], step / (step + 10))
        with torch.no_grad():
            for a, w in zip(average.parameters(), model.parameters()):
                a.lerp_(w, 1 - keep)
        sums += found
        count += 1
        last = progress(step) >= 1
        if step % recipe["log"] == 0 or last:
            mean = sums / count
            row = {
                "step": step,
                "wave": f"{mean[0]:.3f}",
                "spectral": f"{mean[1]:.4f}",
                "quality": f"{mean[2]:.3f}",
                "clear": f"{mean[3]:.3f}",
                "vad": f"{mean[4]:.3f}",
                "lr": f"{optimizer.param_groups[0]['lr']:.2e}",
                "norm": f"{norm:.2f}",
                "gain": "",
                "heard": "",
                "seconds": f"{time.time() - began:.0f}",
            }
            if step % recipe["save"] == 0 or last:
                row["gain"], row["heard"] = (f"{v:.3f}" for v in validate(average, validation))
            rows.append(row)
            print(row, flush=True)
            sums, count = torch.zeros(5), 0
            if row["gain"]:
                with open(args.out / "log.csv", "w", newline="") as f:
                    writer = csv.DictWriter(f, row.keys())
                    writer.writeheader()
                    writer.writerows(rows)
                saved = {"model": model.state_dict(), "average": average.state_dict(), "step": step, "rows": rows}
                more = {"optimizer": optimizer.state_dict(), "spent": time.time() - began}
                torch.save({**saved, **more}, args.out / "checkpoint.pt")
                info = {"config": config, "recipe": recipe, "step": step, "weights": average.state_dict()}
                torch.save(info, args.out / "model.part")
                (args.out / "model.part").rename(args.out / "model.pt")
                curves(args.out, rows)
        if last:
            break


if __name__ == "__main__":
    main()
