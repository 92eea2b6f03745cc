"""Edited sequences with known transitions, made of single shots and of windows that move over pictures.

    python edits.py --pack PACK --cache CACHE      reads the pack once (train.py does it by itself)
    python edits.py --pack PACK --cache CACHE --sheet FILE.png      also draws some sequences to look at

PACK holds `manifest.json`, a list of {"file", "frames" (videos), "source", "licence"}, and the files it names: videos of
one shot each, and pictures. Only files whose licence is in LICENCES are used. Frames are 48 wide and 27 high.
"""

import argparse
import json
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

from disturb import disturb
from shots import FULL, HEIGHT, WIDTH, Shots

LICENCES = (
    "CC0-1.0",
    "CC-BY-2.0",
    "CC-BY-4.0 Intel",
    "Apache-2.0 (repository licence)",
    "Apache-2.0 / BSD-3-Clause (package licence)",
    "MIT (repository licence)",
)
# Shots kept out of training, to watch it.
KEPT_OUT = 7  # every seventh file
CLASSES = ("cut", "dissolve", "fade", "wipe")


def load(pack, cache):
    """[(name, frames u8 (n, h, w, 3))] of every permitted file of the pack: videos at FULL, pictures at twice that size."""
    path = Path(cache) / "shots.npz"
    if not path.is_file():
        arrays = {}
        for entry in json.loads((Path(pack) / "manifest.json").read_text()):
            if entry["licence"] not in LICENCES:
                continue
            file = Path(pack) / entry["file"]
            if entry.get("frames", 1) < 2:
                arrays[entry["file"]] = fit(Image.open(file).convert("RGB"), (2 * FULL[0], 2 * FULL[1]))[None]
                continue
            with av.open(str(file)) as video:
                arrays[entry["file"]] = np.stack([fit(f.to_image(), FULL) for f in video.decode(video=0)])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    found = np.load(path)
    return [(name, found[name]) for name in sorted(found.files)]


def fit(picture, size):
    """u8 (h, w, 3) of the largest part of the middle that has this shape."""
    return np.asarray(ImageOps.fit(picture.convert("RGB"), size, Image.BICUBIC))


