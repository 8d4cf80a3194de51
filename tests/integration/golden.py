"""Golden vectors of the oracle, for the tests: reading safetensors with numpy, tolerances of INDEX.json."""
import json
import struct
from pathlib import Path

import numpy as np

RAW = {"F32": "<f4", "BF16": "<u2", "I32": "<i4", "I64": "<i8", "F8_E4M3": "u1", "F8_E8M0": "u1", "I8": "i1"}


def read_safetensors(path):
    data = Path(path).read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    out = {}
    for name, t in header.items():
        if name != "__metadata__":
            lo, hi = t["data_offsets"]
            out[name] = np.frombuffer(data[8 + n + lo:8 + n + hi], RAW[t["dtype"]]).reshape(t["shape"])
    return out


def rms(x):
    return np.sqrt((np.asarray(x, np.float64) ** 2).mean(-1))


def check_rows(got, golden, noise, exact, what):
    """Per row: exactly the oracle's (1e-5), or within the limits of its noise (INDEX.json, `prompts`)."""
    if exact:
        worst = np.abs(got.astype(np.float64) - golden).max()
        assert worst <= 1e-5, f"{what}: logits differ by {worst}"
        return
    error = rms(got.astype(np.float64) - golden)
    assert (error <= 5 * noise + 1e-4).all(), f"{what}: {(error / noise).max():.2f} times the noise"
    assert error.mean() <= 2 * noise.mean() + 1e-4, f"{what}: mean error {error.mean() / noise.mean():.2f} of noise"
