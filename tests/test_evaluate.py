"""The table against written-out numbers and scikit-learn."""

import argparse
import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

import evaluate
import folds
import training
from prepared import call, write_set


def test_scores_against_written_out_numbers():
    label = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    probability = np.array([0.9, 0.8, 0.2, 0.1, 0.1, 0.6, 0.5, 0.3])  # 0.5 is not high
    found = evaluate.scores(label, probability)
    # High: 2 of 3 found, 1 false. F1 = 4/6. Low: 4 of 5 found, 1 false. F1 = 8/10.
    assert found["accuracy"] == 6 / 8
    assert found["f1"] == pytest.approx((4 / 6 + 8 / 10) / 2, abs=1e-12)
    # Pairs of high and low in the right order: 5 + 5 + 2 of 15.
    assert found["auroc"] == pytest.approx(12 / 15, abs=1e-12)


def test_scores_of_one_class_alone():
    found = evaluate.scores(np.zeros(4, int), np.array([0.1, 0.2, 0.3, 0.9]))
    assert found["accuracy"] == 0.75 and found["f1"] == pytest.approx((6 / 7 + 0) / 2)
    assert np.isnan(found["auroc"])


def test_interval_is_that_of_nine_degrees_of_freedom():
    values = [0.81, 0.79, 0.80, 0.84, 0.78, 0.82, 0.80, 0.81, 0.83, 0.77]
    # t(0.975, 9) = 2.262157; standard deviation by hand.
    mean = sum(values) / 10
    sd = (sum((value - mean) ** 2 for value in values) / 9) ** 0.5
    assert evaluate.interval(values) == pytest.approx(2.262157 * sd / 10**0.5, rel=1e-6)
    assert evaluate.interval([0.5]) is None


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of three folds with planted predictions: EEG nine in ten right, fused all, ECG all but of fold 1 alone."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_set(folder / "mini")
    args = argparse.Namespace(run=folder / "run", data=folder / "mini", **{**folds.SETTINGS, "n_folds": 3})
    run = folds.open_run(args)
    run.start()
    random = np.random.default_rng(0)
    for modality, wrong, tested in (("eeg", 0.1, (0, 1, 2)), ("fused", 0.0, (0, 1, 2)), ("ecg", 0.0, (1,))):
        for fold in tested:
            rows = run.split(fold)
            labels = run.labels("arousal", rows["train"])
            test = folds.rated(labels, rows["test"])
            right = random.random(len(test)) >= wrong
            predictions = np.empty(len(test), training.PREDICTION_DTYPE)
            predictions["segment"], predictions["label"] = test, labels[test]
            predictions["probability"] = np.where(right == labels[test].astype(bool), 0.8, 0.3)
            path = folder / "run" / modality / f"fold{fold}" / "arousal.npy"
            path.parent.mkdir(parents=True)
            np.save(path, predictions)
    return folder


def test_json_holds_the_scores_of_the_files(run_folder):
    done = call("evaluate.py", "--run", "run", "--data", "mini", "--json", cwd=run_folder)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)["table"]
    assert list(table) == ["Majority class", "EEG", "ECG", "Fused"]
    expected = []
    for fold in range(3):
        predictions = np.load(run_folder / "run" / "eeg" / f"fold{fold}" / "arousal.npy")
        expected.append(f1_score(predictions["label"], predictions["probability"] > 0.5, average="macro"))
    assert table["EEG"]["arousal"]["f1"]["by_fold"] == pytest.approx(expected, abs=1e-12)
    assert table["EEG"]["arousal"]["f1"]["mean"] == pytest.approx(sum(expected) / 3, abs=1e-12)
    assert table["Fused"]["arousal"]["accuracy"]["mean"] == 1.0
    assert table["ECG"]["arousal"]["missing"] == [0, 2] and table["ECG"]["arousal"]["folds"] == [1]
    # Half of the ratings are high, and the folds are balanced.
    assert table["Majority class"]["arousal"]["accuracy"]["mean"] == pytest.approx(0.5, abs=0.05)
    assert "valence" not in table["EEG"]


def test_markdown_names_missing_folds_and_warns(run_folder):
    done = call("evaluate.py", "--run", "run", "--data", "mini", cwd=run_folder)
    assert done.returncode == 0, done.stderr
    assert "| Fused | 1.000 ± 0.000 | 1.000 ± 0.000 | - | - |" in done.stdout
    assert "ECG, arousal: 1 of 3 folds; missing 0 2" in done.stdout
    assert "Simulated signals" in done.stdout and "new people" in done.stdout


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda p: p[:-1], "one prediction for each"),
        (lambda p: np.concatenate([p, p[:1]]), "one prediction for each"),
        (lambda p: with_field(p, "label", 1 - p["label"]), "labels of --threshold"),
        (lambda p: with_field(p, "probability", np.nan), "probabilities from 0 to 1"),
        (lambda p: p["probability"], "rows of"),
    ],
)
def test_predictions_that_are_not_the_folds_are_refused(run_folder, change, expected):
    path = run_folder / "run" / "ecg" / "fold1" / "arousal.npy"
    kept = path.read_bytes()
    np.save(path, change(np.load(path)))
    try:
        done = call("evaluate.py", "--run", "run", "--data", "mini", cwd=run_folder)
    finally:
        path.write_bytes(kept)
    assert done.returncode == 2 and expected in done.stderr and len(done.stderr.splitlines()) == 1


def with_field(predictions, name, value):
    predictions[name] = value
    return predictions
