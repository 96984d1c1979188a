"""A search draws the same trials and ends in the same table, whatever happens to it, and reads no test segment."""

import csv
import json
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import paper
import tune
from common import script
from prepared import FINETUNE, FUSE, PRETRAIN, call, contents, done, read_log, refusal, start
from protocol import run as runs
from protocol.segments import SignalRows
from ray_nodes import needs_ray, two_nodes

ARGS = ("--modality", "eeg", "--target", "arousal", "--fold", 1, "--trust-data")  # for some are made NaN
STAGE = (*ARGS, "--batch-size", 32, "--threads", 1, "--hyperparameters", "start.json")
START = {"epochs": 6, "classifier_hidden": [6]}  # what is searched, so that no flag may name it
SEARCH = ("--grace-epochs", 2, "--reduction", 2, *STAGE)
FOUND = "runs/paper/tune/eeg/fold1/arousal"
# Where a trial was stopped, longer than the 2 seconds after which Tune by itself waits for ever.
HESITATE = """
import atexit, pathlib, sys, time
def hesitate():
    if "--validation-only" in sys.argv:
        folder = pathlib.Path(sys.argv[sys.argv.index("--validation-only") + 1])
        time.sleep(2.5 * (len((folder / "arousal.jsonl").read_text().splitlines()) < 6))
atexit.register(hesitate)
"""
STAGES = {
    "pretrain.py": ("--modality", "eeg", "--fold", 1, *PRETRAIN, "--threads", 1, "--trust-data"),
    "finetune.py": (*ARGS, *FINETUNE, "--threads", 1),
    "fuse.py": ("--target", "arousal", "--fold", 1, *FUSE, "--threads", 1, "--trust-data"),
}


@pytest.fixture
def search(work):
    """A run in which fold 1 can be searched, up to its fusion."""
    (work / "start.json").write_text(json.dumps({"hyperparameters": START, "fold": 1}))
    return work


def hide(folder, test=True) -> None:
    """Plant NaN in the signals of every test segment of fold 1, or of every other."""
    chosen = (np.load(folder / "runs" / "paper" / "folds.npy") == 1) == test
    assert chosen.sum() == (30 if test else 110)
    for modality in ("eeg", "ecg"):
        signals = np.load(folder / "data" / "amigos" / f"{modality}.npy", mmap_mode="r+")
        signals[chosen] = np.nan
        signals.flush()


def losses(log) -> list:
    return [[line[key] for key in ("epoch", "train_loss", "validation_loss", "lr")] for line in read_log(log)]


@pytest.mark.parametrize("stage", STAGES)
def test_validation_only_reads_no_test_segment(search, stage):
    command = stage, *STAGES[stage], "--epochs", 3
    done(*command, "--validation-only", "clean", cwd=search)
    hide(search)
    before = contents(search / "runs").keys()
    done(*command, "--validation-only", "planted", cwd=search)
    (log,) = (search / "planted").glob("*.jsonl")
    assert losses(log) == losses(search / "clean" / log.name) and len(losses(log)) == 3
    assert {path.suffix for path in (search / "planted").iterdir()} == {".pt", ".jsonl"}  # no prediction
    assert contents(search / "runs").keys() == before
    if stage != "pretrain.py":  # which never reads one
        finished = call(*command, "--fresh", cwd=search)
        assert finished.returncode == 2 and "holds NaN" in finished.stderr


def test_validation_only_gives_the_losses_of_the_whole_stage(search):
    done("finetune.py", *STAGES["finetune.py"], "--validation-only", "trial", cwd=search)
    assert losses(search / "trial" / "arousal.jsonl") == losses(search / "runs/paper/eeg/fold1/arousal.jsonl")


def test_signals_of_hidden_rows_cannot_be_asked_for(search, monkeypatch):
    monkeypatch.chdir(search)
    settings = {name: json.loads(Path("runs/paper/run.json").read_text())[name] for name in runs.SETTINGS}
    folders = {"run": Path("runs/paper"), "data": Path("data/amigos")}
    run = runs.open_run(SimpleNamespace(**settings, **folders, fold=1, validation_only="trial"))
    rows = run.split(1)
    assert np.array_equal(run.data.hidden, np.flatnonzero(np.load("runs/paper/folds.npy") == 1))
    assert len(SignalRows([(run.data, rows["pretrain"]), (run.data, rows["validation"])], "eeg")) == 110
    with pytest.raises(ValueError, match="hides the test segments"):
        SignalRows([(run.data, rows["train"]), (run.data, rows["test"][:1])], "eeg")


