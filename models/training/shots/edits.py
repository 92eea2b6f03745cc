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
from PIL import Image

WIDTH, HEIGHT = 48, 27
# Sizes that a shot is read at; a window of 48x27 is cut out of each, so the first is the whole frame.
SIZES = ((48, 27), (64, 36), (96, 54))
LICENCES = (
    "CC0-1.0",
    "CC-BY-4.0 Intel",
    "Apache-2.0 (repository licence)",
    "Apache-2.0 / BSD-3-Clause (package licence)",
    "MIT (repository licence)",
)
# Shots kept out of training, to watch it; one file of each of five sources.
KEPT_OUT = 7  # every seventh file
CLASSES = ("cut", "dissolve", "fade", "wipe")


def load(pack, cache):
    """[(name, {size: frames u8 (n, h, w, 3)})] of every permitted video of the pack."""
    path = Path(cache) / "shots.npz"
    if not path.is_file():
        arrays = {}
        for entry in json.loads((Path(pack) / "manifest.json").read_text()):
            if entry["licence"] not in LICENCES or entry.get("frames", 1) < 2:
                continue
            frames = {size: [] for size in SIZES}
            with av.open(str(Path(pack) / entry["file"])) as file:
                for frame in file.decode(video=0):
                    picture = frame.to_image()
                    for size in SIZES:
                        frames[size].append(np.asarray(picture.resize(size, Image.BICUBIC)))
            for (w, _), stack in frames.items():
                arrays[f"{entry['file']}@{w}"] = np.stack(stack)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    found = np.load(path)
    names = sorted({key.rpartition("@")[0] for key in found.files})
    return [(n, {size: found[f"{n}@{size[0]}"] for size in SIZES}) for n in names]


def smooth(rng, n, points, spread):
    """A random curve (n,) of straight lines between `points` values of +-spread."""
    return np.interp(np.arange(n), np.linspace(0, max(n - 1, 1), points), rng.uniform(-spread, spread, points))


