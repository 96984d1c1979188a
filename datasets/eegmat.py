"""EEG During Mental Arithmetic Tasks 1.0.0, PhysioNet (Zyma et al., Data 4(1):14, 2019): EEG and ECG, EDF at 500 Hz.

The files are `Subject03_1.edf` (rest) and `Subject03_2.edf` (mental arithmetic). Nobody rated anything: rest stands
as arousal 1 and arithmetic as 9, a proxy of arousal and no measure of emotion; valence is unknown.

Download the .edf files (175 MB) from https://physionet.org/content/eegmat/1.0.0; licence: ODC-By 1.0."""

import re
from functools import partial

from datasets import Recording, files_below
from datasets.edf import read_edf

MODALITIES = ("eeg", "ecg")
FILE = re.compile(r"(?P<subject>Subject\d{2})_(?P<task>[12])\.edf", re.IGNORECASE)
sources = partial(files_below, pattern=FILE)
TASKS = {"1": ("rest", 1.0), "2": ("arithmetic", 9.0)}


def read(path, channels, ecg_side=None):
    """Yield the one recording of a file; it is one trial, named like the file."""
    subject, number = FILE.fullmatch(path.name).groups()
    task, arousal = TASKS[number]
    found = read_edf(path, channels)._asdict()
    yield Recording(subject.capitalize(), path.stem, task, ratings={"arousal": arousal}, source=path, **found)
