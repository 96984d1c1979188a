"""ASCERTAIN (Subramanian et al. 2018): 58 people, 36 film clips, two ECGs at about 256 Hz.

The files are `ECGData/Movie_P01/ECG_Clip1.mat` and so on. In `Data_ECG` (n, k) column 0 is the time in ms, from which
the rate is derived; the ECGs are columns 1 and 2 of fewer than six, else columns 4 and 5. Which of them is the left
arm's is disputed among readers: here, by assumption, the first. The ratings lie in other files and are not read.

Download ECGData from https://ascertain-dataset.github.io; licence: on request, for research.
"""

import re
from functools import partial

import numpy as np

from datasets import Recording, files_below
from datasets.mat import matrix, read_mat

MODALITIES = ("ecg",)
ECG_SIDES = ("left", "right")
FILE = re.compile(r"Movie_(?P<subject>P\d{2})/ECG_(?P<clip>Clip\d{1,2})\.mat")
sources = partial(files_below, pattern=FILE, parts=2)


def read(path, channels, ecg_side="left"):
    """Yield the one clip of a file; it is one trial."""
    where = f"{path}: Data_ECG"
    subject, clip = FILE.fullmatch("/".join(path.parts[-2:])).groups()
    data = matrix(read_mat(path, ["Data_ECG"]).get("Data_ECG"), where)
    if data.shape[0] < 2 or data.shape[1] < 3:
        raise ValueError(f"{where}: expected a column of times and two of ECG, found {data.shape}; take the file out")
    step = float(np.median(np.diff(data[:, 0].astype(np.float64))))
    if not 0 < step < float("inf"):
        raise ValueError(f"{where}: expected times in ms that rise, found a median step of {step:g}; take the file out")
    column = (1 if data.shape[1] < 6 else 4) + ECG_SIDES.index(ecg_side)
    signals = {"ecg": np.array(data[:, [column]].T, dtype=np.float64)}
    yield Recording(subject, clip, clip, signals, {"ecg": 1000 / step}, channels, {}, path)
