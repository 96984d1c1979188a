"""The grid on two Ray nodes gives the files of the shell loop, also where a node or a cell dies."""

import io
import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cluster
from common import ray_stages
from common.files import only_writer
from prepared import FINETUNE, FUSE, PRETRAIN, assert_same_weights, done, edit_manifest, open_run, refusal
from prepared import reproduce, start, write_set
from ray_nodes import kill_raylet, needs_ray, two_nodes

FLAGS = {"pretrain": PRETRAIN, "finetune": FINETUNE, "fuse": FUSE}
GRID = ("--run", "runs/grid", *(f"--{stage}-flags={' '.join(flags)}" for stage, flags in FLAGS.items()))
FEW = "--targets arousal --inits pretrained --n-folds 3".split()
PLANTED = Path("runs/grid/eeg/fold1/pretrain.pt")
MANY_EPOCHS = (*GRID, "--pretrain-flags", " ".join(PRETRAIN).replace("--epochs 2", "--epochs 60"))


def test_a_ray_that_cannot_start_here_names_what_to_set(monkeypatch):
    def init(**_):
        raise ValueError("AF_UNIX path length cannot exceed 107 bytes")

    for name in ("ray", "ray.tune"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init))
    with pytest.raises(ValueError, match="107 bytes.*; set RAY_TMPDIR to a folder of your own with a short path"):
        ray_stages.start_ray("local", 1, 0)


def test_a_second_cluster_on_the_same_run_says_who_is_at_work(finished, tmp_path):
    work = shutil.copytree(finished, tmp_path / "work")
    with only_writer(work / "runs" / "grid" / "cluster"):
        says = ["runs/grid/cluster: process ", "is at work on it"]
        refusal("cluster.py", *GRID, *FEW, cwd=work, says=says)


def shell_loop(folder, chosen, epochs=2):
    """What reproduce.sh calls for arousal, pre-trained, one after the other."""
    for fold in chosen:
        common = "--fold", fold, "--run", "runs/grid", "--threads", 1
        for modality in ("eeg", "ecg"):
            flags = *PRETRAIN, "--n-folds", 3, "--epochs", epochs
            done("pretrain.py", "--modality", modality, *common, *flags, cwd=folder)
            done("finetune.py", "--modality", modality, "--target", "arousal", *common, *FINETUNE, cwd=folder)
        done("fuse.py", "--target", "arousal", *common, *FUSE, cwd=folder)


def assert_same(folder, reference, count):
    """The same prediction files, byte for byte, and the same weights."""
    found, expected = (
        {path.relative_to(each) for path in each.glob("runs/**/*.np[y]")} for each in (folder, reference)
    )
    assert found == expected and len(found) == count + 1  # and folds.npy
    for name in found:
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    for path in reference.glob("runs/**/*.pt"):
        one, other = (torch.load(each / path.relative_to(reference), weights_only=True) for each in (folder, reference))
        assert one["flags"]["threads"] == other["flags"]["threads"] == 1
        assert_same_weights(one, other)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_set(folder / "data" / "amigos", segments=4)
    return folder


@pytest.fixture(scope="module")
def nodes():
    with two_nodes() as cluster:
        yield cluster


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
    flags = "--eeg-extra data/bci2000 --finetune-flags".split()
    cells = cluster.grid(cluster_flags(*flags, "--hyperparameters best/{modality}-{target}-{name}-{fold}.json"))
    stages = [cell.stage for cell in cells.values()]
    assert [stages.count(stage) for stage in cluster.GPUS] == [20, 80, 40]
    names = list(cells)
    for name, cell in cells.items():
        assert all(names.index(needed) < names.index(name) for needed in cell.needs)
    assert cells["fused/fold3/valence-random"].needs == ["eeg/fold3/valence-random", "ecg/fold3/valence-random"]
    assert cells["ecg/fold7/arousal"].needs == ["ecg/fold7/pretrain"] and not cells["ecg/fold7/arousal-random"].needs
    assert "best/ecg-arousal-arousal-random-7.json" in cells["ecg/fold7/arousal-random"].flags
    assert "data/bci2000" in cells["eeg/fold0/pretrain"].flags and "--extra" not in cells["ecg/fold0/pretrain"].flags


def test_what_the_data_do_not_hold_is_left_out_and_said(base, tmp_path):
    folder = shutil.copytree(base / "data" / "amigos", tmp_path / "data" / "amigos")
    edit_manifest(folder, lambda manifest: manifest["channels"].pop("ecg"))
    run = open_run(tmp_path)
    with redirect_stdout(io.StringIO()) as printed:
        held = cluster.held_modalities(run)
    assert printed.getvalue() == f"{folder}: holds no ECG; its models are left out, and so is the fusion\n"
    cells = cluster.grid(cluster_flags("--fold", "0"), held)
    assert held == ["eeg"] and {cell.model.folder for cell in cells.values()} == {"eeg"} and len(cells) == 5


def cluster_flags(*flags):
    argv, sys.argv = sys.argv, ["cluster.py", *flags]
    try:
        return cluster.parse()
    finally:
        sys.argv = argv


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--fold=12", "--fold 12: expected 0 to 9"),
        ("--flags=--run elsewhere", "the grid sets --run itself"),
        ("--finetune-flags=--init=random", "the grid sets --init itself"),
        ("--fuse-flags='", "--fuse-flags ': No closing quotation"),
    ],
)
def test_flags_that_cannot_be_are_refused(base, flags, says):
    refusal("cluster.py", flags, "--run", "runs/new", cwd=base, says=[says])


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
        flags = *MANY_EPOCHS, "--fold", 1, "--address", others.address
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
        processes["failing"] = begin(failing, *GRID, "--fold", 1)
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
    assert [path.read_text().count("--- on ") for path in (folder / "runs").rglob("*.log")] == [1] * 15


@needs_ray
@pytest.mark.slow
def test_a_node_is_killed_in_mid_training(grids):
    folder, code, printed, loop = grids["killed"]
    assert code == 0, printed
    logs = [(folder / "runs" / "grid" / modality / "fold1" / "pretrain.log").read_text() for modality in ("eeg", "ecg")]
    assert sorted(log.count("--- on ") for log in logs) == [1, 2]
    assert "resuming at epoch" in max(logs, key=lambda log: log.count("--- on "))
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
    again = [each / "runs/grid/ecg/fold1/arousal.npy" for each in (folder, loop)]
    assert again[0].read_bytes() == again[1].read_bytes()
    logs = list(folder.glob("runs/grid/*/fold1/arousal.log"))
    assert logs == [folder / "runs/grid/ecg/fold1/arousal.log"]  # the others were not started
