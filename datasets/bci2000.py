"""BCI2000 = PhysioNet's EEG Motor Movement/Imagery Dataset (Schalk et al. 2004): 109 subjects x 14 runs of EEG, EDF.

Files lie as `S001/S001R01.edf`. Most are sampled at 160 Hz, a few are not: the rate comes from each header.
"""

import re
from pathlib import Path

from datasets import Recording, paths_below
from datasets.edf import read_edf

MODALITIES = ("eeg",)
ECG_SIDES = ()
EXPECTED = "S001/S001R01.edf and so on"
HOME = "https://physionet.org/content/eegmmidb/1.0.0"
LICENCE = "ODC-By 1.0"
SIZE = "3.4 GB"
DOWNLOAD = "the .edf files of all folders S001 to S109"
FILE = re.compile(r"(S\d{3})(R\d{2})\.edf", re.IGNORECASE)


def sources(raw) -> list[Path]:
    """The EDF files anywhere below `raw`, by subject and run."""
    return sorted((path for path in paths_below(raw) if FILE.fullmatch(path.name)), key=lambda path: path.name)


def read(path, channels, ecg_side=None):
    """One run is one trial; its number, which tells the task, stands for the video. There are no ratings."""
    subject, run = FILE.fullmatch(Path(path).name).groups()
    signals, rate = read_edf(path, channels)
    names = {modality: tuple(channels[modality]) for modality in channels}
    yield Recording(
        subject.upper(), run.upper(), run.upper(), signals, rate, names, float("nan"), float("nan"), Path(path)
    )
