"""Every number of the paper, where it is said, and the flag that changes it.

Source: Vazquez-Rodriguez et al., "Emotion Recognition with Pre-Trained Transformers Using Multimodal Signals",
ACII 2022. "paper 4.3" is a section of it; "assumed" marks a value the paper leaves open (the README lists them all).
"""

import argparse
import json
import sys
from pathlib import Path

# 4.1: the ten channels AMIGOS shares with the pre-training sets, in the paper's order; one ECG channel, left arm.
EEG_CHANNELS = ("F7", "F3", "T7", "P7", "O1", "O2", "P8", "T8", "F4", "F8")
ECG_CHANNELS = ("ECG",)
MODALITIES = ("eeg", "ecg")
TARGETS = ("arousal", "valence")

# 4.1.2: pre-processing.
RATE = 128  # Hz
SECONDS = 10
POINTS = RATE * SECONDS  # 1280
FILTER_ORDER = 8
LOW_HZ = 0.8
HIGH_HZ = 50.0

# 5: evaluation.
N_FOLDS = 10
VALIDATION_PARTS = 9  # assumed: one ninth of what is left after the test fold

BELOW_ONE = ("dropout", "classifier_dropout", "fusion_dropout", "mask_probability", "beta1", "beta2")
MAY_BE_ZERO = ("dropout", "classifier_dropout", "fusion_dropout", "weight_decay", "warmup_epochs", "beta1", "beta2")

# Below: flag -> (EEG, ECG, what it is, where it is said). A list means several values.
NETWORK = {
    "cnn_kernels": ([65, 33, 17], [65, 33, 17], "kernel sizes of the 1D-CNN, points", "paper 4.3; ECG assumed"),
    "cnn_channels": (
        [64, 128, 256],
        [64, 128, 256],
        "channels of the 1D-CNN; the last is the hidden size of the Transformer",
        "paper 4.3; ECG assumed",
    ),
    "layers": (2, 2, "Transformer layers", "paper 4.3; ECG assumed"),
    "heads": (2, 2, "attention heads", "paper 4.3; ECG assumed"),
    "ffn": (1024, 1024, "width of the Transformer's feed-forward layers", "assumed"),
    "dropout": (0.1, 0.1, "dropout in the Transformer", "paper 4.3; ECG assumed"),
}
# Weights fit only a network of the same shape; dropout may change between stages.
NETWORK_SHAPE = ("cnn_kernels", "cnn_channels", "layers", "heads", "ffn")

MASKING = {
    "mask_probability": (0.0325, 0.0325, "probability that a point starts a masked span", "assumed"),
    "mask_span": (20, 20, "points of a masked span; spans may overlap", "assumed"),
}

ADAM = {
    "beta1": (0.9, 0.9, "Adam's first decay rate", "paper 4.3; ECG assumed"),
    "beta2": (0.999, 0.999, "Adam's second decay rate", "paper 4.3; ECG assumed"),
}

# The batch size is nowhere given. 64 is a common one.
PRETRAIN = {
    **NETWORK,
    "mvp_hidden": ([128], [128], "hidden layers of the masked value predictor", "paper 4.3; ECG assumed"),
    **MASKING,
    "epochs": (500, 500, "epochs", "paper 4.3; ECG assumed"),
    "batch_size": (64, 64, "segments a step", "assumed"),
    "lr": (5e-4, 1e-3, "peak learning rate, then linear decay to 0", "paper 4.3; the 0 and ECG assumed"),
    "warmup_epochs": (
        30,
        30,
        "epochs of linear warm-up, stepped every batch",
        "paper 4.3; every batch and ECG assumed",
    ),
    "weight_decay": (0.005, 0.005, "L2 weight decay, added to the gradient", "paper 4.3; form and ECG assumed"),
    **ADAM,
}

