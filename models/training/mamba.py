"""Mamba in PyTorch for training: the mixer of the published code under its tensor names, its convolution and scan in C
(scan.c, built by `cc` at the first import; without a compiler the same in PyTorch, slower)."""

import ctypes
import hashlib
import math
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional


def compiled():
    """scan.c as a library, or None where there is no C compiler."""
    source = Path(__file__).with_name("scan.c")
    try:
        kind = hashlib.sha256(source.read_bytes() + os.uname().nodename.encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"scan-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        # Nobody else may have put something there.
        if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o22:
            return None
        path = folder / f"{kind}.so"
        if not path.is_file():
            part = path.with_suffix(f".{os.getpid()}")
            flags = ["-O3", "-march=native", "-ffast-math", "-fno-math-errno", "-shared", "-fPIC"]
            subprocess.run([os.environ.get("CC", "cc"), *flags, str(source), "-o", str(part), "-lm"], check=True)
            part.rename(path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError):
        return None


LIBRARY = compiled()


def call(function, sizes, tensors):
    """Calls a function of scan.c with sizes and the places of tensors."""
    function(*(ctypes.c_int(s) for s in sizes), *(ctypes.c_void_p(t.data_ptr()) for t in tensors))


class Convolve(torch.autograd.Function):
    """convolve of scan.c: x (B, T, E), w (E, 4), bias (E), all float32."""

    @staticmethod
    def forward(ctx, x, w, bias):
        x, w, bias = (v.detach().contiguous() for v in (x, w, bias))
        y = torch.empty_like(x)
        call(LIBRARY.convolve_forward, x.shape, [x, w, bias, y])
        ctx.save_for_backward(x, w, bias)
        return y

    @staticmethod
    def backward(ctx, gy):
        x, w, bias = ctx.saved_tensors
        gx, gw, gbias = torch.empty_like(x), torch.empty(len(x), 4, len(w)), torch.empty(len(x), len(w))
        call(LIBRARY.convolve_backward, x.shape, [x, w, bias, gy.contiguous(), gx, gw, gbias])
        return gx, gw.sum(0).T, gbias.sum(0)


class Scan(torch.autograd.Function):
    """scan of scan.c: x, delta, z (B, T, E), a (E, N), b, c (B, T, N), skip (E), all float32."""

    @staticmethod
    def forward(ctx, x, delta, a, b, c, skip, z):
        saved = [v.detach().contiguous() for v in (x, delta, a, b, c, skip, z)]
        y = torch.empty_like(saved[0])
        call(LIBRARY.scan_forward, Scan.sizes(saved), [*saved, y])
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    def sizes(saved):
        return (*saved[0].shape, saved[2].shape[1])

    @staticmethod
    def backward(ctx, gy):
        saved = ctx.saved_tensors
        grads = [torch.empty(v.shape if i not in (2, 5) else (len(gy), *v.shape)) for i, v in enumerate(saved)]
        call(LIBRARY.scan_backward, Scan.sizes(saved), [*saved, gy.contiguous(), *grads])
        return tuple(g if i not in (2, 5) else g.sum(0) for i, g in enumerate(grads))


def fast(x, n):
    return LIBRARY is not None and x.dtype == torch.float32 and n <= 16


def convolve(x, w, bias):
    """Causal depthwise convolution with four taps, the last of them on the newest frame, and silu; as in Convolve."""
    if fast(x, 0):
        return Convolve.apply(x, w, bias)
    padded = functional.pad(x, (0, 0, 3, 0))
    return functional.silu(sum(padded[:, j : j + x.shape[1]] * w[:, j] for j in range(4)) + bias)


def scan(x, delta, a, b, c, skip, z):
    """(c[t] . h[t] + skip x[t]) silu(z[t]), h[t] = exp(d a) h[t-1] + d b[t] x[t], d = softplus(delta[t]); as in Scan."""
    if fast(x, a.shape[1]):
        return Scan.apply(x, delta, a, b, c, skip, z)
    delta = functional.softplus(delta)
    keep = torch.exp(delta[..., None] * a)
    add = (delta * x)[..., None] * b[:, :, None]
    h, ys = torch.zeros_like(add[:, 0]), []
    for t in range(x.shape[1]):
        h = keep[:, t] * h + add[:, t]
        ys.append((h * c[:, t, None]).sum(-1))
    return (torch.stack(ys, 1) + skip * x) * functional.silu(z)


class RMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return functional.rms_norm(x, self.weight.shape, self.weight, 1e-5)


class Mixer(nn.Module):
    """Mamba-1 mixer on (B, T, D)."""

    def __init__(self, d_model, d_state, dt_rank, layers):
        super().__init__()
        inner = 2 * d_model
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 4, groups=inner)
        self.x_proj = nn.Linear(inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self.split = [dt_rank, d_state, d_state]
        with torch.no_grad():
            nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
            span = math.log(0.1) - math.log(1e-3)
            dt = torch.exp(torch.rand(inner) * span + math.log(1e-3)).clamp_min(1e-4)
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
            self.out_proj.weight.div_(math.sqrt(layers))

    def forward(self, u):
        x, z = (functional.linear(u, w) for w in self.in_proj.weight.chunk(2))
        x = convolve(x, self.conv1d.weight[:, 0], self.conv1d.bias)
        dt, b, c = self.x_proj(x).split(self.split, -1)
        return self.out_proj(scan(x, self.dt_proj(dt), -torch.exp(self.A_log), b, c, self.D, z))


class Layer(nn.Module):
    def __init__(self, d_model, d_state, dt_rank, layers):
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.mixer = Mixer(d_model, d_state, dt_rank, layers)

    def forward(self, x):
        return x + self.mixer(self.norm(x))
