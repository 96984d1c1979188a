"""Apply trained models to prepared segments, those of the user's own recordings among them.

    python predict.py --model runs/paper/fused/fold3/arousal.pt --data data/folder

writes predictions/<modality>-fold<k>-<target>.npy for each model, one row a segment: `segment` (the row of
segments.npy), `logit`, `probability` of high, and `features`, the last hidden layer. Several models, of different
folds say, also give predictions/mean-<target>.npy with the mean and the spread (SD) of their probabilities. A picture
a recording, in predictions/pictures, shows the probability over time. A fused model needs its two base models where
fuse.py found them.
"""

import argparse
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import torch
from tqdm import tqdm

import paper
from common.files import sha256_of_file, write_atomically
from model import FusionModel
from protocol import folds
from protocol.batches import SignalRows
from protocol.segments import open_segments
from training import checkpoints, loop

UNSAFE = re.compile(r'[%/\\:*?"<>|\x00-\x1f]')  # in the name of a file
MEAN_DTYPE = np.dtype([("segment", "i8"), ("probability", "f4"), ("spread", "f4")])


def parse() -> argparse.Namespace:
    parser = paper.Parser(description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, nargs="+", required=True, metavar="FILE", help="checkpoints of finetune.py or fuse.py")
    add("--data", type=Path, required=True, help="prepared data set; ratings are not needed")
    add("--rows", type=Path, metavar="FILE", help="test predictions (.npy) whose segments alone are predicted")
    add("--out", type=Path, default=Path("predictions"), help="folder of the predictions (default: %(default)s)")
    add(
        "--batch-size",
        type=paper.positive(int),
        metavar="N",
        help="segments at a time (default: as in training, which gives the same bits; assumed)",
    )
    add(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw a picture of each recording (default: yes; assumed)",
    )
    loop.add_machine_flags(parser)
    add("--json", action="store_true", help="print the closing summary as JSON")
    add("--print-flags", action="store_true", help="print every resolved flag as JSON and stop")
    args = parser.parse_args()
    loop.use_machine(args)
    return args


def load(path: Path) -> dict:
    """A checkpoint whose training is finished; ValueError where it is none of finetune.py or fuse.py."""
    state = checkpoints.load(path, "train one with finetune.py or fuse.py")
    if not state["identity"].get("target") or not isinstance(state.get("preprocessing"), dict):
        raise ValueError(f"{path}: expected a model of finetune.py or fuse.py, found another or an older one")
    if state["identity"].get("cross_fit"):
        raise ValueError(
            f"{path}: expected a model that is applied alone, found a cross-fitted fusion, which is a test of the "
            "method; give the model of fuse.py without --cross-fit"
        )
    checkpoints.check_finished(path, state)
    return state


def base_paths(path: Path, state: dict) -> list[Path]:
    """The base models of a fused model; ValueError where they are not those it was made from."""
    path = path.absolute()
    paths = [path.parents[2] / modality / path.parent.name / path.name for modality in paper.MODALITIES]
    for base, expected in zip(paths, state["identity"]["base_sha256"]):
        if not base.exists():
            raise FileNotFoundError(2, f"no such base model of {path}", str(base))
        if sha256_of_file(base) != expected:
            raise ValueError(f"{base}: expected the model that {path} was made from, found another; fuse again")
    return paths


def read_rows(args, data) -> np.ndarray:
    """The rows of segments.npy to predict."""
    if not args.rows:
        return np.arange(len(data.table))
    advice = "give a prediction file of finetune.py or fuse.py"
    rows = loop.read_predictions(args.rows, advice)["segment"]
    if len(rows) == 0:
        raise ValueError(f"{args.rows}: expected a prediction or more, found none; {advice}")
    if rows.min() < 0 or rows.max() >= len(data.table):
        raise ValueError(
            f"{args.rows}: expected segments 0 to {len(data.table) - 1}, found {rows.min()} to {rows.max()}"
        )
    return rows


def features_and_logits(path: Path, state: dict, modality: str, data, rows, args) -> torch.Tensor:
    """(n, F + 1) of a single-modality model, the last column being the logit."""
    signals = SignalRows([(data, rows)], modality)
    model = checkpoints.load_classifier(path, state, signals.channels, signals.points).to(
        *loop.device_and_dtype(args)
    )

    def forward(batch):
        features = model.features(batch)
        return torch.cat([features, model.classifier.output(features)], dim=1)

    return loop.predict(forward, model, signals, np.arange(len(rows)), args)


