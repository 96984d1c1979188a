"""Train simple models on the very folds of a run, and write their predictions as finetune.py writes its own.

    python baseline.py --run runs/paper                              # every fold and target
    python baseline.py --run runs/paper --target arousal --fold 3

The classical model is logistic regression on features of the prepared segments: band power and asymmetry of EEG, heart
rate of ECG. It writes runs/paper/classical-both/fold3/arousal.npy, and beside it the record arousal.json, with the
features and what was chosen. Imputation, scaling, selection and choices see training rows alone; validation is unused.

    python baseline.py --model amigos --raw ~/AMIGOS --run runs/people

This is the baseline of AMIGOS (reference [6] of the paper), on features of whole trials from the files of AMIGOS: 14
channels of EEG, ECG and skin resistance. Gaussian naive Bayes learns from the features with the best Fisher scores, and
the three modalities are fused by the mean of their probabilities (assumed). Each segment gets the probability of its
trial. The run must leave one subject out: --split subject --n-folds <number of subjects> --threshold subject. Features
are z-scored over all trials of a subject, also of the test subject, without labels (assumed)."""

import argparse
import itertools
from pathlib import Path

from common import script  # first: it says how the threads of PyTorch wait, and what Ctrl-C says
import numpy as np
import scipy
from scipy.special import expit
from tqdm import tqdm

import paper
from analysis import features
from common.files import only_writer, sha256_of_file
from datasets import amigos
from protocol import folds, records
from protocol import run as runs
from protocol.segments import SignalRows

try:
    import sklearn
    from sklearn import feature_selection, impute, linear_model, metrics, model_selection, naive_bayes, preprocessing
    from sklearn.pipeline import Pipeline
except ImportError:
    sklearn = Pipeline = None  # `main` says so

AMIGOS_CHANNELS = amigos.COLUMNS[:14]
AMIGOS_FEATURES = {  # modality -> function(name of a column -> signal (n,)) -> features (F,), F names
    "eeg": lambda columns: features.amigos_eeg_features(
        np.stack([columns[name] for name in AMIGOS_CHANNELS]), amigos.RATE, AMIGOS_CHANNELS
    ),
    "ecg": lambda columns: features.amigos_ecg_features(columns["left"], amigos.RATE),
    "gsr": lambda columns: features.amigos_gsr_features(columns["GSR"], amigos.RATE),
}
HYPERPARAMETERS = {"classical": ("regularisation", "inner_folds"), "amigos": ("n_features", "inner_folds")}
BATCH = 256  # segments whose features are computed at once


def parse() -> argparse.Namespace:
    parser = script.Parser(__doc__)
    add = parser.add_argument
    add("--model", choices=HYPERPARAMETERS, default="classical", help="default: %(default)s (assumed)")
    add("--target", nargs="+", choices=paper.TARGETS, help="(default: all that are rated; paper 3.2.2)")
    whole = script.positive(int, zero=True)
    add("--fold", nargs="+", type=whole, metavar="K", help="test folds, counted from 0 (default: all; paper 5)")
    add("--raw", type=Path, metavar="DIR", help="folder with the files of AMIGOS, for --model amigos")
    add("--fresh", action="store_true", help="start over, replacing what an earlier call wrote")
    runs.add_flags(parser)
    script.add_label_flags(parser.add_argument_group("labels of training, named in the files: arousal-shuffled.npy"))
    add = parser.add_argument_group("hyper-parameters").add_argument
    powers = [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0]
    strengths = "for classical: inverse strengths, the best chosen by log loss (default: 1e-4 to 100; assumed)"
    add("--regularisation", type=script.positive(float), nargs="+", default=powers, metavar="C", help=strengths)
    counts = "for amigos: numbers of features, the best chosen by macro F1 (default: 5 10 20 40; assumed)"
    add("--n-features", type=script.positive(int), nargs="+", default=[5, 10, 20, 40], metavar="N", help=counts)
    inner = "folds of the training rows for these choices, cut by the run's unit (default: 5; assumed)"
    add("--inner-folds", type=script.positive(int, least=2), default=5, metavar="N", help=inner)
    script.add_print_flag(parser)
    args = parser.parse_args()
    runs.resolve_flags(args)
    args.regularisation, args.n_features = sorted(set(args.regularisation)), sorted(set(args.n_features))
    args.fold = list(range(args.n_folds)) if args.fold is None else sorted(set(args.fold))
    if args.model == "amigos" and args.raw is None:
        raise ValueError("--model amigos: needs --raw, the folder with the files of AMIGOS")
    script.stop_if_printing(args)
    return args


