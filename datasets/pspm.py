"""The PsPM sets (Bach et al., Zenodo): ECG among other recordings of conditioning experiments, MAT 5 or 7.3.

`*_spike_*.mat`, such as `PsPM-FR_spike_01.mat`: `infos`, and `data`, a cell of channels, each with `header.chantype`,
`header.sr`, `header.units` and `data` (n, 1). A channel whose unit is `events` holds times and no signal. Files of
behaviour (`*_cogent_*`, without `infos`) are left alone.
"""

import re
from pathlib import Path

import numpy as np

from datasets import Recording, paths_below
from datasets.mat import describe, field, matrix, number, read_mat

MODALITIES = ("ecg",)
ECG_SIDES = ()
EXPECTED = "PsPM-FR_spike_01.mat and so on"
HOME = "https://bachlab.github.io/PsPM"
LICENCE = "see each set on Zenodo"
SIZE = "see each set on Zenodo"
DOWNLOAD = "PsPM-FR, PsPM-RRM1-2, PsPM-VIS (assumed; perhaps PsPM-HRM5), unpacked into folders"
FILE = re.compile(r"(.+)_spike_(\w+?)(_.*)?\.mat")


def sources(raw) -> list[Path]:
    """The files of signals anywhere below `raw`, by set and subject."""
    found = [path for path in paths_below(raw) if FILE.fullmatch(path.name)]
    return sorted(found, key=lambda path: FILE.fullmatch(path.name).groups(default=""))


def read(path, channels, ecg_side=None):
    """One file is one trial, its set stands for the video. There are no ratings."""
    path = Path(path)
    experiment, subject, _ = FILE.fullmatch(path.name).groups()
    variables = read_mat(path, ["infos", "data"])
    if "infos" not in variables:
        raise ValueError(f"{path}: expected infos and data, found no infos, as in a file of behaviour; take it out")
    duration = number(field(variables["infos"], "duration", f"{path}: infos"), f"{path}: infos.duration")
    cells = variables.get("data")
    if not isinstance(cells, np.ndarray) or cells.dtype != object:
        raise ValueError(f"{path}: expected data as a cell, found {describe(cells)}; download the file again")
    kinds = []
    for i, channel in enumerate(cells.ravel(), 1):
        where = f"{path}: data{{{i}}}"
        header = field(channel, "header", where)
        kinds.append(" in ".join(_text(field(header, name, where)) for name in ("chantype", "units")))
        if kinds[-1].startswith("ecg in ") and kinds[-1] != "ecg in events":
            break
    else:
        raise ValueError(f"{path}: expected a channel ecg, found {', '.join(kinds) or 'none'}; take the file out")
    rate = number(field(header, "sr", where), f"{where}.header.sr")
    signal = matrix(field(channel, "data", where), f"{where}.data")
    if 1 not in signal.shape or not abs(signal.size - duration * rate) <= max(rate, 1):
        raise ValueError(
            f"{where}: expected {duration:g} s (infos.duration) of one ECG at {rate:g} Hz, found {signal.shape}; "
            "download the file again"
        )
    yield Recording(
        subject=f"{experiment}_{subject}",
        trial=path.stem,
        video=experiment,
        signals={"ecg": signal.reshape(1, -1).astype(np.float64)},
        rate={"ecg": rate},
        channels={"ecg": tuple(channels["ecg"])},
        arousal=float("nan"),
        valence=float("nan"),
        source=path,
    )


def _text(value):
    return value if isinstance(value, str) else describe(value)
