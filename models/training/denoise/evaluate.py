"""Judges a denoiser on kept-out speakers and sentences in kept-out noise.

    python evaluate.py ../../builtin/denoise.safetensors --cache CACHE [--json scores.json]
    python evaluate.py --cache CACHE --pairs FOLDER      writes the mixtures and their clean speech for `ssm eval-denoise`

Each of 40 clips a set (up to 8 s) gets a noise drawn from fold 5 of ESC-10 and the kept-out loops, mixed so that the
power of the clip over that of the noise is -5, 0, 5, 10 or 15 dB in turn, at a peak of 0.3 of full scale. Everything
follows from a seed. "Unseen speakers" share no voice with the training, the other sets no sentence.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.stats import rankdata

from data import RATE, load
from export import read

UNSEEN = ["asterisk_it", "asterisk_ru"]
SEEN = ["kerstin", "kathleen", "nathalie", "festvox_ru", "flemishguy"]
SNRS = (-5, 0, 5, 10, 15)  # dB
CLIPS = 40
LONGEST = 8 * RATE


def si_sdr(estimate, clean):
    """Scale-invariant signal to distortion ratio in dB, float64."""
    estimate, clean = estimate.astype(np.float64), clean.astype(np.float64)
    target = clean * (estimate @ clean) / max(clean @ clean, 1e-20)
    error = estimate - target
    return 10 * np.log10(max(target @ target, 1e-20) / max(error @ error, 1e-20))


def clip(rng, samples, clips):
    """A random clip, float32, full scale 1, at most LONGEST."""
    _, start, length = clips[rng.integers(len(clips))]
    return samples[start : start + min(length, LONGEST)].astype(np.float32) / 32768


def noise_for(rng, sets, n):
    """n samples of a kept-out noise: three in four from ESC-10."""
    samples, clips = sets["esc10" if rng.random() < 0.75 else "blanket"]
    while True:
        _, start, length = clips[rng.integers(len(clips))]
        x = samples[start : start + length].astype(np.float32) / 32768
        x = np.roll(x, -int(rng.integers(len(x))))
        x = np.tile(x, n // len(x) + 1)[:n]
        # ESC-10 pads short sounds with digital silence.
        if (x**2).mean() > 1e-8:
            return x


def run(model, x):
    """x (n,) through the network as a stream of its own."""
    with torch.no_grad():
        return model(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))[None])[0].numpy()


def speech_frames(model, clean):
    """Which frames of a clean clip hold speech: those whose energy is within 35 dB of the active level, as in training."""
    with torch.no_grad():
        energy = model.spectrum(torch.from_numpy(clean)[None])[0].abs().square().sum(-1).numpy()
    loud = energy > energy.max() * 1e-3
    return energy > energy[loud].mean() * 10**-3.5


def roc_auc(scores, labels):
    """Area under the curve of true against false alarms: the chance that a speech frame scores above another one."""
    ranks = rankdata(scores)
    n, m = labels.sum(), (~labels).sum()
    return float((ranks[labels].sum() - n * (n + 1) / 2) / (n * m))


def voice_activity(model, cache):
    """ROC-AUC of the speech scores by set: clips in kept-out noise at -5 … 15 dB, a second of noise alone before each."""
    noises = {name: load(cache, f"test_noise_{name}") for name in ("esc10", "blanket")}
    out = {}
    for title, names in (("unseen speakers", UNSEEN), ("voices of the training", SEEN)):
        scores, labels = [], []
        for k, name in enumerate(names):
            rng = np.random.default_rng([9, k])
            samples, clips = load(cache, f"test_speech_{name}")
            for i in range(CLIPS // 2):
                clean = np.concatenate([np.zeros(RATE, np.float32), clip(rng, samples, clips)])
                power = (clean[RATE:] ** 2).mean()
                noise, snr = noise_for(rng, noises, len(clean)), SNRS[i % len(SNRS)]
                noise = noise * np.sqrt(power / (noise**2).mean()) * 10 ** (-snr / 20)
                gain = 0.3 / np.abs(clean + noise).max()
                with torch.no_grad():
                    noisy = torch.from_numpy(((clean + noise) * gain).astype(np.float32))[None]
                    scores.append(model.masks(model.spectrum(noisy))[1][0].numpy())
                labels.append(speech_frames(model, clean * np.float32(gain)))
        out[f"speech frames told apart, {title}, ROC-AUC"] = roc_auc(np.concatenate(scores), np.concatenate(labels))
    return out


def mixtures(cache):
    """(set, number, SNR in dB, noisy, clean) of every mixture of the sets that the cache has."""
    noises = {name: load(cache, f"test_noise_{name}") for name in ("esc10", "blanket")}
    for k, name in enumerate([*UNSEEN, *SEEN]):
        if not (Path(cache) / f"test_speech_{name}.npy").is_file():
            continue
        rng = np.random.default_rng([5, k])
        samples, clips = load(cache, f"test_speech_{name}")
        for i in range(CLIPS):
            clean = clip(rng, samples, clips)
            noise, snr = noise_for(rng, noises, len(clean)), SNRS[i % len(SNRS)]
            noise = noise * np.sqrt((clean**2).mean() / (noise**2).mean()) * 10 ** (-snr / 20)
            gain = 0.3 / np.abs(clean + noise).max()
            yield name, i, snr, (clean + noise) * gain, clean * gain


def noisy_sets(model, cache):
    """Rows {set, snr, before, after} of every mixture; before and after are SI-SDR in dB."""
    rows = []
    for name, _, snr, noisy, clean in mixtures(cache):
        before, after = si_sdr(noisy, clean), si_sdr(run(model, noisy), clean)
        rows.append({"set": name, "snr": snr, "before": before, "after": after})
    return rows


def pairs(cache, folder):
    """Writes every mixture and its clean speech for `ssm eval-denoise`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, i, snr, noisy, clean in mixtures(cache):
        for part, x in (("noisy", noisy), ("clean", clean)):
            soundfile.write(folder / f"{name}_{i:02}_{snr}dB_{part}.flac", x, RATE, subtype="PCM_16")