def possible_models(args: argparse.Namespace, run: runs.Run) -> list[records.Model]:
    """The models that the signals allow: each modality alone, then all together. A modality of the data set without
    classical features is named in a line, and left out."""
    modalities = list(AMIGOS_FEATURES)
    if args.model == "classical":
        modalities = [name for name in features.FEATURES if name in run.data.signals]
        for name in (name for name in run.data.signals if name not in modalities):
            print(
                f"no classical features of {paper.MODALITIES[name].label}; left out, add them to analysis/features.py"
            )
    groups = [[name] for name in modalities] + [modalities] * (len(modalities) > 1)
    return [records.model_of(args, args.model, group) for group in groups]


def pending(args: argparse.Namespace, run: runs.Run, models: list[records.Model]) -> list[tuple]:
    """What is still to be done of one fold and target each: (rows of train, validation and test; labels (n,) of all
    rows; model -> record). Raises ValueError where earlier predictions are of other flags, data or folds."""
    flags = {"baseline": {name: getattr(args, name) for name in HYPERPARAMETERS[args.model]}}
    unrated = [target for target in paper.TARGETS if not args.target and np.isnan(run.data.table[target]).all()]
    for target in unrated:
        print(f"{run.data.folder}: nothing is rated for {target}; skipped")
    targets, work = args.target or [target for target in paper.TARGETS if target not in unrated], []
    for target, fold in itertools.product(dict.fromkeys(targets), args.fold):
        rows, labels = run.labelled(fold, target, records.model_of(args, args.model, ()))
        wanted = {model: records.record_of(run, model, fold, target, rows, flags) for model in models}
        for model, record in list(wanted.items()):
            if records.is_written(model.path(run.folder, fold, target, ".npy"), record, args.fresh):
                del wanted[model]
        if wanted:
            work.append((rows, labels, wanted))
    return work


def pipeline(*steps: tuple) -> Pipeline:
    """Imputation and scaling, then `steps`. Naive Bayes, too, needs scaled features: the variance that GaussianNB adds
    to each is a share of the largest."""
    imputer = impute.SimpleImputer(strategy="median", keep_empty_features=True)
    return Pipeline([("impute", imputer), ("scale", preprocessing.StandardScaler()), *steps])


def choose(model: Pipeline, grid: dict, x: np.ndarray, y: np.ndarray, groups: np.ndarray, parts: int, score):
    """Fit `model` (x (n, F), y (n,)) with the values of `grid` that score best over folds of whole `groups` (n,), or
    with the first where no fold leaves both classes to train on; the fitted model and these values."""
    parts = min(parts, len(np.unique(groups)))
    splits = list(model_selection.GroupKFold(parts).split(x, y, groups)) if parts > 1 else []
    splits = [(train, test) for train, test in splits if len(np.unique(y[train])) == 2]
    first = {name: values[0] for name, values in grid.items()}
    if not splits:
        print(f"note: too few units in training to choose by; took {first}")
        return model.set_params(**first).fit(x, y), first
    search = model_selection.GridSearchCV(model, grid, cv=splits, scoring=score).fit(x, y)
    return search.best_estimator_, search.best_params_


def negative_log_loss(model: Pipeline, x: np.ndarray, y: np.ndarray) -> float:
    """The score of a model on x (n, F) and labels y (n,): of both classes, also where `y` holds one."""
    return -metrics.log_loss(y, model.predict_proba(x), labels=[0, 1])


