"""Damaged, missing and unfitting input of the training scripts and of evaluate.py: each ends in one line on stderr
that names what is wrong, exit code 2 and no traceback; what was there before stays as it was."""

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from prepared import FINETUNE, FUSE, PRETRAIN, call, complaint, contents, describe, edit_manifest, edit_table, script
from prepared import sign, write_set
from training import loop

EEG = "--modality eeg --fold 1".split()
PRETRAIN_EEG = ("pretrain.py", *EEG, *PRETRAIN)
ANEW = (*PRETRAIN_EEG, "--run", "runs/new", "--n-folds", "4")
FINETUNE_EEG = ("finetune.py", *EEG, "--target", "arousal", *FINETUNE)
RANDOM_ANEW = (*FINETUNE_EEG, "--init", "random", "--run", "runs/new", "--n-folds", "4")
FUSE_1 = ("fuse.py", "--target", "arousal", "--fold", "1", *FUSE)
FUSE_ANEW = (*FUSE_1, "--fresh")
EVALUATE = ("evaluate.py",)
DATA = "data/amigos/"
FOLD = "runs/paper/eeg/fold1/"


remove = Path.unlink


def empty(path):
    path.write_bytes(b"")


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def noise(path):
    path.write_bytes(bytes(range(255, 0, -1)) * 20)


def folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def objects(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def archive(path):
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(3))


def pickled_object(path):
    state = torch.load(path, weights_only=True)
    torch.save({**state, "model": pytest.Module}, path)


def array(change):
    """A damage that saves change(array) in the array's place; of a data set, as if it had been prepared so."""

    def damage(path):
        np.save(path, change(np.load(path)))
        if (path.parent / "manifest.json").exists():
            sign(path.parent)

    return damage


def put(key, value, prepared=True):
    """A damage that puts a value into an array; of a data set, before it was prepared or after."""

    def damage(path):
        np.lib.format.open_memmap(path, "r+")[key] = value
        if prepared and (path.parent / "manifest.json").exists():
            sign(path.parent)

    return damage


def state(change):
    """A damage that applies `change` to a checkpoint's state."""

    def damage(path):
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)

    return damage


def noise_in_a_log(path):
    """The log of a training that is to be resumed."""
    state(lambda content: content.update(epoch=1))(path.with_suffix(".pt"))
    noise(path)


