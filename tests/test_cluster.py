"""The grid on two Ray nodes gives the files of the shell loop, also where a node or a cell dies."""

import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from prepared import FINETUNE, FUSE, PRETRAIN, call, done, write_set
from ray_nodes import finish, kill_raylet, needs_ray, start, two_nodes

import cluster

FLAGS = {"pretrain": PRETRAIN, "finetune": FINETUNE, "fuse": FUSE}
GRID = ("--run", "runs/grid", *(f"--{stage}-flags={' '.join(flags)}" for stage, flags in FLAGS.items()))
FEW = "--targets arousal --inits pretrained --n-folds 3".split()
MANY_EPOCHS = (*GRID, "--pretrain-flags", " ".join(PRETRAIN).replace("--epochs 2", "--epochs 80"))


def shell_loop(folder, chosen, epochs=2):
    """What reproduce.sh calls for arousal, pre-trained, one after the other."""
    common = "--run", "runs/grid", "--threads", 1
    for fold in chosen:
        for modality in ("eeg", "ecg"):
            flags = "--modality", modality, "--fold", fold, "--n-folds", 3, *PRETRAIN, "--epochs", epochs
            done("pretrain.py", *flags, *common, cwd=folder)
        target = "--target", "arousal", "--fold", fold, *common
        for modality in ("eeg", "ecg"):
            done("finetune.py", "--modality", modality, *target, *FINETUNE, cwd=folder)
        done("fuse.py", *target, *FUSE, cwd=folder)


def assert_same(folder, reference, count):
    """The same prediction files, byte for byte, and the same weights."""
    found, expected = (
        {str(path.relative_to(each)): path for path in (each / "runs").rglob("*.np[y]")} for each in (folder, reference)
    )
    assert sorted(found) == sorted(expected) and len(found) == count + 1  # and folds.npy
    for name, path in found.items():
        assert path.read_bytes() == expected[name].read_bytes(), name
    checkpoints = sorted(path.relative_to(reference) for path in (reference / "runs").rglob("*.pt"))
    for name in checkpoints:
        states = [torch.load(each / name, weights_only=True) for each in (folder, reference)]
        assert [state["flags"]["threads"] for state in states] == [1, 1]
        assert states[0]["model"].keys() == states[1]["model"].keys()
        assert all(torch.equal(value, states[1]["model"][key]) for key, value in states[0]["model"].items()), name


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_set(folder / "data" / "amigos", segments=4)
    return folder


@pytest.fixture(scope="module")
def nodes():
    with two_nodes() as cluster:
        yield cluster


def test_without_ray_one_line_says_what_to_install(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    finished = call("cluster.py", "--n-folds", 3, cwd=base)
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr.count("\n") == 1 and "pip install -r requirements-ray.txt" in finished.stderr
    assert not (base / "runs").exists()


def test_grid_is_that_of_reproduce_sh():
    flags = "--folds 0-9 --eeg-extra data/bci2000 --finetune-flags".split()
    cells = cluster.grid(cluster_flags(*flags, "--hyperparameters best/{modality}-{target}-{fold}.json"))
    stages = [cell.stage for cell in cells.values()]
    assert [stages.count(stage) for stage in cluster.STAGES] == [20, 80, 40]
    names = list(cells)
    for name, cell in cells.items():
        assert all(names.index(needed) < names.index(name) for needed in cell.needs)
    assert cells["fused/fold3/valence-random"].needs == ["eeg/fold3/valence-random", "ecg/fold3/valence-random"]
    assert cells["ecg/fold7/arousal"].needs == ["ecg/fold7/pretrain"] and not cells["ecg/fold7/arousal-random"].needs
    assert "best/ecg-arousal-7.json" in cells["ecg/fold7/arousal"].flags
    assert "data/bci2000" in cells["eeg/fold0/pretrain"].flags and "--extra" not in cells["ecg/fold0/pretrain"].flags


def cluster_flags(*flags):
    argv, sys.argv = sys.argv, ["cluster.py", *flags]
    try:
        return cluster.parse()
    finally:
        sys.argv = argv


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--flags=--run elsewhere", "the grid sets --run itself"),
        ("--finetune-flags=--init=random", "the grid sets --init itself"),
        ("--fuse-flags='", "--fuse-flags ': No closing quotation"),
    ],
)
def test_flags_that_the_grid_sets_are_refused(base, flags, says):
    finished = call("cluster.py", flags, "--run", "runs/new", cwd=base)
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1 and says in finished.stderr
    assert not (base / "runs" / "new").exists()


