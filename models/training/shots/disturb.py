"""What happens inside a shot and is no transition: light, fire, things that pass, captions, jerks, damage.

Each function takes a generator and frames float32 (n, 27, 48, 3) of at least ten frames, and gives as many."""

import cv2
import numpy as np

from shots import FIELDS, HEIGHT, WIDTH, scroll, smooth, walk

ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)


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


def freeze(rng, x):
    """The same frame for a while, then on."""
    at, n = int(rng.integers(1, len(x) - 3)), int(rng.integers(2, 12))
    x = x.copy()
    x[at : at + n] = x[at - 1]
    return x


def drop(rng, x):
    """Some frames are missing: a small jump."""
    at, n = int(rng.integers(1, len(x) - 2)), int(rng.integers(1, 4))
    return np.concatenate([x[:at], x[at + n :], np.repeat(x[-1:], min(n, len(x) - at), 0)])


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


def expose(rng, x):
    """The exposure steps or wanders."""
    gain = 1 + smooth(rng, len(x), 2 + len(x) // 10, 0.25)
    if rng.random() < 0.4:
        gain = np.where(np.arange(len(x)) < rng.integers(len(x)), 1.0, rng.uniform(0.7, 1.35))
    return np.clip(x * gain.astype(np.float32)[:, None, None, None], 0, 1)


def caption(rng, x):
    """A caption or a logo comes and goes."""
    x = x.copy()
    h, w = int(rng.integers(2, 8)), int(rng.integers(8, 40))
    r, c = int(rng.integers(0, HEIGHT - h + 1)), int(rng.integers(0, WIDTH - w + 1))
    at, n = int(rng.integers(len(x))), int(rng.integers(5, 60))
    paint = np.where(rng.random((h, w, 1)) < 0.4, rng.random(), x[at, r : r + h, c : c + w])
    x[at : at + n, r : r + h, c : c + w] = paint
    return x


def glitch(rng, x):
    """Blocks of a damaged stream, for a frame or some."""
    x = x.copy()
    at = int(rng.integers(len(x)))
    for t in range(at, min(at + int(rng.integers(1, 6)), len(x))):
        for _ in range(int(rng.integers(2, 14))):
            r, c = int(rng.integers(HEIGHT - 4)), int(rng.integers(WIDTH - 6))
            x[t, r : r + 4, c : c + 6] = x[t - 1, r, c] if rng.random() < 0.7 else rng.random(3)
    return x


def shake(rng, x):
    """A jerk of the camera."""
    at, n = int(rng.integers(len(x))), int(rng.integers(2, 9))
    x = x.copy()
    for t in range(at, min(at + n, len(x))):
        x[t] = np.roll(x[t], tuple(rng.integers(-4, 5, 2)), (0, 1))
    return x


def strobe(rng, x):
    """Light that goes on and off in a beat, or at random."""
    at, n = int(rng.integers(len(x))), int(rng.integers(6, 70))
    t = np.arange(len(x[at : at + n]))
    on = (t // int(rng.integers(1, 5))) % 2 == 0 if rng.random() < 0.6 else rng.random(len(t)) < rng.uniform(0.2, 0.6)
    dark, tint = rng.uniform(0.25, 0.8), rng.uniform(0.6, 1.6, 3)
    x = x.copy()
    x[at : at + n] *= np.where(on[:, None], tint, dark * np.ones(3)).astype(np.float32)[:, None, None, :]
    return x


def light(rng, x):
    """A lamp, a door, a passing car: a place of the frame gets brighter, darker or of another colour."""
    n = len(x)
    place = (ROWS - rng.uniform(0, HEIGHT)) ** 2 + (COLUMNS - rng.uniform(0, WIDTH)) ** 2
    place = np.exp(-place / rng.uniform(60, 2500))[None, :, :, None]
    middle, over = rng.uniform(0, n), rng.choice([0.1, 1.0, 5.0, 15.0])
    rise = 1 / (1 + np.exp(-np.clip((np.arange(n) - middle) / over, -50, 50)))
    if rng.random() < 0.5:  # and back again
        rise = rise * (1 - np.roll(rise, int(rng.integers(4, 40)))) * 2
    gain = rng.uniform(-0.7, 1.0) + rng.uniform(-0.3, 0.3, 3)
    return np.clip(x * (1 + rise[:, None, None, None] * place * gain).astype(np.float32), 0, 1)


def fire(rng, x):
    """Flames or an explosion: grows fast, flickers, dies away, with smoke and pieces that fly."""
    n = len(x)
    first, rise, fall = int(rng.integers(n)), rng.uniform(0.5, 6), rng.uniform(4, 40)
    stay = int(rng.choice([0, rng.integers(5, 80)], p=[0.6, 0.4]))
    field = FIELDS[rng.integers(len(FIELDS))]
    cy, cx = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
    reach, climb, drift = rng.uniform(5, 45), rng.uniform(0.3, 4), rng.uniform(-1.5, 1.5)
    flicker = rng.uniform(0.0, 0.35)
    hot = np.array([1.0, rng.uniform(0.55, 0.95), rng.uniform(0.1, 0.7)], np.float32)
    smoke, grey = rng.choice([0.0, rng.uniform(0.3, 0.95)]), np.float32(rng.uniform(0.05, 0.6))
    x = x.copy()
    for t in range(first, n):
        age = t - first
        strength = (1 - np.exp(-age / rise)) * np.exp(-max(age - stay - rise * 2, 0) / fall)
        size = reach * (1 - np.exp(-(age + 1) / rise)) + 0.3 * age * min(1.0, 8 / reach)
        r, c = int(age * climb) % (96 - HEIGHT), int(abs(age * drift)) % (128 - WIDTH)
        noise = field[r : r + HEIGHT, c : c + WIDTH]
        near = np.exp(-((ROWS - cy + 0.3 * age * climb * 0.2) ** 2 * 1.3 + (COLUMNS - cx) ** 2) / size**2)
        if smoke:
            cover = np.clip(smoke * np.exp(-age / 60) * min(1.0, age / 6) * near * (1 + 0.5 * noise), 0, 1)[..., None]
            x[t] += (grey + 0.08 * noise[..., None] - x[t]) * cover
        heat = near * (0.75 + 0.45 * noise) * strength * (1 + flicker * rng.normal())
        heat = np.clip(2.2 * heat, 0, 2)[..., None]
        x[t] = x[t] * (1 - np.clip(heat, 0, 0.9)) + heat * hot**(1.5 - 0.5 * np.clip(heat, 0, 1))
        if strength > 0.4 and age < 12:  # light on everything around
            x[t] += hot * 0.25 * strength * rng.random()
    for _ in range(int(rng.choice([0, rng.integers(3, 25)]))):
        v = rng.normal(0, 3, 2)
        shade, big = np.float32(rng.random()), int(rng.integers(1, 5))
        for t in range(first, min(first + 25, n)):
            r, c = int(cy + v[0] * (t - first) + 0.08 * (t - first) ** 2), int(cx + v[1] * (t - first))
            if 0 <= r < HEIGHT and 0 <= c < WIDTH:
                x[t, r : r + big, c : c + big] = shade
    return np.clip(x, 0, 1)


def thing(rng, x, other):
    """Something large passes before the camera, or comes and stays, or covers all: a part of another shot of soft edge."""
    n = len(x)
    field = FIELDS[rng.integers(len(FIELDS))]
    h, w = rng.uniform(6, 34), rng.uniform(5, 40)
    if rng.random() < 0.25:
        h, w = 60, rng.uniform(20, 75)
    ragged, soft = rng.uniform(0, 0.5), rng.uniform(0.03, 0.4)
    speed = rng.uniform(0.4, 9) * rng.choice([-1, 1])
    first = int(rng.integers(n))
    path = (WIDTH / 2 - np.sign(speed) * (WIDTH / 2 + w)) + speed * (np.arange(n) - first)
    if rng.random() < 0.35:  # comes, waits, goes on
        wait, stop = int(rng.integers(4, 60)), rng.uniform(0, WIDTH)
        arrive = int(np.clip(first + abs(stop - path[min(first, n - 1)]) / abs(speed), 0, n))
        path = np.concatenate([path[:arrive], np.full(wait, stop), path[arrive:]])[:n]
    rise = rng.uniform(0, HEIGHT) + walk(rng, n, rng.uniform(0, 4), 0)
    shade = np.float32(rng.choice([rng.uniform(0.02, 0.4), rng.uniform(0.4, 1.2)]))
    x = x.copy()
    for t in range(first, n):
        dx, dy = (COLUMNS - path[t]) / w, (ROWS - rise[t]) / h
        if abs(path[t] - WIDTH / 2) > WIDTH / 2 + 1.6 * w:
            continue
        c = int(40 + (path[t] * 0.3) % 30)
        edge = 1 - np.hypot(dx, dy) + ragged * field[20 : 20 + HEIGHT, c : c + WIDTH]
        mask = np.clip(edge / soft, 0, 1)[..., None].astype(np.float32)
        x[t] += (other[t % len(other)] * shade - x[t]) * mask
    return np.clip(x, 0, 1)


def blur(rng, x):
    """The focus is lost, or found, or both."""
    n = len(x)
    middle, over = rng.uniform(0, n), rng.uniform(1, 12)
    amount = np.exp(-(((np.arange(n) - middle) / over) ** 2)) if rng.random() < 0.5 else 1 / (1 + np.exp(-(np.arange(n) - middle) / over))
    if rng.random() < 0.5:
        amount = 1 - amount if rng.random() < 0.3 else amount
    sigma = rng.uniform(1, 7) * amount
    return np.stack([cv2.GaussianBlur(f, (0, 0), s, borderType=cv2.BORDER_REFLECT) if s > 0.25 else f for f, s in zip(x, sigma)])


def letters(rng, x):
    """Lines that scroll over the shot."""
    x = x.copy()
    scroll(rng, x[int(rng.integers(len(x) // 2)) :], rng.uniform(0.6, 1))
    return x


def tear(rng, x):
    """Some frames are torn sideways or rolled: a bad tape."""
    at, n = int(rng.integers(len(x))), int(rng.integers(1, 12))
    x = x.copy()
    for t in range(at, min(at + n, len(x))):
        r = int(rng.integers(HEIGHT))
        x[t, r:] = np.roll(x[t, r:], int(rng.integers(-12, 13)), 1)
    return x


KINDS = (flash, freeze, drop, block, expose, caption, glitch, shake, strobe, light, fire, blur, letters, tear)
SHARES = np.array([1.2, 0.8, 0.8, 0.8, 1.0, 1.0, 0.5, 1.2, 0.6, 1.2, 2.2, 0.9, 0.4, 0.3])


def disturb(rng, x, most, other):
    """Up to `most` of them; `other(n)` gives frames of another shot."""
    for _ in range(int(rng.integers(0, most + 1))):
        if len(x) < 10:
            break
        if rng.random() < 0.22:
            x = thing(rng, x, other(min(len(x), 40)))
        else:
            x = KINDS[rng.choice(len(KINDS), p=SHARES / SHARES.sum())](rng, x)
    return x
