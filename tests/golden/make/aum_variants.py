"""Makes the golden files of Audio Mamba variants that no published file uses, by running the published code in float64.

    python aum_variants.py CHECKOUT OUT

Needs torch, safetensors and einops. The fused mixer of the published code needs a GPU: a stand-in with its parameters
follows the recurrence step by step. What else is imported (timm, wget) is replaced by stand-ins that do what is used.
"""

import json
import math
import pathlib
import sys
import types

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

UPSTREAM = "kaistmm/Audio-Mamba-AuM@b0eb85d595c4"


def stand_in(name, **members):
    module = sys.modules.setdefault(name, types.ModuleType(name))
    vars(module).update(members)


class RMSNorm(nn.Module):
    def __init__(self, d, eps=1e-5, **_):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(d)), None, eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Mixer(nn.Module):
    """The mixer of all three kinds, parameters as published, the scan one step at a time."""

    def __init__(self, d, d_state=16, d_conv=4, expand=2, bimamba_type="none", if_devide_out=False, **_):
        super().__init__()
        e, self.r, self.n = expand * d, math.ceil(d / 16), d_state
        self.kind, self.halve = bimamba_type, if_devide_out
        self.in_proj, self.out_proj = nn.Linear(d, 2 * e, bias=False), nn.Linear(e, d, bias=False)
        for b in ["", "_b"] if bimamba_type == "v2" else [""]:
            setattr(self, "conv1d" + b, nn.Conv1d(e, e, d_conv, groups=e, padding=d_conv - 1))
            setattr(self, "x_proj" + b, nn.Linear(e, self.r + 2 * d_state, bias=False))
            setattr(self, "dt_proj" + b, nn.Linear(self.r, e))
            setattr(self, "D" + b, nn.Parameter(torch.ones(e)))
        for a in ["A_log"] if bimamba_type == "none" else ["A_log", "A_b_log"]:
            setattr(self, a, nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(e, 1)))

    def project(self, x, b):
        c = F.silu(getattr(self, "conv1d" + b)(x)[..., : x.shape[-1]]).transpose(1, 2)
        dt, inp, out = getattr(self, "x_proj" + b)(c).split([self.r, self.n, self.n], -1)
        return c, F.softplus(getattr(self, "dt_proj" + b)(dt)), inp, out

    @staticmethod
    def scan(c, delta, b, out, a, d, z):
        h, ys = torch.zeros(*c.shape[::2], b.shape[-1]), []
        for t in range(c.shape[1]):
            step = delta[:, t, :, None]
            h = torch.exp(step * a) * h + step * b[:, t, None] * c[:, t, :, None]
            ys.append((h * out[:, t, None]).sum(-1))
        return (torch.stack(ys, 1) + d * c) * F.silu(z)

    def forward(self, hidden, inference_params=None):
        x, z = self.in_proj(hidden).chunk(2, -1)
        x = x.transpose(1, 2)
        parts = self.project(x, "")
        y = self.scan(*parts, -self.A_log.exp(), self.D, z)
        if self.kind == "v1":
            parts = [p.flip(1) for p in parts]
            y = y + self.scan(*parts, -self.A_b_log.exp(), self.D, z.flip(1)).flip(1)
        if self.kind == "v2":
            parts = self.project(x.flip(-1), "_b")
            y = y + self.scan(*parts, -self.A_b_log.exp(), self.D_b, z.flip(1)).flip(1)
            y = y / 2 if self.halve else y
        return self.out_proj(y)


def published(checkout):
    def normal(t, std=1.0):
        return nn.init.normal_(t, 0, std)

    class DropPath(nn.Identity):
        def __init__(self, *_):
            super().__init__()

    pair = lambda x: tuple(x) if isinstance(x, (tuple, list)) else (x, x)
    for package in ["timm", "timm.models", "wget", "mamba_ssm", "mamba_ssm.modules", "mamba_ssm.ops", "mamba_ssm.ops.triton"]:
        stand_in(package)
    stand_in("timm.models.layers", trunc_normal_=normal, lecun_normal_=normal, DropPath=DropPath, to_2tuple=pair)
    stand_in("timm.models.vision_transformer", _load_weights=None)
    stand_in("mamba_ssm.modules.mamba_simple", Mamba=Mixer)
    stand_in("mamba_ssm.ops.triton.layernorm", RMSNorm=RMSNorm, layer_norm_fn=None, rms_norm_fn=None)
    sys.path.insert(0, str(checkout))
    from src.models.mamba_models import AudioMamba

    return AudioMamba


