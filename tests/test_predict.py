"""predict.py against the predictions that training wrote, and on a real recording brought in by its user."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from layouts import write_list
from prepared import FINETUNE, NETWORK, PRETRAIN, done, edit_manifest, edit_table, refusal, stored_anew, write_set
from recordings import real

MODELS = {kind: f"runs/paper/{kind}/fold1/arousal" for kind in ("eeg", "ecg", "fused")}


def refused(work, *flags, says):
    refusal("predict.py", *flags, cwd=work, says=says)


@pytest.mark.parametrize("kind", MODELS)
def test_the_test_fold_gives_its_predictions_file_exactly(work, kind):
    model = MODELS[kind]
    done("predict.py", "--model", f"{model}.pt", "--data", "data/amigos", "--rows", f"{model}.npy", cwd=work)
    expected = np.load(work / f"{model}.npy")
    found = np.load(work / "predictions" / f"{kind}-fold1-arousal.npy")
    np.testing.assert_array_equal(found["segment"], expected["segment"])
    np.testing.assert_array_equal(found["probability"], expected["probability"])
    np.testing.assert_allclose(1 / (1 + np.exp(-found["logit"].astype(float))), found["probability"], rtol=1e-6)
    weights = torch.load(work / f"{model}.pt", weights_only=True)["model"]
    last = sorted(name for name in weights if name.startswith("classifier.output"))
    logit = found["features"] @ weights[last[1]].numpy()[0] + weights[last[0]].numpy()
    np.testing.assert_allclose(logit, found["logit"], rtol=1e-4, atol=1e-6)


def test_several_models_give_mean_and_spread(work):
    models = [f"runs/paper/eeg/fold{fold}/arousal.pt" for fold in (1, 2)]
    out = done("predict.py", "--model", *models, "--data", "data/amigos", "--out", "out", "--json", cwd=work)
    names = ["eeg-fold1-arousal.npy", "eeg-fold2-arousal.npy", "mean-arousal.npy"]
    one, two, mean = (np.load(work / "out" / name) for name in names)
    segments = len(np.load(work / "data" / "amigos" / "segments.npy"))
    assert one["segment"].tolist() == list(range(segments))
    both = np.stack([one["probability"], two["probability"]]).astype(float)
    np.testing.assert_allclose(mean["probability"], both.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(mean["spread"], np.abs(both[0] - both[1]) / np.sqrt(2), atol=1e-7)
    assert (mean["spread"] > 0).any()
    said = json.loads(out)
    assert (said["files"], said["segments"]) == ([f"out/{name}" for name in names], segments)


def test_a_training_that_was_not_finished(work):
    path = work / f"{MODELS['eeg']}.pt"
    state = torch.load(path, weights_only=True)
    state["epoch"] = 1
    torch.save(state, path)
    refused(work, "--model", path, "--data", "data/amigos", says=["arousal.pt: training stopped after 1 of 2 epochs"])


def test_what_a_model_was_trained_on_is_said(work):
    flags = "--model", f"{MODELS['eeg']}.pt", "--data", "data/amigos"
    assert "note:" not in done("predict.py", *flags, "--rows", f"{MODELS['eeg']}.npy", cwd=work)
    said = "arousal.pt was trained, validated or pre-trained on 110 of these 140 segments"
    assert said in done("predict.py", *flags, cwd=work)


def test_recordings_and_signals_that_a_model_has_seen_are_counted(work):
    """Prepared otherwise: by recording. Stored anew: by signal. Of an --extra set: all of it."""
    rows, table = np.load(work / "runs/paper/folds.npy") != 1, np.load(work / "data/amigos/segments.npy")
    trials = set(table[["subject", "trial"]][rows].tolist())
    seen = sum(tuple(one) in trials for one in table[["subject", "trial"]].tolist())
    otherwise = shutil.copytree(work / "data" / "amigos", work / "data" / "otherwise")
    signals = np.load(otherwise / "eeg.npy")
    np.save(otherwise / "eeg.npy", signals[..., ::-1])
    edit_table(otherwise, start=lambda table: table["start"] + 3)
    stored_anew(work, "anew", "other")
    write_set(work / "data" / "more", name="more")
    new = "--modality", "eeg", "--fold", 1, "--run", "runs/new", "--n-folds", 4
    done("pretrain.py", *new, *PRETRAIN, "--extra", "data/more", cwd=work)
    done("finetune.py", *new, "--target", "arousal", *FINETUNE, cwd=work)
    for run, name, low, high in (
        ("paper", "otherwise", seen, seen),
        ("paper", "anew", 90, 110),
        ("new", "more", 140, 140),
    ):
        model = f"runs/{run}/eeg/fold1/arousal.pt"
        said = json.loads(done("predict.py", "--model", model, "--data", f"data/{name}", "--json", cwd=work))
        assert low <= said["seen"][model] <= high, name


def test_a_table_for_spreadsheets(work):
    models = [f"runs/paper/eeg/fold{fold}/arousal.pt" for fold in (1, 2)]
    done("predict.py", "--model", *models, "--data", "data/amigos", "--csv", cwd=work)
    with open(work / "predictions" / "arousal.csv", newline="") as file:
        found = list(csv.DictReader(file))
    table, mean = np.load(work / "data/amigos/segments.npy"), np.load(work / "predictions" / "mean-arousal.npy")
    for name in ("subject", "trial"):
        assert [line[name] for line in found] == table[name].tolist()
    assert [float(line["start"]) for line in found] == table["start"].tolist()
    assert [float(line["probability"]) for line in found] == mean["probability"].tolist()


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda m: m["channels"].update(eeg=["F7", "O1"]), "channels F7 F3, found F7 O1"),
        (lambda m: m["channels"].update(eeg=["F3", "F7"]), "channels F7 F3, found F3 F7"),
        (lambda m: m.update(rate=256), "rate 128, found 256"),
        (lambda m: m["preprocessing"].update(normalise="none"), "normalise subject, found none"),
        (lambda m: m["preprocessing"]["low"].update(eeg=1.0), "eeg low 0.8, found 1.0"),
        (lambda m: m["channels"].pop("ecg"), "ecg channels ECG, found none"),
    ],
)
@pytest.mark.parametrize("kind", ["eeg", "fused"])
def test_other_channels_rates_and_normalisation_are_refused(work, kind, change, says):
    shutil.copytree(work / "data" / "amigos", work / "data" / "mine")
    edit_manifest(work / "data" / "mine", change)
    flags = "--model", f"{MODELS[kind]}.pt", "--data", "data/mine"
    if "ecg" in says and kind == "eeg":
        done("predict.py", *flags, cwd=work)  # which needs none
    else:
        refused(work, *flags, says=[flags[1], "data/mine", says])


def test_models_that_are_none(work):
    eeg, data = ("--model", f"{MODELS['eeg']}.pt"), ("--data", "data/amigos")
    refused(work, "--model", "runs/paper/eeg/fold1/pretrain.pt", *data, says=["pretrain.pt", "expected a model of"])
    refused(work, "--model", "runs/paper/eeg/fold3/arousal.pt", *data, says=["fold3/arousal.pt", "no such checkpoint"])
    refused(work, "--model", f"{MODELS['eeg']}.npy", *data, says=["arousal.npy", "not a checkpoint"])
    refused(work, *eeg, eeg[1], *data, says=["same file"])
    refused(work, *eeg, "--data", "data/none", says=["data/none/manifest.json"])
    predictions = np.load(work / f"{MODELS['eeg']}.npy")
    predictions["segment"][0] = -1
    for rows, says in ((np.arange(5), "expected rows of"), (predictions, "found -1 to")):
        np.save(work / "rows.npy", rows)
        refused(work, *eeg, *data, "--rows", "rows.npy", says=["rows.npy", says])


def test_base_models_that_were_trained_again(work):
    flags, path = ("--model", f"{MODELS['fused']}.pt", "--data", "data/amigos"), work / f"{MODELS['ecg']}.pt"
    shutil.copy(path.with_name("pretrain.pt"), path)
    refused(work, *flags, says=["/ecg/fold1/arousal.pt", "found another"])
    path.unlink()
    refused(work, *flags, says=["/ecg/fold1/arousal.pt", "no such base model"])


def test_a_model_named_from_within_its_folder(work):
    done("predict.py", "--model", f"{MODELS['fused']}.pt", "--data", "data/amigos", cwd=work)
    flags = "--model", "arousal.pt", "--data", work / "data" / "amigos", "--out", work / "here"
    done("predict.py", *flags, cwd=(work / MODELS["fused"]).parent)
    [found] = (work / "here").iterdir()
    assert found.read_bytes() == (work / "predictions" / "fused-fold1-arousal.npy").read_bytes()


def test_from_a_real_file_to_predictions_in_two_commands(tmp_path):
    """A model of a few real subjects, and somebody else's EDF."""
    raw, mine = tmp_path / "raw", tmp_path / "recordings"
    for folder, subjects in ((raw, ("03", "05", "06", "07")), (mine, ("08",))):
        folder.mkdir()
        for subject in subjects:
            for task in (1, 2):
                (folder / f"Subject{subject}_{task}.edf").symlink_to(real("eegmat", f"Subject{subject}_{task}.edf"))
    done("prepare_data.py", "--dataset", "eegmat", "--raw", raw, "--max-seconds-per-trial", 62, cwd=tmp_path)
    flags = "--modality", "eeg", "--fold", 0, "--target", "arousal", "--init", "random", "--data", "data/eegmat"
    done("finetune.py", *flags, "--n-folds", 4, *NETWORK, *FINETUNE, cwd=tmp_path)

    write_list(mine, "file,subject", "Subject08_1.edf,me", "Subject08_2.edf,me")
    done("prepare_data.py", "--dataset", "folder", "--raw", mine, "--modalities", "eeg", cwd=tmp_path)
    done("predict.py", "--model", "runs/paper/eeg/fold0/arousal-random.pt", "--data", "data/folder", cwd=tmp_path)

    found = np.load(tmp_path / "predictions" / "eeg-fold0-arousal-random.npy")
    assert len(found) == len(np.load(tmp_path / "data" / "folder" / "segments.npy")) == 24
    assert ((found["probability"] > 0) & (found["probability"] < 1)).all()
