"""The guard against leaks: what may not be pre-trained on, and what may not be tested on."""

import unicodedata
from pathlib import Path

import numpy as np

from protocol.folds import labels, rated, units
from protocol.run import Run
from protocol.segments import Segments, open_segments


def seen(parts: list[tuple[Segments, np.ndarray]], before: list[dict] = ()) -> dict:
    """What a model has seen: SHA-256 of recordings, and modality -> fingerprints of signals.

    parts: (data, rows) pairs that it learns from or is validated on; before: the same of the models it is made from."""
    sources, signals = set(), {}
    for data, rows in parts:
        trials = {*data.table[["subject", "trial"]][rows].tolist()}
        for source in data.manifest["sources"]:
            if any(tuple(trial) in trials for trial in source["trials"]):
                sources.add(source["sha256"])
        for modality in data.signals:
            signals.setdefault(modality, set()).update(data.fingerprints[modality][rows].tolist())
    for known in before:
        sources.update(known["sources"])
        for modality, found in known["signals"].items():
            signals.setdefault(modality, set()).update(found)
    return {"sources": sorted(sources), "signals": {name: sorted(found) for name, found in signals.items()}}


def seen_rows(known: dict, data: Segments) -> np.ndarray:
    """The rows of `data` whose signals, or the recordings that they were cut from, a model has seen; known: `seen`."""
    sources = [each for each in data.manifest["sources"] if each["sha256"] in set(known["sources"])]
    trials = {tuple(trial) for source in sources for trial in source["trials"]}
    found = np.array([tuple(trial) in trials for trial in data.table[["subject", "trial"]].tolist()])
    for modality in set(known["signals"]) & set(data.fingerprints.dtype.names):
        found |= np.isin(data.fingerprints[modality], np.array(known["signals"][modality], "u8"))
    return np.flatnonzero(found)


def spelled(data: Segments, rows: np.ndarray, *columns: str) -> dict[tuple, tuple]:
    """What stands in these columns of some rows; its key is the same for P1 and p1, and for both forms of Unicode."""
    lines = data.table[[*columns]][rows].tolist()
    return {tuple(unicodedata.normalize("NFC", name).casefold() for name in line): line for line in lines}


def refuse_seen(known: dict, data: Segments, why: str) -> None:
    """Raise ValueError, which ends in `why`, where a recording or a signal of `data` is among those `seen`."""
    for source in data.manifest["sources"]:
        if source["sha256"] in known["sources"]:
            raise ValueError(f"{data.folder}: its source {source['file']} {why}")
    if len(rows := seen_rows(known, data)):
        first = data.table[rows[0]]
        one = f"the signal of segment {rows[0]} (subject {first['subject']}, trial {first['trial']})"
        raise ValueError(f"{data.folder}: {one}, and of {len(rows) - 1} more, {why}")


def check_leaks(run: Run, rows: dict[str, np.ndarray], extra: list[Segments]) -> None:
    """Raise ValueError if pre-training would see a unit of the fold's test or validation part: among the run's own
    rows; among the extra sets' recordings and signals, of which no two sets may share a recording; and in a set of the
    run's name among its trials, subjects or videos."""
    table, name, split = run.data.table, run.data.manifest["dataset"], run.settings["split"]
    held_out = np.concatenate([rows["validation"], rows["test"]])
    unit = units(table, split)
    shared = np.intersect1d(unit[rows["pretrain"]], unit[held_out])
    if len(shared):
        raise ValueError(f"{run.folder}: {len(shared)} units of validation or test are among the pre-training rows")
    held, taken = seen([(run.data, held_out)]), {}
    for other in extra:
        for source in other.manifest["sources"]:
            first = taken.setdefault(source["sha256"], other)
            if first is not other:
                what = f"its source {source['file']} is also in {first.folder}"
                raise ValueError(f"{other.folder}: {what}; leave one of the two out of --extra")
        # The same bytes are the same recording, and the same signal is, whatever file, set or person it is called.
        refuse_seen(held, other, f"is in {run.data.folder}, held out for validation or test; leave it out of --extra")
        # Within one data set, names mean the same people and videos, also where the files differ.
        if other.manifest["dataset"] == name:
            for columns in (("subject", "trial"), *([(split,)] if split in ("subject", "video") else [])):
                ours, theirs = spelled(run.data, held_out, *columns), spelled(other, slice(None), *columns)
                if both := ours.keys() & theirs.keys():
                    what = f"{' and '.join(columns)} {' '.join(theirs[min(both)])} of {name}"
                    verb = f"{'are' if len(columns) > 1 else 'is'} held out for validation or test"
                    raise ValueError(f"{other.folder}: {what} {verb}; leave this set out of --extra")


def open_test_sets(
    run: Run, folders: list[Path], target: str, known: dict, trust: bool
) -> list[tuple[Segments, np.ndarray, np.ndarray]]:
    """Open other labelled sets that a model of the run is tested on: (data, rated rows, labels (n,) int8) of each.

    Labels follow the run's threshold, applied to the other set's ratings alone. known: what the model has `seen`;
    trust: as in `open_segments`. Raises ValueError where a set has no rating, or a recording or signal that the run
    holds or the model has seen, where two sets bear one name, and for the threshold `train`."""
    if folders and run.settings["threshold"] == "train":
        raise ValueError(
            "--test-data: expected --threshold global, subject or a number, found train, which is the mean of this "
            "run's training part and has no counterpart in another set; use another --run"
        )
    names, sets = {}, []
    for folder in folders:
        data = open_segments(folder, trust=trust)
        # The name goes into the name of the predictions' file.
        name = data.manifest["dataset"]
        if name == run.settings["data_set"]:
            raise ValueError(f"{folder}: is {name}, the data set of {run.data.folder}; leave it out of --test-data")
        if name in names:
            raise ValueError(f"{folder}: is {name}, as is {names[name]}; give one of them to --test-data at a time")
        names[name] = folder
        own = seen([(run.data, np.arange(len(run.data.table)))])
        refuse_seen(own, data, f"is in {run.data.folder}, which this run trains on; leave it out of --test-data")
        why = "is in a set of pretrain.py --extra, so nobody in it is new to the model; leave it out of --test-data"
        refuse_seen(known, data, f"{why}, or pre-train another --run without it")
        found = labels(data.table, target, run.settings["threshold"])
        rows = rated(found, np.arange(len(found)))
        if len(rows) == 0:
            raise ValueError(f"{folder}/segments.npy: no {target} rating; leave it out of --test-data")
        sets.append((data, rows, found))
    return sets
