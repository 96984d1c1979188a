"""What a model is called and what it is made of: written once for checkpoints, predictions and tables.

Beside every file of predictions (.npy) lies its record (.json): the fields of `Model`, the fold, the target, the
settings and hashes of the run, and the SHA-256 of every parent, a file that the model was made from. The name of a file
is a function of its record, and is never parsed back."""

import argparse
import hashlib
import json
import platform
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from common.files import load_array, read_json, sha256_of_file, write_atomically, write_json
from paper import MODALITIES

PREDICTION_DTYPE = np.dtype([("segment", "i8"), ("label", "i1"), ("probability", "f4")])
AGAIN = "remove it and call the script that wrote it again"
FREE_FLAGS = (  # flags that may change when a training goes on; they do not change its result
    *("run", "data", "extra", "test_data", "device", "threads", "checkpoint_minutes"),
    *("fresh", "print_flags", "hyperparameters", "validation_only", "trust_data"),
)
HASHED = {  # how a difference in what is kept as a hash is called
    "data_sha256": "was made of other segments, pre-processing or recordings",
    "folds_sha256": "was made with other folds",
    "rows_sha256": "was made with other training, validation or test segments",
    "extra_sha256": "was pre-trained with other sets as --extra",
    "tested_sha256": "was made on another set of that name, or on this one prepared otherwise",
}
# What each line of a pre-training's log holds besides its losses: training/mvp_baselines.py, training/watch.py.
TO_BEAT = ("zero", "line", "linear")
WATCHED = ("q", "k", "v", "out", "ffn", "cnn", "cls", "cls_output", "mean_token")
RECORD_KEYS = {"fold": int, "target": str, "parents": dict, "flags": dict, "predictions_sha256": str}
MAY_CHANGE = ("checkpoint_sha256", "tested_data", "versions")  # a change in these writes predictions again, or nothing


@dataclass(frozen=True)
class Model:
    """A model in every fold and for every target: a line of each table, a folder and the start of a file's name."""

    family: str  # pretraining, network, fusion, classical, amigos, prior or rule
    modalities: tuple[str, ...] = ()  # whose signals it sees
    rule: str = ""  # of a prior, or of a fusion rule
    init: str = "pretrained"  # or random
    freeze: bool = False
    shuffle_labels: bool = False
    label_fraction: float = 1.0
    tested_on: str = ""  # the name of another labelled set

    @property
    def folder(self) -> str:
        """The folder of its files within a run."""
        if self.family in ("pretraining", "network"):
            return self.modalities[0]
        if self.family == "fusion":
            return "fused"
        several = {"classical": "both", "amigos": "fused"}
        return f"{self.family}-{self.modalities[0] if len(self.modalities) == 1 else several[self.family]}"

    @property
    def suffix(self) -> str:
        """What the names of its files have after the target: "", "-random", "-frozen-fraction0.1" ..."""
        return "".join(word for word, _ in self._differences())

    @property
    def label(self) -> str:
        """How tables call it: "EEG, no pre-training, 10 % of labels"."""
        return ", ".join([self._family_label(), *(words for _, words in self._differences())])

    def _differences(self) -> list[tuple[str, str]]:
        """What sets it apart from the model of the paper, in the names of files and in tables."""
        share = self.label_fraction
        found = {
            ("-random", "no pre-training"): self.init == "random",
            ("-frozen", "frozen"): self.freeze,
            ("-shuffled", "shuffled labels"): self.shuffle_labels,
            (f"-fraction{share:g}", f"{100 * share:g} % of labels"): share < 1,
            (f"@{self.tested_on}", f"on {self.tested_on}"): self.tested_on,
        }
        return [words for words, said in found.items() if said]

    def _family_label(self) -> str:
        rule = self.rule.capitalize()
        if self.family == "rule":
            return f"{rule} of {'both' if len(self.modalities) < 3 else 'all'}"
        if self.family == "prior":
            return f"{rule} {'class' if self.rule == 'majority' else 'prior'}"
        name = self.folder.rpartition("-")[2]
        name = MODALITIES[name].label if name in MODALITIES else {"gsr": "GSR"}.get(name, name)
        return {"classical": f"Classical {name}", "amigos": f"AMIGOS {name}", "fusion": "Fused"}.get(self.family, name)

    def path(self, run: Path, fold: int, target: str | None, ending: str) -> Path:
        """Its file for one fold and target: runs/paper/eeg/fold3/arousal-random.pt; of a pre-training pretrain.pt."""
        name = "pretrain" if self.family == "pretraining" else target + self.suffix
        return Path(run) / self.folder / f"fold{fold}" / (name + ending)

    @property
    def is_variant(self) -> bool:
        """Whether it is a control: not trained on all true labels of its run, or not tested on the run's own data."""
        return self.freeze or self.shuffle_labels or self.label_fraction < 1 or bool(self.tested_on)


