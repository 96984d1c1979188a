"""Who may be seen when: folds, labels, and the guard against leaks.

A *unit* is what is never shared between training, validation and test: the segment itself (`segment`, the reading
that the paper's intervals fit), a fifth of a trial (`block`), the trial, the video or the
subject. Units that hold a rated segment are dealt to the folds; the others take part in pre-training alone.
"""

import argparse
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import paper
from common.files import load_array, write_atomically, write_json
from protocol.segments import Segments, open_segments

SPLITS = ("segment", "block", "trial", "video", "subject")
BLOCKS = 5
NO_FOLD = -1  # the unit holds no rated segment
DROPPED = -2  # between two blocks of a trial: in no part, so that neighbours never touch
SETTINGS = {  # what a run is made of besides its data, and the defaults
    "split": "segment",
    "n_folds": paper.N_FOLDS,
    "fold_seed": 0,
    "validation_parts": paper.VALIDATION_PARTS,
    "threshold": "global",
    "seed": 0,
}
HASHED = {  # what else two scripts of a run must agree on, and how a difference is called
    "data_set": "another data set",
    "folds_sha256": "other folds",
    "data_sha256": "other segments, pre-processing or recordings",
}


@dataclass(frozen=True)
class Run:
    """One run: a data set, its folds and the settings that every script of the run shares."""

    folder: Path
    settings: dict  # SETTINGS and the hashes
    data: Segments
    folds: np.ndarray  # (n,) int8: the fold in which a segment is tested, NO_FOLD or DROPPED

    @property
    def identity(self) -> dict:
        """What a checkpoint must agree with to belong to this run. The threshold matters only where labels are used."""
        return {key: value for key, value in self.settings.items() if key not in ("data", "threshold")}

    def start(self) -> None:
        """Write folds.npy and run.json, unless an earlier script did; called once every check has passed."""
        path = self.folder / "run.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "folds.npy", lambda file: np.save(file, self.folds))
            write_json(path, self.settings)

    def split(self, fold: int) -> dict[str, np.ndarray]:
        """Rows (int64) of `train`, `validation`, `test` and `pretrain`, each in order.

        `train`, `validation` and `test` hold units with a rated segment; `pretrain` is `train` and the units
        without a rating. The validation units are a part, drawn at random, of the `validation_parts` that those left
        after the test fold are dealt to (one unit where there are fewer units than parts).
        Raises ValueError where a part would be empty.
        """
        table = self.data.table
        unit, stratum = units(table, self.settings["split"]), strata(table)
        rest = np.flatnonzero((self.folds >= 0) & (self.folds != fold))
        random = np.random.default_rng([self.settings["fold_seed"], fold])
        parts = deal(unit[rest], stratum[rest], self.settings["validation_parts"], random)
        validation = parts == random.choice(np.unique(parts))  # not the first, which holds the largest unit
        train, free = rest[~validation], np.flatnonzero(self.folds == NO_FOLD)
        rows = {
            "train": train,
            "validation": rest[validation],
            "test": np.flatnonzero(self.folds == fold),
            "pretrain": np.sort(np.concatenate([train, free])),
        }
        for name in ("train", "validation", "test"):
            if len(rows[name]) == 0:
                raise ValueError(
                    f"{self.folder}: no {name} segments in fold {fold}; use another --n-folds or --split, or more data"
                )
        return rows

    def labelled(
        self,
        fold: int,
        target: str,
        shuffle_labels: bool = False,
        label_fraction: float = 1.0,
        leave_out: list | None = None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The rated rows of `train`, `validation` and `test`, and the labels (n,) int8 of all rows.

        shuffle_labels: those of training and validation are dealt anew by `shuffle_within_subject`, those of the test
        stay true. label_fraction: `train` is what `share_of_trials` leaves of it; the threshold is still the one that
        all ratings give, so that each fraction is tested on the same labels. Both are drawn from the run's seed and
        the fold. leave_out [J, K]: `train` is without its part J of K (`training_parts`). Raises ValueError where a
        part has no rating or training knows one class only; says where another part does.
        """
        table, seed = self.data.table, self.settings["seed"]
        rows = self.split(fold)
        labels = self.labels(target, rows["train"])
        parts = {name: rated(labels, rows[name]) for name in ("train", "validation", "test")}
        if shuffle_labels:
            seen = np.concatenate([parts["train"], parts["validation"]])
            labels = shuffle_within_subject(table, labels, seen, np.random.default_rng([seed, fold, 1]))
        if label_fraction < 1:
            random = np.random.default_rng([seed, fold, 2])
            parts["train"] = share_of_trials(table, labels, parts["train"], label_fraction, random)
        if leave_out:
            left_out, among = leave_out
            parts["train"] = parts["train"][self.training_parts(fold, parts["train"], among) != left_out]
        for name, part in parts.items():
            found = np.unique(labels[part])
            if len(found) == 2:
                continue
            what = f"only {('low', 'high')[found[0]]} {target} labels" if len(found) else f"no {target} rating"
            problem = f"{self.data.folder}/segments.npy: {what} in the {name} part of fold {fold}"
            if name == "train" or len(found) == 0:
                fewer = " --label-fraction," * (label_fraction < 1) + " --leave-out," * bool(leave_out)
                raise ValueError(f"{problem}; use another{fewer} --split, --threshold or --fold-seed")
            print(f"note: {problem}")
        counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
        print(f"fold {fold}, {target}: {counts} segments")
        return parts, labels

    def training_parts(self, fold: int, train: np.ndarray, parts: int) -> np.ndarray:
        """(n,) part 0..parts-1 of each of the rows `train`, dealt like the folds: whole units of the split.

        Drawn from fold_seed and the fold. Raises ValueError where there are fewer units than parts.
        """
        table, split = self.data.table, self.settings["split"]
        unit = units(table, split)[train]
        found = len(np.unique(unit))
        if found < parts:
            raise ValueError(
                f"{self.data.folder}/segments.npy: expected {parts} units of --split {split} or more in the train part "
                f"of fold {fold}, found {found}; use fewer parts"
            )
        return deal(unit, strata(table)[train], parts, np.random.default_rng([self.settings["fold_seed"], fold, parts]))

    def labels(self, target: str, train: np.ndarray) -> np.ndarray:
        """(n,) int8 labels of `target`: 1 high, 0 low, -1 unrated. `train` (rows) serves the threshold `train`."""
        return labels(self.data.table, target, self.settings["threshold"], train)


def trials(table: np.ndarray) -> np.ndarray:
    """(n,) number of the trial that each segment belongs to; a trial name is unique within its subject."""
    return np.unique(table[["subject", "trial"]], return_inverse=True)[1].reshape(-1)


def units(table: np.ndarray, split: str) -> np.ndarray:
    """(n,) number of the unit that each segment belongs to; -1 for the segment dropped between two blocks."""
    if split == "segment":
        return np.arange(len(table))
    if split in ("subject", "video"):
        return np.unique(table[split], return_inverse=True)[1].reshape(-1)
    trial = trials(table)
    if split == "trial":
        return trial
    unit = np.full(len(table), -1)
    for number in range(trial.max() + 1):
        rows = np.flatnonzero(trial == number)
        rows = rows[np.argsort(table["start"][rows])]
        # Fifths; fewer in a short trial, where dropping the borders would leave fifths empty.
        blocks = np.array_split(rows, min(BLOCKS, (len(rows) + 1) // 2))
        for place, block in enumerate(blocks):
            unit[block[:-1] if place < len(blocks) - 1 else block] = BLOCKS * number + place
    return unit


def strata(table: np.ndarray) -> np.ndarray:
    """(n,) number of the combination of both labels (threshold `global`), by which folds are balanced."""
    arousal, valence = (labels(table, target, "global") for target in paper.TARGETS)
    return 3 * (arousal.astype(int) + 1) + valence + 1


def deal(unit: np.ndarray, stratum: np.ndarray, parts: int, random: np.random.Generator) -> np.ndarray:
    """(n,) part 0..parts-1 of each segment: whole units, in random order and the largest first, each to the part
    that has the fewest segments of its stratum, then the fewest segments."""
    _, first, index, sizes = np.unique(unit, return_index=True, return_inverse=True, return_counts=True)
    pure = np.bincount(index, weights=stratum != stratum[first][index]) == 0
    unit_stratum = np.where(pure, stratum[first], 9)  # 9: a unit of mixed labels
    order = random.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    in_stratum, total = np.zeros((10, parts)), np.zeros(parts)
    part_of_unit = np.zeros(len(sizes), dtype=int)
    for number in order:
        counts = in_stratum[unit_stratum[number]]
        part = np.lexsort((total, counts))[0]
        part_of_unit[number] = part
        counts[part] += sizes[number]
        total[part] += sizes[number]
    return part_of_unit[index.reshape(-1)]


def assign_folds(table: np.ndarray, split: str, n_folds: int, fold_seed: int) -> np.ndarray:
    """(n,) int8: the fold in which each segment is tested, NO_FOLD or DROPPED.

    Raises ValueError where fewer units hold a rating than there are folds.
    """
    if not 2 <= n_folds <= 127:
        raise ValueError(f"--n-folds: expected 2 to 127, found {n_folds}")
    unit = units(table, split)
    is_rated = ~np.isnan(table["arousal"]) | ~np.isnan(table["valence"])
    dealt = (unit >= 0) & np.isin(unit, unit[is_rated])
    found = len(np.unique(unit[dealt]))
    if found == 0:
        raise ValueError("--data: no segment has a rating; give a set with arousal or valence")
    if found < n_folds:
        raise ValueError(f"--n-folds {n_folds}: --split {split} has only {found} units with a rating; use fewer folds")
    folds = np.where(unit >= 0, NO_FOLD, DROPPED).astype(np.int8)
    folds[dealt] = deal(unit[dealt], strata(table)[dealt], n_folds, np.random.default_rng(fold_seed))
    return folds


def labels(table: np.ndarray, target: str, threshold: str, train: np.ndarray | None = None) -> np.ndarray:
    """(n,) int8: 1 where the rating of `target` is above the threshold, 0 where it is not, -1 where unrated.

    threshold: `global`, the mean over all rated trials (assumed; "the average value", paper 4.1); `train`, the same
    over the trials of the rows `train`; `subject`, the mean over the subject's own trials; or a number.
    """
    rating = table[target].astype(float)
    _, first = np.unique(trials(table), return_index=True)
    if threshold == "train":
        train_trials = trials(table)[train]
        first = train[np.unique(train_trials, return_index=True)[1]]
    if threshold == "subject":
        limit = np.full(len(table), np.nan)
        for subject in np.unique(table["subject"]):
            of_trials = rating[first][table["subject"][first] == subject]
            if not np.isnan(of_trials).all():
                limit[table["subject"] == subject] = np.nanmean(of_trials)
    elif threshold in ("global", "train"):
        of_trials = rating[first]
        limit = of_trials[~np.isnan(of_trials)].mean() if not np.isnan(of_trials).all() else np.nan
    else:
        limit = np.float32(threshold)  # as ratings are kept: 5.3 is not above 5.3
    return np.where(np.isnan(rating), -1, rating > limit).astype(np.int8)


def shuffle_within_subject(
    table: np.ndarray, labels_: np.ndarray, rows: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """`labels_` (n,) with those of `rows` (rated) dealt anew among the trials of each subject.

    The segments of a trial keep one label between them, and the trials of a subject the same number of each label. So
    a model can still learn how often a subject says high, but nothing of what the signals of a trial say: where a split
    puts segments of a trial into both training and test, recognising the trial brings its shuffled label, which is
    right as often as the subject's share of that label and no more.
    """
    shuffled, trial = labels_.copy(), trials(table)
    for subject in np.unique(table["subject"][rows]):
        own = rows[table["subject"][rows] == subject]
        _, first, index = np.unique(trial[own], return_index=True, return_inverse=True)
        shuffled[own] = random.permutation(labels_[own][first])[index]
    return shuffled


def share_of_trials(
    table: np.ndarray, labels_: np.ndarray, rows: np.ndarray, fraction: float, random: np.random.Generator
) -> np.ndarray:
    """Those of `rows` (rated) that lie in a `fraction` of their trials, the same share of the low and of the high ones.

    The same `random` gives nested shares: the trials of 0.1 are among those of 0.3. Whole trials are drawn under every
    split; under one that shares trials between training and test, the test then also holds segments of trials that
    training has no label of. Raises ValueError where no trial of a class would be left.
    """
    trial, chosen = trials(table)[rows], []
    for label, name in enumerate(("low", "high")):
        of_class = random.permutation(np.unique(trial[labels_[rows] == label]))
        count = round(fraction * len(of_class))
        if len(of_class) and count == 0:
            raise ValueError(
                f"--label-fraction {fraction:g}: expected at least one trial of each class, found none of the "
                f"{len(of_class)} {name} ones of training; use a larger fraction"
            )
        chosen.append(of_class[:count])
    return rows[np.isin(trial, np.concatenate(chosen))]


def rated(labels_: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those of `rows` that carry a label."""
    return rows[labels_[rows] >= 0]


def add_flags(parser) -> None:
    """Flags shared by every script of a run; those left out are taken from run.json, else from SETTINGS."""
    group = parser.add_argument_group("run (default: what run.json says; in a new run, as below)")
    group.add_argument("--run", type=Path, default=Path("runs/paper"), help="folder of the run (default: %(default)s)")
    group.add_argument("--data", type=Path, help="prepared data set with ratings (default: data/amigos)")
    group.add_argument("--split", choices=SPLITS, help="unit kept apart by the folds (default: segment; assumed)")
    group.add_argument("--n-folds", type=int, metavar="N", help="folds (default: 10; paper 5)")
    whole = paper.positive(int, zero=True)
    group.add_argument("--fold-seed", type=whole, metavar="N", help="seed of the folds (default: 0; assumed)")
    group.add_argument(
        "--validation-parts",
        type=paper.positive(int),
        metavar="N",
        help="validation is one part in N of what is left after the test fold (default: 9; assumed)",
    )
    group.add_argument(
        "--threshold",
        type=threshold_flag,
        help="high is above: global, train or subject mean rating, or a number (default: global; assumed)",
    )
    group.add_argument("--seed", type=whole, metavar="N", help="seed of the training (default: 0; assumed)")


def threshold_flag(text: str) -> str:
    """The argparse type of --threshold."""
    if text not in ("global", "train", "subject"):
        try:
            text = repr(float(text))
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected global, train, subject or a number, found {text}")
    return text


def read_run(path: Path) -> dict:
    """What run.json says; ValueError where it is damaged."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found {error}; use another --run")
    kinds = {**dict.fromkeys(("data", *HASHED), str), **{name: type(value) for name, value in SETTINGS.items()}}
    for key, kind in kinds.items():
        found = content.get(key) if isinstance(content, dict) else None
        if type(found) is not kind:
            raise ValueError(f"{path}: expected {key} as {kind.__name__}, found {found!r}; use another --run")
    return content


def resolve_flags(args) -> None:
    """Fill in the run's flags that the user left out, from run.json where there is one.

    Raises ValueError for a --fold that the run does not have.
    """
    path = args.run / "run.json"
    known = read_run(path) if path.exists() else {"data": "data/amigos", **SETTINGS}
    for name, value in known.items():
        if hasattr(args, name) and getattr(args, name) is None:
            setattr(args, name, Path(value) if name == "data" else value)
    chosen = getattr(args, "fold", None)
    for fold in [chosen] if isinstance(chosen, int) else chosen or []:
        if fold >= args.n_folds:
            raise ValueError(f"--fold {fold}: expected 0 to {args.n_folds - 1}, as the run has {args.n_folds} folds")


def open_run(args) -> Run:
    """Open the run of `args` (resolved), which may be a new one; with --validation-only, without the fold's test rows.

    Raises ValueError where the flags, the data or folds.npy differ from what the run was started with.
    """
    data = open_segments(args.data)
    folds = assign_folds(data.table, args.split, args.n_folds, args.fold_seed)
    settings = {
        "data": str(args.data),
        "data_set": data.manifest["dataset"],
        **{name: getattr(args, name) for name in SETTINGS},
        "data_sha256": data_sha256(data),
        "folds_sha256": hashlib.sha256(folds.tobytes()).hexdigest(),
    }
    path, folds_path = args.run / "run.json", args.run / "folds.npy"
    if path.exists():
        known = read_run(path)
        for name, found in settings.items():
            if name != "data" and known[name] != found:
                clash = f"{HASHED[name]} than {args.data} gives" if name in HASHED else f"{known[name]}, found {found}"
                flag = "" if name in HASHED else f"--{name.replace('_', '-')} "
                other = f", or --data {known['data']}" if name.startswith("data") else ""
                raise ValueError(f"{path}: this run was started with {flag}{clash}; use another --run{other}")
        stored = load_array(folds_path, "use another --run")
        if stored.dtype != folds.dtype or not np.array_equal(stored, folds):
            raise ValueError(
                f"{folds_path}: expected the folds of --split {args.split} --fold-seed {args.fold_seed}, found others; "
                "the file was changed: use another --run"
            )
    run = Run(args.run, settings, data, folds)
    if getattr(args, "validation_only", None):
        run = replace(run, data=replace(data, hidden=run.split(args.fold)["test"]))
    return run


def data_sha256(data: Segments) -> str:
    """One hash of the segments, of their pre-processing and of the recordings they were cut from."""
    recordings = sorted(source["sha256"] for source in data.manifest["sources"])
    return hashlib.sha256("".join([data.segments_sha256, data.preprocessing_sha256, *recordings]).encode()).hexdigest()


def check_leaks(run: Run, rows: dict[str, np.ndarray], extra: list[Segments]) -> None:
    """Stop with ValueError if pre-training would see a unit of the fold's test or validation part.

    Looks at the units among the run's own rows, and at source files (by SHA-256) and trials, subjects or videos (of a
    set of the same name) among the extra sets, of which no two may share a file.
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
        for source in other.manifest["sources"]:
            if taken.setdefault(source["sha256"], other) is not other:
                raise ValueError(
                    f"{other.folder}: its source {source['file']} is also in {taken[source['sha256']].folder}; leave "
                    "one of the two out of --extra"
                )
            if source["sha256"] in held_files:
                raise ValueError(
                    f"{other.folder}: its source {source['file']} is the file {held_files[source['sha256']]} of "
                    f"{run.data.folder}, which holds validation or test segments; leave this set out of --extra"
                )
        if other.manifest["dataset"] == manifest["dataset"]:
            both = held_trials & {tuple(row) for row in other.table[["subject", "trial"]].tolist()}
            if both:
                raise ValueError(
                    f"{other.folder}: subject and trial {' '.join(sorted(both)[0])} of {manifest['dataset']} are held "
                    "out for validation or test; leave this set out of --extra"
                )
            split = run.settings["split"]
            same = np.intersect1d(table[split][held_out], other.table[split]) if split in ("subject", "video") else []
            if len(same):
                raise ValueError(
                    f"{other.folder}: {split} {same[0]} of {manifest['dataset']} is held out for validation or test; "
                    "leave this set out of --extra"
                )


