"""The causal cores of the library's composites in PyTorch for training, under the tensor names of docs/composites.md:
`mamba` (mamba.py), `mamba2`, `s4d`, `moe_mamba`, `bst`. Whole sequences (B, T, D) at once, from a fresh state.

    python cores.py FOLDER        golden files of small random cores, which `ssm verify` judges the library by
"""

import argparse
import json
import math
from pathlib import Path
from threading import get_ident

import torch
from torch import nn
from torch.nn import functional

from mamba import Mixer, RMSNorm, convolve


def log_uniform(low, high, *shape):
    return torch.exp(torch.rand(shape) * (math.log(high) - math.log(low)) + math.log(low))


def decays(steps):
    """exp of the sums of `steps` (..., T) from s+1 to t, (..., T, T), 0 above the diagonal."""
    t = steps.shape[-1]
    sums = steps.cumsum(-1)
    seen = torch.ones(t, t, dtype=torch.bool, device=steps.device).tril()
    return torch.exp((sums[..., :, None] - sums[..., None, :]).masked_fill(~seen, -torch.inf))


class Mixer2(nn.Module):
    """Mamba-2 mixer with one group of heads."""

    def __init__(self, d_model, d_state, head_dim, layers):
        super().__init__()
        inner = 2 * d_model
        heads = inner // head_dim
        self.sizes = inner, d_state, heads
        self.in_proj = nn.Linear(d_model, 2 * inner + 2 * d_state + heads, bias=False)
        self.conv1d = nn.Conv1d(inner + 2 * d_state, inner + 2 * d_state, 4, groups=inner + 2 * d_state)
        dt = log_uniform(1e-3, 0.1, heads)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(inner)
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(layers))

    def forward(self, u):
        inner, n, heads = self.sizes
        z, xbc, dt = self.in_proj(u).split([inner, inner + 2 * n, heads], -1)
        x, b, c = convolve(xbc, self.conv1d.weight[:, 0], self.conv1d.bias).split([inner, n, n], -1)
        delta = functional.softplus(dt + self.dt_bias).transpose(1, 2)  # (B, H, T)
        x = x.unflatten(-1, (heads, -1))
        # y[t] = sum over s <= t of exp(a (delta[s+1] + ... + delta[t])) delta[s] (c[t] . b[s]) x[s]
        share = decays(delta * -torch.exp(self.A_log)[:, None]) * delta[:, :, None] * (c @ b.mT)[:, None]
        y = torch.einsum("bhts,bshp->bthp", share, x) + self.D[:, None] * x
        return self.out_proj(self.norm(y.flatten(2) * functional.silu(z)))


class Kernel(nn.Module):
    """A diagonal state space model for each of `features` (S4D-Lin at first), `states` of each conjugate pair stored."""

    def __init__(self, features, states):
        super().__init__()
        self.inv_dt = nn.Parameter(log_uniform(1e-3, 0.1, features, 1).log())
        self.A_real = nn.Parameter(torch.full((features, states), 0.5).log())
        self.A_imag = nn.Parameter(math.pi * torch.arange(float(states)).repeat(features, 1))
        self.B = nn.Parameter(torch.stack([torch.ones(1, features, states), torch.zeros(1, features, states)], -1))
        self.C = nn.Parameter(torch.randn(1, features, states, 2) * math.sqrt(0.5))

    def forward(self, x):
        a = torch.complex(-torch.exp(self.A_real), -self.A_imag)
        dta = torch.exp(self.inv_dt) * a
        gain = torch.view_as_complex(self.C[0]) * torch.view_as_complex(self.B[0]) * torch.expm1(dta) / a
        t = x.shape[1]
        powers = torch.exp(dta[..., None] * torch.arange(t, device=x.device, dtype=x.dtype))
        kernel = 2 * torch.einsum("hn,hnt->ht", gain, powers).real
        spectrum = torch.fft.rfft(x.transpose(1, 2), 2 * t) * torch.fft.rfft(kernel, 2 * t)
        return torch.fft.irfft(spectrum, 2 * t)[..., :t].transpose(1, 2)


class System(nn.Module):
    """A kernel and its skip."""

    def __init__(self, features, states):
        super().__init__()
        self.D = nn.Parameter(torch.randn(1, features))
        self.kernel = Kernel(features, states)

    def forward(self, x):
        return self.kernel(x) + self.D * x


