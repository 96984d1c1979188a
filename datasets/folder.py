"""Your own recordings: EDF, BDF or WFDB files anywhere below a folder with a `recordings.csv`.

`recordings.csv` has one line a file: `file` (relative to it; of a WFDB record its `.hea`) and `subject`, and if wanted
`trial` (default: the file's name), `video` (what was seen or done) and the ratings, such as `arousal` and `valence`
(empty: unrated). There is nothing to download: write recordings.csv.
"""

import csv
from functools import lru_cache
from pathlib import Path

import numpy as np

import paper
from datasets import Recording, optional, pick, refuse_damage
from datasets.edf import read_edf

MODALITIES = tuple(paper.MODALITIES)
ECG_SIDES = ()
LIST = "recordings.csv"
REQUIRED, OPTIONAL = ("file", "subject"), ("trial", "video", *paper.TARGETS)


def sources(raw) -> list[Path]:
    """Return recordings.csv, then its files by subject; raise ValueError where one is missing or has a nearer list.

    The list and the headers of WFDB records hold no recording; they are here so that a change in them is noticed.
    """
    path = Path(raw) / LIST
    if not path.is_file():
        return []
    listed = _listed(path, path.stat().st_mtime_ns)
    subjects = list(dict.fromkeys(line["subject"] for line in listed.values()))
    found = [path]
    for file, line in sorted(listed.items(), key=lambda item: subjects.index(item[1]["subject"])):
        if _list_of(file) != path:
            raise ValueError(f"{line['where']}: {_list_of(file)} is nearer; take it away")
        for each in dict.fromkeys([line["path"], *line["files"]]):
            if not each.is_file():
                raise ValueError(f"{line['where']}: expected the file {each}, found none; correct the line")
            found.append(each)
    return found


def read(path, channels, ecg_side=None):
    """Yield the one recording of a file; it is one trial. The list, and what is not in it, holds none."""
    listing = _list_of(path)
    line = None if path.name == LIST else _listed(listing, listing.stat().st_mtime_ns).get(path)
    if line is None:
        return
    kind = line["path"].suffix.lower()
    if kind not in (".edf", ".bdf", ".hea"):
        raise ValueError(f"{line['where']}: expected an .edf, .bdf or .hea file; correct the line")
    ratings = {target: _rating(line[target], f"{line['where']}: {target}") for target in paper.TARGETS}
    signals, rate = (_read_wfdb if kind == ".hea" else read_edf)(line["path"], channels)
    trial = line["trial"] or path.stem
    yield Recording(line["subject"], trial, line["video"], signals, rate, channels, ratings, path)


def _list_of(path) -> Path | None:
    """Return the nearest list at or above the folder of a file."""
    return next((parent / LIST for parent in path.parents if (parent / LIST).is_file()), None)


@lru_cache(maxsize=8)
def _listed(path, _modified) -> dict:
    """Return the lines of a list by the path of their (first) signals; raise ValueError where it is no such list."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            reader.fieldnames = header = [name.strip().lower() for name in reader.fieldnames or []]
            if not set(REQUIRED) <= set(header) <= set(REQUIRED + OPTIONAL) or len(set(header)) < len(header):
                expected = f"{', '.join(REQUIRED)} and any of {', '.join(OPTIONAL)}, with commas between"
                raise ValueError(f"{path}: expected the columns {expected}, found {', '.join(header)[:200]}")
            listed = {}
            for values in reader:
                line = _line(values, header, path, reader.line_num)
                if line["files"][0] in listed:
                    raise ValueError(f"{line['where']}: the file is there twice; take one of the two lines out")
                listed[line["files"][0]] = line
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected CSV in UTF-8, found {error}; save it as such") from error
    if not listed:
        raise ValueError(f"{path}: expected a line for each recording, found none")
    return listed


def _line(values, header, path, number) -> dict:
    """Return one line of a list, and where its signals are; raise ValueError where it lacks something."""
    where = f"{path}: line {number}"
    if None in values or None in values.values():
        raise ValueError(f"{where}: expected {len(header)} values as in the header; correct the line")
    line = dict.fromkeys(OPTIONAL, "") | {name: value.strip() for name, value in values.items()}
    if not line["file"] or not line["subject"]:
        raise ValueError(f"{where}: expected a file and a subject, found none; correct the line")
    file = path.parent / line["file"]
    if Path(line["file"]).is_absolute() or ".." in Path(line["file"]).parts:
        raise ValueError(f"{where}: expected a file below {path.parent}, found {line['file']}")
    files = _signal_files(file) if file.suffix.lower() == ".hea" else [file]
    return line | {"path": file, "files": files, "where": f"{where}, {line['file']}"}


def _rating(text, where) -> float:
    """Return a rating, NaN for none; raise ValueError where it is no number."""
    try:
        rating = float(text or "nan")
    except ValueError:
        rating = float("inf")
    if np.isinf(rating):
        raise ValueError(f"{where}: expected a number or nothing, found {text}; correct the line")
    return rating


def _signal_files(header) -> list[Path]:
    """Return the files that hold the signals of a WFDB header, in its order."""
    lines = header.read_text(errors="replace").splitlines() if header.is_file() else []
    lines = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    names = dict.fromkeys(Path(line[0]).name for line in lines[1:] if line[0] != "~")  # ~: a signal without values
    return [header.with_name(name) for name in names] or [header.with_suffix(".dat")]


def _read_wfdb(path, channels) -> tuple[dict, dict]:
    """Do what `read_edf` does, for the WFDB record whose header is `path`."""
    wfdb = optional("wfdb", path, "a WFDB record")
    with refuse_damage(path, "a WFDB record"):
        record = wfdb.rdrecord(str(path.with_suffix("")), m2s=True)
        names, rate, signal = list(record.sig_name), float(record.fs), np.asarray(record.p_signal, dtype=np.float64)
    signals = {modality: pick(signal, wanted, names, path) for modality, wanted in channels.items()}
    return signals, dict.fromkeys(channels, rate)
