"""Tables of runs whose predictions are planted, against scikit-learn, SciPy and numbers written out."""

import argparse
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.recfunctions import append_fields
from scipy import stats
from sklearn import metrics

import paper
from analysis import tables

from prepared import DTYPE, call, describe, done, edit_manifest, edit_table, predicted, refusal
from prepared import replace_predictions, sign, without, write_set
from protocol import folds
from protocol.records import Model
from protocol.run import SETTINGS, Run
from protocol.run import open_run as open_settings
from protocol.segments import data_sha256, open_segments

FEW = "--bootstrap", 200, "--permutations", 500
FORMS = "--details", "--json"
BOTH = ("eeg", "ecg")
MODELS = {
    "eeg": Model("network", ("eeg",)),
    "ecg": Model("network", ("ecg",)),
    "fused": Model("fusion", BOTH),
    "classical-eeg": Model("classical", ("eeg",)),
    "classical-both": Model("classical", BOTH),
    "amigos-eeg": Model("amigos", ("eeg",)),
    "amigos-fused": Model("amigos", (*BOTH, "gsr")),
}
RANDOM, FROZEN, SHUFFLED = {"init": "random"}, {"freeze": True}, {"shuffle_labels": True}


def open_run(folder, data, **settings) -> Run:
    """A run as pretrain.py would start it, by default of three folds by segment."""
    args = argparse.Namespace(run=folder, data=data, **{**SETTINGS, "n_folds": 3, **settings})
    run = open_settings(args)
    run.start()
    return run


