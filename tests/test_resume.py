"""Training that is killed and started again ends in the same bits as training left alone; SIGTERM saves and says so."""

import os
import re
import shutil
import signal
import time
from functools import cache

import numpy as np
import pytest
import torch

from prepared import NETWORK, assert_same_weights, done, fork, read_log, start, write_set

# Dropout is on everywhere and the last batch is a smaller one, so that nothing random may depend on the process.
EEG, ECG = ("--modality", "eeg", "--fold", 1), ("--modality", "ecg", "--fold", 1)
TRAINING = "--dropout 0.3 --batch-size 24 --threads 1".split()
MASKING = "--mvp-hidden 8 --mask-probability 0.2".split()
PRETRAIN = (*NETWORK, *TRAINING, *MASKING, *"--n-folds 4 --warmup-epochs 2 --lr 0.01".split())
FINETUNE = ("--target", "arousal", *TRAINING, *"--classifier-hidden 6 --classifier-dropout 0.4 --lr 0.01".split())
FUSE = ("--target", "arousal", "--fold", 1, *"--fusion-hidden 6 --fusion-dropout 0.4 --lr 0.01 --threads 1".split())
FEW, MANY = (12, 12, 50), (80, 80, 250)  # epochs of pre-training, fine-tuning and fusion


def stages(epochs):
    """(script, checkpoint, flags) of the three training scripts, for (pre-training, fine-tuning, fusion) epochs."""
    return [
        ("pretrain.py", "eeg/fold1/pretrain.pt", (*EEG, *PRETRAIN, "--epochs", epochs[0])),
        ("finetune.py", "eeg/fold1/arousal.pt", (*EEG, *FINETUNE, "--epochs", epochs[1])),
        ("fuse.py", "fused/fold1/arousal.pt", (*FUSE, "--batch-size", 24, "--epochs", epochs[2])),
    ]


class Script:
    """A script running on its own, as a command or, without the seconds that importing PyTorch takes, as a fork."""

    def __init__(self, name, flags, cwd, log, command: bool):
        self.log, self.command = log, command
        self.process = (start if command else fork)(name, *flags, cwd=cwd, output=log)

    def exit_code(self, seconds=300):
        """None where it still runs after so long."""
        if self.command:
            return self.process.poll() if seconds == 0 else self.process.wait(seconds)
        self.process.join(seconds)
        return self.process.exitcode

    def printed(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, what):
        """Return once what() is true; whether that was before the script ended."""
        while not what():
            if self.exit_code(0) is not None:
                return False
            time.sleep(0.0002)
        return True

    def send(self, number):
        os.kill(self.process.pid, number)


def position(checkpoint) -> tuple[int, int]:
    """Epoch and step of a checkpoint, which knows the time of an epoch that it is in the midst of."""
    state = torch.load(checkpoint, weights_only=True)
    assert (state["schedule"]["seconds"] > 0) == (state["random"]["step"] > 0)
    return state["epoch"], state["random"]["step"]


def is_being_written(checkpoint) -> bool:
    return any(re.fullmatch(rf"{checkpoint.name}\..*\.tmp", entry.name) for entry in os.scandir(checkpoint.parent))


def kill_and_restart(folder, stage, kills, random) -> int:
    """Kill a training at each of `kills`: `start`, before the first checkpoint; `write`, inside the writing of a
    checkpoint; or `any`, at a random moment. Then let it end. Every restart is the same call. Returns how many kills
    came after the first checkpoint."""
    name, checkpoint, flags = stage
    checkpoint = folder / "runs" / "paper" / checkpoint
    kills, number, later = list(kills), 0, 0
    while True:
        found = position(checkpoint) if checkpoint.exists() else None
        script = Script(name, flags, folder, folder / f"{checkpoint.stem}-{name}-{number}.log", command=False)
        number += 1
        if kills:
            if kills[0] == "write":
                assert script.wait_for(lambda: "resuming at" in script.printed() or not found)
                assert script.wait_for(checkpoint.parent.exists)
            elif kills[0] == "any":
                script.wait_for(lambda: "resuming at" in script.printed() or (not found and checkpoint.exists()))
            time.sleep(random.uniform(0, {"start": 0.05, "write": 0.2, "any": 0.3}[kills[0]]))
            if kills[0] == "write":
                assert script.wait_for(lambda: is_being_written(checkpoint))
            script.send(signal.SIGKILL)
        code = script.exit_code()
        if found:
            match = re.search(r"resuming at epoch (\d+), step (\d+)$", script.printed(), re.MULTILINE)
            assert match and (int(match[1]) - 1, int(match[2])) == found, script.printed()
        if not kills:
            assert code == 0 and not list(folder.rglob("*.tmp")), script.printed()
            return later
        assert code == -signal.SIGKILL, f"{name} ended with {code} before it was killed: {script.printed()}"
        later += found is not None or checkpoint.exists()
        if kills[0] != "write" or checkpoint.parent.exists() and is_being_written(checkpoint):
            kills.pop(0)


