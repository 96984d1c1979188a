"""What a run holds: the test predictions of every model, and those of the priors and fusion rules, which need no file.

No checkpoint is opened: a record names the files that a model was made from, and their SHA-256 are compared."""

import argparse
import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from analysis import scores
from common.files import sha256_of_file
from paper import FUSED, MODALITIES, TARGETS
from protocol import folds, records
from protocol.records import AGAIN, Model
from protocol.run import SETTINGS, Run, open_run, resolve_flags
from protocol.segments import data_sha256, open_segments

SCRIPTS = {"network": "finetune.py", "fusion": "fuse.py", "classical": "baseline.py", "amigos": "baseline.py"}
PRIORS = [Model("prior", rule=rule) for rule in ("majority", "subject", "video")]


def open_runs(folders: list[Path], data: Path | None, trust: bool = False) -> list[Run]:
    """The runs as their run.json describe them, all of one data set; data: where it is now, if it was moved; trust: as
    in `open_segments`. Raises FileNotFoundError where there is no run, and ValueError where its data or folds were
    changed."""
    runs = []
    for folder in folders:
        path = folder / "run.json"
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such run; expected the folder that finetune.py wrote to")
        args = argparse.Namespace(run=folder, data=data, trust_data=trust, **dict.fromkeys(SETTINGS))
        resolve_flags(args)
        runs.append(open_run(args))
        if runs[-1].settings["data_sha256"] != runs[0].settings["data_sha256"]:
            raise ValueError(f"--run: expected runs of one data set, found others in {folders[0]} and {folder}")
    return runs


def rated_parts(run: Run) -> dict:
    """(fold, target) -> labels (n,), rated training rows and rated test rows, where both parts have a rating."""
    parts, found = {}, {}
    for fold in range(run.settings["n_folds"]):
        rows = run.split(fold)
        for target in TARGETS:
            # They are the same in all folds, but where the mean of the training part divides them.
            if target not in found or run.settings["threshold"] == "train":
                found[target] = run.labels(target, rows["train"])
            labels = found[target]
            train, test = (folds.rated(labels, rows[part]) for part in ("train", "test"))
            if len(train) and len(test):
                parts[fold, target] = labels, train, test
    return parts


def numbers(table: np.ndarray) -> dict[str, np.ndarray]:
    """The subject and the trial of each segment as numbers, subjects in the order of their names."""
    return {"subject": folds.units(table, "subject"), "trial": folds.trials(table)}


