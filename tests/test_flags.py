"""The defaults are the paper's: every script's --print-flags against tables written out by hand from the paper."""

import json
import re
import signal
from itertools import product

import pytest

import paper
from prepared import PRETRAIN as SMALL
from prepared import contents, done, refusal, reproduce, script

RUN = {"data": "data/amigos", "run": "runs/paper", "fold": 3, "seed": 0}
FOLDS = {"split": "segment", "n_folds": 10, "fold_seed": 0, "validation_parts": 9, "threshold": "global"}
ADAM = {"batch_size": 64, "decay": "decoupled", "beta1": 0.9, "beta2": 0.999}
COMMON = {**RUN, **FOLDS, **ADAM}
CNN = {"cnn_kernels": [65, 33, 17], "cnn_channels": [64, 128, 256], "encoder_norm": "output"}
NETWORK = {**CNN, "layers": 2, "heads": 2, "ffn": 1024, "dropout": 0.1}
MASK = {"mask_probability": 0.0325, "mask_span": 0.15625, "mvp_hidden": [128]}  # 20 points at 128 Hz
PRETRAIN = {**COMMON, **NETWORK, **MASK, "epochs": 500, "weight_decay": 0.005, "warmup_epochs": 30}
VARIANT = {"init": "pretrained", "freeze": False, "shuffle_labels": False, "label_fraction": 1.0, "weight_decay": 1e-5}
STEPS = {"epochs": 100, "lr": 1e-4, "lr_factor": 0.65, "lr_every": 45}
FINETUNE = {**COMMON, **NETWORK, **VARIANT, **STEPS, "pool": "cls"}
EEG_HEAD = {"classifier_hidden": [64], "classifier_dropout": 0.6}
ECG_HEAD = {"classifier_hidden": [1024, 512], "classifier_dropout": 0.3}
FUSED = {"fusion_hidden": [64, 32], "fusion_dropout": 0.1, "epochs": 52, "lr": 1e-5, "lr_factor": 0.65, "lr_every": 20}
PASS = {"low": {"eeg": 0.8, "ecg": 0.8}, "high": {"eeg": 50.0, "ecg": 50.0}, "filter_order": 8}
PREPARED = {**PASS, "rate": 128, "seconds_per_segment": 10, "normalise": "subject"}
EXPECTED = [
    ("pretrain.py --modality eeg --fold 3", {**PRETRAIN, "modality": "eeg", "lr": 5e-4}),
    ("pretrain.py --modality ecg --fold 3", {**PRETRAIN, "modality": "ecg", "lr": 1e-3}),
    ("finetune.py --modality eeg --target arousal --fold 3", {**FINETUNE, **EEG_HEAD}),
    ("finetune.py --modality ecg --target valence --fold 3", {**FINETUNE, **ECG_HEAD}),
    ("fuse.py --target arousal --fold 3", {**COMMON, **VARIANT, **FUSED}),
    ("prepare_data.py --dataset amigos --raw raw", PREPARED),
    ("evaluate.py", {"run": ["runs/paper"], "bootstrap": 2000, "permutations": 9999, "seed": 0}),
    ("baseline.py", {"run": "runs/paper", "data": "data/amigos", "model": "classical", "n_folds": 10}),
]
NO_HYPER_PARAMETERS = {
    *("-h", "--dataset", "--run", "--data", "--raw", "--out", "--json", "--fresh", "--print-flags", "--check"),
    *("--list", "--model", "--rows", "--details", "--report"),
    *("--trust-data", "--skip-stale"),
}


@pytest.mark.parametrize("command, expected", EXPECTED, ids=[command for command, _ in EXPECTED])
def test_print_flags_gives_the_numbers_of_the_paper(tmp_path, command, expected):
    (tmp_path / "data").write_text("no data are read")
    found = json.loads(done(*command.split(), "--print-flags", cwd=tmp_path))
    assert {name: found.get(name) for name in expected} == expected
    assert list(contents(tmp_path)) == ["data"]


