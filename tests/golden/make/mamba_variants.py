"""Makes the golden files of the Mamba, Mamba-2, MoE-Mamba and CleanUMamba variants that no other file holds.

    python mamba_variants.py MAMBA CLEANUMAMBA OUT

MAMBA is a checkout of state-spaces/mamba, CLEANUMAMBA the folder with its published Experiment_CleanU_Mamba2.pkl. Needs
torch, triton, transformers, einops, numpy and safetensors; runs on the processor. Language models come from the published
code (transformers; mamba_ssm through its reference scan); states, other rates, MoE-Mamba and CleanUMamba from the
recurrences below, written from the papers' equations in float64. Where both exist the script compares them.
"""

import hashlib
import json
import pathlib
import sys
import types

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

MAMBA, CLEAN, OUT = (pathlib.Path(a) for a in sys.argv[1:4])
torch.set_num_threads(1)


# The equations, in float64.

def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def silu(v):
    return v * sigmoid(v)


def softplus(v):
    return np.where(v > 20, v, np.log1p(np.exp(np.minimum(v, 20))))


def erf(v):
    return torch.erf(torch.from_numpy(v)).numpy()


def conv(x, w, bias):
    """Causal depthwise convolution of x (T, C); also the last K - 1 inputs."""
    k = w.shape[2]
    padded = np.concatenate([np.zeros((k - 1, x.shape[1])), x])
    y = sum(padded[j:j + len(x)] * w[:, 0, j] for j in range(k))
    return y + (0 if bias is None else bias), padded[len(padded) - (k - 1):].T


def mamba(w, u, rate=1.0):
    e, n = w["A_log"].shape
    r = w["dt_proj.weight"].shape[1]
    xz = u @ w["in_proj.weight"].T + w.get("in_proj.bias", 0)
    c, tail = conv(xz[:, :e], w["conv1d.weight"], w.get("conv1d.bias"))
    c = silu(c)
    dt, b, out = np.split(c @ w["x_proj.weight"].T, [r, r + n], axis=1)
    delta = rate * softplus(dt @ w["dt_proj.weight"].T + w["dt_proj.bias"])
    h, y = np.zeros((e, n)), np.zeros_like(c)
    for t in range(len(u)):
        h = np.exp(-delta[t][:, None] * np.exp(w["A_log"])) * h + (delta[t] * c[t])[:, None] * b[t]
        y[t] = h @ out[t] + w["D"] * c[t]
    return (y * silu(xz[:, e:])) @ w["out_proj.weight"].T + w.get("out_proj.bias", 0), {"conv": tail, "ssm": h}


