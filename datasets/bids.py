"""Folders in the Brain Imaging Data Structure (BIDS), for datasets/folder.py: sub-*/[ses-*/]eeg/*_eeg.* below the top.

The subject is what stands after `sub-`, and session, task, run and so on name the trial. A line of events.tsv with
onset, duration and a rating (columns arousal, valence) is a trial, and its trial_type is the video; without such lines
the whole file is one trial, rated by its line in scans.tsv if that has these columns. A channel that channels.tsv calls
bad, and what an event `BAD_...` covers, is not used."""

import csv
import re
from pathlib import Path

import numpy as np

import paper
from datasets import Recording, number, pick_channels, unit_scales
from datasets.mne_files import files_of, read_any

TOP = ("dataset_description.json", "participants.tsv")
# MNE opens the further parts of a split file with the first.
FILE = re.compile(r"sub-(?!.*_split-(?!0*1_))[^_]+_(.+_)?eeg\.(edf|bdf|vhdr|set|fif)", re.IGNORECASE)
TABLES = ("channels", "events", "scans")


def is_top(folder) -> bool:
    """Return whether a folder is the top of a BIDS data set."""
    return any((folder / name).is_file() for name in TOP)


def sources(top) -> list[Path]:
    """Return the files of all recordings and the tables beside them, by subject; raise ValueError where one is missing,
    such as the file of a link that DataLad has left."""
    found = {}
    for folder in sorted([*top.glob("sub-*/eeg"), *top.glob("sub-*/ses-*/eeg")]):
        for path in _recordings(folder):
            for each in [*files_of(path), *filter(None, (_table(path, top, kind) for kind in TABLES))]:
                if not each.is_file():
                    raise ValueError(f"{each}: expected a file of the recording {path}, found none; download it")
                found[each] = None
    if not found:
        raise ValueError(f"{top}: expected sub-*/[ses-*/]eeg/*_eeg.* as in BIDS, found none; or write recordings.csv")
    return list(found)


def read(path, top, channels, scale):
    """Yield the trials of one recording below `top`, where `path` is the file with its signals; other files hold none.
    `scale` is the lowest and the highest rating. Raise ValueError where a table is wrong, or the file damaged."""
    file = next((each for each in _recordings(path.parent) if files_of(each)[0] == path), None)
    if file is None:
        return
    found = _described(read_any(file, channels), channels, _rows(file, top, "channels"))
    seconds = min(signal.shape[1] / found.rate[modality] for modality, signal in found.signals.items())
    sample = 1 / min(found.rate.values())
    subject, *entities = (re.sub("^(sub|ses|task|run)-", "", part) for part in file.stem.split("_")[:-1])
    trial, task = "_".join(entities), "".join(re.findall("_task-([^_]+)", file.stem)[:1])
    bad, trials = list(found.bad), []
    for where, row in _rows(file, top, "events"):
        video, rated = row.get("trial_type", "").replace("n/a", ""), ratings(where, row, scale)
        is_rated = not np.isnan(list(rated.values())).all()
        is_bad = video.lower().startswith("bad") and not is_rated
        if is_bad or is_rated:
            ends = (-np.inf, np.inf) if is_bad else (0, seconds)
            start, length = (number(row.get(key, ""), f"{where}: {key}", *ends) for key in ("onset", "duration"))
            if not (is_bad or start >= 0 and length > 0):
                raise ValueError(f"{where}: expected an onset and a duration above 0 s, found none; correct the line")
            if is_bad:
                start = np.nan_to_num(start)
                bad.append((start, start + max(sample, np.nan_to_num(length)), f"annotated {video[:60]!r}"))
            elif trials and start < sum(trials[-1][:2]) - sample:
                raise ValueError(f"{where}: expected a rated event after the end of the one before; correct the table")
            else:
                trials.append((start, length, f"{trial}_{len(trials) + 1}", video, rated))
    # Without rated events, the whole file is the trial.
    if not trials:
        scans = _rows(file, top, "scans")
        scans = [each for each in scans if re.split(r"[/\\]", each[1].get("filename", ""))[-1] == file.name]
        if len(scans) > 1:
            raise ValueError(f"{scans[1][0]}: expected one line for {file.name}, found two; correct the table")
        trials = [(0.0, seconds, trial, task, ratings(*scans[0], scale) if scans else {})]
    for start, length, *names, rated in trials:
        stop, late = start + length, start + length - seconds
        ends = {m: [round(each * rate) for each in (start, stop)] for m, rate in found.rate.items()}
        own = found._replace(
            signals={m: signal[:, slice(*ends[m])] for m, signal in found.signals.items()},
            bad=tuple((max(0.0, a - start), b - start, why) for a, b, why in bad if start <= b and a < stop),
            notes=(*found.notes, *[f"the event ends {late:.3g} s after the recording"] * (late > sample)),
        )
        yield Recording(subject, *names, ratings=rated, source=path, **own._asdict())


