"""One reader a data set. Each has

- `MODALITIES`: which of "eeg" and "ecg" its files hold; `ECG_SIDES`: the arms it has an ECG of, () for a single one;
- `EXPECTED`: what its files are called; `HOME`, `LICENCE`, `SIZE`, `DOWNLOAD`: where they come from;
- `sources(raw)`: the files below the folder `raw`, sorted so that the recordings of a subject are contiguous;
- `read(path, channels, ecg_side)`: the recordings of one file, one at a time; `channels` maps each modality wanted to
  the names of its channels. Raises ValueError, naming the file, where that is damaged or not what it should be.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

OLD_NAMES = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}


@dataclass(frozen=True)
class Recording:
    """One continuous stretch of one trial, its channels in the order asked for.

    A modality has its own rate and number of points, for some sets record EEG and ECG on two devices; all modalities
    start at the same moment.
    """

    subject: str
    trial: str  # unique within the subject
    video: str  # what was seen or done, the same name for all subjects
    signals: dict[str, np.ndarray]  # modality -> (C, n) float64, units of the file
    rate: dict[str, float]  # modality -> Hz
    channels: dict[str, tuple[str, ...]]  # modality -> C names
    arousal: float  # rating as recorded, NaN where there is none
    valence: float
    source: Path
    simulated: bool = False  # whether the file says of itself that nobody was recorded


def paths_below(raw) -> list[Path]:
    """All files and folders below a folder, in folders that are links, too."""
    found, seen = [], set()
    for folder, inner, names in os.walk(raw, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it, or a second one to the same
            inner.clear()
            continue
        seen.add(real)
        found += [Path(folder) / name for name in [*inner, *names]]
    return found


def normalise_name(name: str) -> str:
    """`EEG T3`, `t7..` and ` T7 ` are all T7; `ECG ECG` is ECG."""
    name = name.upper().replace(".", "").strip()
    if name.startswith(("EEG ", "ECG ")):
        name = name[4:]
    name = name.replace(" ", "")
    return OLD_NAMES.get(name, name)


def pick_channels(wanted, present, path) -> list[int]:
    """The position in `present` of each name in `wanted`. Raises ValueError where one is missing or there twice."""
    names = [normalise_name(name) for name in present]
    for name in wanted:
        found = names.count(normalise_name(name))
        if found != 1:
            raise ValueError(
                f"{path}: channel {name} is {'missing' if found == 0 else f'there {found} times'}; "
                f"expected {' '.join(wanted)}, found {' '.join(' '.join(name.split()) for name in present)}; "
                "choose others with --channels, --ecg-channel or --modalities"
            )
    return [names.index(normalise_name(name)) for name in wanted]
