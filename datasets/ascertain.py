"""ASCERTAIN (Subramanian et al. 2018): 58 people, 36 film clips, two ECGs at about 256 Hz.

`ECGData/Movie_P01/ECG_Clip1.mat` and so on. `Data_ECG` (n, k): column 0 is the time in ms, from which the rate is
derived; the ECGs are columns 1 and 2 of fewer than six, else columns 4 and 5. Which of them is the left arm's is
disputed among readers: here, by assumption, the first. The ratings lie in other files and are not read.
"""

import re
from pathlib import Path

import numpy as np

from datasets import Recording, paths_below
from datasets.mat import matrix, read_mat

MODALITIES = ("ecg",)
ECG_SIDES = ("left", "right")
EXPECTED = "ECGData/Movie_P01/ECG_Clip1.mat and so on"
HOME = "https://ascertain-dataset.github.io"
LICENCE = "on request, for research"
SIZE = "see the home page"
DOWNLOAD = "ECGData"
FOLDER, FILE = re.compile(r"Movie_(P\d{2})"), re.compile(r"ECG_(Clip(\d{1,2}))\.mat")


def sources(raw) -> list[Path]:
    """The ECG files anywhere below `raw`, by subject and clip."""
    found = [p for p in paths_below(raw) if FILE.fullmatch(p.name) and FOLDER.fullmatch(p.parent.name)]
    return sorted(found, key=lambda path: (path.parent.name, int(FILE.fullmatch(path.name)[2])))


def read(path, channels, ecg_side="left"):
    """One clip is one trial."""
    path = Path(path)
    where = f"{path}: Data_ECG"
    data = matrix(read_mat(path, ["Data_ECG"]).get("Data_ECG"), where)
    if data.shape[0] < 2 or data.shape[1] < 3:
        raise ValueError(f"{where}: expected a column of times and two of ECG, found {data.shape}; take the file out")
    step = float(np.median(np.diff(data[:, 0].astype(np.float64))))
    if not 0 < step < float("inf"):
        raise ValueError(f"{where}: expected times in ms that rise, found a median step of {step:g}; take the file out")
    column = (1 if data.shape[1] < 6 else 4) + ECG_SIDES.index(ecg_side)
    yield Recording(
        subject=FOLDER.fullmatch(path.parent.name)[1],
        trial=FILE.fullmatch(path.name)[1],
        video=FILE.fullmatch(path.name)[1],
        signals={"ecg": np.array(data[:, [column]].T, dtype=np.float64)},
        rate={"ecg": 1000 / step},
        channels={"ecg": tuple(channels["ecg"])},
        arousal=float("nan"),
        valence=float("nan"),
        source=path,
    )
