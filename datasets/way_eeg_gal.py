"""WAY-EEG-GAL (Luciw et al. 2014): 12 people grasp and lift an object, series 1 to 9, EEG of 32 channels at 500 Hz.

The files are `P1/HS_P1_S1.mat` and so on, one series a file; the windows cut from them (`WS_*`) and the lists of lifts
(`*_AllLifts`) hold the same again and are left alone. Struct `hs.eeg` has `sig` (n, 32) in 0.1 uV, `names` with
blanks around them, and `samplingrate`.

Download P1.zip to P12.zip (about 15 GB) from https://doi.org/10.6084/m9.figshare.c.988376 and unpack them; licence:
see there."""

import re
from functools import partial

from datasets import Recording, files_below, pick
from datasets.mat import field, matrix, number, read_mat, texts

MODALITIES = ("eeg",)
FILE = re.compile(r"HS_(?P<subject>P\d{1,2})_(?P<series>S\d{1,2})\.mat", re.IGNORECASE)
sources = partial(files_below, pattern=FILE)
UNIT = 0.1  # uV


def read(path, channels, ecg_side=None):
    """Yield the one series of a file, in uV. It is one trial, and stands for the video. There are no ratings."""
    subject, series = FILE.fullmatch(path.name).groups()
    where, (whole, notes) = f"{path}: hs.eeg", read_mat(path, ["hs"])
    eeg = field(whole.get("hs"), "eeg", f"{path}: hs")
    names = texts(field(eeg, "names", where))
    signal = matrix(field(eeg, "sig", where), f"{where}.sig", len(names))
    rate = number(field(eeg, "samplingrate", where), f"{where}.samplingrate")
    signals = {"eeg": pick(signal, channels["eeg"], names, path) * UNIT}
    yield Recording(subject, series, series, signals, {"eeg": rate}, channels, {}, path, notes=notes)
