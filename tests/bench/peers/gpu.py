"""What a machine with a CUDA card is to measure, each beside what a PyTorch user has, as rows of a table.

    python gpu.py WHAT... [--device cuda] [--bench bin/ssm-bench] [--seconds 2] [--smoke]

WHAT: scan, one, batch, large, lengths, bst, streams, or all. `--smoke` takes the smallest sizes, to see that it runs;
with `--device cpu` everything but `scan` does so without a card. Peers need torch; Mamba's and Vim's use the upstream kernel
where `mamba_ssm` is installed, else say `reference`. A peer that is not there is a row that says so.

    scan        the selective scan's share of the card's bandwidth
    one         Vim-Ti, batch 1: ours as a graph, torch eager, DeiT-Ti (SDPA)
    batch       Vim-Ti, batch 64, f32 and bf16, beside torch in bf16 and f16 and DeiT-Ti; VMamba-T, ours alone
    large       Vim-Ti and DeiT-Ti at 1248 x 1248: time and memory
    lengths     one Mamba layer over 512 to 512k steps
    bst         a Block-State Transformer beside a loop over blocks
    streams     streams at 30 frames a second that one device serves
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    import torch
    from torch import nn
    from torch.nn import functional

    sys.path.insert(0, str(Path(__file__).parent))
    import vim as peer
except ImportError as error:
    torch = None
    print(f"no peers: {error}", file=sys.stderr)

try:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as upstream_scan
except ImportError:
    upstream_scan = None

FOLDER = Path(tempfile.mkdtemp())


def row(what, value):
    print(f"| {what:<58} | {value:<32} |", flush=True)


class Ours:
    """`ssm-bench`, whose answers are lines of JSON."""

    def __init__(self, args):
        self.args = args

    def ask(self, *words, device=True):
        command = [self.args.bench, *map(str, words), "--seconds", str(self.args.seconds)]
        done = subprocess.run(command + (["--device", self.args.device] if device else []), capture_output=True, text=True)
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["?"])[-1]}
        return json.loads(done.stdout.splitlines()[-1])

    def model(self, file, what, **options):
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        answer = self.ask("model", file, *words)
        memory = answer.get("device_bytes", 0) / 2**20
        row(f"ours, {what}", answer.get("error") or f"{answer['milliseconds']:.3f} ms, {memory:.0f} MiB")


def timed(args, what, call):
    """A row with the median of a peer's call, and the most memory that it took."""
    on_card = args.device != "cpu"
    wait = torch.cuda.synchronize if on_card else lambda: None
    try:
        if on_card:
            torch.cuda.reset_peak_memory_stats()
        times, end = [], time.perf_counter() + args.seconds
        for _ in range(1 if args.smoke else 5):
            call()
        while not times or time.perf_counter() < end:
            wait()
            begin = time.perf_counter()
            call()
            wait()
            times.append((time.perf_counter() - begin) * 1e3)
        memory = torch.cuda.max_memory_allocated() / 2**20 if on_card else 0
        row(what, f"{statistics.median(times):.3f} ms, {memory:.0f} MiB")
    except RuntimeError as error:
        row(what, str(error).splitlines()[0][:32])


def scan(u, delta, a, b, c, d, z):
    """(B, E, L) as upstream's kernel takes it, with its gate; else the published reference, a loop over steps."""
    if upstream_scan and u.is_cuda:
        return upstream_scan(u, delta, a, b, c, d, z=z)
    h, ys = u.new_zeros(*u.shape[:2], a.shape[1], dtype=torch.float32), []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * a) * h + (delta[:, :, t] * u[:, :, t])[..., None] * b[:, None, :, t]
        ys.append((h * c[:, None, :, t]).sum(-1))
    return ((torch.stack(ys, -1) + d[:, None] * u) * functional.silu(z)).to(u.dtype)


def branch(m, x, z):
    """One direction of `vim.py`'s mixer over a batch."""
    u = functional.silu(m.conv(x)[..., : x.shape[-1]])
    dt, b, c = m.x_proj(u.transpose(1, 2)).split([peer.R, peer.N, peer.N], -1)
    delta = functional.softplus(m.dt_proj(dt).float()).transpose(1, 2).to(u.dtype)
    turn = lambda v: v.transpose(1, 2).contiguous()  # noqa: E731
    return scan(u, delta.contiguous(), -torch.exp(m.a_log.float()), turn(b), turn(c), m.d.float(), z)


