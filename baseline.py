"""What simple models reach on the very folds of a run, written as finetune.py writes its test predictions.

    python baseline.py --run runs/paper                                          # every fold, target and modality
    python baseline.py --run runs/paper --modality both --target arousal --fold 3

is logistic regression on band power, asymmetry and heart rate of the prepared segments, one prediction a segment:
runs/paper/classical-both/fold3/arousal.npy, and beside it arousal.json: what it was made from, the features, and what
was chosen. Imputation, scaling, selection and choices see training rows alone, those that the network's weights are
fitted on; the validation part is not used.

    python baseline.py --model amigos --raw ~/AMIGOS --run runs/people

is the baseline of AMIGOS (reference [6] of the paper): features of whole trials, taken from the files of AMIGOS, for it
uses 14 channels of EEG and skin resistance; the best by Fisher score; Gaussian naive Bayes; fused by the mean of the
three probabilities (assumed). Each segment gets its trial's probability. It needs a run that leaves one subject out:
--split subject --n-folds <number of subjects> --threshold subject. Features are z-scored over all trials of a subject,
those of the test subject included, without labels (assumed).
"""

import argparse
import itertools
import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import numpy as np
import scipy
import sklearn
import torch
from scipy.special import logit
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

import paper
from analysis import features
from common.files import sha256_of_file, write_json
from protocol import folds, records
from protocol.batches import SignalRows
from training import checkpoints, loop

MODALITIES = {"classical": ("eeg", "ecg", "both"), "amigos": ("eeg", "ecg", "gsr", "fused")}
HYPER_PARAMETERS = {"classical": ("regularisation", "inner_folds"), "amigos": ("n_features", "inner_folds")}
LABELS = ("model", "threshold", "shuffle_labels", "label_fraction")
SINGLE = {"both": ("eeg", "ecg"), "fused": ("eeg", "ecg", "gsr")}  # what the others are made of
BATCH = 256  # segments whose features are computed at once


def parse() -> argparse.Namespace:
    whole = paper.positive(int, zero=True)
    parser = paper.Parser(description=__doc__)
    parser.add_argument("--model", choices=MODALITIES, default="classical", help="default: %(default)s (assumed)")
    parser.add_argument(
        "--modality", nargs="+", help="eeg, ecg, both; of --model amigos eeg, ecg, gsr, fused (default: all; assumed)"
    )
    parser.add_argument(
        "--target",
        nargs="+",
        choices=paper.TARGETS,
        help="what to recognise (default: all that are rated; paper 3.2.2)",
    )
    parser.add_argument(
        "--fold", nargs="+", type=whole, metavar="K", help="test folds, counted from 0 (default: all; paper 5)"
    )
    parser.add_argument("--raw", type=Path, help="folder with the files of AMIGOS, for --model amigos")
    folds.add_flags(parser)
    group = parser.add_argument_group("labels of training, named in the files: arousal-shuffled.npy")
    records.add_label_flags(group)
    group = parser.add_argument_group("hyper-parameters")
    group.add_argument(
        "--regularisation",
        type=paper.positive(float),
        nargs="+",
        default=[1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0],
        metavar="C",
        help="inverse strengths to choose from by cross-validated log loss, for --model classical (default: 1e-4 to "
        "100; assumed)",
    )
    group.add_argument(
        "--n-features",
        type=paper.positive(int),
        nargs="+",
        default=[5, 10, 20, 40],
        metavar="N",
        help="numbers of features with the highest Fisher score, to choose from by cross-validated macro F1, for "
        "--model amigos (default: 5 10 20 40; assumed)",
    )
    group.add_argument(
        "--inner-folds",
        type=paper.positive(int, least=2),
        default=5,
        metavar="N",
        help="folds of the training rows by which that is chosen, of the run's unit (default: %(default)s; assumed)",
    )
    parser.add_argument("--fresh", action="store_true", help="start over, replacing what an earlier call wrote")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON; all else goes to stderr")
    parser.add_argument("--print-flags", action="store_true", help="print every resolved flag as JSON and stop")
    args = parser.parse_args()
    folds.resolve_flags(args)
    for modality in args.modality or ():
        if modality not in MODALITIES[args.model]:
            raise ValueError(f"--modality {modality}: expected {', '.join(MODALITIES[args.model])} for {args.model}")
    args.regularisation, args.n_features = sorted(set(args.regularisation)), sorted(set(args.n_features))
    args.fold = list(range(args.n_folds)) if args.fold is None else sorted(set(args.fold))
    if args.model == "amigos" and args.raw is None:
        raise ValueError("--model amigos: needs --raw, the folder with the files of AMIGOS")
    loop.stop_if_printing(args)
    return args


