"""Apply trained models to prepared segments, for example to segments of your own recordings.

    python predict.py --model runs/paper/fused/fold3/arousal.pt --data data/folder

It writes predictions/<folder>-fold<k>-<target>.npy for each model, one row a segment: `segment` (the row of
segments.npy), `logit`, `probability` of high, and `features`, the last hidden layer. Several models, for example those
of all folds, also give predictions/mean-<target>.npy with the mean and the spread (SD) of their probabilities. A fused
model needs the models that it was made from where fuse.py found them."""

import argparse
import csv
import io
import json
from pathlib import Path

from common import script  # first: it says how the threads of PyTorch wait, and what Ctrl-C says
import numpy as np
import torch

from common.files import write_atomically
from protocol import records
from protocol.leaks import seen_rows
from protocol.segments import Segments, data_sha256, open_segments
from training import checkpoints, machine, trained

MEAN_DTYPE = np.dtype([("segment", "i8"), ("probability", "f4"), ("spread", "f4")])


def parse() -> argparse.Namespace:
    parser = script.Parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, nargs="+", required=True, metavar="FILE", help="checkpoints of finetune.py or fuse.py")
    add("--data", type=Path, required=True, help="prepared data set; ratings are not needed")
    add("--rows", type=Path, metavar="FILE", help="test predictions (.npy) whose segments alone are predicted")
    add("--out", type=Path, default=Path("predictions"), help="folder of the predictions (default: %(default)s)")
    what = "also write <target>.csv: subject, trial, start (s) and the probability of each segment, the models' mean"
    add("--csv", action="store_true", help=what)
    add("--json", action="store_true", help="print the closing summary as JSON")
    group = parser.add_argument_group("machine")
    what = "segments at a time (default: as in training, which gives the same bits; assumed)"
    group.add_argument("--batch-size", type=script.positive(int), metavar="N", help=what)
    machine.add_flags(group)
    script.add_trust_flag(group)
    script.add_print_flag(group)
    args = parser.parse_args()
    machine.use(args)
    return args


def chosen_rows(args: argparse.Namespace, data: Segments) -> np.ndarray:
    """The rows of segments.npy to predict."""
    if not args.rows:
        return np.arange(len(data.table))
    advice = "give a prediction file of finetune.py or fuse.py"
    rows = records.read_predictions(args.rows, advice)["segment"]
    last, found = len(data.table) - 1, f"{rows.min()} to {rows.max()}" if len(rows) else "none"
    if not len(rows) or rows.min() < 0 or rows.max() > last:
        raise ValueError(f"{args.rows}: expected segments 0 to {last}, found {found}; {advice}")
    return rows


def apply(model: trained.Trained, data: Segments, rows: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """The predictions of one model: structured (n,) of `segment`, `logit`, `probability` and `features` (F,)."""
    batch_size = args.batch_size or model.state["flags"]["batch_size"]
    features, logits = trained.outputs(model, data, rows, argparse.Namespace(**vars(args) | {"batch_size": batch_size}))
    dtype = [("segment", "i8"), ("logit", "f4"), ("probability", "f4"), ("features", "f4", (features.shape[1],))]
    predictions = np.empty(len(rows), dtype)
    predictions["segment"], predictions["logit"], predictions["features"] = rows, logits.cpu(), features.cpu()
    predictions["probability"] = torch.sigmoid(logits.double()).cpu()
    return predictions


def open_models(args: argparse.Namespace, data: Segments) -> tuple[list[trained.Trained], str]:
    """The models of --model and their one target; ValueError where they do not fit each other or the data, or are none
    of finetune.py or fuse.py."""
    paths, maker = [path.absolute() for path in args.model], "finetune.py or fuse.py"
    models = [trained.open_trained(path, path.parents[2], f"train one with {maker}") for path in paths]
    for model in models:
        if model.model.family == "pretraining":
            raise ValueError(f"{model.path}: expected a model of {maker}, found one of pretrain.py")
    targets = sorted({model.state["record"]["target"] for model in models})
    if len(targets) > 1:
        raise ValueError(f"--model: expected models of one target, found {' and '.join(targets)}; call once for each")
    for path, model in zip(args.model, models):
        checkpoints.check_data(path, model.state, data)
    return models, targets[0]


def count_seen(model: trained.Trained, data: Segments, rows: np.ndarray) -> int:
    """How many of the segments `rows` a model has seen in training, validation or pre-training: the same signals, or,
    in a set that is not its own, signals of the same recordings."""
    seen = model.state["seen"]
    if model.state["record"]["data_sha256"] == data_sha256(data):
        seen = {**seen, "sources": []}
    return int(np.isin(rows, seen_rows(seen, data)).sum())


def main() -> None:
    args = parse()
    data = open_segments(args.data, trust=args.trust_data)
    rows = chosen_rows(args, data)
    names = ["-".join([*path.absolute().parts[-3:-1], path.stem]) for path in args.model]
    if len(set(names)) < len(names):
        raise ValueError(f"--model {' '.join(map(str, args.model))}: two models would write the same file; call twice")
    models, target = open_models(args, data)
    seen = {str(path): count_seen(model, data, rows) for path, model in zip(args.model, models)}
    for path, count in seen.items():
        if count and not args.json:
            what = f"was trained, validated or pre-trained on {count} of these {len(rows)} segments"
            print(f"note: {path} {what}, which do not tell how good it is; --rows takes those of a test fold alone")

    outputs, files = [], []
    args.out.mkdir(parents=True, exist_ok=True)
    for model, name in zip(models, names):
        outputs.append(apply(model, data, rows, args))
        files.append(args.out / f"{name}.npy")
        write_atomically(files[-1], lambda file: np.save(file, outputs[-1]))
    # The mean over the models, and how far they differ.
    probability, mean = np.stack([output["probability"] for output in outputs]), np.empty(len(rows), MEAN_DTYPE)
    mean["segment"], mean["probability"] = rows, probability.mean(axis=0, dtype=np.float64)
    if len(outputs) > 1:
        mean["spread"] = probability.std(axis=0, ddof=1, dtype=np.float64)
        files.append(args.out / f"mean-{target}.npy")
        write_atomically(files[-1], lambda file: np.save(file, mean))
    if args.csv:
        files.append(args.out / f"{target}.csv")
        names, text = ("subject", "trial", "start"), io.StringIO(newline="")
        columns = [data.table[name][rows].tolist() for name in names]
        csv.writer(text).writerows([(*names, "probability"), *zip(*columns, mean["probability"].tolist())])
        write_atomically(files[-1], lambda file: file.write(text.getvalue().encode()))
    if args.json:
        print(json.dumps({"files": [str(file) for file in files], "segments": len(rows), "seen": seen}))
        return
    for file in files:
        print(f"{file}: {len(rows)} predictions of {target}")


if __name__ == "__main__":
    script.run(main)
