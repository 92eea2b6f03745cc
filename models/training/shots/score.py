"""From scores to events, and how well events agree with the truth."""

import numpy as np

HIGH, LOW = 0.5, 0.25  # where an event of several frames begins, and where it ends
COOLDOWN = 5  # frames from one cut to the next


def events(p, high=HIGH, low=LOW):
    """[(start, end, kind index)] of probabilities (n, classes), class 0 the cut, in line with the frames."""
    n = len(p)
    found = []
    cut, last = p[:, 0], -COOLDOWN
    for t in range(n):
        near = cut[max(t - 2, 0) : t + 3]
        if cut[t] >= high and cut[t] == near.max() and t - last >= COOLDOWN:
            found.append((t - 1, t, 0))
            last = t
    span, t = p[:, 1:].max(1), 0
    while t < n:
        if span[t] < high:
            t += 1
            continue
        a = t
        while a > 0 and span[a - 1] >= low:
            a -= 1
        b = t
        while b < n and span[b] >= low:
            b += 1
        kind = 1 + int(p[a:b, 1:].sum(0).argmax())
        # A cut inside is part of it.
        found = [f for f in found if f[2] or not a - 2 <= f[1] <= b + 2 or p[f[1], 0] > span[a:b].max()]
        if not any(f[2] == 0 and a - 2 <= f[1] <= b + 2 for f in found):
            found.append((a - 1, b, kind))
        t = b
    return sorted(found)


def agree(found, truth):
    """(hits, missed, false alarms): an event's middle (a cut's first new frame) lies in start-1 .. end+2 of one transition."""
    free, hits = list(truth), 0
    for start, end, kind in found:
        at = end if kind == 0 else (start + end) / 2
        match = next((t for t in free if t[0] - 1 <= at <= t[1] + 2), None)
        if match is not None:
            free.remove(match)
            hits += 1
    return hits, len(free), len(found) - hits


def f1(hits, missed, false):
    return 2 * hits / max(2 * hits + missed + false, 1)


def probabilities(logits, look_ahead):
    """Sigmoid of (n + look_ahead, classes) in line with the n frames."""
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))[look_ahead:]