# ---- what is done already -------------------------------------------------------------------------------------------


def predictions_path(args: argparse.Namespace, modality: str, fold: int, target: str) -> Path:
    return args.run / f"{args.model}-{modality}" / f"fold{fold}" / f"{target}{records.suffix(args)}.npy"


def identity_of(args: argparse.Namespace, run: folds.Run, modality: str, fold: int, target: str) -> dict:
    """What predictions must agree with to be those of this call."""
    chosen = {name: getattr(args, name) for name in (*LABELS, *HYPER_PARAMETERS[args.model])}
    return {**run.identity, "fold": fold, "target": target, "modality": modality, **chosen}


def is_done(path: Path, identity: dict, fresh: bool) -> bool:
    """Whether an earlier call with the same flags wrote these predictions.

    The .json beside them is written last and holds their SHA-256, so a call that was killed in between starts over.
    Raises ValueError where it is damaged or of other flags, data or folds.
    """
    record = path.with_suffix(".json")
    if fresh or not record.exists():
        return False
    try:
        found = json.loads(record.read_text())
        known, sha256 = dict(found["identity"]), found["predictions_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{record}: expected the JSON of earlier predictions, found {error!r}; use --fresh")
    for name, value in identity.items():
        if known.get(name) != value:
            raise ValueError(
                f"{record}: predictions made with {name.replace('_', ' ')} {known.get(name)}, found {value}; "
                "use the same flags, --fresh, or another --run"
            )
    if not path.exists() or sha256_of_file(path) != sha256:
        print(f"{path}: not as its .json describes it; written again")
        return False
    print(f"{path}: already done, nothing to do")
    return True


def pending(args: argparse.Namespace, run: folds.Run, modalities, targets) -> dict[tuple[str, int], list[str]]:
    """(target, fold) -> modalities, of what is still to be done."""
    work = {}
    for target, fold, modality in itertools.product(targets, args.fold, modalities):
        identity = identity_of(args, run, modality, fold, target)
        if not is_done(predictions_path(args, modality, fold, target), identity, args.fresh):
            work.setdefault((target, fold), []).append(modality)
    return work


def split_work(args: argparse.Namespace, run: folds.Run, work: dict) -> dict[tuple[str, int], tuple]:
    """(target, fold) -> rows and labels, all before anything is written: any of them may be impossible."""
    labelled = [run.labelled(fold, target, args.shuffle_labels, args.label_fraction) for target, fold in work]
    return dict(zip(work, labelled))


