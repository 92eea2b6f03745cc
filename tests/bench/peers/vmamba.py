"""VMamba-T (s1l8) on a frame of 224 x 224, batch 1, beside what a PyTorch user has, all in one sitting, in turns.

    python tests/bench/peers/vmamba.py [--threads 2] [--rounds 5] [--seconds 1.5] [--quick]

from the root of the repository, after `make bench` (which builds `ssm-bench`), with
`pip install -r tests/bench/peers/requirements.txt` done and a C++ compiler there. Weights are random, those of one seed for
every peer under the published names; scores are compared before anything is timed.

    ours        this library, f32
    ours bf16   this library, large products in bfloat16
    ours int8   this library, large products in 8-bit integers
    eager       the published formulas in PyTorch, the scan compiled from C++ (common.py)
    compiled    the same through torch.compile
    reference   the same with the scan as the published reference has it: a loop over steps in Python
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from common import arguments, every_precision, in_torch, race, save, table, within
from torch import nn
from torch.nn import functional

WIDTH, DEPTHS, N, CLASSES = 96, (2, 2, 8, 2), 1, 1000


def side(x):
    """(1, C, H, W) as (1, H, W, C): no copy, convolutions keep channels last."""
    return x.permute(0, 2, 3, 1)


def norm_of(x, norm):
    """A norm over the channels of (1, C, H, W)."""
    return norm(side(x)).permute(0, 3, 1, 2)


class Scan2d(nn.Module):
    """SS2D without a gate: scans by rows, by columns, and both backwards. Fields are named as the file's."""

    def __init__(self, c):
        super().__init__()
        self.rank = -(-c // 16)
        self.in_proj, self.out_proj = nn.Linear(c, c, bias=False), nn.Linear(c, c, bias=False)
        self.conv2d = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        self.x_proj_weight = nn.Parameter(torch.randn(4, self.rank + 2 * N, c) * c**-0.5)
        self.dt_projs_weight = nn.Parameter(torch.randn(4, c, self.rank) * self.rank**-0.5)
        self.dt_projs_bias = nn.Parameter(torch.rand(4, c) * 4 - 6)
        self.A_logs, self.Ds = nn.Parameter(torch.rand(4 * c, N)), nn.Parameter(torch.ones(4 * c))
        self.out_norm = nn.LayerNorm(c)

    def forward(self, x, scan):
        _, h, w, c = x.shape
        x = functional.silu(self.conv2d(self.in_proj(x).permute(0, 3, 1, 2)))[0]
        rows, columns = x.reshape(c, h * w), x.transpose(1, 2).reshape(c, h * w)
        u = torch.stack([rows, columns, rows.flip(-1), columns.flip(-1)])
        dt, b, c_out = torch.bmm(self.x_proj_weight, u).split([self.rank, N, N], 1)
        dt = torch.bmm(self.dt_projs_weight, dt) + self.dt_projs_bias[..., None]
        delta, a = functional.softplus(dt).view(4 * c, h * w), -torch.exp(self.A_logs)
        b, c_out = b.transpose(1, 2).contiguous(), c_out.transpose(1, 2).contiguous()
        y = scan(u.view(4 * c, h * w), delta, a, b, c_out, self.Ds).view(4, c, h * w)
        y = y[:2] + y[2:].flip(-1)
        y = y[0].view(c, h, w) + y[1].view(c, w, h).transpose(1, 2)
        return self.out_proj(self.out_norm(y.permute(1, 2, 0)))[None]


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.op, self.norm2, self.mlp = nn.LayerNorm(c), Scan2d(c), nn.LayerNorm(c), Mlp(c)

    def forward(self, x, scan):
        x = x + self.op(self.norm(x), scan)
        return x + self.mlp(self.norm2(x))


class Stage(nn.Module):
    def __init__(self, c, depth, last):
        super().__init__()
        self.blocks = nn.ModuleList(Block(c) for _ in range(depth))
        down = [nn.Identity(), nn.Conv2d(c, 2 * c, 3, 2, 1), nn.Identity(), nn.LayerNorm(2 * c)]
        self.downsample = nn.ModuleList([] if last else down)

    def forward(self, x, scan):
        for block in self.blocks:
            x = block(side(x), scan).permute(0, 3, 1, 2)
        return norm_of(self.downsample[1](x), self.downsample[3]) if self.downsample else x


class VMamba(nn.Module):
    def __init__(self):
        super().__init__()
        embed = [nn.Conv2d(3, WIDTH // 2, 3, 2, 1), nn.Identity(), nn.LayerNorm(WIDTH // 2), nn.Identity(), nn.GELU()]
        embed += [nn.Conv2d(WIDTH // 2, WIDTH, 3, 2, 1), nn.Identity(), nn.LayerNorm(WIDTH)]
        self.patch_embed = nn.ModuleList(embed)
        self.layers = nn.ModuleList(Stage(WIDTH << i, depth, i == 3) for i, depth in enumerate(DEPTHS))
        self.classifier = nn.ModuleDict({"norm": nn.LayerNorm(8 * WIDTH), "head": nn.Linear(8 * WIDTH, CLASSES)})

    def forward(self, image, scan):
        e = self.patch_embed
        x = functional.gelu(norm_of(e[0](image), e[2]))
        x = norm_of(e[5](x), e[7])
        for stage in self.layers:
            x = stage(x, scan)
        return self.classifier["head"](self.classifier["norm"](side(x)).mean((1, 2)))[0]


def main():
    args = arguments(__doc__)
    model = VMamba().eval().to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as children:
        file, raw = Path(folder) / "vmamba.safetensors", Path(folder) / "image.f32"
        save(file, model.state_dict())
        image.numpy().astype("<f4").tofile(raw)
        calls, want = in_torch(model, image.contiguous(memory_format=torch.channels_last), not args.quick)
        peers, offs = every_precision(children, file, args.threads, raw, want, 1e-4)
        print(f"VMamba-T, {args.threads} threads, torch {torch.__version__}, scores agree: {within(offs)}")
        table(race(peers | calls, args.rounds, args.seconds), "ours")


if __name__ == "__main__":
    main()
