"""An ONNX model in ONNX Runtime, in a process that holds nothing else. Answers as `ssm-bench model --turns` does.

    python ort.py FILE.onnx INPUT.f32 --threads N

INPUT holds the one input as little-endian 32-bit floats.
"""

import argparse
import json
import sys

import numpy as np
import onnxruntime
from common import forget_peak, memory, timed

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("file")
p.add_argument("input")
p.add_argument("--threads", type=int, default=2)
args = p.parse_args()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = args.threads
before = memory("VmRSS:")
session = onnxruntime.InferenceSession(args.file, options, providers=["CPUExecutionProvider"])
forget_peak()
[place] = session.get_inputs()
x = {place.name: np.fromfile(args.input, "<f4").reshape(place.shape)}
print(json.dumps({"output": session.run(None, x)[0].ravel().tolist()}), flush=True)
for line in sys.stdin:
    milliseconds = timed(lambda: session.run(None, x), float(line))
    print(json.dumps({"milliseconds": milliseconds, "resident": memory("VmHWM:") - before}), flush=True)
