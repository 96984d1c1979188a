"""EEG During Mental Arithmetic Tasks 1.0.0, PhysioNet (Zyma et al., Data 4(1):14, 2019): EEG and ECG, EDF at 500 Hz.

Files are `Subject03_1.edf` (rest) and `Subject03_2.edf` (mental arithmetic). Nobody rated anything: rest stands as
arousal 1 and arithmetic as 9, a proxy of arousal and no measure of emotion; valence is unknown.
"""

import re
from pathlib import Path

from datasets import Recording, paths_below
from datasets.edf import read_edf

MODALITIES = ("eeg", "ecg")
ECG_SIDES = ()
EXPECTED = "Subject03_1.edf and so on"
HOME = "https://physionet.org/content/eegmat/1.0.0"
LICENCE = "ODC-By 1.0"
SIZE = "175 MB"
DOWNLOAD = "the .edf files"
FILE = re.compile(r"(Subject\d{2})_([12])\.edf", re.IGNORECASE)
TASKS = {"1": ("rest", 1.0), "2": ("arithmetic", 9.0)}


def sources(raw) -> list[Path]:
    """The EDF files anywhere below `raw`, by subject, rest first."""
    return sorted((path for path in paths_below(raw) if FILE.fullmatch(path.name)), key=lambda path: path.name)


def read(path, channels, ecg_side=None):
    """One file is one trial, named like the file."""
    subject, number = FILE.fullmatch(Path(path).name).groups()
    task, arousal = TASKS[number]
    signals, rate = read_edf(path, channels)
    names = {modality: tuple(channels[modality]) for modality in channels}
    yield Recording(
        subject.capitalize(), Path(path).stem, task, signals, rate, names, arousal, float("nan"), Path(path)
    )
