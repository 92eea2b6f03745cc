"""Single shots: real clips, pictures and drawn scenes seen by a camera that stands, sways, pans, turns and zooms."""

import cv2
import numpy as np

WIDTH, HEIGHT = 48, 27
FULL = (96, 54)  # what a clip is read at; a camera sees half of it in each direction at scale 1, all of it at scale 2

cv2.setNumThreads(1)


def smooth(rng, n, points, spread):
    """A random curve (n,) of straight lines between `points` values of +-spread."""
    return np.interp(np.arange(n), np.linspace(0, max(n - 1, 1), points), rng.uniform(-spread, spread, points))


def fields(rng, count, w=128, h=96):
    """Smooth noise (count, h, w) of several octaves, mean 0, deviation 1."""
    out = np.zeros((count, h, w), np.float32)
    for k in range(count):
        for octave in range(5):
            grid = rng.normal(size=(3 << octave, 4 << octave)).astype(np.float32)
            out[k] += cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC) * 0.6**octave
        out[k] = (out[k] - out[k].mean()) / out[k].std()
    return out


FIELDS = fields(np.random.default_rng(5), 48)


def see(frame, x, y, scale, angle=0.0):
    """What the camera sees, u8 (27, 48, 3): `scale` source pixels a pixel around (x, y). The world is mirrored at its edges."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    mx, my = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    m = np.array([[c, -s, x - c * mx + s * my], [s, c, y - s * mx - c * my]])
    return cv2.warpAffine(frame, m, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101)


def walk(rng, n, spread, rough):
    """A path (n,) that wanders: slow waves, and with `rough` a jerk at each frame."""
    t = np.arange(n)
    path = sum(np.sin(t * 2 * np.pi / rng.uniform(8, 70) + rng.uniform(0, 6.3)) * rng.uniform(0, 1) for _ in range(3))
    return spread * (path / 1.5 + rough * rng.normal(size=n))


def camera(rng, n, size):
    """Path (n, 4) of x, y, scale and angle in frames of this size (w, h)."""
    w, h = size
    scale = float(rng.choice([2.0, rng.uniform(1.2, 2.0), rng.uniform(0.7, 1.2)], p=[0.4, 0.35, 0.25]))
    room = np.maximum(np.array([w, h]) - scale * np.array([WIDTH, HEIGHT]), 0)
    at = (np.array([w, h]) - 1) / 2 + (rng.random(2) - 0.5) * room
    path = np.tile([*at, scale, 0.0], (n, 1))
    t = np.arange(n)
    kind = rng.choice(["still", "hand", "rough", "pan", "whip", "zoom", "crash"], p=[0.3, 0.2, 0.1, 0.15, 0.1, 0.1, 0.05])
    if kind in ("hand", "rough") or rng.random() < 0.2:
        spread, rough = rng.uniform(0.2, 2.5) * scale, 0.05
        if kind == "rough":  # someone runs with the camera
            spread, rough = rng.uniform(2, 6) * scale, rng.uniform(0.05, 0.5)
        path[:, 0] += walk(rng, n, spread, rough)
        path[:, 1] += walk(rng, n, spread, rough)
        path[:, 3] += walk(rng, n, rng.uniform(0, 0.06), rough)
    if kind == "pan":
        turn, speed = rng.uniform(0, 2 * np.pi), scale * 0.05 * 60 ** rng.random()
        path[:, :2] += t[:, None] * speed * np.array([np.cos(turn), 0.5 * np.sin(turn)])
    elif kind == "whip":  # from rest to rest in some frames
        turn, far = rng.choice([0, np.pi]) + rng.normal(0, 0.3), rng.uniform(15, 140)
        middle, over = rng.uniform(0, n), rng.uniform(2, 12)
        moved = far / (1 + np.exp(-(t - middle) / over * 2))
        path[:, :2] += moved[:, None] * np.array([np.cos(turn), np.sin(turn)])
    elif kind == "zoom":
        path[:, 2] *= np.exp(np.clip(rng.normal(0, 0.006) * (t - rng.uniform(0, n)), -0.8, 0.25))
    elif kind == "crash":
        far, middle, over = rng.uniform(-0.9, 0.4), rng.uniform(0, n), rng.uniform(1.5, 8)
        path[:, 2] *= np.exp(far / (1 + np.exp(-(t - middle) / over * 2)))
    path[:, 2] = np.clip(path[:, 2], 0.5, 2.3)
    return path


def shown(frames, take, path, shutter):
    """Frames u8 (n, 27, 48, 3); where the camera moves fast and the shutter is open, the mean of three places."""
    speed = np.gradient(path, axis=0) if len(path) > 1 else np.zeros_like(path)
    out = np.empty((len(path), HEIGHT, WIDTH, 3), np.uint8)
    for i, (k, p, v) in enumerate(zip(take, path, speed)):
        fast = shutter * (abs(v[0]) + abs(v[1]) + 30 * abs(v[2])) / p[2]
        if fast > 1.5:
            steps = np.linspace(-0.5, 0.5, 3 if fast < 6 else 7) * shutter
            out[i] = np.mean([see(frames[k], *(p + s * v)) for s in steps], 0)
        else:
            out[i] = see(frames[k], *p)
    return out


class Look:
    """Another camera: contrast, gamma, colour; float32 of u8 by a table."""

    def __init__(self, rng):
        base = np.clip(np.arange(256) / 255, 1e-4, 1) ** rng.uniform(0.6, 1.6)
        gain = rng.uniform(0.75, 1.2, 3) if rng.random() < 0.5 else np.full(3, rng.uniform(0.5, 1.2))
        self.table = (base[:, None] * gain).astype(np.float32)
        kind = rng.random()
        self.colour = 0.0 if kind < 0.12 else float(rng.uniform(0.3, 1.6)) if kind < 0.4 else 1.0
        self.mirror = rng.random() < 0.5

    def __call__(self, x):
        y = np.stack([self.table[:, c][x[..., c]] for c in range(3)], -1)
        if self.colour != 1.0:
            grey = y.mean(-1, keepdims=True)
            y = grey + (y - grey) * np.float32(self.colour)
        return np.clip(y[:, :, ::-1] if self.mirror else y, 0, 1)


class Shots:
    """Draws single shots: float32 (n, 27, 48, 3), full scale 1."""

    def __init__(self, clips):
        self.clips = [frames for _, frames in clips]
        # Pictures have one frame, of twice the size; the camera also sees them from afar.
        half = [cv2.resize(c[0], FULL, interpolation=cv2.INTER_AREA)[None] for c in self.clips if len(c) == 1]
        self.stills = [c for c in self.clips if len(c) == 1] + half
        self.clips = [c for c in self.clips if len(c) > 1]
        # A short clip shall not be seen as often as a long one.
        share = np.array([min(len(c), 400) ** 0.7 for c in self.clips])
        self.share = share / share.sum()

    def clip(self, rng):
        return self.clips[int(rng.choice(len(self.clips), p=self.share))]

    def take(self, rng, count, n):
        """Indices of n frames: another speed, to and fro at the ends; sometimes every frame two or three times."""
        stride = float(rng.choice([rng.uniform(0.4, 1), 1, 2, rng.uniform(2, 4), rng.uniform(4, 8)], p=[0.1, 0.4, 0.22, 0.18, 0.1]))
        t = np.arange(n)
        if rng.random() < 0.06:
            hold = int(rng.integers(2, 4))
            t = t // hold * hold
        at = (rng.integers(count) + t * stride).astype(int) % max(2 * count - 2, 1)
        return count - 1 - np.abs(count - 1 - at)

    def shot(self, rng, n, like=None):
        """n frames, and what a similar shot needs: `like` is that of the shot to be similar to, the same scene from elsewhere."""
        if like is not None:
            frames, look, old, at = like
            for _ in range(20):
                path = camera(rng, n, frames.shape[2:0:-1])
                apart = np.hypot(*(path[0, :2] - old[:2])) / min(path[0, 2], old[2])
                if apart > 9 or abs(np.log(path[0, 2] / old[2])) > 0.35:
                    break
            else:
                path[:, 2] = 0.8 if old[2] > 1.2 else 1.8
            take = self.take(rng, len(frames), n)
            if rng.random() < 0.4:
                take = np.clip(at + np.arange(n), 0, len(frames) - 1)
            x = shown(frames, take, path, rng.uniform(0, 1))
            return look(x), (frames, look, path[-1], take[-1])
        kind = rng.random()
        if kind < 0.1:
            return self.drawn(rng, n), None
        look = Look(rng)
        if kind < 0.16:
            frames = self.mosaic(rng)
            path = camera(rng, n, FULL)
            t = np.arange(n)
            over = rng.uniform(3, 10)
            moved = 1.5 * FULL[0] / (1 + np.exp(-(t - rng.uniform(0, n)) / over))
            path[:, 0] = path[:, 0] - FULL[0] / 4 + moved
            return look(shown(frames, np.zeros(n, int), path, rng.uniform(0.3, 1))), None
        if kind < 0.28 and self.stills:
            frames = self.stills[rng.integers(len(self.stills))]
        elif kind < 0.36:
            clip = self.clip(rng)
            frames = clip[rng.integers(len(clip))][None]
        else:
            frames = self.clip(rng)
        take = self.take(rng, len(frames), n)
        path = camera(rng, n, frames.shape[2:0:-1])
        return look(shown(frames, take, path, rng.uniform(0, 1))), (frames, look, path[-1], take[-1])

    def mosaic(self, rng):
        """One wide picture (1, 54, 250, 3) of two places, for a camera that turns from one to the other."""
        a, b = (clip[rng.integers(len(clip))] for clip in (self.clip(rng), self.clip(rng)))
        a, b = np.concatenate([a, a[:, ::-1]], 1)[:, :150], np.concatenate([b[:, ::-1], b], 1)[:, -150:]
        seam = np.linspace(0, 1, 50)[None, :, None]
        middle = a[:, 100:] * (1 - seam) + b[:, :50] * seam
        return np.concatenate([a[:, :100], middle.astype(np.uint8), b[:, 50:]], 1)[None]

    def drawn(self, rng, n):
        """An animated film: shapes of flat colours that move in steps over a flat, shaded or noisy ground."""
        hold = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.4, 0.2, 0.1]))
        colours = rng.integers(0, 256, (14, 3))
        w, h = 2 * WIDTH, 2 * HEIGHT
        ground = np.empty((h, w, 3), np.float32)
        ground[:] = colours[0]
        if rng.random() < 0.6:
            ground += np.linspace(0, 1, h)[:, None, None] * (colours[1] - colours[0]) * rng.random()
        if rng.random() < 0.4:
            ground += FIELDS[rng.integers(len(FIELDS))][:h, :w, None] * rng.uniform(5, 40)
        ground = np.clip(ground, 0, 255).astype(np.uint8)
        parts = []
        for k in range(int(rng.integers(2, 12))):
            span = np.tile(rng.uniform(2, 26, 2) * (rng.random() + 0.3), (n, 1))
            path = np.stack([rng.uniform(0, w) + 0.3 * walk(rng, n, w, 0), rng.uniform(0, h) + 0.3 * walk(rng, n, h, 0)], 1)
            if rng.random() < 0.4:
                path[:] = path[:1]
            path += np.arange(n)[:, None] * rng.normal(0, 1, 2) * rng.choice([0.0, 0.3, 2.0, 5.0], p=[0.4, 0.3, 0.2, 0.1])
            path[:, 0] = np.mod(path[:, 0] + 30, w + 60) - 30
            span = span * (1 + 0.4 * walk(rng, n, rng.random(), 0))[:, None]
            turn = walk(rng, n, rng.choice([0.0, 60.0]), 0) + rng.uniform(0, 360)
            parts.append((int(rng.integers(3)), path, np.maximum(np.abs(span), 1), turn, [int(c) for c in colours[2 + k % 12]]))
        out = np.empty((n, HEIGHT, WIDTH, 3), np.uint8)
        for t in range(n):
            if t % hold:
                out[t] = out[t - 1]
                continue
            canvas = ground.copy()
            for shape, path, span, turn, colour in parts:
                at, size = path[t], span[t]
                if shape == 0:
                    cv2.ellipse(canvas, (int(at[0]), int(at[1])), (int(size[0]), int(size[1])), turn[t], 0, 360, colour, -1)
                else:
                    corners = cv2.boxPoints((tuple(map(float, at)), tuple(map(float, 2 * size)), float(turn[t])))
                    cv2.fillPoly(canvas, [corners[: 4 if shape == 1 else 3].astype(np.int32)], colour)
            out[t] = cv2.resize(canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        return out.astype(np.float32) / 255

    def card(self, rng, n):
        """A card: one colour, often black or white; with or without blocks in place of letters, which may scroll."""
        colour = rng.choice([0.0, 0.0, 1.0, rng.random()]) * np.ones(3) if rng.random() < 0.8 else rng.random(3)
        x = np.tile(colour.astype(np.float32), (n, HEIGHT, WIDTH, 1))
        ink = (1 - colour.mean() + rng.uniform(-0.3, 0.3)).clip(0, 1)
        kind = rng.random()
        if kind < 0.4:
            for _ in range(int(rng.integers(1, 8))):
                r, c = int(rng.integers(2, HEIGHT - 3)), int(rng.integers(2, WIDTH - 6))
                x[:, r : r + 2, c : c + int(rng.integers(3, 14))] = ink
        elif kind < 0.65:
            scroll(rng, x, ink)
        return x


def scroll(rng, x, ink):
    """Lines of letters that move up over the frames."""
    n = len(x)
    speed, rows = rng.uniform(0.15, 1.5), int(rng.integers(1, 3))
    page = np.zeros((int(n * speed) + 3 * HEIGHT, WIDTH), np.float32)
    at = int(rng.integers(0, HEIGHT))
    while at < len(page) - 3:
        half = int(rng.integers(3, 20))
        letters = (rng.random(2 * half) < 0.75) * rng.uniform(0.5, 1, 2 * half)
        page[at : at + rows, WIDTH // 2 - half : WIDTH // 2 + half] = letters
        at += rows + int(rng.integers(1, 5) if rng.random() < 0.85 else rng.integers(6, 20))
    for t in range(n):
        whole, part = divmod(t * speed, 1)
        rows_now = page[int(whole) : int(whole) + HEIGHT + 1]
        share = (rows_now[:-1] * (1 - part) + rows_now[1:] * part)[..., None]
        x[t] += (ink - x[t]) * share.astype(np.float32)