def mamba2(w, u, rate=1.0, groups=1, limit=(0, np.inf), norm_first=False):
    heads, d_inner, channels = len(w["A_log"]), w["out_proj.weight"].shape[1], len(w["conv1d.weight"])
    e = 2 * d_inner + channels + heads - len(w["in_proj.weight"])
    mlp, p, gn = d_inner - e, e // heads, (channels - e) // 2
    parts = np.cumsum([mlp, mlp, e, channels])
    z0, x0, z, xbc, dt = np.split(u @ w["in_proj.weight"].T + w.get("in_proj.bias", 0), parts, axis=1)
    c, tail = conv(xbc, w["conv1d.weight"], w.get("conv1d.bias"))
    x, b, out = np.split(silu(c), [e, e + gn], axis=1)
    b, out = (v.reshape(len(u), groups, -1).repeat(heads // groups, 1) for v in (b, out))
    delta = rate * np.clip(softplus(dt + w["dt_bias"]), *limit)
    skip = np.broadcast_to(w["D"].reshape(heads, -1), (heads, p))
    s, y = np.zeros((heads, p, gn // groups)), np.zeros((len(u), e))
    for t in range(len(u)):
        v = x[t].reshape(heads, p)
        decay = np.exp(-delta[t] * np.exp(w["A_log"]))
        s = decay[:, None, None] * s + delta[t][:, None, None] * v[:, :, None] * b[t][:, None, :]
        y[t] = ((s * out[t][:, None, :]).sum(2) + skip * v).reshape(-1)

    def norm(v):
        v = v.reshape(len(v), groups, -1)
        return (v / np.sqrt((v ** 2).mean(2, keepdims=True) + 1e-5)).reshape(len(v), -1) * w["norm.weight"]

    if "norm.weight" not in w:
        y = y * silu(z)
    else:
        y = norm(y) * silu(z) if norm_first else norm(y * silu(z))
    y = np.concatenate([silu(z0) * x0, y], axis=1)
    return y @ w["out_proj.weight"].T + w.get("out_proj.bias", 0), {"conv": tail, "ssm": s}


def layer_norm(x, w, name, eps=1e-5):
    if f"{name}.g" in w:
        return x / np.sqrt((x ** 2).mean(1, keepdims=True) + eps) * w[f"{name}.g"] + w[f"{name}.b"]
    x = x - x.mean(1, keepdims=True)
    return x / np.sqrt((x ** 2).mean(1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def below(w, prefix):
    return {k[len(prefix):]: v for k, v in w.items() if k.startswith(prefix)}


def experts(w, h, top_k, act):
    """Token choice without capacity."""
    gate = w["router.gate"] if "router.gate" in w else w["gating.gate"]
    p = np.exp(h @ gate)
    p /= p.sum(1, keepdims=True)
    inner, y, best = below(w, "expert_inner_function."), np.zeros_like(h), np.argsort(-p, axis=1, kind="stable")[:, :top_k]
    for t in range(len(h)):
        for i in best[t]:
            a = h[t] @ inner["lin1_weight"][i]
            a = act(h[t] @ inner["gate_weight"][i]) * a if "gate_weight" in inner else act(a)
            y[t] += p[t, i] * (a @ inner["lin2_weight"][i])
    return y, best


def moe_mamba(w, ids, top_k, act):
    x, chosen, states, b = w["embedding_layer.layers.0.weight"][ids], [], [], 0
    while block := below(w, f"encoder.blocks.block_{b}.block."):
        if parallel := below(block, "residual_parallel.layer."):
            h = layer_norm(x, parallel, "pre_norm")
            y, state = mamba(below(parallel, "parallel.layers.0."), h)
            more, best = experts(below(parallel, "parallel.layers.1."), h, top_k, act)
            x = x + y + more
        else:
            layer = below(block, "residual_mamba.layer.")
            y, state = mamba(below(layer, "mamba."), layer_norm(x, layer, "pre_norm"))
            x, layer = x + y, below(block, "residual_feedforward.layer.")
            y, best = experts(below(layer, "feedforward."), layer_norm(x, layer, "pre_norm"), top_k, act)
            x = x + y
        chosen.append(best)
        states.append(state)
        b += 1
    return x @ w["head.weight"].T, states, chosen


def cleanumamba(w, wave):
    levels = sum(k.startswith("encoder.") and k.endswith(".0.weight") for k in w)
    hop, level = 2 ** levels, wave.std(ddof=1) + 1e-3
    frame = 3 * hop - 2
    total = frame + -(-max(len(wave) - frame, 0) // hop) * hop
    x, skips = np.concatenate([wave / level, np.zeros(total - len(wave))])[:, None], []

    def glu(v):
        a, b = np.split(v, 2, axis=1)
        return a * sigmoid(b)

    def linear(name, v):
        return v @ w[f"{name}.weight"][:, :, 0].T + w[f"{name}.bias"]

    for i in range(levels):
        k, n = w[f"encoder.{i}.0.weight"], (len(x) - 4) // 2 + 1
        x = np.maximum(sum(x[j:j + 2 * n - 1:2] @ k[:, :, j].T for j in range(4)) + w[f"encoder.{i}.0.bias"], 0)
        x = glu(linear(f"encoder.{i}.2", x))
        skips.append(x)
    h, residual, i = linear("tsfm_conv1", x), 0, 0
    while layer := below(w, f"tsfm_Mamba_layers.{i}."):
        residual = residual + h
        mixer = below(layer, "mixer.")
        h, _ = (mamba2 if "dt_bias" in mixer else mamba)(mixer, layer_norm(residual, layer, "norm"))
        i += 1
    x = linear("tsfm_conv2", layer_norm(residual + h, w, "norm_f"))
    for j, skip in enumerate(reversed(skips)):
        x = glu(linear(f"decoder.{j}.0", x + skip[:len(x)]))
        k = w[f"decoder.{j}.2.weight"]
        y = np.zeros((2 * len(x) + 2, k.shape[1])) + w[f"decoder.{j}.2.bias"]
        for tap in range(4):
            y[tap:tap + 2 * len(x) - 1:2] += x @ k[:, :, tap]
        x = y if j == levels - 1 else np.maximum(y, 0)
    return x[:len(wave), 0] * level


# Weights and files.

def draw(named, seed):
    """Random values, each parameter away from its default."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in named:
        v = torch.randn(p.shape, generator=generator)
        with torch.no_grad():
            if name.endswith("A_log"):
                v *= 0.7
            elif name.endswith((".g", "norm.weight", "norm2.weight", "norm_f.weight")):
                v = 1 + 0.2 * v
            elif name.endswith(("bias", ".b", "D")) or "conv1d" in name:
                v *= 0.5
            elif "expert_inner_function" in name or name.endswith("gate"):
                v *= p.shape[-2] ** -0.5
            elif "embed" not in name:
                v *= p.shape[-1] ** -0.5
            p.copy_(v)


def save(name, tensors, config):
    def tensor(v):
        v = torch.as_tensor(v)
        return (v.float() if v.is_floating_point() else v).clone().contiguous()
    save_file({k: tensor(v) for k, v in tensors.items()}, OUT / f"{name}.safetensors", {"config": json.dumps(config)})
    print(name)


def double(tensors):
    return {k: np.asarray(v, np.float64) for k, v in tensors.items() if not k.startswith("__")}


def save_lm(name, model, vocab, config, seed, leave_out=(), steps=(23, 7), batch=2):
    draw(model.named_parameters(), seed)
    model.tie_weights()
    ids = torch.randint(0, vocab, (batch, sum(steps)), generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        y = model.eval()(ids).logits
    weights = {k: v for k, v in model.state_dict().items() if k not in leave_out}
    t = steps[0]
    parts = {"__input__": ids[:, :t], "__output__": y[:, :t], "__cont_input__": ids[:, t:], "__cont_output__": y[:, t:]}
    save(name, weights | parts, config)


def transformers_variants():
    from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM
    small = {"vocab_size": 50, "num_hidden_layers": 2}

    def variant(name, model, config, seed):
        model.config.use_cache = False
        kept = {k: v for k, v in config.to_dict().items() if isinstance(v, (int, float, str, bool, list, tuple))}
        leave_out = ["lm_head.weight"] if config.tie_word_embeddings else []
        save_lm(name, model, 50, {"hf_config": kept}, seed, leave_out)

    c = MambaConfig(**small, hidden_size=24, state_size=5, conv_kernel=3, expand=3, time_step_rank=4, use_bias=True,
                    use_conv_bias=False, tie_word_embeddings=False, layer_norm_epsilon=1e-3)
    variant("mamba_lm_bias_untied_hf", MambaForCausalLM(c), c, 1)
    c = Mamba2Config(**small, hidden_size=24, state_size=7, conv_kernel=3, expand=2, head_dim=8, num_heads=6, n_groups=2,
                     use_bias=True, chunk_size=8, tie_word_embeddings=True, layer_norm_epsilon=1e-3)
    variant("mamba2_lm_groups_hf", Mamba2ForCausalLM(c), c, 2)
    c = Mamba2Config(**small, hidden_size=16, state_size=9, conv_kernel=4, expand=2, head_dim=8, num_heads=4, n_groups=1,
                     use_conv_bias=False, chunk_size=8, time_step_limit=(0.2, 0.9), tie_word_embeddings=False)
    variant("mamba2_lm_limit_hf", Mamba2ForCausalLM(c), c, 3)


def mamba_ssm_variants():
    sys.path.insert(0, str(MAMBA))
    for name in ["", ".modules", ".models", ".ops", ".ops.triton", ".utils"]:
        module = sys.modules.setdefault(f"mamba_ssm{name}", types.ModuleType(f"mamba_ssm{name}"))
        module.__path__ = [str(MAMBA / f"mamba_ssm{name}".replace(".", "/"))]
    for name, members in [("modules.mamba3", ["Mamba3"]), ("modules.mha", ["MHA"]), ("utils.generation", ["GenerationMixin"]),
                          ("utils.hf", ["load_config_hf", "load_state_dict_hf"])]:
        module = sys.modules.setdefault(f"mamba_ssm.{name}", types.ModuleType(name))
        vars(module).update({m: type(m, (), {}) for m in members})
    import mamba_ssm.modules.mamba2 as second
    import mamba_ssm.modules.mamba_simple as first
    import mamba_ssm.ops.selective_scan_interface as scan
    import mamba_ssm.ops.triton.layer_norm as norm
    import mamba_ssm.ops.triton.layernorm_gated as gated
    import mamba_ssm.ops.triton.ssd_combined as combined
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    # The published reference forms in place of the kernels for graphics cards.
    first.selective_scan_fn = scan.selective_scan_fn = scan.selective_scan_ref
    second.mamba_chunk_scan_combined = lambda x, dt, a, b, c, chunk_size, **k: combined.ssd_selective_scan(
        x, dt, a, b, c, **{n: k[n] for n in ["D", "z", "dt_bias", "dt_softplus", "dt_limit"] if n in k})
    norm.RMSNorm.forward = lambda s, x: norm.rms_norm_ref(x, s.weight, s.bias, eps=s.eps)
    gated.RMSNorm.forward = lambda s, x, z: gated.rms_norm_ref(
        x, s.weight, s.bias, z=z, eps=s.eps, group_size=s.group_size, norm_before_gate=s.norm_before_gate)

    def variant(name, seed, leave_out=(), **config):
        config = MambaConfig(fused_add_norm=False, **config)
        save_lm(name, MambaLMHeadModel(config), config.vocab_size, vars(config), seed, leave_out)

    variant("mamba_lm_layernorm_mlp", 11, ["backbone.embedding.weight"], d_model=24, n_layer=2, vocab_size=45,
            d_intermediate=100, rms_norm=False,
            ssm_cfg={"layer": "Mamba1", "d_state": 6, "d_conv": 3, "dt_rank": 3, "bias": True, "use_fast_path": False})
    variant("mamba2_lm_groups_mlp", 12, d_model=32, n_layer=2, vocab_size=45, d_intermediate=64, pad_vocab_size_multiple=16,
            ssm_cfg={"layer": "Mamba2", "d_state": 6, "headdim": 8, "ngroups": 2, "use_mem_eff_path": False})

    def block(name, seed, module, config, **options):
        draw(module.named_parameters(), seed)
        x = torch.randn(2, 29, module.d_model, generator=torch.Generator().manual_seed(seed + 1))
        with torch.no_grad():
            y = module(x)
        w = {k: v.detach() for k, v in module.named_parameters()}
        tensors = w | {"__input__": x, "__output__": y}
        split = 17
        for end, what in [(split, "__state__"), (29, "__cont_state__")]:
            runs = [mamba2(double(w), u[:end].double().numpy(), **options) for u in x]
            for part in ["conv", "ssm"]:
                tensors[f"{what}.layer0.{part}"] = np.stack([state[part] for _, state in runs])
        off = np.abs(np.stack([y for y, _ in runs]) - y.numpy()).max()
        assert off < 1e-5, f"{name}: the recurrence is off by {off}"
        for rate in [0.5, 2.0]:
            runs = [mamba2(double(w), u.double().numpy(), rate=rate, **options)[0] for u in x]
            tensors[f"__output__.dt_scale_{rate}"] = np.stack(runs)
        save(name, tensors, config | {"split": split})

    plain = {"d_state": 5, "headdim": 8, "use_mem_eff_path": False}
    block("mamba2_block_mlp_skips", 14, second.Mamba2(24, **plain, ngroups=2, D_has_hdim=True, d_ssm=32, bias=True),
          {"ssm_cfg": {"ngroups": 2}}, groups=2)
    block("mamba2_block_gated_only", 15, second.Mamba2(24, **plain, rmsnorm=False, conv_bias=False), {})
    block("mamba2_block_norm_first", 16, second.Mamba2(16, **plain, ngroups=4, norm_before_gate=True, dt_limit=(0.3, 1.0)),
          {"d_state": 5, "norm_before_gate": True, "dt_limit": [0.3, 1.0]}, groups=4, limit=(0.3, 1.0), norm_first=True)


def moe_variants():
    def variant(name, seed, act, config, parallel=False, rms=False, old=False, gated=False):
        d, e, n, r, vocab, x, f, k = 20, 30, 5, 2, 40, 6, 12, config.get("routing_top_k", 1)
        shapes = {"embedding_layer.layers.0.weight": (vocab, d), "head.weight": (vocab, d)}
        for b in range(2):
            block = f"encoder.blocks.block_{b}.block.residual_"
            layers = [("parallel.layer.", "parallel.layers.0.", "parallel.layers.1.")] if parallel else [
                ("mamba.layer.", "mamba.", None), ("feedforward.layer.", None, "feedforward.")]
            for layer, mixer, moe in layers:
                shapes |= {f"{block}{layer}pre_norm.{p}": (d,) for p in (["g", "b"] if rms else ["weight", "bias"])}
                if mixer:
                    sizes = {"A_log": (e, n), "D": (e,), "in_proj.weight": (2 * e, d), "conv1d.weight": (e, 1, 4),
                             "conv1d.bias": (e,), "x_proj.weight": (r + 2 * n, e), "dt_proj.weight": (e, r),
                             "dt_proj.bias": (e,), "out_proj.weight": (d, e)}
                    shapes |= {f"{block}{layer}{mixer}{p}": s for p, s in sizes.items()}
                if moe:
                    inner = f"{block}{layer}{moe}expert_inner_function."
                    shapes |= {f"{block}{layer}{moe}{'router' if old else 'gating'}.gate": (d, x),
                               f"{inner}lin1_weight": (x, d, f), f"{inner}lin2_weight": (x, f, d)}
                    shapes |= {f"{inner}gate_weight": (x, d, f)} if gated else {}
        w = {name: torch.zeros(shape) for name, shape in shapes.items()}
        draw(w.items(), seed)
        t, total = 19, 27
        ids = torch.randint(0, vocab, (2, total), generator=torch.Generator().manual_seed(seed + 1))
        runs = [moe_mamba(double(w), row.numpy(), k, act) for row in ids]
        y = np.stack([run[0] for run in runs])
        tensors = w | {"__input__": ids[:, :t], "__output__": y[:, :t], "__cont_input__": ids[:, t:],
                       "__cont_output__": y[:, t:]}
        for b in range(2):
            for part in ["conv", "ssm"]:
                tensors[f"__cont_state__.layer{b}.{part}"] = np.stack([run[1][b][part] for run in runs])
            tensors[f"__dbg__.block{b}.expert"] = np.stack([run[2][b] for run in runs]).squeeze()
        save(name, tensors, config)

    def gelu(v):
        return v * (1 + erf(v / 2 ** 0.5)) / 2

    variant("moe_mamba_parallel_top2", 21, silu, {"moe_inner_expert": "swi_glu", "routing_top_k": 2}, parallel=True, rms=True,
            gated=True)
    variant("moe_mamba_router_geglu", 22, gelu, {"expert": "geglu"}, old=True, gated=True)


def cleanumamba_variants():
    here = pathlib.Path(__file__).parent.parent
    known = load_file(here / "cleanumamba_tiny.safetensors")
    wave = known["__input__"].astype(np.float64)
    off = np.abs(cleanumamba(double(known), wave) - known["__output__"]).max()
    assert off < 1e-6, f"CleanUMamba with Mamba-1 is off by {off}"
    w = {k: torch.from_numpy(v) for k, v in known.items() if not k.startswith("__") and ".mixer." not in k}
    d, mixers = 12, {}
    for i, (heads, p, n) in enumerate([(4, 6, 5), (2, 8, 3)]):
        e, c = heads * p, heads * p + 2 * n
        sizes = {"in_proj.weight": (e + c + heads, d), "conv1d.weight": (c, 1, 4), "conv1d.bias": (c,), "dt_bias": (heads,),
                 "A_log": (heads,), "D": (heads,), "norm.weight": (e,), "out_proj.weight": (d, e)}
        mixers |= {f"tsfm_Mamba_layers.{i}.mixer.{k}": torch.zeros(s) for k, s in sizes.items()}
    draw(mixers.items(), 31)
    w |= mixers
    save("cleanumamba_mamba2_tiny", w | {"__input__": wave, "__output__": cleanumamba(double(w), wave)},
         {"model": "cleanumamba", "network_config": {"mamba_v2": True}})
    path = CLEAN / "Experiment_CleanU_Mamba2.pkl"
    w = torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"]
    wave = load_file(here / "cleanumamba_e8_200k_speech.safetensors")["__input__"].astype(np.float64)
    save("cleanumamba_mamba2_speech", {"__input__": wave, "__output__": cleanumamba(double(w), wave)},
         {"model": "cleanumamba", "checkpoint": path.name, "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


transformers_variants()
mamba_ssm_variants()
moe_variants()
cleanumamba_variants()
