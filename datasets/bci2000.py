"""BCI2000 = PhysioNet's EEG Motor Movement/Imagery Dataset (Schalk et al. 2004): 109 subjects x 14 runs of EEG, EDF.

The files lie as `S001/S001R01.edf`. Most are sampled at 160 Hz, a few are not: the rate comes from each header.

Download the .edf files of all folders S001 to S109 (3.4 GB) from https://physionet.org/content/eegmmidb/1.0.0;
licence: ODC-By 1.0."""

import re
from functools import partial

from datasets import Recording, files_below
from datasets.edf import read_edf

MODALITIES = ("eeg",)
FILE = re.compile(r"(?P<subject>S\d{3})(?P<run>R\d{2})\.edf", re.IGNORECASE)
sources = partial(files_below, pattern=FILE)


def read(path, channels, ecg_side=None):
    """Yield the one run of a file. It is one trial; its number, which tells the task, stands for the video."""
    subject, run = (part.upper() for part in FILE.fullmatch(path.name).groups())
    yield Recording(subject, run, run, ratings={}, source=path, **read_edf(path, channels)._asdict())
