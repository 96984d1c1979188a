"""Fine-tuning: train a pre-trained model, or one with random weights, to recognise a target (paper 3.2.2, 4.3).

    python finetune.py --modality eeg --target arousal --fold 3

It writes runs/paper/eeg/fold3/arousal.pt, arousal.jsonl with one line an epoch, and, made once after the last epoch,
the predictions on the test fold: arousal.npy, and beside it their record, arousal.json. `--init random` is the paper's
"no pre-training": arousal-random.pt, .npy, .json. Other variants have names of their own, too: `--shuffle-labels`
writes arousal-shuffled.pt; `--init random --freeze`, a classifier on random features, arousal-random-frozen.pt."""

import argparse
from functools import partial
from pathlib import Path

from common import script  # first: it says how the threads of PyTorch wait, and what Ctrl-C says
import numpy as np
import torch.nn.functional as F

import paper
from model import SingleModalityModel, parameter_count
from protocol import records
from protocol import run as runs
from protocol.segments import SignalRows
from training import checkpoints, distributed, loop, machine, trained


def parse() -> tuple[argparse.Namespace, dict | None]:
    """The flags, and the pre-trained checkpoint, whose network they take over."""
    args = loop.parse(__doc__, "finetune")
    path, state = pretrained_path(args), None
    if args.init == "pretrained" and (path.exists() or not args.print_flags):
        state = checkpoints.load(path, "run pretrain.py with the same flags first, or use --init random")
    known = trained.network_flags(path, state) if state else None
    script.resolve_hyperparameters(args, "finetune", args.modality, known)
    # Also those of --hyperparameters: weights without a place in another network would be left out in silence.
    for name in paper.NETWORK_SHAPE if state else ():
        wanted, found = getattr(args, name), known[name]
        if wanted != found:
            raise ValueError(f"{path}: expected a network with {name} {wanted}, found {found}; leave the flag out")
    machine.use(args)
    return args, state


def pretrained_path(args: argparse.Namespace) -> Path:
    """The checkpoint of the pre-training that a fine-tuning starts from."""
    return records.pretraining(args.modality).path(args.run, args.fold, None, ".pt")


def flags_before(run: runs.Run, pretrained: dict | None, args: argparse.Namespace) -> dict:
    """The flags of the pre-training, for the record; ValueError where it is of another run, or not finished."""
    if pretrained is None:
        return {}
    path, record = pretrained_path(args), pretrained["record"]
    expected = records.identity_of(run, records.pretraining(args.modality), args.fold, None)
    records.check_record(path, record, expected, checkpoints.FRESH)
    checkpoints.check_finished(path, pretrained)
    flags = {name: pretrained["flags"][name] for name in paper.PRETRAIN}
    return {"pretrain": {**flags, "extra": record["extra_sha256"]}}


def main() -> None:
    args, pretrained = parse()
    run = runs.open_run(args)
    model = records.model_of(args, "network", [args.modality])
    rows, labels = run.labelled(args.fold, args.target, model)
    before = flags_before(run, pretrained, args)
    record = records.record_of(run, model, args.fold, args.target, rows, before)
    seen = [pretrained["seen"]] if pretrained else []
    train = partial(train_model, run, rows, labels, pretrained, args)
    loop.train_and_test(run, model, rows, labels, record, seen, args, train)


def train_model(run, rows, labels, pretrained: dict | None, args, path: Path, record: dict, origin: dict) -> None:
    """Train on the rows `train`, and write the checkpoint `path`."""
    seen = np.concatenate([rows["train"], rows["validation"]])
    signals = SignalRows([(run.data, seen)], args.modality)
    train, validation = np.split(np.arange(len(signals)), [len(rows["train"])])
    device, dtype = machine.device_and_dtype(args)

    loop.seed_step(args.seed, 0)
    model = SingleModalityModel(
        signals.channels,
        **{name: getattr(args, name) for name in paper.NETWORK},
        classifier_hidden=args.classifier_hidden,
        classifier_dropout=args.classifier_dropout,
        pool=args.pool,
        points=signals.points,
    )
    if pretrained:
        trained.load_weights(model, pretrained_path(args), pretrained["model"], without="classifier.")
    model.to(device, dtype)
    count = parameter_count(model.classifier if args.freeze else model)
    print(f"{count:,} parameters, on {device} in {args.precision}")
    if args.freeze:
        # Without a gradient, Adam leaves the weights that made these alone. They are standardised, so that the scale
        # of an encoder's output does not decide how fast its classifier learns.
        found = trained.predict(model.pooled, model, signals, args)
        model.classifier.standardise(found[train])

    def loss(places, generator, mine):
        wanted = machine.tensor(labels[signals.row[places[mine]]], args)
        if args.freeze:
            logits = model.classifier(found[places[mine]]).squeeze(-1)
        else:
            seeds = loop.layer_seeds(generator, len(places), mine, args)
            logits = model.classify(machine.tensor(signals.batch(places[mine]), args), seeds)
        mean = F.binary_cross_entropy_with_logits(logits.to(wanted.dtype), wanted)
        return mean * (len(wanted) / len(places))

    loop.Training(run, model, loss, train, validation, loop.step_decay(args), path, args, record, origin).fit()


if __name__ == "__main__":
    script.run(main, distributed.together)
