"""Makes PTX from the kernels' sources with the pinned NVRTC, and assembles it with ptxas.

    python3 ptx.py VENV make OUT           every src/cuda/*.cu to OUT/*.ptx
    python3 ptx.py VENV assemble FOLDER    every FOLDER/*.ptx for each architecture; a line per kernel, the most of all:
                                           module kernel registers spilled-bytes

VENV is made and filled from PyPI if it is not there; the exit code is 3 if that fails. It keeps what was assembled.
"""

import ctypes
import hashlib
import os
import re
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PACKAGES = ["nvidia-cuda-nvrtc-cu12==12.0.140", "nvidia-cuda-nvcc-cu12==12.9.86"]
ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
OPTIONS = [b"--gpu-architecture=compute_80", b"--std=c++17", b"--ftz=true", b"--restrict"]
SOURCES = Path(__file__).resolve().parents[2] / "src/cuda"


def nvidia(folder):
    """The folder of NVIDIA's packages in the environment, which is filled if it is not."""
    stamp = folder / "packages.txt"
    if not stamp.exists() or stamp.read_text().split() != PACKAGES:
        venv.create(folder, with_pip=True, clear=True)
        pip = [folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
        run = subprocess.run(pip + PACKAGES, capture_output=True, text=True)
        if run.returncode:
            print((run.stderr.strip().splitlines() or ["pip failed"])[-1], file=sys.stderr)
            sys.exit(3)
        stamp.write_text("\n".join(PACKAGES))
    return next(folder.glob("lib/python*/site-packages/nvidia"))


def compile(nvrtc, path):
    parts = [SOURCES / "prelude.cu", path]
    text = "".join(f'#line 1 "{part.name}"\n{part.read_text(encoding="utf-8")}' for part in parts)
    program = ctypes.c_void_p()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), path.name.encode(), 0, None, None):
        sys.exit(f"{path.name}: nvrtcCreateProgram")
    failed = nvrtc.nvrtcCompileProgram(program, len(OPTIONS), (ctypes.c_char_p * len(OPTIONS))(*OPTIONS))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if failed or log.value.strip():
        sys.exit(f"{path.name}: {log.value.decode()}")
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.value


def make(folder, out):
    nvrtc = ctypes.CDLL(str(nvidia(folder) / "cuda_nvrtc/lib/libnvrtc.so.12"))
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(SOURCES.glob("*.cu")):
        if path.name != "prelude.cu":
            (out / f"{path.stem}.ptx").write_bytes(compile(nvrtc, path))


def assemble_one(ptxas, path, architecture):
    command = [ptxas, "-v", f"-arch={architecture}", path, "-o", "/dev/null"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{path.name} for {architecture}: {run.stderr}")
    pattern = r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    found = re.findall(pattern, run.stderr, re.DOTALL)
    return [(path.stem, name, int(registers), int(stores) + int(loads)) for name, stores, loads, registers in found]


def assemble_module(ptxas, kept, path):
    digest = hashlib.sha256(path.read_bytes() + " ".join(PACKAGES + ARCHITECTURES).encode()).hexdigest()
    known = kept / f"{path.stem}-{digest[:32]}.txt"
    if not known.exists():
        most = {}
        for architecture in ARCHITECTURES:
            for module, name, *numbers in assemble_one(ptxas, path, architecture):
                most[module, name] = [max(pair) for pair in zip(numbers, most.get((module, name), [0, 0]))]
        part = known.with_suffix(".part")
        part.write_text("".join(f"{m} {n} {r} {s}\n" for (m, n), (r, s) in sorted(most.items())))
        os.replace(part, known)
    return known.read_text()


def assemble(folder, modules):
    ptxas, kept = nvidia(folder) / "cuda_nvcc/bin/ptxas", folder / "assembled"
    kept.mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for text in pool.map(lambda path: assemble_module(ptxas, kept, path), sorted(modules.glob("*.ptx"))):
            print(text, end="")


if __name__ == "__main__":
    environment, what, argument = sys.argv[1:]
    {"make": make, "assemble": assemble}[what](Path(environment), Path(argument))