def write(path: Path, rows: np.ndarray, labels: np.ndarray, logits: np.ndarray, record: dict) -> dict:
    """Write predictions and, last, the record beside them; returns the record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    loop.write_predictions(path, rows, labels, torch.from_numpy(logits))
    versions = {**checkpoints.versions(), "scipy": scipy.__version__, "scikit-learn": sklearn.__version__}
    record = {**record, "predictions_sha256": sha256_of_file(path), "versions": versions}
    write_json(path.with_suffix(".json"), record)
    return {"path": str(path), **record}


# ---- choosing on training rows --------------------------------------------------------------------------------------


def pipeline(*steps: tuple) -> Pipeline:
    """Imputation and scaling, then `steps`. Naive Bayes, too, needs scaled features: the variance that GaussianNB adds
    to each is a share of the largest."""
    impute = SimpleImputer(strategy="median", keep_empty_features=True)
    return Pipeline([("impute", impute), ("scale", StandardScaler()), *steps])


def choose(model: Pipeline, grid: dict, x: np.ndarray, y: np.ndarray, groups: np.ndarray, parts: int, score):
    """Fit `model` (x (n, F), y (n,)) with the values of `grid` that score best over folds of whole `groups` (n,).

    Returns the fitted model and the chosen values. Where no fold leaves both classes to train on, nothing can be
    chosen and the first values are taken, which is said.
    """
    parts = min(parts, len(np.unique(groups)))
    splits = list(GroupKFold(parts).split(x, y, groups)) if parts > 1 else []
    splits = [(train, test) for train, test in splits if len(np.unique(y[train])) == 2]
    first = {name: values[0] for name, values in grid.items()}
    if not splits:
        print(f"note: too few units in training to choose by; took {first}")
        return model.set_params(**first).fit(x, y), first
    search = GridSearchCV(model, grid, cv=splits, scoring=score).fit(x, y)
    return search.best_estimator_, search.best_params_


def negative_log_loss(model: Pipeline, x: np.ndarray, y: np.ndarray) -> float:
    """Of both classes, also where `y` holds one."""
    return -log_loss(y, model.predict_proba(x), labels=[0, 1])


# ---- logistic regression on prepared segments -----------------------------------------------------------------------


def segment_features(run: folds.Run, modality: str, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(len(rows), F) features of `eeg` or `ecg` segments, and their names."""
    signals = SignalRows([(run.data, rows)], modality)
    rate, channels = run.data.manifest["rate"], run.data.manifest["channels"][modality]
    batches, names = [], []
    places = np.array_split(np.arange(len(rows)), -(-len(rows) // BATCH))
    for batch in tqdm(places, desc=f"{modality} features", unit="batch", disable=None, leave=False):
        block = signals.batch(batch, "cpu").numpy().astype(float)
        if modality == "eeg":
            block, names = features.eeg_features(block, rate, channels)
        else:
            block, names = features.ecg_features(block, rate)
        batches.append(block)
    return np.concatenate(batches), names


def classical(args: argparse.Namespace, run: folds.Run, modalities: list[str], targets: list[str]) -> list[dict]:
    """Write the predictions of logistic regression that are not there yet; their records."""
    work = pending(args, run, modalities, targets)
    if not work:
        return []
    split = split_work(args, run, work)
    kinds = [kind for kind in paper.MODALITIES if any({kind, "both"} & set(asked) for asked in work.values())]
    ratings = np.stack([run.data.table[target] for target in targets])
    rows = np.flatnonzero(~np.isnan(ratings).all(axis=0) & (run.folds >= 0))
    by_kind, names = {}, {}
    for kind in kinds:
        found, names[kind] = segment_features(run, kind, rows)
        by_kind[kind] = np.full((len(run.data.table), found.shape[1]), np.nan)
        by_kind[kind][rows] = found
    if "ecg" in kinds and (without := int(np.isnan(by_kind["ecg"][rows, 0]).sum())):
        print(f"{without} of {len(rows)} ECG segments have too few beats: they get the training rows' medians")
    unit = folds.units(run.data.table, run.settings["split"])

    model = pipeline(("regression", LogisticRegression(max_iter=1000)))
    grid = {"regression__C": args.regularisation}
    run.start()
    records = []
    for (target, fold), asked in tqdm(work.items(), unit="fold", disable=None, leave=False):
        parts, labels = split[target, fold]
        train, test = parts["train"], parts["test"]
        for modality in asked:
            used = SINGLE.get(modality, (modality,))
            x = np.concatenate([by_kind[kind] for kind in used], axis=1)
            y, groups = labels[train], unit[train]
            fitted, chosen = choose(model, grid, x[train], y, groups, args.inner_folds, negative_log_loss)
            record = {
                "identity": identity_of(args, run, modality, fold, target),
                "chosen": {"regularisation": chosen["regression__C"]},
                "train_segments": len(train),
                "features": [f"{kind} {name}" for kind in used for name in names[kind]],
            }
            path = predictions_path(args, modality, fold, target)
            records.append(write(path, test, labels, fitted.decision_function(x[test]), record))
    return records


# ---- the AMIGOS baseline --------------------------------------------------------------------------------------------


def check_amigos(run: folds.Run) -> None:
    """ValueError unless the run leaves one subject of AMIGOS, or of a cohort in its layout, out at a time."""
    name, settings = run.data.manifest["dataset"], run.settings
    if name not in ("amigos", "simulated"):
        raise ValueError(f"{run.data.folder}: --model amigos expects the data set amigos or simulated, found {name}")
    subjects = [np.unique(run.data.table["subject"][run.folds == fold]) for fold in range(settings["n_folds"])]
    by_subject = settings["split"] == settings["threshold"] == "subject"
    if not by_subject or {len(found) for found in subjects} != {1}:
        rated = len(np.unique(run.data.table["subject"][run.folds >= 0]))
        raise ValueError(
            f"{run.folder}: --model amigos leaves one subject out and expects a run with --split subject --n-folds "
            f"{rated} --threshold subject, found --split {settings['split']} --n-folds {settings['n_folds']} "
            f"--threshold {settings['threshold']}; use another --run"
        )


def trial_features(raw: Path, run: folds.Run) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, list[str]]]:
    """The place (n,) of each rated segment's trial in the features, -1 of the others; kind -> (trials, F) features,
    z-scored by subject; kind -> their names."""
    table, manifest = run.data.table, run.data.manifest
    rated = np.flatnonzero(run.folds >= 0)
    keys, place = np.unique(table[["subject", "trial"]][rated], return_inverse=True)
    trial_of = np.full(len(table), -1)
    trial_of[rated] = place.reshape(-1)
    skip = manifest["preprocessing"].get("drop_baseline", 0.0)
    by_kind, names = features.amigos_trials(raw, manifest["sources"], [tuple(key) for key in keys.tolist()], skip)
    for kind, x in by_kind.items():
        if without := int(np.isnan(x).any(axis=1).sum()):
            print(f"{without} of {len(x)} trials lack {kind} features: they get the training trials' medians")
        for subject in np.unique(keys["subject"]):
            own = keys["subject"] == subject
            x[own] = features.z_score(x[own])
    return trial_of, by_kind, names


