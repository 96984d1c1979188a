"""Large-EEG-BCI (Kaya et al. 2018): motor imagery of 13 people, EEG of 22 channels at 200 or 1000 Hz.

The files are `CLASubjectA1601083StLRHand.mat`, `5F-SubjectA-160408-5St-SGLHand-HFREQ.mat` and so on, with or without
dashes, one session a file. Struct `o` has `data` (n, 22) in uV, `chnames` (22, 1) with the old names T3 to T6, and
`sampFreq`, in some files as uint8.

Download the .mat files of all five paradigms (about 10 GB) from https://doi.org/10.6084/m9.figshare.c.3917698;
licence: see there."""

import re
from functools import partial

from datasets import Recording, files_below, pick, plain_name
from datasets.mat import field, matrix, number, read_mat, texts

MODALITIES = ("eeg",)
FILE = re.compile(r"(\w+)-?Subject(?P<subject>[A-Z])-?(\d{6})-?(\d+St)?-?(.*?)-?(HFREQ|Inter)?\.mat", re.IGNORECASE)
sources = partial(files_below, pattern=FILE)


def read(path, channels, ecg_side=None):
    """Yield the one session of a file. It is one trial; its paradigm stands for the video. There are no ratings."""
    paradigm, subject, *session = FILE.fullmatch(plain_name(path.name)).groups()
    where, (variables, notes) = f"{path}: o", read_mat(path, ["o"])
    whole = variables.get("o")
    names = texts(field(whole, "chnames", where))
    signal = matrix(field(whole, "data", where), f"{where}.data", len(names))
    rate = number(field(whole, "sampFreq", where), f"{where}.sampFreq")
    signals = {"eeg": pick(signal, channels["eeg"], names, path)}
    trial = "-".join(filter(None, [paradigm, *session]))  # the same with and without dashes
    yield Recording(subject.upper(), trial, paradigm, signals, {"eeg": rate}, channels, {}, path, notes=notes)
