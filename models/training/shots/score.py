"""From scores to events, and how well events agree with the truth.

    python score.py RUN/model.pt --pack PACK --cache CACHE      sequences of the shots kept out, by kind
"""

import argparse
from pathlib import Path

import numpy as np

from edits import CLASSES

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


def matched(found, truth):
    """The transition that each event hits, or None: an event's middle (a cut's first new frame) lies in start-1 .. end+2,
    one event each; and the transitions that no event hits."""
    free, hits = list(truth), []
    for start, end, kind in found:
        at = end if kind == 0 else (start + end) / 2
        match = next((t for t in free if t[0] - 1 <= at <= t[1] + 2), None)
        if match is not None:
            free.remove(match)
        hits.append(match)
    return hits, free


def agree(found, truth):
    """(hits, missed, false alarms)."""
    hits, missed = matched(found, truth)
    return len(hits) - hits.count(None), len(missed), hits.count(None)


def f1(hits, missed, false):
    return 2 * hits / max(2 * hits + missed + false, 1)


def probabilities(logits, look_ahead):
    """Sigmoid of (n + look_ahead, classes) in line with the n frames."""
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))[look_ahead:]


class Counts:
    """Found, missed and false alarms by kind, over sequences."""

    def __init__(self):
        self.counts = {kind: np.zeros(3, int) for kind in CLASSES}

    def add(self, p, truth):
        """Counts the events of probabilities (n, classes); near the ends there is too little to see."""
        found = [e for e in events(p) if 2 <= e[0] and e[1] <= len(p) - 3]
        hits, missed = matched(found, truth)
        for (_, _, kind), hit in zip(found, hits):
            self.counts[hit[2] if hit else CLASSES[kind]] += [hit is not None, 0, hit is None]
        for transition in missed:
            self.counts[transition[2]] += [0, 1, 0]

    def rows(self):
        """{kind: (found, missed, false alarms)}, and of all."""
        return {**self.counts, "all": sum(self.counts.values())}

    def f1(self):
        return {kind: f1(*counts) for kind, counts in self.rows().items()}


def main():
    import torch

    from edits import KEPT_OUT, Editor, load
    from model import LOOK_AHEAD, Transitions

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, help="model.pt of train.py")
    p.add_argument("--pack", type=Path, required=True, help="folder with manifest.json (edits.py)")
    p.add_argument("--cache", type=Path, required=True, help="folder for what is prepared")
    p.add_argument("--count", type=int, default=200, help="sequences")
    args = p.parse_args()
    saved = torch.load(args.model, weights_only=False)
    model = Transitions(**saved["config"])
    model.load_state_dict(saved["weights"])
    editor = Editor(load(args.pack, args.cache)[::KEPT_OUT], 2 * 10**6 + saved["recipe"]["seed"], saved["recipe"]["frames"])
    counts = Counts()
    with torch.no_grad():
        for i in range(args.count):
            frames, _, truth = editor.sequence(i)
            x = torch.from_numpy(np.concatenate([frames, np.repeat(frames[-1:], LOOK_AHEAD, 0)]))
            counts.add(probabilities(model(x[None])[0].numpy(), LOOK_AHEAD), truth)
    print("| | found | missed | false alarms | F1 |\n|---|---|---|---|---|")
    for kind, (hits, missed, false) in counts.rows().items():
        print(f"| {kind} | {hits} | {missed} | {false} | {f1(hits, missed, false):.3f} |")


if __name__ == "__main__":
    main()