class Shots:
    """Draws single shots: float32 (n, 27, 48, 3), full scale 1."""

    def __init__(self, clips):
        self.clips = clips

    def window(self, rng, n, size, steady):
        """Top left corners (n, 2) of a window of 48x27 in frames of this size: still, wandering, or panning."""
        room = np.array([size[1] - HEIGHT, size[0] - WIDTH])
        at = rng.uniform(0, 1, 2) * room
        path = np.tile(at, (n, 1))
        if not steady and room.max() > 0:
            kind = rng.random()
            if kind < 0.5:  # a pan, sometimes a fast one, to and fro at the edges
                speed = rng.choice([0.1, 0.3, 1.0, 3.0]) * rng.uniform(0.5, 1.5)
                angle = rng.uniform(0, 2 * np.pi)
                path = path + np.arange(n)[:, None] * speed * np.array([np.sin(angle), np.cos(angle)])
                path = np.abs(np.mod(path, 2 * np.maximum(room, 1e-6)) - room * 0)
                path = np.where(path > room, 2 * room - path, path)
            else:  # a hand
                path = path + np.stack([smooth(rng, n, 2 + n // 6, 2.0), smooth(rng, n, 2 + n // 6, 2.0)], 1)
        return np.clip(np.round(path), 0, room).astype(int)

    def shot(self, rng, n, like=None):
        """n frames; `like` names the clip to take it from. Returns frames and the clip's index."""
        index = int(rng.integers(len(self.clips))) if like is None else like
        size = SIZES[rng.choice(3, p=[0.45, 0.3, 0.25])]
        frames = self.clips[index][1][size]
        if rng.random() < 0.15:  # a picture that the camera moves over
            take = np.full(n, rng.integers(len(frames)))
        else:
            stride = int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
            first = int(rng.integers(max(1, len(frames) - n * stride)))
            take = first + np.arange(n) * stride
            # At the end of the clip it goes backwards.
            take = len(frames) - 1 - np.abs(len(frames) - 1 - take % max(2 * len(frames) - 2, 1))
        corners = self.window(rng, n, size, rng.random() < 0.55)
        x = np.stack([frames[t, r : r + HEIGHT, c : c + WIDTH] for t, (r, c) in zip(take, corners)])
        x = x.astype(np.float32) / 255
        if rng.random() < 0.5:
            x = x[:, :, ::-1]
        return self.look(rng, x), index

    @staticmethod
    def look(rng, x):
        """Another camera: contrast, gamma, colour."""
        x = np.clip(x, 1e-4, 1) ** np.float32(rng.uniform(0.6, 1.6))
        gain = rng.uniform(0.75, 1.2, 3) if rng.random() < 0.5 else np.full(3, rng.uniform(0.6, 1.2))
        x = x * gain.astype(np.float32)
        if rng.random() < 0.12:
            x = np.repeat(x.mean(-1, keepdims=True), 3, -1)
        elif rng.random() < 0.3:
            grey = x.mean(-1, keepdims=True)
            x = grey + (x - grey) * np.float32(rng.uniform(0.3, 1.6))
        return np.clip(x, 0, 1)

    def card(self, rng, n):
        """A still card: one colour, often black or white, with or without blocks in place of letters."""
        colour = rng.choice([0.0, 0.0, 1.0, rng.random()]) * np.ones(3) if rng.random() < 0.8 else rng.random(3)
        x = np.tile(colour.astype(np.float32), (n, HEIGHT, WIDTH, 1))
        if rng.random() < 0.6:
            ink = (1 - colour.mean() + rng.uniform(-0.3, 0.3)).clip(0, 1)
            for _ in range(int(rng.integers(1, 8))):
                r, c = int(rng.integers(2, HEIGHT - 3)), int(rng.integers(2, WIDTH - 6))
                x[:, r : r + 2, c : c + int(rng.integers(3, 14))] = ink
        return x

    # What happens inside a shot and is no transition.

    def disturb(self, rng, x):
        """Up to two disturbances of a shot, in place of nothing."""
        kinds = [self.flash, self.freeze, self.drop, self.block, self.expose, self.caption, self.glitch, self.shake]
        for _ in range(int(rng.choice([0, 1, 2], p=[0.45, 0.4, 0.15]))):
            if len(x) > 8:
                x = kinds[rng.integers(len(kinds))](rng, x)
        return x

    @staticmethod
    def flash(rng, x):
        """One to four frames of light: lightning, a photographer, an explosion that fades."""
        at, n = int(rng.integers(1, len(x) - 4)), int(rng.integers(1, 5))
        strength = np.float32(rng.uniform(0.3, 1.0))
        x = x.copy()
        part = x[at : at + n]
        fall = np.linspace(1, rng.uniform(0.1, 1), len(part), dtype=np.float32)[:, None, None, None] * strength
        if rng.random() < 0.5:  # from one place
            rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
            place = (rows - rng.uniform(0, HEIGHT)) ** 2 + (columns - rng.uniform(0, WIDTH)) ** 2
            fall = fall * np.exp(-place / rng.uniform(100, 900)).astype(np.float32)[None, :, :, None]
        x[at : at + n] = part + (1 - part) * fall
        return x

    @staticmethod
    def freeze(rng, x):
        """The same frame for a while, then on."""
        at, n = int(rng.integers(1, len(x) - 3)), int(rng.integers(2, 12))
        x = x.copy()
        x[at : at + n] = x[at - 1]
        return x

    @staticmethod
    def drop(rng, x):
        """Some frames are missing: a small jump."""
        at, n = int(rng.integers(1, len(x) - 2)), int(rng.integers(1, 4))
        return np.concatenate([x[:at], x[at + n :], np.repeat(x[-1:], min(n, len(x) - at), 0)])

    @staticmethod
    def block(rng, x):
        """Something passes before the camera."""
        x = x.copy()
        w, h = int(rng.integers(4, 30)), int(rng.integers(8, HEIGHT + 1))
        colour = rng.random(3).astype(np.float32) * np.float32(rng.uniform(0.1, 1))
        texture = rng.normal(0, 0.06, (h, w, 1)).astype(np.float32)
        speed, top = rng.uniform(0.5, 9) * rng.choice([-1, 1]), int(rng.integers(0, HEIGHT - h + 1))
        start = -w if speed > 0 else WIDTH
        first = int(rng.integers(len(x)))
        for t in range(first, len(x)):
            left = int(start + (t - first) * speed)
            a, b = max(left, 0), min(left + w, WIDTH)
            if a < b:
                x[t, top : top + h, a:b] = np.clip(colour + texture[:, a - left : b - left], 0, 1)
        return x

    @staticmethod
    def expose(rng, x):
        """The exposure steps or wanders."""
        gain = 1 + smooth(rng, len(x), 2 + len(x) // 10, 0.25)
        if rng.random() < 0.4:
            gain = np.where(np.arange(len(x)) < rng.integers(len(x)), 1.0, rng.uniform(0.7, 1.35))
        return np.clip(x * gain.astype(np.float32)[:, None, None, None], 0, 1)

    @staticmethod
    def caption(rng, x):
        """A caption or a logo comes and goes."""
        x = x.copy()
        h, w = int(rng.integers(2, 8)), int(rng.integers(8, 40))
        r, c = int(rng.integers(0, HEIGHT - h + 1)), int(rng.integers(0, WIDTH - w + 1))
        at, n = int(rng.integers(len(x))), int(rng.integers(5, 60))
        paint = np.where(rng.random((h, w, 1)) < 0.4, rng.random(), x[at, r : r + h, c : c + w])
        x[at : at + n, r : r + h, c : c + w] = paint
        return x

    @staticmethod
    def glitch(rng, x):
        """Blocks of a damaged stream, for a frame or some."""
        x = x.copy()
        at = int(rng.integers(len(x)))
        for t in range(at, min(at + int(rng.integers(1, 6)), len(x))):
            for _ in range(int(rng.integers(2, 14))):
                r, c = int(rng.integers(HEIGHT - 4)), int(rng.integers(WIDTH - 6))
                x[t, r : r + 4, c : c + 6] = x[t - 1, r, c] if rng.random() < 0.7 else rng.random(3)
        return x

    @staticmethod
    def shake(rng, x):
        """A jerk of the camera."""
        at, n = int(rng.integers(len(x))), int(rng.integers(2, 9))
        x = x.copy()
        for t in range(at, min(at + n, len(x))):
            x[t] = np.roll(x[t], tuple(rng.integers(-4, 5, 2)), (0, 1))
        return x


class Editor:
    """Sequences of shots. Everything of sequence `i` follows from (seed, i)."""

    def __init__(self, clips, seed, length=100):
        self.shots, self.seed, self.length = Shots(clips), seed, length

    def sequence(self, i):
        """Frames u8 (length, 27, 48, 3), labels (length, 4) for CLASSES, transitions [(start, end, kind)].

        `start` is the last frame wholly of the old shot, `end` the first wholly of the new one. A cut is marked on its
        first new frame; the others on every frame that is of both, start and end apart."""
        rng = np.random.default_rng([self.seed, i])
        n = self.length
        mean = rng.choice([14, 30, 60, 150])
        x, index = self.piece(rng, int(rng.integers(5, mean + 6)), None)
        found = []
        while len(x) < n + 70:
            like = index if rng.random() < 0.15 else None
            y, index = self.piece(rng, int(rng.integers(5, 2 * mean)), like)
            x = self.join(rng, x, y, found)
        skip = int(rng.integers(0, 60)) if rng.random() < 0.8 else 0
        x = self.finish(rng, x[skip : skip + n])
        labels = np.zeros((n, len(CLASSES)), np.float32)
        kept = []
        for start, end, kind in ((a - skip, b - skip, k) for a, b, k in found):
            inside = slice(max(end if kind == "cut" else start + 1, 0), max(end + (kind == "cut"), 0))
            labels[inside, CLASSES.index(kind)] = 1
            if 0 <= start and end < n:
                kept.append((start, end, kind))
        return np.round(x * 255).astype(np.uint8), labels, kept

    def piece(self, rng, n, like):
        if rng.random() < 0.06:
            return self.shots.card(rng, n), None
        x, index = self.shots.shot(rng, n, like)
        return self.shots.disturb(rng, x), index

    def join(self, rng, x, y, found):
        """x and then y, and what lies between them noted in `found`."""
        kind = rng.choice(["cut", "dissolve", "fade", "wipe", "dip"], p=[0.52, 0.24, 0.1, 0.07, 0.07])
        longest = min(len(x), len(y)) - 2
        if kind == "cut" or longest < 3:
            found.append((len(x) - 1, len(x), "cut"))
            return np.concatenate([x, y])
        n = int(min(longest, max(2, round(2 * 30 ** rng.random()))))
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
        found.append((len(x) - n - 1, len(x), str(kind)))
        share = np.linspace(0, 1, n + 2, dtype=np.float32)[1:-1]
        if kind == "dissolve":
            share = share[:, None, None, None]
        else:
            share = self.wipe(rng, share)
        return np.concatenate([x[:-n], x[-n:] * (1 - share) + y[:n] * share, y[n:]])

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
            x = x + rng.normal(0, rng.uniform(0.002, 0.03), x.shape).astype(np.float32)
        if rng.random() < 0.2:  # each frame a little of the one before
            keep = np.float32(rng.uniform(0.05, 0.25))
            x[1:] = x[1:] * (1 - keep) + x[:-1] * keep
        return np.clip(x, 0, 1)


def sheet(editor, path, rows=12):
    """Sequences as rows of small pictures; transitions framed by lines below: cut red, others blue."""
    lines = []
    for i in range(rows):
        x, labels, _ = editor.sequence(i)
        x = x[:40]
        strip = np.full((HEIGHT + 3, len(x) * (WIDTH + 1), 3), 255, np.uint8)
        for t, frame in enumerate(x):
            at = t * (WIDTH + 1)
            strip[:HEIGHT, at : at + WIDTH] = frame
            if labels[t].any():
                strip[HEIGHT:, at : at + WIDTH] = (220, 30, 30) if labels[t, 0] else (40, 60, 220)
        lines.append(strip)
    Image.fromarray(np.concatenate(lines)).save(path)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pack", type=Path, required=True, help="folder with manifest.json")
    p.add_argument("--cache", type=Path, required=True, help="folder for what is prepared")
    p.add_argument("--sheet", type=Path, help="PNG of some sequences")
    args = p.parse_args()
    clips = load(args.pack, args.cache)
    print(f"{len(clips)} shots, {sum(len(c[1][SIZES[0]]) for c in clips)} frames")
    if args.sheet:
        sheet(Editor(clips, 1), args.sheet)


if __name__ == "__main__":
    main()
