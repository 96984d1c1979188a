"""The data sets, one reader each (readers.py lists them), and what the readers share.

A reader is a module. Its docstring says what the files hold and where they come from, and `prepare_data.py --list`
prints it. The module has

- `MODALITIES`: the modalities of paper.MODALITIES that its files hold;
- `ECG_SIDES`: the arms of its ECGs, () where there is only one ECG;
- `sources(raw)`: it returns the files below the folder `raw`, and the files of one subject follow each other;
- `read(path, channels, ecg_side)`: it yields the recordings of one file, one at a time. `channels` maps each modality
  that is wanted to the names of its channels. It raises ValueError, naming the file, where the file is damaged.
"""

import importlib
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

OLD_NAMES = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}


@dataclass(frozen=True)
class Recording:
    """A recording is one continuous stretch of one trial; all its modalities start at the same moment."""

    subject: str
    trial: str  # unique within the subject
    video: str  # what was seen or done, the same name for all subjects
    signals: dict[str, np.ndarray]  # modality -> (C, n) float64, units of the file
    rate: dict[str, float]  # modality -> Hz; EEG and ECG may come from two devices
    channels: dict[str, list[str]]  # modality -> C names, in the order asked for
    ratings: dict[str, float]  # target -> rating as recorded; unrated where it is missing or NaN
    source: Path
    simulated: bool = False  # whether the file says of itself that nobody was recorded


def files_below(raw, pattern, parts: int = 1) -> list[Path]:
    """Return everything below the folder `raw`, also behind links, of which the last `parts` names match `pattern`.

    The list is sorted by the group `subject` of the pattern and then by name, numbers by value: P2 before P10.
    """
    found, seen = [], set()
    for folder, inner, names in os.walk(raw, followlinks=True):
        # A link may lead to a folder above it, or two links to the same folder.
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        for path in (Path(folder) / name for name in [*inner, *names]):
            if match := pattern.fullmatch("/".join(path.parts[-parts:])):
                subject = match.groupdict().get("subject", "")
                found.append((_by_value(subject), subject, _by_value(match[0]), path))
    return [path for *_, path in sorted(found)]


def _by_value(name: str) -> list:
    """Return the sort key of a name in which numbers count by their value."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def optional(package: str, path, what: str):
    """Import a package that only some files need; raise ValueError, naming the file, where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{path}: {what}, which needs {package}; pip install {package}") from error


@contextmanager
def refuse_damage(path, what: str):
    """Turn what a library raises over damaged bytes, not the system's errors, into one line that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{path}: expected {what}, found a damaged one ({reason}); download it again") from error


def normalise_name(name: str) -> str:
    """Return the one spelling of a channel: `EEG T3`, `t7..` and ` T7 ` are all T7; `ECG ECG` is ECG."""
    name = name.upper().replace(".", "").strip()
    if name.startswith(("EEG ", "ECG ")):
        name = name[4:]
    name = name.replace(" ", "")
    return OLD_NAMES.get(name, name)


def pick_channels(wanted, present, path) -> list[int]:
    """Return the place of each name of `wanted` in `present`; raise ValueError where one is missing or there twice."""
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


def pick(signal, wanted, present, path) -> np.ndarray:
    """Return the channels `wanted` of a signal (n, k), whose columns are called `present`, as (C, n) float64."""
    return np.ascontiguousarray(signal[:, pick_channels(wanted, present, path)].T, dtype=np.float64)
