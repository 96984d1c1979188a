"""Trained models: opened from their checkpoints, and what they say of segments.

The forward pass of every kind of model is here once; finetune.py, fuse.py and predict.py share it."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import paper
from common.files import sha256_of_file
from model import FusionModel, SingleModalityModel
from protocol import records
from protocol.run import Run
from protocol.segments import Segments, SignalRows, data_sha256
from training import checkpoints, machine


@dataclass(frozen=True)
class Trained:
    """A model whose training is finished, and of a fusion the models whose features it takes."""

    path: Path
    state: dict  # the checkpoint
    model: records.Model
    bases: list["Trained"]


def open_trained(path: Path, run: Path, needed_for: str) -> Trained:
    """Open the checkpoint `path`, and of a fusion those of its models in the folder `run`; FileNotFoundError or
    ValueError where one is missing, damaged, unfinished, or not the one that the fusion was made from."""
    state = checkpoints.load(path, needed_for)
    checkpoints.check_finished(path, state)
    record = state["record"]
    model = records.model_of_record(record)
    bases = []
    for parent in records.parents(model) if model.family == "fusion" else ():
        own = parent.path(run, record["fold"], record["target"], ".pt")
        if not own.exists():
            raise FileNotFoundError(2, f"no such base model of {path}", str(own))
        if sha256_of_file(own) != record["parents"][own.relative_to(run).as_posix()]:
            raise ValueError(f"{own}: expected the model that {path} was made from, found another; fuse again")
        bases.append(open_trained(own, run, ""))
    return Trained(path, state, model, bases)


def load_weights(model: torch.nn.Module, path: Path, weights: dict, without: str = "") -> None:
    """Load `weights` into `model`, leaving out those whose name starts with `without` on either side, and what the
    model has no place for; ValueError, naming the checkpoint `path`, where one is missing or of another shape."""
    own = model.state_dict()
    names = {name for name in own if not (without and name.startswith(without))}
    given = {name: value for name, value in weights.items() if name in names}
    for name in sorted(names):
        if name not in given or given[name].shape != own[name].shape:
            found = tuple(given[name].shape) if name in given else "none"
            raise ValueError(f"{path}: expected the weight {name} of shape {tuple(own[name].shape)}, found {found}")
    model.load_state_dict(given, strict=False)


def network_flags(path: Path, state: dict) -> dict:
    """The network flags that a checkpoint was trained with; ValueError where one is missing."""
    for name in paper.NETWORK:
        if name not in state["flags"]:
            flag = name.replace("_", "-")
            raise ValueError(f"{path}: expected --{flag} among its flags, found none; write it again with --fresh")
    return {name: state["flags"][name] for name in paper.NETWORK}


def load_classifier(trained: Trained, channels: int, points: int, args: argparse.Namespace) -> SingleModalityModel:
    """The fine-tuned network for signals (n, channels, points), on the device; ValueError like `load_weights`."""
    model = SingleModalityModel(
        channels,
        **network_flags(trained.path, trained.state),
        classifier_hidden=trained.state["flags"]["classifier_hidden"],
        pool=trained.state["flags"]["pool"],
        points=points,
    ).to(*machine.device_and_dtype(args))
    load_weights(model, trained.path, trained.state["model"])
    return model.eval()  # without requires_grad_(False), by which torch chooses another product, and other last bits


@torch.no_grad()
def predict(forward, model, signals: SignalRows, args: argparse.Namespace) -> Tensor:
    """forward(batch (B, C, L)) of all `signals`, without dropout, as one tensor on the device: float32, or float64 with
    --precision fp64."""
    model.eval()
    outputs = []
    batches = np.array_split(np.arange(len(signals)), -(-len(signals) // args.batch_size))
    for batch in tqdm(batches, desc="predicting", unit="batch", disable=None, leave=False):
        with machine.autocast(args):
            found = forward(machine.tensor(signals.batch(batch), args))
        outputs.append(found.to(machine.device_and_dtype(args)[1]))
    return torch.cat(outputs)


def outputs(trained: Trained, data: Segments, rows: np.ndarray, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Features (n, F) of the last hidden layer, and logits (n,), of the segments `rows`; args.batch_size at a time."""
    if trained.model.family == "fusion":
        return fused_outputs(trained, data, rows, args)
    signals = SignalRows([(data, rows)], trained.model.modalities[0])
    model = load_classifier(trained, signals.channels, signals.points, args)

    def forward(batch):
        features = model.features(batch)
        return torch.cat([features, model.classifier.output(features)], dim=1)

    found = predict(forward, model, signals, args)
    return found[:, :-1], found[:, -1]


def base_features(bases: list[Trained], data: Segments, rows: np.ndarray, args: argparse.Namespace) -> Tensor:
    """(n, F) features of the segments `rows` by several models, side by side: what a fusion takes."""
    return torch.cat([outputs(base, data, rows, args)[0] for base in bases], dim=1)


@torch.no_grad()
def fused_outputs(trained: Trained, data: Segments, rows: np.ndarray, args) -> tuple[Tensor, Tensor]:
    """`outputs` of a fusion, from the features of its models."""
    inputs, flags = base_features(trained.bases, data, rows, args), trained.state["flags"]
    model = FusionModel(inputs.shape[1], flags["fusion_hidden"], flags["fusion_dropout"])
    model.to(*machine.device_and_dtype(args)).eval()
    load_weights(model, trained.path, trained.state["model"])
    with machine.autocast(args):
        features = model.classifier.features(inputs)
        logits = model.classifier.output(features).squeeze(-1)
    return features.to(inputs.dtype), logits.to(inputs.dtype)


def write_predictions(path: Path, run: Run, sets: list[tuple[Segments, np.ndarray, np.ndarray]], args) -> None:
    """Predict test segments with the model of the checkpoint `path`, unless an earlier call did, and write them.

    sets: (data, rows, labels (n,) of all rows): first the run's own test segments, then those of other labelled sets.
    """
    trained = open_trained(path, run.folder, "")
    stage = {"network": "finetune", "fusion": "fuse"}[trained.model.family]
    flags = {name: value for name, value in trained.state["flags"].items() if name not in records.FREE_FLAGS}
    record = {
        **trained.state["record"],
        "flags": {stage: flags, **trained.state["record"]["flags"]},
        "checkpoint_sha256": sha256_of_file(path),
        "versions": records.versions(torch),
    }
    for data, rows, labels in sets:
        tested = {"tested_on": data.manifest["dataset"], "tested_data": str(data.folder)}
        tested["tested_sha256"] = data_sha256(data)
        own = record if data is run.data else {**record, **tested}
        name = records.model_of_record(own).path(run.folder, own["fold"], own["target"], ".npy").name
        if records.is_written(path.with_name(name), own):
            continue
        _, logits = outputs(trained, data, rows, args)
        probability = torch.sigmoid(logits.double()).cpu().numpy()
        records.write_predictions(path.with_name(name), rows, labels, probability, own)