class S4Block(nn.Module):
    """S4D, gelu, and a linear map with a glu."""

    def __init__(self, d_model, states):
        super().__init__()
        self.layer = System(d_model, states)
        self.output_linear = nn.Sequential(nn.Linear(d_model, 2 * d_model))

    def forward(self, x):
        return functional.glu(self.output_linear(functional.gelu(self.layer(x))), -1)


class GatedMlp(nn.Module):
    def __init__(self, d_model, hidden):
        super().__init__()
        self.fc1 = nn.Linear(d_model, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x):
        x, gate = self.fc1(x).chunk(2, -1)
        return self.fc2(x * functional.silu(gate))


class Gating(nn.Module):
    def __init__(self, d_model, experts):
        super().__init__()
        self.gate = nn.Parameter(torch.randn(d_model, experts) / math.sqrt(d_model))


class Inner(nn.Module):
    def __init__(self, d_model, experts, hidden):
        super().__init__()
        self.lin1_weight = nn.Parameter(torch.randn(experts, d_model, hidden) / math.sqrt(d_model))
        self.lin2_weight = nn.Parameter(torch.randn(experts, hidden, d_model) / math.sqrt(hidden))


class Experts(nn.Module):
    """Every step goes to the expert that the router likes best, whatever the others do."""

    def __init__(self, d_model, experts, hidden):
        super().__init__()
        self.gating, self.expert_inner_function = Gating(d_model, experts), Inner(d_model, experts, hidden)
        self.balance = {}

    def forward(self, x):
        p = (x @ self.gating.gate).softmax(-1)
        best = functional.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype)
        # 1 when all experts are visited alike: what training adds to its loss (Switch Transformer, equation 4). Parts of a
        # batch may be on threads of their own.
        self.balance[get_ident()] = p.shape[-1] * (best.mean((0, 1)) * p.mean((0, 1))).sum()
        w = self.expert_inner_function
        hidden = functional.relu(torch.einsum("btd,edf->btef", x, w.lin1_weight)) * (best * p)[..., None]
        return torch.einsum("btef,efd->btd", hidden, w.lin2_weight)


class Layer(nn.Module):
    """A mixer, and behind it what `after` says: {} or {"mlp": …} or {"feedforward": …}."""

    def __init__(self, d_model, mixer, after):
        super().__init__()
        self.norm, self.mixer = RMSNorm(d_model), mixer
        for name, module in after.items():
            self.norm2 = RMSNorm(d_model)
            self.add_module(name, module)
        self.after = list(after)

    def forward(self, x):
        x = x + self.mixer(self.norm(x))
        for name in self.after:
            x = x + self.get_submodule(name)(self.norm2(x))
        return x


class Stack(nn.Module):
    def __init__(self, d_model, layers):
        super().__init__()
        self.layers, self.norm_f = nn.ModuleList(layers), RMSNorm(d_model)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)

    def balance(self):
        """What the routers of experts add to the loss of this thread's last pass."""
        return sum(m.balance[get_ident()] for m in self.modules() if isinstance(m, Experts))


class Scale(nn.Module):
    """x / rms(x) · scale."""

    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return functional.rms_norm(x, self.scale.shape, self.scale, 1e-6)


def bucket(distance):
    """The row of the position bias for a distance into the past."""
    bounds = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    return distance if distance < 16 else 15 + sum(b <= distance for b in bounds)


