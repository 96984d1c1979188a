"""Variants of a model, which have files of their own: first weights, frozen encoder, shuffled or few labels.

The flags that finetune.py and fuse.py (and, for labels, baseline.py) share, and the names of the files.
"""

import argparse
from pathlib import Path

FLAGS = ("init", "freeze", "shuffle_labels", "label_fraction")  # flags that give a model files of its own


def add_flags(parser: argparse.ArgumentParser) -> None:
    """FLAGS, which finetune.py and fuse.py share."""
    group = parser.add_argument_group("variant of the single-modality models, named in the files: arousal-random.pt")
    group.add_argument(
        "--init", choices=("pretrained", "random"), default="pretrained", help="first weights (paper 3.2.2, 5.1, 5.3)"
    )
    group.add_argument(
        "--freeze",
        action="store_true",
        help="train the classifier alone, on CNN, CLS and Transformer as --init left them, without dropout there "
        "(-frozen; default: everything is trained, paper 3.2.2)",
    )
    add_label_flags(group)


def add_label_flags(group) -> None:
    """Those that change the labels of training, for models of any kind."""
    group.add_argument(
        "--shuffle-labels",
        action="store_true",
        help="control: deal the labels of training and validation anew among the trials of each subject, by --seed and "
        "--fold; test labels stay true. What a model still scores above chance it owes to the share of high ratings "
        "of a subject it has met (-shuffled; assumed)",
    )
    group.add_argument(
        "--label-fraction",
        type=share,
        default=1.0,
        metavar="X",
        help="train on this share of the training trials of each class alone, drawn by --seed and --fold, those of a "
        "smaller share among those of a larger; validation, test and threshold stay. Whole trials, also where --split "
        "shares trials with the test (-fraction0.1; default: 1; assumed)",
    )


def add_test_flag(parser: argparse.ArgumentParser) -> None:
    """--test-data, which finetune.py and fuse.py share."""
    parser.add_argument(
        "--test-data",
        type=Path,
        nargs="+",
        default=[],
        metavar="DATA",
        help="after training, also predict every rated segment of these other prepared sets, with the same channels, "
        "rate, length and pre-processing, into arousal@dreamer.npy. Scales of rating differ: high is above the mean "
        "that --threshold takes of the other set's own ratings; a number is taken as it is (assumed)",
    )


def share(text: str) -> float:
    """The argparse type of a number above 0 and up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, found {text}")
    return float(f"{value:g}")  # as `suffix` names it


def suffix(args: argparse.Namespace) -> str:
    """What the names of a model's files carry after the target: "", "-random", "-frozen-fraction0.1" ...; a flag of
    FLAGS that a script does not have is taken at its default."""
    flags = vars(args)
    parts = [
        "-random" if flags.get("init") == "random" else "",
        "-frozen" if flags.get("freeze") else "",
        "-shuffled" if flags.get("shuffle_labels") else "",
        f"-fraction{flags['label_fraction']:g}" if flags.get("label_fraction", 1.0) < 1 else "",
    ]
    return "".join(parts) + (left_out(*flags["leave_out"]) if flags.get("leave_out") else "")


def left_out(part: int, parts: int) -> str:
    """The last of a name's suffixes: of a model that `part` of the training rows was kept from."""
    return f"-out{part}of{parts}"
