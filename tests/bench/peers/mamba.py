"""Mamba of the size of mamba-130m, batch 1: a token, and a prompt, beside transformers and C, in one sitting, in turns.

    python tests/bench/peers/mamba.py [--rounds 5] [--seconds 1] [--prompt 1024] [--threads 1 2] [--quick]

from the root of the repository, after `make bench` (which builds `ssm-bench`), with
`pip install -r tests/bench/peers/requirements.txt` done and a C compiler with OpenMP there. Weights are random, those of one
seed for every peer; scores are compared before anything is timed.

    read            every weight read once from memory by the same threads: what no token in f32 can be faster than
    ours            this library, f32
    ours, file f16  the same with weights that are numbers of f16, which it holds in 16 bits: as exact
    ours bf16       this library, large products in bfloat16
    ours int8       this library, large products in 8-bit integers
    c               mamba.c: plain loops, -Ofast -march=native, OpenMP
    transformers    MambaForCausalLM, a token with its cache; a prompt with the scores of all its tokens, as ours, or of the
                    last one only
"""

import argparse
import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched: neither weights nor kernels

import numpy as np
import torch
from common import Call, Child, agree, ours, race, save, table

LAYERS, D, VOCAB = 24, 768, 50280
TENSORS = ("norm.weight", *(f"mixer.{n}" for n in ("in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight",
           "dt_proj.weight", "dt_proj.bias", "A_log", "D", "out_proj.weight")))  # fmt: skip


def network(layers):
    """The network of transformers, weights from torch's seed."""
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"hidden_size": D, "num_hidden_layers": layers, "vocab_size": VOCAB, "state_size": 16, "time_step_rank": D // 16}
    return MambaForCausalLM(MambaConfig(**sizes)).eval()


def weights(model):
    """The weights as a file has them: the head is the embedding."""
    return {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}


def flat(file, model, layers):
    """The weights as mamba.c reads them."""
    w = model.state_dict()
    with open(file, "wb") as f:
        put = lambda name: f.write(w[f"backbone.{name}"].contiguous().numpy().astype("<f4").tobytes())  # noqa: E731
        put("embeddings.weight")
        for i in range(layers):
            for name in TENSORS:
                put(f"layers.{i}.{name}")
        put("norm_f.weight")


class Asked:
    """One of the things that a child does."""

    def __init__(self, child, words):
        self.child, self.words = child, words

    def turn(self, seconds):
        return self.child.ask(f"{self.words} {seconds}")["milliseconds"]


def on(threads, call):
    """A call of PyTorch on so many threads."""

    def run():
        torch.set_num_threads(threads)
        return call()

    return run