class Editor:
    """Sequences of shots. Everything of sequence `i` follows from (seed, i)."""

    def __init__(self, clips, seed, length=100):
        self.shots, self.seed, self.length = Shots(clips), seed, length

    def sequence(self, i):
        """Frames u8 (length, 27, 48, 3), labels (length, 4) for CLASSES, transitions [(start, end, kind)].

        `start` is the last frame wholly of the old shot, `end` the first wholly of the new one. A cut is marked on its
        first new frame; the others on every frame that is of both, start and end apart."""
        rng = np.random.default_rng([self.seed, i])
        n, found = self.length, []
        if rng.random() < 0.2:  # nothing but one shot in which much happens
            x, _ = self.shots.shot(rng, n)
            x, skip = disturb(rng, x, 5, self.other(rng)), 0
        else:
            mean = rng.choice([14, 30, 60, 150])
            x, like = self.piece(rng, int(rng.integers(5, mean + 6)), None)
            while len(x) < n + 70:
                y, like = self.piece(rng, int(rng.integers(5, 2 * mean)), like if rng.random() < 0.3 else None)
                x = self.join(rng, x, y, found)
            skip = int(rng.integers(0, 60)) if rng.random() < 0.8 else 0
        x = x[skip : skip + n]
        found = [(a - skip, b - skip, k) for a, b, k in found]
        if rng.random() < 0.12:  # shown at a higher rate: frames come twice
            rate = rng.choice([0.5, 0.6, 0.8, 0.96])
            x = x[(np.arange(n) * rate).astype(int)]
            found = [(int(np.ceil((a + 1) / rate)) - 1, int(np.ceil(b / rate)), k) for a, b, k in found]
        x = self.finish(rng, x.copy())
        labels = np.zeros((n, len(CLASSES)), np.float32)
        kept = []
        for start, end, kind in found:
            inside = slice(max(end if kind == "cut" else start + 1, 0), max(end + (kind == "cut"), 0))
            labels[inside, CLASSES.index(kind)] = 1
            if 0 <= start and end < n:
                kept.append((start, end, kind))
        return np.round(x * 255).astype(np.uint8), labels, kept

    def other(self, rng):
        return lambda n: self.shots.shot(rng, n)[0]

    def piece(self, rng, n, like):
        """A shot of n frames with what happens in it, and what a similar shot needs."""
        if rng.random() < 0.06:
            return self.shots.card(rng, n), None
        x, index = self.shots.shot(rng, n, like)
        return disturb(rng, x, 2 if n < 40 else 3, self.other(rng)), index

    def join(self, rng, x, y, found):
        """x and then y, and what lies between them noted in `found`."""
        kind = rng.choice(["cut", "dissolve", "fade", "dip", "wipe", "slide"], p=[0.5, 0.25, 0.07, 0.08, 0.05, 0.05])
        before = found[-1][1] if found else 0
        longest = min(len(x) - before, len(y)) - 2
        if kind == "cut" or longest < 2:
            found.append((len(x) - 1, len(x), "cut"))
            return np.concatenate([x, y])
        low, high = [(2, 7), (6, 26), (25, 61)][rng.choice(3, p=[0.35, 0.45, 0.2])]
        n = min(longest, int(rng.integers(low, high)))
        if kind in ("fade", "dip"):  # to one colour and out of it
            colour = np.float32(0.0 if rng.random() < 0.8 else 1.0)
            hold = int(rng.integers(0, 8))
            away = np.linspace(0, 1, n + 2, dtype=np.float32)[1:-1, None, None, None]
            if kind == "dip":
                found.append((len(x) - n - 1, len(x) + hold + n, "fade"))
                old, new = x[-n:] * (1 - away) + colour * away, y[:n] * away + colour * (1 - away)
                return np.concatenate([x[:-n], old, np.full((hold, *x.shape[1:]), colour), new, y[n:]])
            # Out of the colour after a cut to it, or into it before a cut.
            plate = np.full((hold + 1, *x.shape[1:]), colour)
            if rng.random() < 0.5:
                found.append((len(x) - n - 1, len(x) + hold + 1, "fade"))
                return np.concatenate([x[:-n], x[-n:] * (1 - away) + colour * away, plate, y])
            found.append((len(x) - 1, len(x) + hold + 1 + n, "fade"))
            return np.concatenate([x, plate, y[:n] * away + colour * (1 - away), y[n:]])
        found.append((len(x) - n - 1, len(x), "wipe" if kind == "slide" else str(kind)))
        share = np.linspace(0, 1, n + 2, dtype=np.float32)[1:-1]
        if rng.random() < 0.3:  # slow at both ends
            share = share * share * (3 - 2 * share)
        if kind == "slide":
            return np.concatenate([x[:-n], self.slide(rng, x[-n:], y[:n], share), y[n:]])
        share = share[:, None, None, None] if kind == "dissolve" else self.wipe(rng, share)
        return np.concatenate([x[:-n], x[-n:] * (1 - share) + y[:n] * share, y[n:]])

    @staticmethod
    def slide(rng, x, y, share):
        """The new shot comes over the old one from a side, and may push it out."""
        axis, sign, push = int(rng.integers(1, 3)), int(rng.choice([-1, 1])), rng.random() < 0.6
        size = x.shape[axis]
        out = []
        for a, b, s in zip(x, y, share):
            at = int(round(float(s) * size))
            a, b = (np.moveaxis(v, axis - 1, 0)[::sign] for v in (a, b))
            strip = np.concatenate([a[at:] if push else a[: size - at], b[:at]])
            out.append(np.moveaxis(strip[::sign], 0, axis - 1))
        return np.stack(out)

    @staticmethod
    def wipe(rng, share):
        """Masks (n, 27, 48, 1) of a straight edge or a circle that moves over the frame."""
        rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH] / np.array([HEIGHT, WIDTH])[:, None, None]
        kind = rng.integers(6)
        place = [columns, 1 - columns, rows, 1 - rows, (rows + columns) / 2, np.hypot(rows - 0.5, columns - 0.5) / 0.71][kind]
        soft = rng.choice([0.01, 0.15])
        mask = np.clip((share[:, None, None] * (1 + soft) - place) / soft, 0, 1)
        return mask[..., None].astype(np.float32)

    @staticmethod
    def finish(rng, x):
        """The whole sequence: bars, grain, a soft or coarse codec."""
        if rng.random() < 0.3:
            bar = int(rng.integers(1, 6))
            x[:, :bar] = 0
            x[:, -bar:] = 0
        elif rng.random() < 0.08:
            bar = int(rng.integers(2, 9))
            x[:, :, :bar] = 0
            x[:, :, -bar:] = 0
        if rng.random() < 0.5:
            x = x + np.float32(rng.uniform(0.002, 0.03)) * rng.standard_normal(x.shape, np.float32)
        if rng.random() < 0.2:  # each frame a little of the one before
            keep = np.float32(rng.uniform(0.05, 0.25))
            x[1:] = x[1:] * (1 - keep) + x[:-1] * keep
        return np.clip(x, 0, 1)


def sheet(editor, path, rows=24):
    """Sequences as rows of small pictures; lines below mark cuts red, other transitions blue."""
    lines = []
    for i in range(rows):
        x, labels, _ = editor.sequence(i)
        x = x[20:60]
        strip = np.full((HEIGHT + 3, len(x) * (WIDTH + 1), 3), 255, np.uint8)
        for t, frame in enumerate(x):
            at = t * (WIDTH + 1)
            strip[:HEIGHT, at : at + WIDTH] = frame
            if labels[20 + t].any():
                strip[HEIGHT:, at : at + WIDTH] = (220, 30, 30) if labels[20 + t, 0] else (40, 60, 220)
        lines.append(strip)
    Image.fromarray(np.concatenate(lines)).save(path)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pack", type=Path, required=True, help="folder with manifest.json")
    p.add_argument("--cache", type=Path, required=True, help="folder for what is prepared")
    p.add_argument("--sheet", type=Path, help="PNG of some sequences")
    args = p.parse_args()
    clips = load(args.pack, args.cache)
    print(f"{len(clips)} shots, {sum(len(c[1]) for c in clips)} frames")
    if args.sheet:
        sheet(Editor(clips, 1), args.sheet)


if __name__ == "__main__":
    main()
