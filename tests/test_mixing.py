"""Signals at random moments, and two calls at once, over the scripts that write: one result, never a mixture of two."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from prepared import NETWORK, assert_same_weights, done, script, start

MOMENTS = 10
PREPARE = "--dataset simulated --raw raw --subjects 6 --unrated-subjects 2 --videos 4 --seconds 40 --workers 2".split()
FOLD = "--fold 0 --data data/simulated --threads 1".split()
SMALL = "--batch-size 8 --lr 0.003 --checkpoint-minutes 0".split()
PRETRAIN = (*NETWORK, *SMALL, *"--mvp-hidden 8 --warmup-epochs 1 --epochs 12 --n-folds 3".split())
FINETUNE = (*SMALL, *"--target arousal --classifier-hidden 6 --epochs 12".split())
EEG, ECG = ("--modality", "eeg", *FOLD), ("--modality", "ecg", *FOLD)
STEPS = [
    ("prepare_data.py", *PREPARE),
    ("pretrain.py", *EEG, *PRETRAIN),
    ("finetune.py", *EEG, *FINETUNE),
    ("baseline.py", *"--fold 0 --data data/simulated --target arousal".split()),
    ("fuse.py", *FOLD, *SMALL, *"--target arousal --fusion-hidden 6 --epochs 60".split()),
]


def assert_same(folder, reference):
    """The same files, byte for byte; checkpoints, which hold times, by their weights; no remains of a stopped call."""
    found, expected = (
        {path.relative_to(each) for path in each.rglob("*.np[y]") if "raw" not in path.parts}
        for each in (folder, reference)
    )
    assert found == expected and not list(folder.rglob("*.tmp")) and not list(folder.rglob("*.partial"))
    for name in found:
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    for path in reference.rglob("*.pt"):
        each = (torch.load(side / path.relative_to(reference), weights_only=True) for side in (folder, reference))
        assert_same_weights(*each)


def disturbed(command, before, folder, seconds, random) -> dict:
    """Call a script again and again in a copy of `before`, with MOMENTS signals at random moments, and then let it end;
    how the calls ended. A training that ended before it had them all begins anew."""
    endings, sent = {}, 0
    shutil.copytree(before, folder)
    while True:
        process = start(*command, cwd=folder, output=folder / "printed")
        if sent < MOMENTS:
            number = random.choice([signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP])
            time.sleep(random.uniform(0.1, seconds))
            sent += process.poll() is None
            process.send_signal(number)
            if number == signal.SIGSTOP:
                time.sleep(0.5)
                process.send_signal(signal.SIGCONT)
        code, printed = process.wait(300), (folder / "printed").read_text()
        endings[code] = endings.get(code, 0) + 1
        assert "Traceback" not in printed and code not in (1, 2), printed
        if code == 0 and sent == MOMENTS:
            return endings
        if code == 0:
            shutil.rmtree(folder)
            shutil.copytree(before, folder)


@pytest.mark.slow
@pytest.mark.heavy
def test_signals_at_random_moments(tmp_path):
    reference, random = tmp_path / "reference", np.random.default_rng(0)
    reference.mkdir()
    for command in STEPS:
        if command[0] == "fuse.py":  # the other half of it, which nobody disturbs
            done("pretrain.py", *ECG, *PRETRAIN, cwd=reference)
            done("finetune.py", *ECG, *FINETUNE, cwd=reference)
        before, folder = shutil.copytree(reference, tmp_path / f"before {command[0]}"), tmp_path / command[0]
        begun = time.monotonic()
        assert script(*command, cwd=reference).returncode == 0
        print(command[0], disturbed(command, before, folder, time.monotonic() - begun, random))
        assert_same(folder, reference)


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("name, flag", [("finetune.py", "--lr"), ("pretrain.py", "--fold-seed")])
def test_two_calls_at_once_with_different_flags(tmp_path, name, flag):
    """Of one cell, and of a run that is new: one of them is refused, and all that is there is of the other."""
    done("prepare_data.py", *PREPARE, cwd=tmp_path)
    if name == "finetune.py":
        done("pretrain.py", *EEG, *PRETRAIN, cwd=tmp_path)
    command = (name, *EEG, *(FINETUNE if name == "finetune.py" else PRETRAIN))
    values = (1, 2) if flag == "--fold-seed" else (0.001, 0.002)
    for attempt in range(MOMENTS // 2):
        work = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{attempt}"))
        calls = [start(*command, flag, value, cwd=work, output=work / str(value)) for value in values]
        codes = [call.wait(300) for call in calls]
        assert sorted(codes) == [0, 2], [(work / str(value)).read_text() for value in values]
        winner = values[codes.index(0)]
        lines = (work / str(values[codes.index(2)])).read_text().splitlines()
        assert lines[-1].startswith(f"{name}: ") and "Traceback" not in "".join(lines)
        run = json.loads((work / "runs" / "paper" / "run.json").read_text())
        stem = "arousal" if name == "finetune.py" else "pretrain"
        state = torch.load(work / "runs" / "paper" / "eeg" / "fold0" / f"{stem}.pt", weights_only=True)
        if flag == "--fold-seed":
            assert run["fold_seed"] == state["record"]["fold_seed"] == winner
            assert run["folds_sha256"] == state["record"]["folds_sha256"]
        else:
            record = json.loads((work / "runs" / "paper" / "eeg" / "fold0" / "arousal.json").read_text())
            assert state["flags"]["lr"] == record["flags"]["finetune"]["lr"] == winner
        shutil.rmtree(work)
