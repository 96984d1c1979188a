"""Several processes train as one does; when one is killed, stopped or fails, all end, say why once, and can go on."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from model import SingleModalityModel, sample_mask
from prepared import NETWORK, ROOT, assert_same_weights, contents, done, fork, read_log, write_set
from training import loop

# 99 segments to pre-train on and 79 to fine-tune on: the last batch of an epoch has 3 samples, or 1.
COMMON = ("--modality", "eeg", "--fold", "1", *NETWORK, *"--threads 1 --lr 0.01".split())
PRETRAIN = ("pretrain.py", *COMMON, *"--n-folds 4 --mvp-hidden 8 --mask-probability 0.02 --warmup-epochs 1".split())
FINETUNE = ("finetune.py", *COMMON, *"--target arousal --classifier-hidden 6 --batch-size 26".split())
EXACT = "--dropout 0 --precision fp64".split()
SECONDS = 30  # in which the others end after one was killed
KILLED = "another process of this training was killed or does not answer"


class Group:
    """A script as `count` processes, started as torchrun would, which keeps their store, but without the seconds that
    importing PyTorch takes; and when one ends, no agent stops the others. `own`: flags of one process alone, by its
    rank."""

    def __init__(self, count, name, *flags, cwd, own={}):
        self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = self.store.port
        self.logs = [cwd / f"rank{rank}-{port}.log" for rank in range(count)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            given = *flags, *own.get(rank, ())
            self.processes.append(fork(name, *given, cwd=cwd, output=log, environment=environment))

    def printed(self) -> list[str]:
        return [log.read_text() if log.exists() else "" for log in self.logs]

    def wait_for(self, text):
        while text not in self.printed()[0]:
            assert all(process.is_alive() for process in self.processes), self.printed()
            time.sleep(0.001)

    def send(self, rank, number):
        os.kill(self.processes[rank].pid, number)

    def codes(self, seconds=300) -> list[int]:
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        assert None not in codes, f"still running after {seconds} s: {codes} {self.printed()}"
        return codes

    def ended_in_one_line(self, codes, seconds=300) -> str:
        assert self.codes(seconds) == codes, self.printed()
        lines = [line for line in "".join(self.printed()).splitlines() if re.match(r"[\w.]+\.py: ", line)]
        assert len(lines) == 1 and "Traceback" not in "".join(self.printed()), self.printed()
        return lines[0]


def finished(count, name, *flags, cwd) -> str:
    """What the first of `count` processes printed; the others print nothing."""
    group = Group(count, name, *flags, cwd=cwd)
    assert group.codes() == [0] * count, group.printed()
    first, *others = group.printed()
    assert others == [""] * (count - 1)
    return first


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    write_set(folder / "data" / "amigos", unrated=1)
    return folder


def results(run, name):
    """(losses (epochs, 2), weights, paths of all files) of a training."""
    path = run / "eeg" / "fold1" / f"{name}.pt"
    losses = [[line["train_loss"], line["validation_loss"]] for line in read_log(path.with_suffix(".jsonl"))]
    return np.array(losses), torch.load(path, weights_only=True), sorted(map(str, contents(run)))


@pytest.mark.slow
@pytest.mark.parametrize("count, batch_size, epochs", [(2, 32, 13), (3, 200, 50)])
def test_several_processes_train_as_one_does(folder, tmp_path, count, batch_size, epochs):
    """50 steps and more: four a epoch, and one, of which the log has every loss. The number of masked points differs
    from process to process; two of the three have no sample in the last batch of the fine-tuning."""
    shutil.copytree(folder / "data", tmp_path / "data")
    for name, epochs, flags in (
        ("pretrain", epochs, (*PRETRAIN, *EXACT, "--batch-size", batch_size)),
        ("arousal", 8, (*FINETUNE, *EXACT, "--classifier-dropout", 0)),
    ):
        done(*flags, "--epochs", epochs, "--run", "one", cwd=tmp_path)
        text = finished(count, *flags, "--epochs", epochs, "--run", "several", cwd=tmp_path)
        assert text.count(": epoch ") == epochs and "parameters, on cpu in fp64" in text
        (expected, one, files), (found, several, same) = (results(tmp_path / run, name) for run in ("one", "several"))
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        assert len(expected) == epochs and expected[-1, 0] < 0.97 * expected[0, 0]
        for key, weight in one["model"].items():
            assert weight.dtype == torch.float64
            if key.endswith("in_proj_bias"):  # that of the keys changes no softmax: its gradient is rounding alone
                biases = weight, several["model"][key]
                weight, several["model"][key] = (torch.cat(bias.chunk(3)[::2]) for bias in biases)
            torch.testing.assert_close(several["model"][key], weight, rtol=1e-7, atol=1e-9)
        assert [file for file in same if ".log" not in file] == files
        assert several.keys() == one.keys() and {**several["flags"], "run": "one"} == one["flags"]
    predictions = [np.load(tmp_path / run / "eeg" / "fold1" / "arousal.npy") for run in ("one", "several")]
    np.testing.assert_allclose(predictions[0]["probability"], predictions[1]["probability"], rtol=1e-6)


@pytest.mark.slow
def test_killed_stopped_and_resumed(folder, tmp_path):
    """With dropout on. Killed, stopped and resumed on two processes it ends in the same bits; and one goes on, too."""
    shutil.copytree(folder / "data", tmp_path / "data")
    flags = (*PRETRAIN, *"--dropout 0.3 --batch-size 32 --epochs 14".split())
    finished(2, *flags, "--run", "alone", cwd=tmp_path)
    expected, reference, _ = results(tmp_path / "alone", "pretrain")

    path = tmp_path / "runs" / "eeg" / "fold1" / "pretrain.pt"
    flags = (*flags, "--run", "runs")
    for epoch, rank, number in ((3, 1, signal.SIGTERM), (6, 1, signal.SIGKILL), (9, 0, signal.SIGKILL)):
        group = Group(2, *flags, cwd=tmp_path)
        group.wait_for(f": epoch {epoch}/")
        group.send(rank, number)
        if number == signal.SIGTERM:
            assert group.codes() == [143, 143], group.printed()
            [line] = [line for line in "".join(group.printed()).splitlines() if "stopped by" in line]
            assert "stopped by SIGTERM at epoch" in line and "the same command goes on from there" in line
        else:
            codes = [-signal.SIGKILL if each == rank else 2 for each in range(2)]
            assert KILLED in group.ended_in_one_line(codes, SECONDS)
        assert epoch - 1 <= torch.load(path, weights_only=True)["epoch"] < 14
        assert rank == 0 or not list(tmp_path.rglob("*.tmp"))
    shutil.copytree(tmp_path / "runs", tmp_path / "single")
    assert "resuming at epoch" in finished(2, *flags, cwd=tmp_path)
    found, state, _ = results(tmp_path / "runs", "pretrain")
    assert np.array_equal(found, expected)
    assert_same_weights(state, reference)

    assert "resuming at epoch" in done(*flags, "--run", "single", cwd=tmp_path)
    found, state, _ = results(tmp_path / "single", "pretrain")
    assert state["epoch"] == 14 and np.array_equal(found[:8], expected[:8])
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.slow
def test_bad_input_ends_in_one_line(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")

    def said(name, *flags, **own):
        return Group(2, name, *flags, cwd=tmp_path, **own).ended_in_one_line([2, 2])

    flags = (*PRETRAIN, "--epochs", 2, "--batch-size", 32)
    line = said(*flags, own={1: ("--seed", 5)})
    assert "pretrain.pt: expected the same checkpoint, data and flags in all processes" in line
    assert not (tmp_path / "runs").exists()

    assert said(*flags, "--fold", 9) == "pretrain.py: --fold 9: expected 0 to 3, as the run has 4 folds"
    for line in (said(*flags, "--epochs", "x"), said(*flags, own={1: ("--epochs", "x")})):
        assert line.startswith("pretrain.py: argument --epochs: invalid int")
    assert "runs as one process, found WORLD_SIZE 2" in said("fuse.py", "--target", "arousal", "--fold", 1)

    signals = np.load(tmp_path / "data" / "amigos" / "eeg.npy", mmap_mode="r+")
    signals[139, 0, 3] = np.nan  # of the unrated subject, so in one batch of an epoch, and seen by one process alone
    assert said(*flags, "--trust-data").startswith("pretrain.py: data/amigos/eeg.npy: row 139 holds NaN or inf")
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.tmp"))


def test_what_is_drawn_at_random(monkeypatch):
    """Masks and the layers' dropout do not depend on the number of processes; the heads' differs between any two."""
    loop.seed_step(0, 0)
    model = SingleModalityModel(2, [3], [8], 2, 2, 12, 0.3, mvp_hidden=[8], points=40).double()
    args = type("", (), {"layers": 2, "device": "cpu", "precision": "fp64"})
    signals, places = torch.randn(7, 2, 40, dtype=torch.float64), np.array([3, 1, 0, 6, 5, 2, 4])

    def loss(places, generator, mine):
        mask = sample_mask(len(places), 40, 0.05, 3, generator)
        batch = signals[places[mine]]
        seeds = loop.layer_seeds(generator, len(places), mine, args)
        return model.reconstruction_loss(batch, mask[mine], seeds, mask.sum())

    def ranks(world):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            yield rank

    def total(world):
        found = 0
        for _ in ranks(world):
            model.zero_grad()
            share = loop.share_of(loss, places, loop.seed_step(0, 5), args)
            share.backward()
            found += torch.cat([share.detach()[None], *(weight.grad.flatten() for weight in model.parameters())])
        return found

    one = total(1)
    for world in (2, 3, 7, 9):
        torch.testing.assert_close(total(world), one, rtol=1e-9, atol=1e-12)

    def dropped(places, generator, mine):
        return torch.nn.functional.dropout(torch.ones(1000), 0.5, training=True)

    def draw(step):
        return loop.share_of(dropped, places, loop.seed_step(0, step), args) > 0

    drawn = torch.stack([draw(step) for _ in ranks(3) for step in range(3)])
    agreement = (drawn[:, None] == drawn).double().mean(-1)[~torch.eye(9, dtype=bool)]
    assert 0.4 < agreement.min() and agreement.max() < 0.6


def torchrun(*flags) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *flags, "--", str(ROOT / PRETRAIN[0])]


@pytest.mark.slow
def test_torchrun(folder, tmp_path):
    """The command of the README."""
    shutil.copytree(folder / "data", tmp_path / "data")
    name, *flags = *PRETRAIN, *EXACT, *"--batch-size 32 --epochs 4".split()
    command = [*torchrun("--standalone", "--nproc-per-node", "2"), *flags]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and run.stdout.count(": epoch ") == 4, run.stderr
    done(name, *flags, "--run", "one", cwd=tmp_path)
    expected, found = (results(tmp_path / run, "pretrain")[0] for run in ("one", "runs/paper"))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_of_another_node_is_killed(folder, tmp_path, killed):
    """Two agents of one process each, as on two nodes: both end, with an exit code, and one line says why."""
    shutil.copytree(folder / "data", tmp_path / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents, logs = [], [tmp_path / f"node{node}.log" for node in range(2)]
    for node, log in enumerate(logs):
        where = f"--nnodes 2 --nproc-per-node 1 --node-rank {node} --master-addr 127.0.0.1 --master-port {port}"
        command = [*torchrun(*where.split()), *PRETRAIN[1:], *"--batch-size 32 --epochs 100000".split()]
        with open(log, "w") as file:
            agents.append(subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT))
    while ": epoch 2/" not in logs[0].read_text():
        assert all(agent.poll() is None for agent in agents), [log.read_text() for log in logs]
        time.sleep(0.01)
    pid = agents[killed].pid
    [worker] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    assert [agent.wait(2 * SECONDS) for agent in agents] == [1, 1]
    text = "".join(log.read_text() for log in logs)
    assert text.count(KILLED) == 1, text
    state = torch.load(tmp_path / "runs/paper/eeg/fold1/pretrain.pt", weights_only=True)
    assert state["epoch"] >= 1 and (killed == 0 or not list(tmp_path.rglob("*.tmp")))
