"""Tables of runs whose predictions are planted, against scikit-learn, SciPy and numbers written out."""

import argparse
import json
import re
import shutil

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

import paper
from analysis import tables
from prepared import call, edit_manifest, write_set
from protocol import folds
from training import loop

FEW = "--bootstrap", 200, "--permutations", 500


def open_run(folder, data, **settings) -> folds.Run:
    """A run as pretrain.py would start it, by default of three folds by segment."""
    args = argparse.Namespace(run=folder, data=data, **{**folds.SETTINGS, "n_folds": 3, **settings})
    run = folds.open_run(args)
    run.start()
    return run


def plant(run, model, stem, right=0.9, only=None, seed=0):
    """Write predictions of which the share `right` is right, of the folds `only` or of all."""
    random, target = np.random.default_rng(seed), re.match("arousal|valence", stem)[0]
    for fold in only or range(run.settings["n_folds"]):
        rows = run.split(fold)
        labels = run.labels(target, rows["train"])
        test = random.permutation(folds.rated(labels, rows["test"]))
        predictions = np.empty(len(test), loop.PREDICTION_DTYPE)
        predictions["segment"], predictions["label"] = test, labels[test]
        high = (random.random(len(test)) < right) == labels[test].astype(bool)
        predictions["probability"] = np.where(high, 0.5, 0.0) + 0.5 * random.random(len(test))
        path = run.folder / model / f"fold{fold}" / f"{stem}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, predictions)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """data/mini, and in runs/paper: EEG nine in ten right, fused all but 3 %, ECG of fold 1 alone."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_set(folder / "data" / "mini", subjects=8, trials=8)
    run = open_run(folder / "runs" / "paper", folder / "data" / "mini")
    plant(run, "eeg", "arousal")
    plant(run, "eeg", "arousal-random", right=0.2, seed=1)
    plant(run, "fused", "arousal", right=0.97, seed=2)
    plant(run, "ecg", "arousal", only=[1], seed=3)
    return folder


@pytest.fixture(scope="module")
def evaluated(planted):
    """That run, and the JSON that evaluate.py prints of it."""
    run = open_run(planted / "runs" / "paper", planted / "data" / "mini")
    return run, json.loads(evaluate(planted, "--json"))["runs"][0]


@pytest.fixture
def work(planted, tmp_path):
    """A copy of that folder, to be changed."""
    return shutil.copytree(planted, tmp_path / "work")


def evaluate(work, *flags, runs=("runs/paper",)) -> str:
    done = call("evaluate.py", "--run", *runs, "--data", "data/mini", *FEW, *flags, cwd=work)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(work, *flags) -> str:
    done = call("evaluate.py", "--run", "runs/paper", "--data", "data/mini", *FEW, *flags, cwd=work)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("evaluate.py: ")
    return done.stderr


def table(text, title) -> str:
    """The table of that title, with its notes."""
    return text.split(f"**{title}")[1].split("\n**")[0]


def line(text, title, name) -> list[str]:
    """The cells of the line called `name` in the table of that title."""
    lines = table(text, title).splitlines()
    found = [[cell.strip() for cell in each.split("|")[1:-1]] for each in lines if each.startswith("|")]
    return next(cells[1:] for cells in found if cells[0] == name)


def load(run, model, fold, stem):
    return np.sort(np.load(run.folder / model / f"fold{fold}" / f"{stem}.npy"), order="segment")