def segment_features(run: runs.Run, rows: np.ndarray, modality: str) -> tuple[np.ndarray, list[str]]:
    """Features (len(rows), F) of the segments `rows`, and their F names."""
    signals, found = SignalRows([(run.data, rows)], modality), []
    rate, channels = run.data.manifest["rate"], run.data.manifest["channels"][modality]
    batches = np.array_split(np.arange(len(rows)), -(-len(rows) // BATCH))
    for batch in tqdm(batches, desc=f"{modality} features", unit="batch", disable=None, leave=False):
        x, names = features.FEATURES[modality](signals.batch(batch).astype(float), rate, channels)
        found.append(x)
    return np.concatenate(found), names


def logistic_regression(args, run: runs.Run, by_modality: dict, parts: dict, labels: np.ndarray, models) -> dict:
    """Fit each of `models` on one fold: model -> (probabilities of the test rows, what the record says)."""
    train, results = parts["train"], {}
    unit = folds.units(run.data.table, run.settings["split"])[train]
    regression = pipeline(("regression", linear_model.LogisticRegression(max_iter=1000)))
    grid = {"regression__C": args.regularisation}
    for model in models:
        x = np.concatenate([by_modality[name][0] for name in model.modalities], axis=1)
        fitted, best = choose(regression, grid, x[train], labels[train], unit, args.inner_folds, negative_log_loss)
        found = {"chosen": {"regularisation": best["regression__C"]}, "train_segments": len(train)}
        found["features"] = [f"{name} {each}" for name in model.modalities for each in by_modality[name][1]]
        results[model] = expit(fitted.decision_function(x[parts["test"]])), found
    return results


def check_amigos(run: runs.Run) -> None:
    """Raise ValueError unless the run leaves one subject of AMIGOS, or of a cohort in its layout, out at a time."""
    name, settings = run.data.manifest["dataset"], run.settings
    if name not in ("amigos", "simulated"):
        raise ValueError(f"{run.data.folder}: --model amigos expects the data set amigos or simulated, found {name}")
    rated = len(np.unique(run.data.table["subject"][run.folds >= 0]))
    # Of as many folds as subjects, whole, none is empty, so that each has one.
    if not (settings["split"] == settings["threshold"] == "subject" and settings["n_folds"] == rated):
        flags = f"--split subject --n-folds {rated} --threshold subject"
        expected = f"leaves one subject out and expects a run with {flags}"
        raise ValueError(f"{run.folder}: --model amigos {expected}; use another --run")


def read_trials(raw: Path, manifest: dict, trials: list[tuple]) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Read whole trials, each (subject, trial), from the files of AMIGOS below `raw`: modality -> features (trials, F),
    z-scored by subject, NaN where a signal holds NaN, and their F names. Raises FileNotFoundError or ValueError where a
    file or a trial is missing, or is not the one in `manifest`, that of the prepared set."""
    place = {trial: number for number, trial in enumerate(trials)}
    paths = {path.name: path for path in amigos.sources(raw)}
    found, names = {name: [None] * len(trials) for name in AMIGOS_FEATURES}, {}
    begin = round(manifest["preprocessing"].get("drop_baseline", 0.0) * amigos.RATE)
    wanted = [source for source in manifest["sources"] if any(tuple(trial) in place for trial in source["trials"])]
    for source in tqdm(wanted, desc="features of trials", unit="file", disable=None, leave=False):
        if (path := paths.get(Path(source["file"]).name)) is None:
            raise FileNotFoundError(f"{raw}: {source['file']}, from which the set was prepared, is missing; name --raw")
        if sha256_of_file(path) != source["sha256"]:
            raise ValueError(f"{path}: not the file that the set was prepared from; prepare the data again")
        subject = amigos.FILE.fullmatch(path.name)[1]
        for video, signals, *_ in amigos.videos(path):
            if (number := place.pop((subject, video), None)) is None:
                continue
            columns = dict(zip(amigos.COLUMNS, signals[begin:].T.astype(float)))
            try:
                for name, features_of in AMIGOS_FEATURES.items():
                    found[name][number], names[name] = features_of(columns)
            except ValueError as error:
                raise ValueError(f"{path}: video {video}: {error}")
    if place:
        raise ValueError(f"{raw}: trial {' '.join(min(place))}, which was prepared, is missing; prepare the data again")
    found = {name: (np.stack(each), names[name]) for name, each in found.items()}
    subjects = np.array([subject for subject, _ in trials])
    for subject, (x, _) in itertools.product(np.unique(subjects), found.values()):
        x[subjects == subject] = features.z_score(x[subjects == subject])
    return found


def bayes_of_trials(args, run: runs.Run, by_modality: dict, parts: dict, labels: np.ndarray, models) -> dict:
    """Do what `logistic_regression` does, by Gaussian naive Bayes, on one segment of each training trial."""
    table = run.data.table
    _, first = np.unique(table[["subject", "trial"]][parts["train"]], return_index=True)
    rows, probability, chosen = parts["train"][first], {}, {}
    select = feature_selection.SelectKBest(features.fisher_score)
    bayes = pipeline(("select", select), ("bayes", naive_bayes.GaussianNB()))
    # Each modality alone, once, whether its model is asked for or is a part of the fused one.
    for name in dict.fromkeys(name for model in models for name in model.modalities):
        x, names = by_modality[name]
        grid = {"select__k": sorted({min(count, x.shape[1]) for count in args.n_features})}
        fitted, best = choose(bayes, grid, x[rows], labels[rows], table["subject"][rows], args.inner_folds, "f1_macro")
        probability[name] = fitted.predict_proba(x[parts["test"]])[:, 1]
        kept = fitted["select"].get_support()
        chosen[name] = {"n_features": best["select__k"], "features": np.array(names)[kept].tolist()}
    results = {}
    for model in models:
        found = {"chosen": {name: chosen[name] for name in model.modalities}, "train_trials": len(rows)}
        results[model] = np.mean([probability[name] for name in model.modalities], axis=0), found
    return results


def features_of_tested(args: argparse.Namespace, run: runs.Run, modalities: list[str]) -> dict[str, tuple]:
    """Features (n, F) of all segments, NaN but for those that some fold tests, and their F names, by modality."""
    rows = np.flatnonzero(run.folds >= 0)
    if args.model == "amigos":
        keys, place = np.unique(run.data.table[["subject", "trial"]][rows], return_inverse=True)
        found = read_trials(args.raw, run.data.manifest, [tuple(key) for key in keys.tolist()])
        found = {name: (x[place.reshape(-1)], names) for name, (x, names) in found.items()}
    else:
        found = {name: segment_features(run, rows, name) for name in modalities}
    for name, (x, names) in found.items():
        if without := int(np.isnan(x).any(axis=1).sum()):
            print(f"{without} of {len(rows)} segments lack {name} features: they get the medians of training")
        found[name] = np.full((len(run.folds), len(names)), np.nan), names
        found[name][0][rows] = x
    return found


def main() -> None:
    args = parse()
    if sklearn is None:
        raise ValueError("the baselines need scikit-learn; pip install scikit-learn")
    run = runs.open_run(args)
    if args.model == "amigos":
        check_amigos(run)
    with only_writer(run.folder / "baseline"):
        train_all(args, run)


def train_all(args: argparse.Namespace, run: runs.Run) -> None:
    """Train what earlier calls have not done, and write its predictions."""
    models = possible_models(args, run)
    work = pending(args, run, models)
    if not work:
        return
    by_modality = features_of_tested(args, run, models[-1].modalities)
    learn = bayes_of_trials if args.model == "amigos" else logistic_regression
    run.start()
    versions = {**records.versions(scipy), "scikit-learn": sklearn.__version__}
    for parts, labels, wanted in tqdm(work, unit="fold", disable=None, leave=False):
        for model, (probability, found) in learn(args, run, by_modality, parts, labels, list(wanted)).items():
            record = {**wanted[model], **found, "versions": versions}
            path = model.path(run.folder, record["fold"], record["target"], ".npy")
            records.write_predictions(path, parts["test"], labels, probability, record)


if __name__ == "__main__":
    script.run(main)
