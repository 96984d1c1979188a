"""Your own recordings, anywhere below a folder with a `recordings.csv`, or those of a BIDS folder.

They are EDF, BDF, WFDB or XDF files, or any that the package MNE opens (BrainVision, EEGLAB, FIF, GDF ...).
`recordings.csv` has one line a file: `file` (relative to it; of a WFDB record its `.hea`, of BrainVision the `.vhdr`)
and `subject`, and if wanted `trial` (default: the file's name), `video` (what was seen or done), `ecg` (what this file
calls its ECG) and the ratings, such as `arousal` and `valence` (empty: unrated), on the scale of --rating-scale.
A BIDS folder needs no list: datasets/bids.py says what is taken from it. There is nothing to download."""

from functools import lru_cache
from pathlib import Path

import paper
from datasets import Recording, bids, path_on_disk, plain_name
from datasets.mne_files import files_of, read_any
from datasets.wfdb_files import read_wfdb, signal_files

MODALITIES = tuple(paper.MODALITIES)
LIST = "recordings.csv"
REQUIRED, OPTIONAL = ("file", "subject"), ("trial", "video", "ecg", *paper.TARGETS)


def sources(raw) -> list[Path]:
    """Return recordings.csv, then its files by subject, or else the files of a BIDS folder, those that go with the
    signals among them, so that a change is noticed. Raise ValueError where one is missing or has a nearer list."""
    path = Path(raw) / LIST
    if not path.is_file():
        if bids.is_top(Path(raw)):
            return bids.sources(Path(raw))
        expected = f"{LIST}, or {' or '.join(bids.TOP)} of a BIDS folder"
        raise FileNotFoundError(f"{raw}: expected {expected}, found none; write {LIST} (--list says how)")
    listed = _listed(path, path.stat().st_mtime_ns)
    subjects = list(dict.fromkeys(line["subject"] for line in listed.values()))
    found = {path: None}
    for file, line in sorted(listed.items(), key=lambda item: subjects.index(item[1]["subject"])):
        if _list_of(file) != path:
            raise ValueError(f"{line['where']}: {_list_of(file)} is nearer; take it away")
        # A folder counts by its files, and a file with a line of its own comes with its own subject.
        for each in [line["path"], *line["files"]]:
            if not each.exists():
                raise ValueError(f"{line['where']}: expected the file {each}, found none; correct the line")
            if each == file or each.is_file() and each not in listed:
                found[each] = None
    return list(found)


def read(path, channels, ecg_side=None, scale=(1, 9)):
    """Yield the one recording of a file, which is one trial, or the trials of a BIDS file; other files hold none.
    `scale` is the lowest and the highest rating. Raise ValueError where the list is wrong, or the file damaged."""
    listing, top = _list_of(path), next(filter(bids.is_top, path.parents), None)
    line = _listed(listing, listing.stat().st_mtime_ns).get(path) if listing and path.name != LIST else None
    if line is None:
        if top and not (top / LIST).is_file():
            yield from bids.read(path, top, channels, scale)
        return
    ratings = bids.ratings(line["where"], line, scale)
    if line["ecg"] and "ecg" in channels:
        channels = channels | {"ecg": [line["ecg"]]}
    found = (read_wfdb if line["path"].suffix.lower() == ".hea" else read_any)(line["path"], channels)
    names = (line["subject"], line["trial"] or line["path"].stem, line["video"])
    yield Recording(*names, ratings=ratings, source=path, **found._asdict())


def _list_of(path) -> Path | None:
    """Return the nearest list at or above the folder of a file."""
    return next((parent / LIST for parent in path.parents if (parent / LIST).is_file()), None)


@lru_cache(maxsize=8)
def _listed(path, _modified) -> dict:
    """Return the lines of a list by the path of their (first) signals; raise ValueError where it is no such list."""
    header, rows = bids.rows_of(path)
    if not set(REQUIRED) <= set(header) <= set(REQUIRED + OPTIONAL) or len(set(header)) < len(header):
        expected = f"{', '.join(REQUIRED)} and any of {', '.join(OPTIONAL)}, with commas between"
        raise ValueError(f"{path}: expected the columns {expected}, found {', '.join(header)[:200]}")
    if not rows:
        raise ValueError(f"{path}: expected a line for each recording, found none")
    listed = {}
    for where, values in rows:
        line = _line(where, values, path)
        if line["files"][0] in listed:
            raise ValueError(f"{line['where']}: the file is there twice; take one of the two lines out")
        listed[line["files"][0]] = line
    return listed


def _line(where, values, path) -> dict:
    """Return one line of a list, and where its signals are; raise ValueError where it lacks something."""
    line = dict.fromkeys(OPTIONAL, "") | {name: plain_name(value) for name, value in values.items()}
    if not line["file"] or not line["subject"]:
        raise ValueError(f"{where}: expected a file and a subject, found none; correct the line")
    file = path_on_disk(path.parent, line["file"])
    if Path(line["file"]).is_absolute() or ".." in Path(line["file"]).parts:
        raise ValueError(f"{where}: expected a file below {path.parent}, found {line['file']}")
    files = (signal_files if file.suffix.lower() == ".hea" else files_of)(file)
    return line | {"path": file, "files": files, "where": f"{where}, {line['file']}"}