def test_json_holds_the_scores_and_intervals_of_the_files(evaluated):
    run, found = evaluated
    summary = found["table"]["EEG"]["arousal"]
    files = [load(run, "eeg", fold, "arousal") for fold in range(3)]
    f1 = [metrics.f1_score(each["label"], each["probability"] > 0.5, average="macro") for each in files]
    auroc = [metrics.roc_auc_score(each["label"], each["probability"]) for each in files]
    assert summary["f1"]["by_fold"] == pytest.approx(f1, abs=1e-12)
    assert summary["auroc"]["mean"] == pytest.approx(np.mean(auroc), abs=1e-12)
    low, high = stats.ttest_1samp(f1, 0).confidence_interval()
    assert summary["f1"]["interval"] == pytest.approx((high - low) / 2, abs=1e-12)
    # Of 320 rated segments a third is tested, and eight ninths of the rest trained on, up to one segment.
    parts = [run.split(fold) for fold in range(3)]
    rated = [{name: (run.folds[each[name]] >= 0).sum() for name in ("train", "test")} for each in parts]
    ratio = np.mean([each["test"] / each["train"] for each in rated])
    assert ratio == pytest.approx((1 / 3) / (16 / 27), rel=0.02)
    assert summary["f1"]["corrected"] / summary["f1"]["interval"] == pytest.approx(np.sqrt(1 + 3 * ratio), abs=1e-12)
    low, high = summary["f1"]["bootstrap"]
    assert low < summary["f1"]["mean"] < high


def test_json_holds_trials_subjects_and_tests(evaluated):
    run, found = evaluated
    table, accuracies, by_subject = run.data.table, [], {}
    for fold in range(3):
        trials = {}
        for segment, label, probability in load(run, "eeg", fold, "arousal"):
            name = table["subject"][segment]
            trials.setdefault((name, table["trial"][segment]), []).append((label, probability))
            by_subject.setdefault(name, []).append((probability > 0.5) == label)
        accuracies.append(np.mean([(np.mean([p for _, p in each]) > 0.5) == each[0][0] for each in trials.values()]))
    assert found["table"]["EEG"]["arousal"]["per_trial"]["accuracy"]["by_fold"] == pytest.approx(accuracies, abs=1e-12)
    subjects = found["per_subject"]["EEG"]["arousal"]
    assert {name: each["accuracy"] for name, each in subjects.items()} == pytest.approx(
        {name: np.mean(each) for name, each in by_subject.items()}, abs=1e-12
    )
    test = next(each for each in found["tests"]["Table 1: differences"] if each["score"] == "accuracy")
    pair = [
        [np.mean((each["probability"] > 0.5) == each["label"]) for each in files]
        for files in ([load(run, "eeg", fold, stem) for fold in range(3)] for stem in ("arousal", "arousal-random"))
    ]
    assert test["difference"] == pytest.approx(np.mean(pair[0]) - np.mean(pair[1]), abs=1e-12)
    assert test["t"] == pytest.approx(stats.ttest_rel(*pair).pvalue, abs=1e-12)
    assert test["sign_flip"] == 2 / 2**8  # the largest difference of all exchanges between eight subjects
    assert test["sign_flip_holm"] == 2 * test["sign_flip"]  # accuracy and F1


def test_priors_are_the_means_of_the_training_labels(evaluated):
    run, found = evaluated[0], evaluated[1]["table"]
    for prior, column in (("Subject prior", "subject"), ("Video prior", "video")):
        expected = []
        for fold in range(3):
            rows = run.split(fold)
            labels = run.labels("arousal", rows["train"])
            train, test = (folds.rated(labels, rows[part]) for part in ("train", "test"))
            group = run.data.table[column]
            means = [labels[train][group[train] == group[row]].mean() for row in test]
            expected.append(metrics.roc_auc_score(labels[test], means))
        assert found[prior]["arousal"]["auroc"]["by_fold"] == pytest.approx(expected, abs=1e-12)
    assert found["Majority class"]["arousal"]["auroc"]["by_fold"] == [0.5] * 3
    assert found["Majority class"]["arousal"]["accuracy"]["mean"] == pytest.approx(0.5, abs=0.05)
    assert "valence" not in found["EEG"] and "valence" not in found["Majority class"]


