"""The network: short-time spectrum, a stack of Mamba layers, a complex mask, and back.

A frame is 320 samples of 16 kHz, a hop 160; the stream is taken to begin with one hop of silence. The tensor names and the
arithmetic are those of the family `spec_mamba` of the library.
"""

import math
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mamba import Layer, RMSNorm  # noqa: E402

RATE = 16_000  # Hz
CONFIG = {"window": 320, "hop": 160, "d_model": 128, "layers": 4, "d_state": 16, "dt_rank": 8}
POWER_FLOOR = 1e-7


class Statistics(nn.Module):
    def __init__(self, bins):
        super().__init__()
        self.register_buffer("mean", torch.full((bins,), -6.0))
        self.register_buffer("scale", torch.full((bins,), 0.25))

    def forward(self, f):
        return (f - self.mean) * self.scale


class Denoiser(nn.Module):
    def __init__(self, window, hop, d_model, layers, d_state, dt_rank):
        super().__init__()
        self.window, self.hop = window, hop
        bins = window // 2 + 1
        n = torch.arange(window, dtype=torch.float64)
        self.register_buffer("taper", (0.5 - 0.5 * torch.cos(2 * math.pi * n / window)).sqrt(), persistent=False)
        self.input_norm = Statistics(bins)
        self.in_proj = nn.Linear(bins, d_model)
        self.layers = nn.ModuleList(Layer(d_model, d_state, dt_rank, layers) for _ in range(layers))
        self.norm_f = RMSNorm(d_model)
        self.mask = nn.Linear(d_model, 2 * bins)
        self.vad = nn.Linear(d_model, 1)
        with torch.no_grad():
            self.mask.weight.mul_(0.3)
            self.mask.bias.copy_((torch.arange(2 * bins) < bins).float())

    def spectrum(self, x):
        """(B, n) to complex (B, hops + 1, bins); n is filled up to a multiple of the hop."""
        x = functional.pad(x, (self.hop, -x.shape[1] % self.hop + self.hop))
        return torch.fft.rfft(x.unfold(1, self.window, self.hop) * self.taper.to(x.dtype))

    def features(self, s):
        """Normalised log power of a spectrum."""
        return self.input_norm(torch.log(s.real.square() + s.imag.square() + POWER_FLOOR))

    def masks(self, s):
        """Complex mask, and speech logit (B, frames), of a spectrum."""
        x = self.in_proj(self.features(s))
        for layer in self.layers:
            x = layer(x)
        x = self.norm_f(x)
        u, v = self.mask(x).chunk(2, -1)
        r = torch.sqrt(u * u + v * v + 1e-12)
        gain = torch.tanh(r) / r
        return torch.complex(u * gain, v * gain), self.vad(x)[..., 0]

    def synthesis(self, s, n):
        """Overlap and add: (B, frames, bins) to (B, n), in line with the input."""
        frames = torch.fft.irfft(s, self.window) * self.taper.to(s.real.dtype)
        x = frames[:, :-1, self.hop :] + frames[:, 1:, : self.hop]
        return x.flatten(1)[:, :n]

    def forward(self, x, details=False):
        """Enhanced (B, n) of noisy (B, n); with `details` also its spectrum, the mask and the speech logit."""
        s = self.spectrum(x)
        mask, vad = self.masks(s)
        y = self.synthesis(mask * s, x.shape[1])
        return (y, mask * s, mask, vad) if details else y