def model_of(args: argparse.Namespace, family: str, modalities) -> Model:
    """The model that a script's flags ask for; a flag that the script does not have is taken at its default."""
    names = ("init", "freeze", "shuffle_labels", "label_fraction")
    return Model(family, tuple(modalities), **{name: getattr(args, name) for name in names if hasattr(args, name)})


def pretraining(modality: str) -> Model:
    """The masked value prediction of one modality."""
    return Model("pretraining", (modality,))


def parents(model: Model) -> list[Model]:
    """The trained models that a model is made from: a pre-training, or the single-modality models that are fused."""
    if model.family == "network" and model.init == "pretrained":
        return [pretraining(model.modalities[0])]
    if model.family == "fusion":
        return [replace(model, family="network", modalities=(each,)) for each in model.modalities]
    return []


def identity_of(run, model: Model, fold: int, target: str | None) -> dict:
    """The part of a record that the run and the flags alone give; run: a protocol.run.Run."""
    threshold = {"threshold": run.settings["threshold"]} if target else {}
    return plain({**asdict(model), "fold": fold, "target": target, **run.identity, **threshold})


def record_of(run, model: Model, fold: int, target: str | None, rows: dict, flags: dict | None = None, **more) -> dict:
    """The whole record of a model, before it is trained; FileNotFoundError where a file of its parents is missing.
    rows: part -> rows of segments.npy; flags: script -> flags of what was trained before; more: what else counts."""
    paths = [parent.path(run.folder, fold, target, ".pt") for parent in parents(model)]
    return {
        **identity_of(run, model, fold, target),
        "rows_sha256": {part: hashlib.sha256(own.tobytes()).hexdigest() for part, own in rows.items()},
        "parents": {path.relative_to(run.folder).as_posix(): sha256_of_file(path) for path in paths},
        "flags": flags or {},
        **plain(more),
    }


