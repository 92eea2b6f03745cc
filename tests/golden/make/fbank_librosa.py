"""Makes the golden file of Epic-Sounds' front end with librosa, whose functions its published loader calls.

    python fbank_librosa.py OUT
"""

import json
import pathlib
import sys

import librosa
import numpy as np
from safetensors.numpy import save_file
from scipy.signal import get_window

RATE, FRAMES = 24000, 64


def log_mel(x, dtype):
    spectrum = librosa.stft(x.astype(dtype), n_fft=2048, window="hann", hop_length=120, win_length=240, pad_mode="constant")
    mel = librosa.filters.mel(sr=RATE, n_fft=2048, n_mels=128, htk=True, norm=None, dtype=dtype)
    return np.log(np.dot(mel, np.abs(spectrum)) + 1e-6).T


rng = np.random.default_rng(7)
t = np.arange(6011) / RATE
x = 0.3 * np.sin(2 * np.pi * (300 * t + 4000 * t * t)) * np.exp(-3 * t) + 0.01 * rng.standard_normal(len(t))
x[:700] = 0
x = x.astype(np.float32)
frames = log_mel(x, np.float32)
tensors = {
    "__waveform__": x,
    "__tap__.window": get_window("hann", 240),
    "__output__": frames,
    "__output_f64__": log_mel(x, np.float64),
    "__model_input__": np.pad(frames, ((0, FRAMES - len(frames)), (0, 0)), "edge"),
}
tensors = {k: np.ascontiguousarray(v, dtype=v.dtype if "f64" in k else np.float32) for k, v in tensors.items()}
config = {
    "kind": "librosa", "sample_rate": RATE, "num_mel_bins": 128, "frame_length_ms": 10, "frame_shift_ms": 5,
    "target_frames": FRAMES, "librosa": librosa.__version__,
}
save_file(tensors, pathlib.Path(sys.argv[1]) / "fbank_epic_24k.safetensors", metadata={"config": json.dumps(config)})