def test_fusion_rules_over_the_folds_of_both_models(planted, evaluated):
    run, found, text = evaluated[0], evaluated[1]["table"], evaluate(planted)
    eeg, ecg = (load(run, model, 1, "arousal") for model in ("eeg", "ecg"))
    mean = metrics.roc_auc_score(eeg["label"], eeg["probability"].astype(float) + ecg["probability"])
    both = metrics.accuracy_score(eeg["label"], (eeg["probability"] > 0.5) & (ecg["probability"] > 0.5))
    either = metrics.accuracy_score(eeg["label"], (eeg["probability"] > 0.5) | (ecg["probability"] > 0.5))
    assert found["Mean of both"]["arousal"]["auroc"]["by_fold"] == pytest.approx([mean], abs=1e-12)
    assert found["Vote of both"]["arousal"]["accuracy"]["by_fold"] == pytest.approx([both], abs=1e-12)
    assert found["Maximum of both"]["arousal"]["accuracy"]["by_fold"] == pytest.approx([either], abs=1e-12)
    assert line(text, "Fusion rules;", "Mean of both")[0].endswith("(1/3)")
    assert "a tie is not high (assumed)" in " ".join(text.split())


def test_markdown_fits_a_terminal_and_marks_missing_folds(planted):
    text = evaluate(planted, "--details")
    assert max(map(len, text.splitlines())) <= 120
    assert len(line(text, "Table 1", "Yes")) == 2  # nothing was predicted for valence
    assert re.fullmatch(r"0\.\d{3} ± 0\.\d{3}", line(text, "Table 1", "Yes")[0])
    assert re.fullmatch(r"0\.\d{3} \(1/3\)", line(text, "Table 2: all models", "ECG")[0])
    assert "ECG, arousal: 1 of 3 folds; missing 0 2" in text
    assert "(1/3)" in line(text, "Table 2: differences", "Fused - ECG")[1]
    assert "(1/3)" in line(text, "Beside every model: AUROC;", "ECG")[0]
    assert "simulated signals; they show the software" in text and "how well new people are" in " ".join(text.split())


def test_a_known_difference_is_better_and_none_is_not_significant(work):
    run = open_run(work / "runs" / "paper", work / "data" / "mini")
    plant(run, "fused", "arousal-random", right=0.97, seed=9)
    text = evaluate(work)
    assert line(text, "Table 1: differences", "EEG - EEG random")[-1] == "better"
    assert line(text, "Table 3: differences", "Fused - Fused random")[-1] == "not significant"


@pytest.mark.parametrize(
    "by_subjects, by_folds, difference, expected",
    [
        (0.01, 0.01, 0.1, "better"),
        (0.01, 0.01, -0.1, "worse"),
        (0.01, 0.2, 0.1, "only by subjects"),
        (0.2, 0.01, 0.1, "only by folds"),
        (0.05, 0.05, 0.1, "not significant"),
        (np.nan, np.nan, 0.1, "-"),
        (0.01, np.nan, 0.1, "-"),
    ],
)
def test_a_verdict_needs_both_tests(by_subjects, by_folds, difference, expected):
    found = {"sign_flip_holm": by_subjects, "corrected_holm": by_folds, "difference": difference, "t_holm": 0.0}
    assert tables.verdict(found) == expected


def set_amigos(work, name, simulated):
    edit_manifest(work / "data" / "mini", lambda manifest: manifest.update(dataset=name, simulated=simulated))
    path = work / "runs" / "paper" / "run.json"
    path.write_text(path.read_text().replace('"data_set": "mini"', f'"data_set": "{name}"'))


