"""DREAMER (Katsigiannis & Ramzan 2018): 23 people, 18 film clips, EEG at 128 Hz and two ECGs at 256 Hz, rated.

One file `DREAMER.mat` with a struct of that name. `Data` is a (1, 23) cell of structs; `EEG.stimuli` and `ECG.stimuli`
are (18, 1) cells of (n, 14) and (n, 2), `ScoreArousal` and `ScoreValence` are (18, 1), from 1 to 5. The signals during
the neutral clips before (`baseline`) are not read. Which ECG is the left arm's is, by assumption, the first.
"""

from pathlib import Path

import numpy as np

from datasets import Recording, paths_below, pick_channels
from datasets.mat import describe, field, matrix, number, read_mat

MODALITIES = ("eeg", "ecg")
ECG_SIDES = ("left", "right")
EXPECTED = "DREAMER.mat"
HOME = "https://zenodo.org/records/546113"
LICENCE = "on request, for research"
SIZE = "450 MB"
DOWNLOAD = "DREAMER.mat"
COLUMNS = "AF3 F7 F3 FC5 T7 P7 O1 O2 P8 T8 FC6 F4 F8 AF4".split()
CLIPS = 18


def sources(raw) -> list[Path]:
    """`DREAMER.mat`, anywhere below `raw`."""
    return sorted(path for path in paths_below(raw) if path.name == "DREAMER.mat")


def read(path, channels, ecg_side="left"):
    """The clips of all subjects, in the file's order; subjects and clips are numbered from 1."""
    path = Path(path)
    whole = read_mat(path, ["DREAMER"]).get("DREAMER")
    rate = {m: number(field(whole, f"{m.upper()}_SamplingRate", path), f"{path}: {m} rate") for m in channels}
    columns = {"ecg": [ECG_SIDES.index(ecg_side or "left")]}
    if "eeg" in channels:
        columns["eeg"] = pick_channels(channels["eeg"], COLUMNS, path)
    width = {"eeg": len(COLUMNS), "ecg": len(ECG_SIDES)}
    subjects = field(whole, "Data", path)
    if not isinstance(subjects, np.ndarray) or subjects.dtype != object:
        raise ValueError(f"{path}: expected DREAMER.Data as a cell, found {describe(subjects)}; download it again")
    for number_, (i, subject) in enumerate(np.ndenumerate(subjects), 1):
        subjects[i] = None  # lets go of each subject once it is used
        where = f"{path}: Data{{{number_}}}"
        clips = {m: _clips(field(field(subject, m.upper(), where), "stimuli", where), where) for m in channels}
        arousal, valence = (
            _ratings(field(subject, name, where), f"{where}.{name}") for name in ("ScoreArousal", "ScoreValence")
        )
        for clip in range(CLIPS):
            signals = {}
            for modality, cells in clips.items():
                data = matrix(cells[clip], f"{where}.{modality.upper()}.stimuli{{{clip + 1}}}", width[modality])
                signals[modality] = np.ascontiguousarray(data[:, columns[modality]].T, dtype=np.float64)
            yield Recording(
                subject=f"S{number_:02d}",
                trial=f"film{clip + 1:02d}",
                video=f"film{clip + 1:02d}",
                signals=signals,
                rate=dict(rate),
                channels={m: tuple(names) for m, names in channels.items()},
                arousal=arousal[clip],
                valence=valence[clip],
                source=path,
            )


def _clips(cells, where):
    if not isinstance(cells, np.ndarray) or cells.dtype != object or cells.size != CLIPS:
        raise ValueError(f"{where}: expected stimuli as a ({CLIPS}, 1) cell, found {describe(cells)}")
    return cells.ravel()


def _ratings(values, where):
    ratings = matrix(values, where).ravel().astype(float)
    if len(ratings) != CLIPS or not (np.isnan(ratings) | ((ratings >= 1) & (ratings <= 5))).all():
        raise ValueError(f"{where}: expected {CLIPS} ratings from 1 to 5, found {ratings[:CLIPS]}; correct them")
    return ratings.tolist()
