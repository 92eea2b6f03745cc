"""Vim-Ti, batch 1, beside what a PyTorch user has and beside DeiT-Ti, all in one sitting, in turns.

    python tests/bench/peers/vim.py [--threads 2] [--rounds 5] [--seconds 1.5] [--size 224] [--quick]
    python tests/bench/peers/vim.py --sizes 224,384,512,768,1248 [--plot docs/plots/resolution.svg]

from the root of the repository, after `make bench` (which builds `ssm-bench`), with
`pip install -r tests/bench/peers/requirements.txt` done and a C++ compiler there. Weights are random; every peer of Vim has
those of one seed, and their scores are compared before anything is timed.

    ours        this library, f32
    ours bf16   this library, large products in bfloat16
    ours int8   this library, large products in 8-bit integers
    eager       the published formulas in PyTorch, the scan compiled from C++ (common.py)
    compiled    the same through torch.compile
    reference   the same with the scan as the published reference has it: a loop over steps in Python
    deit        DeiT-Ti (ViT, 192 wide, 12 layers, 3 heads) in ONNX Runtime, as PyTorch exports it
    deit fused  the same with ONNX Runtime's own operator for attention, which never holds all scores at once

With `--sizes`, ours and DeiT-Ti over the side of the frame: time, and the peak of resident memory while frames run, less
what the process held before it opened the model. Each side has networks of its own, with as many positions as it needs.
"""

import contextlib
import io
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from common import agree, arguments, compiled_scan, every_precision, in_torch, onnx, race, save, table, within
from torch import nn
from torch.nn import functional

D, DEPTH, N, R, PATCH, CLASSES = 192, 24, 16, 12, 16, 1000
E = 2 * D


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
        y = scan(u.contiguous(), delta, -torch.exp(self.a_log), b[None].contiguous(), c[None].contiguous(), self.d)
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
    def __init__(self, size, fused):
        super().__init__()
        self.fused = fused
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
            x = x + self.out[i](self.attend(self.qkv[i](self.norms[2 * i](x))))
            x = x + self.down[i](functional.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return self.head(self.norms[24](x)[:, 0])

    def attend(self, qkv):
        if self.fused:
            q, k, v = qkv.chunk(3, -1)
            how = {"dtype": q.dtype, "shape": q.shape, "version": 1}
            return torch.onnx.ops.symbolic("com.microsoft::MultiHeadAttention", (q, k, v), {"num_heads": 3}, **how)
        q, k, v = qkv.view(1, -1, 3, 3, 64).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-1, -2)) / 8).softmax(-1) @ v
        return y.transpose(1, 2).reshape(1, -1, D)


class Sitting:
    """The networks of one side, in files and in children that wait for their turns."""

    def __init__(self, size, threads, children):
        self.folder = Path(children.enter_context(tempfile.TemporaryDirectory()))
        self.size, self.threads, self.children, self.peers = size, threads, children, {}
        self.model, self.image = Vim(size).eval(), torch.randn(1, 3, size, size)
        save(self.folder / "vim.safetensors", self.model.published())
        self.image.numpy().astype("<f4").tofile(self.folder / "image.f32")

    def ours(self, want):
        """Ours in every precision; how far each is from `want`."""
        files = self.folder / "vim.safetensors", self.threads, self.folder / "image.f32"
        found, offs = every_precision(self.children, *files, want, 1e-3)
        self.peers |= found
        return offs

    def deit(self):
        """DeiT-Ti in ONNX Runtime, both ways."""
        weights = first = None
        for name, fused in (("deit", False), ("deit fused", True)):
            model, file = Deit(self.size, fused).eval(), self.folder / f"{name}.onnx"
            weights = weights or model.state_dict()
            model.load_state_dict(weights)
            with contextlib.redirect_stdout(io.StringIO()):
                torch.onnx.export(model, (self.image,), str(file), input_names=["image"], dynamo=True)
            child, got = onnx(file, self.folder / "image.f32", self.threads)
            self.peers[name] = self.children.enter_context(child)
            first = got if first is None else first
            agree(name, got, first, 1e-3)


def one(args):
    """One side: every peer."""
    with ExitStack() as children:
        it = Sitting(args.size, args.threads, children)
        calls, want = in_torch(it.model, it.image, not args.quick)
        offs = it.ours(want)
        it.deit()
        it.peers |= calls
        print(f"{args.size} x {args.size}, {args.threads} threads, torch {torch.__version__}, scores agree: {within(offs)}")
        table(race(it.peers, args.rounds, args.seconds), "ours")


def over(sizes, args):
    """Ours and DeiT-Ti over the side; returns a table of (side, {name: (milliseconds, MiB)})."""
    found, scan = [], compiled_scan()
    for size in sizes:
        with ExitStack() as children:
            it = Sitting(size, args.threads, children)
            it.ours(it.model(it.image, scan).numpy())
            it.deit()
            times = race(it.peers, args.rounds, args.seconds)
            print(f"\n{size} x {size}: {(size // PATCH) ** 2} patches, {args.threads} threads")
            table(times, "ours")
            row = {name: (statistics.median(times[name]), peer.resident) for name, peer in it.peers.items()}
            print("MiB of memory: " + ", ".join(f"{name} {mib:.0f}" for name, (_, mib) in row.items()), flush=True)
            found.append((size, row))
    for what, i in (("time", 0), ("memory", 1)):
        for peer in ("deit", "deit fused"):
            for name in ("ours", "ours bf16", "ours int8"):
                less = [size for size, row in found if row[name][i] < row[peer][i]]
                print(f"{what}: {name} below {peer} at {', '.join(map(str, less)) or 'none of the sides'}")
    return found


def plot(file, found):
    """Time and memory over the side, two charts in an SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "ssm", "font.size": 9}
    from matplotlib import pyplot

    red, grey = "#bc3754", "#5a5a5a"
    looks = {"ours": (red, "-"), "ours bf16": (red, "--"), "ours int8": (red, ":"), "deit": (grey, "-"), "deit fused": (grey, "--")}
    names = {"ours": "Vim-Ti, ssm, f32", "ours bf16": "Vim-Ti, ssm, bf16", "ours int8": "Vim-Ti, ssm, int8"}
    names["deit"] = "DeiT-Ti, ONNX Runtime"
    names["deit fused"] = "DeiT-Ti, ONNX Runtime, fused attention"
    figure, charts = pyplot.subplots(1, 2, figsize=(9, 3.9), layout="constrained")
    sides = [size for size, _ in found]
    for i, (chart, title) in enumerate(zip(charts, ("milliseconds a frame", "memory while frames run, MiB"))):
        for name, (colour, line) in looks.items():
            chart.plot(sides, [row[name][i] for _, row in found], line, color=colour, label=names[name], marker=".")
        chart.set(title=title, xlabel="side of the frame, pixels", xscale="log", yscale="log")
        chart.set_xticks(sides, map(str, sides))
        chart.minorticks_off()
        chart.grid(alpha=0.3)
    figure.legend(*charts[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, metadata={"Date": None})
    print(f"{file}: time and memory over the side")


def main():
    def more(p):
        p.add_argument("--size", type=int, default=224)
        p.add_argument("--sizes", help="sides, with commas between")
        p.add_argument("--plot", help="SVG file for --sizes")

    args = arguments(__doc__, more)
    if not args.sizes:
        return one(args)
    found = over([int(s) for s in args.sizes.split(",")], args)
    if args.plot:
        plot(args.plot, found)


if __name__ == "__main__":
    main()
