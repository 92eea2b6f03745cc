"""The network: short-time spectrum, bands run along time and across, a complex mask, and back; or, smaller, one path over
all bands with a sequence core of any kind in between.

A hop is 160 samples of 16 kHz, a frame the last 512 of which two hops come out again; the stream is taken to begin with
silence. The tensor names and the arithmetic are those of the family `band_mask` of the library.
"""

import math
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cores import build  # noqa: E402
from mamba import Mixer, RMSNorm  # noqa: E402

RATE = 16_000  # Hz
# Bins of each band: 94 Hz up to 1.1 kHz, 190 Hz up to 3 kHz, 380 Hz up to 5.3 kHz, then 700 Hz.
BANDS = [3] * 12 + [6] * 10 + [12] * 6 + [22] * 3 + [23]
CONFIG = {"hop": 160, "bands": BANDS, "d_band": 32, "d_full": 128, "blocks": 3, "d_state": 8, "d_state_full": 16}
# One path with a core: about 0.49 M parameters each, 0.35 M of them the core's.
CORES = {
    "mamba": {"layers": 3, "d_state": 16, "dt_rank": 8},
    "mamba2": {"layers": 3, "d_state": 64, "head_dim": 32},
    "s4d": {"layers": 3, "states": 32, "hidden": 150},
    "moe_mamba": {"layers": 2, "d_state": 16, "dt_rank": 8, "experts": 4, "hidden": 57},
    "bst": {"layers": 2, "heads": 4, "hidden": 128, "states": 16, "window": 64},
}
POWER_FLOOR = 1e-7
COMPRESSION = -0.35  # of power: magnitudes to 0.3


def tapers(window, hop):
    """Windows (window,) of analysis and (2 hop,) of synthesis; over the last two hops their product is a Hann window."""
    n = torch.arange(window, dtype=torch.float64) + 0.5
    rise = window - hop
    analysis = torch.where(n < rise, torch.sin(math.pi / 2 * n / rise), torch.cos(math.pi / 2 * (n - rise) / hop))
    hann = torch.sin(math.pi / 2 * (torch.arange(2 * hop, dtype=torch.float64) + 0.5) / hop).square()
    return analysis, hann / analysis[-2 * hop :]


class Statistics(nn.Module):
    def __init__(self, bins):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, bins))
        self.register_buffer("scale", torch.ones(3, bins))

    def forward(self, f):
        return (f - self.mean) * self.scale