def amigos_baseline(args: argparse.Namespace, run: folds.Run, modalities: list[str], targets: list[str]) -> list[dict]:
    """Write the predictions of the AMIGOS baseline that are not there yet; their records."""
    check_amigos(run)
    work = pending(args, run, modalities, targets)
    if not work:
        return []
    split = split_work(args, run, work)
    trial_of, by_kind, names = trial_features(args.raw, run)
    model = pipeline(("select", SelectKBest(features.fisher_score)), ("bayes", GaussianNB()))
    run.start()
    records = []
    for (target, fold), asked in tqdm(work.items(), unit="fold", disable=None, leave=False):
        parts, labels = split[target, fold]
        trials, first = np.unique(trial_of[parts["train"]], return_index=True)
        rows = parts["train"][first]  # one segment of each training trial
        probability, chosen = {}, {}
        for kind in SINGLE["fused"] if "fused" in asked else asked:
            x = by_kind[kind]
            grid = {"select__k": sorted({min(count, x.shape[1]) for count in args.n_features})}
            subject = run.data.table["subject"][rows]
            fitted, best = choose(model, grid, x[trials], labels[rows], subject, args.inner_folds, "f1_macro")
            probability[kind] = fitted.predict_proba(x[trial_of[parts["test"]]])[:, 1]
            kept = fitted["select"].get_support()
            chosen[kind] = {"n_features": best["select__k"], "features": np.array(names[kind])[kept].tolist()}
        if "fused" in asked:
            probability["fused"] = np.mean([probability[kind] for kind in SINGLE["fused"]], axis=0)
        for modality in asked:
            used = SINGLE.get(modality, (modality,))
            record = {
                "identity": identity_of(args, run, modality, fold, target),
                "chosen": {kind: chosen[kind] for kind in used},
                "train_trials": len(trials),
            }
            path = predictions_path(args, modality, fold, target)
            records.append(write(path, parts["test"], labels, logit(probability[modality]), record))
    return records


# ---- the script -----------------------------------------------------------------------------------------------------


def asked_modalities(args: argparse.Namespace, run: folds.Run) -> list[str]:
    """Those of --modality, or all that the prepared signals allow."""
    if args.model == "amigos":
        return list(dict.fromkeys(args.modality or MODALITIES["amigos"]))
    found = run.data.signals
    possible = [name for name in MODALITIES["classical"] if name in found or (name == "both" and len(found) == 2)]
    for modality in args.modality or ():
        if modality not in possible:
            raise ValueError(
                f"{run.data.folder}: holds {' and '.join(found)}, so --modality {modality} is not possible; "
                "prepare the data with --modalities"
            )
    return list(dict.fromkeys(args.modality or possible))


def asked_targets(args: argparse.Namespace, run: folds.Run) -> list[str]:
    """Those of --target, or all that are rated."""
    rated = [target for target in paper.TARGETS if not np.isnan(run.data.table[target]).all()]
    if not args.target:
        for target in paper.TARGETS:
            if target not in rated:
                print(f"{run.data.folder}: nothing is rated for {target}; skipped")
    return list(dict.fromkeys(args.target or rated))


def main() -> None:
    args = parse()
    with redirect_stdout(sys.stderr) if args.json else nullcontext():
        run = folds.open_run(args)
        targets = asked_targets(args, run)
        model = classical if args.model == "classical" else amigos_baseline
        records = model(args, run, asked_modalities(args, run), targets)
    if args.json:
        print(json.dumps(records, indent=1))


if __name__ == "__main__":
    loop.run_script(main)