@pytest.mark.parametrize("name, simulated", [("amigos", False), ("amigos", True), ("dreamer", False)])
def test_the_paper_stands_beside_amigos_alone(work, name, simulated):
    run = open_run(work / "runs" / "paper", work / "data" / "mini")
    for model in ("amigos-eeg", "amigos-fused"):
        plant(run, model, "arousal", right=0.6)
    set_amigos(work, name, simulated)
    text = evaluate(work)
    published = (
        *("0.76±0.0073", "0.75±0.0083", "0.70±0.0064", "0.70±0.0068", "0.81±0.0107", "0.80±0.0094", "0.77±0.0093"),
        *("0.88±0.0054", "0.87±0.0054", "0.83±0.0078", "0.83±0.0074", "0.89±0.0050", "0.85±0.0038", "0.85±0.0039"),
        *("0.86±0.0049", "0.85±0.0051", "0.82±0.0065", "0.81±0.0068", "0.577", "0.564", "0.560", "P < 1e-05"),
    )
    assert {each in text for each in published} == {name == "amigos" and not simulated}
    assert ("paper / ours" in text) == (name == "amigos" and not simulated)
    assert name in line(text, "What training knew", "Data set")[0]
    assert re.fullmatch(r"0\.\d{3} ± 0\.\d{3}", line(text, "Table 4", "AMIGOS EEG")[0])
    assert max(map(len, text.splitlines())) <= 120
    if "paper / ours" in text:
        assert re.findall(r"gives P < (\S+) for", " ".join(text.split())) == ["1e-05", "0.001", "0.0001"]
        assert line(text, "Table 1", "No")[0].startswith("0.76±0.0073/0.")
        assert line(text, "Table 4", "EEG [6]") == ["0.577", "0.564"]
        assert line(text, "Table 4", "Fused: EEG+ECG+GSR [6]") == ["0.564", "0.560"]
        assert line(text, "Table 4", "EEG, paper") == ["0.80 ± 0.0094", "0.77 ± 0.0091"]


# ---- protocols -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_protocols(tmp_path_factory):
    """Arousal follows the subject. One run by segment, whose EEG knows the subject, and one by subject."""
    folder = tmp_path_factory.mktemp("protocols")
    data = write_set(folder / "data" / "mini", subjects=12, trials=4, unrated=0)
    table = np.load(data / "segments.npy")
    number = np.unique(table["subject"], return_inverse=True)[1]
    table["arousal"] = np.where(number % 2, 8, 2)
    np.save(data / "segments.npy", table)
    for split, right in (("segment", 0.95), ("subject", 0.5)):
        run = open_run(folder / "runs" / split, data, split=split)
        plant(run, "eeg", "arousal", right=right)
        plant(run, "eeg", "valence", right=0.5)
    return folder


@pytest.fixture(scope="module")
def side_by_side(two_protocols):
    """What evaluate.py prints of both runs, and as JSON."""
    runs = "runs/segment", "runs/subject"
    return evaluate(two_protocols, runs=runs), json.loads(evaluate(two_protocols, "--json", runs=runs))["runs"]


def test_the_subject_prior_gives_away_what_segment_folds_measure(side_by_side):
    text, found = side_by_side
    by_segment, by_subject = (each["table"]["Subject prior"]["arousal"] for each in found)
    assert by_segment["auroc"]["mean"] == 1.0 and by_segment["accuracy"]["mean"] == 1.0
    assert by_subject["auroc"]["by_fold"] == [0.5] * 3
    words = " ".join(text.split())
    assert "The subject prior, which sees no signal, tells arousal above chance: AUROC 1.000 [1.000, 1.000] in" in words
    assert "but not 0.500 [0.500, 0.500] in runs/subject" in words
    assert "the difference is no evidence that the signals tell arousal" in words
    assert "does not tell valence above chance" in words


def test_the_leakage_tax_has_an_interval(side_by_side):
    text, found = side_by_side
    tax = [each for each in found[0]["protocols"] if (each["row"], each["score"]) == ("EEG", "auroc")]
    means = [[each["table"]["EEG"][target]["auroc"]["mean"] for each in found] for target in paper.TARGETS]
    assert [each["difference"] for each in tax] == pytest.approx([one - other for one, other in means], abs=1e-12)
    for each in tax:
        assert each["bootstrap"][0] < each["difference"] < each["bootstrap"][1]
    cells = line(text, "Protocols side by side, AUROC", "EEG")
    assert max(map(len, text.splitlines())) <= 120
    assert cells[:2] == [f"{mean:.3f}" for mean in means[0]]
    assert not cells[2].endswith("n.s.") and cells[5].endswith("n.s.")


