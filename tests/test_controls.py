"""Controls and variants of training: shuffled labels, frozen features, scarce labels."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from prepared import FINETUNE, FUSE, NETWORK, PRETRAIN, call, contents, done

import folds
import training
from segments import open_segments

EEG = ("finetune.py", *"--modality eeg --fold 1 --target arousal".split(), *FINETUNE)
FOLD = "runs/paper/eeg/fold1/"


def open_run(work, split="segment", n_folds=4, seed=0):
    data = open_segments(work / "data" / "amigos")
    settings = {**folds.SETTINGS, "split": split, "n_folds": n_folds, "seed": seed}
    return folds.Run(work / "runs" / "new", settings, data, folds.assign_folds(data.table, split, n_folds, 0))


def refused(work, *command, says):
    before = contents(work)
    finished = call(*command, cwd=work)
    assert finished.returncode == 2, finished.stdout
    assert finished.stderr.startswith(f"{command[0]}: ") and finished.stderr.count("\n") == 1, finished.stderr
    for words in says:
        assert words in finished.stderr, finished.stderr
    assert contents(work) == before


def trial_set(table, rows) -> set:
    return set(trial_of(table, rows))


def trial_of(table, rows) -> list:
    return [tuple(row) for row in table[["subject", "trial"]][rows].tolist()]


# ---- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["segment", "trial", "subject"])
def test_shuffled_labels_keep_a_subjects_counts_and_a_trials_unity(finished, split):
    run = open_run(finished, split)
    table = run.data.table
    rows, true = run.labelled(2, "arousal")
    rows_again, shuffled = run.labelled(2, "arousal", shuffle_labels=True)
    seen = np.concatenate([rows["train"], rows["validation"]])
    assert all(np.array_equal(rows[name], rows_again[name]) for name in rows)
    for subject in np.unique(table["subject"][seen]):
        counts = []
        for labels in (true, shuffled):
            of_trial = {}
            for row in seen[table["subject"][seen] == subject]:
                of_trial.setdefault(str(table["trial"][row]), set()).add(int(labels[row]))
            assert all(len(found) == 1 for found in of_trial.values())
            counts.append(sorted(min(found) for found in of_trial.values()))
        assert counts[0] == counts[1]
    others = np.setdiff1d(np.arange(len(table)), seen)
    assert np.isin(rows["test"], others).all() and np.array_equal(true[others], shuffled[others])
    assert (true[seen] != shuffled[seen]).any()


def test_shuffling_is_a_function_of_seed_and_fold(finished):
    found = [
        open_run(finished, seed=seed).labelled(fold, "arousal", True)[1] for seed, fold in ((0, 2), (0, 2), (1, 2))
    ]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    run = open_run(finished)
    one, two = (run.labelled(fold, "arousal", True)[1] for fold in (1, 2))
    both = np.setdiff1d(np.arange(len(one)), np.concatenate([run.split(fold)["test"] for fold in (1, 2)]))
    assert not np.array_equal(one[both], two[both])


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
    whole, labels = run.labelled(2, "arousal")
    inside = trial_set(table, whole["train"])
    assert np.array_equal(run.labelled(2, "arousal", label_fraction=1.0)[0]["train"], whole["train"])
    for fraction in (0.8, 0.5, 0.3, 0.1):
        rows, found = run.labelled(2, "arousal", label_fraction=fraction)
        chosen = trial_set(table, rows["train"])
        assert chosen < inside
        expected = whole["train"][[name in chosen for name in trial_of(table, whole["train"])]]
        assert np.array_equal(rows["train"], expected)  # each chosen trial with all it has in training
        for label in (0, 1):
            of_class = whole["train"][labels[whole["train"]] == label]
            share = len(trial_set(table, rows["train"][found[rows["train"]] == label]))
            assert share == round(fraction * len(trial_set(table, of_class)))
        assert all(np.array_equal(rows[name], whole[name]) for name in ("validation", "test"))
        assert np.array_equal(found, labels)
        inside = chosen
    other = open_run(finished, split, seed=1).labelled(2, "arousal", label_fraction=0.3)[0]["train"]
    assert trial_set(table, other) != trial_set(table, run.labelled(2, "arousal", label_fraction=0.3)[0]["train"])


@pytest.mark.parametrize("value", ["0", "-0.5", "1.5", "nan", "much"])
def test_fractions_that_are_none(work, value):
    finished = call(*EEG, "--label-fraction", value, cwd=work)
    assert finished.returncode == 2 and "--label-fraction" in finished.stderr.splitlines()[-1]


def test_a_fraction_without_a_trial_of_a_class(work):
    flags = "--label-fraction", 0.001
    refused(work, *EEG, *flags, says=["--label-fraction 0.001", "none of the 12 low", "use a larger fraction"])


# ---- training -------------------------------------------------------------------------------------------------------


def by_hand(work, stem, rows):
    """Logits of a single-modality checkpoint, one segment at a time."""
    path = work / f"{stem}.pt"
    data = open_segments(work / "data" / "amigos")
    state = training.load_checkpoint(path, "")
    model = training.load_classifier(path, state, 2, data.manifest["points"])
    with torch.no_grad():
        return torch.cat([model.classify(torch.from_numpy(data.signals["eeg"][row][None].copy())) for row in rows])


def test_training_learns_from_the_shuffled_labels_and_is_tested_on_true_ones(work):
    done(*EEG, "--shuffle-labels", cwd=work)
    rows, true = open_run(work).labelled(1, "arousal")
    taught = open_run(work).labelled(1, "arousal", shuffle_labels=True)[1]
    found = np.load(work / f"{FOLD}arousal-shuffled.npy")
    assert np.array_equal(found["label"], true[rows["test"]])
    logged = json.loads((work / f"{FOLD}arousal-shuffled.jsonl").read_text().splitlines()[-1])["validation_loss"]
    losses = []
    for labels in (taught, true):
        target = torch.from_numpy(labels[rows["validation"]].astype(np.float32))
        logits = by_hand(work, f"{FOLD}arousal-shuffled", rows["validation"])
        losses.append(F.binary_cross_entropy_with_logits(logits, target).item())
    assert logged == pytest.approx(losses[0], rel=1e-5) and logged != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_frozen_weights_stay_and_the_classifier_moves(work, init):
    flags = "--freeze", "--init", init, *(NETWORK if init == "random" else ()), "--dropout", 0.5, "--lr", 0.01
    stem = f"{FOLD}arousal{'-random' if init == 'random' else ''}-frozen"
    done(*EEG, *flags, cwd=work)
    later = torch.load(work / f"{stem}.pt", weights_only=True)["model"]
    assert len(later) > 10
    if init == "pretrained":
        first = torch.load(work / f"{FOLD}pretrain.pt", weights_only=True)["model"]
        for name in later:
            assert name.startswith("classifier.") or torch.equal(later[name], first[name]), name
    done(*EEG, *flags, "--epochs", 1, "--run", "runs/one", "--fresh", *one_run(work, init), cwd=work)
    sooner = torch.load(work / f"{stem.replace('paper', 'one')}.pt", weights_only=True)["model"]
    for name in later:
        assert torch.equal(later[name], sooner[name]) != name.startswith("classifier."), name
    rows = open_run(work).labelled(1, "arousal")[0]
    found = np.load(work / f"{stem}.npy")["probability"]
    np.testing.assert_allclose(found, torch.sigmoid(by_hand(work, stem, rows["test"])), rtol=1e-5)
    log = (work / f"{stem}.jsonl").read_text().splitlines()  # the loss of the stored features is that of the network
    logits = by_hand(work, stem, rows["validation"])
    labels = torch.from_numpy(open_run(work).labelled(1, "arousal")[1][rows["validation"]].astype(np.float32))
    expected = F.binary_cross_entropy_with_logits(logits, labels).item()
    assert json.loads(log[-1])["validation_loss"] == pytest.approx(expected, rel=1e-5)


def one_run(work, init):
    """The flags, and the pre-training, of a second run on the same folds."""
    if init == "pretrained":
        done(*"pretrain.py --modality eeg --fold 1 --run runs/one --n-folds 4".split(), *PRETRAIN, cwd=work)
    return "--n-folds", 4


def test_a_fraction_trains_on_its_rows_alone(work):
    """Signals of the left-out training trials are not even read: NaN there goes unnoticed."""
    run = open_run(work)
    kept = run.labelled(1, "arousal", label_fraction=0.3)[0]
    left_out = np.setdiff1d(run.labelled(1, "arousal")[0]["train"], kept["train"])
    signals = np.load(work / "data/amigos/eeg.npy", mmap_mode="r+")
    signals[left_out] = np.nan
    signals.flush()
    done(*EEG, "--label-fraction", 0.3, cwd=work)
    assert "holds NaN" in call(*EEG, "--label-fraction", 0.8, cwd=work).stderr
    assert torch.load(work / f"{FOLD}arousal-fraction0.3.pt", weights_only=True)["identity"]["label_fraction"] == 0.3


# ---- names, fusion, refusals ----------------------------------------------------------------------------------------


def test_fusion_takes_the_bases_rows_and_labels_of_its_variant(work):
    flags = *"--init random --freeze --shuffle-labels --label-fraction 0.5".split(), "--epochs", 1
    suffix = "-random-frozen-shuffled-fraction0.5"
    for modality in ("eeg", "ecg"):
        done(*EEG, *NETWORK, "--modality", modality, *flags, cwd=work)
        assert (work / f"runs/paper/{modality}/fold1/arousal{suffix}.npy").exists()
    fuse = "fuse.py", "--target", "arousal", "--fold", 1, *FUSE, *flags
    out = done(*fuse, cwd=work)
    rows, _ = open_run(work).labelled(1, "arousal", True, 0.5)
    assert f"{len(rows['train'])} train" in out and len(rows["train"]) < 60
    done("predict.py", "--model", f"runs/paper/fused/fold1/arousal{suffix}.pt", "--data", "data/amigos", cwd=work)
    predicted = np.load(work / "predictions" / f"fused-fold1-arousal{suffix}.npy")["probability"]
    found = np.load(work / f"runs/paper/fused/fold1/arousal{suffix}.npy")
    np.testing.assert_allclose(predicted[found["segment"]], found["probability"], rtol=1e-5)
    assert "already done" in done(*fuse, cwd=work)


@pytest.mark.parametrize(
    "flags, suffix, key",
    [
        (["--freeze"], "frozen", "freeze False, found True"),
        (["--shuffle-labels"], "shuffled", "shuffle labels False, found True"),
        (["--label-fraction", 0.5], "fraction0.5", "label fraction 1.0, found 0.5"),
    ],
)
def test_a_checkpoint_of_another_variant_is_refused(work, flags, suffix, key):
    done(*EEG, *flags, "--epochs", 1, cwd=work)
    (work / f"{FOLD}arousal-{suffix}.pt").replace(work / f"{FOLD}arousal.pt")
    refused(work, *EEG, says=["eeg/fold1/arousal.pt", key])
    refused(work, "fuse.py", "--target", "arousal", "--fold", 1, *FUSE, says=["eeg/fold1/arousal.pt", key])


def test_a_variant_without_its_bases_is_named(work):
    command = "fuse.py", "--target", "arousal", "--fold", 1, *FUSE, "--shuffle-labels"
    refused(work, *command, says=["eeg/fold1/arousal-shuffled.pt: no such checkpoint"])