class Decoder:
    """transformers, a token a call, its cache carried on."""

    def __init__(self, model):
        self.model, self.cache = model, None

    def step(self, token):
        out = self.model(torch.tensor([[token]]), use_cache=True, **({"cache": self.cache} if self.cache else {}))
        self.cache = out.cache
        return out.logits[0, -1]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=1.0)
    p.add_argument("--prompt", type=int, default=1024, help="tokens of the prompt")
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="each of these for a token; the last for a prompt")
    p.add_argument("--quick", action="store_true", help="two layers, one short round, a prompt of 64: for trying")
    args = p.parse_args()
    layers = LAYERS
    if args.quick:
        layers, args.rounds, args.seconds, args.prompt = 2, 1, 0.2, 64
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    # First, so that the tokens are the same whatever the size of the network.
    prompt = torch.randint(0, VOCAB, (args.prompt,))
    model = network(layers)
    few = prompt[:8]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as children:
        folder = Path(folder)
        save(folder / "mamba.safetensors", weights(model))
        flat(folder / "mamba.bin", model, layers)
        command = ["cc", "-Ofast", "-march=native", "-fopenmp", "-o", str(folder / "mamba")]
        subprocess.run([*command, str(Path(__file__).with_name("mamba.c")), "-lm"], check=True)
        for name, ids in (("prompt", prompt), ("few", few)):
            ids.numpy().astype("<u4").tofile(folder / name)
        want = model(few[None]).logits[0, -1].numpy()
        # An error of rounding grows by a fifth in each of the random layers, in PyTorch as well, so lower
        # precisions are judged on two.
        torch.manual_seed(1)
        small = network(2)
        save(folder / "small.safetensors", weights(small))
        offs, expected = {}, small(few[None]).logits[0, -1].numpy()
        halved = lambda model: {k: v.half().float() for k, v in weights(model).items()}  # noqa: E731
        save(folder / "half.safetensors", halved(model))
        for precision, within in (("bf16", 0.1), ("int8", 0.3)):
            child, got = ours(folder / "small.safetensors", 1, precision, folder / "few")
            with child:
                offs[f"ours {precision} (two layers)"] = agree(f"ours {precision}", got, expected, within)
        save(folder / "small.safetensors", halved(small))
        small.load_state_dict({**halved(small), "lm_head.weight": halved(small)["backbone.embeddings.weight"]})
        child, got = ours(folder / "small.safetensors", 1, "f32", folder / "few")
        with child:
            offs["ours, file f16 (two layers)"] = agree("ours, file f16", got, small(few[None]).logits[0, -1].numpy(), 1e-4)
        decoder = Decoder(model)
        for token in few.tolist():
            last = decoder.step(token)
        agree("transformers, token by token", last.numpy(), want, 1e-3)
        c = [str(folder / "mamba"), str(folder / "mamba.bin"), str(layers), str(D), str(VOCAB), *map(str, few.tolist())]
        c = children.enter_context(Child(c))
        offs["c"] = agree("c", c.answer()["output"], want, 1e-3)
        times = {}
        for threads in args.threads:
            peers = {"read": Asked(c, f"{threads} read")}
            forms = ("ours", "f32"), ("ours, file f16", "f32"), ("ours bf16", "bf16"), ("ours int8", "int8")
            for name, precision in forms:
                file = "half" if name == "ours, file f16" else "mamba"
                child, got = ours(folder / f"{file}.safetensors", threads, precision, folder / "few")
                peers[name] = children.enter_context(child)
                if name == "ours":
                    offs[name] = agree(name, got, want, 1e-3)
            peers["c"] = Asked(c, f"{threads} decode")
            peers["transformers"] = Call(on(threads, lambda: decoder.step(int(few[0]))))
            times[threads] = race(peers, args.rounds, args.seconds)
        print(f"Mamba, {layers} layers of {D}, torch {torch.__version__}; scores of 8 tokens agree within",
              ", ".join(f"{name} {off:.1e}" for name, off in offs.items()))  # fmt: skip
        for threads, found in times.items():
            print(f"\na token, {threads} threads")
            table(found, "read")
        threads = args.threads[-1]
        torch.set_num_threads(threads)
        want, peers = model(prompt[None], logits_to_keep=1).logits[0, -1].numpy(), {}
        for name, precision in (("ours", "f32"), ("ours bf16", "bf16"), ("ours int8", "int8")):
            child, got = ours(folder / "mamba.safetensors", threads, precision, folder / "prompt", args.prompt)
            peers[name] = children.enter_context(child)
            if precision == "f32":
                agree(f"{name}, prompt", got, want, 1e-3)
        peers["transformers"] = Call(lambda: model(prompt[None], use_cache=False))
        peers["transformers, last only"] = Call(lambda: model(prompt[None], use_cache=False, logits_to_keep=1))
        found = race(peers, max(args.rounds // 2, 1), args.seconds)
        print(f"\na prompt of {args.prompt} tokens, {threads} threads")
        table(found, "ours")
        rate = args.prompt / np.median(found["ours"]) * 1e3
        print(f"ours: {rate:.0f} tokens a second")


if __name__ == "__main__":
    main()
