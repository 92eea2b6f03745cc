"""Compares scan.c with the same in PyTorch, values and gradients, in double precision: python check.py"""

import torch

import mamba


def run(mixer, norm, x, weights, dtype):
    """Output and gradients by name, of copies of the mixer behind the norm in `dtype`."""
    mixer, norm = (type(m)(*sizes).to(dtype) for m, sizes in ((mixer, mixer_sizes(mixer)), (norm, [x.shape[2]])))
    for module, values in zip((mixer, norm), weights):
        module.load_state_dict(values)
    x = x.detach().to(dtype).requires_grad_()
    y = mixer(norm(x))
    (y * torch.sin(torch.arange(y.numel()).view_as(y))).sum().backward()
    named = [*mixer.named_parameters(), *((f"norm.{name}", w) for name, w in norm.named_parameters())]
    return {"y": y.detach(), "x": x.grad, **{name: w.grad for name, w in named}}


def mixer_sizes(mixer):
    rank, states, _ = mixer.split
    return mixer.in_proj.in_features, states, rank, 1


def main():
    if mamba.LIBRARY is None:
        print("no C compiler, nothing to compare")
        return
    torch.manual_seed(1)
    # Sizes of the denoiser, which are compiled as constants, others, and clips shorter than the convolution.
    for d, states, rank, clips, frames in ((32, 8, 2, 3, 40), (128, 16, 8, 2, 50), (16, 4, 1, 3, 2), (24, 13, 5, 2, 30)):
        mixer, norm = mamba.Mixer(d, states, rank, 1), mamba.RMSNorm(d)
        with torch.no_grad():
            norm.weight.uniform_(0.5, 2)
            mixer.D.normal_()
            mixer.A_log.add_(0.3 * torch.randn_like(mixer.A_log))
            mixer.dt_proj.bias.add_(3 * torch.randn(2 * d))
        x, weights = torch.randn(clips, frames, d), (mixer.state_dict(), norm.state_dict())
        assert mamba.fast(x, 2 * d)
        found, expected = (run(mixer, norm, x, weights, dtype) for dtype in (torch.float32, torch.float64))
        for name, value in expected.items():
            off = float((found[name] - value).abs().max() / value.abs().max())
            assert off < 1e-5, f"{name} of {d}, {states}, {rank}: {off:.1e} of its largest value off"
    print("scan.c agrees")


if __name__ == "__main__":
    main()
