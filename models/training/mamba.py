"""Mamba in PyTorch for training: the mixer of the published code under its tensor names, its convolution and scan, and
RMSNorm, in C (scan.c, built by `cc` at the first import; without a compiler the same in PyTorch, slower)."""

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
    """convolve of scan.c: x (B, T, E), w (4, E), bias (E)."""

    @staticmethod
    def forward(ctx, x, w, bias):
        x, w, bias = (v.detach().contiguous() for v in (x, w, bias))
        y = torch.empty_like(x)
        call(LIBRARY.convolve_forward, (*x.shape, x.shape[2]), [x, w, bias, y])
        ctx.save_for_backward(x, w, bias)
        return y

    @staticmethod
    def backward(ctx, gy):
        x, w, bias = ctx.saved_tensors
        gx, gw, gbias = torch.empty_like(x), x.new_empty(len(x), *w.shape), x.new_empty(len(x), *bias.shape)
        call(LIBRARY.convolve_backward, (*x.shape, x.shape[2]), [x, w, bias, gy.contiguous(), gx, gw, gbias])
        return gx, gw.sum(0), gbias.sum(0)


class Inner(torch.autograd.Function):
    """What a mixer does between in_proj and out_proj, in scan.c: xz (B, T, 2E), taps (4, E) and their bias (E), x_proj
    (R + 2N, E), dt_proj (R, E) and its bias (E), a (N, E), skip (E)."""

    @staticmethod
    def forward(ctx, xz, *weights):
        xz, taps, bias, x_proj, *rest = (v.detach().contiguous() for v in (xz, *weights))
        b, t, e = *xz.shape[:2], taps.shape[1]
        x = xz.new_empty(b, t, e)
        call(LIBRARY.convolve_forward, (b, t, e, 2 * e), [xz, taps, bias, x])
        p, y = functional.linear(x, x_proj), torch.empty_like(x)
        call(LIBRARY.scan_forward, (b, t, e, len(rest[0]), len(rest[2])), [x, p, *rest, xz, y])
        ctx.save_for_backward(xz, taps, bias, x_proj, x, p, *rest)
        return y

    @staticmethod
    def backward(ctx, gy):
        xz, taps, bias, x_proj, x, p, *rest = ctx.saved_tensors
        b, t, e = x.shape
        of_clips = lambda tensors: [v.new_empty(b, *v.shape) for v in tensors]  # noqa: E731
        gx, gp, gxz, gtaps, grest = *(torch.empty_like(v) for v in (x, p, xz)), of_clips([taps, bias]), of_clips(rest)
        sizes = b, t, e, len(rest[0]), len(rest[2])
        call(LIBRARY.scan_backward, sizes, [x, p, *rest, xz, gy.contiguous(), gx, gp, *grest, gxz])
        gx.view(-1, e).addmm_(gp.view(b * t, -1), x_proj)
        gx_proj = gp.view(b * t, -1).T @ x.view(-1, e)
        call(LIBRARY.convolve_backward, (b, t, e, 2 * e), [xz, taps, bias, gx, gxz, *gtaps])
        gtaps, grest = ([g.sum(0) for g in gs] for gs in (gtaps, grest))
        return gxz, *gtaps, gx_proj, *grest


class Norm(torch.autograd.Function):
    """norm of scan.c: x (..., D), w (D)."""

    @staticmethod
    def forward(ctx, x, w):
        x, w = x.detach().contiguous(), w.detach()
        y = torch.empty_like(x)
        call(LIBRARY.norm_forward, (x.numel() // len(w), len(w)), [x, w, y])
        ctx.save_for_backward(x, w)
        return y

    @staticmethod
    def backward(ctx, gy):
        x, w = ctx.saved_tensors
        gx, gw = torch.empty_like(x), torch.empty_like(w)
        call(LIBRARY.norm_backward, (x.numel() // len(w), len(w)), [x, w, gy.contiguous(), gx, gw])
        return gx, gw


def fast(x, channels):
    return LIBRARY is not None and x.dtype == torch.float32 and x.device.type == "cpu" and channels % 16 == 0


def convolve(x, w, bias):
    """Causal depthwise convolution with four taps w (E, 4), the last of them on the newest frame, and silu."""
    if fast(x, len(w)):
        return Convolve.apply(x, w.T, bias)
    padded = functional.pad(x, (0, 0, 3, 0))
    return functional.silu(sum(padded[:, j : j + x.shape[1]] * w[:, j] for j in range(4)) + bias)


def scan(x, delta, a, b, c, skip, z):
    """(c[t] . h[t] + skip x[t]) silu(z[t]), h[t] = exp(d a) h[t-1] + d b[t] x[t], d = softplus(delta[t])."""
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
        if fast(x, len(self.weight)):
            return Norm.apply(x, self.weight)
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
        a = -torch.exp(self.A_log)
        if fast(u, len(a)) and max(self.split) <= 16:
            taps, steps = self.conv1d.weight[:, 0].T, (self.dt_proj.weight.T, self.dt_proj.bias)
            weights = taps, self.conv1d.bias, self.x_proj.weight, *steps, a.T, self.D
            return self.out_proj(Inner.apply(self.in_proj(u), *weights))
        x, z = self.in_proj(u).chunk(2, -1)
        x = convolve(x, self.conv1d.weight[:, 0], self.conv1d.bias)
        dt, b, c = self.x_proj(x).split(self.split, -1)
        return self.out_proj(scan(x, self.dt_proj(dt), a, b, c, self.D, z))


class Layer(nn.Module):
    def __init__(self, d_model, d_state, dt_rank, layers):
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.mixer = Mixer(d_model, d_state, dt_rank, layers)

    def forward(self, x):
        return x + self.mixer(self.norm(x))
