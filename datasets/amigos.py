"""AMIGOS, preprocessed (Miranda-Correa et al. 2018): 40 subjects, 16 short and 4 long videos, EEG and two ECGs.

`Data_Preprocessed_P01.mat` .. `P40`, flat or each in a folder of its own. `joined_data`, `labels_selfassessment` and
`VideoIDs` are (1, 20) cells; a video is n x 17 at 128 Hz, (0, 0) where it is missing; ratings are (1, 12), arousal
and valence first, (1, 0) where they are missing.
"""

import re
from pathlib import Path

import numpy as np

from datasets import Recording, paths_below, pick_channels
from datasets.mat import describe, matrix, read_mat

MODALITIES = ("eeg", "ecg")
ECG_SIDES = ("left", "right")
EXPECTED = "Data_Preprocessed_P01.mat and so on"
HOME = "http://www.eecs.qmul.ac.uk/mmv/datasets/amigos"
LICENCE = "on request, for research"
SIZE = "about 4 GB unpacked"
DOWNLOAD = "data_preprocessed (MATLAB files)"
FILE = re.compile(r"Data_Preprocessed_(P\d{2})\.mat")
RATE = 128.0  # Hz
COLUMNS = "AF3 F7 F3 FC5 T7 P7 O1 O2 P8 T8 FC6 F4 F8 AF4 right left GSR".split()
VARIABLES = ("joined_data", "labels_selfassessment", "VideoIDs")


def sources(raw) -> list[Path]:
    """The MAT files anywhere below `raw`, by subject."""
    return sorted((path for path in paths_below(raw) if FILE.fullmatch(path.name)), key=lambda path: path.name)


def read(path, channels, ecg_side="left"):
    """The videos of one subject, in the file's order; a trial is named by its video, for each is seen once."""
    path = Path(path)
    columns = {
        modality: [COLUMNS.index(ecg_side)] if modality == "ecg" else pick_channels(names, COLUMNS, path)
        for modality, names in channels.items()
    }
    for video, data, (arousal, valence), simulated in videos(path):
        yield Recording(
            subject=FILE.fullmatch(path.name)[1],
            trial=video,
            video=video,
            signals={m: np.ascontiguousarray(data[:, c].T, dtype=np.float64) for m, c in columns.items()},
            rate=dict.fromkeys(channels, RATE),
            channels={m: tuple(names) for m, names in channels.items()},
            arousal=arousal,
            valence=valence,
            source=path,
            simulated=simulated,
        )


def videos(path):
    """Yields each video of one subject, with all COLUMNS: its name, the signals (n, 17), arousal and valence, and
    whether the file says of itself that it was simulated. Raises ValueError like `read`."""
    path = Path(path)
    cells = read_mat(path, (*VARIABLES, "simulated"))
    for name in VARIABLES:
        cell = cells.get(name)
        if not isinstance(cell, np.ndarray) or cell.dtype != object or cell.shape != (1, 20):
            found = "nothing" if cell is None else describe(cell)
            raise ValueError(f"{path}: expected {name} as a (1, 20) cell, found {found}; is it a file of AMIGOS?")
    for v in range(20):
        data = cells["joined_data"][0, v]
        cells["joined_data"][0, v] = None  # lets go of each video once it is used
        if np.size(data) == 0:
            continue
        data = matrix(data, f"{path}: joined_data{{{v + 1}}}", len(COLUMNS))
        video = _video(cells["VideoIDs"][0, v], f"{path}: VideoIDs{{{v + 1}}}")
        ratings = _ratings(cells["labels_selfassessment"][0, v], f"{path}: labels_selfassessment{{{v + 1}}}")
        yield video, data, ratings, "simulated" in cells


def _video(cell, where):
    text = str(cell.item() if isinstance(cell, np.ndarray) and cell.size == 1 else cell).strip()
    if not re.fullmatch(r"\w{1,16}", text):
        raise ValueError(f"{where}: expected the name of a video, found {str(cell)[:40]!r}; download the file again")
    return text


def _ratings(cell, where):
    cell = np.asarray(cell)
    if cell.size == 0:
        return float("nan"), float("nan")
    if cell.dtype.kind not in "fiu" or cell.shape != (1, 12):
        raise ValueError(f"{where}: expected (1, 12) numbers or none, found {describe(cell)}")
    for name, rating in zip(("arousal", "valence"), cell[0]):
        if not (np.isnan(rating) or 1 <= rating <= 9):
            raise ValueError(f"{where}: expected {name} from 1 to 9, found {rating:g}; correct it or make it NaN")
    return float(cell[0, 0]), float(cell[0, 1])
