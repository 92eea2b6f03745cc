"""Your own temporal head on a frozen Vim encoder, from nothing to events in a video (docs/own-head.md).

    python head.py --out RUN            20 seconds of processor time
    python head.py --out RUN --smoke    all of it in seconds, tiny

A square stands still, or moves to the left or to the right. No single frame tells which. The encoder is a small Vim with
random weights that are never trained; its vectors come from the library's own element `ssmembed`. What is trained in PyTorch
is a Mamba core over time and a head of three classes.

Writes into RUN: encoder.safetensors, head.safetensors (encoder, core and head: a composite, docs/composites.md), and
video.webm with a truth, video.json. GStreamer must find the plugin (GST_PLUGIN_PATH).
"""

import argparse
import base64
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cores import build  # noqa: E402

SIZE, RATE = 64, 25  # of the videos
SQUARE = 14
CLASSES = ("none", "left", "right")  # `none` marks nothing
IMAGE, PATCH, D, DEPTH, INNER, STATES = 48, 8, 64, 2, 128, 8  # of the encoder
CORE = {"d_model": 48, "layers": 2, "d_state": 8, "dt_rank": 3}
LOOK_AHEAD = 2  # frames: the scores of a frame come when two more have been seen
FRAMES = 100  # of a sequence


def sequence(rng, n):
    """Frames u8 (n, SIZE, SIZE, 3), and the class of each."""
    ground = rng.uniform(0, 120, 3) + rng.normal(0, 8, (SIZE, SIZE, 1))
    colour = rng.uniform(130, 255, 3)
    low, high = 6, SIZE - SQUARE - 6
    x, y = rng.uniform(low, high), rng.integers(low, high)
    frames, classes, left, kind = [], [], 0, 1
    while len(frames) < n:
        if left == 0:
            # It rests between two moves.
            left, kind = int(rng.integers(12, 40)), 0 if kind else int(rng.integers(1, 3))
            speed = rng.uniform(0.6, 1.5)
            if kind:
                # Where there is more room for it, if there is too little.
                room = {1: x - low, 2: high - x}
                kind = kind if room[kind] >= 12 * speed else 3 - kind
                left = min(left, int(room[kind] / speed))
        x += (0.0, -speed, speed)[kind]
        # Edges between pixels are shades.
        share = np.clip(np.arange(SIZE) + 1 - x, 0, 1) * np.clip(x + SQUARE - np.arange(SIZE), 0, 1)
        frame = ground.copy()
        frame[y : y + SQUARE] += share[:, None] * (colour - frame[y : y + SQUARE])
        frames.append(frame + rng.normal(0, 2, frame.shape))
        classes.append(kind)
        left -= 1
    return np.clip(frames, 0, 255).astype(np.uint8), np.array(classes)


