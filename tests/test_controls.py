"""Controls and variants of training: shuffled labels, frozen features, scarce labels, other sets."""

import hashlib
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prepared import FINETUNE, FUSE, NETWORK, PRETRAIN, assert_same_weights, call, contents, done, edit_manifest
from prepared import edit_table, labelled, open_run, read_log, refusal, write_set
from protocol import folds
from protocol.segments import data_sha256, open_segments
from training import checkpoints, trained

EEG = ("finetune.py", *"--modality eeg --fold 1 --target arousal".split(), *FINETUNE)
FUSION = ("fuse.py", *"--target arousal --fold 1".split(), *FUSE)
FOLD = "runs/paper/eeg/fold1/"


def refused(work, *command, says):
    refusal(*command, cwd=work, says=says)


def trial_of(table, rows) -> list:
    return table[["subject", "trial"]][rows].tolist()


@pytest.mark.parametrize("split", ["segment", "trial", "subject"])
def test_shuffled_labels_keep_a_subjects_counts_and_a_trials_unity(finished, split):
    run = open_run(finished, split)
    table = run.data.table
    rows, true = labelled(run, 2, "arousal")
    rows_again, shuffled = labelled(run, 2, "arousal", shuffle_labels=True)
    assert all(np.array_equal(rows[name], rows_again[name]) for name in rows)
    seen = np.concatenate([rows["train"], rows["validation"]])
    counts = []
    for labels in (true, shuffled):
        of_trial = dict(zip(trial_of(table, seen), labels[seen].tolist()))
        assert [of_trial[trial] for trial in trial_of(table, seen)] == labels[seen].tolist()  # one label a trial
        counts.append(sorted((subject, label) for (subject, _), label in of_trial.items()))
    assert counts[0] == counts[1]
    others = np.setdiff1d(np.arange(len(table)), seen)
    assert np.isin(rows["test"], others).all() and np.array_equal(true[others], shuffled[others])
    assert (true[seen] != shuffled[seen]).any()