def assert_same(folder, reference, epochs):
    """Weights, optimizer, predictions and losses of two runs are equal in every bit."""
    for (_, checkpoint, _), total in zip(stages(epochs), epochs):
        found, expected = (path / "runs" / "paper" / checkpoint for path in (folder, reference))
        states = [torch.load(path, weights_only=True) for path in (found, expected)]
        assert states[0]["epoch"] == states[1]["epoch"] == total
        assert_same_weights(*states)
        moments = [state["optimizer"]["state"] for state in states]
        for number, values in moments[0].items():
            assert all(torch.equal(value, moments[1][number][key]) for key, value in values.items())
        logs = [read_log(path.with_suffix(".jsonl")) for path in (found, expected)]
        for key in ("epoch", "train_loss", "validation_loss", "lr"):
            assert [line[key] for line in logs[0]] == [line[key] for line in logs[1]], (checkpoint, key)
        assert [line["epoch"] for line in logs[0]] == list(range(1, total + 1))
        assert not any(line["resumed"] for line in logs[1])
        if found.stem == "arousal":
            assert np.array_equal(np.load(found.with_suffix(".npy")), np.load(expected.with_suffix(".npy")))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Data, and the half of the fusion that nobody kills."""
    folder = tmp_path_factory.mktemp("base")
    write_set(folder / "data" / "amigos")
    done("pretrain.py", *ECG, *PRETRAIN, "--epochs", 2, cwd=folder)
    done("finetune.py", *ECG, *FINETUNE, "--epochs", 2, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def left_alone(base, tmp_path_factory):
    """All three scripts, uninterrupted for so many epochs, in a copy of `base`."""

    @cache
    def run(epochs):
        folder = shutil.copytree(base, tmp_path_factory.mktemp("reference") / "reference")
        for name, _, flags in stages(epochs):
            done(name, *flags, cwd=folder)
        return folder

    return run


@pytest.mark.slow
def test_killed_and_restarted(base, left_alone, tmp_path):
    pretraining = "start any any write any any write any"
    finetuning, fusion = "start any write any any any", "any any write any write any"
    folder, random, later = shutil.copytree(base, tmp_path / "killed"), np.random.default_rng(1), 0
    for (name, checkpoint, flags), kills in zip(stages(MANY), (pretraining, finetuning, fusion)):
        stage = name, checkpoint, (*flags, "--checkpoint-minutes", 0)
        later += kill_and_restart(folder, stage, kills.split(), random)
    assert later >= 15
    assert_same(folder, left_alone(MANY), MANY)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_stopped_and_restarted(base, left_alone, tmp_path, number):
    folder = shutil.copytree(base, tmp_path / "stopped")
    for place, (name, checkpoint, flags) in enumerate(stages(FEW)):
        log, checkpoint = folder / f"{name}.log", folder / "runs" / "paper" / checkpoint
        script = Script(name, flags, folder, log, command=name == "pretrain.py" and number == signal.SIGTERM)
        assert script.wait_for(lambda: f"epoch {3 + place}/" in script.printed())
        script.send(number)
        assert script.exit_code() == 128 + number, script.printed()
        epoch, step = position(checkpoint)
        assert 3 + place <= epoch < FEW[place] and "Traceback" not in script.printed()
        last = script.printed().splitlines()[-1]
        assert f"stopped by {signal.Signals(number).name} at epoch {epoch + 1}, step {step}; the same command" in last
        assert f"resuming at epoch {epoch + 1}, step {step}\n" in done(name, *flags, cwd=folder)
    assert_same(folder, left_alone(FEW), FEW)


@pytest.mark.slow
@pytest.mark.heavy
def test_the_papers_own_command(tmp_path, monkeypatch):
    """`python pretrain.py --modality eeg --fold 3`, with no other flag, on data of the paper's shape."""
    write_set(tmp_path / "data" / "amigos", subjects=5, unrated=0, trials=4, segments=5, channels=10, points=1280)
    monkeypatch.delenv("OMP_NUM_THREADS")
    checkpoint = tmp_path / "runs" / "paper" / "eeg" / "fold3" / "pretrain.pt"
    reached = (0, 0)
    for call in range(2):
        flags = "--modality", "eeg", "--fold", 3
        script = Script("pretrain.py", flags, tmp_path, tmp_path / f"{call}.log", command=True)
        assert script.wait_for(lambda: ": epoch " in script.printed())
        script.send(signal.SIGTERM)
        assert script.exit_code() == 143, script.printed()
        assert "2,483,530 parameters, on" in script.printed() and "Traceback" not in script.printed()
        assert f"resuming at epoch {reached[0] + 1}, step {reached[1]}\n" in script.printed() or not call
        assert position(checkpoint) > reached
        reached = position(checkpoint)
    state = torch.load(checkpoint, weights_only=True)
    assert state["model"]["encoder.convolutions.0.weight"].shape == (64, 10, 65)
    assert (state["flags"]["epochs"], state["flags"]["lr"], state["flags"]["batch_size"]) == (500, 5e-4, 64)
