"""The defaults are the paper's: every script's --print-flags against tables written out by hand from the paper."""

import json
import re

import pytest

from prepared import PRETRAIN as SMALL
from prepared import call, done, reproduce

ADAM = {"beta1": 0.9, "beta2": 0.999}
RUN = {
    "data": "data/amigos",
    "run": "runs/paper",
    "fold": 3,
    "split": "segment",
    "n_folds": 10,
    "fold_seed": 0,
    "validation_parts": 9,
    "threshold": "global",
    "seed": 0,
    "batch_size": 64,
    "decay": "decoupled",
    **ADAM,
}
NETWORK = {
    "cnn_kernels": [65, 33, 17],
    "cnn_channels": [64, 128, 256],
    "encoder_norm": "output",
    "layers": 2,
    "heads": 2,
    "ffn": 1024,
    "dropout": 0.1,
}
PRETRAIN = {
    **RUN,
    **NETWORK,
    "mask_probability": 0.0325,
    "mask_span": 0.15625,  # 20 points at 128 Hz
    "mvp_hidden": [128],
    "epochs": 500,
    "weight_decay": 0.005,
    "warmup_epochs": 30,
}
FINETUNE = {
    **RUN,
    **NETWORK,
    "pool": "cls",
    "epochs": 100,
    "weight_decay": 1e-5,
    "lr": 1e-4,
    "lr_factor": 0.65,
    "lr_every": 45,
}
VARIANT = {"init": "pretrained", "freeze": False, "shuffle_labels": False, "label_fraction": 1.0}
EXPECTED = [
    ("pretrain.py --modality eeg --fold 3", {**PRETRAIN, "modality": "eeg", "lr": 5e-4}),
    ("pretrain.py --modality ecg --fold 3", {**PRETRAIN, "modality": "ecg", "lr": 1e-3}),
    (
        "finetune.py --modality eeg --target arousal --fold 3",
        {**FINETUNE, **VARIANT, "classifier_hidden": [64], "classifier_dropout": 0.6},
    ),
    (
        "finetune.py --modality ecg --target valence --fold 3",
        {**FINETUNE, **VARIANT, "classifier_hidden": [1024, 512], "classifier_dropout": 0.3},
    ),
    (
        "fuse.py --target arousal --fold 3",
        {
            **RUN,
            **VARIANT,
            "fusion_hidden": [64, 32],
            "fusion_dropout": 0.1,
            "epochs": 52,
            "weight_decay": 1e-5,
            "lr": 1e-5,
            "lr_factor": 0.65,
            "lr_every": 20,
        },
    ),
    (
        "prepare_data.py --dataset amigos --raw raw",
        {
            "rate": 128,
            "low": {"eeg": 0.8, "ecg": 0.8},
            "high": {"eeg": 50.0, "ecg": 50.0},
            "filter_order": 8,
            "seconds_per_segment": 10,
            "normalise": "subject",
        },
    ),
    ("evaluate.py", {"run": ["runs/paper"], "bootstrap": 2000, "permutations": 9999, "seed": 0}),
    ("baseline.py", {"run": "runs/paper", "data": "data/amigos", "model": "classical", "n_folds": 10}),
]
NO_HYPER_PARAMETERS = {
    *("-h", "--dataset", "--run", "--data", "--raw", "--out", "--json", "--fresh", "--print-flags", "--check"),
    *("--list", "--model", "--rows", "--details", "--report"),
}


@pytest.mark.parametrize("command, expected", EXPECTED, ids=[command for command, _ in EXPECTED])
def test_print_flags_gives_the_numbers_of_the_paper(tmp_path, command, expected):
    found = json.loads(done(*command.split(), "--print-flags", cwd=tmp_path))
    assert {name: found.get(name) for name in expected} == expected
    assert not list(tmp_path.iterdir())


def test_training_flags_are_these_and_no_others(tmp_path):
    machine = {"device", "precision", "threads", "checkpoint_minutes", "fresh", "print_flags"}
    machine |= {"hyperparameters", "validation_only"}
    own = {"pretrain.py": {"extra", "modality"}, "fuse.py": {"target", "test_data"}}
    own["finetune.py"] = {"modality", "target", "test_data"}
    for command, expected in EXPECTED[:5]:
        found = json.loads(done(*command.split(), "--print-flags", cwd=tmp_path))
        assert set(found) == set(expected) | machine | own[command.split()[0]]


@pytest.mark.parametrize("command", [command for command, _ in EXPECTED[:5]])
def test_defaults_read_no_data(tmp_path, command):
    data = tmp_path / "data" / "amigos"
    data.mkdir(parents=True)
    for name in ("manifest.json", "segments.npy", "eeg.npy", "ecg.npy"):
        (data / name).write_text("this would end in an error")
    done(*command.split(), "--print-flags", cwd=tmp_path)


