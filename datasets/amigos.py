"""AMIGOS, preprocessed (Miranda-Correa et al. 2018): 40 subjects, 16 short and 4 long videos, EEG and two ECGs.

The files are `Data_Preprocessed_P01.mat` .. `P40`, flat or each in a folder of its own. `joined_data`,
`labels_selfassessment` and `VideoIDs` are (1, 20) cells; a video is n x 17 at 128 Hz, (0, 0) where it is missing;
ratings are (1, 12), (1, 0) where they are missing: the five of RATINGS, then seven emotions.

Download data_preprocessed (MATLAB files, about 4 GB unpacked) from http://www.eecs.qmul.ac.uk/mmv/datasets/amigos;
licence: on request, for research."""

import re
from functools import partial

import numpy as np

from datasets import Recording, files_below, pick
from datasets.mat import cells, describe, matrix, read_mat
from paper import TARGETS

MODALITIES = ("eeg", "ecg")
ECG_SIDES = ("left", "right")
FILE = re.compile(r"Data_Preprocessed_(?P<subject>P\d{2})\.mat", re.IGNORECASE)
sources = partial(files_below, pattern=FILE)
RATE = 128.0  # Hz
COLUMNS = "AF3 F7 F3 FC5 T7 P7 O1 O2 P8 T8 FC6 F4 F8 AF4 right left GSR".split()
RATINGS = ("arousal", "valence", "dominance", "liking", "familiarity")
VARIABLES = ("joined_data", "labels_selfassessment", "VideoIDs")


def read(path, channels, ecg_side="left"):
    """Yield the videos of one subject, in the file's order; a trial is named by its video, for each is seen once."""
    [subject] = FILE.fullmatch(path.name).groups()
    columns = {m: [ecg_side] if m == "ecg" else names for m, names in channels.items()}
    for video, signal, ratings, simulated, notes in videos(path):
        signals = {m: pick(signal, names, COLUMNS, path) for m, names in columns.items()}
        rate = dict.fromkeys(channels, RATE)
        yield Recording(subject, video, video, signals, rate, channels, ratings, path, simulated, notes=notes)


def videos(path):
    """Yield each video of one subject as its name, its signals (n, 17) with all COLUMNS, its ratings by name,
    whether the file calls itself simulated, and notes on the file. Raise ValueError where the file is damaged."""
    whole, notes = read_mat(path, (*VARIABLES, "simulated"))
    columns = [cells(whole.get(name), name, path, (1, 20))[0] for name in VARIABLES]
    for v, (signal, ratings, video) in enumerate(zip(*columns), 1):
        if np.size(signal) == 0:
            continue
        signal = matrix(signal, f"{path}: joined_data{{{v}}}", len(COLUMNS))
        video = _name(video, f"{path}: VideoIDs{{{v}}}")
        yield video, signal, _ratings(ratings, f"{path}: labels_selfassessment{{{v}}}"), "simulated" in whole, notes


def _name(cell, where) -> str:
    """Return the name of a video; raise ValueError where there is none."""
    text = str(cell.item() if isinstance(cell, np.ndarray) and cell.size == 1 else cell).strip()
    if not re.fullmatch(r"\w{1,16}", text):
        raise ValueError(f"{where}: expected the name of a video, found {str(cell)[:40]!r}; download the file again")
    return text


def _ratings(cell, where) -> dict[str, float]:
    """Return the ratings of one video by name; raise ValueError where a target's is not on the scale."""
    cell = np.asarray(cell)
    if cell.size == 0:
        return {}
    if cell.dtype.kind not in "fiu" or cell.shape != (1, 12):
        raise ValueError(f"{where}: expected (1, 12) numbers or none, found {describe(cell)}")
    ratings = dict(zip(RATINGS, cell[0].tolist()))
    for name, rating in ratings.items():
        if name in TARGETS and not (np.isnan(rating) or 1 <= rating <= 9):
            raise ValueError(f"{where}: expected {name} from 1 to 9, found {rating:g}; correct it or make it NaN")
    return ratings
