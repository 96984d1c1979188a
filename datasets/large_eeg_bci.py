"""Large-EEG-BCI (Kaya et al. 2018): motor imagery of 13 people, EEG of 22 channels at 200 or 1000 Hz.

`CLA-SubjectA-160108-3St-LRHand.mat`, `5F-SubjectA-160408-5St-SGLHand-HFREQ.mat` and so on, one session a file. Struct
`o` has `data` (n, 22) in uV, `chnames` (22, 1) with the old names T3 to T6, and `sampFreq`, in some files as uint8.
"""

import re
from pathlib import Path

import numpy as np

from datasets import Recording, paths_below, pick_channels
from datasets.mat import field, matrix, number, read_mat, texts

MODALITIES = ("eeg",)
ECG_SIDES = ()
EXPECTED = "CLA-SubjectA-160108-3St-LRHand.mat and so on"
HOME = "https://doi.org/10.6084/m9.figshare.c.3917698"
LICENCE = "see the home page"
SIZE = "about 10 GB"
DOWNLOAD = "the .mat files of all five paradigms"
FILE = re.compile(r"(\w+)-Subject([A-Z])-(\d{6}.*)\.mat")


def sources(raw) -> list[Path]:
    """The MAT files anywhere below `raw`, by subject, then by paradigm and date."""
    found = [path for path in paths_below(raw) if FILE.fullmatch(path.name)]
    return sorted(found, key=lambda path: (FILE.fullmatch(path.name)[2], path.name))


def read(path, channels, ecg_side=None):
    """One session is one trial, its paradigm stands for the video. There are no ratings."""
    path = Path(path)
    paradigm, letter, session = FILE.fullmatch(path.name).groups()
    where = f"{path}: o"
    session_struct = read_mat(path, ["o"]).get("o")
    names = texts(field(session_struct, "chnames", where))
    signal = matrix(field(session_struct, "data", where), f"{where}.data", len(names))
    rate = number(field(session_struct, "sampFreq", where), f"{where}.sampFreq")
    columns = pick_channels(channels["eeg"], names, path)
    yield Recording(
        subject=letter,
        trial=f"{paradigm}-{session}",
        video=paradigm,
        signals={"eeg": np.ascontiguousarray(signal[:, columns].T, dtype=np.float64)},
        rate={"eeg": rate},
        channels={"eeg": tuple(channels["eeg"])},
        arousal=float("nan"),
        valence=float("nan"),
        source=path,
    )
