"""PESQ (wide band), STOI and ESTOI of sounds at 16 kHz for `ssm eval-denoise`.

In: for each clip a little-endian u32 n, then n f32 samples each of the clean sound and of two others. Out: a line `ready` or
the reason why not, then for each clip a line of JSON [[pesq, stoi, estoi], [pesq, stoi, estoi]], null where there is none."""

import sys

# Nothing is taken from the folder that it happens to run in.
sys.path[:] = [path for path in sys.path if path]

import json  # noqa: E402
import warnings  # noqa: E402

try:
    import numpy
    from pesq import PesqError, pesq
    from pystoi import stoi
except ImportError as error:
    print(error)
    sys.exit()

RATE = 16000
warnings.simplefilter("ignore")
print("ready", flush=True)


def measures(clean, sound):
    try:
        quality = float(pesq(RATE, clean, sound, "wb"))
    except (PesqError, ValueError):
        quality = None
    values = [quality, *(float(stoi(clean, sound, RATE, extended=e)) for e in (False, True))]
    return [v if v is not None and numpy.isfinite(v) else None for v in values]


while head := sys.stdin.buffer.read(4):
    n = int.from_bytes(head, "little")
    clean, *sounds = numpy.frombuffer(sys.stdin.buffer.read(12 * n), "<f4").reshape(3, n)
    print(json.dumps([measures(clean, s) for s in sounds]), flush=True)
