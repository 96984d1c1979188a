"""No way of mixing what must be kept apart goes through: each ends in one line, exit code 2, and nothing written."""

import json
import multiprocessing
import os
import shutil
import time
import unicodedata
from argparse import Namespace

import numpy as np
import pytest

from common.files import only_writer
from prepared import FINETUNE, FUSE, PRETRAIN, call, contents, done, edit_manifest, edit_table, refusal, stored_anew
from prepared import write_set
from protocol import run as runs

EEG = ("--modality", "eeg", "--fold", 1)
COMMANDS = {
    "pretrain.py": ("pretrain.py", *EEG, *PRETRAIN),
    "finetune.py": ("finetune.py", *EEG, "--target", "arousal", *FINETUNE),
    "fuse.py": ("fuse.py", "--target", "arousal", "--fold", 1, *FUSE),
    "evaluate.py": ("evaluate.py",),
}


def refused(work, script, *flags, says):
    """The script, called with `flags`, exits with 2 and one line that holds each of `says`; nothing is changed."""
    refusal(*COMMANDS[script], *flags, cwd=work, says=says)


def copy(work, source, target):
    shutil.copy(work / "runs" / "paper" / source, work / "runs" / "paper" / target)


@pytest.mark.parametrize("script", COMMANDS)
def test_nothing_is_done_twice(work, script):
    before = contents(work)
    out = done(*COMMANDS[script], cwd=work)
    assert ("already done" in out) == (script != "evaluate.py")
    assert contents(work) == before


@pytest.mark.parametrize("script", COMMANDS)
def test_edited_folds(work, script):
    path = work / "runs" / "paper" / "folds.npy"
    folds = np.load(path)
    one, two = np.flatnonzero(folds == 1)[0], np.flatnonzero(folds == 2)[0]
    folds[[one, two]] = folds[[two, one]]
    np.save(path, folds)
    refused(work, script, says=["runs/paper/folds.npy", "the file was changed"])


@pytest.mark.parametrize("script", ["pretrain.py", "finetune.py", "fuse.py"])
@pytest.mark.parametrize(
    "flag, known, value",
    [
        ("--fold-seed", "0", "1"),
        ("--threshold", "global", "5.0"),
        ("--split", "segment", "subject"),
        ("--seed", "0", "1"),
        ("--n-folds", "4", "5"),
        ("--validation-parts", "9", "5"),
    ],
)
def test_another_setting_in_the_same_run(work, script, flag, known, value):
    refused(work, script, flag, value, says=["runs/paper/run.json", f"{flag} {known}, found {value}", "another --run"])


@pytest.mark.parametrize(
    "flag, value", [("--batch-size", 16), ("--precision", "bf16"), ("--lr", 0.5), ("--weight-decay", 0.5)]
)
def test_another_flag_in_the_same_training(work, flag, value):
    refused(work, "finetune.py", flag, value, says=["eeg/fold1/arousal.pt", f"started with {flag}", f"found {value}"])


@pytest.mark.parametrize("script", COMMANDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit_manifest(folder, lambda m: m["preprocessing"].update(low={"eeg": 0.5, "ecg": 0.5})),
        lambda folder: edit_manifest(folder, lambda m: m["sources"][0].update(sha256="0" * 64)),
        lambda folder: edit_table(folder, arousal=lambda t: np.where(t["trial"] == "t0", 9, t["arousal"])),
    ],
)
def test_data_prepared_otherwise(work, script, change):
    change(work / "data" / "amigos")
    refused(work, script, says=["runs/paper/run.json", "segments, pre-processing or recordings", "data/amigos"])


def test_another_data_set(work):
    write_set(work / "data" / "other", name="other")
    for script in COMMANDS:
        refused(work, script, "--data", "data/other", says=["runs/paper/run.json", "another data set", "data/other"])


@pytest.mark.parametrize(
    "source, target, script, says",
    [
        ("eeg/fold2/pretrain.pt", "eeg/fold1/pretrain.pt", "pretrain.py", "fold 1, found 2"),
        ("eeg/fold2/pretrain.pt", "eeg/fold1/pretrain.pt", "finetune.py", "fold 1, found 2"),
        ("ecg/fold1/pretrain.pt", "eeg/fold1/pretrain.pt", "finetune.py", "modalities eeg, found ecg"),
        ("eeg/fold1/arousal.pt", "eeg/fold1/pretrain.pt", "finetune.py", "family pretraining, found network"),
        ("eeg/fold2/arousal.pt", "eeg/fold1/arousal.pt", "fuse.py", "fold 1, found 2"),
    ],
)
def test_checkpoint_of_another_model(work, source, target, script, says):
    copy(work, source, target)
    refused(work, script, says=[target, says])