@torch.no_grad()
def apply(path: Path, state: dict, data, rows, args) -> np.ndarray:
    """The predictions of one model: structured (n,) of `segment`, `logit`, `probability` and `features` (F,).

    Raises ValueError like `base_paths` and `checkpoints.load_weights`.
    """
    args = argparse.Namespace(**vars(args) | {"batch_size": args.batch_size or state["flags"]["batch_size"]})
    if "base_sha256" not in state["identity"]:
        output = features_and_logits(path, state, state["identity"]["modality"], data, rows, args)
    else:
        bases = [
            features_and_logits(base, load(base), modality, data, rows, args)[:, :-1]
            for modality, base in zip(paper.MODALITIES, base_paths(path, state))
        ]
        inputs, flags = torch.cat(bases, dim=1), state["flags"]
        model = FusionModel(inputs.shape[1], flags["fusion_hidden"], flags["fusion_dropout"])
        checkpoints.load_weights(model, path, state["model"])
        model.to(*loop.device_and_dtype(args)).eval()
        with loop.autocast(args):
            features = model.classifier.features(inputs)
            output = torch.cat([features, model.classifier.output(features)], dim=1).float()
    dtype = [("segment", "i8"), ("logit", "f4"), ("probability", "f4"), ("features", "f4", (output.shape[1] - 1,))]
    predictions = np.empty(len(rows), dtype)
    predictions["segment"], predictions["logit"] = rows, output[:, -1].cpu()
    predictions["probability"] = torch.sigmoid(output[:, -1].double()).cpu()
    predictions["features"] = output[:, :-1].cpu()
    return predictions


@matplotlib.rc_context({"text.parse_math": False})  # a $ in the name of a subject is a $
def draw(data, mean: np.ndarray, target: str, folder: Path) -> int:
    """One picture a recording; returns how many."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    table = data.table[mean["segment"]]
    length = data.manifest["points"] / data.manifest["rate"]
    trials, first, index = np.unique(table[["subject", "trial"]], return_index=True, return_inverse=True)
    for number in tqdm(np.argsort(first), desc="drawing", unit="picture", disable=None, leave=False):
        here = np.flatnonzero(index.reshape(-1) == number)
        subject, trial = trials[number].tolist()
        figure = Figure((8, 3), layout="constrained")
        axes = figure.subplots()
        spread = mean["spread"][here] if np.isfinite(mean["spread"]).all() else None
        axes.errorbar(
            table["start"][here] + length / 2, mean["probability"][here], yerr=spread, xerr=length / 2, fmt=".", lw=2
        )
        axes.axhline(0.5, color="grey", lw=0.5)
        axes.set(ylim=(0, 1), xlabel="s", ylabel=f"probability of high {target}", title=f"{subject}, {trial}")
        name = UNSAFE.sub(lambda letter: f"%{ord(letter[0]):02X}", f"{subject} {trial} {target}") + ".png"
        write_atomically(folder / name, lambda file: figure.savefig(file, format="png", dpi=120))
    return len(trials)


def main() -> None:
    args = parse()
    data = open_segments(args.data)
    rows = read_rows(args, data)
    states = [load(path) for path in args.model]
    names = ["-".join([*path.absolute().parts[-3:-1], path.stem]) for path in args.model]
    if len(set(names)) < len(names):
        raise ValueError(f"--model {' '.join(map(str, args.model))}: two models would write the same file; call twice")
    targets = sorted({state["identity"]["target"] for state in states})
    if len(targets) > 1:
        raise ValueError(f"--model: expected models of one target, found {' and '.join(targets)}; call once for each")
    for path, state in zip(args.model, states):
        checkpoints.check_data(path, state, data)
        if "base_sha256" in state["identity"]:
            base_paths(path, state)
    seen = [path for path, state in zip(args.model, states) if is_training_data(state, data)]
    if seen and not args.rows and not args.json:
        print(f"note: {data.folder} is what {seen[0]} was trained on; only its test fold (--rows) tells how good it is")

    outputs, files = [], []
    args.out.mkdir(parents=True, exist_ok=True)
    for path, state, name in zip(args.model, states, names):
        outputs.append(apply(path, state, data, rows, args))
        files.append(args.out / f"{name}.npy")
        write_atomically(files[-1], lambda file: np.save(file, outputs[-1]))
    probability = np.stack([output["probability"] for output in outputs])
    mean = np.empty(len(rows), MEAN_DTYPE)
    mean["segment"], mean["probability"] = rows, probability.mean(axis=0, dtype=np.float64)
    mean["spread"] = probability.std(axis=0, ddof=1, dtype=np.float64) if len(outputs) > 1 else np.nan
    if len(outputs) > 1:
        files.append(args.out / f"mean-{targets[0]}.npy")
        write_atomically(files[-1], lambda file: np.save(file, mean))
    pictures = draw(data, mean, targets[0], args.out / "pictures") if args.pictures else 0
    if args.json:
        print(json.dumps({"files": [str(file) for file in files], "segments": len(rows), "pictures": pictures}))
        return
    for file in files:
        print(f"{file}: {len(rows)} predictions of {targets[0]}")
    print(f"{args.out / 'pictures'}: {pictures} pictures" if pictures else "no pictures (--no-pictures)")


def is_training_data(state: dict, data) -> bool:
    return state["identity"].get("data_sha256") == folds.data_sha256(data)


if __name__ == "__main__":
    loop.run_script(main)