def pack(table: dict, fold: int, segment: np.ndarray, label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """The predictions (m,) of one fold as scores.PREDICTIONS, in the order of segments; table: `numbers`."""
    packed = np.empty(len(segment), scores.PREDICTIONS)
    packed["fold"], packed["segment"], packed["label"], packed["probability"] = fold, segment, label, probability
    packed["subject"], packed["trial"] = table["subject"][segment], table["trial"][segment]
    return packed[np.argsort(packed["segment"])]


def join(targets: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """target -> the predictions of all folds in one array, fold after fold."""
    found = {target: np.concatenate(targets[target]) for target in TARGETS if target in targets}
    return {target: each[np.lexsort((each["segment"], each["fold"]))] for target, each in found.items()}


def read_models(run: Run, parts: dict, skip_stale: bool = False) -> tuple[dict, list[str]]:
    """Model -> target -> predictions (scores.PREDICTIONS) of all models that wrote some, and notes for the user.

    parts: `rated_parts`. Raises ValueError where predictions or their record are damaged, of another run, or of a model
    that was trained again since; with `skip_stale`, a note says so, and the others are read."""
    table, sha256 = numbers(run.data.table), functools.cache(sha256_of_file)
    read, made_by, known, sets, without, alone, notes = {}, {}, {}, {}, [], [], []
    paths = sorted(run.folder.glob("*/fold*/*.npy"))
    for path in tqdm(paths, desc=f"reading {run.folder}", unit="file", disable=None, leave=False):
        # Without its record nobody can say which model made a prediction.
        if not path.with_suffix(".json").exists():
            without.append(path)
            continue
        try:
            record = records.read_record(path)
            model = records.model_of_record(record)
            found = read_file(path, run, record, model, parts, table, known, sets, sha256)
        except FileNotFoundError as error:
            notes.append(f"{path}: not read, for {error}")
            continue
        except (OSError, TypeError, ValueError) as error:
            if not skip_stale:
                raise ValueError(f"{error} (--skip-stale shows the others)") from error
            notes.append(f"left out of all tables: {error}")
            continue
        read.setdefault(model, {}).setdefault(record["target"], []).append(found)
        made_by.setdefault((model, record["target"]), []).append(record)
        if "checkpoint_sha256" in record and not checkpoint_of(run, model, record).exists():
            alone.append(path)
    for paths, why in (
        (without, "not read, for no record (.json) lies beside it; call the script that wrote it again"),
        (alone, "its checkpoint (.pt) is gone, so that nobody can say whether it was trained again since"),
    ):
        more = f" and {len(paths) - 1} more" * (len(paths) > 1)
        notes += [f"{paths[0]}{more}: {why}"] if paths else []
    for (model, target), found in made_by.items():
        if differing := differing_flags(model, found):
            notes.append(f"{model.label}, {target}: the folds were trained with different {differing}")
    return {model: join(read[model]) for model in sorted(read, key=place_of)}, notes


def read_file(path: Path, run: Run, record: dict, model: Model, parts, table, known: dict, sets: dict, sha256):
    """The predictions of one file, as scores.PREDICTIONS; known: folder and suffix -> the first model of that name;
    the rest is that of `read_models`, `check_origin` and `read_elsewhere`, and raises what they do."""
    check_origin(path, run, record, model, parts, sha256)
    # A modality that is new in paper.py makes other fused models, of the same name.
    first = known.setdefault((model.folder, model.suffix), model)
    if first != model:
        expected, found = (" and ".join(each.modalities) for each in (first, model))
        raise ValueError(f"{path}: expected a model of {expected} as in other folds, found {found}; {AGAIN}")
    # The labels are those of the run, or those of another labelled set, which may have been moved.
    if model.tested_on:
        return read_elsewhere(path, record, sets)
    labels, _, test = parts[record["fold"], record["target"]]
    what = f"test segments of fold {record['fold']}"
    return read_checked(path, table, record["fold"], test, labels, what, run.settings["threshold"])


def place_of(model: Model) -> tuple:
    """The place of a model among others: by script, then by modality, then by variant."""
    modalities = [list(MODALITIES).index(each) if each in MODALITIES else len(MODALITIES) for each in model.modalities]
    return list(SCRIPTS).index(model.family), len(modalities), modalities, model.suffix


def checkpoint_of(run: Run, model: Model, record: dict) -> Path:
    """The checkpoint that made the predictions of a record."""
    return replace(model, tested_on="").path(run.folder, record["fold"], record["target"], ".pt")


def check_origin(path: Path, run: Run, record: dict, model: Model, parts: dict, sha256) -> None:
    """Raises ValueError unless the record of the predictions `path` is of this run, fold and model, and the files that
    the model was made from are still the same; sha256: file -> hash."""
    fold, target, script = record["fold"], record["target"], SCRIPTS.get(model.family, "its script")
    identity = {**run.identity, "threshold": run.settings["threshold"]}
    records.check_record(path.with_suffix(".json"), record, identity, f"call {script} again with --fresh")
    own = model.path(run.folder, fold, target, ".npy")
    if model.family not in SCRIPTS or own != path:
        raise ValueError(f"{path}: its record is that of {own}; {AGAIN}")
    if (fold, target) not in parts:
        raise ValueError(f"{path}: expected a fold of {run.folder} with {target} ratings, found {fold}; {AGAIN}")
    # The models that it was made from, and its own checkpoint, which baseline.py does not have.
    made_of = dict(record["parents"])
    if "checkpoint_sha256" in record:
        checkpoint = checkpoint_of(run, model, record)
        made_of[checkpoint.relative_to(run.folder).as_posix()] = record["checkpoint_sha256"]
    records.check_parents(path, {"parents": made_of}, run.folder, script, sha256)


def read_checked(path: Path, table: dict, fold: int, test, labels, what: str, threshold: str) -> np.ndarray:
    """The predictions of a file as scores.PREDICTIONS; ValueError unless it predicts each of the rows `test` (m,) once,
    with `labels` (n,) as --threshold gives them; table: `numbers`; what: how the rows are called."""
    predictions = records.read_predictions(path)
    if not np.array_equal(np.sort(predictions["segment"]), test):
        expected = f"one prediction for each of the {len(test)} {what}, none twice"
    elif not np.array_equal(predictions["label"], labels[predictions["segment"]]):
        expected = f"the labels of --threshold {threshold}"
    elif not ((predictions["probability"] >= 0) & (predictions["probability"] <= 1)).all():
        expected = "probabilities from 0 to 1"
    else:
        return pack(table, fold, *(predictions[name] for name in predictions.dtype.names))
    raise ValueError(f"{path}: expected {expected}, found others; {AGAIN}")


def read_elsewhere(path: Path, record: dict, sets: dict) -> np.ndarray:
    """Predictions (scores.PREDICTIONS) on the other labelled set that the record names; FileNotFoundError where it was
    moved, ValueError where it was changed or is another of that name. sets: what was opened before, and name ->
    the first such path, and hash."""
    threshold, folder = str(record["threshold"]), str(record.get("tested_data"))
    if Path(folder) not in sets:
        sets[Path(folder)] = open_segments(folder)
    data, sha256 = sets[Path(folder)], data_sha256(sets[Path(folder)])
    if record.get("tested_sha256") != sha256:
        raise ValueError(f"{path}: expected predictions on {folder} as it is now, found others; {AGAIN}")
    first, known = sets.setdefault(record["tested_on"], (path, sha256))
    if known != sha256:
        found = "some on another set of that name; remove those of one, and prepare it with another --name"
        raise ValueError(f"{path}: expected predictions on the set of {first}, found {found}")
    labels = folds.labels(data.table, record["target"], threshold)
    test, what = np.flatnonzero(labels >= 0), f"rated segments of {folder}"
    return read_checked(path, numbers(data.table), record["fold"], test, labels, what, threshold)


def differing_flags(model: Model, of_folds: list[dict]) -> str:
    """The flags in which the records of a model's folds differ: "--lr (0.001, 0.0003), pretrain.py's --extra"."""
    found = []
    flags = {(stage, name) for each in of_folds for stage, flags in each["flags"].items() for name in flags}
    for stage, name in sorted(flags):
        different = dict.fromkeys(str(each["flags"].get(stage, {}).get(name)) for each in of_folds)
        if len(different) > 1 and (name == "extra" or name not in (*records.FREE_FLAGS, "fold")):
            whose = "" if f"{stage}.py" == SCRIPTS[model.family] else f"{stage}.py's "
            shown = "" if name == "extra" else f" ({', '.join(different)})"  # paths, or hashes of the sets
            found.append(f"{whose}--{name.replace('_', '-')}{shown}")
    return ", ".join(found)


def priors(run: Run, parts: dict, targets: set[str]) -> dict:
    """Model -> target -> predictions of the PRIORS, over every fold with ratings of these targets."""
    table, found = numbers(run.data.table), {}
    groups = np.zeros(len(run.data.table), int), table["subject"], folds.units(run.data.table, "video")
    for model, group in zip(PRIORS, groups):
        for (fold, target), (labels, train, test) in parts.items():
            if target in targets:
                high = scores.prior(labels[train], group[train], group[test])
                found.setdefault(model, {}).setdefault(target, []).append(pack(table, fold, test, labels[test], high))
    return {model: join(targets) for model, targets in found.items()}


def fusion_rules(models: dict) -> tuple[dict, list[str]]:
    """Model -> target -> predictions of the fusion rules that need no training, over the folds that the models of all
    fused modalities predict; and notes on modalities for which they had to be left out."""
    singles, found, notes = [Model("network", (name,)) for name in FUSED], {}, []
    for target in TARGETS:
        there = [models[single][target] for single in singles if target in models.get(single, {})]
        missing = [single.label for single in singles if target not in models.get(single, {})]
        if len(there) > 1 and missing:
            notes.append(f"fusion rules, {target}: left out, for there are no predictions of {', '.join(missing)}")
        if len(there) < 2 or missing:
            continue
        # The folds that all predict, and in each the same segments in the same order.
        there = scores.in_common(there)
        for rule, fuse in scores.RULES.items() if len(there[0]) else ():
            fused = there[0].copy()
            fused["probability"] = fuse(np.stack([each["probability"] for each in there]))
            found.setdefault(Model("rule", FUSED, rule=rule), {})[target] = fused
    return found, notes
