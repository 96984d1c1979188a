"""Raw files for the tests: the real ones where they are, and small ones written from the sets' descriptions."""

import os
import sys
from pathlib import Path

import edfio
import numpy as np
import pytest
from scipy import signal as sp
from scipy.io import savemat

from prepared import call

REAL = Path(os.environ.get("RECORDINGS", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
EEG = "F7 F3 T7 P7 O1 O2 P8 T8 F4 F8".split()
AMIGOS_COLUMNS = "AF3 F7 F3 FC5 T7 P7 O1 O2 P8 T8 FC6 F4 F8 AF4 ECG_R ECG_L GSR".split()
SHORT = "4 5 9 10 13 18 19 20 23 30 31 34 36 58 80 138".split()
LONG = ["N1", "P1", "B1", "U1"]
BOTH = {"eeg": EEG, "ecg": ["ECG"]}
ROOM = 60  # bytes of annotations in a record of an EDF file


def real(*parts):
    """A folder or file of the real recordings; skips the test where they are not at hand."""
    path = REAL.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real recordings are not at {REAL}; set RECORDINGS to their folder")
    return path


def mitdb():
    """The integers of both leads of record 100 of mitdb, (2, n), as wfdb reads them."""
    record = str(real("mitdb", "100.hea").with_suffix(""))
    return pytest.importorskip("wfdb").rdrecord(record, physical=False).d_signal.T.astype(float)


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


def write_edf(path, signals, names, rate, patient="X", units="", kind=None, marks=None, record=None):
    """Write `signals` (C, n), in 16 bits (EDF) or 24 (BDF, by `kind` or the ending) over the range of each channel.

    rate, units: one, or one a channel; record: s; marks: the annotations of each record, bytes. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_bdf = (kind or path.suffix[1:]) == "bdf"
    of_signal, of_file = (edfio.BdfSignal, edfio.Bdf) if is_bdf else (edfio.EdfSignal, edfio.Edf)
    rates = [rate] * len(names) if np.isscalar(rate) else rate
    parts = [of_signal(signal, each, label=name) for signal, each, name in zip(signals, rates, names)]
    room = None if marks is None else [edfio.EdfAnnotation(0, None, "x" * (ROOM - len("+0..0+0...0")))]
    patient = edfio.Patient(name=patient)
    of_file(parts, patient=patient, data_record_duration=record, annotations=room).write(path)
    content = path.read_bytes()
    header = 256 + 256 * int(content[252:256])
    for i, mark in enumerate(marks or ()):  # the signal of annotations is the last of each record
        end = header + (i + 1) * (len(content) - header) // len(marks)
        content = content[: end - ROOM] + mark.ljust(ROOM, b"\0") + content[end:]
    path.write_bytes(content)
    units = [units] * len(names) if isinstance(units, str) else units
    fields = b"".join(unit.encode("utf-8", "surrogateescape").ljust(8) for unit in units)
    return patch(path, 256 + 96 * (header // 256 - 1), fields)


def patch(path, place, text):
    """Put other bytes into a file; returns its path."""
    content = path.read_bytes()
    path.write_bytes(content[:place] + text + content[place + len(text) :])
    return path


def edf_signal(seed, seconds, rate, channels=11):
    """(channels, n), the last of which beats like an ECG."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(channels, seconds * rate)) * 20
    beats = 900 * np.exp(-(((np.arange(seconds * rate) / rate % 0.8) - 0.4) ** 2) / 2e-4)
    signal[-1] = beats + rng.normal(size=seconds * rate)
    return signal


def filtered_by_hand(signals, rate, low=0.8, high=50):
    """`signals` (C, n): FACTS of the paper with SciPy alone: order 8, 0.8-50 Hz, there and back, 21 s of extension."""
    sos = sp.butter(8, [low, high], "bandpass", fs=rate, output="sos")
    slowest = np.abs(sp.sos2zpk(sos)[1]).max()
    extra = int(np.ceil(-20 / np.log(slowest)))
    extended = np.pad(signals, ((0, 0), (extra, extra)), "reflect", reflect_type="odd")
    return sp.sosfiltfilt(sos, extended, padtype=None)[:, extra:-extra]


def read_all(reader, raw, channels=BOTH, *side) -> list:
    """Every recording below the folder `raw`."""
    return [recording for path in reader.sources(raw) for recording in reader.read(path, channels, *side)]


def prepare_data(flags) -> int:
    """Call prepare_data.py in this process, print what it prints, and return its exit code."""
    finished = call("prepare_data.py", *flags, cwd=Path.cwd())
    print(finished.stdout, end="")
    print(finished.stderr, end="", file=sys.stderr)
    return finished.returncode
