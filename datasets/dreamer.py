"""DREAMER (Katsigiannis & Ramzan 2018): 23 people, 18 film clips, EEG at 128 Hz and two ECGs at 256 Hz, rated.

The one file `DREAMER.mat` holds a struct of that name. `Data` is a (1, 23) cell of structs; `EEG.stimuli` and
`ECG.stimuli` are (18, 1) cells of (n, 14) and (n, 2); `ScoreArousal`, `ScoreValence` and `ScoreDominance` are (18, 1),
from 1 to 5. The signals during the neutral clips before (`baseline`) are not read. Which ECG is the left arm's is, by
assumption, the first.

Download DREAMER.mat (450 MB) from https://zenodo.org/records/546113; licence: on request, for research."""

import re
from functools import partial

import numpy as np

from datasets import Recording, files_below, pick
from datasets.mat import cells, field, matrix, number, read_mat

MODALITIES = ("eeg", "ecg")
ECG_SIDES = ("left", "right")
sources = partial(files_below, pattern=re.compile(r"DREAMER\.mat"))
COLUMNS = {"eeg": "AF3 F7 F3 FC5 T7 P7 O1 O2 P8 T8 FC6 F4 F8 AF4".split(), "ecg": ECG_SIDES}
RATINGS = ("arousal", "valence", "dominance")
CLIPS = 18


def read(path, channels, ecg_side="left"):
    """Yield the clips of all subjects, in the file's order; subjects and clips are numbered from 1."""
    variables, notes = read_mat(path, ["DREAMER"])
    whole = variables.get("DREAMER")
    rate = {m: number(field(whole, f"{m.upper()}_SamplingRate", path), f"{path}: {m} rate") for m in channels}
    columns = {m: [ecg_side] if m == "ecg" else names for m, names in channels.items()}
    for place, subject in enumerate(cells(field(whole, "Data", path), "DREAMER.Data", path).ravel(), 1):
        where = f"{path}: Data{{{place}}}"
        clips = {m: field(field(subject, m.upper(), where), "stimuli", where) for m in channels}
        clips = {m: cells(each, f"{m.upper()}.stimuli", where, (CLIPS, 1))[:, 0] for m, each in clips.items()}
        there = [name for name in RATINGS if name != "dominance" or "ScoreDominance" in subject]  # optional
        ratings = {name: _ratings(subject, f"Score{name.capitalize()}", where) for name in there}
        for clip in range(CLIPS):
            signals = {}
            for m, films in clips.items():
                signal = matrix(films[clip], f"{where}.{m.upper()}.stimuli{{{clip + 1}}}", len(COLUMNS[m]))
                signals[m] = pick(signal, columns[m], COLUMNS[m], path)
            rated, film = {name: values[clip] for name, values in ratings.items()}, f"film{clip + 1:02d}"
            yield Recording(f"S{place:02d}", film, film, signals, rate, channels, rated, path, notes=notes)


def _ratings(subject, name, where) -> list[float]:
    """Return one person's ratings of the clips; raise ValueError where one is missing or not on the scale."""
    ratings = matrix(field(subject, name, where), f"{where}.{name}").ravel().astype(float)
    if len(ratings) != CLIPS or not (np.isnan(ratings) | ((ratings >= 1) & (ratings <= 5))).all():
        raise ValueError(f"{where}.{name}: expected {CLIPS} ratings from 1 to 5, found {ratings[:CLIPS]}; correct them")
    return ratings.tolist()