def test_training_flags_are_these_and_no_others(tmp_path):
    machine = {"device", "precision", "threads", "checkpoint_minutes", "fresh", "print_flags"}
    machine |= {"hyperparameters", "validation_only", "trust_data"}
    own = {"pretrain.py": {"extra", "modality"}, "fuse.py": {"target", "test_data"}}
    own["finetune.py"] = {"modality", "target", "test_data"}
    for command, expected in EXPECTED[:5]:
        found = json.loads(done(*command.split(), "--print-flags", cwd=tmp_path))
        assert set(found) == set(expected) | machine | own[command.split()[0]]


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
    target, own = "--target arousal --fold 0 --init pretrained", "--data data/amigos --run r --seed 3"
    assert calls[:5] == [
        f"pretrain.py --modality eeg --fold 0 --extra data/bci2000 data/way_eeg_gal data/large_eeg_bci {own}",
        f"pretrain.py --modality ecg --fold 0 --extra {own}",
        *(f"finetune.py --modality {modality} {target} {own} --lr 2" for modality in ("eeg", "ecg")),
        f"fuse.py {target} {own}",
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


def test_a_hyper_parameter_that_is_true_or_false(work, monkeypatch):
    monkeypatch.setitem(paper.STAGES["pretrain"], "pre_norm", (False, "norm before attention", "assumed"))
    command = "pretrain.py", "--modality", "eeg", "--fold", 1, "--print-flags"
    for flags, expected in (((), False), (("--pre-norm",), True), (("--no-pre-norm",), False)):
        assert json.loads(done(*command, *flags, cwd=work))["pre_norm"] is expected
    assert "False" in refusal(*command, "--pre-norm", "False", cwd=work)
    (work / "best.json").write_text('{"hyperparameters": {"pre_norm": true}, "fold": 1}')
    assert json.loads(done(*command, "--hyperparameters", "best.json", cwd=work))["pre_norm"] is True


@pytest.mark.parametrize("name", ["pretrain.py", "prepare_data.py", "evaluate.py", "tune.py"])
def test_ctrl_c_while_packages_are_imported_is_one_line(tmp_path, monkeypatch, name):
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finished = script(name, "--print-flags", cwd=tmp_path)
    assert finished.stderr == f"{name}: interrupted; the same command goes on from here\n"
    assert finished.returncode in (-signal.SIGINT, 128 + signal.SIGINT)


def test_a_warm_up_longer_than_the_training_is_said(work):
    flags = ("--modality", "ecg", "--fold", 3, *SMALL, "--run", "runs/warm", "--lr", 1e-3)
    assert "note:" not in done("pretrain.py", *flags, "--warmup-epochs", 2, cwd=work)
    said = done("pretrain.py", *flags, "--warmup-epochs", 8, "--fresh", cwd=work)
    assert "note: the learning rate comes no higher than 0.00025, for --warmup-epochs 8 is more than --epochs 2" in said


@pytest.mark.parametrize(
    "script, flags, values, says",
    [
        ("pretrain.py", "--dropout --mask-probability --beta1 --lr", "-0.1", " 0, found -0.1"),
        ("pretrain.py", "--dropout --mask-probability --beta1", "1.0", "a number below 1, found 1"),
        ("finetune.py", "--classifier-dropout", "1", "a number below 1, found 1"),
        ("fuse.py", "--fusion-dropout", "1", "a number below 1, found 1"),
        ("pretrain.py", "--lr", "fast 0 nan", ""),
        ("pretrain.py", "--epochs", "2.5", ""),
        ("finetune.py", "--label-fraction", "0 -0.5 1.5 nan much", ""),
    ],
)
def test_numbers_that_a_flag_does_not_take_are_refused(tmp_path, script, flags, values, says):
    for flag, value in product(flags.split(), values.split()):
        line = refusal(script, flag, value, "--print-flags", cwd=tmp_path)
        assert line.startswith(f"{script}: argument {flag}: ") and (says or value) in line