def vim(model, images):
    """`vim.py`'s Vim over a batch."""
    norm = lambda x, w: functional.rms_norm(x, (peer.D,), w.to(x.dtype), 1e-5)  # noqa: E731
    x, half = model.embed(images).flatten(2).transpose(1, 2), model.tokens // 2
    cls = model.cls.to(x.dtype).expand(len(x), 1, -1)
    hidden, residual = torch.cat([x[:, :half], cls, x[:, half:]], 1) + model.pos.to(x.dtype), 0
    for mixer, weight in zip(model.mixers, model.norms):
        residual = residual + hidden
        x, z = mixer.in_proj(norm(residual, weight)).transpose(1, 2).chunk(2, 1)
        back = branch(mixer.back, x.flip(-1), z.flip(-1)).flip(-1)
        hidden = mixer.out_proj((branch(mixer.forth, x, z) + back).transpose(1, 2) / 2)
    return model.head(norm(residual + hidden, model.norms[peer.DEPTH])[:, half])


def deit(model, images):
    """`vim.py`'s DeiT-Ti over a batch, its attention by PyTorch's fused kernel."""
    x = model.embed(images).flatten(2).transpose(1, 2)
    x = torch.cat([model.cls.to(x.dtype).expand(len(x), 1, -1), x], 1) + model.pos.to(x.dtype)
    for i in range(12):
        q, k, v = model.qkv[i](model.norms[2 * i](x)).unflatten(-1, (3, 3, 64)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + model.out[i](y)
        x = x + model.down[i](functional.gelu(model.up[i](model.norms[2 * i + 1](x))))
    return model.head(model.norms[24](x)[:, 0])


def frames(args, size, batch, kinds):
    """Vim-Ti of ours and of PyTorch, and DeiT-Ti, over a batch of frames."""
    what = f"{size} x {size}, batch {batch}"
    if torch is None:
        return row(what, "no torch")
    torch.manual_seed(1)
    net = peer.Vim(size).eval()
    file = FOLDER / f"vim-{size}.safetensors"
    peer.save(file, net.published())
    for precision in ("f32", "bf16"):
        args.ours.model(file, f"Vim-Ti {precision}, {what}", batch=batch, precision=precision)
    scans = "upstream kernel" if upstream_scan and args.device != "cpu" else "reference scan"
    for kind in kinds:
        images = torch.randn(batch, 3, size, size, device=args.device, dtype=kind)
        name = str(kind).removeprefix("torch.")
        if upstream_scan or net.tokens <= 1024:
            here = net.to(args.device, kind)
            timed(args, f"PyTorch, Vim-Ti {name}, {scans}, {what}", lambda: vim(here, images))
        else:
            row(f"PyTorch, Vim-Ti {name}, {what}", "no mamba_ssm, too long for a loop")
        attention = peer.Deit(size).eval().to(args.device, kind)
        timed(args, f"PyTorch, DeiT-Ti {name}, SDPA, {what}", lambda: deit(attention, images))


def do_scan(args):
    if args.device == "cpu":
        return row("scan", "only on a card")
    for kind in ("f32", "bf16"):
        for batch in (1, 64):
            got = args.ours.ask("card", "--batch", batch, "--kind", kind, device=False)
            text = got.get("error") or f"{got['scan_gb_s']:.0f} GB/s, {100 * got['share']:.0f} % of a copy"
            row(f"ours, scan of a Vim-Ti layer, {kind}, batch {batch}", text)


def do_one(args):
    frames(args, 32 if args.smoke else 224, 1, [torch.float32] if torch else [])


def do_batch(args):
    size, batch = (32, 2) if args.smoke else (224, 64)
    frames(args, size, batch, [torch.bfloat16] + ([] if args.smoke else [torch.float16]) if torch else [])
    file = Path(args.vmamba)
    if not file.is_file():
        return row("ours, VMamba-T", f"no {file.name}: give --vmamba")
    for precision in ("f32", "bf16"):
        args.ours.model(file, f"VMamba-T {precision}, batch {batch}", batch=batch, precision=precision)


def do_large(args):
    frames(args, 64 if args.smoke else 1248, 1, [torch.bfloat16] if torch else [])


def mixer(d):
    """A Mamba mixer of width d under the published names."""
    e, r, n = 2 * d, math.ceil(d / 16), 16
    random = lambda *shape: torch.randn(shape) / math.sqrt(shape[-1])  # noqa: E731
    return {
        "in_proj.weight": random(2 * e, d), "conv1d.weight": random(e, 1, 4), "conv1d.bias": torch.zeros(e),
        "x_proj.weight": random(r + 2 * n, e), "dt_proj.weight": random(e, r), "dt_proj.bias": torch.full((e,), -4.0),
        "A_log": torch.log(torch.arange(1.0, n + 1)).repeat(e, 1), "D": torch.ones(e), "out_proj.weight": random(d, e),
    }  # fmt: skip


def do_lengths(args):
    if torch is None:
        return row("one Mamba layer", "no torch")
    d, file = 256, FOLDER / "mixer.safetensors"
    w = mixer(d)
    peer.save(file, w)
    w = {name: t.to(args.device) for name, t in w.items()}
    e, n, r = 2 * d, 16, d // 16
    for length in (16, 64) if args.smoke else (2**i for i in range(9, 20)):
        args.ours.model(file, f"Mamba layer of {d}, {length} steps", steps=length)
        x = torch.randn(1, length, d, device=args.device)

        def layer():
            u, z = (x @ w["in_proj.weight"].t()).transpose(1, 2).chunk(2, 1)
            u = functional.silu(functional.conv1d(u, w["conv1d.weight"], w["conv1d.bias"], padding=3, groups=e)[..., :length])
            dt, b, c = (u.transpose(1, 2) @ w["x_proj.weight"].t()).split([r, n, n], -1)
            delta = functional.softplus(dt @ w["dt_proj.weight"].t() + w["dt_proj.bias"]).transpose(1, 2).contiguous()
            b, c = b.transpose(1, 2).contiguous(), c.transpose(1, 2).contiguous()
            y = scan(u.contiguous(), delta, -torch.exp(w["A_log"]), b, c, w["D"], z.contiguous())
            return y.transpose(1, 2) @ w["out_proj.weight"].t()

        if upstream_scan or length <= 4096:
            timed(args, f"PyTorch, the same, {length} steps", layer)


class BlockRecurrent(nn.Module if torch else object):
    """A block-recurrent transformer layer: each block of `window` steps attends to itself and to a state that the block
    before left, so that the blocks are a loop."""

    def __init__(self, d, window):
        super().__init__()
        self.window, self.state = window, nn.Parameter(torch.randn(window, d) * 0.02)
        self.across, self.within = (nn.MultiheadAttention(d, 8, batch_first=True) for _ in range(2))
        self.up, self.down, self.gate = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), nn.Linear(d, d)

    def forward(self, x):
        state, out = self.state[None].expand(len(x), -1, -1), []
        mask = torch.triu(torch.full((self.window, self.window), -math.inf, device=x.device, dtype=x.dtype), 1)
        for block in x.split(self.window, 1):
            y = block + self.within(block, block, block, attn_mask=mask, need_weights=False)[0]
            y = y + self.across(y, state, state, need_weights=False)[0]
            out.append(y + self.down(functional.gelu(self.up(y))))
            state = state + torch.sigmoid(self.gate(state)) * self.across(state, block, block, need_weights=False)[0]
        return torch.cat(out, 1)