@pytest.mark.parametrize("folds", ["3-1", "a", "1,", "-1", "12"])
def test_folds_that_are_none_are_named(base, folds):
    finished = call("cluster.py", f"--folds={folds}", cwd=base)
    assert finished.returncode == 2
    assert "--folds" in finished.stderr.splitlines()[-1] and folds in finished.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def grids(base, nodes, tmp_path_factory):
    """Two grids that have ended, name -> (folder, exit code, what was printed, folder of the shell loop): "whole", of
    three folds, on `nodes`, and "killed", of one, on nodes of its own, one of which was killed in mid-training."""
    folder = tmp_path_factory.mktemp("grids")
    whole, killed, *loops = (shutil.copytree(base, folder / name) for name in ("whole", "killed", "loop", "loop of 80"))
    logs = [killed / "runs" / "grid" / modality / "fold1" / "pretrain.log" for modality in ("eeg", "ecg")]
    printed = [folder / name for name in ("printed by whole", "printed by killed")]
    with two_nodes() as others:
        flags = *MANY_EPOCHS, *FEW, "--folds", 1, "--address", others.address
        running = start("cluster.py", *flags, cwd=killed, output=printed[1])
        while not all(log.exists() and "epoch 3/80" in log.read_text() for log in logs):
            assert running.poll() is None, printed[1].read_text()
            time.sleep(0.05)
        kill_raylet(next(iter(others.worker_nodes)))
        both = start("cluster.py", *GRID, *FEW, "--address", nodes.address, cwd=whole, output=printed[0]), running
        shell_loop(loops[0], range(3))
        shell_loop(loops[1], [1], epochs=80)
        codes = [process.wait(900) for process in both]
    return dict(zip(("whole", "killed"), zip((whole, killed), codes, map(Path.read_text, printed), loops)))


@needs_ray
@pytest.mark.slow
def test_grid_on_two_nodes_is_the_shell_loop(grids):
    folder, code, printed, loop = grids["whole"]
    assert code == 0, printed
    assert "15 of 15 cells are done" in printed and "15 cells on 2 nodes" in printed
    assert "Fused" in printed  # the evaluation
    assert_same(folder, loop, count=9)
    running = re.findall(r"^(\S+): running on ", printed, re.MULTILINE)
    assert len(running) == len(set(running)) == 15


@needs_ray
@pytest.mark.slow
def test_a_node_is_killed_in_mid_training(grids):
    folder, code, printed, loop = grids["killed"]
    assert code == 0, printed
    logs = [(folder / "runs" / "grid" / modality / "fold1" / "pretrain.log").read_text() for modality in ("eeg", "ecg")]
    assert sorted(log.count("--- on ") for log in logs) == [1, 2]
    assert "resuming at epoch" in max(logs, key=lambda log: log.count("--- on "))
    assert printed.count("attempt 2, for its worker or node died") == 1 and "done, 2 tries" in printed
    assert "raylet" not in printed.lower()  # of whose log Ray would print pages
    assert_same(folder, loop, count=3)


@needs_ray
@pytest.mark.slow
def test_a_cell_that_fails_for_good_fails_alone(grids, nodes, tmp_path):
    whole = grids["whole"][0]
    folder = shutil.copytree(whole, tmp_path / "failing")
    run = folder / "runs" / "grid"
    for path in [*run.glob("eeg/fold1/*"), *run.glob("fused/fold1/*"), *run.glob("ecg/fold1/arousal*")]:
        path.unlink()
    planted = run / "eeg" / "fold1" / "pretrain.pt"
    planted.write_text("not a checkpoint")
    finished = finish("cluster.py", *GRID, *FEW, "--folds", 1, "--address", nodes.address, cwd=folder)
    assert finished.returncode == 1
    lines = finished.stderr.splitlines()
    assert lines[0].startswith(
        f"cluster.py: eeg/fold1/pretrain failed, pretrain.py: {planted.relative_to(folder)}: not a"
    )
    assert lines[1:] == [
        "cluster.py: eeg/fold1/arousal left out, needs eeg/fold1/pretrain",
        "cluster.py: fused/fold1/arousal left out, needs eeg/fold1/arousal",
    ]
    assert "2 of 5 cells are done" in finished.stdout and planted.read_text() == "not a checkpoint"
    assert "ecg/fold1/pretrain.pt: already done, nothing to do" in finished.stdout
    again = [each / "runs" / "grid" / "ecg" / "fold1" / "arousal.npy" for each in (folder, whole)]
    assert again[0].read_bytes() == again[1].read_bytes()
    assert list(run.glob("*/fold1/arousal.log")) == [run / "ecg" / "fold1" / "arousal.log"]  # nor started