FINETUNE = {
    **NETWORK,
    "classifier_hidden": ([64], [1024, 512], "hidden layers of the classifier", "paper 4.3; ECG assumed"),
    "classifier_dropout": (
        0.6,
        0.3,
        "dropout after each hidden layer of the classifier",
        "paper 4.3; place and ECG assumed",
    ),
    "epochs": (100, 100, "epochs", "paper 4.3; ECG assumed"),
    "batch_size": (64, 64, "segments a step", "assumed"),
    "lr": (1e-4, 1e-4, "learning rate of the first epochs", "paper 4.3; ECG assumed"),
    "lr_factor": (0.65, 0.65, "the learning rate is multiplied by this ...", "paper 4.3; ECG assumed"),
    "lr_every": (45, 45, "... every so many epochs", "paper 4.3; ECG assumed"),
    "weight_decay": (1e-5, 1e-5, "L2 weight decay, added to the gradient", "paper 4.3; form and ECG assumed"),
    **ADAM,
}

FUSE = {
    "fusion_hidden": ([64, 32], [64, 32], "hidden layers of the fusion network", "paper 4.4"),
    "fusion_dropout": (0.1, 0.1, "dropout after each hidden layer of the fusion network", "paper 4.4; place assumed"),
    "epochs": (52, 52, "epochs", "paper 4.4"),
    "batch_size": (64, 64, "segments a step", "assumed"),
    "lr": (1e-5, 1e-5, "learning rate of the first epochs", "paper 4.4"),
    "lr_factor": (0.65, 0.65, "the learning rate is multiplied by this ...", "paper 4.4"),
    "lr_every": (20, 20, "... every so many epochs", "paper 4.4"),
    "weight_decay": (1e-5, 1e-5, "L2 weight decay, added to the gradient", "paper 4.4; form assumed"),
    "beta1": (0.9, 0.9, "Adam's first decay rate", "paper 4.4"),
    "beta2": (0.999, 0.999, "Adam's second decay rate", "paper 4.4"),
}

STAGES = {"pretrain": PRETRAIN, "finetune": FINETUNE, "fuse": FUSE}

# Accuracy and F1 with the half-width of their 95 % interval, as printed in the paper's tables 1 to 3:
# (modality, pre-trained) -> target -> ((accuracy, half-width), (F1, half-width)).
PUBLISHED = {
    ("eeg", False): {"arousal": ((0.76, 0.0073), (0.75, 0.0083)), "valence": ((0.70, 0.0064), (0.70, 0.0068))},
    ("eeg", True): {"arousal": ((0.81, 0.0107), (0.80, 0.0094)), "valence": ((0.77, 0.0093), (0.77, 0.0091))},
    ("ecg", True): {"arousal": ((0.88, 0.0054), (0.87, 0.0054)), "valence": ((0.83, 0.0078), (0.83, 0.0074))},
    ("fused", False): {"arousal": ((0.86, 0.0049), (0.85, 0.0051)), "valence": ((0.82, 0.0065), (0.81, 0.0068))},
    ("fused", True): {"arousal": ((0.89, 0.0050), (0.89, 0.0050)), "valence": ((0.85, 0.0038), (0.85, 0.0039))},
}
# Table 4: F1 of the AMIGOS data set's own baseline, on 20 s segments and by another protocol (paper 5.4).
PUBLISHED_BASELINE = {"eeg": {"arousal": 0.577, "valence": 0.564}, "fused": {"arousal": 0.564, "valence": 0.560}}
# Two-tailed P values of the comparisons in a table are below this, by an unnamed test (paper 5.1 to 5.3; 5.3 says
# "Table 2" and means 3). Table 4 is compared in words alone.
PUBLISHED_P = {1: 1e-5, 2: 1e-3, 3: 1e-4}