def random_vim(rng):
    """Weights of a Vim without a class token under the published names: the head sees the mean over the patches."""
    uniform = lambda inputs, *shape: rng.uniform(-1, 1, shape) / math.sqrt(inputs)  # noqa: E731
    rank = math.ceil(D / 16)
    w = {
        "patch_embed.proj.weight": uniform(3 * PATCH * PATCH, D, 3, PATCH, PATCH),
        "patch_embed.proj.bias": uniform(3 * PATCH * PATCH, D),
        "pos_embed": rng.normal(0, 0.3, (1, (IMAGE // PATCH) ** 2, D)),
        "norm_f.weight": np.ones(D),
    }
    for i in range(DEPTH):
        mixer = f"layers.{i}.mixer."
        w[f"layers.{i}.norm.weight"] = np.ones(D)
        w[mixer + "in_proj.weight"] = uniform(D, 2 * INNER, D)
        w[mixer + "out_proj.weight"] = uniform(INNER, D, INNER)
        for back in ("", "_b"):
            log = "A_b_log" if back else "A_log"
            w[mixer + log] = np.log(np.tile(np.arange(1.0, STATES + 1), (INNER, 1)))
            w[mixer + "D" + back] = np.ones(INNER)
            w[mixer + f"conv1d{back}.weight"] = uniform(4, INNER, 1, 4)
            w[mixer + f"conv1d{back}.bias"] = uniform(4, INNER)
            w[mixer + f"x_proj{back}.weight"] = uniform(INNER, rank + 2 * STATES, INNER)
            w[mixer + f"dt_proj{back}.weight"] = uniform(rank, INNER, rank)
            w[mixer + f"dt_proj{back}.bias"] = np.log(np.expm1(np.exp(rng.uniform(math.log(1e-3), math.log(0.1), INNER))))
    return {k: torch.from_numpy(np.ascontiguousarray(v)).float() for k, v in w.items()}


VIM = {"img_size": [IMAGE, IMAGE], "stride": PATCH, "final_pool_type": "mean"}


def gstreamer(line):
    done = subprocess.run(["gst-launch-1.0", "-q", *line.split()], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"gst-launch-1.0 {line}\n{done.stderr}")


def lines(frames, elements, folder):
    """The lines of JSON of frames that go through elements."""
    raw, out = folder / "frames.rgb", folder / "lines.jsonl"
    frames.tofile(raw)
    source = f"filesrc location={raw} blocksize={SIZE * SIZE * 3} ! rawvideoparse format=rgb width={SIZE} height={SIZE}"
    gstreamer(f"{source} framerate={RATE}/1 ! {elements} ! ssmjson format=base64 ! filesink location={out}")
    found = [json.loads(line) for line in out.read_text().splitlines()]
    raw.unlink()
    out.unlink()
    return found


def vectors(frames, folder):
    """What the encoder makes of frames (n, …): (n, D)."""
    found = lines(frames, f"ssmembed threads=1 model={folder / 'encoder.safetensors'}", folder)
    return np.stack([np.frombuffer(base64.b64decode(line["vector"]), "<f4") for line in found])


class Head(nn.Module):
    """What stands behind the encoder: the vector of the step before beside the present one, the core, the scores."""

    def __init__(self, x):
        super().__init__()
        self.in_proj = nn.Linear(2 * D, CORE["d_model"])
        self.core, self.config = build("mamba", **CORE)
        self.head = nn.Linear(CORE["d_model"], len(CLASSES))
        # The vectors hardly change from frame to frame: vectors and changes are trained on in units of their own.
        self.mean, self.spread, self.change = x.mean((0, 1)), x.std((0, 1)), x.diff(dim=1).std((0, 1))

    def forward(self, v):
        before = functional.pad(v, (0, 0, 1, 0))[:, :-1]
        units = torch.cat([(v - self.mean) / self.spread, (v - before) / self.change], -1)
        return self.head(self.core(self.in_proj(units)))

    def weights(self):
        """As the library has them: in_proj sees [v | before], so the units go into its weights."""
        w = {k: v.detach().clone() for k, v in self.state_dict().items()}
        level, change = w["in_proj.weight"].chunk(2, -1)
        w["in_proj.bias"] -= level @ (self.mean / self.spread)
        w["in_proj.weight"] = torch.cat([level / self.spread + change / self.change, -change / self.change], -1)
        return w


def train(model, x, classes, steps, batch):
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    rng = np.random.default_rng(3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
        chosen = rng.choice(len(x), batch, replace=False)
        scores = model(x[chosen])[:, LOOK_AHEAD:]
        loss = functional.cross_entropy(scores.flatten(0, 1), classes[chosen][:, : FRAMES - LOOK_AHEAD].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder of this run")
    p.add_argument("--smoke", action="store_true", help="tiny settings, seconds")
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    count, steps, batch = (6, 10, 2) if args.smoke else (150, 250, 16)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)

    # 1. An encoder. Any Vim or VMamba of yours stands here just as well.
    encoder = random_vim(np.random.default_rng(1))
    config = {"model": VIM}
    save_file(encoder, args.out / "encoder.safetensors", {"config": json.dumps(config)})

    # 2. What it makes of every frame. It sees each alone, so all sequences go through as one video.
    rng = np.random.default_rng(2)
    made = [sequence(rng, FRAMES) for _ in range(count + 10)]
    x = vectors(np.concatenate([frames for frames, _ in made]), args.out).reshape(len(made), FRAMES, D)
    x, classes = torch.from_numpy(x), torch.from_numpy(np.stack([c for _, c in made]))

    # 3. Core and head, on those vectors; the last ten sequences are kept out.
    model = Head(x[:count])
    train(model, x[:count], classes[:count], steps, batch)
    with torch.no_grad():
        scores = model(x[count:]).softmax(-1)
    right = scores[:, LOOK_AHEAD:].argmax(-1) == classes[count:, : FRAMES - LOOK_AHEAD]
    print(f"{100 * right.float().mean().item():.1f} % of the frames kept out have the right class")

    # 4. One file of all three.
    config = {
        "family": "composite",
        "version": 1,
        "step_rate": RATE,
        "input": {"height": IMAGE, "width": IMAGE},
        "encoder": {"kind": "vim", "model": VIM, "difference": True},
        "core": model.config,
        "head": {"kind": "linear", "classes": list(CLASSES), "activation": "softmax", "look_ahead": LOOK_AHEAD},
    }
    weights = {f"encoder.{k}": w for k, w in encoder.items()} | model.weights()
    save_file(weights, args.out / "head.safetensors", {"config": json.dumps(config)})

    # 5. The library's scores of a sequence that was kept out are PyTorch's.
    found = lines(made[count][0], f"ssmevents threads=1 model={args.out / 'head.safetensors'} frame-scores=true", args.out)
    ours = [{c["index"]: c["score"] for c in line["classes"]} for line in found if line["kind"] == "classes"]
    ours = np.array([[c[i] for i in range(len(CLASSES))] for c in ours])
    theirs = scores[0, LOOK_AHEAD:].numpy()
    apart = np.abs(ours[: len(theirs)] - theirs).max()
    print(f"{len(theirs)} frames: the library's probabilities are within {apart:.1e} of PyTorch's")
    if len(ours) < len(theirs) or not apart < 1e-4:
        sys.exit("expected the same within 1e-4")

    # 6. A video to try it on, and what happens in it.
    frames, classes = sequence(rng, 300)
    raw = args.out / "video.rgb"
    frames.tofile(raw)
    source = f"filesrc location={raw} ! rawvideoparse format=rgb width={SIZE} height={SIZE} framerate={RATE}/1"
    gstreamer(f"{source} ! videoconvert ! vp8enc target-bitrate=2000000 deadline=1 ! webmmux ! filesink location={args.out / 'video.webm'}")
    raw.unlink()
    edges = [0, *(np.flatnonzero(np.diff(classes)) + 1).tolist(), len(classes)]
    truth = [{"first": a, "last": b - 1, "kind": CLASSES[classes[a]]} for a, b in zip(edges, edges[1:])]
    (args.out / "video.json").write_text("\n".join(map(json.dumps, truth)) + "\n")


if __name__ == "__main__":
    main()
