"""The network: convolutions over each frame, how much the frame looks like each of the last ones, Mamba over time, a score
for every kind of transition.

The tensor names and the arithmetic are those of the library's composites (docs/composites.md): encoder `conv` with
`similarity`, core `mamba`, head `linear`. The scores of a step are about the frame LOOK_AHEAD steps before.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edits import CLASSES, HEIGHT, WIDTH  # noqa: E402
from mamba import Layer, RMSNorm  # noqa: E402

LOOK_AHEAD = 8  # frames
STEP_RATE = 25.0  # frames a second
MEAN, STD = 0.4, 0.25  # of every colour
CONFIG = {
    "channels": (16, 32, 64),
    "pool": (4, 6),
    "width": 64,
    "similarity": 24,
    "d_model": 96,
    "layers": 3,
    "d_state": 16,
    "dt_rank": 6,
}


class Encoder(nn.Module):
    """Frames (N, 3, 27, 48) to vectors (N, width)."""

    def __init__(self, channels, pool, width):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip((3, *channels[:-1]), channels)
        )
        self.pool = pool
        self.proj = nn.Linear(channels[-1] * (1 + pool[0] * pool[1]), width)

    def forward(self, x):
        for conv in self.convs:
            x = functional.silu(conv(x))
        cells = functional.adaptive_avg_pool2d(x, self.pool).flatten(1)
        return self.proj(torch.cat([x.mean((2, 3)), cells], 1))


class Core(nn.Module):
    def __init__(self, d_model, layers, d_state, dt_rank):
        super().__init__()
        self.layers = nn.ModuleList(Layer(d_model, d_state, dt_rank, layers) for _ in range(layers))
        self.norm_f = RMSNorm(d_model)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)


class Transitions(nn.Module):
    def __init__(self, channels, pool, width, similarity, d_model, layers, d_state, dt_rank):
        super().__init__()
        self.similarity = similarity
        self.encoder = Encoder(channels, pool, width)
        self.in_proj = nn.Linear(width + similarity, d_model)
        self.core = Core(d_model, layers, d_state, dt_rank)
        self.head = nn.Linear(d_model, len(CLASSES))
        with torch.no_grad():
            self.head.bias.fill_(-3.0)

    def likeness(self, v):
        """(B, T, K): cosine of each vector with the K before it, the nearest first; 0 before the stream."""
        unit = v / (v.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        before = functional.pad(unit, (0, 0, self.similarity, 0))
        n = v.shape[1]
        return torch.stack(
            [(unit * before[:, self.similarity - k : self.similarity - k + n]).sum(-1) for k in range(1, self.similarity + 1)],
            -1,
        )

    def forward(self, frames):
        """Scores before the sigmoid (B, T, classes) of frames u8 (B, T, 27, 48, 3)."""
        b, t = frames.shape[:2]
        x = (frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD  # colours innermost, which is faster
        v = self.encoder(x).view(b, t, -1)
        return self.head(self.core(self.in_proj(torch.cat([v, self.likeness(v)], -1))))


def library_config(config):
    """The configuration that the library reads from the file's metadata."""
    return {
        "family": "composite",
        "version": 1,
        "step_rate": STEP_RATE,
        "input": {"height": HEIGHT, "width": WIDTH, "mean": [MEAN] * 3, "std": [STD] * 3, "crop": 1.0},
        "encoder": {"kind": "conv", "pool": list(config["pool"]), "similarity": config["similarity"]},
        "core": {"kind": "mamba"},
        "head": {"kind": "linear", "classes": list(CLASSES), "activation": "sigmoid", "look_ahead": LOOK_AHEAD},
    }