def test_the_state_of_data_transfer_is_read_from_the_run(side_by_side):
    text, found = side_by_side
    by_segment, by_subject = (each["transfer"] for each in found)
    assert (by_segment["unit"], by_segment["subject"], by_segment["video"]) == ("segment", 1.0, 1.0)
    assert (by_subject["unit"], by_subject["subject"], by_subject["trial"]) == ("subject", 0.0, 0.0)
    assert by_segment["trial"] > 0.9 and by_subject["video"] == 1.0
    assert by_subject["z_score_saw_test"] and by_subject["threshold_saw_test"]
    assert line(text, "What training knew", "Shared subject") == ["100 %", "0 %"]


@pytest.mark.parametrize(
    "normalise, threshold, saw",
    [("segment", "train", (False, False)), ("none", "5.0", (False, False)), ("recording", "subject", (True, True))],
)
def test_what_saw_the_test_data(tmp_path, normalise, threshold, saw):
    data = write_set(tmp_path / "data" / "mini")
    edit_manifest(data, lambda manifest: manifest["preprocessing"].update(normalise=normalise))
    plant(open_run(tmp_path / "runs" / "paper", data, threshold=threshold), "eeg", "arousal")
    transfer = json.loads(evaluate(tmp_path, "--json"))["runs"][0]["transfer"]
    assert (transfer["z_score_saw_test"], transfer["threshold_saw_test"]) == saw


def test_another_threshold_is_another_task(two_protocols, tmp_path):
    work = shutil.copytree(two_protocols, tmp_path / "work")
    plant(open_run(work / "runs" / "other", work / "data" / "mini", threshold="5"), "eeg", "arousal")
    said = "The labels differ, too: high is above --threshold global in the 1st, 5 in the 2nd."
    assert said in " ".join(evaluate(work, runs=("runs/segment", "runs/other")).split())
    assert "The labels differ" not in evaluate(work, runs=("runs/segment", "runs/subject"))


def test_runs_of_other_data_are_not_compared(two_protocols, tmp_path):
    work = shutil.copytree(two_protocols, tmp_path / "work")
    other = write_set(work / "data" / "other", name="mini", seed=5)
    plant(open_run(work / "runs" / "other", other), "eeg", "arousal")
    done = call("evaluate.py", "--run", "runs/segment", "runs/other", *FEW, cwd=work)
    assert done.returncode == 2 and "runs/other" in done.stderr and done.stderr.count("\n") == 1


def test_every_row_that_is_read_is_printed(work):
    run = open_run(work / "runs" / "new", work / "data" / "mini")
    controls = {"eeg": ("", "-frozen", "-shuffled", "-frozen-shuffled", "-fraction0.5", "-shuffled-fraction0.5")}
    for model in ("eeg", "ecg", "fused", "fused-crossfit", "classical-eeg", "classical-both"):
        for random in ("",) if model.startswith("classical") else ("", "-random"):
            for control in controls.get(model, ("", "-shuffled")):
                plant(run, model, f"arousal{random}{control}", right=0.6)
    found = json.loads(evaluate(work, "--json", runs=("runs/new",)))
    printed = {cells[0] for each in found["tables"] for cells in each["rows"]}
    assert len(found["runs"][0]["table"]) > 30 and found["runs"][0]["table"].keys() <= printed


def test_a_run_without_pretraining_is_compared_with_what_is_simple(work):
    run = open_run(work / "runs" / "new", work / "data" / "mini")
    plant(run, "eeg", "arousal-random")
    plant(run, "classical-eeg", "arousal", right=0.5)
    text = evaluate(work, runs=("runs/new",))
    for other in ("Majority class", "Subject prior", "Video prior", "Classical EEG"):
        assert line(text, "Beside every model: differences", f"EEG random - {other}")


def test_folds_of_a_classical_model_fitted_otherwise_are_said(work):
    run = open_run(work / "runs" / "paper", work / "data" / "mini")
    plant(run, "classical-eeg", "arousal")
    for fold, grid in ((0, [1.0]), (1, [1.0]), (2, [0.1, 1.0])):
        identity = {**run.identity, "fold": fold, "regularisation": grid}
        path = run.folder / "classical-eeg" / f"fold{fold}" / "arousal.json"
        path.write_text(json.dumps({"identity": identity}))
    said = "note: Classical EEG, arousal: the folds were trained with different --regularisation ([1.0], [0.1, 1.0])\n"
    assert said in evaluate(work)