def test_a_run_answers_for_the_flags_that_are_left_out(work):
    flags = json.loads(done("finetune.py", *"--modality eeg --target arousal --fold 1 --print-flags".split(), cwd=work))
    assert flags["n_folds"] == 4  # run.json
    assert (flags["cnn_channels"], flags["ffn"]) == ([6, 8], 12)  # pretrain.pt
    assert flags["classifier_hidden"] == [64]


def test_reproduce_names_the_set_that_is_missing_and_hands_on_flags(tmp_path):
    for name in ("amigos", "bci2000", "way_eeg_gal", "large_eeg_bci", "ascertain", "dreamer", "pspm"):
        finished = reproduce(tmp_path)
        assert finished.returncode == 2 and finished.stdout == ""
        assert finished.stderr.startswith(f"reproduce.sh: data/{name}: no prepared data set")
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "manifest.json").touch()
    calls = reproduce(tmp_path, RUN="r", FLAGS="--seed 3", ECG_EXTRA="", FINETUNE_FLAGS="--lr 2").stdout.splitlines()
    assert calls[:5] == [
        "pretrain.py --modality eeg --fold 0 --extra data/bci2000 data/way_eeg_gal data/large_eeg_bci "
        "--data data/amigos --run r --seed 3",
        "pretrain.py --modality ecg --fold 0 --extra --data data/amigos --run r --seed 3",
        *(
            f"finetune.py --modality {modality} --target arousal --fold 0 --init pretrained --data data/amigos --run r "
            "--seed 3 --lr 2"
            for modality in ("eeg", "ecg")
        ),
        "fuse.py --target arousal --fold 0 --init pretrained --data data/amigos --run r --seed 3",
    ]
    assert calls[-1] == "evaluate.py --run r"


@pytest.mark.parametrize("script", sorted({command.split()[0] for command, _ in EXPECTED}))
def test_help_of_every_flag_ends_in_its_section(tmp_path, monkeypatch, script):
    monkeypatch.setenv("COLUMNS", "1000")
    text = done(script, "--help", cwd=tmp_path).split("simulated cohort (all assumed):")[0]
    helps = re.findall(r"^  (-[-\w]+)[^\n]*?(?:  +|\n {10,})(\S[^\n]*)$", text, re.MULTILINE)
    assert {name for name, _ in helps} == set(re.findall(r"^  (-[-\w]+)", text, re.MULTILINE))
    for name, what in helps:
        if name not in NO_HYPER_PARAMETERS:
            assert re.search(r"(paper \d(\.\d)*(, \d(\.\d)*)*(; \w+ assumed)?|assumed)\)?$", what), (name, what)


def test_a_flag_that_is_no_number_is_named(tmp_path):
    for flag, value in (("--lr", "fast"), ("--lr", "0"), ("--dropout", "-1"), ("--epochs", "2.5"), ("--lr", "nan")):
        finished = call("pretrain.py", "--modality", "eeg", "--fold", 3, flag, value, cwd=tmp_path)
        assert finished.returncode == 2
        (said,) = finished.stderr.splitlines()
        assert said.startswith(f"pretrain.py: argument {flag}: ") and value in said


@pytest.mark.parametrize("script, flag", [("finetune.py", "--classifier-dropout"), ("fuse.py", "--fusion-dropout")])
def test_a_dropout_of_everything_is_refused(tmp_path, script, flag):
    finished = call(script, flag, 1, "--print-flags", cwd=tmp_path)
    assert finished.returncode == 2 and f"argument {flag}: expected a number below 1, found 1" in finished.stderr


def test_a_warm_up_longer_than_the_training_is_said(work):
    flags = ("--modality", "ecg", "--fold", 3, *SMALL, "--run", "runs/warm", "--lr", 1e-3)
    assert "note:" not in done("pretrain.py", *flags, "--warmup-epochs", 2, cwd=work)
    said = done("pretrain.py", *flags, "--warmup-epochs", 8, "--fresh", cwd=work)
    assert "note: the learning rate comes no higher than 0.00025, for --warmup-epochs 8 is more than --epochs 2" in said


@pytest.mark.parametrize("flag", ["--dropout", "--mask-probability", "--beta1", "--lr"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_numbers_out_of_range_are_refused(tmp_path, flag, value):
    finished = call("pretrain.py", "--modality", "ecg", "--fold", 3, flag, value, "--print-flags", cwd=tmp_path)
    assert finished.returncode == (0 if (flag, value) == ("--lr", 1.0) else 2)
    if finished.returncode:
        expected = "below 1, found 1.0" if value == 1.0 else " 0, found -0.1"
        assert f"argument {flag}: expected a number" in finished.stderr and expected in finished.stderr
