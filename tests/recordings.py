"""Raw files for the tests: the real ones where they are, and small ones written from the sets' descriptions."""

import os
import sys
from pathlib import Path

import edfio
import numpy as np
import pytest
from scipy.io import savemat

from prepared import call

REAL = Path(os.environ.get("RECORDINGS", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
EEG = "F7 F3 T7 P7 O1 O2 P8 T8 F4 F8".split()
AMIGOS_COLUMNS = "AF3 F7 F3 FC5 T7 P7 O1 O2 P8 T8 FC6 F4 F8 AF4 ECG_R ECG_L GSR".split()
SHORT = "4 5 9 10 13 18 19 20 23 30 31 34 36 58 80 138".split()
LONG = ["N1", "P1", "B1", "U1"]


def real(*parts):
    """A folder or file of the real recordings; skips the test where they are not at hand."""
    path = REAL.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real recordings are not at {REAL}; set RECORDINGS to their folder")
    return path


def amigos_signal(seed, points):
    """(points, 17) of filtered noise around different offsets; the two ECG columns beat."""
    rng = np.random.default_rng(seed)
    signal = np.cumsum(rng.normal(size=(points, 17)), axis=0) * 0.1 + rng.normal(size=(points, 17)) + np.arange(17)
    beats = 900 * np.exp(-(((np.arange(points) % 100) - 50) ** 2) / 8)  # 77 a minute
    signal[:, 14:16] += beats[:, None]
    return signal


def write_amigos(path, videos, order=SHORT + LONG):
    """`videos`: cell (0-19) -> (signal (n, 17), ratings of 12 or None). The rest is missing, as AMIGOS marks it."""
    cells = {name: np.empty((1, 20), object) for name in ("joined_data", "labels_selfassessment", "VideoIDs")}
    cells["labels_ext_annotation"] = np.empty((1, 20), object)
    for v in range(20):
        signal, ratings = videos.get(v, (np.empty((0, 0)), None))
        cells["joined_data"][0, v] = signal
        cells["labels_selfassessment"][0, v] = np.empty((1, 0)) if ratings is None else np.array([ratings], float)
        cells["labels_ext_annotation"][0, v] = np.empty((0, 0))
        cells["VideoIDs"][0, v] = order[v]
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, cells)


def ratings(arousal, valence):
    return [arousal, valence, 5, 5, 5, 0, 1, 0, 0, 0, 0, 0]


def write_edf(path, signals, names, rate, patient="X"):
    """`signals` (C, n), 16 bit over the range of each channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    edfio.Edf(
        [edfio.EdfSignal(signal, rate, label=name) for signal, name in zip(signals, names)],
        patient=edfio.Patient(name=patient),
    ).write(path)


def edf_signal(seed, seconds, rate, channels=11):
    """(channels, n), the last of which beats like an ECG."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(channels, seconds * rate)) * 20
    signal[-1] = 900 * np.exp(-(((np.arange(seconds * rate) / rate % 0.8) - 0.4) ** 2) / 2e-4) + rng.normal(
        size=seconds * rate
    )
    return signal


def prepare_data(flags) -> int:
    """Call prepare_data.py in this process, print what it prints, and return its exit code."""
    finished = call("prepare_data.py", *flags, cwd=Path.cwd())
    print(finished.stdout, end="")
    print(finished.stderr, end="", file=sys.stderr)
    return finished.returncode
