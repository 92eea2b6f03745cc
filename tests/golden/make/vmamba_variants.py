"""Makes the golden files of the VMamba variants that no published file uses, by running the published code in float64.

    python vmamba_variants.py CHECKOUT/classification/models OUT

Needs torch and safetensors. What the published module imports besides (timm, fvcore, Mamba-2) is not used by these
networks and is replaced by empty stand-ins; its explicit casts to float32 are widened.
"""

import contextlib
import importlib
import json
import pathlib
import sys
import tempfile
import types

import torch
from safetensors.torch import save_file

UPSTREAM = "MzeroMiko/VMamba@2ed52ead062a51a64521ed3871d52914bf532876"
CASTS = [(".float()", ".double()"), ("torch.float32", "torch.float64"), ("torch.float)", "torch.float64)"),
         ("== torch.float\n", "== torch.float64\n")]


def stand_in(name, **members):
    module = sys.modules.setdefault(name, types.ModuleType(name))
    vars(module).update(members)


def published(folder):
    """The published module, widened to float64."""

    class DropPath(torch.nn.Identity):
        def __init__(self, *_):
            super().__init__()

    for package in ["timm", "timm.models", "fvcore", "mamba2"]:
        stand_in(package)
    stand_in("timm.models.layers", DropPath=DropPath, trunc_normal_=torch.nn.init.trunc_normal_)
    names = ["FlopCountAnalysis", "flop_count_str", "flop_count", "parameter_count"]
    stand_in("fvcore.nn", **dict.fromkeys(names))
    stand_in("mamba2.ssd_minimal", selective_scan_chunk_fn=None)
    wide = pathlib.Path(tempfile.mkdtemp())
    for name in ["csm_triton", "csms6s", "vmamba"]:
        text = (folder / f"{name}.py").read_text()
        for narrow, widened in CASTS:
            text = text.replace(narrow, widened)
        (wide / f"{name}.py").write_text(text)
    sys.path.insert(0, str(wide))
    torch.cuda.device = lambda _: contextlib.nullcontext()
    return importlib.import_module("vmamba")


BASE = dict(
    patch_size=4, in_chans=3, num_classes=5, depths=[1, 2], dims=6, ssm_d_state=1, ssm_ratio=1.0, ssm_dt_rank="auto",
    ssm_act_layer="silu", ssm_conv=3, ssm_conv_bias=False, ssm_init="v0", forward_type="v05_noz", mlp_ratio=2.0,
    mlp_act_layer="gelu", gmlp=False, patch_norm=True, norm_layer="ln2d", downsample_version="v3",
    patchembed_version="v2", posembed=False, imgsize=32,
)

# Name: what differs from BASE, the input's shape, whether it is a backbone.
VARIANTS = {
    "v051d_unidi": (dict(forward_type="v051d_noz"), (1, 3, 20, 28), False),
    "onsoftmax_gmlp": (
        dict(forward_type="v05_onsoftmax_noz", gmlp=True, mlp_act_layer="silu", norm_layer="ln"), (2, 3, 24, 20), False),
    "oncnorm": (
        dict(forward_type="v03_oncnorm_nozact_no32", ssm_d_state=3, ssm_conv_bias=True), (1, 3, 24, 36), False),
    "ondwconv3": (
        dict(forward_type="v04_ondwconv3_noz_oact", norm_layer="ln", ssm_act_layer="relu", downsample_version="v1"),
        (1, 3, 20, 24), False),
    "onsigmoid": (
        dict(forward_type="v01_onsigmoid_oact", ssm_act_layer="gelu", ssm_ratio=2.0, mlp_ratio=0.0,
             downsample_version="v2"), (1, 3, 24, 16), False),
    "onnone_posembed": (
        dict(forward_type="v05_onnone_noz", posembed=True, patch_norm=False, patchembed_version="v1",
             downsample_version="v1", imgsize=24), (1, 3, 24, 24), False),
    "no_conv": (dict(ssm_conv=1, ssm_d_state=4, patch_norm=False), (1, 3, 20, 20), False),
    "v0seq": (
        dict(forward_type="v0seq", norm_layer="ln", mlp_ratio=0.0, ssm_d_state=16, ssm_ratio=2.0, ssm_conv_bias=True,
             patchembed_version="v1", downsample_version="v1"), (1, 3, 28, 20), False),
    "backbone": (dict(norm_layer="ln"), (2, 3, 36, 20), True),
    "backbone_ln2d": (dict(forward_type="v052d"), (1, 3, 20, 32), True),
}


def randomise(model, generator):
    """Weights of a size at which every part of the network matters."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if name.endswith(("norm.weight", "norm2.weight", ".Ds")) or (p.dim() == 1 and name.endswith("weight")):
                p.copy_(1 + 0.2 * noise)
            elif name.endswith("A_logs"):
                p.copy_(0.7 * noise)
            elif name.endswith("dt_projs_bias"):
                p.copy_(noise - 1)
            elif p.dim() == 1 or name == "pos_embed":
                p.copy_(0.3 * noise)
            else:
                p.copy_(noise * p[0].numel() ** -0.5)
            p.copy_(p.float())


def make(vmamba, name, out):
    changes, shape, backbone = VARIANTS[name]
    options = {**BASE, **changes}
    generator = torch.Generator().manual_seed(sum(name.encode()))
    kind = vmamba.Backbone_VSSM if backbone else vmamba.VSSM
    if backbone:
        model = kind(out_indices=(0, 1), **options).double().eval()
    else:
        model = kind(**options).double().eval()
    randomise(model, generator)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    if options["posembed"]:
        # Stored for another grid; the published loader resizes it.
        state["pos_embed"] = (0.5 * torch.randn(1, options["dims"], 4, 4, generator=generator)).double()
        model.load_state_dict({k: v.clone() for k, v in state.items()})
    x = torch.randn(shape, generator=generator).double()
    with torch.inference_mode():
        y = model(x)
    tensors = {k: v.float().contiguous() for k, v in state.items()}
    tensors["__input__"] = x.float()
    for i, y in enumerate(y) if backbone else [(None, y)]:
        tensors["__output_f64__" if i is None else f"__output_{i}_f64__"] = y.contiguous()
    config = {"family": "vmamba", "model": options, "upstream": UPSTREAM, "torch": torch.__version__}
    save_file(tensors, out / f"vmamba_variant_{name}.safetensors", {"config": json.dumps(config)})
    print(name, "std", float(torch.cat([t.flatten() for t in (y if isinstance(y, list) else [y])]).std()))


if __name__ == "__main__":
    code = published(pathlib.Path(sys.argv[1]))
    for variant in VARIANTS:
        make(code, variant, pathlib.Path(sys.argv[2]))
