"""A small causal U-Net on the waveform with Mamba at its bottom: CleanUMamba (Groot et al. 2025, arXiv 2410.11062,
Figure 1) with the tensor names of its published files, so that models/src/cleanumamba.rs loads what is trained here.

Shapes: B streams, T samples, C channels, R rows (time steps). Everything inside is kept as (B, R, C): then every
convolution is a matrix product over neighbouring rows. With E levels a hop is 2^E samples, and a frame, what one hop of
output looks at, is 3 * 2^E - 2 samples.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FLOOR = 1e-3  # added to the level, full scale 1
HORIZON = 10.0  # s, of the smoothed level
RATE = 16_000  # Hz

CONFIG = {
    "channels": [16, 24, 32, 48, 64, 96],  # outputs of each encoder level; 2^6 = 64 samples (4 ms) a hop
    "d_model": 64,
    "layers": 3,
    "expand": 2,
    "d_state": 16,
    "d_conv": 4,
}


class SelectiveScan(torch.autograd.Function):
    """Mamba, Algorithm 2: ``h = exp(delta a) h + delta u b``, ``y = c h``, from h = 0, step by step in time.

    Time comes first: u, delta (L, B, E); a (E, N), negative; b, c (L, B, N). Returns y (L, B, E). The states of all
    steps are kept for the way back, exp(delta a) is computed anew there.
    """

    BLOCK = 16  # steps whose exponentials are computed at once; small enough for the cache

    @staticmethod
    def forward(ctx, u, delta, a, b, c):
        length, batch, e = u.shape
        n = a.shape[1]
        h, y = u.new_zeros(length + 1, batch, e, n), torch.empty_like(u)
        du = delta * u
        for start in range(0, length, SelectiveScan.BLOCK):
            block = slice(start, min(start + SelectiveScan.BLOCK, length))
            da = torch.exp(delta[block].unsqueeze(-1) * a)
            new = h[start + 1 : block.stop + 1]
            torch.mul(du[block].unsqueeze(-1), b[block].unsqueeze(2), out=new)
            for i in range(new.shape[0]):
                new[i].addcmul_(da[i], h[start + i])
            y[block] = torch.matmul(new, c[block].unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(u, delta, a, b, c, h)
        return y

    @staticmethod
    def backward(ctx, dy):
        u, delta, a, b, c, h = ctx.saved_tensors
        length, batch, e = u.shape
        du, ddelta, db, dc = (torch.empty_like(t) for t in (u, delta, b, c))
        grad_a = torch.zeros_like(a)
        carried = u.new_zeros(batch, e, a.shape[1])  # what the step after gives back to h
        for stop in range(length, 0, -SelectiveScan.BLOCK):
            block = slice(max(stop - SelectiveScan.BLOCK, 0), stop)
            dc[block] = torch.matmul(dy[block].unsqueeze(2), h[block.start + 1 : stop + 1]).squeeze(2)
            da = torch.exp(delta[block].unsqueeze(-1) * a)
            g = dy[block].unsqueeze(-1) * c[block].unsqueeze(2)
            for i in reversed(range(g.shape[0])):
                g[i] += carried
                torch.mul(g[i], da[i], out=carried)
            db[block] = torch.matmul((delta[block] * u[block]).unsqueeze(2), g).squeeze(2)
            gb = torch.matmul(g, b[block].unsqueeze(-1)).squeeze(-1)
            du[block] = gb * delta[block]
            exponent = g.mul_(da).mul_(h[block])  # gradient of delta a
            ddelta[block] = gb * u[block] + (exponent * a).sum(-1)
            grad_a += (exponent * delta[block].unsqueeze(-1)).sum((0, 1))
        return du, ddelta, grad_a, db, dc


class Mixer(nn.Module):
    """Mamba's block (Gu & Dao 2023, Figure 3)."""

    def __init__(self, d_model, expand, d_state, d_conv, layers):
        super().__init__()
        e, self.d_state, self.dt_rank = expand * d_model, d_state, math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * e, bias=False)
        self.conv1d = nn.Conv1d(e, e, d_conv, groups=e)
        self.x_proj = nn.Linear(e, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, e)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1).float().log().repeat(e, 1))
        self.D = nn.Parameter(torch.ones(e))
        self.out_proj = nn.Linear(e, d_model, bias=False)
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(layers)
            # Steps of 1e-3 to 1e-1, evenly in the logarithm, behind the softplus.
            step = torch.exp(torch.linspace(math.log(1e-3), math.log(1e-1), e)[torch.randperm(e)])
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
            nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)

    def forward(self, x):
        """x and result (L, B, D)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        taps = self.conv1d.weight.shape[2]
        padded = F.pad(x, (0, 0, 0, 0, taps - 1, 0))
        x = self.conv1d.bias
        for k in range(taps):
            x = x + padded[k : k + z.shape[0]] * self.conv1d.weight[:, 0, k]
        x = F.silu(x)
        dt, b, c = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.softplus(self.dt_proj(dt))
        y = SelectiveScan.apply(x, delta, -torch.exp(self.A_log), b, c)
        return self.out_proj((y + x * self.D) * F.silu(z))


class Layer(nn.Module):
    """A normed Mamba block; the residual is kept by the caller."""

    def __init__(self, d_model, **mixer):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.mixer = Mixer(d_model, **mixer)


def conv_4_2(conv, x, scale=None):
    """The convolution of width 4 and stride 2 as two products: x (B, R, C), R even, to (B, R / 2 - 1, H). `scale`
    (B, R / 2 - 1, 1) multiplies what comes out before the bias."""
    b, r, c = x.shape
    pairs = x.reshape(b, r // 2, 2 * c)
    w = conv.weight.permute(0, 2, 1)  # (H, 4, C)
    early, late = w[:, :2].reshape(-1, 2 * c), w[:, 2:].reshape(-1, 2 * c)
    y = F.linear(pairs[:, :-1], early) + F.linear(pairs[:, 1:], late)
    return (y if scale is None else y * scale) + conv.bias


def transposed_4_2(conv, x):
    """The transposed convolution of width 4 and stride 2: x (B, R, C) to (B, 2 R + 2, Cout)."""
    b, r, _ = x.shape
    out = conv.weight.shape[1]
    y = x @ conv.weight.permute(0, 2, 1).reshape(-1, 4 * out)  # rows (tap, channel)
    y = F.pad(y[..., : 2 * out], (0, 0, 0, 1)) + F.pad(y[..., 2 * out :], (0, 0, 1, 0))
    return y.reshape(b, 2 * r + 2, out) + conv.bias


class Denoiser(nn.Module):
    """The network. `level_rule`: "none", the samples go in as they are, or "smoothed", see `divisors`."""

    def __init__(self, channels, d_model, layers, expand, d_state, d_conv, level_rule="smoothed"):
        super().__init__()
        self.depth, self.level_rule = len(channels), level_rule
        self.hop = 1 << self.depth
        self.frame = 3 * self.hop - 2
        point = lambda i, o: nn.Conv1d(i, o, 1)  # noqa: E731
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        inputs = [1, *channels[:-1]]
        for i, o in zip(inputs, channels):
            self.encoder.append(nn.Sequential(nn.Conv1d(i, o, 4, 2), nn.ReLU(), point(o, 2 * o), nn.GLU(1)))
        for i, o in list(zip(inputs, channels))[::-1]:
            tail = [nn.ReLU()] if i > 1 else []
            self.decoder.append(nn.Sequential(point(o, 2 * o), nn.GLU(1), nn.ConvTranspose1d(o, i, 4, 2), *tail))
        self.tsfm_conv1 = point(channels[-1], d_model)
        mixer = {"expand": expand, "d_state": d_state, "d_conv": d_conv, "layers": layers}
        self.tsfm_Mamba_layers = nn.ModuleList(Layer(d_model, **mixer) for _ in range(layers))
        self.norm_f = nn.LayerNorm(d_model)
        self.tsfm_conv2 = point(d_model, channels[-1])

    def hops(self, samples):
        """Frames of a clip that is zero-padded at its end to leave no remainder."""
        return max(0, -(-(samples - self.frame) // self.hop)) + 1

    def forward(self, x, divisors=None):
        """x (B, T) to (B, T). `divisors` (B, hops): the level of each hop; by default what the level rule says."""
        hops = self.hops(x.shape[1])
        if divisors is None:
            divisors = torch.ones(len(x), hops)
            if self.level_rule == "smoothed":
                rows = [smoothed_level(row, hops, self.hop, self.frame) for row in x.detach().cpu().numpy()]
                divisors = torch.from_numpy(np.stack(rows))
            divisors = divisors.to(x)
        padded = F.pad(x, (0, (hops - 1) * self.hop + self.frame - x.shape[1]))
        # The rows of the first level that a frame brings (the first frame brings more) are divided by its level.
        rows = divisors.repeat_interleave(self.hop // 2, dim=1)
        first = self.frame // 2 - 1 - self.hop // 2
        scale = 1 / torch.cat([divisors[:, :1].expand(-1, first), rows], dim=1).unsqueeze(-1)

        y, skips = padded.unsqueeze(-1), []
        for conv, _, squeeze, _ in self.encoder:
            y = F.relu(conv_4_2(conv, y, scale))
            y = F.glu(F.linear(y, squeeze.weight[..., 0], squeeze.bias), dim=-1)
            skips.append(y)
            scale = None
        hidden = F.linear(y, self.tsfm_conv1.weight[..., 0], self.tsfm_conv1.bias).transpose(0, 1).contiguous()
        residual = 0.0
        for layer in self.tsfm_Mamba_layers:
            residual = residual + hidden
            hidden = layer.mixer(layer.norm(residual))
        hidden = self.norm_f(residual + hidden).transpose(0, 1)
        y = F.linear(hidden, self.tsfm_conv2.weight[..., 0], self.tsfm_conv2.bias)
        for layer, skip in zip(self.decoder, reversed(skips)):
            expand, conv = layer[0], layer[2]
            y = y + skip[:, : y.shape[1]]
            y = F.glu(F.linear(y, expand.weight[..., 0], expand.bias), dim=-1)
            y = transposed_4_2(conv, y)
            if len(layer) == 4:
                y = F.relu(y)
        # Hop h of what comes out is multiplied by the level of frame h, the end by the last one.
        rows = divisors.repeat_interleave(self.hop, dim=1)
        end = y.shape[1] - rows.shape[1]
        y = y[..., 0] * torch.cat([rows, divisors[:, -1:].expand(-1, end)], dim=1)
        return y[:, : x.shape[1]]

    def parameters_count(self):
        """Weights in all."""
        return sum(p.numel() for p in self.parameters())

    def macs_per_second(self):
        """Multiplications of the products, convolutions and scans for a second of sound."""
        total, rate = 0.0, RATE
        for conv, _, squeeze, _ in self.encoder:
            rate /= 2
            total += rate * (conv.weight.numel() + squeeze.weight.numel())
        total += rate * (self.tsfm_conv1.weight.numel() + self.tsfm_conv2.weight.numel())
        for layer in self.tsfm_Mamba_layers:
            m = layer.mixer
            products = (m.in_proj, m.conv1d, m.x_proj, m.dt_proj, m.out_proj)
            total += rate * (sum(p.weight.numel() for p in products) + 3 * m.A_log.numel())
        for layer in self.decoder:
            total += rate * (layer[0].weight.numel() + layer[2].weight.numel())
            rate *= 2
        return total


def smoothed_level(x, hops, hop=64, frame=190, start=None):
    """The divisors (hops,), float32, of the "smoothed" rule for the samples x (T,), full scale 1.

    The first frame's mean power counts as three hops; every further hop goes into the running mean with its own mean
    power, until the mean stands for 10 s. Frames that reach behind the end of x keep the last level. `start` = (power,
    hops it stands for): a level that earlier samples left behind.
    """
    n_max = HORIZON * RATE / hop
    padded = np.zeros(max((hops - 1) * hop + frame, len(x)), np.float64)
    padded[: len(x)] = x
    power = (padded[frame - hop :][: hops * hop].reshape(hops, hop) ** 2).mean(axis=1)
    level, n = (np.mean(padded[:frame] ** 2), 3.0) if start is None else start
    levels = np.empty(hops)
    for h in range(hops):
        # A stream takes whole hops in; what it is drained with at its end, the level does not see.
        if (h > 0 or start is not None) and h * hop + frame <= len(x):
            n = min(n + 1, n_max)
            level += (power[h] - level) / n
        levels[h] = level
    return (np.sqrt(np.maximum(levels, 0)) + FLOOR).astype(np.float32)
