"""A user's own recordings: EDF, BDF or WFDB files anywhere below a folder with a `recordings.csv`.

`recordings.csv` has one row a file: `file` (relative to it; of a WFDB record its `.hea`) and `subject`, and if wanted
`trial` (default: the file's name), `video` (what was seen or done), `arousal` and `valence` (empty: unrated).
"""

import csv
from functools import lru_cache
from pathlib import Path

import numpy as np

from datasets import Recording
from datasets.edf import read_edf
from datasets.wfdb_record import read_wfdb, signal_files

MODALITIES = ("eeg", "ecg")
ECG_SIDES = ()
EXPECTED = "recordings.csv with the columns file and subject"
HOME = "your own recordings"
LICENCE = "yours"
SIZE = "any"
DOWNLOAD = "nothing: write recordings.csv (file, subject, and if wanted trial, video, arousal, valence)"
LIST = "recordings.csv"
REQUIRED, OPTIONAL = ("file", "subject"), ("trial", "video", "arousal", "valence")


def sources(raw) -> list[Path]:
    """recordings.csv, then its files by subject. The list and the headers of WFDB records hold no recording of their
    own; they are here so that a change in them is noticed. Raises ValueError where a file is missing or lies nearer to
    another list.
    """
    path = Path(raw) / LIST
    if not path.is_file():
        return []
    rows = _rows(path, path.stat().st_mtime_ns)
    subjects = list(dict.fromkeys(row["subject"] for row in rows.values()))
    found = [path]
    for file, row in sorted(rows.items(), key=lambda item: subjects.index(item[1]["subject"])):
        where = f"{path}: line {row['line']}, {row['file']}"
        if _list_of(file) != path:
            raise ValueError(f"{where}: {_list_of(file)} is nearer; take it away")
        files = list(dict.fromkeys([row["listed"], *row["files"]]))
        for each in files:
            if not each.is_file():
                raise ValueError(f"{where}: expected the file {each}, found none; correct the line")
        found += files
    return found


def read(path, channels, ecg_side=None):
    """One file is one trial; the list, and what is not in it, holds none."""
    path = Path(path)
    if path.name == LIST:
        return
    listing = _list_of(path)
    rows = _rows(listing, listing.stat().st_mtime_ns)
    if path not in rows:
        return
    row = rows[path]
    where = f"{listing}: line {row['line']}, {row['file']}"
    if row["twice"]:
        raise ValueError(f"{where}: the file is there twice; take one of the two lines out")
    kind = row["listed"].suffix.lower()
    if kind not in (".edf", ".bdf", ".hea"):
        raise ValueError(f"{where}: expected an .edf, .bdf or .hea file; correct the line")
    arousal, valence = (_rating(row[name], f"{where}: {name}") for name in ("arousal", "valence"))
    signals, rate = (read_wfdb if kind == ".hea" else read_edf)(row["listed"], channels)
    names = {modality: tuple(channels[modality]) for modality in channels}
    trial = row["trial"] or path.stem
    yield Recording(row["subject"], trial, row["video"], signals, rate, names, arousal, valence, path)


def _list_of(path) -> Path | None:
    """The nearest list at or above the folder of a file."""
    return next((parent / LIST for parent in path.parents if (parent / LIST).is_file()), None)


@lru_cache(maxsize=8)
def _rows(path, _modified) -> dict:
    """The rows of a list by the path of their (first) signals. Raises ValueError where it is no such list."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name.strip().lower() for name in reader.fieldnames or []]
            reader.fieldnames = header
            if not set(REQUIRED) <= set(header) <= set(REQUIRED + OPTIONAL) or len(set(header)) < len(header):
                expected = f"{', '.join(REQUIRED)} and any of {', '.join(OPTIONAL)}"
                raise ValueError(
                    f"{path}: expected the columns {expected}, with commas between, found {', '.join(header)[:200]}"
                )
            rows = {}
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where}: expected {len(header)} values as in the header; correct the line")
                row = dict.fromkeys(OPTIONAL, "") | {name: value.strip() for name, value in row.items()}
                if not row["file"] or not row["subject"]:
                    raise ValueError(f"{where}: expected a file and a subject, found none; correct the line")
                file = path.parent / row["file"]
                if Path(row["file"]).is_absolute() or ".." in Path(row["file"]).parts:
                    raise ValueError(f"{where}: expected a file below {path.parent}, found {row['file']}")
                signals = signal_files(file) if file.suffix.lower() == ".hea" else [file]
                known = {"listed": file, "files": signals, "line": reader.line_num, "twice": signals[0] in rows}
                rows[signals[0]] = row | known
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, found other bytes; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}: expected a table of comma-separated values, found {error}") from error
    if not rows:
        raise ValueError(f"{path}: expected a line for each recording, found none")
    return rows


def _rating(text, where):
    try:
        rating = float(text or "nan")
    except ValueError:
        rating = float("inf")
    if np.isinf(rating):
        raise ValueError(f"{where}: expected a number or nothing, found {text}; correct the line")
    return rating
