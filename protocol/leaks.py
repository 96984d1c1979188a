"""The guard against leaks: what may not be pre-trained on, and what may not be tested on."""

from pathlib import Path

import numpy as np

from protocol.folds import labels, rated, units
from protocol.run import Run
from protocol.segments import Segments, open_segments


def check_leaks(run: Run, rows: dict[str, np.ndarray], extra: list[Segments]) -> None:
    """Raise ValueError if pre-training would see a unit of the fold's test or validation part: among the run's own
    rows; among the extra sets' source files (by SHA-256), of which no two sets may share one; and in a set of the run's
    name among its trials, subjects or videos."""
    table, manifest, split = run.data.table, run.data.manifest, run.settings["split"]
    held_out = np.concatenate([rows["validation"], rows["test"]])
    unit = units(table, split)
    shared = np.intersect1d(unit[rows["pretrain"]], unit[held_out])
    if len(shared):
        raise ValueError(f"{run.folder}: {len(shared)} units of validation or test are among the pre-training rows")
    held_trials = {tuple(row) for row in table[["subject", "trial"]][held_out].tolist()}
    held = [each for each in manifest["sources"] if any(tuple(trial) in held_trials for trial in each["trials"])]
    held_files, taken = {source["sha256"]: source["file"] for source in held}, {}
    for other in extra:
        # The same bytes are the same recording, whatever the file is called.
        for source in other.manifest["sources"]:
            first = taken.setdefault(source["sha256"], other)
            what = f"{other.folder}: its source {source['file']} is"
            if first is not other:
                raise ValueError(f"{what} also in {first.folder}; leave one of the two out of --extra")
            if source["sha256"] in held_files:
                raise ValueError(
                    f"{what} the file {held_files[source['sha256']]} of {run.data.folder}, which holds validation or "
                    "test segments; leave this set out of --extra"
                )
        # Within one data set, names mean the same people and videos, also where the files differ.
        if other.manifest["dataset"] == manifest["dataset"]:
            both = held_trials & {tuple(row) for row in other.table[["subject", "trial"]].tolist()}
            same = np.intersect1d(table[split][held_out], other.table[split]) if split in ("subject", "video") else ()
            if both or len(same):
                what = f"subject and trial {' '.join(min(both))}" if both else f"{split} {same[0]}"
                verb = f"of {manifest['dataset']} {'are' if both else 'is'} held out for validation or test"
                raise ValueError(f"{other.folder}: {what} {verb}; leave this set out of --extra")


def open_test_sets(
    run: Run, folders: list[Path], target: str, extra_sources: list[str]
) -> list[tuple[Segments, np.ndarray, np.ndarray]]:
    """Open other labelled sets that a model of the run is tested on: (data, rated rows, labels (n,) int8) of each.

    Labels follow the run's threshold, applied to the other set's ratings alone. extra_sources: the SHA-256 of the
    recordings that the model was pre-trained on besides the run's own. Raises ValueError where a set has no rating or a
    recording that the model has seen, where two sets bear one name, and for the threshold `train`.
    """
    if folders and run.settings["threshold"] == "train":
        raise ValueError(
            "--test-data: expected --threshold global, subject or a number, found train, which is the mean of this "
            "run's training part and has no counterpart in another set; use another --run"
        )
    names, sets = {}, []
    for folder in folders:
        data = open_segments(folder)
        check_unseen(run, data, extra_sources)
        # The name goes into the name of the predictions' file.
        name = data.manifest["dataset"]
        if name in names:
            raise ValueError(f"{folder}: is {name}, as is {names[name]}; give one of them to --test-data at a time")
        names[name] = folder
        found = labels(data.table, target, run.settings["threshold"])
        rows = rated(found, np.arange(len(found)))
        if len(rows) == 0:
            raise ValueError(f"{folder}/segments.npy: no {target} rating; leave it out of --test-data")
        sets.append((data, rows, found))
    return sets


def check_unseen(run: Run, data: Segments, extra_sources: list[str]) -> None:
    """Raise ValueError if another labelled set is the run's own, or holds a recording that a model was trained on."""
    name, own = data.manifest["dataset"], {source["sha256"]: source["file"] for source in run.data.manifest["sources"]}
    if name == run.settings["data_set"]:
        raise ValueError(f"{data.folder}: is {name}, the data set of {run.data.folder}; leave it out of --test-data")
    for source in data.manifest["sources"]:
        if source["sha256"] in own:
            raise ValueError(
                f"{data.folder}: its source {source['file']} is the file {own[source['sha256']]} of "
                f"{run.data.folder}, which this run trains on; leave it out of --test-data"
            )
        if source["sha256"] in extra_sources:
            raise ValueError(
                f"{data.folder}: the model was pre-trained on {source['file']} (pretrain.py --extra), so nobody in it "
                "is new to the model; leave it out of --test-data, or pre-train another --run without it"
            )
