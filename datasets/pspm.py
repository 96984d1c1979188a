"""The PsPM sets (Bach et al., Zenodo): ECG among other recordings of conditioning experiments, MAT 5 or 7.3.

The files are `*_spike_*.mat`, such as `PsPM-FR_spike_01.mat`, with `infos` and `data`, a cell of channels, each with
`header.chantype`, `header.sr`, `header.units` and `data` (n, 1). A channel whose unit is `events` holds times and no
signal. Files of behaviour (`*_cogent_*`, without `infos`) are left alone.

Download PsPM-FR, PsPM-RRM1-2, PsPM-VIS (assumed; perhaps PsPM-HRM5) from Zenodo, by way of
https://bachlab.github.io/PsPM, and unpack them into folders; sizes and licences: see there."""

import re
from functools import partial

import numpy as np

from datasets import Recording, files_below, plain_name, unit_scales
from datasets.mat import cells, describe, field, matrix, number, read_mat

MODALITIES = ("ecg",)
FILE = re.compile(r"(?P<subject>(.+)_spike_(\w+?))(_.*)?\.mat", re.IGNORECASE)
sources = partial(files_below, pattern=FILE)


def read(path, channels, ecg_side=None):
    """Yield the one recording of a file. It is one trial; its set stands for the video. There are no ratings."""
    _, experiment, person, _ = FILE.fullmatch(plain_name(path.name)).groups()
    variables, notes = read_mat(path, ["infos", "data"])
    if "infos" not in variables:
        raise ValueError(f"{path}: expected infos and data, found no infos, as in a file of behaviour; take it out")
    seconds = number(field(variables["infos"], "duration", f"{path}: infos"), f"{path}: infos.duration")
    # The first channel of the kind is the ECG; a second ECG channel often holds the times of beats.
    kinds = []
    for i, channel in enumerate(cells(variables.get("data"), "data", path).ravel(), 1):
        where = f"{path}: data{{{i}}}"
        header = field(channel, "header", where)
        words = [field(header, key, where) for key in ("chantype", "units")]
        kinds.append(" in ".join(word if isinstance(word, str) else describe(word) for word in words))
        if kinds[-1].lower().startswith("ecg in ") and not kinds[-1].endswith(" events"):
            break
    else:
        raise ValueError(f"{path}: expected a channel ecg, found {', '.join(kinds) or 'none'}; take the file out")
    rate = number(field(header, "sr", where), f"{where}.header.sr")
    signal = matrix(field(channel, "data", where), f"{where}.data")
    if 1 not in signal.shape or not abs(signal.size - seconds * rate) <= max(rate, 1):
        expected = f"{seconds:g} s (infos.duration) of one ECG at {rate:g} Hz"
        raise ValueError(f"{where}: expected {expected}, found {signal.shape}; download the file again")
    [scale], units = unit_scales([kinds[-1][len("ecg in ") :]], ["ecg"], "ecg", path)
    with np.errstate(all="ignore"):  # what is no number is found later
        signals = {"ecg": signal.reshape(1, -1).astype(np.float64) * scale}
    about = {"ratings": {}, "source": path, "units": units, "notes": notes}
    yield Recording(f"{experiment}_{person}", path.stem, experiment, signals, {"ecg": rate}, channels, **about)
