"""A run: one data set, its folds and the settings that all of its scripts share, kept in run.json and folds.npy."""

import argparse
import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import paper
from common.files import load_array, only_writer, read_json, write_atomically, write_json
from common.script import add_trust_flag, positive
from protocol.folds import DROPPED, NO_FOLD, SPLITS, assign_folds, deal, labels, rated
from protocol.folds import share_of_trials, shuffle_within_subject, strata, units
from protocol.records import Model
from protocol.segments import Segments, data_sha256, open_segments

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
        """Write folds.npy and run.json, unless an earlier script did; called once every check has passed.

        Raises ValueError where another script has begun this run meanwhile, with other settings."""
        path = self.folder / "run.json"
        with only_writer(path, wait=True):
            if path.exists():
                check_settings(path, self.settings)
                return
            write_atomically(self.folder / "folds.npy", lambda file: np.save(file, self.folds))
            write_json(path, self.settings)

    @functools.cached_property
    def dealt_by(self) -> tuple[np.ndarray, np.ndarray]:
        """The unit and the stratum (n,) of each segment."""
        return units(self.data.table, self.settings["split"]), strata(self.data.table)

    def split(self, fold: int) -> dict[str, np.ndarray]:
        """Rows (int64) of `train`, `validation`, `test` and `pretrain`, each in order.

        `train`, `validation` and `test` hold units with a rated segment; `pretrain` is `train` and the units without a
        rating. Validation is a part, drawn at random, of the `validation_parts` that the units left after the test fold
        are dealt to. Where no segment of the set has a rating, `test` is empty, and all units are divided between
        training and validation. Raises ValueError where a part would be empty."""
        unit, stratum = self.dealt_by
        is_rated = (self.folds >= 0).any()
        rest = np.flatnonzero((self.folds >= 0) & (self.folds != fold) if is_rated else self.folds != DROPPED)
        random = np.random.default_rng([self.settings["fold_seed"], fold])
        parts = deal(unit[rest], stratum[rest], self.settings["validation_parts"], random)
        validation = parts == random.choice(np.unique(parts))  # not the first, which holds the largest unit
        train, free = rest[~validation], np.flatnonzero((self.folds == NO_FOLD) & is_rated)
        rows = {
            "train": train,
            "validation": rest[validation],
            "test": np.flatnonzero(self.folds == fold),
            "pretrain": np.sort(np.concatenate([train, free])),
        }
        for name in ("train", "validation", "test"):
            if len(rows[name]) == 0 and (is_rated or name != "test"):
                raise ValueError(
                    f"{self.folder}: no {name} segments in fold {fold}; use a finer --split (segment is the finest) or "
                    "another --n-folds, or more data"
                )
        return rows

    def labelled(self, fold: int, target: str, model: Model) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The rated rows of `train`, `validation` and `test` for `model`, and the labels (n,) int8 of all rows.

        model.shuffle_labels: the labels of training and validation are dealt anew by `shuffle_within_subject`; those of
        the test stay true. model.label_fraction: `train` is what `share_of_trials` leaves of it; the threshold stays.
        Both are drawn from the run's seed and the fold. Raises ValueError like `check_classes`."""
        table, seed = self.data.table, self.settings["seed"]
        if not (self.folds >= 0).any():
            raise ValueError(f"--data: no segment has a rating; give a set with {' or '.join(paper.TARGETS)}")
        rows = self.split(fold)
        labels = self.labels(target, rows["train"])
        parts = {name: rated(labels, rows[name]) for name in ("train", "validation", "test")}
        if model.shuffle_labels:
            seen = np.concatenate([parts["train"], parts["validation"]])
            labels = shuffle_within_subject(table, labels, seen, np.random.default_rng([seed, fold, 1]))
        if model.label_fraction < 1:
            random = np.random.default_rng([seed, fold, 2])
            parts["train"] = share_of_trials(table, labels, parts["train"], model.label_fraction, random)
        self.check_classes(fold, target, model, parts, labels)
        counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
        print(f"fold {fold}, {target}: {counts} segments")
        return parts, labels

    def check_classes(self, fold: int, target: str, model: Model, parts: dict, labels: np.ndarray) -> None:
        """ValueError where a part has no rating, or training one class alone; a note where another part has one."""
        for name, part in parts.items():
            found = np.unique(labels[part])
            if len(found) == 2:
                continue
            what = f"only {('low', 'high')[found[0]]} {target} labels" if len(found) else f"no {target} rating"
            problem = f"{self.data.folder}/segments.npy: {what} in the {name} part of fold {fold}"
            if name == "train" or len(found) == 0:
                fewer = " --label-fraction," * (model.label_fraction < 1)
                raise ValueError(f"{problem}; use another{fewer} --split, --threshold or --fold-seed")
            print(f"note: {problem}")

    def labels(self, target: str, train: np.ndarray) -> np.ndarray:
        """(n,) int8 labels of `target`: 1 high, 0 low, -1 unrated. `train` (rows) serves the threshold `train`."""
        return labels(self.data.table, target, self.settings["threshold"], train)


def add_flags(parser) -> None:
    """The flags of a run; those left out are taken from run.json, else from SETTINGS."""
    parser.add_argument("--run", type=Path, default=Path("runs/paper"), help="folder of the run (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="prepared set with ratings (default: the run's, else data/amigos)")
    add_trust_flag(parser)
    group = parser.add_argument_group("folds and labels (default: what run.json says; in a new run, as below)")
    group.add_argument("--split", choices=SPLITS, help="unit kept apart by the folds (default: segment; assumed)")
    group.add_argument("--n-folds", type=int, metavar="N", help="folds (default: 10; paper 5)")
    whole = positive(int, zero=True)
    group.add_argument("--fold-seed", type=whole, metavar="N", help="seed of the folds (default: 0; assumed)")
    what = "validation is one part in N of what is left after the test fold (default: 9; assumed)"
    group.add_argument("--validation-parts", type=positive(int), metavar="N", help=what)
    what = "high is above: global, train or subject mean rating, or a number (default: global; assumed)"
    group.add_argument("--threshold", type=threshold_flag, metavar="T", help=what)
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
    kinds = {**dict.fromkeys(("data", *HASHED), str), **{name: type(value) for name, value in SETTINGS.items()}}
    return read_json(path, kinds, "use another --run")


def check_settings(path: Path, settings: dict) -> None:
    """ValueError where run.json says something else than `settings`, but for where the data are."""
    known = read_run(path)
    for name, found in settings.items():
        if name != "data" and known[name] != found:
            gives = f"{HASHED.get(name)} than {settings['data']} gives"
            clash = gives if name in HASHED else f"{known[name]}, found {found}"
            flag = "" if name in HASHED else f"--{name.replace('_', '-')} "
            other = f", or --data {known['data']}" if name.startswith("data") else ""
            raise ValueError(f"{path}: this run was started with {flag}{clash}; use another --run{other}")


def resolve_flags(args) -> None:
    """Fill in the run's flags that the user left out, from run.json where there is one.

    Raises ValueError for a --fold that the run does not have."""
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

    Raises ValueError where the flags, the data or folds.npy differ from what the run was started with."""
    data = open_segments(args.data, trust=getattr(args, "trust_data", False))
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
        check_settings(path, settings)
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
