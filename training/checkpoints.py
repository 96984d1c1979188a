"""Checkpoints: written whole or not at all, read without running code, and compared with what they are to serve.

A checkpoint holds the record of its model (protocol/records.py), the flags of its training, and the kind of signals
that it was trained on (`origin`); whatever takes it up checks those that it depends on."""

import io
from contextlib import nullcontext
from pathlib import Path

import torch

from common.files import only_writer, write_atomically
from protocol import records
from protocol.segments import Segments, layout
from training import distributed

KEYS = {  # key -> type
    **dict.fromkeys(("model", "optimizer", "schedule", "random", "watch", "flags", "record"), dict),
    **dict.fromkeys(("channels", "versions", "seen"), dict),
    "epoch": int,
}
# What changes the numbers in a segment, besides the pass-band; the rest only chooses which segments there are.
PREPROCESSING = ("filter", "filter_order", "resampling", "normalise")
FRESH = "write it again with --fresh, or use another --run"


def only_training(path: Path):
    """The context in which no other call trains the model of a checkpoint or writes its predictions; the first of
    several processes keeps the others' place. ValueError where another call is at it."""
    return only_writer(path) if distributed.rank() == 0 else nullcontext()


def save(path: Path, state: dict) -> None:
    """Write the checkpoint whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load(path: Path, needed_for: str) -> dict:
    """Read a checkpoint of ours; FileNotFoundError or ValueError, naming the file, where that cannot be done."""
    if not path.exists():
        raise FileNotFoundError(2, f"no such checkpoint; {needed_for}", str(path))
    content = io.BytesIO(path.read_bytes())
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damaged bytes happen to lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a checkpoint that can be loaded ({reason[:120]}); write it again with --fresh")
    for key, kind in KEYS.items():
        if not isinstance(state, dict) or not isinstance(state.get(key), kind):
            ours = isinstance(state, dict) and "model" in state
            older = " (an older version wrote it)" if ours else ""
            raise ValueError(f"{path}: expected a checkpoint with {key}, found none{older}; {FRESH}")
    channels = state["channels"].values()
    named = all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in channels)
    if not named or "epochs" not in state["flags"] or not all(map(torch.is_tensor, state["model"].values())):
        raise ValueError(
            f"{path}: expected weights, the flags of their training and the names of channels, found others; "
            "write it again with --fresh"
        )
    return state


def take_up(path: Path, record: dict, flags: dict) -> dict:
    """The checkpoint of a training that is to go on; ValueError where it has another record, or other flags that change
    its result."""
    state = load(path, "")
    records.check_record(path, state["record"], record, FRESH)
    for name, value in flags.items():
        if name not in records.FREE_FLAGS and state["flags"].get(name) != value:
            raise ValueError(
                f"{path}: this training was started with --{name.replace('_', '-')} {state['flags'].get(name)}, found "
                f"{value}; use the same flags, --fresh, or another --run"
            )
    return state


def check_finished(path: Path, state: dict) -> None:
    """ValueError where the training of a checkpoint stopped before its last epoch."""
    if state["epoch"] < state["flags"]["epochs"]:
        raise ValueError(
            f"{path}: training stopped after {state['epoch']} of {state['flags']['epochs']} epochs; call its script "
            "again to finish it"
        )


def origin(data: Segments, modalities, seen: dict) -> dict:
    """The kind of signals that a checkpoint was trained on, to be compared with others by `check_data`, and those that
    it has `seen` (protocol/leaks.py)."""
    channels = {modality: layout(data, modality)["channels"] for modality in modalities}
    kept = {key: data.manifest[key] for key in ("rate", "points", "preprocessing")}
    return {"channels": channels, "seen": seen, **kept}


def check_data(path: Path, state: dict, data: Segments) -> None:
    """ValueError where a model was trained on other channels, rates or pre-processing than `data` has.

    state: a checkpoint, or a result of `origin`; path: the file or folder that the line names besides the data."""
    manifest = data.manifest
    for modality, wanted in state["channels"].items():
        found = manifest["channels"].get(modality, [])
        if found != wanted:
            raise ValueError(
                f"{path}: expected the {modality} channels {' '.join(wanted)}, found {' '.join(found) or 'none'} in "
                f"{data.folder}; prepare them with --modalities and --channels"
            )
    pairs = [(name, state.get(name), manifest[name]) for name in ("rate", "points")]
    pairs += differences(state["preprocessing"], manifest["preprocessing"], state["channels"])
    for name, wanted, found in pairs:
        if wanted != found:
            raise ValueError(
                f"{path}: expected segments prepared with {name} {wanted}, found {found} in {data.folder}; "
                "prepare them with the flags of the model's"
            )


def differences(ours: dict, theirs: dict, modalities) -> list[tuple]:
    """(name, ours, theirs) of what two kinds of pre-processing do otherwise; each modality has its own pass-band."""
    pairs = [(name, ours.get(name), theirs.get(name)) for name in PREPROCESSING]
    for name in ("low", "high"):
        for modality in modalities:
            sides = (each.get(name) for each in (ours, theirs))  # a single number is that of every modality
            values = (side.get(modality) if isinstance(side, dict) else side for side in sides)
            pairs.append((f"{modality} {name}", *values))
    return [pair for pair in pairs if pair[1] != pair[2]]