def plain(value):
    """The same as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value))


def model_of_record(record: dict) -> Model:
    """The model that a record speaks of; KeyError or TypeError where the record is damaged."""
    values = {field.name: record[field.name] for field in fields(Model)}
    values["modalities"] = tuple(values["modalities"])
    return Model(**values)


def check_record(path: Path, found: dict, expected: dict, advice: str) -> None:
    """ValueError, naming `path` and ending in `advice`, where a record has not all that is `expected` of it."""
    for key, value in expected.items():
        known = found.get(key)
        if known == value:
            continue
        if key == "parents":
            other = next((name for name in value if not known or known.get(name) != value[name]), "models")
            clash = f"was made from another {other} than there is now"
        elif key == "flags":
            ours, theirs = ({n: x for own in (side or {}).values() for n, x in own.items()} for side in (value, known))
            name = next((name for name in ours if theirs.get(name) != ours[name]), "flags")
            clash = f"was made with --{name.replace('_', '-')} {theirs.get(name)}, found {ours.get(name)}"
        else:
            shown = [" ".join(map(str, each)) if isinstance(each, list) else each for each in (value, known)]
            clash = HASHED.get(key, f"expected {key.replace('_', ' ')} {shown[0]}, found {shown[1]}")
        raise ValueError(f"{path}: {clash}; {advice}")


def check_parents(path: Path, record: dict, run: Path, script: str, sha256=sha256_of_file) -> None:
    """ValueError where a parent that is still there was trained again since; script: what makes the child anew."""
    for name, known in record["parents"].items():
        if (run / name).exists() and sha256(run / name) != known:
            raise ValueError(f"{path}: {run / name} was trained again since; call {script} again with --fresh")


def versions(*packages) -> dict:
    """The versions of what computed the numbers: of Python, NumPy and these packages."""
    found = {package.__name__: str(package.__version__) for package in (np, *packages)}
    return {"python": platform.python_version(), **found}


def read_predictions(path: Path, advice: str = AGAIN) -> np.ndarray:
    """The rows of a prediction file (PREDICTION_DTYPE); ValueError, ending in `advice`, where it is none."""
    predictions = load_array(path, advice)
    if predictions.dtype != PREDICTION_DTYPE or predictions.ndim != 1:
        found = f"{predictions.shape} of {predictions.dtype}"
        raise ValueError(f"{path}: expected rows of {PREDICTION_DTYPE}, found {found}; {advice}")
    return predictions


def parse_record(about: Path, advice: str) -> dict:
    """The record in the file `about`; ValueError, ending in `advice`, where it is damaged or of an older version."""
    record = read_json(about, RECORD_KEYS, advice)
    try:
        model_of_record(record).path(Path(), record["fold"], record["target"], ".npy")
    except (LookupError, TypeError) as error:
        raise ValueError(f"{about}: expected a model, found {error!r}: damaged, or of an older version; {advice}")
    return record


def read_record(path: Path) -> dict:
    """The record beside the predictions `path`; ValueError where it is damaged, or not the record of these bytes."""
    about = path.with_suffix(".json")
    record = parse_record(about, AGAIN)
    if sha256_of_file(path) != record["predictions_sha256"]:
        raise ValueError(f"{path}: not the predictions that {about} describes; {AGAIN}")
    return record


def is_written(path: Path, record: dict, fresh: bool = False) -> bool:
    """Whether an earlier call wrote the predictions `path` with this very record; ValueError where it is damaged, or of
    other flags, data, folds or parents."""
    about = path.with_suffix(".json")
    if fresh or not about.exists():
        return False
    found = parse_record(about, "use --fresh")
    kept = {name: value for name, value in record.items() if name not in MAY_CHANGE}
    advice = "use the same flags, --fresh, or another --run"
    if record["tested_on"]:
        advice = f"remove {path}, and it, or prepare one of the two with another --name"
    check_record(about, found, kept, advice)
    same = all(found.get(name) == record.get(name) for name in MAY_CHANGE if name != "versions")
    if not (same and path.exists() and sha256_of_file(path) == found["predictions_sha256"]):
        print(f"{path}: not as its .json describes it; written again")
        return False
    print(f"{path}: already done, nothing to do")
    return True


def read_log(path: Path) -> list[dict]:
    """The lines of a training's log, one an epoch, none where there is no log; ValueError for another line."""
    more = {"to_beat": TO_BEAT, "watch": WATCHED} if path.name == "pretrain.jsonl" else {}
    keys, lines = ("epoch", "train_loss", "validation_loss"), []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
        try:
            lines.append(json.loads(line))
            parts = [(lines[-1], keys), *((lines[-1][key], names) for key, names in more.items())]
            [float(part[name]) for part, names in parts for name in names]
        except (ValueError, TypeError, KeyError):
            wanted = ", ".join([*keys, *more])
            raise ValueError(f"{path}: line {number}: expected JSON with {wanted}, found {line[:40]!r}; remove the log")
    return lines


def write_predictions(path: Path, rows, labels: np.ndarray, probability: np.ndarray, record: dict) -> None:
    """Write predictions (segment, label, probability), one for each of `rows`, and then their record; labels: (n,) of
    all rows of segments.npy; probability: (len(rows),) of high."""
    predictions = np.empty(len(rows), PREDICTION_DTYPE)
    predictions["segment"], predictions["label"], predictions["probability"] = rows, labels[rows], probability
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: np.save(file, predictions))
    write_json(path.with_suffix(".json"), {**record, "predictions_sha256": sha256_of_file(path)})
    print(f"{path}: {len(rows)} test predictions")