def settings(change):
    """A damage that applies `change` to run.json or manifest.json."""

    def damage(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


DAMAGED = [  # file, damage, command, what the line says besides the file
    # prepared data
    (DATA + "manifest.json", remove, ANEW, "prepare_data.py"),
    (DATA + "manifest.json", halve, ANEW, "expected JSON"),
    (DATA + "manifest.json", settings(lambda content: content.update(rate="128")), ANEW, "found '128'"),
    (DATA + "manifest.json", settings(lambda content: content["sources"][0].pop("sha256")), ANEW, "expected sha256"),
    (DATA + "manifest.json", settings(lambda content: content["sources"][0].update(trials=3)), ANEW, "expected trials"),
    (DATA + "manifest.json", settings(lambda content: content.update(sources=[])), ANEW, "prepared from, found none"),
    (DATA + "segments.npy", remove, ANEW, "missing"),
    (DATA + "fingerprints.npy", lambda path: np.save(path, np.zeros(3)), (*ANEW, "--trust-data"), "of 140 rows"),
    (DATA + "segments.npy", objects, ANEW, "Python objects in dtype"),
    (DATA + "segments.npy", array(lambda table: table["start"]), ANEW, "found (140,) of float64"),
    (DATA + "segments.npy", array(lambda table: table[:100]), ANEW, "eeg.npy"),
    (DATA + "eeg.npy", remove, ANEW, "missing"),
    (DATA + "eeg.npy", empty, ANEW, "expected a whole .npy file"),
    (DATA + "eeg.npy", halve, ANEW, "expected a whole .npy file"),
    (DATA + "eeg.npy", archive, ANEW, "expected a whole .npy file"),
    (DATA + "eeg.npy", array(lambda signals: signals.astype("f8")), ANEW, "(140, 2, 96) of float64"),
    (DATA + "eeg.npy", array(lambda signals: signals[:, :1]), ANEW, "found (140, 1, 96)"),
    (DATA + "eeg.npy", array(np.asfortranarray), RANDOM_ANEW, "eeg.npy: expected an array in C order"),
    # Row 125 is unrated: pre-training reads it in every fold.
    (DATA + "eeg.npy", put((125, 1, 50), np.nan), ANEW, "row 125 holds NaN or inf"),
    (DATA + "eeg.npy", put((slice(None), 0), np.inf), RANDOM_ANEW, "holds NaN or inf"),
    (DATA + "eeg.npy", put((slice(None), 0), np.inf, False), FUSE_ANEW, "not the file that prepare_data.py wrote"),
    (DATA + "eeg.npy", put((slice(None), 0), np.inf, False), (*FUSE_ANEW, "--trust-data"), "holds NaN or inf"),
    (DATA + "segments.npy", put("arousal", 7), RANDOM_ANEW, "only low arousal labels in the train part of fold 1"),
    (DATA + "segments.npy", put("arousal", np.nan), RANDOM_ANEW, "no arousal rating in the train part of fold 1"),
    # run.json and folds.npy
    ("runs/paper/run.json", halve, FINETUNE_EEG, "expected JSON"),
    ("runs/paper/run.json", remove, EVALUATE, "no such run"),
    ("runs/paper/run.json", lambda path: path.write_text("[1]"), PRETRAIN_EEG, "expected data as str"),
    ("runs/paper/run.json", settings(lambda content: content.pop("split")), FUSE_1, "expected split as str"),
    ("runs/paper/run.json", settings(lambda content: content.update(n_folds="4")), FUSE_1, "n_folds as int, found '4'"),
    ("runs/paper/folds.npy", remove, FINETUNE_EEG, "No such file"),
    ("runs/paper/folds.npy", objects, FINETUNE_EEG, "expected a whole .npy file"),
    ("runs/paper/folds.npy", archive, EVALUATE, "expected a whole .npy file"),
    ("runs/paper/folds.npy", array(lambda folds: folds.astype("i4")), EVALUATE, "expected the folds"),
    # checkpoints and logs
    (FOLD + "pretrain.pt", remove, FINETUNE_EEG, "run pretrain.py"),
    (FOLD + "pretrain.pt", empty, FINETUNE_EEG, "not a checkpoint"),
    (FOLD + "pretrain.pt", noise, PRETRAIN_EEG, "not a checkpoint"),
    (FOLD + "pretrain.pt", folder, PRETRAIN_EEG, "directory"),
    (FOLD + "pretrain.pt", pickled_object, PRETRAIN_EEG, "not a checkpoint"),
    (FOLD + "pretrain.pt", lambda path: torch.save([1, 2], path), PRETRAIN_EEG, "a checkpoint with model"),
    (FOLD + "pretrain.pt", state(lambda content: content.pop("optimizer")), FINETUNE_EEG, "with optimizer"),
    (FOLD + "pretrain.pt", state(lambda content: content.update(epoch=1)), FINETUNE_EEG, "stopped after 1 of 2 epochs"),
    (FOLD + "arousal.pt", remove, FUSE_1, "run finetune.py --modality eeg"),
    (FOLD + "arousal.pt", state(lambda content: content.update(epoch=1)), FUSE_1, "stopped after 1 of 2 epochs"),
    (FOLD + "arousal.pt", state(lambda content: content["model"].update(cls=torch.zeros(3))), FUSE_ANEW, "found (3,)"),
    (FOLD + "arousal.pt", state(lambda content: content["model"].pop("cls")), FUSE_ANEW, "cls of shape"),
    (FOLD + "arousal.pt", state(lambda content: content["model"].update(cls=3)), FUSE_1, "expected weights"),
    (FOLD + "arousal.pt", state(lambda content: content.update(channels={"eeg": 3})), FUSE_1, "names of channels"),
    (FOLD + "arousal.pt", state(lambda content: content.update(flags={})), FUSE_1, "flags of their training"),
    (FOLD + "pretrain.pt", state(lambda content: content["flags"].pop("ffn")), FINETUNE_EEG, "--ffn among its flags"),
    (FOLD + "pretrain.jsonl", noise_in_a_log, PRETRAIN_EEG, "line 1: expected JSON with epoch"),
    # predictions
    (FOLD + "arousal.npy", halve, EVALUATE, "expected a whole .npy file"),
    (FOLD + "arousal.npy", put("label", 1), EVALUATE, "the labels of --threshold global"),
    (FOLD + "arousal.npy", put("probability", 1.5), EVALUATE, "probabilities from 0 to 1"),
]
FLAGS = [  # command, what the line says
    ((*ANEW, "--data", "data/nowhere"), "data/nowhere/manifest.json: missing"),
    ((*ANEW, "--extra", "data/nowhere"), "data/nowhere/manifest.json: missing"),
    ((*ANEW[:-2], "--split", "subject", "--n-folds", "7"), "--n-folds 7: --split subject has only 6 units"),
    ((*ANEW[:-2], "--split", "subject", "--n-folds", "6", "--validation-parts", "1"), "no train segments in fold 1"),
    ((*ANEW[:-2], "--n-folds", "128"), "--n-folds: expected 2 to 127, found 128"),
    ((*ANEW, "--fold", "4"), "--fold 4: expected 0 to 3"),
    ((*ANEW, "--cnn-kernels", "4", "4"), "--cnn-kernels [4, 4]: expected one odd size"),
    ((*ANEW, "--cnn-kernels", "5"), "--cnn-channels [6, 8]"),
    ((*ANEW, "--heads", "3"), "--heads 3, found 8"),
    ((*ANEW, "--mask-probability", "1e-9"), "--mask-probability 1e-09: masks no point"),
    ((*ANEW, "--mask-probability", "0.999999"), "--mask-probability 0.999999: masks no point or all of them"),
    ((*ANEW, "--device", "abacus"), "--device abacus: not usable here"),
    ((*ANEW, "--lr", "1e30"), "the loss is not finite at epoch"),
    ((*PRETRAIN_EEG, "--lr", "0.1"), "was started with --lr 0.0005, found 0.1"),
    ((*FINETUNE_EEG, "--heads", "1"), "pretrain.pt: expected a network with heads 1, found 2; leave the flag out"),
    ((*FINETUNE_EEG, "--run", "runs/nowhere"), "runs/nowhere/eeg/fold1/pretrain.pt: no such checkpoint"),
    ((*FUSE_1, "--init", "random"), "eeg/fold1/arousal-random.pt: no such checkpoint"),
    (("evaluate.py", "--run", "runs/nowhere"), "runs/nowhere/run.json: no such run"),
    ((*ANEW, "--run", "data/amigos/segments.npy"), "data/amigos/segments.npy"),
    ((*ANEW, "--run", "/proc/nowhere"), "/proc/nowhere"),
]


def refused(work, command, says):
    """The command ends in one line that says `says`, and leaves all as it was, but for the settings of a new run."""
    before = contents(work)
    line = complaint(call(*command, cwd=work), command[0])
    assert says in line
    after = contents(work)
    new = {name for name in after if name not in before and after[name] is not None}
    assert {name: after[name] for name in before} == before
    assert new <= {"runs/new/run.json", "runs/new/folds.npy"}
    return line


@pytest.mark.parametrize("path, damage, command, says", DAMAGED)
def test_damaged_file(work, path, damage, command, says):
    damage(work / path)
    if path == FOLD + "arousal.npy":  # without a record that fits them, damaged predictions come no further
        assert path in refused(work, command, "not the predictions that")
        describe(work / path)
    line = refused(work, command, says)
    assert path in line or says == "eeg.npy"


@pytest.mark.parametrize("command, says", FLAGS, ids=[says for _, says in FLAGS])
def test_unfitting_flags(work, command, says):
    refused(work, command, says)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"channels": {"eeg": ["F3", "F7"], "ecg": ["ECG"]}}, "['F3', 'F7']"),
        ({"rate": 256}, "'rate': 256"),
        ({"channels": {"ecg": ["ECG"]}}, "no eeg"),
    ],
)
def test_extra_set_that_does_not_fit(work, change, says):
    extra = write_set(work / "data" / "extra", name="extra")
    edit_manifest(extra, lambda content: content.update(change))
    assert "data/extra" in refused(work, (*ANEW, "--extra", "data/extra"), says)