# ---- controls --------------------------------------------------------------------------------------------------------


def test_variants_stand_in_tables_of_their_own(work):
    run = open_run(work / "runs" / "paper", work / "data" / "mini")
    for model, stem, right in (
        *(("eeg", "arousal-frozen", 0.2), ("eeg", "arousal-random-frozen", 0.6), ("eeg", "arousal-shuffled", 0.5)),
        *(("eeg", "arousal-fraction0.1", 0.9), ("eeg", "arousal-random-fraction0.1", 0.6)),
        *(("fused-crossfit", "arousal", 0.97), ("classical-eeg", "arousal", 0.8), ("classical-both", "arousal", 0.8)),
    ):
        plant(run, model, stem, right, seed=4)
    text = evaluate(work)
    assert line(text, "Frozen encoders: differences", "EEG - EEG, frozen")[-1] == "better"
    assert line(text, "Is it the signal?", "EEG, shuffled labels")[-1] == "inside"
    assert line(text, "Is it the signal?", "EEG")[-1] == "outside"
    assert line(text, "Scarce labels: pre-trained - not", "EEG, 10 % - EEG random, 10 %")[0] == "arousal F1"
    assert line(text, "Fusion rules: differences", "Fused - Fused, cross-fitted")[-1] == "not significant"
    assert line(text, "Beside every model: differences", "EEG - Classical EEG")[-1] in ("better", "not significant")
    assert "Classical both" in table(text, "Beside every model: macro F1")
    assert line(text, "Scarce labels", "EEG") and "Fused, cross-fitted" in table(text, "Beside every model: macro F1")
    assert "shuffled" not in table(text, "Beside every model: macro F1")


def test_fewer_labels_are_fewer_training_segments_to_the_corrected_intervals(work):
    run = open_run(work / "runs" / "paper", work / "data" / "mini")
    stems = "arousal-fraction0.25", "arousal-random-fraction0.25"
    for stem, right in zip(stems, (0.9, 0.7)):
        plant(run, "eeg", stem, right, seed=4)
    found = json.loads(evaluate(work, "--json"))["runs"][0]
    splits = [run.split(fold) for fold in range(3)]
    test, train = ([(run.folds[each[name]] >= 0).sum() for each in splits] for name in ("test", "train"))
    ratio = 4 * np.mean(np.divide(test, train))
    f1 = found["table"]["EEG, 25 % of labels"]["arousal"]["f1"]
    assert f1["corrected"] / f1["interval"] == pytest.approx(np.sqrt(1 + 3 * ratio), abs=1e-12)
    files = [[load(run, "eeg", fold, stem) for fold in range(3)] for stem in stems]
    auroc = [[metrics.roc_auc_score(each["label"], each["probability"]) for each in of_row] for of_row in files]
    t = stats.ttest_rel(*auroc).statistic / np.sqrt(1 + 3 * ratio)
    tests = {(each["first"], each["score"]): each for each in found["tests"]["Scarce labels: pre-trained - not"]}
    assert tests["eeg-fraction0.25", "auroc"]["corrected"] == pytest.approx(2 * stats.t.sf(abs(t), 2), abs=1e-12)


