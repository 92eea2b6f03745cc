"""Takes the noise out of sounds with RNNoise, nnnoiseless and GTCRN, for `ssm eval-denoise FOLDER --judge OUT/PROGRAM`.

    pip install numpy scipy soundfile pyrnnoise onnxruntime; cargo install nnnoiseless
    python denoise.py FOLDER OUT [--gtcrn FILE]

FOLDER holds NAME_noisy.wav or .flac; FILE is stream/onnx_models/gtcrn_simple.onnx of the repository Xiaobin-Rong/gtcrn. GTCRN
runs at 16 kHz, the others at 48 kHz; what comes out is at the rate of what went in, as long as it, and shifted by the delay that
makes it most like what went in, which is one figure for each program.
"""

import argparse
import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

RATE, FRAME = 48_000, 480  # Hz and samples, of RNNoise
GTCRN_RATE, GTCRN_FRAME = 16_000, 512  # the same of GTCRN, which takes a frame every half frame
LONGEST = 2 * FRAME + 1  # delay in samples that is looked for


def resampled(x, old, new):
    common = gcd(old, new)
    return resample_poly(x, new // common, old // common)


def rnnoise():
    """A function on (n,) at RATE, by the library of the package pyrnnoise; None without it."""
    package = importlib.util.find_spec("pyrnnoise")
    if package is None:
        return None
    library = ctypes.CDLL(str(Path(package.origin).with_name("librnnoise.so")))
    floats = ctypes.POINTER(ctypes.c_float)
    library.rnnoise_create.restype = ctypes.c_void_p
    library.rnnoise_create.argtypes = [ctypes.c_void_p]
    library.rnnoise_destroy.argtypes = [ctypes.c_void_p]
    library.rnnoise_process_frame.argtypes = [ctypes.c_void_p, floats, floats]
    library.rnnoise_process_frame.restype = ctypes.c_float

    def run(x):
        state = library.rnnoise_create(None)
        frames = np.ascontiguousarray(np.pad(x, (0, -len(x) % FRAME)) * 32768, np.float32).reshape(-1, FRAME)
        for frame in frames:
            at = frame.ctypes.data_as(floats)
            library.rnnoise_process_frame(state, at, at)
        library.rnnoise_destroy(state)
        return frames.reshape(-1) / 32768

    return run


def nnnoiseless():
    """The same by the command nnnoiseless."""
    command = shutil.which("nnnoiseless")
    if command is None:
        return None

    def run(x):
        pcm = np.clip(np.round(x * 32768), -32768, 32767).astype("<i2")
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder) / "before.raw", Path(folder) / "after.raw"
            before.write_bytes(pcm.tobytes())
            subprocess.run([command, str(before), str(after)], check=True, capture_output=True)
            return np.frombuffer(after.read_bytes(), "<i2") / 32768

    return run


def gtcrn(file):
    """The same on (n,) at GTCRN_RATE, by a network that takes a frame of a spectrum and what it gave back before; None without."""
    if file is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    half, window = GTCRN_FRAME // 2, np.sqrt(np.hanning(GTCRN_FRAME + 1)[:-1])

    def run(x):
        caches = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()[1:]}
        x = np.pad(x, (half, half + -len(x) % half))
        y = np.zeros(len(x))
        for at in range(0, len(x) - half, half):
            s = np.fft.rfft(x[at : at + GTCRN_FRAME] * window)
            mix = np.stack([s.real, s.imag], -1).astype(np.float32)[None, :, None]
            out, *after = session.run(None, {"mix": mix, **caches})
            caches = dict(zip(caches, after))
            y[at : at + GTCRN_FRAME] += np.fft.irfft(out[0, :, 0, 0] + 1j * out[0, :, 0, 1]) * window
        return y[half:]

    return run


def delay(x, y):
    """By how many samples y comes later than x, 0 to LONGEST."""
    n = 1 << (len(x) + len(y)).bit_length()
    likeness = np.fft.irfft(np.fft.rfft(x, n).conj() * np.fft.rfft(y, n), n)
    return int(np.argmax(likeness[:LONGEST]))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--gtcrn", type=Path, help="the network")
    args = p.parse_args()
    files = sorted(f for f in args.folder.iterdir() if f.stem.endswith("_noisy"))
    if not files:
        sys.exit(f"{args.folder}: expected NAME_noisy.wav or .flac, got none")
    programs = [("rnnoise", RATE, rnnoise()), ("nnnoiseless", RATE, nnnoiseless()), ("gtcrn", GTCRN_RATE, gtcrn(args.gtcrn))]
    for name, runs_at, program in programs:
        if program is None:
            print(f"{name} is missing and left out")
            continue
        (args.out / name).mkdir(parents=True, exist_ok=True)
        done = []
        for file in files:
            x, rate = soundfile.read(file, dtype="float32")
            x = x if x.ndim == 1 else x.mean(1)
            full = resampled(x, rate, runs_at)
            done.append((file, len(x), rate, full, program(np.pad(full, (0, LONGEST)))))
        late = int(np.median([delay(full, y) for *_, full, y in done]))
        for file, n, rate, full, y in done:
            y = resampled(np.pad(y, (0, LONGEST))[late : late + len(full)], runs_at, rate)[:n]
            soundfile.write(args.out / name / f"{file.stem.removesuffix('_noisy')}.wav", y, rate, subtype="FLOAT")
        print(f"{name}: {len(files)} sounds, delay {late} samples at {runs_at} Hz")


if __name__ == "__main__":
    main()