class Attention(nn.Module):
    """Queries and keys of unit length, a scale for each head."""

    def __init__(self, d_model, heads, bias):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d_model, d_model, bias=False) for _ in range(3))
        self.scale = nn.Parameter(torch.full((heads,), math.sqrt(d_model / heads)))
        if bias:
            self.rel_embedding = nn.Parameter(torch.zeros(heads, 32))
        self.heads, self.bias = heads, bias

    def forward(self, x, context, seen):
        """x sees the steps of `context` where `seen` (T, T) says so."""
        q, k, v = (m.unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q(x), self.k(context), self.v(context)))
        q, k = (m * (m.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for m in (q, k))
        scores = q @ k.mT
        if self.bias:
            n = len(seen)
            at = torch.tensor([[bucket(max(i - j, 0)) for j in range(n)] for i in range(n)])
            scores = scores + self.rel_embedding[:, at]
        scores = (scores * self.scale[:, None, None]).masked_fill(~seen, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Ffn(nn.Module):
    def __init__(self, d_model, hidden):
        super().__init__()
        self.hidden0 = nn.Linear(d_model, hidden, bias=False)
        self.output = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x):
        return self.output(functional.relu(self.hidden0(x)))


class BstLayer(nn.Module):
    def __init__(self, d_model, heads, hidden, states):
        super().__init__()
        self.attn_norm, self.cross_norm, self.ffn_norm = (Scale(d_model) for _ in range(3))
        self.attn, self.cross = Attention(d_model, heads, True), Attention(d_model, heads, False)
        self.ssm = System(d_model, states)
        self.proj = nn.Linear(2 * d_model, d_model, bias=False)
        self.ffn = Ffn(d_model, hidden)

    def forward(self, x, near, block):
        h, context = self.attn_norm(x), self.cross_norm(self.ssm(x))
        x = x + self.proj(torch.cat([self.attn(h, h, near), self.cross(h, context, block)], -1))
        return x + self.ffn(self.ffn_norm(x))


class Bst(nn.Module):
    """Block-State Transformer, one context for all heads: a step attends to the last `window` steps, and to what the state
    space model gave in the present window."""

    def __init__(self, d_model, layers, heads, hidden, states, window):
        super().__init__()
        self.layers = nn.ModuleList(BstLayer(d_model, heads, hidden, states) for _ in range(layers))
        self.final_norm, self.window = Scale(d_model), window

    def forward(self, x):
        t = torch.arange(x.shape[1])
        age = t[:, None] - t
        near = (age >= 0) & (age < self.window)
        block = (age >= 0) & (t[:, None] // self.window == t // self.window)
        for layer in self.layers:
            x = layer(x, near, block)
        return self.final_norm(x)

    def balance(self):
        return 0.0


def build(kind, d_model, layers, **sizes):
    """A core D to D, and the library's configuration of it. Sizes by kind: mamba d_state, dt_rank; mamba2 d_state,
    head_dim; s4d states, hidden; moe_mamba d_state, dt_rank, experts, hidden; bst heads, hidden, states, window."""
    if kind == "bst":
        core = Bst(d_model, layers, **sizes)
        return core, {"kind": kind, "variant": "SH", "context": "aligned", "xl_cache": True, "window": sizes["window"]}
    mamba = lambda: Mixer(d_model, sizes["d_state"], sizes["dt_rank"], layers)  # noqa: E731
    make = {
        "mamba": lambda: (mamba(), {}),
        "mamba2": lambda: (Mixer2(d_model, sizes["d_state"], sizes["head_dim"], layers), {}),
        "s4d": lambda: (S4Block(d_model, sizes["states"]), {"mlp": GatedMlp(d_model, sizes["hidden"])}),
        "moe_mamba": lambda: (mamba(), {"feedforward": Experts(d_model, sizes["experts"], sizes["hidden"])}),
    }[kind]
    return Stack(d_model, [Layer(d_model, *make()) for _ in range(layers)]), {"kind": kind}


SMALL = {
    "mamba": {"d_model": 8, "layers": 2, "d_state": 4, "dt_rank": 2},
    "mamba2": {"d_model": 8, "layers": 2, "d_state": 5, "head_dim": 4},
    "s4d": {"d_model": 8, "layers": 2, "states": 3, "hidden": 6},
    "moe_mamba": {"d_model": 8, "layers": 2, "d_state": 3, "dt_rank": 2, "experts": 3, "hidden": 5},
    "bst": {"d_model": 8, "layers": 2, "heads": 2, "hidden": 12, "states": 3, "window": 7},
}


def main():
    from safetensors.torch import save_file

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, help="folder for composite_core_KIND.safetensors")
    args = p.parse_args()
    for kind, sizes in SMALL.items():
        torch.manual_seed(5)
        core, config = build(kind, **sizes)
        with torch.no_grad():
            # Nothing stays at a value that hides an error.
            for name, w in core.named_parameters():
                if w.ndim <= 1 or "kernel" in name or name.endswith(("A_log", "rel_embedding")):
                    w.add_(torch.randn_like(w) * 0.3)
                elif w.ndim > 1:
                    w.mul_(1.5)
        x = torch.randn(2, 40, sizes["d_model"])
        with torch.no_grad():
            weights = {f"core.{k}": w.clone() for k, w in core.state_dict().items()}
            y = core.double()(x.double()).float()
        config = {
            "family": "composite",
            "version": 1,
            "input": {"dim": sizes["d_model"]},
            "encoder": {"kind": "none"},
            "core": config,
            "head": {"kind": "none"},
        }
        file = args.folder / f"composite_core_{kind}.safetensors"
        save_file({**weights, "__input__": x, "__output__": y}, file, {"config": json.dumps(config)})


if __name__ == "__main__":
    main()