def rows_of(path, **dialect) -> tuple[list[str], list[tuple[str, dict]]]:
    """Return the columns of a table in a text file, and each of its lines as (file and line number, column -> cell).
    Raise ValueError where the file is no such table, or a line has another number of cells."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            # Some spreadsheets write semicolons or tabs, and lines that are empty but for these.
            found = {"delimiter": max(",;\t", key=file.readline().count), "skipinitialspace": True}
            file.seek(0)
            reader = csv.DictReader(file, strict=True, **(dialect or found))
            reader.fieldnames = header = [name.strip().lower() for name in reader.fieldnames or []]
            rows = [(f"{path}: line {reader.line_num}", row) for row in reader]
            rows = [each for each in rows if "".join(map(str, filter(None, each[1].values()))).strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected CSV in UTF-8, found {error}; save it as such") from error
    for where, row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{where}: expected {len(header)} values as in the header; correct the line")
    return header, [(where, {name: cell.strip() for name, cell in row.items()}) for where, row in rows]


def ratings(where, row, scale) -> dict[str, float]:
    """Return target -> rating of a line of a table, NaN where there is none; raise ValueError for one off the scale."""
    what = "a rating (--rating-scale)"
    return {target: number(row.get(target, ""), f"{where}: {target}", *scale, what) for target in paper.TARGETS}


def _recordings(folder) -> list[Path]:
    """Return the recordings in a folder `eeg`, by name."""
    return sorted(path for path in folder.iterdir() if FILE.fullmatch(path.name))


def _table(file, top, kind) -> Path | None:
    """Return the table of a recording: the nearest one whose name has no part that the recording's lacks."""
    for folder in file.parents:
        for path in sorted(folder.glob(f"*{kind}.tsv")):
            if {*path.stem.split("_")} - {kind} <= {*file.stem.split("_")}:
                return path
        if folder == top:
            return None


def _rows(file, top, kind) -> list[tuple[str, dict]]:
    """Return the lines of a table of a recording as `rows_of` does; none where there is no table."""
    path = _table(file, top, kind)
    return rows_of(path, delimiter="\t", quoting=csv.QUOTE_NONE)[1] if path else []


def _described(found, channels, rows):
    """Return the signals of a file with what its channels.tsv adds: units that the file lacks, and bad channels."""
    signals, units, bad = dict(found.signals), dict(found.units), list(found.bad)
    for modality, wanted in channels.items() if rows else ():
        places = pick_channels(wanted, [row.get("name", "") for _, row in rows], rows[0][0])
        own = {name: rows[place][1] for name, place in places.items()}
        if modality in units:
            said = [row.get("units", "") for row in own.values()]
            factors, unknown = unit_scales(said, list(own), modality, rows[0][0])
            if not unknown:
                signals[modality] = signals[modality][:, :] * np.array(factors)[:, None]
                del units[modality]
        for name in (name for name, row in own.items() if row.get("status", "").lower() == "bad"):
            bad.append((0.0, signals[modality].shape[1] / found.rate[modality], f"{name} is marked as bad"))
    return found._replace(signals=signals, units=units, bad=tuple(bad))
