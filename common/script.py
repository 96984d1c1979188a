"""What every script shares: its flags and their help, its error lines and its exit codes.

Bad input ends in one line on stderr and exit code 2, Ctrl-C in 130; a traceback is a bug of ours."""

import argparse
import json
import os
import signal
import sys
from contextlib import nullcontext
from functools import partial
from io import TextIOWrapper
from pathlib import Path

from paper import CHOICES, MODALITIES, STAGES

FOLD = ("fold", "split", "n_folds", "fold_seed", "validation_parts")  # which segments are tested
BELOW_ONE = ("dropout", "classifier_dropout", "fusion_dropout", "mask_probability", "beta1", "beta2")
MAY_BE_ZERO = ("dropout", "classifier_dropout", "fusion_dropout", "weight_decay", "warmup_epochs", "beta1", "beta2")


def run(main, together=None) -> None:
    """Call `main()`; what is wrong with the user's files or flags ends in one line on stderr and exit code 2.

    together: the context of several processes that train one model; without it, the script refuses to be one of them.
    """
    sys.stdout, sys.stderr = (each or open(os.devnull, "w") for each in (sys.stdout, sys.stderr))  # where one is closed
    if isinstance(sys.stdout, TextIOWrapper):  # the name of a file may be in another encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if together is None:
            refuse_processes()
        with (together or nullcontext)():
            main()
    except (OSError, ValueError) as error:
        complain(one_line(error))
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on from here", 128 + signal.SIGINT)


def one_line(error: OSError | ValueError) -> str:
    """What is wrong, without line breaks; of the system's errors with the file first."""
    what = getattr(error, "strerror", None) or error
    file = getattr(error, "filename", None)
    return " ".join((f"{file}: {what}" if file else str(what)).split())


def complain(line: str, code: int = 2) -> None:
    """Print one line on stderr and exit."""
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
    raise SystemExit(code)


def refuse_processes() -> None:
    """ValueError where torchrun started several processes of a script that is one."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        if os.environ.get("RANK", "0") != "0":  # one line is enough: the first process says it
            raise SystemExit(2)
        raise ValueError(f"runs as one process, found WORLD_SIZE {processes}; call it with python, not torchrun")


class Parser(argparse.ArgumentParser):
    """The parser of a script's flags. Its help shows the start of `doc` (up to the first example), the flags, first
    those that everybody needs, then the rest of `doc`; a flag that is wrong is a ValueError."""

    def __init__(self, doc: str, **options):
        paragraphs = doc.strip().split("\n\n")
        start = next((n for n, text in enumerate(paragraphs) if text.startswith("    ")), 0) + 1
        super().__init__(
            usage="%(prog)s [flags]",
            description="\n\n".join(paragraphs[:start]),
            epilog="\n\n".join(paragraphs[start:]),
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=32),
            **options,
        )
        self._optionals.title = "first of all"

    def error(self, message: str):
        """Raise what is wrong with a flag as a ValueError."""
        raise ValueError(message)


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


def share(text: str) -> float:
    """The argparse type of a number above 0 and up to 1, of as many digits as the names of files show."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, found {text}")
    return float(f"{value:g}")


def add_print_flag(parser) -> None:
    """--print-flags, which `stop_if_printing` obeys."""
    parser.add_argument("--print-flags", action="store_true", help="print every resolved flag as JSON and stop")


def stop_if_printing(args: argparse.Namespace) -> None:
    """With --print-flags, print the resolved flags as JSON and raise SystemExit."""
    if args.print_flags:
        print(json.dumps(plain_flags(args), indent=1))
        raise SystemExit(0)


def plain_flags(args: argparse.Namespace) -> dict:
    """The flags as JSON values."""
    return json.loads(json.dumps(dict(sorted(vars(args).items())), default=str))


def add_trust_flag(parser) -> None:
    """Add --trust-data, of all that open prepared sets."""
    what = "do not compare the prepared files with their hashes, which is done once a file"
    parser.add_argument("--trust-data", action="store_true", help=what)