class Parser(argparse.ArgumentParser):
    """A parser of a script's flags: its help keeps the lines of the description, and what is wrong is a ValueError."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str):
        raise ValueError(message)


def add_flags(parser: argparse.ArgumentParser, stage: str) -> None:
    """Add the flags of one of STAGES. They default to None; `resolve_flags` fills in the paper's values."""
    group = parser.add_argument_group("hyper-parameters (default: the paper's)")
    for name, (eeg, ecg, what, source) in STAGES[stage].items():
        several = isinstance(eeg, list)
        number = type(eeg[0] if several else eeg)
        shown = " ".join(map(str, eeg)) if several else eeg
        if ecg != eeg:
            shown = f"EEG {shown}, ECG {' '.join(map(str, ecg)) if several else ecg}"
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=positive(number, zero=name in MAY_BE_ZERO, below_one=name in BELOW_ONE),
            nargs="+" if several else None,
            metavar="N" if number is int else "X",
            help=f"{what} (default: {shown}; {source})",
        )


def positive(number: type, zero: bool = False, below_one: bool = False, least: int = 0):
    """The argparse type of a finite number above 0, or from 0 on where `zero` is true; below 1 if `below_one` is; not
    below `least`."""

    def parse(text: str):
        value = number(text)
        if not (0 <= value < float("inf")) or (value == 0 and not zero):
            raise argparse.ArgumentTypeError(f"expected a number {'from' if zero else 'above'} 0, found {text}")
        if below_one and value >= 1:
            raise argparse.ArgumentTypeError(f"expected a number below 1, found {text}")
        if value < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, found {text}")
        return value

    parse.__name__ = number.__name__
    return parse


def resolve_flags(args: argparse.Namespace, stage: str, modality: str = "eeg", known: dict | None = None) -> None:
    """Give every flag of `stage` that the user left out its value from --hyperparameters, else from `known`, else the
    paper's for `modality`. Raises ValueError and OSError like `read_hyperparameters`."""
    if args.hyperparameters:
        known = {**(known or {}), **read_hyperparameters(args.hyperparameters, stage, vars(args))}
    for name, (eeg, ecg, *_) in STAGES[stage].items():
        if getattr(args, name) is None:
            setattr(args, name, (known or {}).get(name, ecg if modality == "ecg" else eeg))


def read_hyperparameters(path: Path, stage: str, wanted_for: dict | None = None) -> dict:
    """The flags of `stage` in a best.json of tune.py: {"hyperparameters": {"lr": 0.0003, ...}, "fold": 3, ...}.

    wanted_for: the flags of the call; another target or fold than the search's is said on stderr. Raises ValueError
    where the search was for another stage or modality, and where a flag is none of this stage, or its value none that
    it would take.
    """
    try:
        searched = json.loads(path.read_text())
        found = searched["hyperparameters"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{path}: expected JSON with {{"hyperparameters": {{flag: value}}}}; write it with tune.py')
    table = STAGES[stage]
    wanted = {"stage": stage, **{name: (wanted_for or {}).get(name) for name in ("modality", "target", "fold")}}
    for name, value in wanted.items():
        if value is None or searched.get(name, value) == value:
            continue
        if name in ("stage", "modality"):
            raise ValueError(f"{path}: expected a search with --{name} {value}, found {searched[name]}; take another")
        known = "; what is tested here may have been trained on there" if name == "fold" else ""
        print(f"note: {path} was searched with --{name} {searched[name]}, not {value}{known}", file=sys.stderr)
    flags = {}
    for name, value in found:
        if name not in table:
            raise ValueError(
                f"{path}: expected flags of this stage, found {name}; take the file of a search with this --stage"
            )
        several, like = isinstance(table[name][0], list), table[name][0]
        kind = type(like[0] if several else like)
        number = positive(kind, zero=name in MAY_BE_ZERO, below_one=name in BELOW_ONE)
        try:
            if several != isinstance(value, list):
                raise TypeError
            flags[name] = [number(str(each)) for each in value] if several else number(str(value))
        except (TypeError, ValueError, argparse.ArgumentTypeError):
            expected = " ".join(map(str, like)) if several else like
            raise ValueError(f"{path}: expected {name} as the flag takes it, such as {expected}, found {value!r}")
        if several and not value:
            raise ValueError(f"{path}: expected one number or more as {name}, found none")
    return flags
