"""Late fusion: a fully-connected network on the features of the fine-tuned models (paper 3.4, 4.4).

    python fuse.py --target arousal --fold 3

It writes runs/paper/fused/fold3/arousal.pt, .jsonl, .npy and .json. `--init random` fuses the models trained without
pre-training; so does every flag that names a variant, and the fusion then learns from the same labels as they did. The
models stay frozen, so their features are computed once."""

import argparse
from functools import partial
from pathlib import Path

from common import script  # first: it says how the threads of PyTorch wait, and what Ctrl-C says
import numpy as np
import torch
import torch.nn.functional as F

import paper
from model import FusionModel, parameter_count
from protocol import records
from protocol import run as runs
from training import checkpoints, loop, machine, trained


def open_bases(run: runs.Run, model: records.Model, args: argparse.Namespace) -> list[trained.Trained]:
    """The models whose features the fusion takes; FileNotFoundError or ValueError where one is missing, unfinished, of
    another making, or of a pre-training that was trained again since."""
    bases = []
    for base in records.parents(model):
        path = base.path(args.run, args.fold, args.target, ".pt")
        needed_for = f"run finetune.py --modality {base.modalities[0]} with the same flags first"
        bases.append(trained.open_trained(path, run.folder, needed_for))
        record = bases[-1].state["record"]
        records.check_record(path, record, records.identity_of(run, base, args.fold, args.target), checkpoints.FRESH)
        records.check_parents(path, record, run.folder, "finetune.py")
    return bases


def main() -> None:
    args = loop.parse(__doc__, "fuse")
    script.resolve_hyperparameters(args, "fuse")
    machine.use(args)
    run = runs.open_run(args)
    if missing := [name for name in paper.FUSED if name not in run.data.signals]:
        fused = " and ".join(paper.FUSED)
        raise ValueError(f"{run.data.folder}: holds no {missing[0]}, which a fusion of {fused} needs")
    model = records.model_of(args, "fusion", paper.FUSED)
    rows, labels = run.labelled(args.fold, args.target, model)
    bases = open_bases(run, model, args)
    record = records.record_of(run, model, args.fold, args.target, rows)
    seen = [base.state["seen"] for base in bases]
    train = partial(train_model, run, rows, labels, bases, args)
    loop.train_and_test(run, model, rows, labels, record, seen, args, train)


def train_model(run, rows, labels, bases, args, path: Path, record: dict, origin: dict) -> None:
    """Train on the features of the rows `train`, and write the checkpoint `path`."""
    # Each part alone: predict.py then makes the same batches of the test part, and so the same bits.
    parts = [rows["train"], rows["validation"]]
    features = torch.cat([trained.base_features(bases, run.data, part, args) for part in parts])
    truth = machine.tensor(labels[np.concatenate(parts)], args)
    train, validation = np.split(np.arange(len(truth)), [len(rows["train"])])

    loop.seed_step(args.seed, 0)
    model = FusionModel(features.shape[1], args.fusion_hidden, args.fusion_dropout).to(*machine.device_and_dtype(args))
    print(f"{parameter_count(model):,} parameters, on {args.device} in {args.precision}")

    def loss(places, generator, mine):
        logits = model(features[places]).to(truth.dtype)  # one process trains this: `mine` is all
        return F.binary_cross_entropy_with_logits(logits, truth[places])

    loop.Training(run, model, loss, train, validation, loop.step_decay(args), path, args, record, origin).fit()


if __name__ == "__main__":
    script.run(main)
