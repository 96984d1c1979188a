"""Apply trained models to prepared segments, for example to segments of your own recordings.

    python predict.py --model runs/paper/fused/fold3/arousal.pt --data data/folder

It writes predictions/<folder>-fold<k>-<target>.npy for each model, one row a segment: `segment` (the row of
segments.npy), `logit`, `probability` of high, and `features`, the last hidden layer. Several models, for example those
of all folds, also give predictions/mean-<target>.npy with the mean and the spread (SD) of their probabilities. A fused
model needs the models that it was made from where fuse.py found them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from common import script
from common.files import write_atomically
from protocol import records
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
    add("--json", action="store_true", help="print the closing summary as JSON")
    group = parser.add_argument_group("machine")
    what = "segments at a time (default: as in training, which gives the same bits; assumed)"
    group.add_argument("--batch-size", type=script.positive(int), metavar="N", help=what)
    machine.add_flags(group)
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
        # What a model has learnt by heart does not say how good it is.
        if model.state["record"]["data_sha256"] == data_sha256(data) and not args.rows and not args.json:
            advice = "only its test fold (--rows) tells how good it is"
            print(f"note: {data.folder} is what {path} was trained on; {advice}")
    return models, targets[0]


def main() -> None:
    args = parse()
    data = open_segments(args.data)
    rows = chosen_rows(args, data)
    names = ["-".join([*path.absolute().parts[-3:-1], path.stem]) for path in args.model]
    if len(set(names)) < len(names):
        raise ValueError(f"--model {' '.join(map(str, args.model))}: two models would write the same file; call twice")
    models, target = open_models(args, data)

    outputs, files = [], []
    args.out.mkdir(parents=True, exist_ok=True)
    for model, name in zip(models, names):
        outputs.append(apply(model, data, rows, args))
        files.append(args.out / f"{name}.npy")
        write_atomically(files[-1], lambda file: np.save(file, outputs[-1]))
    # The mean over the models, and how far they differ.
    if len(outputs) > 1:
        probability, mean = np.stack([output["probability"] for output in outputs]), np.empty(len(rows), MEAN_DTYPE)
        mean["segment"], mean["probability"] = rows, probability.mean(axis=0, dtype=np.float64)
        mean["spread"] = probability.std(axis=0, ddof=1, dtype=np.float64)
        files.append(args.out / f"mean-{target}.npy")
        write_atomically(files[-1], lambda file: np.save(file, mean))
    if args.json:
        print(json.dumps({"files": [str(file) for file in files], "segments": len(rows)}))
        return
    for file in files:
        print(f"{file}: {len(rows)} predictions of {target}")


if __name__ == "__main__":
    script.run(main)