def other_checks(model, cache):
    """What must not go wrong: clean input, silence, noise alone, levels, long streams."""
    out = {}
    for k, name in enumerate([*UNSEEN, *SEEN]):
        rng = np.random.default_rng([6, k])
        samples, clips = load(cache, f"test_speech_{name}")
        values = []
        for _ in range(10):
            x = clip(rng, samples, clips)
            x *= 0.3 / np.abs(x).max()
            values.append(si_sdr(run(model, x), x))
        out[f"clean {name}, SI-SDR dB"] = float(np.mean(values))
        if name == "asterisk_it":
            for db in (-50, -30, -10):
                at = x * 10 ** (db / 20) / np.abs(x).max()
                out[f"clean with a peak of {db} dBFS, SI-SDR dB"] = si_sdr(run(model, at), at)
    out["silence in, largest sample out"] = float(np.abs(run(model, np.zeros(5 * RATE, np.float32))).max())
    rng = np.random.default_rng(8)
    speech = clip(rng, *load(cache, "test_speech_kerstin"))
    after = run(model, np.concatenate([speech, np.zeros(5 * RATE, np.float32)]))[len(speech) + RATE // 10 :]
    out["silence after speech, largest sample out"] = float(np.abs(after).max())
    noises = {name: load(cache, f"test_noise_{name}") for name in ("esc10", "blanket")}
    drops = []
    for _ in range(30):
        x = noise_for(rng, noises, 4 * RATE)
        drops.append(10 * np.log10((x**2).sum() / max((run(model, x) ** 2).sum(), 1e-12)))
    out["noise alone, dB taken away (median)"] = float(np.median(drops))
    white = rng.standard_normal(60 * RATE).astype(np.float32) * 0.01
    y = run(model, white)
    for a, b in ((0, 10), (50, 60)):
        part = y[a * RATE : b * RATE]
        out[f"white noise alone, dB taken away, {a} to {b} s"] = float(10 * np.log10(1e-4 / np.mean(part**2)))
    samples, clips = load(cache, "test_speech_asterisk_it")
    long = np.concatenate([samples[s : s + n] for _, s, n in clips[:20]]).astype(np.float32) / 32768
    long = long[: 90 * RATE]
    noisy = long + rng.standard_normal(len(long)).astype(np.float32) * np.sqrt((long**2).mean()) * 10 ** (-5 / 20)
    y = run(model, noisy)
    for a, b in ((0, 20), (len(long) // RATE - 20, len(long) // RATE)):
        part = slice(a * RATE, b * RATE)
        gain = si_sdr(y[part], long[part]) - si_sdr(noisy[part], long[part])
        out[f"one stream in white noise at 5 dB, gain from {a} to {b} s"] = gain
    return out


def pauses(model, cache):
    """What is left of steady noise between two sentences, which must neither ring nor breathe: dB taken away; kurtosis of the
    powers of single bins beside that of what went in (1: as even as before; musical noise: far above, Uemura et al. 2008);
    spread in dB of the level of 0.1 s."""
    samples, clips = load(cache, "test_speech_asterisk_it")
    rng, rows = np.random.default_rng(10), []
    for i in range(8):
        one, other = clip(rng, samples, clips), clip(rng, samples, clips)
        speech = np.concatenate([one, np.zeros(3 * RATE, np.float32), other])
        noise = rng.standard_normal(len(speech))
        if i % 2:
            noise = np.cumsum(noise - np.concatenate([[0.0] * 40, noise[:-40]]))  # falls by 6 dB an octave
        noise *= np.sqrt((one**2).mean() / (noise**2).mean()) * 10 ** (-10 / 20)
        noisy = (speech + noise).astype(np.float32)
        # From a second after the last word on.
        part = slice(len(one) + RATE, len(one) + 3 * RATE)
        before, after = noisy[part], run(model, noisy)[part]
        found = []
        for x in (before, after):
            frames = np.lib.stride_tricks.sliding_window_view(x, 512)[::256] * np.hanning(512)
            power = np.abs(np.fft.rfft(frames)[:, 4:220]) ** 2
            centred = power - power.mean(0)
            level = 10 * np.log10((x[: len(x) // 1600 * 1600].reshape(-1, 1600) ** 2).mean(1) + 1e-14)
            found.append(((centred**4).mean(0) / (centred**2).mean(0) ** 2, level))
        taken = found[0][1].mean() - found[1][1].mean()
        rows.append((taken, np.median(found[1][0]) / np.median(found[0][0]), found[1][1].std()))
    taken, kurtosis, spread = np.mean(rows, 0)
    out = {"noise in pauses at 10 dB, dB taken away": taken, "noise in pauses, kurtosis ratio": kurtosis}
    return {**out, "noise in pauses, spread of its level in dB": spread}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", type=Path, nargs="?", help="safetensors of export.py")
    p.add_argument("--cache", type=Path, required=True, help="folder that data.py prepared")
    p.add_argument("--json", type=Path, help="also write the figures here")
    p.add_argument("--pairs", type=Path, help="write the mixtures into this folder, as FLAC")
    args = p.parse_args()
    if args.pairs:
        pairs(args.cache, args.pairs)
    if args.file is None:
        return
    torch.set_num_threads(1)
    model = read(args.file)
    rows = noisy_sets(model, args.cache)

    def line(title, chosen):
        before, after = (float(np.mean([r[k] for r in chosen])) for k in ("before", "after"))
        worst = min(r["after"] - r["before"] for r in chosen)
        print(f"| {title} | {len(chosen)} | {before:.2f} | {after:.2f} | {after - before:+.2f} | {worst:+.1f} |")
        return {"mixtures": len(chosen), "before": before, "after": after, "gain": after - before, "worst": worst}

    scores = {}
    print("| | mixtures | noisy SI-SDR, dB | enhanced, dB | gain, dB | least gain, dB |\n|---|---|---|---|---|---|")
    for name in [*UNSEEN, *SEEN]:
        scores[name] = line(name, [r for r in rows if r["set"] == name])
    for snr in SNRS:
        scores[f"{snr} dB"] = line(f"all at {snr} dB", [r for r in rows if r["snr"] == snr])
    scores["unseen speakers at 15 dB"] = line(
        "unseen speakers at 15 dB", [r for r in rows if r["set"] in UNSEEN and r["snr"] == 15]
    )
    scores["unseen speakers"] = line("**unseen speakers**", [r for r in rows if r["set"] in UNSEEN])
    scores["all"] = line("**all**", rows)
    print()
    scores["checks"] = {**other_checks(model, args.cache), **pauses(model, args.cache), **voice_activity(model, args.cache)}
    for key, value in scores["checks"].items():
        print(f"* {key}: {value:.3g}")
    if args.json:
        args.json.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
