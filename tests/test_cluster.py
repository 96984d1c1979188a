"""The grid on two Ray nodes gives the files of the shell loop, also where a node or a cell dies."""

import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch

import cluster
from prepared import FINETUNE, FUSE, PRETRAIN, call, done, reproduce, write_set
from ray_nodes import kill_raylet, needs_ray, start, two_nodes

FLAGS = {"pretrain": PRETRAIN, "finetune": FINETUNE, "fuse": FUSE}
GRID = ("--run", "runs/grid", *(f"--{stage}-flags={' '.join(flags)}" for stage, flags in FLAGS.items()))
FEW = "--targets arousal --inits pretrained --n-folds 3".split()
PLANTED = Path("runs/grid/eeg/fold1/pretrain.pt")
MANY_EPOCHS = (*GRID, "--pretrain-flags", " ".join(PRETRAIN).replace("--epochs 2", "--epochs 60"))


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


def as_flags(words) -> frozenset:
    """The script, and each flag with its values, in any order."""
    script, *flags = " ".join(words).split(" --")
    return frozenset([script, *flags])


def test_grid_is_that_of_reproduce_sh(tmp_path):
    for name in ("amigos", "bci2000", "pspm"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "manifest.json").touch()
    calls = reproduce(tmp_path, EEG_EXTRA="data/bci2000", ECG_EXTRA="data/pspm").stdout.splitlines()
    cells = cluster.grid(cluster_flags(*"--eeg-extra data/bci2000 --ecg-extra data/pspm".split())).values()
    called = {as_flags(line.split()) for line in calls[:-1]}
    assert {as_flags([f"{cell.stage}.py", *cell.flags]) for cell in cells} == called and len(called) == 140


def test_cells_need_one_another_and_take_what_was_found_for_them():
    flags = "--folds 0-9 --eeg-extra data/bci2000 --finetune-flags".split()
    cells = cluster.grid(cluster_flags(*flags, "--hyperparameters best/{modality}-{target}-{name}-{fold}.json"))
    stages = [cell.stage for cell in cells.values()]
    assert [stages.count(stage) for stage in cluster.STAGES] == [20, 80, 40]
    names = list(cells)
    for name, cell in cells.items():
        assert all(names.index(needed) < names.index(name) for needed in cell.needs)
    assert cells["fused/fold3/valence-random"].needs == ["eeg/fold3/valence-random", "ecg/fold3/valence-random"]
    assert cells["ecg/fold7/arousal"].needs == ["ecg/fold7/pretrain"] and not cells["ecg/fold7/arousal-random"].needs
    assert "best/ecg-arousal-arousal-random-7.json" in cells["ecg/fold7/arousal-random"].flags
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
    """Three grids that have ended, name -> (folder, exit code, what was printed, folder of the shell loop): "whole", of
    three folds, on `nodes`; there, too, "failing", of one, whose EEG encoder is no checkpoint and whose ECG encoder is
    done; "killed", of one, on nodes of its own, one of which was killed in mid-training."""
    folder = tmp_path_factory.mktemp("grids")
    whole, killed, loop, loop_of_60 = (shutil.copytree(base, folder / str(number)) for number in range(4))

    def begin(work, *flags):
        return start("cluster.py", *flags, *FEW, "--address", nodes.address, cwd=work, output=work / "printed")

    with two_nodes() as others:
        flags = *MANY_EPOCHS, "--folds", 1, "--address", others.address
        running = start("cluster.py", *FEW, *flags, cwd=killed, output=killed / "printed")
        logs = [killed / "runs" / "grid" / modality / "fold1" / "pretrain.log" for modality in ("eeg", "ecg")]
        while not all(log.exists() and "epoch 3/60" in log.read_text() for log in logs):
            assert running.poll() is None, (killed / "printed").read_text()
            time.sleep(0.05)
        kill_raylet(next(iter(others.worker_nodes)))
        processes = {"killed": running, "whole": begin(whole, *GRID)}
        shell_loop(loop, range(3))
        failing = shutil.copytree(loop, folder / "failing")
        fold = failing / "runs" / "grid"
        for path in [*fold.glob("eeg/fold1/*"), *fold.glob("fused/fold1/*"), *fold.glob("ecg/fold1/arousal*")]:
            path.unlink()
        (failing / PLANTED).write_text("not a checkpoint")
        processes["failing"] = begin(failing, *GRID, "--folds", 1)
        shell_loop(loop_of_60, [1], epochs=60)
        codes = {name: process.wait(900) for name, process in processes.items()}
    pairs = {"whole": (whole, loop), "failing": (failing, loop), "killed": (killed, loop_of_60)}
    return {name: (work, codes[name], (work / "printed").read_text(), loop) for name, (work, loop) in pairs.items()}


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
def test_a_cell_that_fails_for_good_fails_alone(grids):
    folder, code, printed, loop = grids["failing"]
    assert code == 1
    said = [line for line in printed.splitlines() if line.startswith("cluster.py: ")]
    assert said[0].startswith(f"cluster.py: eeg/fold1/pretrain failed, pretrain.py: {PLANTED}: not a")
    assert said[1:] == [
        "cluster.py: eeg/fold1/arousal left out, needs eeg/fold1/pretrain",
        "cluster.py: fused/fold1/arousal left out, needs eeg/fold1/arousal",
    ]
    assert "2 of 5 cells are done" in printed and (folder / PLANTED).read_text() == "not a checkpoint"
    assert "ecg/fold1/pretrain.pt: already done, nothing to do" in printed
    again = [each / "runs" / "grid" / "ecg" / "fold1" / "arousal.npy" for each in (folder, loop)]
    assert again[0].read_bytes() == again[1].read_bytes()
    logs = (folder / "runs" / "grid").glob("*/fold1/arousal.log")
    assert list(logs) == [folder / "runs" / "grid" / "ecg" / "fold1" / "arousal.log"]  # the others were not started
