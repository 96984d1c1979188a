"""The rows of the paper's tables 1 to 3 from the test predictions of a run (paper 5).

    python evaluate.py --run runs/paper

Accuracy and macro F1 ("between the two predicted classes", assumed), averaged over the folds, with the half-width of a
two-sided 95 % t-interval. The folds are not independent, so the interval is too narrow; it is the paper's.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

import folds
import paper
import training

ROWS = (  # table 1: EEG; table 2: ECG, EEG, fused; table 3: fused
    ("EEG, no pre-training", "eeg", "-random"),
    ("EEG", "eeg", ""),
    ("ECG, no pre-training", "ecg", "-random"),
    ("ECG", "ecg", ""),
    ("Fused, no pre-training", "fused", "-random"),
    ("Fused", "fused", ""),
)
AGAIN = "remove it and call the script that wrote it again"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/paper"), help="folder of the run (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="the data set, if it was moved (default: what run.json says)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--print-flags", action="store_true", help="print every resolved flag as JSON and stop")
    args = parser.parse_args()
    if args.print_flags:
        print(json.dumps(training.plain_flags(args), indent=1))
        raise SystemExit(0)
    return args


def open_finished(args: argparse.Namespace) -> folds.Run:
    """The run as run.json describes it; ValueError where its data or folds were changed."""
    path = args.run / "run.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such run; expected the folder that pretrain.py and finetune.py wrote to")
    for name in folds.SETTINGS:
        setattr(args, name, None)
    folds.resolve_flags(args)
    return folds.open_run(args)


def read_predictions(path: Path, run: folds.Run, fold: int, target: str) -> np.ndarray:
    """The test predictions of one fold; ValueError unless they are those of the fold's rated test segments."""
    predictions = folds.load_array(path, AGAIN)
    rows = run.split(fold)
    labels = run.labels(target, rows["train"])
    test = folds.rated(labels, rows["test"])
    if predictions.dtype != training.PREDICTION_DTYPE or predictions.ndim != 1:
        expected = f"rows of {training.PREDICTION_DTYPE}"
    elif not np.array_equal(np.sort(predictions["segment"]), test):
        expected = f"one prediction for each of the {len(test)} test segments of fold {fold}"
    elif not np.array_equal(predictions["label"], labels[predictions["segment"]]):
        expected = f"the labels of --threshold {run.settings['threshold']}"
    elif not ((predictions["probability"] >= 0) & (predictions["probability"] <= 1)).all():
        expected = "probabilities from 0 to 1"
    else:
        return predictions
    raise ValueError(f"{path}: expected {expected}, found others; {AGAIN}")


def scores(label: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Accuracy, macro F1 and the area under the ROC curve (NaN where the test fold has one class)."""
    predicted = probability > 0.5
    both = len(np.unique(label)) == 2
    return {
        "accuracy": accuracy_score(label, predicted),
        "f1": f1_score(label, predicted, average="macro", labels=[0, 1], zero_division=0.0),
        "auroc": roc_auc_score(label, probability) if both else float("nan"),
    }


def majority_scores(run: folds.Run, fold: int, target: str) -> dict[str, float]:
    """The scores of always saying the class that is more frequent in the training part; none where nothing is rated."""
    rows = run.split(fold)
    labels = run.labels(target, rows["train"])
    high = labels[folds.rated(labels, rows["train"])].mean() > 0.5
    label = labels[folds.rated(labels, rows["test"])]
    return scores(label, np.full(len(label), float(high))) if len(label) else {}


def interval(values: list[float]) -> float | None:
    """Half-width of the two-sided 95 % t-interval of the mean (paper 5: 9 degrees of freedom for 10 folds)."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def summarise(by_fold: dict[int, dict[str, float]], n_folds: int) -> dict:
    """Mean and interval of each score over the folds that are there, and which are missing."""
    summary = {"folds": sorted(by_fold), "missing": [fold for fold in range(n_folds) if fold not in by_fold]}
    for score in ("accuracy", "f1", "auroc"):
        values = [float(by_fold[fold][score]) for fold in sorted(by_fold)]
        summary[score] = {"mean": float(np.mean(values)), "interval": interval(values), "by_fold": values}
    return summary


def evaluate(run: folds.Run) -> dict[str, dict[str, dict]]:
    """row -> target -> summary, of the rows that have at least one prediction file, and of the majority class."""
    n_folds, table = run.settings["n_folds"], {}
    for name, modality, suffix in ROWS:
        for target in paper.TARGETS:
            by_fold = {}
            for fold in range(n_folds):
                path = run.folder / modality / f"fold{fold}" / f"{target}{suffix}.npy"
                if path.exists():
                    predictions = read_predictions(path, run, fold, target)
                    by_fold[fold] = scores(predictions["label"], predictions["probability"])
            if by_fold:
                table.setdefault(name, {})[target] = summarise(by_fold, n_folds)
    targets = {target for row in table.values() for target in row}
    majority = {
        target: summarise(
            {fold: found for fold in range(n_folds) if (found := majority_scores(run, fold, target))}, n_folds
        )
        for target in paper.TARGETS
        if target in targets
    }
    return {"Majority class": majority, **table} if table else {}


def cell(summary: dict | None, score: str) -> str:
    if summary is None:
        return "-"
    mean, half = summary[score]["mean"], summary[score]["interval"]
    return f"{mean:.3f}" + (f" ± {half:.3f}" if half is not None else "")


def print_markdown(run: folds.Run, table: dict) -> None:
    settings, manifest = run.settings, run.data.manifest
    print(
        f"{manifest['dataset']}: {len(run.data.table)} segments, split by {settings['split']}, "
        f"{settings['n_folds']} folds, threshold {settings['threshold']}, seed {settings['seed']}"
    )
    if manifest["simulated"]:
        print("Simulated signals: this demonstrates the software and proves nothing about emotion.")
    if settings["split"] in ("segment", "block", "trial", "video"):
        print(
            f"Segments of one person are in training and test (split by {settings['split']}): "
            "this does not measure how well new people are recognised."
        )
    print("\n| | Arousal Acc. | Arousal F1 | Valence Acc. | Valence F1 |\n|---|---|---|---|---|")
    for name, row in table.items():
        cells = [cell(row.get(target), score) for target in paper.TARGETS for score in ("accuracy", "f1")]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\nMean over folds ± half-width of the 95 % t-interval (paper 5).")
    for name, row in table.items():
        for target, summary in row.items():
            if summary["missing"]:
                print(
                    f"{name}, {target}: {len(summary['folds'])} of {settings['n_folds']} folds; "
                    f"missing {' '.join(map(str, summary['missing']))}"
                )


def main() -> None:
    args = parse()
    run = open_finished(args)
    table = evaluate(run)
    if not table:
        raise ValueError(f"{args.run}: no predictions yet; run finetune.py and fuse.py first")
    if args.json:
        print(json.dumps({"run": run.settings, "simulated": run.data.manifest["simulated"], "table": table}, indent=1))
    else:
        print_markdown(run, table)


if __name__ == "__main__":
    training.run_script(main)
