"""What the peers' scripts share: this library in turns, a scan compiled from C++, files, times, tables."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

# h = exp(delta a) h + delta u b; y = c h + d u; one channel a task. With sixteen states they are innermost; with one the
# exponentials come first, over the steps. Both are vectorised by the compiler.
SCAN = r"""
#include <torch/extension.h>
#include <ATen/Parallel.h>
#include <cmath>
#include <vector>

at::Tensor scan(at::Tensor u, at::Tensor delta, at::Tensor a, at::Tensor b, at::Tensor c, at::Tensor d) {
  // u, delta (E, L); a (E, N); b, c (G, L, N), each for E / G channels; d (E)
  const int64_t e = u.size(0), l = u.size(1), n = a.size(1), each = e / b.size(0);
  TORCH_CHECK(n == 1 || n == 16, "expected 1 or 16 states");
  auto y = at::empty_like(u);
  const float *up = u.data_ptr<float>(), *tp = delta.data_ptr<float>(), *ap = a.data_ptr<float>();
  const float *bp = b.data_ptr<float>(), *cp = c.data_ptr<float>(), *dp = d.data_ptr<float>();
  float *yp = y.data_ptr<float>();
  at::parallel_for(0, e, 8, [&](int64_t from, int64_t to) {
    std::vector<float> decay(n == 1 ? l : 0);
    for (int64_t i = from; i < to; i++) {
      const float *ui = up + i * l, *ti = tp + i * l, *bi = bp + i / each * l * n, *ci = cp + i / each * l * n;
      float *yi = yp + i * l;
      if (n == 1) {
        float h = 0;
        for (int64_t t = 0; t < l; t++) decay[t] = expf(ti[t] * ap[i]);
        for (int64_t t = 0; t < l; t++) yi[t] = h = decay[t] * h + ti[t] * ui[t] * bi[t];
        for (int64_t t = 0; t < l; t++) yi[t] = yi[t] * ci[t] + dp[i] * ui[t];
      } else {
        float h[16] = {0};
        for (int64_t t = 0; t < l; t++) {
          const float x = ui[t], s = ti[t], sx = s * x;
          float sum = 0;
          #pragma GCC ivdep
          for (int64_t k = 0; k < 16; k++) {
            h[k] = expf(s * ap[i * 16 + k]) * h[k] + sx * bi[t * 16 + k];
            sum += h[k] * ci[t * 16 + k];
          }
          yi[t] = sum + dp[i] * x;
        }
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
    import torch
    from torch.utils.cpp_extension import load_inline

    # ninja lies beside this Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    flags = ["-O3", "-march=native", "-ffast-math"]
    load_inline("peer_scan", SCAN, extra_cflags=flags, is_python_module=False)

    @torch.library.register_fake("peer::scan")
    def _(u, delta, a, b, c, d):
        return torch.empty_like(u)

    return torch.ops.peer.scan


def reference_scan(u, delta, a, b, c, d):
    """The same as the published reference has it: a loop over steps in Python."""
    import torch

    h, ys = torch.zeros_like(a), []
    each = u.shape[0] // b.shape[0]
    b, c = b.repeat_interleave(each, 0), c.repeat_interleave(each, 0)
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, None] * a) * h + (delta[:, t] * u[:, t])[:, None] * b[:, t]
        ys.append((h * c[:, t]).sum(-1))
    return torch.stack(ys, -1) + d[:, None] * u


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
            f.write(t.detach().contiguous().numpy().astype("<f4").tobytes())


def memory(name):
    """A line of this process's status in MiB: VmRSS: what is resident, VmHWM: the most that was."""
    [line] = [s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(name)]
    return int(line.split()[1]) / 1024


def forget_peak():
    """What is resident now becomes the peak."""
    Path("/proc/self/clear_refs").write_text("5")


class Child:
    """A program that answers each line with one of JSON, so that it waits while others have their turn."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self):
        """The next object that it prints; it may say other things before."""
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.process.args[0]} ended")

    def ask(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.answer()

    def turn(self, seconds):
        """Milliseconds of a call, in calls that take about so long together."""
        answer = self.ask(seconds)
        self.resident = answer.get("resident")  # MiB above what there was without the model, at most
        return answer["milliseconds"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def onnx(file, image, threads):
    """An ONNX model in ONNX Runtime, and its output."""
    script = str(Path(__file__).with_name("ort.py"))
    child = Child([sys.executable, script, str(file), str(image), "--threads", str(threads)])
    return child, np.array(child.answer()["output"])


def ours(file, threads, precision="f32", image=None, steps=1):
    """This library: `ssm-bench model`, and its output after the input `image`, a file."""
    folder = Path(os.environ.get("CARGO_TARGET_DIR", "tests/bench/target"))
    command = [str(folder / "release/ssm-bench"), "model", str(file), "--turns", "--threads", str(threads)]
    command += ["--precision", precision, "--steps", str(steps)] + (["--input", str(image)] if image else [])
    child = Child(command)
    return child, np.array(child.answer()["output"])


def every_precision(children, file, threads, image, want, within):
    """Ours in f32, bf16 and int8: the children by name, and how far each is from `want`; f32 may be off by `within`."""
    found, offs = {}, {}
    for name, precision, most in (("ours", "f32", within), ("ours bf16", "bf16", 0.1), ("ours int8", "int8", 0.3)):
        child, got = ours(file, threads, precision, image)
        found[name] = children.enter_context(child)
        offs[name] = agree(name, got, want, most)
    return found, offs


def in_torch(model, image, compiled):
    """A network on a frame in PyTorch: eager, compiled if asked for, and as the published reference scans. The calls by
    name, and what all of them give."""
    import torch

    scan, calls = compiled_scan(), {}
    calls["eager"] = lambda: model(image, scan)
    if compiled:
        fast = torch.compile(model)
        calls["compiled"] = lambda: fast(image, scan)
    calls["reference"] = lambda: model(image, reference_scan)
    want = calls["reference"]().numpy()
    for name, call in calls.items():
        agree(name, call().numpy(), want, 1e-3)
    return {name: Call(call) for name, call in calls.items()}, want


def arguments(doc, more=lambda p: None):
    """What a script of peers on a frame is asked; PyTorch is made ready."""
    import torch

    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=1.5)
    p.add_argument("--quick", action="store_true", help="one short round, without torch.compile: for trying")
    more(p)
    args = p.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, 0.3
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    return args


def within(offs):
    """Distances as text."""
    return ", ".join(f"{name} {off:.1e}" for name, off in offs.items())


def timed(call, seconds):
    """Median milliseconds of a call."""
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


class Call:
    """A Python function as a peer."""

    def __init__(self, call):
        self.call = call

    def turn(self, seconds):
        return timed(self.call, seconds)


def race(peers, rounds, seconds):
    """Milliseconds of each of the named peers in each of the rounds, in turns."""
    times = {name: [] for name in peers}
    for _ in range(rounds):
        for name, peer in peers.items():
            times[name].append(peer.turn(seconds))
            time.sleep(0.2)  # threads that still spin must not slow the next one
    return times


def table(times, base):
    """Medians, and how many times as long as `base` takes; the ratio is the median over the rounds."""
    print(f"{'':<22} {'ms':>9}   {'x ' + base:>8}   from to")
    for name, t in times.items():
        ratio = statistics.median(a / b for a, b in zip(t, times[base]))
        print(f"{name:<22} {statistics.median(t):9.2f}   {ratio:8.2f}   {min(t):.2f} {max(t):.2f}", flush=True)


def agree(name, got, want, within):
    """How far `got` is from `want`, in parts of the largest; ends the script if that is more than `within`."""
    off = float(np.abs(np.asarray(got) - np.asarray(want)).max() / np.abs(want).max())
    if not off <= within:
        raise SystemExit(f"{name}: expected the same output within {within}, it is off by {off:.2e}")
    return off
