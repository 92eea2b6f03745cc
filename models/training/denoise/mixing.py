"""Noisy examples. Sentences with other speed, equaliser and room, and noises recorded and made, are prepared once as two
pools of pieces; an example is a sentence and a noise drawn from them, at a drawn distance and level.

    python mixing.py --cache CACHE      makes the pools (train.py does it by itself when they are missing)
"""

import argparse
from math import gcd
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from scipy.signal import butter, fftconvolve, lfilter, resample_poly

from data import RATE, load

VOICES = {  # share of the examples
    **{"commands": 0.16, "words": 0.05, "students": 0.14, "arabic": 0.09, "google": 0.14, "spelled": 0.07, "yoruba": 0.05},
    **{"kerstin": 0.06, "kathleen": 0.06, "nathalie": 0.05, "festvox_ru": 0.05, "flemishguy": 0.08},
}
NOISES = {"esc10": 0.46, "blanket": 0.13, "sonic_pi": 0.08, "places": 0.22, "events": 0.11}
OFTEN = ("Baby cry", "Person sneeze", "Rooster")  # of esc10, what is nearest to a voice: drawn twice as often
KEPT_OUT = ("loop_3d_printer", "vinyl_hiss")  # of sonic_pi: the demonstrations use them
FEW = 8  # clips: a speaker of fewer stays for one of them
PIECE = 5 * RATE
POOLS = {"speech": 12000, "noise": 10000}  # pieces
RUMBLE = 8  # dB: where there is less noise, what a recording rumbles by itself is to stay
VALIDATION = 60  # pieces of each pool kept for validation, the last ones


