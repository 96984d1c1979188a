"""The paper's tables from the test predictions of a run, and what an honest reading gives beside each number (paper 5).

    python evaluate.py --run runs/paper
    python evaluate.py --run runs/paper runs/subject --report     # protocols side by side; report.html with figures

Numbers are means over the test folds. `±` is the half-width of a 95 % t-interval over folds (paper 5), a second `±` the
same corrected for folds that share training data, and [low, high] a bootstrap that draws subjects. P values of
differences are two-tailed, paired, and adjusted for the number of lines of their table (Holm).
"""

import argparse
import functools
import json
import re
import textwrap
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import paper
from analysis import scores, tables
from analysis.compared import MODELS, PRIORS, RULES, VARIANT, Evaluated, name_of
from common.files import sha256_of_file
from protocol import folds, records
from protocol.segments import open_segments
from training import checkpoints, loop

LEFT_OUT = re.compile(r"-out\d+of\d+$")  # of the models that cross-fitted fusion is made from


def parse() -> argparse.Namespace:
    parser = paper.Parser(description=__doc__)
    number = paper.positive(int)
    parser.add_argument(
        "--run",
        type=Path,
        nargs="+",
        default=[Path("runs/paper")],
        help="folders of runs; the first is compared with each of the others (default: runs/paper)",
    )
    parser.add_argument("--data", type=Path, help="the data set, if it was moved (default: what run.json says)")
    parser.add_argument("--details", action="store_true", help="also print scores per trial, per subject and others")
    parser.add_argument("--json", action="store_true", help="print JSON, details included")
    parser.add_argument("--report", action="store_true", help="also write report.html and figures (PNG and PDF)")
    parser.add_argument(
        "--rows",
        type=paper.positive(int, zero=True),
        nargs="+",
        default=[],
        metavar="N",
        help="segments to draw as well",
    )
    parser.add_argument("--out", type=Path, help="folder of the report (default: the first run's)")
    parser.add_argument(
        "--bootstrap", type=number, default=2000, metavar="N", help="draws of subjects (default: %(default)s; assumed)"
    )
    parser.add_argument(
        "--permutations",
        type=number,
        default=9999,
        metavar="N",
        help="random permutations where there are more than this (default: %(default)s; assumed)",
    )
    parser.add_argument(
        "--seed",
        type=paper.positive(int, zero=True),
        default=0,
        metavar="N",
        help="seed of draws and permutations (default: %(default)s; assumed)",
    )
    parser.add_argument("--print-flags", action="store_true", help="print every resolved flag as JSON and stop")
    args = parser.parse_args()
    if (args.rows or args.out) and not args.report:
        raise ValueError("--rows, --out: they need --report; add it")
    loop.stop_if_printing(args)
    return args


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_finished(path: Path, data: Path | None) -> folds.Run:
    """The run as run.json describes it; ValueError where its data or folds were changed."""
    if not (path / "run.json").exists():
        raise FileNotFoundError(
            f"{path / 'run.json'}: no such run; expected the folder that pretrain.py and finetune.py wrote to"
        )
    args = argparse.Namespace(run=path, data=data, **dict.fromkeys(folds.SETTINGS))
    folds.resolve_flags(args)
    return folds.open_run(args)


def rated_parts(run: folds.Run) -> dict:
    """(fold, target) -> labels, rated training rows and rated test rows, where both have some."""
    parts = {}
    for fold in range(run.settings["n_folds"]):
        rows = run.split(fold)
        for target in paper.TARGETS:
            labels = run.labels(target, rows["train"])
            train, test = (folds.rated(labels, rows[part]) for part in ("train", "test"))
            if len(train) and len(test):
                parts[fold, target] = labels, train, test
    return parts


