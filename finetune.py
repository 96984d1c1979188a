"""Fine-tune a pre-trained model, or train one from random weights, to recognise arousal or valence (paper 3.2.2, 4.3).

    python finetune.py --modality eeg --target arousal --fold 3

writes runs/paper/eeg/fold3/arousal.pt, arousal.jsonl with one line an epoch, and arousal.npy, the predictions on the
test fold, made once after the last epoch. `--init random` is the paper's "no pre-training": arousal-random.pt, .npy.
Other variants have names of their own too: `--shuffle-labels` writes arousal-shuffled.pt; `--init random --freeze`, a
classifier on random features, arousal-random-frozen.pt.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import paper
from common.files import sha256_of_file
from model import SingleModalityModel, parameter_count
from protocol import folds, records
from protocol.batches import SignalRows
from training import checkpoints, distributed, loop


def parse() -> tuple[argparse.Namespace, dict | None]:
    """The flags, and the pre-trained checkpoint, whose network they take over."""
    parser = paper.Parser(description=__doc__)
    parser.add_argument("--modality", choices=paper.MODALITIES, required=True, help="signals to use (paper 3)")
    parser.add_argument("--target", choices=paper.TARGETS, required=True, help="what to recognise (paper 3.2.2)")
    records.add_flags(parser)
    parser.add_argument(
        "--leave-out",
        type=part_of,
        metavar="J/K",
        help="train without part J, counted from 0, of K equal parts of the training segments, cut by the unit of "
        "--split; writes arousal-out0of5.pt. `fuse.py --cross-fit K` takes all K of both modalities (assumed)",
    )
    records.add_test_flag(parser)
    folds.add_flags(parser)
    loop.add_flags(parser)
    paper.add_flags(parser, "finetune")
    args = parser.parse_args()
    folds.resolve_flags(args)
    path, state = folder(args) / "pretrain.pt", None
    if args.init == "pretrained" and (path.exists() or not args.print_flags):
        state = checkpoints.load(path, "run pretrain.py with the same flags first, or use --init random")
        for name in paper.NETWORK_SHAPE:
            wanted, found = getattr(args, name), state["flags"].get(name)
            if wanted is not None and wanted != found:
                raise ValueError(f"{path}: expected a network with {name} {wanted}, found {found}; leave the flag out")
    known = checkpoints.network_of(path, state) if state else None
    paper.resolve_flags(args, "finetune", args.modality, known)
    loop.finish_flags(args)
    return args, state


def part_of(text: str) -> list[int]:
    """The argparse type of J/K."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts) and int(parts) > 1):
        raise argparse.ArgumentTypeError(f"expected J/K with J from 0 and below K, such as 0/5, found {text}")
    return [int(part), int(parts)]


def folder(args: argparse.Namespace) -> Path:
    return args.run / args.modality / f"fold{args.fold}"


def main() -> None:
    args, pretrained = parse()
    run = folds.open_run(args)
    rows, labels = run.labelled(args.fold, args.target, args.shuffle_labels, args.label_fraction, args.leave_out)
    identity = {**run.identity, "fold": args.fold, "modality": args.modality}
    path = folder(args) / "pretrain.pt"
    if pretrained:
        checkpoints.check_identity(path, pretrained["identity"], {**identity, "target": None})
        checkpoints.check_finished(path, pretrained)
    identity |= {"target": args.target, "threshold": args.threshold, "leave_out": args.leave_out}
    identity |= {flag: getattr(args, flag) for flag in records.FLAGS}
    identity["init_sha256"] = sha256_of_file(path) if pretrained else None
    path = (args.validation_only or folder(args)) / f"{args.target}{records.suffix(args)}.pt"

    origin = checkpoints.origin(run.data, [args.modality], pretrained["extra_sources"] if pretrained else [])
    others = folds.open_test_sets(run, args.test_data, args.target, origin["extra_sources"])
    for data, *_ in others:
        checkpoints.check_data(run.data.folder, origin, data)
    predictions = None if args.validation_only else path.with_suffix(".npy")
    if not loop.is_done(path, predictions, identity, args):
        train_model(run, rows, labels, pretrained, path, identity, origin, args)

    def logits(data, rows):
        signals = SignalRows([(data, rows)], args.modality)
        state = checkpoints.load(path, "")
        model = checkpoints.load_classifier(path, state, signals.channels, signals.points).to(
            *loop.device_and_dtype(args)
        )
        return loop.predict(model.classify, model, signals, np.arange(len(rows)), args)

    if distributed.rank() == 0:
        loop.predict_elsewhere(path, others, logits, args)


def train_model(run, rows, labels, pretrained: dict | None, path: Path, identity: dict, origin: dict, args) -> None:
    """Train, write the checkpoint `path`, and beside it the predictions on the test rows."""
    seen = np.concatenate([rows["train"], rows["validation"]])
    signals = SignalRows([(run.data, seen)], args.modality)
    train, validation = np.split(np.arange(len(signals)), [len(rows["train"])])
    device, dtype = loop.device_and_dtype(args)
    truth = torch.from_numpy(labels[signals.row]).to(dtype)

    loop.seed_step(args.seed, 0)
    model = SingleModalityModel(
        signals.channels,
        **{name: getattr(args, name) for name in paper.NETWORK},
        classifier_hidden=args.classifier_hidden,
        classifier_dropout=args.classifier_dropout,
        points=signals.points,
    )
    if pretrained:
        checkpoints.load_weights(model, folder(args) / "pretrain.pt", pretrained["model"], without="classifier.")
    model.to(device, dtype)
    trained = model.classifier if args.freeze else model
    print(f"{parameter_count(trained):,} parameters, on {args.device} in {args.precision}")
    if args.freeze:
        # Without a gradient, Adam leaves the weights that made these alone.
        cls = loop.predict(model.encode_cls, model, signals, np.arange(len(signals)), args)

    def loss(places, generator, mine):
        wanted = truth[places[mine]].to(device, non_blocking=True)
        if args.freeze:
            logits = model.classifier(cls[places[mine]]).squeeze(-1)
        else:
            seeds = loop.layer_seeds(generator, len(places), mine, args)
            logits = model.classify(signals.batch(places[mine], device, dtype), seeds)
        mean = F.binary_cross_entropy_with_logits(logits.to(wanted.dtype), wanted)
        return mean * (len(wanted) / len(places))

    if distributed.rank() == 0:
        run.start()
    loop.fit(model, loss, train, validation, loop.step_decay(args), path, args, identity, origin)
    if args.validation_only or distributed.rank() > 0:
        return
    test = SignalRows([(run.data, rows["test"])], args.modality)
    logits = loop.predict(model.classify, model, test, np.arange(len(test)), args)
    loop.write_predictions(path.with_suffix(".npy"), rows["test"], labels, logits)


if __name__ == "__main__":
    loop.run_script(main, processes=True)
