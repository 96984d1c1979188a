"""The grid on two Ray nodes gives the files of the shell loop, also where a node or a cell dies."""

import re
import shutil
import sys
import time

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
def grid(base, nodes, tmp_path_factory):
    """The grid of three folds on two nodes, to be copied, and what it printed."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("grid") / "grid")
    return folder, finish("cluster.py", *GRID, *FEW, "--address", nodes.address, cwd=folder)


@needs_ray
@pytest.mark.slow
def test_grid_on_two_nodes_is_the_shell_loop(base, grid, tmp_path):
    folder, finished = grid
    reference = shutil.copytree(base, tmp_path / "reference")
    shell_loop(reference, range(3))
    assert finished.returncode == 0, finished.stderr
    assert "15 of 15 cells are done" in finished.stdout and "15 cells on 2 nodes" in finished.stdout
    assert "Fused" in finished.stdout  # the evaluation
    assert_same(folder, reference, count=9)
    running = re.findall(r"^(\S+): running on ", finished.stdout, re.MULTILINE)
    assert len(running) == len(set(running)) == 15


@needs_ray
@pytest.mark.slow
def test_a_cell_that_fails_for_good_fails_alone(grid, nodes, tmp_path):
    folder = shutil.copytree(grid[0], tmp_path / "failing")
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
    again = [each / "runs" / "grid" / "ecg" / "fold1" / "arousal.npy" for each in (folder, grid[0])]
    assert again[0].read_bytes() == again[1].read_bytes()
    assert list(run.glob("*/fold1/arousal.log")) == [run / "ecg" / "fold1" / "arousal.log"]  # nor started


@needs_ray
@pytest.mark.slow
def test_a_node_is_killed_in_mid_training(base, nodes, tmp_path):
    folder, reference = (shutil.copytree(base, tmp_path / name) for name in ("killed", "reference"))
    flags = *MANY_EPOCHS, *FEW, "--folds", 1, "--address", nodes.address
    running = start("cluster.py", *flags, cwd=folder, output=tmp_path / "output")
    logs = [folder / "runs" / "grid" / modality / "fold1" / "pretrain.log" for modality in ("eeg", "ecg")]
    while not all(log.exists() and "epoch 3/80" in log.read_text() for log in logs):
        assert running.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.05)
    kill_raylet(next(iter(nodes.worker_nodes)))
    shell_loop(reference, [1], epochs=80)
    assert running.wait(900) == 0, (tmp_path / "output").read_text()

    assert sorted(log.read_text().count("--- on ") for log in logs) == [1, 2]
    again = max(logs, key=lambda log: log.read_text().count("--- on ")).read_text()
    assert "resuming at epoch" in again
    shown = (tmp_path / "output").read_text()
    assert shown.count("attempt 2, for its worker or node died") == 1 and "done, 2 tries" in shown
    assert_same(folder, reference, count=3)