BEST = "--hyperparameters", "best.json", "--print-flags"


def test_hyperparameters_come_from_the_file_where_no_flag_names_them(search):
    best = '{"hyperparameters": {"lr": 0.25, "classifier_hidden": [7, 5], "epochs": 9}, "fold": 1}'
    (search / "best.json").write_text(best)
    found = json.loads(done("finetune.py", *ARGS, *BEST, "--epochs", 4, cwd=search))
    assert (found["lr"], found["classifier_hidden"], found["epochs"]) == (0.25, [7, 5], 4)
    assert (found["cnn_channels"], found["lr_every"]) == ([6, 8], 45)  # of pretrain.pt, of the paper


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "expected JSON"),
        ('{"hyperparameters": [1]}', "expected JSON"),
        ('{"hyperparameters": {"fusion_hidden": [64]}}', "unrecognized arguments: --fusion-hidden 64; take the file"),
        ('{"hyperparameters": {"lr": 0}}', "argument --lr: expected a number above 0, found 0"),
        ('{"hyperparameters": {"epochs": 2.5}}', "argument --epochs: invalid int value: '2.5'"),
        ('{"hyperparameters": {"classifier_hidden": []}}', "argument --classifier-hidden: expected at least one"),
        ('{"hyperparameters": {"dropout": 1}}', "argument --dropout: expected a number below 1, found 1"),
        ('{"hyperparameters": {}, "stage": "fuse"}', "expected a search with --stage finetune, found fuse"),
        ('{"hyperparameters": {}, "modality": "ecg"}', "expected a search with --modality eeg, found ecg"),
        ('{"hyperparameters": {"lr": 0.1}, "stage": "finetune"}', "expected the fold that was searched, found none"),
    ],
)
def test_hyperparameters_that_are_none_are_named(search, text, says):
    (search / "best.json").write_text(text)
    refusal("finetune.py", *ARGS, *BEST, cwd=search, says=["finetune.py: best.json: ", says])


def test_hyperparameters_of_another_fold_are_said(search):
    for fold in (1, 3):
        (search / "best.json").write_text(f'{{"hyperparameters": {{"lr": 0.25}}, "fold": {fold}, "stage": "finetune"}}')
        finished = call("finetune.py", *ARGS, *BEST, cwd=search)
        assert finished.returncode == 0 and json.loads(finished.stdout)["lr"] == 0.25
        assert ("searched with --fold 3, not 1" in finished.stderr) == (fold == 3)


def test_without_ray_one_line_says_what_to_install_and_an_earlier_search_stays(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    (search / FOUND).mkdir(parents=True)
    (search / FOUND / "search.json").write_text("{}")
    refusal("tune.py", *SEARCH, "--fresh", cwd=search, says=["pip install -r requirements-ray.txt"])


@pytest.mark.parametrize("stage, parent", [("finetune.py", "eeg/fold1/pretrain"), ("fuse.py", "ecg/fold1/arousal")])
def test_a_search_that_started_from_other_weights(search, stage, parent, monkeypatch):
    monkeypatch.chdir(search)
    flags, space, _ = tune.resolve(stage[:-3], list(map(str, STAGES[stage])))
    args = tune.argparse.Namespace(stage=stage[:-3], grace_epochs=1, reduction=4, fresh=False)
    folder, record = tune.open_search(args, flags, space)
    folder.mkdir(parents=True)
    (folder / "search.json").write_text(json.dumps(record))
    assert tune.open_search(args, flags, space) == (folder, record)
    path = Path("runs", "paper", f"{parent}.pt")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=f"was made from another {parent}.pt than there is now"):
        tune.open_search(args, flags, space)


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--lr", "-1"], "argument --lr: "),
        (["--classifier-drop", "0.1"], "--classifier_drop: expected a flag of finetune.py in full"),
        (["--validation-only", "here"], "--validation-only, --test-data: expected neither"),
        (["--reduction", "1"], "argument --reduction: expected 2 or more, found 1"),
    ],
)
def test_flags_that_no_search_takes_are_named(search, flags, says):
    finished = call("tune.py", *SEARCH, *flags, cwd=search)
    assert finished.returncode == 2 and says in finished.stderr.splitlines()[-1]
    assert not (search / "runs" / "paper" / "tune").exists()