def test_modality_that_the_data_lacks(work):
    edit_manifest(work / "data" / "amigos", lambda content: content["channels"].pop("ecg"))
    for command in (ANEW, RANDOM_ANEW):
        line = refused(work, (*command, "--modality", "ecg"), "expected ecg signals, found none")
        assert "data/amigos" in line


def test_a_gpu_that_is_too_small(work, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loop.Training, "fit", fail)
    refused(work, (*PRETRAIN_EEG, "--fresh"), "CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_half_of_what_torchrun_says(work, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(work, PRETRAIN_EEG, "WORLD_SIZE and RANK")
    refused(work, EVALUATE, "runs as one process, found WORLD_SIZE 2")


@pytest.mark.slow
def test_a_fold_without_ratings_is_left_out_of_the_table(work):
    edit_table(work / DATA, valence=lambda t: np.where(np.isin(t["subject"], ["S0", "S1"]), np.nan, t["valence"]))
    split = "--run", "runs/new", "--split", "subject", "--n-folds", 6
    trained = []
    for fold in range(6):
        finished = call(*FINETUNE_EEG, *split, "--init", "random", "--target", "valence", "--fold", fold, cwd=work)
        trained.append(finished.returncode == 0)
        assert trained[fold] or "no valence rating in the" in complaint(finished, "finetune.py")
    assert 0 < sum(trained) <= 4
    finished = call("evaluate.py", "--run", "runs/new", "--json", cwd=work)
    assert finished.returncode == 0
    table = json.loads(finished.stdout)["runs"][0]["table"]
    assert len(table["Majority class"]["valence"]["folds"]) == 4
    assert len(table["EEG, no pre-training"]["valence"]["folds"]) == sum(trained)


@pytest.mark.parametrize("room", [0, 4096, 12288, 20480])
def test_disk_full_in_a_new_run(work, small_disk, room):
    disk, fill = small_disk
    fill(room)
    line = complaint(call(*ANEW, "--run", disk / "run", cwd=work), "pretrain.py")
    assert f"{disk}/run" in line and "No space left on device" in line
    assert not [path for path in disk.rglob("*") if path.suffix in (".tmp", ".pt")]
    (disk / "filler").unlink()
    assert call(*ANEW, "--run", disk / "run", cwd=work).returncode == 0


def test_disk_full_later_on(work, small_disk):
    disk, fill = small_disk
    stopped = (*ANEW, "--run", disk / "run", "--epochs", 9)
    checkpoint = disk / "run" / "eeg" / "fold1" / "pretrain.pt"
    save = loop.write_atomically

    def fill_after_three_epochs(path, write):
        if path.suffix == ".jsonl" and len(path.read_bytes().splitlines() if path.exists() else []) == 3:
            fill(4096)
        save(path, write)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_atomically", fill_after_three_epochs)
        line = complaint(call(*stopped, cwd=work), "pretrain.py")
    assert f"{checkpoint}: could not be written (No space left on device)" in line
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 3
    (disk / "filler").unlink()
    finished = call(*stopped, cwd=work)
    assert finished.returncode == 0 and "resuming at epoch 4, step 0" in finished.stdout
    assert [json.loads(line)["epoch"] for line in open(checkpoint.with_suffix(".jsonl"))] == list(range(1, 10))
    assert not list(disk.rglob("*.tmp"))


@pytest.mark.slow
def test_file_too_large(work):
    """The same without a mount: the system refuses files of more than 8 kB."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    line = complaint(script(*ANEW, cwd=work, preexec_fn=limit), "pretrain.py")
    assert "runs/new/eeg/fold1/pretrain.pt" in line and "could not be written" in line
    assert not list(work.rglob("*.tmp")) and not (work / "runs/new/eeg/fold1/pretrain.pt").exists()
