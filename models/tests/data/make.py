"""Writes the small torch files that the tests of `ssm_models::checkpoint` read, and what they hold.

    python make.py          (needs torch, safetensors; run in this folder)
"""

import argparse
import io
import zipfile
from collections import OrderedDict

import torch
from safetensors.torch import save_file

g = torch.Generator().manual_seed(1)
base = torch.randn(6, 8, generator=g)
volume = torch.randn(3, 4, 5, generator=g)
state = OrderedDict(
    plain=torch.randn(3, 4, generator=g),
    scalar=torch.tensor(2.5),
    empty=torch.zeros(0, 3),
    transposed=base.t(),
    rows=base[1:6:2],
    columns=base[:, 2:7:3],
    window=base[2:4, 3:6],
    shared=base,
    permuted=volume.permute(2, 0, 1),
    expanded=torch.randn(4, generator=g).expand(3, 2, 4),
    channels_last=torch.randn(2, 3, 4, 5, generator=g).to(memory_format=torch.channels_last),
    half=torch.randn(3, 5, generator=g).half(),
    bfloat16=torch.randn(7, generator=g).bfloat16(),
    double=torch.randn(2, 2, generator=g).double(),
    long=torch.tensor([[-(2**40), 3], [2**31, -1]]),
    int=torch.tensor([-5, 2**30], dtype=torch.int32),
    short=torch.tensor([-300, 300], dtype=torch.int16),
    char=torch.tensor([-128, 127], dtype=torch.int8),
    byte=torch.tensor([0, 255], dtype=torch.uint8),
    bool=torch.tensor([True, False, True]),
    complex=torch.randn(2, 3, dtype=torch.complex64, generator=g).t(),
    parameter=torch.nn.Parameter(torch.randn(2, 3, generator=g)),
)
new_types = dict(uint16=torch.tensor([1, 65535]).to(torch.uint16), uint32=torch.tensor([1, 2**32 - 1]).to(torch.uint32))
state._metadata = OrderedDict([("", {"version": 1})])
truth = {k: torch.view_as_real(v) if v.is_complex() else v for k, v in {**state, **new_types}.items()}
save_file({k: v.detach().contiguous().clone() for k, v in truth.items()}, "variants.safetensors")

torch.save(OrderedDict(state, **new_types), "variants.pth")
torch.save(state, "variants_legacy.pth", _use_new_zipfile_serialization=False)
torch.save(state, "variants_protocol4.pth", pickle_protocol=4)
torch.save(state, "variants_legacy_protocol5.pth", pickle_protocol=5, _use_new_zipfile_serialization=False)
torch.serialization.set_crc32_options(False)
torch.save(state, "variants_nocrc.pth")
torch.serialization.set_crc32_options(True)

# A training run's container, its weights wrapped for several devices.
weights = OrderedDict(("module." + k, v) for k, v in state.items())
parameter = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([parameter], lr=1e-3)
parameter.sum().backward()
optimizer.step()
container = {
    "epoch": 12,
    "best": float("nan"),
    "state_dict": weights,
    "optimizer": optimizer.state_dict(),
    "ema": OrderedDict((k, v * 2) for k, v in weights.items() if v.dtype == torch.float32),
    "args": argparse.Namespace(lr=0.5, name="tiny", sizes=[1, 2], nested=argparse.Namespace(flag=True), none=None),
    "classes": {"cat", "dog"},
    "big": 2**100,
    "bytes": b"\xff\x00",
    "range": range(3),
}
torch.save(container, "container.pth")


def rezip(source, target, folder, method, entry=lambda name, data: data):
    """The same archive under another folder, packed by Python's zipfile."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for info in old.infolist():
            name = info.filename.split("/", 1)[1]
            new.writestr(folder + name, entry(name, old.read(info)))


rezip("variants.pth", "variants_deflated.pth", "some folder/below/", zipfile.ZIP_DEFLATED)
rezip("variants.pth", "variants_bare.pth", "", zipfile.ZIP_STORED)

# As a big-endian machine would write it: storages swapped by the size of their numbers.
storages = {}
for value in state.values():
    buffer = io.BytesIO()
    torch.save({"x": value}, buffer)
    data = zipfile.ZipFile(buffer).read("archive/data/0")
    storages[data] = 4 if value.is_complex() else value.element_size()


def swap(name, data):
    if name == "byteorder":
        return b"big"
    if not name.startswith("data/"):
        return data
    size = storages[data]
    return b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))


little = io.BytesIO()
torch.save(state, little)
rezip(little, "variants_big_endian.pth", "variants/", zipfile.ZIP_STORED, swap)
check = torch.load("variants_big_endian.pth", weights_only=True)
assert all(torch.equal(check[k], v) for k, v in state.items())