def test_predictions_on_another_set(work):
    other = write_set(work / "data" / "other", name="other", subjects=5, unrated=1, seed=7)
    run, data = open_run(work / "runs" / "paper", work / "data" / "mini"), folds.open_segments(other)
    labels = folds.labels(data.table, "arousal", "global")
    test = np.flatnonzero(labels >= 0)
    for fold in range(3):
        predictions = np.empty(len(test), loop.PREDICTION_DTYPE)
        predictions["segment"], predictions["label"] = test, labels[test]
        predictions["probability"] = np.random.default_rng(fold).random(len(test))
        path = run.folder / "eeg" / f"fold{fold}" / "arousal@other.npy"
        np.save(path, predictions)
        about = {"data": "data/other", "data_set": "other", "threshold": "global"}
        path.with_suffix(".json").write_text(json.dumps({**about, "data_sha256": folds.data_sha256(data)}))
    found = json.loads(evaluate(work, "--json"))["runs"][0]["table"]["EEG, on other"]["arousal"]
    auroc = metrics.roc_auc_score(predictions["label"], predictions["probability"])
    assert found["auroc"]["by_fold"][2] == pytest.approx(auroc, abs=1e-12)
    assert line(evaluate(work), "Other people", "EEG, on other")[1].startswith(f"{found['auroc']['mean']:.3f} [")
    namesake = run.folder / "eeg" / "fold2" / "arousal@other.json"
    kept = namesake.read_text()
    again = write_set(work / "data" / "again", name="other", subjects=5, unrated=1, seed=9)
    about |= {"data": "data/again", "data_sha256": folds.data_sha256(folds.open_segments(again))}
    namesake.write_text(json.dumps(about))
    predictions = np.load(path)
    predictions["label"] = folds.labels(np.load(again / "segments.npy"), "arousal", "global")[test]
    np.save(path, predictions)
    assert (
        "fold2/arousal@other.npy: expected predictions on the set of runs/paper/eeg/fold0/arousal@other.npy"
        in refused(work)
    )
    namesake.write_text(kept)
    write_set(work / "changed", name="other", subjects=5, unrated=1, seed=8)
    shutil.rmtree(other)
    (work / "changed").rename(other)
    assert "predictions on data/other as it is now" in refused(work)


# ---- what is wrong with the files ------------------------------------------------------------------------------------


def with_field(predictions, name, value):
    predictions[name] = value
    return predictions


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda p: p[:-1], "one prediction for each of the 107 test segments of fold 1, found others"),
        (lambda p: np.concatenate([p, p[:1]]), "none twice"),
        (lambda p: np.concatenate([p[1:], p[1:2]]), "none twice"),
        (lambda p: with_field(p, "label", 1 - p["label"]), "labels of --threshold"),
        (lambda p: with_field(p, "probability", np.nan), "probabilities from 0 to 1"),
        (lambda p: p["probability"], "rows of"),
    ],
)
def test_predictions_that_are_not_the_folds_are_refused(work, change, expected):
    path = work / "runs" / "paper" / "ecg" / "fold1" / "arousal.npy"
    np.save(path, change(np.load(path)))
    said = refused(work)
    assert expected in said and "ecg/fold1/arousal.npy" in said


def test_predictions_of_another_run_are_refused(work):
    other = open_run(work / "runs" / "other", work / "data" / "mini", fold_seed=1)
    plant(other, "ecg", "arousal")
    shutil.copy(other.folder / "ecg" / "fold1" / "arousal.npy", work / "runs" / "paper" / "ecg" / "fold1")
    assert "ecg/fold1/arousal.npy: expected one prediction for each" in refused(work)


def test_a_model_of_another_run_beside_its_predictions_is_refused(work):
    run = open_run(work / "runs" / "paper", work / "data" / "mini")
    path = run.folder / "ecg" / "fold1" / "arousal.pt"
    torch.save({"identity": {**run.identity, "fold": 1, "target": "arousal", "seed": 1}, "flags": {}}, path)
    assert "ecg/fold1/arousal.pt: expected a checkpoint with seed 0, found 1" in refused(work)
    path.write_bytes(path.read_bytes()[:100])
    assert "ecg/fold1/arousal.pt: not a checkpoint that can be loaded" in refused(work)


def test_a_fold_that_the_run_does_not_have_is_refused(work):
    folder = work / "runs" / "paper" / "ecg"
    shutil.copytree(folder / "fold1", folder / "fold3")
    assert "ecg/fold3/arousal.npy: expected a fold of runs/paper" in refused(work)


