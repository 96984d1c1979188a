"""The guard against leaks: what may not be pre-trained on, and what may not be tested on."""

from pathlib import Path

import numpy as np

from protocol.folds import labels, rated, units
from protocol.run import Run
from protocol.segments import Segments, open_segments


def check_leaks(run: Run, rows: dict[str, np.ndarray], extra: list[Segments]) -> None:
    """Raise ValueError if pre-training would see a unit of the fold's test or validation part.

    The guard looks at the units of the run's own rows; among the extra sets, at source files (by SHA-256), of which no
    two sets may share one, and in a set of the run's name also at trials, subjects or videos.
    """
    table, manifest = run.data.table, run.data.manifest
    held_out = np.concatenate([rows["validation"], rows["test"]])
    unit = units(table, run.settings["split"])
    shared = np.intersect1d(unit[rows["pretrain"]], unit[held_out])
    if len(shared):
        raise ValueError(f"{run.folder}: {len(shared)} units of validation or test are among the pre-training rows")
    held_trials = {tuple(row) for row in table[["subject", "trial"]][held_out].tolist()}
    held_files = {
        source["sha256"]: source["file"]
        for source in manifest["sources"]
        if any(tuple(trial) in held_trials for trial in source["trials"])
    }
    taken = {}
    for other in extra:
        # The same bytes are the same recording, whatever the file is called.
        for source in other.manifest["sources"]:
            first = taken.setdefault(source["sha256"], other)
            if first is not other:
                raise ValueError(
                    f"{other.folder}: its source {source['file']} is also in {first.folder}; leave one of the two out "
                    "of --extra"
                )
            if source["sha256"] in held_files:
                raise ValueError(
                    f"{other.folder}: its source {source['file']} is the file {held_files[source['sha256']]} of "
                    f"{run.data.folder}, which holds validation or test segments; leave this set out of --extra"
                )
        # Within one data set, names mean the same people and videos, also where the files differ.
        if other.manifest["dataset"] == manifest["dataset"]:
            check_names(run, held_trials, held_out, other)


def check_names(run: Run, held_trials: set[tuple], held_out: np.ndarray, other: Segments) -> None:
    """Raise ValueError if an extra set of the run's name holds a trial, or with such a split a subject or video, of the
    rows `held_out`; held_trials: their (subject, trial)."""
    name, split = run.data.manifest["dataset"], run.settings["split"]
    both = held_trials & {tuple(row) for row in other.table[["subject", "trial"]].tolist()}
    if both:
        what = f"subject and trial {' '.join(sorted(both)[0])}"
    elif split in ("subject", "video"):
        same = np.intersect1d(run.data.table[split][held_out], other.table[split])
        what = f"{split} {same[0]}" if len(same) else ""
    else:
        what = ""
    if what:
        verb = "are" if both else "is"
        raise ValueError(
            f"{other.folder}: {what} of {name} {verb} held out for validation or test; leave this set out of --extra"
        )


def open_test_sets(
    run: Run, folders: list[Path], target: str, extra_sources: list[str]
) -> list[tuple[Segments, np.ndarray, np.ndarray]]:
    """Open other labelled sets that a model of the run is tested on: (data, rated rows, labels (n,) int8) of each.

    Labels follow the run's threshold, applied to the other set's ratings alone. extra_sources: the SHA-256 of the
    recordings that the model was pre-trained on besides the run's own. Raises ValueError where a set has no rating,
    where it holds a recording that the model has seen, where two sets bear one name, and where the threshold is the
    mean of the run's training part.
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
