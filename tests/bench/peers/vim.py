"""Vim-Ti on a frame of 224 x 224, batch 1, beside what a PyTorch user has and beside DeiT-Ti, all in one sitting, in turns.

    python tests/bench/peers/vim.py [--threads 2] [--rounds 5] [--seconds 2] [--size 224]

from the root of the repository, after `make bench` (which builds `ssm-bench`), with
`pip install -r tests/bench/peers/requirements.txt` done and a C++ compiler there. Weights are random; every peer of Vim has
those of one seed, and their scores are compared before anything is timed.

    eager       the published formulas in PyTorch, the scan compiled from C++ (below)
    compiled    the same through torch.compile
    reference   the same with the scan as the published reference has it: a loop over steps in Python
    deit        DeiT-Ti (ViT, 192 wide, 12 layers, 3 heads) in ONNX Runtime
    ours        this library, f32
    bf16        this library, large products in bfloat16
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.cpp_extension import load_inline

D, DEPTH, N, R, PATCH, CLASSES = 192, 24, 16, 12, 16, 1000
E = 2 * D

# h = exp(delta a) h + delta u b; y = c h + d u; one channel a task, states innermost, vectorised by the compiler.
SCAN = r"""
#include <torch/extension.h>
#include <ATen/Parallel.h>
#include <cmath>
at::Tensor scan(at::Tensor u, at::Tensor delta, at::Tensor a, at::Tensor b, at::Tensor c, at::Tensor d) {
  // u, delta (E, L); a (E, N); b, c (L, N); d (E)
  const int64_t e = u.size(0), l = u.size(1), n = a.size(1);
  auto y = at::empty_like(u);
  const float *up = u.data_ptr<float>(), *tp = delta.data_ptr<float>(), *ap = a.data_ptr<float>();
  const float *bp = b.data_ptr<float>(), *cp = c.data_ptr<float>(), *dp = d.data_ptr<float>();
  float *yp = y.data_ptr<float>();
  at::parallel_for(0, e, 8, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) {
      float h[16] = {0};
      for (int64_t t = 0; t < l; t++) {
        const float x = up[i * l + t], s = tp[i * l + t], sx = s * x;
        float sum = 0;
        #pragma GCC ivdep
        for (int64_t k = 0; k < 16; k++) {
          h[k] = expf(s * ap[i * n + k]) * h[k] + sx * bp[t * n + k];
          sum += h[k] * cp[t * n + k];
        }
        yp[i * l + t] = sum + dp[i] * x;
      }
    }
  });
  return y;
}
TORCH_LIBRARY(peer, m) { m.def("scan(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor d) -> Tensor"); }
TORCH_LIBRARY_IMPL(peer, CPU, m) { m.impl("scan", &scan); }
"""


def compiled_scan():
    """The C++ scan as an operator that torch.compile can keep in its graph."""
    flags = ["-O3", "-march=native", "-ffast-math"]
    load_inline("peer_scan", SCAN, extra_cflags=flags, is_python_module=False)

    @torch.library.register_fake("peer::scan")
    def _(u, delta, a, b, c, d):
        return torch.empty_like(u)

    return torch.ops.peer.scan


def reference_scan(u, delta, a, b, c, d):
    h, ys = torch.zeros_like(a), []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, None] * a) * h + (delta[:, t] * u[:, t])[:, None] * b[t]
        ys.append((h * c[t]).sum(-1))
    return torch.stack(ys, -1) + d[:, None] * u


class Branch(nn.Module):
    """One direction of a Vim mixer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(E, E, 4, groups=E, padding=3)
        self.x_proj = nn.Linear(E, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, E)
        self.a_log = nn.Parameter(torch.log(torch.arange(1.0, N + 1)).repeat(E, 1))
        self.d = nn.Parameter(torch.ones(E))

    def forward(self, x, z, scan):
        u = functional.silu(self.conv(x[None])[0, :, : x.shape[1]])
        dt, b, c = self.x_proj(u.t()).split([R, N, N], -1)
        delta = functional.softplus(self.dt_proj(dt)).t().contiguous()
        y = scan(u.contiguous(), delta, -torch.exp(self.a_log), b.contiguous(), c.contiguous(), self.d)
        return y * functional.silu(z)


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(D, 2 * E, bias=False), nn.Linear(E, D, bias=False)
        self.forth, self.back = Branch(), Branch()

    def forward(self, x, scan):
        x, z = self.in_proj(x).t().chunk(2)
        y = self.forth(x, z, scan) + self.back(x.flip(-1), z.flip(-1), scan).flip(-1)
        return self.out_proj(y.t() / 2)