def test_a_file_that_is_no_prediction_is_named(work):
    folder = work / "runs/paper/eeg/fold0"
    for name in ("old", "random-out1of5"):  # the second is of a model that cross-fitted fusion is made from
        shutil.copy(folder / "arousal.npy", folder / f"arousal-{name}.npy")
    notes = [each for each in evaluate(work).splitlines() if each.startswith("note: ")]
    assert len(notes) == 1 and notes[0].startswith("note: runs/paper/eeg/fold0/arousal-old.npy: not read")


def test_one_class_folds_are_marked(two_protocols, tmp_path):
    work = shutil.copytree(two_protocols, tmp_path / "work")
    run = open_run(work / "runs" / "single", work / "data" / "mini", split="subject", n_folds=12)
    plant(run, "eeg", "arousal", right=0.8)
    plant(run, "eeg", "valence", right=0.8)
    text = evaluate(work, runs=("runs/single",))
    assert line(text, "Beside every model: macro F1", "EEG")[0].endswith("†")
    assert line(text, "Beside every model: AUROC", "EEG")[0] == "-"  # every fold tests one subject, of one class
    assert "EEG, arousal: one class alone in fold 0 1 2" in text
    found = json.loads(evaluate(work, "--json", runs=("runs/single",)))["runs"][0]["table"]["EEG"]["arousal"]
    assert found["one_class"] == list(range(12)) and found["auroc"]["mean"] is None


def test_shuffled_labels_of_one_fold_alone(work):
    plant(open_run(work / "runs" / "paper", work / "data" / "mini"), "eeg", "arousal-shuffled", right=0.6, only=[1])
    text = evaluate(work)
    cells = line(text, "Is it the signal?", "EEG, shuffled labels")
    low, high = map(float, cells[2].strip("[]").split(", "))
    assert low < 0.5 < high and cells[3:] == ["1.0000", "inside"]
    assert "Too few folds (1): P of shuffled labels cannot be below 1." in " ".join(text.split())


def test_runs_with_the_same_folds_are_compared_over_those_of_both(work):
    shutil.copytree(work / "runs" / "paper", work / "runs" / "less")
    (work / "runs" / "less" / "eeg" / "fold0" / "arousal.npy").unlink()
    text = evaluate(work, runs=("runs/paper", "runs/less"))
    assert line(text, "Protocols side by side, AUROC", "EEG")[2].startswith("+0.000 [0.000, 0.000]")


@pytest.mark.parametrize("flags", [("--rows", 3), ("--out", "shown")])
def test_flags_of_the_report_need_it(work, flags):
    assert "they need --report" in refused(work, *flags)


def test_the_tables_come_also_where_the_report_cannot(work):
    flags = "--run", "runs/paper", "--data", "data/mini", *FEW, "--report", "--rows", 10**6
    finished = call("evaluate.py", *flags, cwd=work)
    assert finished.returncode == 2 and "Table 3" in finished.stdout
    assert finished.stderr.startswith("evaluate.py: segment 1000000: ") and finished.stderr.count("\n") == 1


def test_another_set_that_was_moved_is_left_out_and_said(work):
    path = work / "runs" / "paper" / "eeg" / "fold1" / "arousal@far.npy"
    shutil.copy(path.with_name("arousal.npy"), path)
    path.with_suffix(".json").write_text('{"data": "data/far", "data_sha256": "", "threshold": "global"}')
    notes = [each for each in evaluate(work).splitlines() if each.startswith("note: ")]
    assert len(notes) == 1 and notes[0].startswith("note: runs/paper/eeg/fold1/arousal@far.npy: not read")
    assert "data/far" in notes[0]


def test_report_is_written_beside_the_tables(work):
    said = evaluate(work, "--report", "--out", "shown", "--rows", 3)
    assert said.endswith("\nshown/report.html: these tables and the pictures of shown/figures\n")
    assert "Table 1" in (work / "shown" / "report.html").read_text()
    assert (work / "shown" / "figures" / "paper-segment3-arousal.png").exists()
