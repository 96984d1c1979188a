"""No way of mixing what must be kept apart goes through: each ends in one line, exit code 2, and nothing written."""

import json
import shutil

import numpy as np
import pytest

from prepared import FINETUNE, FUSE, PRETRAIN, call, contents, done, edit_manifest, refusal, write_set

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


def other_ratings(folder):
    table = np.load(folder / "segments.npy")
    table["arousal"][table["trial"] == "t0"] = 9
    np.save(folder / "segments.npy", table)


@pytest.mark.parametrize("script", COMMANDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit_manifest(folder, lambda m: m["preprocessing"].update(low={"eeg": 0.5, "ecg": 0.5})),
        lambda folder: edit_manifest(folder, lambda m: m["sources"][0].update(sha256="0" * 64)),
        other_ratings,
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
    table = np.load(folder / "segments.npy")
    table["trial"] = np.char.add("later ", table["trial"])
    np.save(folder / "segments.npy", table)
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
    refused(work, "pretrain.py", "--extra", "data/amigos", says=["data/amigos", "validation or test segments"])


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