def lines_of(folder):
    return list(csv.DictReader((folder / FOUND / "trials.csv").read_text().splitlines()))


def started(finished, folder, *flags, change=lambda folder: None):
    """(folder, process) of a search that is running in a copy of the finished run, and prints into `printed`."""
    shutil.copytree(finished, folder)
    (folder / "start.json").write_text(json.dumps({"hyperparameters": START, "fold": 1}))
    change(folder)
    return folder, start("tune.py", *flags, cwd=folder, output=folder / "printed")


def ended(folder, process, code=0):
    """The lines that a search printed."""
    assert process.wait(900) == code, (folder / "printed").read_text()
    return (folder / "printed").read_text().splitlines()


@pytest.fixture(scope="module")
def searches(finished, tmp_path_factory):
    """Searches, many at a time, name -> (folder, process that has ended): eight trials left alone, on this machine,
    where those that are stopped take their time; on a cluster, where no test segment can be read, the same trials,
    killed in the fourth and restarted; further ones."""
    folder = tmp_path_factory.mktemp("searches")
    (folder / "sitecustomize.py").write_text(HESITATE)
    eight = "--trials", 8, *SEARCH
    with two_nodes() as nodes:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(folder))
            running = {"alone": started(finished, folder / "alone", *eight)}
        address = "--address", nodes.address
        killed, process = started(finished, folder / "killed", *eight, *address, change=hide)
        while not (killed / FOUND / "trials.csv").exists() or len(lines_of(killed)) < 3:
            assert process.poll() is None, (killed / "printed").read_text()
            time.sleep(0.05)
        time.sleep(1)  # into the fourth
        process.send_signal(signal.SIGKILL)
        ended(killed, process, code=-signal.SIGKILL)
        assert len(lines_of(killed)) < 8
        running["killed"] = killed, start("tune.py", *eight, *address, cwd=killed, output=killed / "printed")
        one = "--trials", 1, *address
        for stage in ("pretrain", "fuse"):
            flags = *one, "--stage", stage, "--grace-epochs", 1, *STAGES[f"{stage}.py"]
            running[stage] = started(finished, folder / stage, *flags)
        spoil = partial(hide, test=False)
        running["spoilt"] = started(finished, folder / "spoilt", *one, *SEARCH, change=spoil)
        for _, process in running.values():
            process.wait(900)
    return running


@pytest.fixture
def alone(searches):
    ended(*searches["alone"])
    return searches["alone"][0]


@pytest.fixture
def killed(searches):
    ended(*searches["killed"])
    return searches["killed"][0]


@needs_ray
@pytest.mark.slow
def test_search_finds_better_than_it_started_with(alone, tmp_path):
    folder = shutil.copytree(alone, tmp_path / "work")
    rows, best = lines_of(folder), json.loads((folder / FOUND / "best.json").read_text())
    found = [float(row["validation_loss"]) for row in rows]
    assert len(rows) == 8 and rows[0]["lr"] == "0.0001" and rows[0]["classifier_hidden"] == "6"
    assert best["validation_loss"] == min(found) < max(found) and best["trial"] == int(np.argmin(found))
    assert min(found) < found[0] == best["validation_loss_of_first"]
    assert {row["outcome"] for row in rows} == {"finished", "stopped"}
    for row in rows:
        log = losses(folder / FOUND / row["log"].replace("log.txt", "arousal.jsonl"))
        counted = [line[2] for line in log[: int(row["epochs"])]]
        assert float(row["validation_loss"]) == min(counted) == counted[int(row["best_epoch"]) - 1]
    assert not list((folder / FOUND).rglob("*.npy"))

    bad = "--lr", 1e-9, "--lr-every", 1, "--lr-factor", 1e-3, "--validation-only", "bad"
    done("finetune.py", *STAGE, *bad, cwd=folder)
    assert min(line[2] for line in losses(folder / "bad" / "arousal.jsonl")) > min(found)

    command = (folder / "printed").read_text().splitlines()[-1].split()
    assert command[:2] == ["python", "finetune.py"] and command[-2:] == ["--hyperparameters", f"{FOUND}/best.json"]
    done(*command[1:], "--fresh", cwd=folder)
    trained = losses(folder / "runs/paper/eeg/fold1/arousal.jsonl")
    assert len(trained) == best["hyperparameters"]["epochs"] and trained[-1][2] == best["validation_loss"]
    bare = *"finetune.py --modality eeg --fold 1 --target arousal --print-flags".split(), *command[-2:]
    flags = json.loads(done(*bare, cwd=folder))
    used = torch.load(folder / "runs/paper/eeg/fold1/arousal.pt", weights_only=True)["flags"]
    assert {name: flags[name] for name in paper.FINETUNE} == {name: used[name] for name in paper.FINETUNE}


