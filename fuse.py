"""Late fusion of the fine-tuned EEG and ECG models by a fully-connected network on their features (paper 3.4, 4.4).

    python fuse.py --target arousal --fold 3

writes runs/paper/fused/fold3/arousal.pt, .jsonl and .npy. `--init random` fuses the models trained without
pre-training; so does every flag that names a variant, and the fusion then learns from the same labels as they did.
Both models stay frozen, so their features are computed once.

The paper's fusion learns from features of the segments that its frozen models were trained on; where these are
overfitted, such features look surer than those of the test. `--cross-fit 5` avoids that: it needs the models of
`finetune.py --leave-out J/5`, J from 0 to 4, for EEG and for ECG, each trained without one part of the training
segments. The fusion network sees a training segment through the pair that was not trained on it, and validation and
test segments, which none was trained on, through all five pairs; their probabilities are averaged. Features of five
pairs, which started from the same weights, share one network. It writes runs/paper/fused-crossfit/fold3/arousal.pt.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import paper
from common.files import sha256_of_file
from model import FusionModel, parameter_count
from protocol import folds, records
from protocol.batches import SignalRows
from protocol.segments import Segments
from training import checkpoints, loop


def parse() -> argparse.Namespace:
    parser = paper.Parser(description=__doc__)
    parser.add_argument("--target", choices=paper.TARGETS, required=True, help="what to recognise (paper 3.4)")
    records.add_flags(parser)
    parser.add_argument(
        "--cross-fit",
        type=paper.positive(int, least=2),
        metavar="K",
        help="take the features of training segments from models that were not trained on them, those of "
        "`finetune.py --leave-out J/K` for J from 0 to K - 1, as the features of test segments are; see above "
        "(default: from the models that were, paper 3.4, 4.4)",
    )
    records.add_test_flag(parser)
    folds.add_flags(parser)
    loop.add_flags(parser)
    paper.add_flags(parser, "fuse")
    args = parser.parse_args()
    folds.resolve_flags(args)
    paper.resolve_flags(args, "fuse")
    loop.finish_flags(args)
    return args


def main() -> None:
    args = parse()
    run = folds.open_run(args)
    if missing := set(paper.MODALITIES) - set(run.data.signals):
        raise ValueError(f"{run.data.folder}: holds no {missing.pop()}, which a fusion of EEG and ECG needs")
    rows, labels = run.labelled(args.fold, args.target, args.shuffle_labels, args.label_fraction)
    name, parts = args.target + records.suffix(args), args.cross_fit
    identity = {**run.identity, "fold": args.fold, "target": args.target, "threshold": args.threshold}
    identity |= {flag: getattr(args, flag) for flag in records.FLAGS}
    if parts:
        part = run.training_parts(args.fold, rows["train"], parts)
        pairs = [load_bases(args, name, identity, [number, parts]) for number in range(parts)]
    else:
        part = np.zeros(len(rows["train"]), int)
        pairs = [load_bases(args, name, identity, None)]
    identity["base_sha256"] = [sha256_of_file(path) for pair in pairs for _, path, _ in pair]
    identity["cross_fit"] = parts
    own = args.run / ("fused-crossfit" if parts else "fused") / f"fold{args.fold}"
    path = (args.validation_only or own) / f"{name}.pt"

    extra_sources = {sha256 for _, _, state in pairs[0] for sha256 in state["extra_sources"]}
    origin = checkpoints.origin(run.data, paper.MODALITIES, extra_sources)
    others = folds.open_test_sets(run, args.test_data, args.target, origin["extra_sources"])
    for data, *_ in others:
        checkpoints.check_data(run.data.folder, origin, data)
    predictions = None if args.validation_only else path.with_suffix(".npy")
    if not loop.is_done(path, predictions, identity, args):
        train_model(run, rows, part, labels, pairs, path, identity, origin, args)

    def logits(data, rows):
        features = [base_features(pair, data, rows, args) for pair in pairs]
        model = FusionModel(features[0].shape[1], args.fusion_hidden, args.fusion_dropout)
        checkpoints.load_weights(model, path, checkpoints.load(path, "")["model"])
        return fused_logits(model.to(*loop.device_and_dtype(args)), features, args)

    loop.predict_elsewhere(path, others, logits, args)


def load_bases(args: argparse.Namespace, name: str, identity: dict, leave_out: list | None) -> list[tuple]:
    """(modality, path, checkpoint) of the EEG and the ECG model, both finished, of this fold and variant, and trained
    without part J of K where `leave_out` is [J, K]."""
    flags = "the same flags"
    if leave_out:
        name += records.left_out(*leave_out)
        flags += " and --leave-out {}/{}".format(*leave_out)
    pair = []
    for modality in paper.MODALITIES:
        path = args.run / modality / f"fold{args.fold}" / f"{name}.pt"
        state = checkpoints.load(path, f"run finetune.py --modality {modality} with {flags} first")
        checkpoints.check_identity(path, state["identity"], {**identity, "modality": modality, "leave_out": leave_out})
        pretrained = path.with_name("pretrain.pt")
        if args.init == "pretrained" and pretrained.exists():
            if sha256_of_file(pretrained) != state["identity"].get("init_sha256"):
                raise ValueError(f"{path}: {pretrained} was trained again since; call finetune.py with --fresh")
        checkpoints.check_finished(path, state)
        pair.append((modality, path, state))
    return pair


def base_features(pair: list[tuple], data: Segments, rows: np.ndarray, args: argparse.Namespace) -> torch.Tensor:
    """(n, 64 + 512) features of `rows` by one EEG and one ECG model, without dropout."""
    features = []
    for modality, path, state in pair:
        signals = SignalRows([(data, rows)], modality)
        base = checkpoints.load_classifier(path, state, signals.channels, signals.points).to(
            *loop.device_and_dtype(args)
        )
        features.append(loop.predict(base.features, base, signals, np.arange(len(rows)), args))
    return torch.cat(features, dim=1)


def fused_logits(model: FusionModel, features: list[torch.Tensor], args: argparse.Namespace) -> torch.Tensor:
    """(K, n) logits of the features (n, F) by each of K pairs."""
    model.eval()
    with torch.no_grad(), loop.autocast(args):
        return torch.stack([model(each).float() for each in features])


def train_model(run, rows, part, labels, pairs, path: Path, identity: dict, origin: dict, args) -> None:
    """Train on the features of each part (n,) of the training rows by its own pair, and of the validation rows by all
    pairs; write the checkpoint `path`, and beside it the predictions on the test rows."""
    # Each part alone: predict.py then makes the same batches of the test part, and so the same bits.
    own = [rows["train"][part == number] for number in range(len(pairs))]
    shown = [*own, *[rows["validation"]] * len(pairs)]
    features = torch.cat([base_features(pair, run.data, some, args) for pair, some in zip([*pairs, *pairs], shown)])
    truth = torch.from_numpy(labels[np.concatenate(shown)]).to(*loop.device_and_dtype(args))
    train, validation = np.split(np.arange(len(truth)), [len(rows["train"])])

    loop.seed_step(args.seed, 0)
    model = FusionModel(features.shape[1], args.fusion_hidden, args.fusion_dropout).to(*loop.device_and_dtype(args))
    print(f"{parameter_count(model):,} parameters, on {args.device} in {args.precision}")

    def loss(places, generator, mine):
        logits = model(features[places]).to(truth.dtype)  # one process trains this: `mine` is all
        return F.binary_cross_entropy_with_logits(logits, truth[places])

    run.start()
    loop.fit(model, loss, train, validation, loop.step_decay(args), path, args, identity, origin)
    if args.validation_only:
        return
    test = [base_features(pair, run.data, rows["test"], args) for pair in pairs]
    loop.write_predictions(path.with_suffix(".npy"), rows["test"], labels, fused_logits(model, test, args))


if __name__ == "__main__":
    loop.run_script(main)
