"""WAY-EEG-GAL (Luciw et al. 2014): 12 people grasp and lift an object, series 1 to 9, EEG of 32 channels at 500 Hz.

`P1/HS_P1_S1.mat` and so on, one series a file; the windows cut from them (`WS_*`) and the lists of lifts
(`*_AllLifts`) hold the same again and are left alone. Struct `hs.eeg` has `sig` (n, 32) in 0.1 uV, `names` with
blanks around them, and `samplingrate`.
"""

import re
from pathlib import Path

import numpy as np

from datasets import Recording, paths_below, pick_channels
from datasets.mat import field, matrix, number, read_mat, texts

MODALITIES = ("eeg",)
ECG_SIDES = ()
EXPECTED = "P1/HS_P1_S1.mat and so on"
HOME = "https://doi.org/10.6084/m9.figshare.c.988376"
LICENCE = "see the home page"
SIZE = "about 15 GB"
DOWNLOAD = "P1.zip to P12.zip, unpacked"
FILE = re.compile(r"HS_P(\d{1,2})_S(\d{1,2})\.mat")
UNIT = 0.1  # uV


def sources(raw) -> list[Path]:
    """The MAT files of whole series anywhere below `raw`, by participant and series."""
    found = [path for path in paths_below(raw) if FILE.fullmatch(path.name)]
    return sorted(found, key=lambda path: [int(part) for part in FILE.fullmatch(path.name).groups()])


def read(path, channels, ecg_side=None):
    """One series is one trial, and stands for the video. There are no ratings. Signals are in uV."""
    path = Path(path)
    participant, series = FILE.fullmatch(path.name).groups()
    where = f"{path}: hs.eeg"
    eeg = field(read_mat(path, ["hs"]).get("hs"), "eeg", f"{path}: hs")
    names = texts(field(eeg, "names", where))
    signal = matrix(field(eeg, "sig", where), f"{where}.sig", len(names))
    rate = number(field(eeg, "samplingrate", where), f"{where}.samplingrate")
    columns = pick_channels(channels["eeg"], names, path)
    yield Recording(
        subject=f"P{participant}",
        trial=f"S{series}",
        video=f"S{series}",
        signals={"eeg": np.ascontiguousarray(signal[:, columns].T, dtype=np.float64) * UNIT},
        rate={"eeg": rate},
        channels={"eeg": tuple(channels["eeg"])},
        arousal=float("nan"),
        valence=float("nan"),
        source=path,
    )