def randomise(model):
    """Every parameter away from its default, and what f32 can hold."""
    g = torch.Generator().manual_seed(11)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=g)
        if name.endswith("_log"):
            value = p + 0.3 * noise
        elif name.endswith(("norm.weight", "norm_f.weight", ".D", ".D_b")):
            value = 1 + 0.3 * noise
        elif "dt_proj" in name and name.endswith("bias"):
            value = noise - 2
        elif "bias" in name:
            value = 0.2 * noise
        elif "pos_embed" in name or "cls_token" in name:
            value = 0.5 * noise
        else:
            value = noise / math.sqrt(p[0].numel())
        p.data.copy_(value.float())


def main():
    checkout, out = map(pathlib.Path, sys.argv[1:])
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    audio_mamba = published(checkout)
    out.mkdir(parents=True, exist_ok=True)

    def build(c, **extra):
        token = c["cls_token"]
        return audio_mamba(
            spectrogram_size=(c["mel_bins"], c["frames"]), patch_size=c["patch_size"], strides=c["strides"],
            depth=c["depth"], embed_dim=c["embed_dim"], num_classes=c["num_classes"], bimamba_type=c["bimamba_type"],
            if_devide_out=c["if_devide_out"], final_pool_type=c["final_pool_type"],
            transpose_token_sequence=c["transpose_token_sequence"], if_abs_pos_embed=c["if_abs_pos_embed"],
            if_cls_token=token != "none", use_double_cls_token=token == "double",
            use_middle_cls_token=token == "middle", use_end_cls_token=token == "end",
            fused_add_norm=False, residual_in_fp32=False, rms_norm=True, **extra,
        ).eval()

    def write(name, model, config, batch, weights=None):
        taps = {}
        model.patch_embed.register_forward_hook(lambda m, i, o: taps.update({"__tap__.patch_embed": o}))
        if config["if_abs_pos_embed"]:
            model.pos_embed.register_forward_hook(lambda m, i, o: taps.update({"__tap__.pos_embed": o}))
        for i, layer in enumerate(model.layers):
            names = f"__tap__.layer{i}.hidden", f"__tap__.layer{i}.residual"
            layer.register_forward_hook(lambda m, _, o, names=names: taps.update(zip(names, o)))
        x = torch.randn(batch, config["frames"], config["mel_bins"], generator=torch.Generator().manual_seed(3)).float()
        with torch.no_grad():
            y = model(x.double())
            taps["__tap__.features"] = model(x.double(), return_features=True)
        tensors = {**(weights or model.state_dict()), **taps, "__input__": x, "__output__": y}
        metadata = {"format": "pt", "config": json.dumps(config), "upstream": UPSTREAM}
        tensors = {k: v.detach().float().contiguous().clone() for k, v in tensors.items()}
        save_file(tensors, out / f"aum_variant_{name}.safetensors", metadata=metadata)

    kinds = {"none": "Fo-Fo", "v1": "Fo-Bi", "v2": "Bi-Bi"}

    def config(kind, token, size=(16, 24), patch=(8, 8), strides=None, **over):
        return {
            "model": "audio-mamba", "variant": kinds[kind], "bimamba_type": kind, "mel_bins": size[0],
            "frames": size[1], "patch_size": patch, "strides": strides or patch, "depth": 2, "embed_dim": 24,
            "num_classes": 5, "cls_token": token, "transpose_token_sequence": False, "if_devide_out": True,
            "if_abs_pos_embed": True, "final_pool_type": "mean", "norm_eps": 1e-5, "input_layout": "B,T,F", **over,
        }

    for name, c in {
        "double": config("v2", "double", patch=(8, 4), if_devide_out=False),
        "double_transposed": config("none", "double", patch=(8, 4), transpose_token_sequence=True),
        "head": config("v2", "head"),
        "max": config("none", "none", final_pool_type="max"),
        "mean": config("v1", "none"),
        "middle_transposed": config("v1", "middle", size=(16, 40), transpose_token_sequence=True),
        "no_position": config("v1", "end", size=(18, 24), strides=(5, 8), if_abs_pos_embed=False),
        "strided": config("v2", "middle", size=(18, 27), patch=(8, 6), strides=(5, 3)),
    }.items():
        model = build(c)
        randomise(model)
        write(name, model, c, 2)

    # Trained on 64 frames, loaded for other lengths.
    short = config("v1", "middle", size=(128, 64), patch=(16, 16))
    model = build(short)
    randomise(model)
    weights = out / "short.pth"
    torch.save(model.state_dict(), weights)
    for frames in [32, 160]:
        c = {**short, "frames": frames}
        longer = build(c, aum_pretrain=True, aum_pretrain_path=weights).eval()
        write(f"{frames}_frames", longer, c, 1, model.state_dict())
    weights.unlink()


main()