def test_shuffling_is_a_function_of_seed_and_fold(finished):
    runs = [open_run(finished, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (labelled(run, 2, "arousal", shuffle_labels=True)[1] for run in runs)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    fold1 = labelled(runs[0], 1, "arousal", shuffle_labels=True)[1]
    both = np.setdiff1d(np.arange(len(first)), np.concatenate([runs[0].split(fold)["test"] for fold in (1, 2)]))
    assert not np.array_equal(fold1[both], first[both])


def test_shuffled_labels_say_nothing_of_the_trial():
    """Over many shuffles a trial's label is high as often as its subject's trials are, whatever its own."""
    table = np.zeros(8, [("subject", "U16"), ("trial", "U32")])
    table["subject"], table["trial"] = ["A"] * 4 + ["B"] * 4, list("1234") * 2
    true = np.array([1, 0, 0, 0, 1, 1, 1, 0], np.int8)
    random = np.random.default_rng(0)
    rate = np.mean([folds.shuffle_within_subject(table, true, np.arange(8), random) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(rate, [0.25] * 4 + [0.75] * 4, atol=4 * np.sqrt(0.25 * 0.75 / 4000))


@pytest.mark.parametrize("split", ["segment", "trial", "subject"])
def test_fractions_are_nested_whole_trials_of_both_classes(finished, split):
    run = open_run(finished, split)
    table = run.data.table
    whole, labels = labelled(run, 2, "arousal")
    inside = set(trial_of(table, whole["train"]))
    assert np.array_equal(labelled(run, 2, "arousal", label_fraction=1.0)[0]["train"], whole["train"])
    for fraction in (0.8, 0.5, 0.3, 0.1):
        rows, found = labelled(run, 2, "arousal", label_fraction=fraction)
        chosen = set(trial_of(table, rows["train"]))
        assert chosen < inside
        expected = whole["train"][[name in chosen for name in trial_of(table, whole["train"])]]
        assert np.array_equal(rows["train"], expected)  # each chosen trial with all it has in training
        for label in (0, 1):
            of_class = whole["train"][labels[whole["train"]] == label]
            share = set(trial_of(table, rows["train"][found[rows["train"]] == label]))
            assert len(share) == round(fraction * len(set(trial_of(table, of_class))))
        assert all(np.array_equal(rows[name], whole[name]) for name in ("validation", "test"))
        assert np.array_equal(found, labels)
        inside = chosen
    runs = run, open_run(finished, split, seed=1)
    one, other = (labelled(each, 2, "arousal", label_fraction=0.3)[0]["train"] for each in runs)
    assert set(trial_of(table, one)) != set(trial_of(table, other))


def test_a_fraction_without_a_trial_of_a_class(work):
    flags = "--label-fraction", 0.001
    refused(work, *EEG, *flags, says=["--label-fraction 0.001", "none of the 12 low", "use a larger fraction"])


def by_hand(work, stem, rows, data="amigos", modality="eeg", what="classify"):
    """Logits, or features, of a single-modality checkpoint, one segment at a time."""
    path = work / f"{stem}.pt"
    signals = open_segments(work / "data" / data).signals[modality]
    machine = SimpleNamespace(device="cpu", precision="fp32")
    model = trained.load_classifier(trained.open_trained(path, path.parents[2], ""), *signals.shape[1:], machine)
    with torch.no_grad():
        return torch.cat([getattr(model, what)(torch.from_numpy(signals[row][None].copy())) for row in rows])


def validation_loss(work, stem, labels):
    """That of the labels (n,) with the logits of a checkpoint, and the one that its log ends with."""
    rows = labelled(open_run(work), 1, "arousal")[0]["validation"]
    target = torch.from_numpy(labels[rows].astype(np.float32))
    loss = F.binary_cross_entropy_with_logits(by_hand(work, stem, rows), target).item()
    return loss, read_log(work / f"{stem}.jsonl")[-1]["validation_loss"]


def test_training_learns_from_the_shuffled_labels_and_is_tested_on_true_ones(work):
    done(*EEG, "--shuffle-labels", cwd=work)
    rows, true = labelled(open_run(work), 1, "arousal")
    taught = labelled(open_run(work), 1, "arousal", shuffle_labels=True)[1]
    found = np.load(work / f"{FOLD}arousal-shuffled.npy")
    assert np.array_equal(found["label"], true[rows["test"]])
    expected, logged = validation_loss(work, f"{FOLD}arousal-shuffled", taught)
    assert logged == pytest.approx(expected, rel=1e-5)
    assert logged != pytest.approx(validation_loss(work, f"{FOLD}arousal-shuffled", true)[0], rel=1e-3)


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_frozen_weights_stay_and_the_classifier_moves(work, init):
    flags = "--freeze", "--init", init, *(NETWORK if init == "random" else ()), "--dropout", 0.5, "--lr", 0.01
    stem = f"{FOLD}arousal{'-random' if init == 'random' else ''}-frozen"
    weights = []
    for epochs in (1, 2):
        done(*EEG, *flags, "--epochs", epochs, "--fresh", cwd=work)
        weights.append(torch.load(work / f"{stem}.pt", weights_only=True)["model"])
    sooner, later = weights
    if init == "pretrained":
        first = torch.load(work / f"{FOLD}pretrain.pt", weights_only=True)["model"]
        for name in later:
            assert name.startswith("classifier.") or torch.equal(later[name], first[name]), name
    assert len(later) > 10
    moved = {name for name in later if not torch.equal(later[name], sooner[name])}
    assert moved == {name for name in later if name.startswith(("classifier.hidden", "classifier.output"))}
    rows, labels = labelled(open_run(work), 1, "arousal")
    found = np.load(work / f"{stem}.npy")["probability"]
    np.testing.assert_allclose(found, torch.sigmoid(by_hand(work, stem, rows["test"])), rtol=1e-5)
    expected, logged = validation_loss(work, stem, labels)  # of the stored features, and of the network
    assert logged == pytest.approx(expected, rel=1e-5)


def test_a_fraction_trains_on_its_rows_alone(work):
    """Signals of the left-out training trials are not even read: NaN there goes unnoticed."""
    run = open_run(work)
    kept = labelled(run, 1, "arousal", label_fraction=0.3)[0]
    left_out = np.setdiff1d(labelled(run, 1, "arousal")[0]["train"], kept["train"])
    signals = np.load(work / "data/amigos/eeg.npy", mmap_mode="r+")
    signals[left_out] = np.nan
    signals.flush()
    done(*EEG, "--label-fraction", 0.3, "--trust-data", cwd=work)
    assert "holds NaN" in call(*EEG, "--label-fraction", 0.8, "--trust-data", cwd=work).stderr
    assert torch.load(work / f"{FOLD}arousal-fraction0.3.pt", weights_only=True)["record"]["label_fraction"] == 0.3


def test_frozen_training_stopped_and_resumed_ends_in_the_same_bits(work, monkeypatch):
    command = *EEG, "--freeze", "--epochs", 6, "--classifier-dropout", 0.4, "--lr", 0.01
    checkpoint, predictions = (work / f"{FOLD}arousal-frozen.{ending}" for ending in ("pt", "npy"))

    def result():
        return torch.load(checkpoint, weights_only=True), np.load(predictions)

    done(*command, cwd=work)
    alone, save, saved = result(), checkpoints.save, []

    def save_and_stop(path, state):
        save(path, state)
        saved.append(state["epoch"])
        if saved == [1, 2, 3]:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", save_and_stop)
        assert call(*command, "--fresh", cwd=work).returncode == 128 + signal.SIGTERM
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 3 and not predictions.exists()
    assert "resuming at epoch 4" in done(*command, cwd=work)
    again = result()
    assert_same_weights(again[0], alone[0])
    assert np.array_equal(alone[1], again[1])


def other_set(work, name="other", **options):
    """Other people, who rate from 1 to 5."""
    folder = write_set(work / "data" / name, name=name, subjects=3, seed=5, **options)
    ratings = {name: lambda t, name=name: t[name] / 2 + 0.5 for name in ("arousal", "valence")}
    edit_table(folder, **ratings)  # 1.5 and 3.5: all low for the mean of the run, 4
    return folder


def test_another_set_is_predicted_after_training_and_later(work):
    table = np.load(other_set(work) / "segments.npy")
    other_set(work, "third")
    before = contents(work / FOLD)
    out = done(*EEG, "--test-data", "data/other", cwd=work)
    assert "arousal.npy: already done" in out and "arousal@other.npy: 60 test predictions" in out
    after = contents(work / FOLD)
    written = {"arousal@other.npy", "arousal@other.json"}
    assert after.items() > before.items() and after.keys() - before.keys() == written
    found = np.load(work / f"{FOLD}arousal@other.npy")
    assert found["segment"].tolist() == np.flatnonzero(~np.isnan(table["arousal"])).tolist()
    assert found["label"].tolist() == (table["arousal"][found["segment"]] > 2.5).tolist()
    logits = by_hand(work, f"{FOLD}arousal", found["segment"], "other")
    np.testing.assert_allclose(found["probability"], torch.sigmoid(logits), rtol=1e-5)
    sha256 = data_sha256(open_segments(work / "data" / "other"))
    record, own = (json.loads((work / f"{FOLD}arousal{name}.json").read_text()) for name in ("@other", ""))
    about = {"tested_on": "other", "tested_sha256": sha256, "tested_data": "data/other"}
    assert record == {**own, **about, "predictions_sha256": record["predictions_sha256"]}
    assert own["tested_on"] == "" and own["threshold"] == "global"

    assert "arousal@other.npy: already done" in done(*EEG, "--test-data", "data/other", cwd=work)
    assert contents(work / FOLD) == after
    edit_manifest(other_set(work, "namesake"), lambda m: m.update(dataset="other"))
    says = ["arousal@other.json: was made on another set of that name", "--name"]
    refused(work, *EEG, "--test-data", "data/namesake", says=says)
    done(*EEG, "--lr", 0.01, "--fresh", "--test-data", "data/third", cwd=work)
    names = {path.name for path in (work / FOLD).iterdir()}
    assert "arousal@third.npy" in names and "arousal@other.npy" not in names  # of the model that is no more


def test_the_fused_model_predicts_another_set_as_predict_does(work):
    other_set(work)
    done(*FUSION, "--test-data", "data/other", cwd=work)
    model = "runs/paper/fused/fold1/arousal"
    done("predict.py", "--model", f"{model}.pt", "--data", "data/other", "--rows", f"{model}@other.npy", cwd=work)
    predicted = np.load(work / "predictions" / "fused-fold1-arousal.npy")
    assert np.array_equal(predicted["probability"], np.load(work / f"{model}@other.npy")["probability"])


SAME = hashlib.sha256(b"mini 0 2").hexdigest()  # of subject S2 of data/amigos


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda m: m["channels"].update(eeg=["F7", "O1"]), "channels F7 F3, found F7 O1"),
        (lambda m: m.update(rate=256), "rate 128, found 256"),
        (lambda m: m["preprocessing"].update(normalise="none"), "normalise subject, found none"),
        (lambda m: m.update(dataset="mini"), "is mini, the data set of data/amigos"),
        (lambda m: m["sources"][1].update(sha256=SAME), "its source S1.mat is in data/amigos"),
    ],
)
def test_sets_prepared_otherwise_or_of_the_runs_own_recordings(work, change, says):
    edit_manifest(other_set(work), change)
    for command in (EEG, FUSION):
        refused(work, *command, "--test-data", "data/other", says=["data/amigos", "data/other", says])


def test_sets_of_another_length_or_name_or_without_ratings(work):
    other_set(work, points=80)
    refused(work, *EEG, "--test-data", "data/other", says=["data/amigos", "points 96, found 80 in data/other"])
    write_set(work / "data" / "unrated", name="unrated", subjects=0)
    refused(work, *EEG, "--test-data", "data/unrated", says=["data/unrated/segments.npy: no arousal rating"])
    for name in ("one", "two"):
        edit_manifest(other_set(work, name), lambda m: m.update(dataset="same"))
    refused(work, *EEG, "--test-data", "data/one", "data/two", says=["data/two: is same, as is data/one"])


def test_a_set_of_the_pretraining_and_a_threshold_of_training(work):
    other_set(work)
    other_set(work, "third")
    same = json.loads((work / "data" / "other" / "manifest.json").read_text())["sources"]
    edit_manifest(other_set(work, "shorter", segments=3), lambda m: m.update(sources=same))
    new = "--fold", 1, "--run", "runs/new", "--n-folds", 4
    for modality, extra in (("eeg", "data/other"), ("ecg", "data/third")):
        done("pretrain.py", "--modality", modality, *new, *PRETRAIN, "--extra", extra, cwd=work)
        done(*EEG, "--modality", modality, *new, cwd=work)
    for command, name in ((EEG, "other"), (EEG, "shorter"), (FUSION, "other"), (FUSION, "third")):
        says = [f"data/{name}: its source S0.mat is in a set of pretrain.py --extra"]
        refused(work, *command, *new, "--test-data", f"data/{name}", says=says)
    done(*EEG, *new, "--test-data", "data/other", "--init", "random", *NETWORK, cwd=work)
    flags = *EEG, *NETWORK, *"--init random --run runs/train --n-folds 4 --threshold train".split()
    refused(work, *flags, "--test-data", "data/other", says=["--test-data", "found train"])


def test_a_fraction_of_many_digits_has_the_name_that_its_files_have(work):
    done(*EEG, "--label-fraction", 0.51234567, cwd=work)
    few = "--bootstrap", 20, "--permutations", 20
    assert "51.2346 % of labels" in done("evaluate.py", "--run", "runs/paper", *few, cwd=work)


@pytest.mark.slow
def test_fusion_takes_the_bases_rows_and_labels_of_its_variant(work):
    flags = *"--init random --freeze --shuffle-labels --label-fraction 0.5".split(), "--epochs", 1
    suffix = "-random-frozen-shuffled-fraction0.5"
    for modality in ("eeg", "ecg"):
        done(*EEG, *NETWORK, "--modality", modality, *flags, cwd=work)
        assert (work / f"runs/paper/{modality}/fold1/arousal{suffix}.npy").exists()
    out = done(*FUSION, *flags, cwd=work)
    rows, _ = labelled(open_run(work), 1, "arousal", shuffle_labels=True, label_fraction=0.5)
    assert f"{len(rows['train'])} train" in out and len(rows["train"]) < 60
    done("predict.py", "--model", f"runs/paper/fused/fold1/arousal{suffix}.pt", "--data", "data/amigos", cwd=work)
    predicted = np.load(work / "predictions" / f"fused-fold1-arousal{suffix}.npy")["probability"]
    found = np.load(work / f"runs/paper/fused/fold1/arousal{suffix}.npy")
    np.testing.assert_allclose(predicted[found["segment"]], found["probability"], rtol=1e-5)
    assert "already done" in done(*FUSION, *flags, cwd=work)


VARIANTS = ("freeze", False, True), ("shuffle_labels", False, True), ("label_fraction", 1.0, 0.5)


@pytest.mark.parametrize("name, own, other", VARIANTS)
def test_a_checkpoint_of_another_variant_is_refused(work, name, own, other):
    path = work / f"{FOLD}arousal.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "record": {**state["record"], name: other}}, path)
    for command in (EEG, FUSION):
        refused(work, *command, says=["eeg/fold1/arousal.pt", f"{name.replace('_', ' ')} {own}, found {other}"])