def test_pretraining_with_other_validation_parts(work):
    flags = "--n-folds", 4, "--validation-parts", 4, "--run", "runs/other"
    done("pretrain.py", *EEG, *PRETRAIN, *flags, cwd=work)
    copy(work, "../other/eeg/fold1/pretrain.pt", "eeg/fold1/pretrain.pt")
    refused(work, "finetune.py", says=["eeg/fold1/pretrain.pt", "validation parts 9, found 4"])


def test_pretraining_replaced_after_fine_tuning(work):
    done("pretrain.py", *EEG, *PRETRAIN, "--lr", 1e-3, "--fresh", cwd=work)
    refused(work, "finetune.py", says=["eeg/fold1/arousal.pt", "another eeg/fold1/pretrain.pt"])
    for script, file in (("fuse.py", "arousal.pt"), ("evaluate.py", "arousal.npy")):
        refused(work, script, says=[f"eeg/fold1/{file}: ", "eeg/fold1/pretrain.pt was trained again since"])
    shown = done(*COMMANDS["evaluate.py"], "--skip-stale", cwd=work)
    assert "left out of all tables: runs/paper/eeg/fold1/arousal.npy: " in " ".join(shown.split())
    assert "| ECG " in shown
    (work / "runs/paper/eeg/fold1/pretrain.pt").unlink()  # what is gone cannot be compared
    done(*COMMANDS["evaluate.py"], cwd=work)
    copy(work, "eeg/fold2/arousal.pt", "eeg/fold1/arousal.pt")
    refused(work, "evaluate.py", says=["eeg/fold1/arousal.npy: ", "eeg/fold1/arousal.pt was trained again since"])


@pytest.mark.parametrize(
    "flags, name, says",
    [
        (["--target", "valence"], "valence.pt", "target arousal, found valence"),
        (["--target", "arousal", "--init", "random"], "arousal-random.pt", "init pretrained, found random"),
    ],
)
def test_base_model_of_another_making(work, flags, name, says):
    done("finetune.py", *EEG, *FINETUNE, *flags, cwd=work)
    copy(work, f"eeg/fold1/{name}", "eeg/fold1/arousal.pt")
    refused(work, "fuse.py", says=["eeg/fold1/arousal.pt", says])


def test_base_model_of_another_threshold(work):
    new = *EEG, "--n-folds", 4, "--run", "runs/other"
    done("pretrain.py", *new, *PRETRAIN, cwd=work)
    (work / "runs" / "other" / "run.json").unlink()
    done("finetune.py", *new, *FINETUNE, "--target", "arousal", "--threshold", 5, cwd=work)
    copy(work, "../other/eeg/fold1/arousal.pt", "eeg/fold1/arousal.pt")
    refused(work, "fuse.py", says=["eeg/fold1/arousal.pt", "threshold global, found 5.0"])


def test_base_model_replaced_after_fusion(work):
    done("finetune.py", *EEG, "--target", "arousal", *FINETUNE, "--lr", 1e-3, "--fresh", cwd=work)
    refused(work, "fuse.py", says=["fused/fold1/arousal.pt", "another eeg/fold1/arousal.pt"])
    refused(work, "evaluate.py", says=["fused/fold1/arousal.npy", "eeg/fold1/arousal.pt was trained again since"])


@pytest.mark.parametrize(
    "source, target",
    [
        ("ecg/fold1/arousal", "eeg/fold1/arousal"),
        ("eeg/fold1/arousal", "eeg/fold1/arousal-random"),
        ("eeg/fold1/arousal", "eeg/fold1/arousal-shuffled-fraction0.5"),
        ("fused/fold1/arousal", "other/fold1/arousal"),
    ],
)
def test_predictions_of_another_model(work, source, target):
    (work / "runs" / "paper" / target).parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".pt", ".npy", ".json"):
        copy(work, source + suffix, target + suffix)
    refused(work, "evaluate.py", says=[f"{target}.npy: its record is that of runs/paper/{source}.npy"])


def test_folds_trained_with_other_flags_are_said(work):
    assert "the folds were trained with different" not in done(*COMMANDS["evaluate.py"], cwd=work)
    write_set(work / "data" / "more", name="more", seed=3)
    own = ("--modality", "eeg", "--fold", 2)
    done("pretrain.py", *own, *PRETRAIN, "--lr", 1e-3, "--extra", "data/more", "--fresh", cwd=work)
    done("finetune.py", *own, "--target", "arousal", *FINETUNE, "--lr", 1e-3, "--fresh", cwd=work)
    said = "--lr (0.0001, 0.001), pretrain.py's --extra, pretrain.py's --lr (0.0005, 0.001)"
    expected = f"note: EEG, arousal: the folds were trained with different {said}\n"
    assert expected in done(*COMMANDS["evaluate.py"], cwd=work)


