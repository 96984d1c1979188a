"""ASCERTAIN (Subramanian et al. 2018): 58 people, 36 film clips, two ECGs at about 256 Hz.

The files are `ECGData/Movie_P01/ECG_Clip1.mat` and so on. In `Data_ECG` (n, k) column 0 is the time in ms: the rate is
the mean one between holes, as single times may be rounded, and a hole becomes NaN. The ECGs are columns 1 and 2 of
fewer than six, else columns 4 and 5. Which of them is the left arm's is disputed among readers: here, by assumption,
the first. The ratings lie in other files and are not read.

Download ECGData from https://ascertain-dataset.github.io; licence: on request, for research."""

import re
from functools import partial

import numpy as np

from datasets import GAP, Recording, files_below
from datasets.mat import matrix, read_mat

MODALITIES = ("ecg",)
ECG_SIDES = ("left", "right")
FILE = re.compile(r"Movie_(?P<subject>P\d{2})/ECG_(?P<clip>Clip\d{1,2})\.mat", re.IGNORECASE)
sources = partial(files_below, pattern=FILE, parts=2)
LONGEST = 24 * 3600 * 1000  # ms; a clip whose times span more has a damaged one


def read(path, channels, ecg_side="left"):
    """Yield the one clip of a file; it is one trial."""
    where = f"{path}: Data_ECG"
    subject, clip = FILE.fullmatch("/".join(path.parts[-2:])).groups()
    variables, notes = read_mat(path, ["Data_ECG"])
    data = matrix(variables.get("Data_ECG"), where)
    if data.shape[0] < 2 or data.shape[1] < 3:
        raise ValueError(f"{where}: expected a column of times and two of ECG, found {data.shape}; take the file out")
    column = (1 if data.shape[1] < 6 else 4) + ECG_SIDES.index(ecg_side)
    times, ecg = data[:, 0].astype(np.float64), np.array(data[:, [column]].T, dtype=np.float64)
    steps = np.diff(times)
    usual, least = float(np.median(steps)), int(np.argmin(steps))  # the latter is that of a NaN, where there is one
    if not (0 < usual and 0 <= steps[least] and times[-1] - times[0] <= LONGEST):
        found = f"a step of {steps[least]:g} to row {least + 2}, a median step of {usual:g}"
        raise ValueError(f"{where}: expected times in ms that rise, found {found}; take the file out")
    # A single step says little of the rate where times are rounded to whole ms; without a sample, it is twice as long.
    holes = steps > 1.5 * usual + 0.9
    step = float(steps[~holes].mean())
    lost, places = np.round(steps[holes] / step).astype(int) - 1, np.flatnonzero(holes) + 1
    ecg = np.insert(ecg, np.repeat(places, lost), np.nan, axis=1)
    ends = (places + np.cumsum(lost)) * step / 1000
    bad = tuple((end - count * step / 1000, end, GAP) for end, count in zip(ends.tolist(), lost.tolist()))
    rate = {"ecg": 1000 / step}
    yield Recording(subject, clip, clip, {"ecg": ecg}, rate, channels, {}, path, bad=bad, notes=notes)