def open_test_sets(
    run: Run, folders: list[Path], target: str, extra_sources: list[str]
) -> list[tuple[Segments, np.ndarray, np.ndarray]]:
    """Other labelled sets that a model of the run is tested on: (data, rated rows, labels (n,) int8 of all rows) each.

    Labels follow the run's threshold, applied to the other set's ratings alone. extra_sources: the SHA-256 of the
    recordings that the model was pre-trained on besides the run's own. Raises ValueError where a set has no rating, or
    holds one of these or of the run's, where two bear one name, or the threshold is the mean of the run's training
    part.
    """
    if folders and run.settings["threshold"] == "train":
        raise ValueError(
            "--test-data: expected --threshold global, subject or a number, found train, which is the mean of this "
            "run's training part and has no counterpart in another set; use another --run"
        )
    own, names, sets = {source["sha256"]: source["file"] for source in run.data.manifest["sources"]}, {}, []
    for folder in folders:
        data = open_segments(folder)
        name = data.manifest["dataset"]
        if name == run.settings["data_set"]:
            raise ValueError(f"{folder}: is {name}, the data set of {run.data.folder}; leave it out of --test-data")
        for source in data.manifest["sources"]:
            if source["sha256"] in own:
                raise ValueError(
                    f"{folder}: its source {source['file']} is the file {own[source['sha256']]} of {run.data.folder}, "
                    "which this run trains on; leave it out of --test-data"
                )
            if source["sha256"] in extra_sources:
                raise ValueError(
                    f"{folder}: the model was pre-trained on {source['file']} (pretrain.py --extra), so nobody in it "
                    "is new to the model; leave it out of --test-data, or pre-train another --run without it"
                )
        if name in names:
            raise ValueError(f"{folder}: is {name}, as is {names[name]}; give one of them to --test-data at a time")
        names[name] = folder
        found = labels(data.table, target, run.settings["threshold"])
        rows = rated(found, np.arange(len(found)))
        if len(rows) == 0:
            raise ValueError(f"{folder}/segments.npy: no {target} rating; leave it out of --test-data")
        sets.append((data, rows, found))
    return sets