def test_predictions_without_their_checkpoint_are_said(work):
    (work / "runs" / "paper" / "eeg" / "fold1" / "arousal.pt").unlink()
    said = " ".join(done(*COMMANDS["evaluate.py"], cwd=work).split())
    assert "runs/paper/eeg/fold1/arousal.npy: its checkpoint (.pt) is gone, so that nobody can say" in said


@pytest.mark.parametrize("script", [*COMMANDS, "predict.py"])
def test_signals_that_were_changed_after_the_preparation(work, script):
    signals = np.lib.format.open_memmap(work / "data" / "amigos" / "eeg.npy", "r+")
    signals[len(signals) // 4 :] = 0  # as after a copy to a full disk
    model = "runs/paper/eeg/fold1/arousal.pt"
    command = COMMANDS.get(script, ("predict.py", "--model", model, "--data", "data/amigos"))
    refusal(*command, cwd=work, says=["data/amigos/eeg.npy: not the file that prepare_data.py wrote"])


def test_a_cell_has_one_writer(work):
    path = work / "runs" / "paper" / "eeg" / "fold1" / "arousal.pt"
    with only_writer(path):
        says = [f"fold1/arousal.pt: process {os.getpid()} on ", " is at work on it; wait for its end"]
        refused(work, "finetune.py", "--fresh", "--lr", 0.5, says=says)
        for script in ("pretrain.py", "fuse.py", "evaluate.py"):
            done(*COMMANDS[script], cwd=work)
    done(*COMMANDS["finetune.py"], "--fresh", cwd=work)


def test_two_new_runs_at_once(work):
    flags = {"data": work / "data" / "amigos", "run": work / "runs" / "new"}
    first, second = (runs.open_run(Namespace(**{**runs.SETTINGS, **flags, "fold_seed": seed})) for seed in (0, 1))
    first.start()
    with pytest.raises(ValueError, match="new/run.json: this run was started with --fold-seed 0, found 1; use another"):
        second.start()
    assert np.array_equal(np.load(work / "runs" / "new" / "folds.npy"), first.folds)


@pytest.mark.parametrize("spell", [str.lower, lambda name: unicodedata.normalize("NFD", name)])
def test_people_of_a_set_of_the_same_name_who_are_spelled_otherwise(work, spell):
    edit_table(work / "data" / "amigos", subject=lambda table: np.char.add("Zoé", table["subject"]))
    folder = write_set(work / "data" / "more", name="mini", seed=1)
    edit_table(folder, subject=lambda t: [spell(f"Zoé{name}") for name in t["subject"]])
    edit_table(folder, trial=lambda table: np.char.add("later ", table["trial"]))
    flags = "--run", "runs/new", "--split", "subject", "--n-folds", 3, "--extra", "data/more"
    refused(work, "pretrain.py", *flags, says=["data/more: subject ", "of mini is held out"])


def test_a_set_that_is_exchanged_during_a_training_is_not_read(work, monkeypatch):
    """The test segments are read long after the set was checked."""
    path, calls = work / "data" / "amigos" / "eeg.npy", []

    def exchange(*_):
        calls.append(path.rename(path.with_name("old")))
        np.save(path, np.load(path.with_name("old"))[::-1])
        return False

    expected = (work / "runs/paper/eeg/fold1/arousal.npy").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.loop.is_finished", exchange)
        done(*COMMANDS["finetune.py"], "--fresh", cwd=work)
    assert calls and (work / "runs/paper/eeg/fold1/arousal.npy").read_bytes() == expected


def test_a_fresh_training_that_fails_leaves_what_was_there(work):
    before = contents(work)
    refused(work, "finetune.py", "--fresh", "--lr", 1e30, says=["the loss is not finite", "last checkpoint is kept"])
    assert contents(work) == before


@pytest.mark.parametrize("dataset", ["other", "mini"])
def test_the_same_signals_in_other_files_of_other_people(work, dataset):
    stored_anew(work, "copy", dataset)
    flags = "--run", "runs/new", "--split", "subject", "--n-folds", 3, "--extra", "data/copy"
    refused(work, "pretrain.py", *flags, says=["data/copy: the signal of segment", "held out for validation or test"])
    if dataset == "other":
        says = ["data/copy: the signal of segment", "is in data/amigos, which this run trains on"]
        refused(work, "finetune.py", "--test-data", "data/copy", says=says)


def test_a_test_set_of_the_signals_of_an_extra_set(work):
    write_set(work / "data" / "more", name="more")
    stored_anew(work, "copy", "other", source="more")
    new = "--run", "runs/new"
    done(*COMMANDS["pretrain.py"], *new, "--extra", "data/more", cwd=work)
    says = ["data/copy: the signal of segment 0", "is in a set of pretrain.py --extra"]
    refused(work, "finetune.py", *new, "--test-data", "data/copy", says=says)


def extra_set(work, name, first, last):
    """A further set made of the source files of the subjects first .. last - 1 of data/amigos."""
    folder = write_set(work / "data" / name, name=name, subjects=last - first, unrated=0)
    sources = json.loads((work / "data" / "amigos" / "manifest.json").read_text())["sources"][first:last]
    edit_manifest(folder, lambda manifest: manifest.update(sources=sources))
    return folder


@pytest.mark.parametrize("split", ["segment", "block", "trial", "video", "subject"])
def test_the_same_recordings_under_another_name_or_trials_in_other_files(work, split):
    extra_set(work, "other", 0, 6)
    write_set(work / "data" / "copy", name="mini", seed=1)  # the same people and trials, other bytes
    flags = "--run", "runs/new", "--split", split, "--n-folds", 3
    for name, says in (("other", ["its source S", "data/amigos"]), ("copy", ["of mini are held out"])):
        refused(work, "pretrain.py", *flags, "--extra", f"data/{name}", says=[f"data/{name}", "--extra", *says])


@pytest.mark.parametrize("split, taken", [("subject", "S"), ("video", "v")])
def test_other_recordings_of_held_out_people_or_videos(work, split, taken):
    folder = write_set(work / "data" / "more", name="mini", seed=1)
    edit_table(folder, trial=lambda table: np.char.add("later ", table["trial"]))
    flags = "--extra", folder, "--run", "runs/new", "--n-folds", 3, "--split"
    refused(work, "pretrain.py", *flags, split, says=[f"data/more: {split} {taken}", "of mini is held out", "--extra"])
    done(*COMMANDS["pretrain.py"], *flags, "trial", cwd=work)


def test_recordings_of_other_people_go_through_once(work):
    write_set(work / "data" / "others", name="others")
    flags = ("--run", "runs/new", "--extra", "data/others")
    says = ["data/others: its source S0.mat is also in data/others", "--extra"]
    refused(work, "pretrain.py", *flags, "data/others", says=says)
    assert "on 140 of 140 segments of data/others" in done(*COMMANDS["pretrain.py"], *flags, cwd=work)
    refused(work, "pretrain.py", *flags[:2], says=["eeg/fold1/pretrain.pt", "other sets as --extra"])
    refused(work, "pretrain.py", "--extra", "data/amigos", says=["data/amigos", "held out for validation or test"])


def test_an_extra_set_that_was_filtered_otherwise_is_named(work):
    for name, high in (("alike", {"eeg": 50.0}), ("unlike", {"eeg": 45.0})):
        folder = write_set(work / "data" / name, name=name)
        edit_manifest(folder, lambda manifest: manifest["preprocessing"].update(high=high))
    flags = ("--run", "runs/new", "--extra", "data/alike", "data/unlike")
    notes = [line for line in done(*COMMANDS["pretrain.py"], *flags, cwd=work).splitlines() if line.startswith("note")]
    assert notes == ["note: data/unlike was prepared otherwise than data/amigos: eeg high 45.0"]


def test_recordings_of_training_people_go_through_and_no_others(work):
    accepted = []
    for subject in range(6):
        extra_set(work, f"only{subject}", subject, subject + 1)
        flags = "--extra", f"data/only{subject}", "--run", f"runs/{subject}", "--split", "subject", "--n-folds", 3
        accepted.append(call(*COMMANDS["pretrain.py"], *flags, cwd=work).returncode == 0)
        assert accepted[subject] or not (work / "runs" / str(subject)).exists()
    folds = np.load(work / "runs" / str(accepted.index(True)) / "folds.npy")
    subjects = np.load(work / "data" / "amigos" / "segments.npy")["subject"]
    tested = [folds[subjects == f"S{subject}"][0] == 1 for subject in range(6)]
    assert sum(tested) == 2 and sum(accepted) == 3  # and one is in validation
    assert not np.any(np.logical_and(tested, accepted))


def test_a_lock_keeps_out_whoever_waited_for_the_one_before(tmp_path):
    """Eight processes add one to a number, each alone, and leave nothing beside it."""
    count = tmp_path / "new" / "count"

    def add():
        for _ in range(20):
            with only_writer(count, wait=True):
                number = int(count.read_text()) if count.exists() else 0
                time.sleep(0.0005)
                count.write_text(str(number + 1))

    processes = [multiprocessing.get_context("fork").Process(target=add) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert count.read_text() == "160" and [path.name for path in count.parent.iterdir()] == ["count"]