def do_bst(args):
    if Path(args.bst).is_file():
        args.ours.model(args.bst, "Block-State Transformer", steps=64 if args.smoke else 4096)
    else:
        row("ours, Block-State Transformer", "no file: give --bst")
    if torch is None:
        return row("block-recurrent loop", "no torch")
    d, window, length = (64, 16, 64) if args.smoke else (512, 512, 4096)
    layer = BlockRecurrent(d, window).eval().to(args.device)
    x = torch.randn(1, length, d, device=args.device)
    timed(args, f"PyTorch, block-recurrent layer of {d}, {length} steps", lambda: layer(x))


def do_streams(args):
    # What another step has made, small or of the usual size, else the file that was packed.
    files = [FOLDER / f"vim-{32 if args.smoke else 224}.safetensors", Path(args.vim)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return row("streams at 30 frames a second", f"no {args.vim}: give --vim")
    for streams in (2,) if args.smoke else (16, 64, 256):
        got = args.ours.ask("streams", "shared", file, "--streams", streams)
        text = got.get("error") or f"{got['rate']:.0f} frames a second: {got['rate'] / 30:.1f} streams"
        row(f"ours, Vim-Ti ({file.stem}), {streams} threads", text)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = {name[3:]: do for name, do in globals().items() if name.startswith("do_")}
    p.add_argument("what", nargs="+", choices=[*steps, "all"])
    p.add_argument("--device", default="cuda")
    p.add_argument("--bench", default="bin/ssm-bench")
    p.add_argument("--seconds", type=float, default=2.0)
    p.add_argument("--vim", default="models/vim-tiny.safetensors")
    p.add_argument("--vmamba", default="models/vmamba-tiny.safetensors")
    p.add_argument("--bst", default="golden/bst_sh_tiny.safetensors")
    p.add_argument("--smoke", action="store_true")
    args = p.parse_args()
    args.seconds = 0.05 if args.smoke else args.seconds
    args.ours = Ours(args)
    if torch:
        torch.set_grad_enabled(False)
        if args.device == "cuda" and not torch.cuda.is_available():
            sys.exit("PyTorch finds no card: --device cpu")
    for what in steps if "all" in args.what else args.what:
        steps[what](args)


if __name__ == "__main__":
    main()