def pack(table: np.ndarray, fold: int, segment: np.ndarray, label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """PREDICTIONS (m,) of one fold: of segments, labels and probabilities (m,); table: `numbers` of segments.npy."""
    packed = np.empty(len(segment), scores.PREDICTIONS)
    packed["fold"], packed["segment"], packed["label"], packed["probability"] = fold, segment, label, probability
    packed["subject"], packed["trial"] = table["subject"][segment], table["trial"][segment]
    return np.sort(packed, order="segment")


def numbers(table: np.ndarray) -> dict[str, np.ndarray]:
    """Subject and trial of each segment as numbers, subjects in the order of their names."""
    return {"subject": folds.units(table, "subject"), "trial": folds.trials(table)}


def read_predictions(path: Path, test: np.ndarray, labels: np.ndarray, what: str, threshold: str) -> np.ndarray:
    """The content of a prediction file; ValueError unless it predicts each of the rows `test` once."""
    predictions = loop.read_predictions(path)
    if not np.array_equal(np.sort(predictions["segment"]), test):
        twice = len(np.unique(predictions["segment"])) < len(predictions)
        expected = f"one prediction for each of the {len(test)} {what}" + (", none twice" if twice else "")
    elif not np.array_equal(predictions["label"], labels[predictions["segment"]]):
        expected = f"the labels of --threshold {threshold}"
    elif not ((predictions["probability"] >= 0) & (predictions["probability"] <= 1)).all():
        expected = "probabilities from 0 to 1"
    else:
        return predictions
    raise ValueError(f"{path}: expected {expected}, found others; {loop.AGAIN}")


@functools.cache
def sha256_once(path: Path) -> str:
    """Of a file that serves many models."""
    return sha256_of_file(path)


def check_checkpoint(path: Path, run: folds.Run, fold: int, variant: re.Match) -> dict:
    """The flags of the model beside a prediction file, {} where there is none; ValueError where it is of another run,
    fold, target, modality or variant, or the models that it was made from were trained again."""
    if not path.exists():
        return {}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found, flags = dict(state["identity"]), dict(state["flags"])
    except Exception as error:  # whatever damaged bytes lead to
        raise ValueError(f"{path}: not a checkpoint that can be loaded ({type(error).__name__}); remove it")
    model, of_fold = path.parent.parent.name, path.parent.name
    expected = {
        **run.identity,
        "fold": fold,
        "target": variant["target"],
        "threshold": run.settings["threshold"],
        "init": "random" if variant["random"] else "pretrained",
        "freeze": bool(variant["frozen"]),
        "shuffle_labels": bool(variant["shuffled"]),
        "label_fraction": float(variant["share"] or 1),
    }
    if model in paper.MODALITIES:
        expected |= {"modality": model, "leave_out": None}
        script, parents, known = "finetune.py", [path.with_name("pretrain.pt")], [found.get("init_sha256")]
        if variant["random"]:
            parents = []
    else:
        script, known, parts = "fuse.py", found.get("base_sha256", []), found.get("cross_fit")
        if bool(parts) != (model == "fused-crossfit"):
            raise ValueError(f"{path}: expected a model of {model}, found --cross-fit {parts}; call {script} again")
        names = [records.left_out(part, parts) for part in range(parts)] if parts else [""]
        bases = [(modality, name) for name in names for modality in paper.MODALITIES]
        parents = [run.folder / modality / of_fold / f"{path.stem}{name}.pt" for modality, name in bases]
    checkpoints.check_identity(path, found, expected)
    for parent, sha256 in zip(parents, known):
        if parent.exists() and sha256_once(parent) != sha256:
            raise ValueError(f"{path}: {parent} was trained again since; call {script} again with --fresh")
    flags = {name: value for name, value in flags.items() if name not in checkpoints.FREE_FLAGS}
    if model in paper.MODALITIES and parents and parents[0].exists():
        state = checkpoints.load(parents[0], "")
        flags |= {f"pretrain.py's {name}": value for name, value in state["flags"].items() if name in paper.PRETRAIN}
        flags["pretrain.py's extra"] = state["identity"]["extra_sha256"]
    return flags


def recorded_flags(path: Path) -> dict:
    """What baseline.py was called with, as the JSON beside its predictions says; {} where there is none."""
    try:
        return dict(json.loads(path.read_text())["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def differing_flags(of_fold: dict[int, dict]) -> str:
    """The flags that the models of a row's folds (fold -> flags) do not share: "--lr (0.001, 0.0003)"."""
    known = [flags for flags in of_fold.values() if flags]
    found = []
    for name in sorted({name for flags in known for name in flags} - {"fold"}):
        values = dict.fromkeys(str(flags.get(name)) for flags in known)
        if len(values) > 1:
            script, _, flag = name.rpartition(" ")
            shown = "" if flag == "extra" else f" ({', '.join(values)})"
            found.append(f"{script} --{flag.replace('_', '-')}{shown}".strip())
    return ", ".join(found)


def read_elsewhere(path: Path, fold: int, target: str) -> tuple[np.ndarray, str]:
    """Predictions on another labelled set, which the JSON file beside them names, and its hash."""
    about = path.with_suffix(".json")
    try:
        known = json.loads(about.read_text())
        data, threshold, sha256 = open_segments(known["data"]), str(known["threshold"]), known["data_sha256"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{about}: expected data, data_sha256 and threshold as JSON, found {error!r}; {loop.AGAIN}"
        )
    if folds.data_sha256(data) != sha256:
        raise ValueError(
            f"{path}: expected predictions on {known['data']} as it is now, found others; {loop.AGAIN}"
        )
    labels = folds.labels(data.table, target, threshold)
    test = np.flatnonzero(labels >= 0)
    found = read_predictions(path, test, labels, f"rated segments of {known['data']}", threshold)
    return pack(numbers(data.table), fold, *(found[name] for name in ("segment", "label", "probability"))), sha256


def read_rows(run: folds.Run, parts: dict) -> tuple[dict, list[str]]:
    """name -> target -> predictions of every model that wrote some, and what was not read."""
    table, rows, notes, flags, elsewhere = numbers(run.data.table), {}, [], {}, {}
    paths = [path for model in MODELS for path in sorted((run.folder / model).glob("fold*/*.npy"))]
    for path in tqdm(paths, desc=f"reading {run.folder}", unit="file", disable=None, leave=False):
        if LEFT_OUT.search(path.stem.split("@")[0]):
            continue
        match, model = VARIANT.fullmatch(path.stem), path.parent.parent.name
        fold = path.parent.name.removeprefix("fold")
        if not match or not fold.isdecimal():
            notes.append(f"{path}: not read, for its name is not that of a prediction file")
            continue
        fold, target = int(fold), match["target"]
        if (fold, target) not in parts:
            raise ValueError(
                f"{path}: expected a fold of {run.folder} with {target} ratings, found {fold}; {loop.AGAIN}"
            )
        known = check_checkpoint(path.with_name(f"{path.stem.split('@')[0]}.pt"), run, fold, match)
        known = known or recorded_flags(path.with_suffix(".json"))
        flags.setdefault((model + match["suffix"], target), {})[fold] = known
        if match["other"]:
            try:
                found, sha256 = read_elsewhere(path, fold, target)
            except FileNotFoundError as error:  # the other set was moved
                notes.append(f"{path}: not read, for {error.filename or error}: {error.strerror or 'missing'}")
                continue
            first = elsewhere.setdefault(match["other"], (path, sha256))
            if first[1] != sha256:
                raise ValueError(
                    f"{path}: expected predictions on the set of {first[0]}, found some on another set of that name; "
                    "remove those of one, and prepare it with another --name"
                )
        else:
            labels, _, test = parts[fold, target]
            what = f"test segments of fold {fold}"
            found = read_predictions(path, test, labels, what, run.settings["threshold"])
            found = pack(table, fold, *(found[name] for name in ("segment", "label", "probability")))
        rows.setdefault(model + match["suffix"], {}).setdefault(target, []).append(found)
    for (row, target), of_fold in flags.items():
        if differing := differing_flags(of_fold):
            notes.append(f"{name_of(row)}, {target}: the folds were trained with different {differing}")
    return {row: join(targets) for row, targets in rows.items()}, notes


def join(targets: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """target -> the predictions of all folds, in order."""
    return {
        target: np.sort(np.concatenate(targets[target]), order=["fold", "segment"])
        for target in paper.TARGETS
        if target in targets
    }


# ---- rows that need no file ------------------------------------------------------------------------------------------


def prior_rows(run: folds.Run, parts: dict, targets: set[str]) -> dict:
    """The majority class, the subject prior and the video prior, over every fold with ratings."""
    table, rows = numbers(run.data.table), {}
    groups = np.zeros(len(run.data.table), int), table["subject"], folds.units(run.data.table, "video")
    for row, group in zip(PRIORS, groups):
        for (fold, target), (labels, train, test) in parts.items():
            if target in targets:
                high = scores.prior(labels[train], group[train], group[test])
                rows.setdefault(row, {}).setdefault(target, []).append(pack(table, fold, test, labels[test], high))
    return {row: join(of_target) for row, of_target in rows.items()}


def fusion_rows(rows: dict) -> dict:
    """The fusion rules that need no training, over the folds that both single models predict."""
    fused = {rule: {} for rule in RULES}
    for target in paper.TARGETS:
        if not all(target in rows.get(model, {}) for model in ("eeg", "ecg")):
            continue
        pair = [rows[model][target] for model in ("eeg", "ecg")]
        common = np.intersect1d(pair[0]["fold"], pair[1]["fold"])
        pair = [each[np.isin(each["fold"], common)] for each in pair]
        if not len(common):
            continue
        for rule in RULES:
            fused[rule][target] = pair[0].copy()
            fused[rule][target]["probability"] = scores.fuse(np.stack([each["probability"] for each in pair]), rule)
    return {rule: of_target for rule, of_target in fused.items() if of_target}


def open_runs(args: argparse.Namespace) -> list[folds.Run]:
    """The runs of --run; ValueError where they are not of the same data."""
    runs = [open_finished(path, args.data) for path in args.run]
    for run in runs[1:]:
        if run.settings["data_sha256"] != runs[0].settings["data_sha256"]:
            raise ValueError(f"--run: expected runs of one data set, found others in {runs[0].folder} and {run.folder}")
    return runs


def evaluate(run: folds.Run, args: argparse.Namespace) -> Evaluated:
    """Read the predictions of a run and score every row; ValueError where there are none, or they do not fit it."""
    parts = rated_parts(run)
    rows, notes = read_rows(run, parts)
    if not rows:
        raise ValueError(f"{run.folder}: no predictions yet; run finetune.py and fuse.py first")
    targets = {target for of_target in rows.values() for target in of_target}
    rows = {**prior_rows(run, parts, targets), **rows, **fusion_rows(rows)}
    done = Evaluated(run, parts, rows, {}, notes, args)
    for row in tqdm(rows, desc=f"scoring {run.folder}", unit="row", disable=None, leave=False):
        done.summaries[row] = {target: done.summarise(row, target) for target in rows[row]}
    return done


# ---- output ----------------------------------------------------------------------------------------------------------


def print_markdown(table: dict) -> None:
    """One table, its columns aligned for the terminal."""
    cells = [table["head"], *table["rows"]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table["head"]))]
    print(f"\n**{table['title']}**\n")
    for number, row in enumerate(cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for number, note in enumerate(table["notes"]):
        print("" if number else "\n", end="")
        print(textwrap.fill(note, 118, break_on_hyphens=False))


def without_nan(value):
    """The same with None for NaN, as JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> None:
    args = parse()
    runs = [evaluate(run, args) for run in open_runs(args)]
    printed = tables.all_tables(runs)
    if args.json:
        content = {"runs": [each.as_json() for each in runs], "tables": printed}
        print(json.dumps(without_nan(content), indent=1, allow_nan=False))
    else:
        for table in printed:
            print_markdown(table)
        for each in runs:
            for note in each.notes:
                print(f"note: {note}")
    if args.report:  # last, so that nothing that keeps it from being written keeps the tables from being seen
        from analysis import report

        page = report.write_report([each.run for each in runs], printed, args.out or args.run[0], tuple(args.rows))
        if not args.json:
            print(f"{page}: these tables and the pictures of {page.parent / 'figures'}")


if __name__ == "__main__":
    loop.run_script(main)