@needs_ray
@pytest.mark.slow
def test_killed_half_way_and_without_test_segments_it_ends_in_the_same_table(alone, killed):
    signals = np.load(killed / "data" / "amigos" / "eeg.npy", mmap_mode="r")
    assert np.isnan(signals[np.load(killed / "runs" / "paper" / "folds.npy") == 1]).all()
    for name in ("trials.csv", "best.json"):
        assert (killed / FOUND / name).read_bytes() == (alone / FOUND / name).read_bytes()


@needs_ray
@pytest.mark.slow
def test_a_search_goes_on_with_the_same_flags_alone(killed, tmp_path):
    command = "tune.py", "--trials", 8, *SEARCH
    says = "search.json: was made with --classifier-dropout 0.6, found 0.1; use the same flags, or --fresh"
    refusal(*command, "--classifier-dropout", 0.1, cwd=killed, says=[says])
    work = shutil.copytree(killed, tmp_path / "work")
    (work / FOUND / "search.json").write_text("[1, 2")
    refusal(*command, cwd=work, says=["search.json: expected JSON"])


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("stage, name", [("pretrain", "eeg/fold1/pretrain"), ("fuse", "fused/fold1/arousal")])
def test_the_other_stages(searches, tmp_path, stage, name):
    command = ended(*searches[stage])[-1].split()
    folder = shutil.copytree(searches[stage][0], tmp_path / "work")
    best = json.loads((folder / command[-1]).read_text())
    assert best["stage"] == stage and best["of_trials"] == 1
    done(*command[1:], "--fresh", cwd=folder)
    assert losses(folder / "runs" / "paper" / f"{name}.jsonl")[-1][2] == best["validation_loss"]


@needs_ray
@pytest.mark.slow
def test_a_search_in_which_every_trial_fails(searches):
    line = ended(*searches["spoilt"], code=2)[-1]
    assert "no trial came to its end; the first: failed: finetune.py: " in line and "holds NaN or inf" in line


@pytest.mark.parametrize("searched, best, loss", [(("lr", "epochs"), 2, 1.0), (("lr",), 3, 2.0)])
def test_the_best_epoch_counts_where_their_number_is_searched_else_the_last(tmp_path, searched, best, loss):
    trial = SimpleNamespace(config={"lr": 0.5}, last_result={"epoch": 3}, status="TERMINATED")
    log = tune.trial_folder(tmp_path, trial.config) / "arousal.jsonl"
    log.parent.mkdir()
    log.write_text(
        "".join(
            json.dumps({"epoch": e + 1, "train_loss": 0, "validation_loss": x}) + "\n" for e, x in enumerate([3, 1, 2])
        )
    )
    line = tune.line_of(trial, tmp_path, dict.fromkeys(searched), 3)
    assert (line["lr"], line["outcome"], line["best_epoch"], line["validation_loss"]) == (0.5, "finished", best, loss)


def test_space_holds_what_the_stages_take():
    """Every flag that is searched is one of its stage, drawn from values that it takes."""
    for stage, space in tune.SPACE.items():
        parser = script.Parser("")
        script.add_hyperparameters(parser, stage)
        for name, (how, *limits) in space.items():
            for value in limits[0] if how == "choice" else limits:
                parser.parse_args(script.command_line(name, value))  # raises where the flag would not take it