def command_line(name: str, value) -> list[str]:
    """The words by which a command line gives a flag its value."""
    flag = name.replace("_", "-")
    return [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", *words(value).split()]


def words(value) -> str:
    """A flag's value as the command line has it."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def add_hyperparameters(parser: argparse.ArgumentParser, stage: str) -> None:
    """Add the flags of one of STAGES. They default to None; `resolve_hyperparameters` fills in the paper's values."""
    group = parser.add_argument_group("hyper-parameters (default: the paper's)")
    for name, (value, what, source) in STAGES[stage].items():
        own = {modality.label: modality.flags.get(stage, {}) for modality in MODALITIES.values()}
        shown = [words(value), *(f"{label} {words(flags[name])}" for label, flags in own.items() if name in flags)]
        kind = type(value[0] if isinstance(value, list) else value)
        if kind is bool:  # never `type=bool`, for which the word False is true
            takes = {"action": argparse.BooleanOptionalAction, "default": None}
        elif kind is str:
            takes = {"choices": CHOICES[name], "metavar": "|".join(CHOICES[name])}
        else:
            number = positive(kind, zero=name in MAY_BE_ZERO, below_one=name in BELOW_ONE)
            takes = {"type": number, "metavar": "N" if kind is int else "X"}
        if isinstance(value, list):
            takes["nargs"] = "+"
        what = f"{what} ({'; '.join(shown)}; {source})"
        group.add_argument(f"--{name.replace('_', '-')}", help=what, **takes)


def resolve_hyperparameters(args, stage: str, modality: str | None = None, known: dict | None = None) -> None:
    """Give every flag of `stage` that the user left out its value from --hyperparameters, else from `known`, else the
    paper's for `modality`. Raises ValueError and OSError like `read_hyperparameters`."""
    if args.hyperparameters:
        known = {**(known or {}), **read_hyperparameters(args.hyperparameters, stage, vars(args))}
    own = MODALITIES[modality].flags.get(stage, {}) if modality else {}
    for name, (value, *_) in STAGES[stage].items():
        if getattr(args, name) is None:
            setattr(args, name, (known or {}).get(name, own.get(name, value)))


def read_hyperparameters(path: Path, stage: str, wanted_for: dict) -> dict:
    """The flags of `stage` in a best.json of tune.py: {"hyperparameters": {"lr": 0.0003, ...}, "fold": 3, ...}.

    wanted_for: the flags of the call; another target or fold than the search's is said on stderr. Raises ValueError
    where the search was for another stage or modality, and for a flag or a value that this stage does not take."""
    try:
        searched = json.loads(path.read_text())
        given = [word for flag in searched["hyperparameters"].items() for word in command_line(*flag)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{path}: expected JSON with {{"hyperparameters": {{flag: value}}}}; write it with tune.py')
    wanted = {"stage": stage, **{name: wanted_for.get(name) for name in ("modality", "target", *FOLD)}}
    for name, value in wanted.items():
        if value is None or searched.get(name, value) == value:
            continue
        if name in ("stage", "modality"):
            raise ValueError(f"{path}: expected a search with --{name} {value}, found {searched[name]}; take another")
        known = "; what is tested here may have been trained on there" if name in FOLD else ""
        flag = name.replace("_", "-")
        print(f"note: {path} was searched with --{flag} {searched[name]}, not {value}{known}", file=sys.stderr)
    parser = Parser("", add_help=False, allow_abbrev=False)
    add_hyperparameters(parser, stage)
    try:
        values = vars(parser.parse_args(given))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; take the file of a search with --stage {stage}")
    if "fold" not in searched:
        raise ValueError(f"{path}: expected the fold that was searched, found none; write it with tune.py")
    return {name: value for name, value in values.items() if value is not None}


def add_label_flags(group) -> None:
    """The flags that change the labels of training, for models of any kind."""
    what = (
        "control: deal the labels of training and validation anew among the trials of each subject, by --seed and "
        "--fold; test labels stay true. A model then scores above chance only by the share of high ratings of a "
        "subject that it has met (-shuffled; assumed)"
    )
    group.add_argument("--shuffle-labels", action="store_true", help=what)
    what = (
        "train on this share of the training trials of each class alone, drawn by --seed and --fold; the trials "
        "of a smaller share are among those of a larger one. Validation, test and threshold stay (-fraction0.1; "
        "default: 1; assumed)"
    )
    group.add_argument("--label-fraction", type=share, default=1.0, metavar="X", help=what)
