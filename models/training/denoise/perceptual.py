"""Measures of listening as losses, at 16 kHz: `Perceptual` after PESQ, `Intelligible` after extended STOI.

`Perceptual` is a distance after ITU-T P.862 and P.862.2, wide band (Martín-Doñas et al. 2018). Power in Bark bands, thresholds of hearing, Zwicker's loudness, the difference less what is masked, and the same with what was
added weighing more than what was lost. What the standard does besides is left out or simpler: no time alignment, no
input filter, no levelling of single frames; bands from formulas instead of tables. It follows PESQ (correlation 0.90 on
mixtures), it is not PESQ.

`Intelligible` is the mean correlation of third-octave spectra over 0.4 s (Jensen & Taal 2016), at 16 kHz instead of 10 kHz and
without cutting silence out: stretches 30 dB below the loudest do not count."""


import torch
from torch import nn

RATE, WINDOW, HOP = 16_000, 512, 256
BANDS = 49
POWER, LOUDNESS = 6.910853e-6, 1.866055e-1  # Sp and Sl of the standard at 16 kHz
LEVEL = 1e7  # mean power of the aligned speech between 325 Hz and 3250 Hz
LONG = 20  # frames of 16 ms over which bursts count by their sixth power


def bark(f):
    """Critical band rate of frequencies in Hz (Zwicker & Terhardt 1980)."""
    return 13 * torch.atan(0.00076 * f) + 3.5 * torch.atan((f / 7500) ** 2)


class Perceptual(nn.Module):
    def __init__(self):
        super().__init__()
        f = torch.arange(WINDOW // 2 + 1, dtype=torch.float64) * RATE / WINDOW
        z = bark(f)
        edges = torch.linspace(float(bark(f.new_tensor(60.0))), float(z[-1]), BANDS + 1, dtype=torch.float64)
        # A bin is as wide as the distance to its neighbours and gives each band what lies in it.
        half = torch.gradient(z)[0] / 2
        low, high = (z - half)[:, None], (z + half)[:, None]
        inside = torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])
        middle = (edges[1:] + edges[:-1]) / 2
        centre = torch.stack([f[(z - m).abs().argmin()] for m in middle]).clamp_min(60) / 1000
        # Threshold in quiet in dB (Terhardt 1979).
        quiet = 3.64 * centre**-0.8 - 6.5 * torch.exp(-0.6 * (centre - 3.3) ** 2) + 1e-3 * centre**4
        exponent = 0.23 * torch.where(middle < 4, 6 / (middle + 2), 1.0).clamp(max=2) ** 0.15
        constants = {
            "share": inside.clamp_min(0) / (2 * half[:, None]),
            "width": edges[1:] - edges[:-1],
            "quiet": 10 ** (quiet.clamp(max=60) / 10),
            "exponent": exponent,
            "taper": torch.hann_window(WINDOW, dtype=torch.float64),
            "speech": (f >= 325) & (f <= 3250),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.float(), persistent=False)

    def bands(self, x):
        """Power in Bark bands (B, frames, 49) of x (B, n), brought to the standard's level."""
        s = torch.fft.rfft(x.unfold(1, WINDOW, HOP) * self.taper)
        p = s.real.square() + s.imag.square()
        level = (p * self.speech).sum(-1).mean(1) * 2 / (WINDOW * WINDOW * 0.375)
        return p * (LEVEL * POWER / level.clamp_min(1e-12))[:, None, None] @ self.share

    def loudness(self, p):
        q, e = self.quiet, self.exponent
        return LOUDNESS * (q / 0.5) ** e * ((0.5 + 0.5 * p / q).clamp_min(0.5) ** e - 1)

    def forward(self, y, x):
        """Raw quality (B,), at most 4.5, of y beside clean x, both (B, n), n at least 0.34 s."""
        py, px = self.bands(y), self.bands(x)
        total = px.sum(-1)
        active = (total > total.amax(1, keepdim=True) * 1e-4)[..., None].float()
        mean = lambda p: (p * active).sum(1) / active.sum(1)  # noqa: E731
        # A constant colour is forgiven up to 20 dB.
        colour = ((mean(py) + 1000) / (mean(px) + 1000)).clamp(0.01, 100).detach()
        ly, lx = self.loudness(py), self.loudness(px * colour[:, None])
        d = torch.relu((ly - lx).abs() - 0.25 * torch.minimum(ly, lx)) + 1e-4
        added = ((py + 50) / (px + 50)) ** 1.2
        added = torch.where(added < 3, 0.0, added.clamp(max=12))
        w = self.width
        both = torch.sqrt((d * w).square().sum(-1) / w.sum() + 1e-8) * w.sum()
        worse = (d * added * w).sum(-1)
        loud = ((total + 1e5) / 1e7) ** 0.04
        return 4.5 - 0.1 * over_time((both / loud).clamp(max=45)) - 0.0309 * over_time((worse / loud).clamp(max=45))


def over_time(d):
    """One figure (B,) of frames (B, T)."""
    d = d[:, : d.shape[1] // LONG * LONG].unflatten(1, (-1, LONG))
    return ((d**6).mean(-1) + 1e-9).pow(1 / 3).mean(-1).sqrt()


class Intelligible(nn.Module):
    WINDOW, FFT, HOP = 400, 512, 200
    FRAMES, STEP = 32, 4  # of a stretch, and from one to the next
    BANDS, LOWEST = 15, 150.0  # Hz

    def __init__(self):
        super().__init__()
        f = torch.arange(self.FFT // 2 + 1, dtype=torch.float64)[:, None] * RATE / self.FFT
        centre = self.LOWEST * 2 ** (torch.arange(self.BANDS, dtype=torch.float64) / 3)
        inside = (f >= centre * 2 ** (-1 / 6)) & (f < centre * 2 ** (1 / 6))
        self.register_buffer("share", inside.float(), persistent=False)
        self.register_buffer("taper", torch.hann_window(self.WINDOW), persistent=False)

    def stretches(self, x):
        """Magnitudes in bands of x (B, n): (B, stretches, bands, frames)."""
        s = torch.fft.rfft(x.unfold(1, self.WINDOW, self.HOP) * self.taper, self.FFT)
        bands = (s.real.square() + s.imag.square()) @ self.share
        return torch.sqrt(bands + 1e-9).unfold(1, self.FRAMES, self.STEP)

    @staticmethod
    def levelled(s):
        """Without mean and of length 1: each band over a stretch, then each frame over the bands."""
        for axis in (-1, -2):
            s = s - s.mean(axis, keepdim=True)
            s = s * (s.square().sum(axis, keepdim=True) + 1e-9).rsqrt()
        return s

    def forward(self, y, x):
        """Correlation (B,) of y with clean x, both (B, n), of about the same level as noise of power 1; n at least 0.5 s."""
        y, x = self.stretches(y), self.stretches(x)
        power = x.square().sum((-1, -2))
        counts = (power > power.amax(1, keepdim=True) * 1e-3).float()
        alike = (self.levelled(y) * self.levelled(x)).sum((-1, -2)) / self.FRAMES
        return (alike * counts).sum(1) / counts.sum(1)