def active_rms(x):
    """Root mean square of the 20 ms pieces that are within 30 dB of the loudest."""
    pieces = (x[: len(x) // 320 * 320].reshape(-1, 320) ** 2).mean(axis=1)
    if not len(pieces) or pieces.max() <= 0:
        return 0.0
    return float(np.sqrt(pieces[pieces > pieces.max() * 1e-3].mean()))


def faster(x, percent):
    """x played at `percent` of its speed, pitch and formants moving along."""
    g = gcd(100, percent)
    return resample_poly(x, 100 // g, percent // g).astype(np.float32) if percent != 100 else x


def formants(x, ratio):
    """x with its spectral envelope stretched by `ratio` along frequency, so that a voice of the same pitch comes from a
    shorter or longer tract. The envelope is that of the first 30 cepstral coefficients of frames of 32 ms."""
    n, hop, keep = 512, 128, 30
    window = np.sin(np.pi * (np.arange(n) + 0.5) / n).astype(np.float32)
    padded = np.pad(x, (n, n + -len(x) % hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, n)[::hop]
    spectrum = np.fft.rfft(frames * window)
    level = np.log(np.abs(spectrum) + 1e-5)
    cepstrum = np.fft.irfft(level)
    cepstrum[:, keep : n - keep + 1] = 0
    envelope = np.fft.rfft(cepstrum).real
    at = np.minimum(np.arange(n // 2 + 1) / ratio, n // 2)
    low = np.minimum(at.astype(int), n // 2 - 1)
    moved = envelope[:, low] + (envelope[:, low + 1] - envelope[:, low]) * (at - low)
    parts = np.fft.irfft(spectrum * np.exp(np.clip(moved - envelope, -3, 3))) * window
    out = np.zeros(len(padded))
    for k in range(n // hop):
        rows = parts[k :: n // hop]
        out[k * hop : k * hop + rows.size] += rows.reshape(-1)
    return (out[n : n + len(x)] / (n / hop / 2)).astype(np.float32)


def curve(rng, n, points, spread, slope=0.0):
    """Random gain (n // 2 + 1,) over frequency: `points` values of +-`spread` dB, `slope` dB an octave from 60 Hz."""
    octave = np.log2(np.maximum(np.fft.rfftfreq(n, 1 / RATE), 60) / 60)
    db = np.interp(octave, np.linspace(0, octave[-1], points), rng.uniform(-spread, spread, points)) + slope * octave
    return 10 ** (db / 20)


def equalise(rng, x, points=6, spread=6.0, slope=0.0):
    """x through a random zero-phase equaliser."""
    n = 1 << (len(x) - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(x, n) * curve(rng, n, points, spread, slope), n)[: len(x)].astype(np.float32)


def room(rng, x):
    """x in a simulated room: the direct sound and a decaying tail of noise, 0.1 to 0.6 s to -60 dB."""
    t60, n = rng.uniform(0.1, 0.6), int(0.4 * RATE)
    time = np.arange(n) / RATE
    tail = rng.standard_normal(n) * 10 ** (-3 * time / t60)
    tail[: int(rng.uniform(0.001, 0.008) * RATE)] = 0
    tail = lfilter([1 - 0.3], [1, -0.3], tail)
    response = tail / np.sqrt((tail**2).sum()) * 10 ** (-rng.uniform(0, 12) / 20)
    response[0] += 1
    return fftconvolve(x, response)[: len(x)].astype(np.float32)


def narrow(rng, x):
    """x with nothing above 3.3 to 7.5 kHz, as telephones and codecs leave it."""
    n = 1 << (len(x) - 1).bit_length()
    f = np.fft.rfftfreq(n, 1 / RATE)
    keep = np.clip((rng.uniform(3300, 7500) - f) / 200 + 0.5, 0, 1)
    return np.fft.irfft(np.fft.rfft(x, n) * keep, n)[: len(x)].astype(np.float32)


def coded(rng, x):
    """x with noise that follows its level 25 to 45 dB below, as a waveform codec adds it."""
    level = np.sqrt(np.convolve(x * x, np.ones(160, np.float32) / 160, "same").clip(0))
    return x + level * rng.standard_normal(len(x)).astype(np.float32) * np.float32(10 ** (-rng.uniform(25, 45) / 20))


def envelope(rng, n, low, high):
    """A slow random gain (n,): points at `low` to `high` a second, each 0 to -25 dB, in between straight lines."""
    points = max(2, int(n / RATE * rng.uniform(low, high)) + 2)
    return 10 ** (np.interp(np.arange(n), np.linspace(0, n, points), rng.uniform(-25, 0, points)) / 20)


class Maker:
    """Makes the pieces of the pools."""

    def __init__(self, cache):
        self.speech = {}
        for v in VOICES:
            samples, clips = load(cache, f"train_speech_{v}")
            people = {}
            for clip in clips:
                people.setdefault(clip[0].rpartition("/")[0], []).append(clip)
            self.speech[v] = [(samples, clips) for clips in people.values()]
        self.noise = {}
        for v in NOISES:
            samples, clips = load(cache, f"train_noise_{v}")
            self.noise[v] = samples, [c for c in clips if c[0] not in KEPT_OUT for _ in range(1 + any(name in c[0] for name in OFTEN))]

    @staticmethod
    def draw(rng, samples, clips, n):
        """One of the clips, from a random place if it is longer than n samples."""
        _, start, length = clips[rng.integers(len(clips))]
        skip = int(rng.integers(length - n + 1)) if length > n else 0
        return samples[start + skip : start + skip + min(n, length)].astype(np.float32) / 32768

    def sentence(self, rng, n):
        """n samples of one voice, of one or more sentences with pauses."""
        people = self.speech[rng.choice(list(VOICES), p=list(VOICES.values()))]
        voice = people[rng.integers(len(people))]
        percent = int(rng.integers(74, 132))
        ratio = float(rng.uniform(0.84, 1.2)) if rng.random() < 0.6 else 1.0
        x = np.zeros(0, np.float32)
        while len(x) < n:
            if len(voice[1]) < FEW:
                voice = people[rng.integers(len(people))]
            part = faster(self.draw(rng, *voice, n * 130 // 100), percent)
            part = formants(part, ratio) if ratio != 1 else part
            part *= 0.1 / max(active_rms(part), 1e-4)
            x = np.concatenate([x, part, np.zeros(int(rng.uniform(0, 0.4) * RATE), np.float32)])
        x = x[:n]
        if rng.random() < 0.7:
            x = equalise(rng, x)
        if rng.random() < 0.3:
            x = room(rng, x)
        if rng.random() < 0.25:
            x = coded(rng, x)
        if rng.random() < 0.35:
            x = narrow(rng, x)
        return x

    def recorded(self, rng, n):
        """Recorded noise, repeated if it is short."""
        percent = int(rng.integers(60, 150))
        kind = rng.choice(list(NOISES), p=list(NOISES.values()))
        x = faster(self.draw(rng, *self.noise[kind], n * 2), percent)
        if len(x) < n:
            gap = np.zeros(int(rng.uniform(0, 0.5) * RATE) if len(x) < RATE else 0, np.float32)
            x = np.tile(np.concatenate([x, gap]), n // max(len(x), 1) + 1)
        x = x[:n]
        if rng.random() < 0.6:
            x = equalise(rng, x, 6, 9.0)
        return room(rng, x) if rng.random() < 0.15 else x

    def coloured(self, rng, n):
        """Noise of a random colour, steady or moving."""
        x = equalise(rng, rng.standard_normal(n).astype(np.float32), int(rng.integers(3, 14)), 12.0, rng.uniform(-7, 2))
        return x * envelope(rng, n, 0.5, 8) if rng.random() < 0.5 else x

    def gated(self, rng, n):
        """Coloured noise that is switched on and off."""
        x, gate, at = self.coloured(rng, n), np.zeros(n, np.float32), 0
        while at < n:
            on, off = rng.uniform(0.03, 0.6, 2) * RATE
            gate[at : at + int(on)] = rng.uniform(0.3, 1)
            at += int(on + off)
        return x * np.convolve(gate, np.ones(64, np.float32) / 64, "same")

    def hum(self, rng, n):
        """Mains or an engine: harmonics of a wandering pitch, and some noise."""
        base = rng.choice([50.0, 60.0, rng.uniform(30, 400)])
        wander = 1 + rng.uniform(0, 0.06) * np.interp(np.arange(n), np.linspace(0, n, 12), rng.uniform(-1, 1, 12))
        phase, x = 2 * np.pi * np.cumsum(base * wander) / RATE, np.zeros(n)
        fall = rng.uniform(0.2, 1.5)
        for k in range(1, min(30, int(6500 / base)) + 1):
            x += rng.uniform(0.1, 1) * k**-fall * np.sin(k * phase + rng.uniform(0, 6.28))
        noise = self.coloured(rng, n)
        return x / x.std() + noise / max(noise.std(), 1e-6) * rng.uniform(0, 0.7)

    def clicks(self, rng, n):
        """Knocks, keys, drops: short ringing or noisy bursts at random times."""
        x = np.zeros(n, np.float32)
        for at in rng.integers(0, n, rng.poisson(n / RATE * rng.uniform(1, 15)) + 1):
            time = np.arange(min(n - at, 1600)) / RATE
            ring = np.sin(2 * np.pi * rng.uniform(200, 6000) * time)
            body = rng.standard_normal(len(time)) if rng.random() < 0.5 else ring
            x[at : at + len(time)] += rng.uniform(0.1, 1) * body * np.exp(-time / rng.uniform(0.0005, 0.02))
        return equalise(rng, x, 6, 9.0)

    def cries(self, rng, n):
        """Animals and children: calls like one another, harmonics of a gliding pitch above that of most voices."""
        base, shape = np.exp(rng.uniform(np.log(250), np.log(1600))), rng.uniform(-0.5, 0.5, 5)
        fall, rough, rate = rng.uniform(0.2, 1.8), rng.uniform(0, 0.9) * (rng.random() < 0.5), rng.uniform(20, 90)
        breath, longest, rest = rng.uniform(0, 0.3), rng.uniform(0.2, 1.6), rng.uniform(0.1, 1.2)
        x, at = np.zeros(n), int(rng.uniform(0, 0.5) * RATE)
        while at < n:
            m = int(rng.uniform(0.5, 1) * longest * RATE)
            time = np.linspace(0, 1, m)
            glide = np.interp(time, np.linspace(0, 1, 5), shape + rng.uniform(-0.1, 0.1, 5))
            pitch = base * rng.uniform(0.9, 1.1) * 2 ** (glide + 0.03 * np.sin(rng.uniform(0, 70) * time))
            phase = 2 * np.pi * np.cumsum(pitch) / RATE
            call = sum(
                k**-fall * np.sin(k * phase) * (k * pitch < 7500) for k in range(1, int(7500 / pitch.min()) + 1)
            ) + breath * rng.standard_normal(m)
            call *= np.sin(np.pi * time ** rng.uniform(0.3, 1)) ** rng.uniform(0.3, 2)
            call *= 1 - rough * (0.5 + 0.5 * np.sin(2 * np.pi * rate * np.arange(m) / RATE))
            x[at : at + m] += call[: n - at] * rng.uniform(0.5, 1)
            at += m + int(rng.uniform(0.3, 1) * rest * RATE)
        return equalise(rng, x, 8, 12.0)

    def babble(self, rng, n):
        """Three to seven voices at once."""
        return sum(self.sentence(rng, n) * rng.uniform(0.3, 1) for _ in range(int(rng.integers(3, 8))))

    def noise_of(self, rng, n):
        """One kind of noise, or two."""
        kinds = [self.recorded, self.coloured, self.gated, self.hum, self.clicks, self.babble, self.cries]
        x = np.zeros(n)
        for kind in rng.choice(7, 2 if rng.random() < 0.25 else 1, p=[0.47, 0.16, 0.05, 0.08, 0.06, 0.05, 0.13]):
            part = kinds[kind](rng, n)
            x = x + part / max(float(part.std()), 1e-6) * rng.uniform(0.3, 1)
        return x.astype(np.float32)

    def piece(self, kind, seed, i):
        """Piece i of a pool, int16 (PIECE,)."""
        rng = np.random.default_rng([seed, i, kind == "noise"])
        x = self.sentence(rng, PIECE) if kind == "speech" else self.noise_of(rng, PIECE)
        x = x * min(0.1 / max(active_rms(x), 1e-6), 0.99 / max(float(np.abs(x).max()), 1e-6))
        return np.round(x * 32768).astype(np.int16)


def work(job):
    """Pieces `first` to `last` of a pool, in a process of its own."""
    cache, kind, seed, first, last = job
    maker = Maker(cache)
    return np.stack([maker.piece(kind, seed, i) for i in range(first, last)])


def pools(cache, seed, counts=None, workers=2):
    """{"speech": (n, PIECE), "noise": (n, PIECE)}, int16; made and stored in the cache if they are not there."""
    found = {}
    for kind, n in (counts or POOLS).items():
        path = Path(cache) / f"pool_{kind}_{seed}_{n}.npy"
        if not path.is_file():
            jobs = [(cache, kind, seed, i, min(i + 50, n)) for i in range(0, n, 50)]
            with Pool(workers) as pool:
                parts = pool.map(work, jobs, 1)
            np.save(path, np.concatenate(parts))
        found[kind] = np.load(path, mmap_mode="r")
    return found


class Mixer:
    """Draws batches from the pools. Everything of batch `i` follows from (seed, i)."""

    def __init__(self, found, seed, validation=False):
        self.pools, self.seed, self.validation = found, seed, validation

    def draw(self, rng, kind, n):
        """n samples of a piece, full scale 1."""
        pool = self.pools[kind]
        kept = min(VALIDATION, len(pool) // 4)
        i = rng.integers(len(pool) - kept, len(pool)) if self.validation else rng.integers(len(pool) - kept)
        at = int(rng.integers(PIECE - n + 1))
        return pool[i, at : at + n].astype(np.float32) / 32768

    def example(self, rng, n):
        """(noisy, clean): n samples each, full scale 1. 8 % clean, 5 % without speech."""
        kind = 0.5 if self.validation else rng.random()
        speech = self.draw(rng, "speech", n) if kind > 0.05 else np.zeros(n, np.float32)
        if kind > 0.05 and rng.random() < 0.1:
            speech[: int(rng.uniform(0.1, 0.5) * n)] = 0
        noise = self.draw(rng, "noise", n)
        if rng.random() < 0.3:
            noise = equalise(rng, noise)
        if rng.random() < 0.12:  # far away, or behind a wall: what lies above is to stay
            noise = lfilter(*butter(2, rng.uniform(200, 1500), fs=RATE), noise).astype(np.float32)
        loudness = active_rms(speech) or 0.1
        if kind > 0.92:
            noise[:] = 0
        # Over the whole example barks and knocks are far louder than over the time that they take.
        level = active_rms(noise) if rng.random() < 0.5 else float(np.sqrt((noise**2).mean()))
        ratio = rng.uniform(-9, 20)  # dB
        noise *= loudness / max(level, 1e-4) * 10 ** (-ratio / 20)
        if kind > 0.05 and (ratio > RUMBLE or kind > 0.92) and rng.random() < 0.5:
            rumble = lfilter(*butter(3, rng.uniform(40, 160), fs=RATE), rng.standard_normal(n)).astype(np.float32)
            speech += rumble * (loudness / max(float(rumble.std()), 1e-6) * 10 ** (-rng.uniform(2, 26) / 20))
        if rng.random() < 0.05:
            noise[: int(rng.uniform(0.1, 0.6) * n)] *= 1e-3
        gain = 10 ** (rng.uniform(-58, -12) / 20) / loudness
        gain = min(gain, 0.99 / max(float(np.abs(speech + noise).max()), 1e-6))
        return (speech + noise) * gain, speech * gain

    def batch(self, i, size, n):
        """(noisy, clean), each float32 (size, n)."""
        rng = np.random.default_rng([self.seed, i, self.validation])
        noisy, clean = np.zeros((2, size, n), np.float32)
        for k in range(size):
            noisy[k], clean[k] = self.example(rng, n)
        return noisy, clean


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cache", type=Path, required=True, help="folder that data.py prepared")
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()
    pools(args.cache, args.seed)


if __name__ == "__main__":
    main()