def plant(run, model, target, right=0.9, only=None, seed=0, flags=(), **variant):
    """Write predictions of which the share `right` is right, of the folds `only` or of all.

    flags: fold -> the flags of the record.
    """
    random = np.random.default_rng(seed)
    for fold in only or range(run.settings["n_folds"]):
        rows = run.split(fold)
        labels = run.labels(target, rows["train"])
        test = random.permutation(folds.rated(labels, rows["test"]))
        high = (random.random(len(test)) < right) == labels[test].astype(bool)
        probability = np.where(high, 0.5, 0.0) + 0.5 * random.random(len(test))
        one = replace(MODELS[model], **variant)
        predicted(run, one, fold, target, test, labels, probability, flags=dict(flags).get(fold, {}))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """data/mini, and in runs/paper: EEG nine in ten right, fused all but 3 %, ECG of fold 1 alone."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_set(folder / "data" / "mini", subjects=8, trials=8)
    run = open_run(folder / "runs" / "paper", folder / "data" / "mini")
    plant(run, "eeg", "arousal")
    plant(run, "eeg", "arousal", right=0.2, seed=1, **RANDOM)
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


@pytest.fixture
def run(work):
    """The run of that copy."""
    return open_run(work / "runs" / "paper", work / "data" / "mini")


def evaluate(work, *flags, runs=("runs/paper",)) -> str:
    return done("evaluate.py", "--run", *runs, "--data", "data/mini", *FEW, *flags, cwd=work)


def refused(work, *flags) -> str:
    return refusal("evaluate.py", "--run", "runs/paper", "--data", "data/mini", *FEW, *flags, cwd=work)


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


def ratio_of(run) -> float:
    """Rated test segments to rated training segments, on average over the folds."""
    parts = [run.split(fold) for fold in range(3)]
    rated = [{name: (run.folds[each[name]] >= 0).sum() for name in ("train", "test")} for each in parts]
    return np.mean([each["test"] / each["train"] for each in rated])


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
    ratio = ratio_of(run)
    assert ratio == pytest.approx((1 / 3) / (16 / 27), rel=0.02)
    assert summary["f1"]["corrected"] / summary["f1"]["interval"] == pytest.approx(np.sqrt(1 + 3 * ratio), abs=1e-12)
    low, high = summary["f1"]["bootstrap"]
    assert low < summary["f1"]["mean"] < high


def test_json_holds_subjects_and_tests(evaluated):
    run, found = evaluated
    right = {}
    for segment, label, probability in np.concatenate([load(run, "eeg", fold, "arousal") for fold in range(3)]):
        right.setdefault(run.data.table["subject"][segment], []).append((probability > 0.5) == label)
    expected = {name: np.mean(each) for name, each in right.items()}
    subjects = found["per_subject"]["EEG"]["arousal"]
    assert {name: each["accuracy"] for name, each in subjects.items()} == pytest.approx(expected, abs=1e-12)
    test = next(each for each in found["tests"]["Table 1: differences"] if each["score"] == "accuracy")
    files = [[load(run, "eeg", fold, stem) for fold in range(3)] for stem in ("arousal", "arousal-random")]
    pair = [[np.mean((each["probability"] > 0.5) == each["label"]) for each in folds] for folds in files]
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
    run, found, text = evaluated[0], evaluated[1]["table"], evaluate(planted, "--details")
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
    assert line(text, "Table 1: differences", "EEG - EEG random")[-1] == "better"
    note = " ".join(table(text, "Table 1:").split())
    assert re.search(r"F1, differences: arousal, EEG - EEG random: \+0\.\d+ \[[^]]*\] better", note)
    assert re.fullmatch(r"0\.\d{3} \(1/3\)", line(text, "Table 2: all models", "ECG")[0])
    assert "note: ECG, arousal: no predictions of fold 0 2\n" in text
    assert "(1/3)" in line(text, "Table 2: differences", "Fused - ECG")[1]
    assert "(1/3)" in line(text, "Beside every model: AUROC;", "ECG")[0]


@pytest.mark.parametrize(
    "by_subjects, by_folds, difference, expected",
    [
        (0.01, 0.01, 0.1, "better"),
        (0.01, 0.01, -0.1, "worse"),
        (0.01, 0.2, 0.1, "only by subjects"),
        (0.2, 0.01, 0.1, "only by folds"),
        (0.05, 0.05, 0.1, "n.s. (finds 0.300)"),
        (np.nan, np.nan, 0.1, "-"),
        (0.01, np.nan, 0.1, "-"),
    ],
)
def test_a_verdict_needs_both_tests(by_subjects, by_folds, difference, expected):
    found = {"sign_flip_holm": by_subjects, "corrected_holm": by_folds, "difference": difference, "detectable": 0.3}
    assert tables.verdict(found) == expected


@pytest.mark.parametrize("name, simulated", [("amigos", False), ("amigos", True), ("dreamer", False)])
def test_the_paper_stands_beside_amigos_alone(work, run, name, simulated):
    for model in ("amigos-eeg", "amigos-fused"):
        plant(run, model, "arousal", right=0.6)
    edit_manifest(work / "data" / "mini", lambda manifest: manifest.update(dataset=name, simulated=simulated))
    for path in run.folder.rglob("*.json"):
        path.write_text(path.read_text().replace('"data_set": "mini"', f'"data_set": "{name}"'))
    text = evaluate(work)
    published = (
        *("0.76±0.0073", "0.75±0.0083", "0.70±0.0064", "0.70±0.0068", "0.81±0.0107", "0.80±0.0094", "0.77±0.0093"),
        *("0.88±0.0054", "0.87±0.0054", "0.83±0.0078", "0.83±0.0074", "0.89±0.0050", "0.85±0.0038", "0.85±0.0039"),
        *("0.86±0.0049", "0.85±0.0051", "0.82±0.0065", "0.81±0.0068", "0.577", "0.564", "0.560", "P < 1e-05"),
    )
    assert {each in text for each in published} == {name == "amigos" and not simulated}
    assert ("paper / ours" in text) == (name == "amigos" and not simulated)
    assert name in line(text, "What training knew", "Data set")[0]
    assert re.fullmatch(r"(-/)?0\.\d{3} ?± ?0\.\d{3}", line(text, "Table 4", "AMIGOS EEG")[0])
    assert max(map(len, text.splitlines())) <= 120
    if "paper / ours" in text:
        assert re.findall(r"gives P < (\S+) for", " ".join(text.split())) == ["1e-05", "0.001", "0.0001"]
        assert line(text, "Table 1", "No")[0].startswith("0.76±0.0073/0.")
        assert line(text, "Table 4", "EEG [6]") == ["0.577", "0.564"]
        assert line(text, "Table 4", "Fused: EEG+ECG+GSR [6]") == ["0.564", "0.560"]
        assert [cell[:11] for cell in line(text, "Table 4", "EEG")] == ["0.80±0.0094", "0.77±0.0091"]


@pytest.fixture(scope="module")
def two_protocols(tmp_path_factory):
    """Arousal follows the subject. One run by segment, whose EEG knows the subject, and one by subject."""
    folder = tmp_path_factory.mktemp("protocols")
    data = write_set(folder / "data" / "mini", subjects=12, trials=4, unrated=0)
    edit_table(data, arousal=lambda t: np.where(np.unique(t["subject"], return_inverse=True)[1] % 2, 8, 2))
    for split, right in (("segment", 0.95), ("subject", 0.5)):
        run = open_run(folder / "runs" / split, data, split=split)
        plant(run, "eeg", "arousal", right=right)
        plant(run, "eeg", "valence", right=0.5)
    return folder


@pytest.fixture(scope="module")
def side_by_side(two_protocols):
    """What evaluate.py prints of both runs, and as JSON."""
    text, found = (evaluate(two_protocols, flag, runs=("runs/segment", "runs/subject")) for flag in FORMS)
    return text, json.loads(found)["runs"]


def test_the_subject_prior_gives_away_what_segment_folds_measure(side_by_side):
    text, found = side_by_side
    by_segment, by_subject = (each["table"]["Subject prior"]["arousal"] for each in found)
    assert by_segment["auroc"]["mean"] == 1.0 and by_segment["accuracy"]["mean"] == 1.0
    assert by_subject["auroc"]["by_fold"] == [0.5] * 3
    words = " ".join(text.split())
    said = "Subject prior, arousal (F1 1.000, AUROC 1.000 [1.000, 1.000])"
    assert f"- runs/segment: A prior, which sees no signal, is above chance: {said}" in words
    assert words.count("Subject prior, arousal (F1") == 1 and "Subject prior, valence (F1" not in words


def test_the_leakage_tax_has_an_interval(side_by_side):
    text, found = side_by_side
    tax = [each for each in found[0]["protocols"] if (each["model"], each["score"]) == ("EEG", "auroc")]
    means = [[each["table"]["EEG"][target]["auroc"]["mean"] for each in found] for target in paper.TARGETS]
    assert [each["difference"] for each in tax] == pytest.approx([one - other for one, other in means], abs=1e-12)
    assert all(each["bootstrap"][0] < each["difference"] < each["bootstrap"][1] for each in tax)
    cells = line(text, "Protocols side by side, AUROC", "EEG")
    assert max(map(len, text.splitlines())) <= 120 and cells[:2] == [f"{mean:.3f}" for mean in means[0]]
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


def test_another_threshold_is_another_task_and_runs_of_other_data_are_not_compared(work):
    plant(open_run(work / "runs" / "five", work / "data" / "mini", threshold="5"), "eeg", "arousal")
    cells = line(evaluate(work, runs=("runs/paper", "runs/five")), "What training knew", "High is above")
    assert cells == ["mean of all trials, test included", "5, fixed"]
    other = write_set(work / "data" / "other", name="mini", seed=5)
    plant(open_run(work / "runs" / "other", other), "eeg", "arousal")
    refusal("evaluate.py", "--run", "runs/paper", "runs/other", *FEW, cwd=work, says=["runs/other"])


def test_every_model_that_is_read_is_printed(work):
    run = open_run(work / "runs" / "new", work / "data" / "mini")
    half = {"label_fraction": 0.5}
    controls = {"eeg": ({}, FROZEN, SHUFFLED, {**FROZEN, **SHUFFLED}, half, {**SHUFFLED, **half})}
    for model in ("eeg", "ecg", "fused", "classical-eeg", "classical-both"):
        for init in ({},) if model.startswith("classical") else ({}, RANDOM):
            for control in controls.get(model, ({}, SHUFFLED)):
                plant(run, model, "arousal", right=0.6, **init, **control)
    found = json.loads(evaluate(work, "--json", runs=("runs/new",)))
    printed = {cells[0] for each in found["tables"] for cells in each["lines"]}
    assert len(found["runs"][0]["table"]) > 25 and found["runs"][0]["table"].keys() <= printed
    for path in run.folder.glob("[ef]*/fold*/arousal.*"):
        path.unlink()  # without pre-training, what is simple stands beside it
    text = evaluate(work, "--details", runs=("runs/new",))
    for other in ("Majority class", "Subject prior", "Video prior", "Classical EEG"):
        assert line(text, "Beside every model: differences", f"EEG random - {other}")


def test_folds_trained_otherwise_are_said_stage_by_stage(work, run):
    grids = {fold: {"baseline": {"regularisation": [0.1, 1.0][fold % 2 :]}} for fold in range(3)}
    plant(run, "classical-eeg", "arousal", flags=grids)
    flags = {}
    for fold in range(3):
        pretrain = {"lr": 1e-3, "epochs": 2 + (fold == 1), "extra": ["ab"] * (fold == 2)}
        flags[fold] = {"finetune": {"lr": 1e-4 * (1 + fold % 2), "threads": fold, "fold": fold}, "pretrain": pretrain}
    plant(run, "eeg", "arousal", flags=flags)
    text, said = evaluate(work), "arousal: the folds were trained with different"
    assert f"note: Classical EEG, {said} --regularisation ([0.1, 1.0], [1.0])\n" in text
    own = "--lr (0.0001, 0.0002), pretrain.py's --epochs (2, 3), pretrain.py's --extra"
    assert f"note: EEG, {said} {own}\n" in text


def test_variants_stand_in_tables_of_their_own(work, run):
    tenth = {"label_fraction": 0.1}
    for model, variant, right in (
        *(("eeg", FROZEN, 0.2), ("eeg", {**RANDOM, **FROZEN}, 0.6), ("eeg", SHUFFLED, 0.5)),
        *(("eeg", tenth, 0.9), ("eeg", {**RANDOM, **tenth}, 0.6)),
        *(("classical-eeg", {}, 0.8), ("classical-both", {}, 0.8)),
    ):
        plant(run, model, "arousal", right, seed=4, **variant)
    text = evaluate(work, "--details")
    assert line(text, "Frozen encoders: differences", "EEG - EEG, frozen")[-1] == "better"
    assert line(text, "Is it the signal?", "EEG, shuffled labels")[-1] == "inside"
    assert line(text, "Is it the signal?", "EEG")[-1] == "outside"
    assert line(text, "Scarce labels: differences", "EEG, 10 % - EEG random, 10 %")[0] == "arousal F1"
    assert line(text, "Beside every model: differences", "EEG - Classical EEG")[-1].startswith(("better", "n.s. ("))
    assert "Classical both" in table(text, "Beside every model: macro F1")
    assert line(text, "Scarce labels;", "EEG")
    assert "shuffled" not in table(text, "Beside every model: macro F1")


def test_fewer_labels_keep_the_ratio_of_the_split(work, run):
    """It stands for what the training sets of two folds share; tests/test_scores.py simulates why."""
    for init, right in (({}, 0.9), (RANDOM, 0.7)):
        plant(run, "eeg", "arousal", right, seed=4, label_fraction=0.25, **init)
    found = json.loads(evaluate(work, "--json"))["runs"][0]
    ratio, f1 = ratio_of(run), found["table"]["EEG, 25 % of labels"]["arousal"]["f1"]
    assert f1["corrected"] / f1["interval"] == pytest.approx(np.sqrt(1 + 3 * ratio), abs=1e-12)
    stems = "arousal-fraction0.25", "arousal-random-fraction0.25"
    files = [[load(run, "eeg", fold, stem) for fold in range(3)] for stem in stems]
    auroc = [[metrics.roc_auc_score(each["label"], each["probability"]) for each in folds] for folds in files]
    t = stats.ttest_rel(*auroc).statistic / np.sqrt(1 + 3 * ratio)
    tests = {(each["first"], each["score"]): each for each in found["tests"]["Scarce labels: differences"]}
    assert tests["EEG, 25 % of labels", "auroc"]["corrected"] == pytest.approx(2 * stats.t.sf(abs(t), 2), abs=1e-12)


def test_predictions_on_another_set(work, run):
    def write(name, seed):
        """A set called other: its labels, the rows that are rated, and what a record says of it."""
        data = open_segments(write_set(work / "data" / name, name="other", subjects=5, unrated=1, seed=seed))
        labels = folds.labels(data.table, "arousal", "global")
        about = {"tested_data": f"data/{name}", "tested_sha256": data_sha256(data)}
        return labels, np.flatnonzero(labels >= 0), about

    labels, test, about = write("other", seed=7)
    for fold in range(3):
        probability = np.random.default_rng(fold).random(len(test)).astype(np.float32)
        model = replace(MODELS["eeg"], tested_on="other")
        path = predicted(run, model, fold, "arousal", test, labels, probability, **about)
    assert path == run.folder / "eeg" / "fold2" / "arousal@other.npy"
    text, found = (evaluate(work, flag) for flag in FORMS)
    found = json.loads(found)["runs"][0]["table"]["EEG, on other"]["arousal"]["auroc"]
    assert found["by_fold"][2] == pytest.approx(metrics.roc_auc_score(labels[test], probability), abs=1e-12)
    assert line(text, "Other people", "EEG, on other")[1].startswith(f"{found['mean']:.3f} [")
    again, _, of_again = write("again", seed=9)
    predictions = np.load(path)
    replace_predictions(path, with_field(predictions.copy(), "label", again[test]), **of_again)
    said = "fold2/arousal@other.npy: expected predictions on the set of runs/paper/eeg/fold0/arousal@other.npy"
    assert said in refused(work)
    replace_predictions(path, predictions, **about)
    shutil.rmtree(work / "data" / "other")
    *_, note = [each for each in evaluate(work).splitlines() if "not read" in each]
    assert note.startswith("note: runs/paper/eeg/fold2/arousal@other.npy: not read") and "data/other" in note
    write("other", seed=8)
    assert "predictions on data/other as it is now" in refused(work)


def with_field(predictions, name, value):
    predictions[name] = value
    return predictions


def changed(change):
    """A damage that saves change(predictions) in their place, and their hash in the record."""
    return lambda path: replace_predictions(path, change(np.load(path)))


@pytest.mark.parametrize(
    "damage, expected",
    [
        (changed(lambda p: p[:-1]), "one prediction for each of the 107 test segments of fold 1, none twice, found"),
        (changed(lambda p: np.concatenate([p, p[:1]])), "none twice"),
        (changed(lambda p: np.concatenate([p[1:], p[1:2]])), "none twice"),
        (changed(lambda p: with_field(p, "label", 1 - p["label"])), "labels of --threshold"),
        (changed(lambda p: with_field(p, "probability", np.nan)), "probabilities from 0 to 1"),
        (changed(lambda p: p["probability"]), "rows of"),
        (lambda path: describe(path, fold="1"), "expected fold as int"),
        (lambda path: describe(path, flags=None), "expected flags as dict, found None"),
        (lambda path: describe(path, modalities=[]), "expected a model"),
        (lambda path: describe(path, family="other"), "its record is that of"),
        (lambda path: path.with_suffix(".json").write_text("{"), "expected JSON"),
    ],
)
def test_damaged_predictions_and_records_are_refused(work, damage, expected):
    damage(work / "runs" / "paper" / "ecg" / "fold1" / "arousal.npy")
    said = refused(work)
    assert expected in said and "ecg/fold1/arousal." in said


def test_predictions_of_another_run_are_refused(work):
    other = open_run(work / "runs" / "other", work / "data" / "mini", fold_seed=1)
    plant(other, "ecg", "arousal")
    for name, said in (("npy", "not the predictions that"), ("json", "expected fold seed 0, found 1")):
        shutil.copy(other.folder / "ecg" / "fold1" / f"arousal.{name}", work / "runs/paper/ecg/fold1")
        assert f"ecg/fold1/arousal.{name}: {said}" in refused(work)


def test_a_fold_that_the_run_does_not_have_is_refused(work):
    folder = work / "runs" / "paper" / "ecg"
    path = shutil.copytree(folder / "fold1", folder / "fold3") / "arousal.npy"
    replace_predictions(path, np.load(path), fold=3)
    assert "ecg/fold3/arousal.npy: expected a fold of runs/paper" in refused(work)


def test_predictions_without_a_record_are_named(work):
    folder = work / "runs/paper/eeg/fold0"
    shutil.copy(folder / "arousal.npy", folder / "arousal-old.npy")
    (note,) = [each for each in evaluate(work).splitlines() if "not read" in each]
    assert note.startswith("note: runs/paper/eeg/fold0/arousal-old.npy: not read")
    for record in (work / "runs" / "paper").rglob("arousal*.json"):
        record.unlink()
    said = refused(work)
    assert "runs/paper: no predictions yet" in said and "no record (.json) lies beside it" in said


def test_fused_models_of_other_modalities_are_not_averaged(work):
    describe(work / "runs" / "paper" / "fused" / "fold1" / "arousal.npy", modalities=["eeg", "ecg", "eda"])
    said = "fused/fold1/arousal.npy: expected a model of eeg and ecg as in other folds, found eeg and ecg and eda"
    assert said in refused(work)


def test_one_class_folds_are_marked(two_protocols, tmp_path):
    work = shutil.copytree(two_protocols, tmp_path / "work")
    run = open_run(work / "runs" / "single", work / "data" / "mini", split="subject", n_folds=12)
    for target in ("arousal", "valence"):
        plant(run, "eeg", target, right=0.8)
    details, found = (evaluate(work, flag, runs=("runs/single",)) for flag in FORMS)
    assert line(details, "Beside every model: macro F1", "EEG")[0].endswith("†")
    assert line(details, "Beside every model: AUROC", "EEG")[0] == "-"  # every fold tests one subject, of one class
    assert "Where a mark † stands, folds test one class alone" in " ".join(details.split())
    found = json.loads(found)["runs"][0]["table"]["EEG"]["arousal"]
    assert found["one_class"] == list(range(12)) and found["auroc"]["mean"] is None


def test_shuffled_labels_of_one_fold_alone(work, run):
    plant(run, "eeg", "arousal", right=0.6, only=[1], **SHUFFLED)
    text = evaluate(work, "--details")
    cells = line(text, "Is it the signal?", "EEG, shuffled labels")
    low, high = map(float, cells[2].strip("[]").split(", "))
    assert low < 0.5 < high and cells[3:] == ["1.0000", "inside"]


def test_runs_with_the_same_folds_are_compared_over_those_of_both(work):
    shutil.copytree(work / "runs" / "paper", work / "runs" / "less")
    (work / "runs" / "less" / "eeg" / "fold0" / "arousal.npy").unlink()
    text = evaluate(work, runs=("runs/paper", "runs/less"))
    assert line(text, "Protocols side by side, AUROC", "EEG")[2].startswith("+0.000 [0.000, 0.000]")


def test_report_is_written_beside_the_tables_which_come_also_where_it_cannot(work):
    said = evaluate(work, "--report")
    assert said.splitlines()[-1].startswith("runs/paper/report.html: ")
    assert "Table 1" in (work / "runs/paper/report.html").read_text()
    assert (work / "runs/paper/figures/paper-overview.png").exists()
    (work / "runs/paper/eeg/fold0/arousal.jsonl").write_text('{"epoch": 1')
    finished = call("evaluate.py", "--run", "runs/paper", "--data", "data/mini", *FEW, "--report", cwd=work)
    assert finished.returncode == 2 and "Table 3" in finished.stdout
    assert "arousal.jsonl: line 1: expected JSON" in finished.stderr and finished.stderr.count("\n") == 1


def test_without_details_one_screen_is_printed(work, run):
    plant(run, "eeg", "arousal", right=0.5, **SHUFFLED)
    lines = evaluate(work).splitlines()
    titles = [each.split(";")[0].split(":")[0].strip("*") for each in lines if each.startswith("**")]
    expected = ["What training knew of the test segments", "Table 1", "Table 2", "Table 3", "Beside every model"]
    assert titles == [*expected, "What to doubt"] and len(lines) < 70


def test_what_to_doubt_follows_from_the_run(tmp_path):
    data = write_set(tmp_path / "data" / "mini", subjects=24, unrated=0)
    edit_manifest(data, lambda manifest: manifest.update(simulated=False))
    edit_table(data, arousal=lambda t: np.random.default_rng(0).permutation(len(t)) % 9)  # no prior can tell it
    run = open_run(tmp_path / "runs" / "paper", data, split="subject")
    plant(run, "eeg", "arousal")

    def begin(*starts):
        text = " ".join(evaluate(tmp_path).split("**What to doubt**")[1].split("--details")[0].split())
        said = text.split("- ")[1:]
        return len(said) == 3 and all(each.startswith(start) for each, start in zip(said, starts))

    assert begin("The first ± and P t", "Test data entered before training: signals", "Each model was trained once")
    (run.folder / "eeg" / "fold1" / "arousal.npy").unlink(), (run.folder / "eeg" / "fold1" / "arousal.json").unlink()
    assert begin("Folds are missing")
    edit_manifest(data, lambda manifest: manifest.update(simulated=True))
    assert begin("The signals", "Folds are m")


@pytest.mark.parametrize("missing, flags", [("torch sklearn matplotlib PIL", ()), ("matplotlib", ("--report",))])
def test_packages_that_are_not_needed_may_be_missing(work, missing, flags):
    found = without(missing.split(), "evaluate.py", "--data", "data/mini", "--bootstrap", 20, *flags, cwd=work)
    if missing.startswith("torch"):
        assert found.returncode == 0 and "Table 3" in found.stdout, found.stderr
    else:
        assert found.returncode == 2 and found.stderr.splitlines()[-1].endswith("pip install matplotlib")


def test_a_third_modality_is_in_every_table(work, monkeypatch):
    monkeypatch.setitem(paper.MODALITIES, "eda", paper.Modality("EDA", ("EDA",), low=0.05, high=5.0, fused=True))
    fused = (*BOTH, "eda")
    for module in ("analysis.reading", "analysis.compared"):
        monkeypatch.setattr(f"{module}.FUSED", fused)
    monkeypatch.setitem(MODELS, "eda", Model("network", ("eda",)))
    monkeypatch.setitem(MODELS, "fused", Model("fusion", fused))
    run = open_run(work / "runs" / "new", work / "data" / "mini")
    for model in ("eeg", "ecg", "eda", "fused"):
        plant(run, model, "arousal")
        plant(run, model, "arousal", **RANDOM)
    plant(run, "eda", "arousal", **SHUFFLED)
    plant(run, "eda", "arousal", label_fraction=0.5)
    text = evaluate(work, "--details", runs=("runs/new",))
    rules = "Mean of all", "Maximum of all", "Vote of all"
    for title, names in (
        ("Table 2: all models", ["EDA"]),
        ("Table 2: differences", ["Fused - EDA"]),
        ("Table 3: fused model", ["Yes"]),
        ("Beside every model: macro F1", ["EDA, no pre-training"]),
        ("Beside every model: differences", ["EDA - Video prior"]),
        ("Fusion rules;", rules),
        ("Fusion rules: differences", [f"Fused - {rule}" for rule in rules]),
        ("Is it the signal?", ["EDA, shuffled labels"]),
        ("Scarce labels;", ["EDA, 50 % of labels"]),
    ):
        assert all(line(text, title, name)[0] for name in names)
    assert max(map(len, text.splitlines())) <= 120
    shutil.rmtree(run.folder / "eda")
    said = "note: fusion rules, arousal: left out, for there are no predictions of EDA\n"
    assert said in evaluate(work, runs=("runs/new",))


def test_the_papers_fusion_is_of_eeg_and_ecg_alone():
    assert tables.published(MODELS["fused"], "arousal") == ((0.89, 0.0050), (0.89, 0.0050))
    assert tables.published(Model("fusion", (*BOTH, "eda")), "arousal") is None
    assert tables.published(replace(MODELS["fused"], freeze=True), "arousal") is None
    assert tables.published(MODELS["ecg"], "dominance") is None
    assert tables.published(replace(MODELS["ecg"], init="random"), "arousal") is None  # the paper has none


@pytest.mark.parametrize("name, simulated", [("amigos", False), ("mini", True)])
def test_a_third_target_is_in_every_table_without_the_papers_numbers(tmp_path, monkeypatch, name, simulated):
    targets = (*paper.TARGETS, "dominance")
    for module in ("paper", "analysis.reading", "analysis.compared"):
        monkeypatch.setattr(f"{module}.TARGETS", targets)
    monkeypatch.setattr("protocol.segments.SEGMENT_DTYPE", np.dtype([*DTYPE, ("dominance", "f4")]))
    data = write_set(tmp_path / "data" / "mini", name=name)
    table = np.load(data / "segments.npy")
    np.save(data / "segments.npy", append_fields(table, "dominance", table["arousal"], "f4", usemask=False))
    sign(data)
    edit_manifest(data, lambda manifest: manifest.update(simulated=simulated))
    run = open_run(tmp_path / "runs" / "paper", data)
    for model in ("eeg", "ecg", "fused", "amigos-eeg"):
        for target in targets:
            plant(run, model, target)
    text = evaluate(tmp_path, "--details")
    heads = [each for each in text.splitlines() if "Dominance" in each or "dominance" in each]
    cells = {cell for each in heads for cell in re.split(r" *\| *", each)}
    assert {"Dominance F1", "Dominance AUROC", "Dominance Acc."} <= cells
    assert any(each.startswith("| EEG - Majority class ") and "dominance F1" in each for each in heads)
    assert any(each.startswith("| Fused ") and "| dominance |" in each for each in heads)  # within subjects
    assert max(map(len, text.splitlines())) <= 120 and ("-/0." in text) == (name == "amigos")


@pytest.mark.parametrize("same_people", [False, True])
def test_runs_of_one_design_are_pooled(tmp_path, same_people):
    """Three runs of six people, against SciPy's paired t over all folds, and the exchange of models within people."""
    gains, ratios = [], []
    for number in range(3):
        data = write_set(tmp_path / "data" / str(number), unrated=0, seed=0 if same_people else number)
        run = open_run(tmp_path / "runs" / str(number), data, split="subject", fold_seed=number)
        for init, right in (("random", 0.6), ("pretrained", 0.85)):
            plant(run, "eeg", "arousal", right, seed=number, init=init)
        ratios.append(ratio_of(run))
        for fold in range(3):
            files = (load(run, "eeg", fold, stem) for stem in ("arousal", "arousal-random"))
            f1 = [metrics.f1_score(each["label"], each["probability"] > 0.5, average="macro") for each in files]
            gains.append(f1[0] - f1[1])
    command = "benchmark.py", "evidence", "--run", "runs/0", "runs/1"
    lines = done(*command, "runs/2", *["--same-people"] * same_people, cwd=tmp_path).splitlines()
    cells = next(each for each in lines if each.startswith("| EEG, arousal | F1 |")).split(" | ")
    assert float(cells[4].split()[0]) == pytest.approx(np.mean(gains), abs=6e-4)
    # The runs of other people share nothing, those of the same people as much as the folds of one.
    ratio = np.mean(ratios) / (1 if same_people else 3)
    t = stats.ttest_1samp(gains, 0).statistic / np.sqrt(1 + 9 * ratio)
    assert float(cells[5].strip("<")) == pytest.approx(max(1e-4, 2 * stats.t.sf(t, 8)), abs=6e-5)
    # Of 2^6 exchanges two are as extreme as none, where everybody gains; of 2^18 none of 9,999 drawn ones.
    assert float(cells[6].strip("<| ")) == pytest.approx(2 / 64 if same_people else 1e-4, abs=2e-4)
    finished = call(*command, *["--same-people"] * (not same_people), cwd=tmp_path)
    assert finished.returncode == 2 and "--run: expected " in finished.stderr and "sets in 2 runs" in finished.stderr