class Vim(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.tokens = (size // PATCH) ** 2
        self.embed = nn.Conv2d(3, D, PATCH, PATCH)
        self.cls, self.pos = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.randn(self.tokens + 1, D) * 0.02)
        self.mixers = nn.ModuleList(Mixer() for _ in range(DEPTH))
        self.norms = nn.ParameterList(torch.ones(D) for _ in range(DEPTH + 1))
        self.head = nn.Linear(D, CLASSES)

    def forward(self, image, scan):
        rms = lambda x, w: functional.rms_norm(x, (D,), w, 1e-5)  # noqa: E731
        x, half = self.embed(image)[0].flatten(1).t(), self.tokens // 2
        hidden = torch.cat([x[:half], self.cls[None], x[half:]]) + self.pos
        residual = torch.zeros_like(hidden)
        for mixer, norm in zip(self.mixers, self.norms):
            residual = residual + hidden
            hidden = mixer(rms(residual, norm), scan)
        return self.head(rms(residual + hidden, self.norms[DEPTH])[half])

    def published(self):
        """The weights under the published names."""
        out = {"patch_embed.proj.weight": self.embed.weight, "patch_embed.proj.bias": self.embed.bias}
        out |= {"cls_token": self.cls[None, None], "pos_embed": self.pos[None], "norm_f.weight": self.norms[DEPTH]}
        out |= {"head.weight": self.head.weight, "head.bias": self.head.bias}
        for i, m in enumerate(self.mixers):
            at = f"layers.{i}."
            out |= {at + "norm.weight": self.norms[i], at + "mixer.in_proj.weight": m.in_proj.weight}
            out[at + "mixer.out_proj.weight"] = m.out_proj.weight
            for branch, tail in ((m.forth, ""), (m.back, "_b")):
                at = f"layers.{i}.mixer."
                out |= {f"{at}conv1d{tail}.weight": branch.conv.weight, f"{at}conv1d{tail}.bias": branch.conv.bias}
                out |= {f"{at}dt_proj{tail}.weight": branch.dt_proj.weight, f"{at}dt_proj{tail}.bias": branch.dt_proj.bias}
                out |= {f"{at}x_proj{tail}.weight": branch.x_proj.weight, f"{at}D{tail}": branch.d}
                out[at + ("A_b_log" if tail else "A_log")] = branch.a_log
        return {k: v.detach().clone().contiguous() for k, v in out.items()}


class Deit(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.embed = nn.Conv2d(3, D, PATCH, PATCH)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, D)), nn.Parameter(torch.randn(1, (size // PATCH) ** 2 + 1, D))
        self.norms = nn.ModuleList(nn.LayerNorm(D, 1e-6) for _ in range(25))
        self.qkv = nn.ModuleList(nn.Linear(D, 3 * D) for _ in range(12))
        self.out = nn.ModuleList(nn.Linear(D, D) for _ in range(12))
        self.up = nn.ModuleList(nn.Linear(D, 4 * D) for _ in range(12))
        self.down = nn.ModuleList(nn.Linear(4 * D, D) for _ in range(12))
        self.head = nn.Linear(D, CLASSES)

    def forward(self, image):
        x = torch.cat([self.cls, self.embed(image).flatten(2).transpose(1, 2)], 1) + self.pos
        for i in range(12):
            q, k, v = self.qkv[i](self.norms[2 * i](x)).view(1, -1, 3, 3, 64).permute(2, 0, 3, 1, 4)
            y = ((q @ k.transpose(-1, -2)) / 8).softmax(-1) @ v
            x = x + self.out[i](y.transpose(1, 2).reshape(1, -1, D))
            x = x + self.down[i](functional.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return self.head(self.norms[24](x)[:, 0])


def deit(size, threads):
    """DeiT-Ti as a call of ONNX Runtime."""
    import onnxruntime

    image = torch.randn(1, 3, size, size)
    file = Path(tempfile.mkdtemp()) / "deit.onnx"
    torch.onnx.export(Deit(size).eval(), (image,), str(file), input_names=["image"], dynamo=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    x = image.numpy()
    return lambda: session.run(None, {"image": x})


def save(file, tensors):
    """A safetensors file."""
    head, at = {}, 0
    for name, t in tensors.items():
        head[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [at, at + 4 * t.numel()]}
        at += 4 * t.numel()
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for t in tensors.values():
            f.write(t.numpy().astype("<f4").tobytes())


def ours(file, seconds, threads, image=None, precision="f32"):
    """Milliseconds a frame by `ssm-bench model`, and the scores if an image is given."""
    command = ["tests/bench/target/release/ssm-bench", "model", str(file), "--threads", str(threads)]
    command += ["--seconds", str(seconds), "--precision", precision] + (["--input", str(image)] if image else [])
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return answer["milliseconds"], answer["output"]


def timed(call, seconds):
    """Median milliseconds of a call."""
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=2.0)
    p.add_argument("--size", type=int, default=224)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    model, image = Vim(args.size).eval(), torch.randn(1, 3, args.size, args.size)
    folder = Path(tempfile.mkdtemp())
    save(folder / "vim.safetensors", model.published())
    image.numpy().astype("<f4").tofile(folder / "image.f32")
    scan = compiled_scan()
    fast = torch.compile(model)
    runs = {
        "eager": lambda: model(image, scan),
        "compiled": lambda: fast(image, scan),
        "reference": lambda: model(image, reference_scan),
        "deit": deit(args.size, args.threads),
    }
    want = runs["reference"]().numpy()
    size = np.abs(want).max()
    for name in ("eager", "compiled"):
        off = np.abs(runs[name]().numpy() - want).max() / size
        assert off < 1e-3, f"{name} is off by {off}"
    _, got = ours(folder / "vim.safetensors", 0.1, args.threads, folder / "image.f32")
    off = np.abs(np.array(got) - want).max() / size
    assert off < 1e-3, f"ours is off by {off}"
    _, got = ours(folder / "vim.safetensors", 0.1, args.threads, folder / "image.f32", "bf16")
    rounded = np.abs(np.array(got) - want).max() / size
    times = {name: [] for name in [*runs, "ours", "bf16"]}
    for _ in range(args.rounds):
        for name, run in runs.items():
            times[name].append(timed(run, args.seconds))
            time.sleep(0.5)  # threads that still spin must not slow the next one
        for name, precision in (("ours", "f32"), ("bf16", "bf16")):
            times[name].append(ours(folder / "vim.safetensors", args.seconds, args.threads, precision=precision)[0])
    base = statistics.median(times["ours"])
    print(f"{args.size} x {args.size}, {args.threads} threads, torch {torch.__version__}, scores agree within {off:.1e}, bf16 {rounded:.1e}")
    for name, t in times.items():
        m = statistics.median(t)
        print(f"{name:<10} {m:8.1f} ms   {m / base:5.2f} x ours   ({min(t):.1f} to {max(t):.1f})")


if __name__ == "__main__":
    main()