class Along(nn.Module):
    """A Mamba along time, the same for every band, on (B, T, K, D)."""

    def __init__(self, d, d_state, blocks):
        super().__init__()
        self.norm = RMSNorm(d)
        self.mixer = Mixer(d, d_state, max(d // 16, 1), blocks)

    def forward(self, x):
        b, t, k, d = x.shape
        y = self.mixer(self.norm(x).transpose(1, 2).reshape(b * k, t, d))
        return x + y.view(b, k, t, d).transpose(1, 2)


class Across(nn.Module):
    """A narrow path over all bands of a frame: (B, T, K, D) to the same, and the path (B, T, U)."""

    def __init__(self, bands, d, u, d_state, blocks):
        super().__init__()
        self.norm = RMSNorm(d)
        self.in_proj = nn.Linear(bands * d, u)
        self.norm_full = RMSNorm(u)
        self.mixer = Mixer(u, d_state, max(u // 16, 1), blocks)
        self.out_proj = nn.Linear(u, bands * d)
        with torch.no_grad():
            self.out_proj.weight.mul_(0.3)

    def forward(self, x):
        u = self.in_proj(self.norm(x).flatten(2))
        u = u + self.mixer(self.norm_full(u))
        return x + self.out_proj(functional.silu(u)).view_as(x), u


class Block(nn.Module):
    def __init__(self, bands, d, u, d_state, d_state_full, blocks):
        super().__init__()
        self.band = Along(d, d_state, blocks)
        self.full = Across(bands, d, u, d_state_full, blocks)

    def forward(self, x):
        return self.full(self.band(x))


def with_core(kind):
    """The configuration of one path over all bands with a core of this kind."""
    return {"hop": 160, "bands": BANDS, "d_band": 16, "d_full": 128, "core": {"kind": kind, **CORES[kind]}}


class Denoiser(nn.Module):
    def __init__(self, hop, bands, d_band, d_full, blocks=0, d_state=0, d_state_full=0, core=None):
        super().__init__()
        self.hop, self.bands = hop, bands
        bins = sum(bands)
        self.window = 2 * (bins - 1)
        analysis, synthesis = tapers(self.window, hop)
        self.register_buffer("analysis", analysis, persistent=False)
        self.register_buffer("shaping", synthesis, persistent=False)
        self.input_norm = Statistics(bins)
        self.encode = nn.ModuleList(nn.Linear(3 * w, d_band) for w in bands)
        self.core = None
        if core:
            self.in_proj = nn.Linear(len(bands) * d_band, d_full)
            self.core, self.core_fields = build(core["kind"], d_full, **{k: v for k, v in core.items() if k != "kind"})
            self.out_proj = nn.Linear(d_full, len(bands) * d_band)
        else:
            self.blocks = nn.ModuleList(
                Block(len(bands), d_band, d_full, d_state, d_state_full, blocks) for _ in range(blocks)
            )
        self.norm_f = RMSNorm(d_band)
        self.decode = nn.ModuleList(nn.Linear(d_band, 2 * w) for w in bands)
        self.vad = nn.Linear(d_full, 1)
        with torch.no_grad():
            for part in self.encode:
                part.weight.normal_(0, part.in_features**-0.5)
            for part in self.decode:
                part.weight.normal_(0, 0.3 * d_band**-0.5)
                part.bias.copy_((torch.arange(part.out_features) < part.out_features // 2).float())

    def spectrum(self, x):
        """(B, n) to complex (B, hops + 1, bins); n is filled up to a multiple of the hop."""
        x = functional.pad(x, (self.window - self.hop, -x.shape[1] % self.hop + self.hop))
        return torch.fft.rfft(x.unfold(1, self.window, self.hop) * self.analysis.to(x.dtype))

    @staticmethod
    def features(s):
        """Log power, and both parts with magnitudes to the power 0.3: (B, T, 3, bins)."""
        p = s.real.square() + s.imag.square() + POWER_FLOOR
        scale = p.pow(COMPRESSION)
        return torch.stack([p.log(), s.real * scale, s.imag * scale], 2)

    def masks(self, s):
        """Complex mask, and speech logit (B, frames), of a spectrum."""
        f = self.input_norm(self.features(s)).split(self.bands, -1)
        x = torch.stack([encode(part.flatten(2)) for encode, part in zip(self.encode, f)], 2)
        if self.core:
            path = self.core(self.in_proj(x.flatten(2)))
            x = x + self.out_proj(functional.silu(path)).view_as(x)
        else:
            for block in self.blocks:
                x, path = block(x)
        x = self.norm_f(x)
        parts = [decode(band).chunk(2, -1) for decode, band in zip(self.decode, x.unbind(2))]
        u, v = (torch.cat(side, -1) for side in zip(*parts))
        r = torch.sqrt(u * u + v * v + 1e-12)
        gain = torch.tanh(r) / r
        return torch.complex(u * gain, v * gain), self.vad(path)[..., 0]

    def synthesis(self, s, n):
        """Overlap and add: (B, frames, bins) to (B, n), in line with the input."""
        frames = torch.fft.irfft(s, self.window)[..., -2 * self.hop :] * self.shaping.to(s.real.dtype)
        x = frames[:, :-1, self.hop :] + frames[:, 1:, : self.hop]
        return x.flatten(1)[:, :n]

    def forward(self, x, details=False):
        """Enhanced (B, n) of noisy (B, n); with `details` also its spectrum, the mask and the speech logit."""
        s = self.spectrum(x)
        mask, vad = self.masks(s)
        y = self.synthesis(mask * s, x.shape[1])
        return (y, mask * s, mask, vad) if details else y
