"""Checkpoints: written whole or not at all, read without running code, and compared with what they are to serve.

A checkpoint belongs to a run, fold, target and variant (`identity`), to flags, and to signals of a kind (`origin`);
whatever takes one up checks those that it depends on.
"""

import io
import platform
from pathlib import Path

import numpy as np
import torch

import paper
from common.files import write_atomically
from datasets import normalise_name
from model import SingleModalityModel
from protocol.batches import layout
from protocol.segments import Segments

KEYS = {  # key -> type
    **dict.fromkeys(("model", "optimizer", "schedule", "random", "flags", "identity", "channels", "versions"), dict),
    "epoch": int,
    "extra_sources": list,
}
# What changes the numbers in a segment; the rest of the pre-processing only chooses which segments there are.
PREPROCESSING = ("low", "high", "filter", "filter_order", "resampling", "normalise")
FREE_FLAGS = (  # they may change on resuming
    *("run", "data", "extra", "test_data", "device", "threads", "checkpoint_minutes"),
    *("fresh", "print_flags", "hyperparameters", "validation_only"),
)
HASHED = {  # how a difference in what is kept as a hash is called
    "data_sha256": "was made of other segments, pre-processing or recordings",
    "folds_sha256": "was made with other folds",
    "extra_sha256": "was pre-trained with other sets as --extra",
    "init_sha256": "was trained from another pretrain.pt than there is now",
    "base_sha256": "was made from other models than there are now",
}


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
            raise ValueError(f"{path}: expected a checkpoint with {key}, found none; write it again with --fresh")
    named = all(
        isinstance(each, list) and all(isinstance(name, str) for name in each) for each in state["channels"].values()
    )
    if not named or "epochs" not in state["flags"] or not all(map(torch.is_tensor, state["model"].values())):
        raise ValueError(
            f"{path}: expected weights, the flags of their training and the names of channels, found others; "
            "write it again with --fresh"
        )
    return state


def check_identity(path: Path, found: dict, expected: dict) -> None:
    """ValueError where a checkpoint was made for other data, folds, fold, target, variant or base models."""
    for key, value in expected.items():
        if found.get(key) != value:
            clash = f"expected a checkpoint with {key.replace('_', ' ')} {value}, found {found.get(key)}"
            raise ValueError(f"{path}: {HASHED.get(key, clash)}; write it again with --fresh, or use another --run")


def check_finished(path: Path, state: dict) -> None:
    """ValueError where the training of a checkpoint stopped before its last epoch."""
    if state["epoch"] < state["flags"]["epochs"]:
        raise ValueError(
            f"{path}: training stopped after {state['epoch']} of {state['flags']['epochs']} epochs; call its script "
            "again to finish it"
        )


def check_flags(path: Path, found: dict, expected: dict) -> None:
    """ValueError where a checkpoint was trained with other flags that change its result."""
    for name, value in expected.items():
        if name not in FREE_FLAGS and found.get(name) != value:
            raise ValueError(
                f"{path}: this training was started with --{name.replace('_', '-')} {found.get(name)}, found {value}; "
                "use the same flags, --fresh, or another --run"
            )


def origin(data: Segments, modalities, extra_sources) -> dict:
    """What a checkpoint keeps of the signals that it was trained on, to compare with others (`check_data`).

    extra_sources: the SHA-256 of the recordings of further sets in its pre-training, none of which may test it.
    """
    manifest = data.manifest
    channels = {modality: layout(data, modality)["channels"] for modality in modalities}
    kept = {"channels": channels, "extra_sources": sorted(extra_sources)}
    return {**kept, **{key: manifest[key] for key in ("rate", "points", "preprocessing")}}


def check_data(path: Path, state: dict, data: Segments) -> None:
    """ValueError where a model was trained on other channels, rates or pre-processing than `data` has.

    state: a checkpoint, or what `origin` gave; path: what the line names besides the data.
    """
    manifest = data.manifest
    for modality, wanted in state["channels"].items():
        found = manifest["channels"].get(modality, [])
        if [normalise_name(name) for name in found] != [normalise_name(name) for name in wanted]:
            raise ValueError(
                f"{path}: expected the {modality} channels {' '.join(wanted)}, found {' '.join(found) or 'none'} in "
                f"{data.folder}; prepare them with --modalities and --channels"
            )
    pairs = [(name, state.get(name), manifest[name]) for name in ("rate", "points")]
    pairs += [(name, state["preprocessing"].get(name), manifest["preprocessing"].get(name)) for name in PREPROCESSING]
    for name, wanted, found in pairs:
        if wanted != found:
            raise ValueError(
                f"{path}: expected segments prepared with {name} {wanted}, found {found} in {data.folder}; "
                "prepare them with the flags of the model's"
            )


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


def network_of(path: Path, state: dict) -> dict:
    """The network flags that a checkpoint was trained with; ValueError where one is missing."""
    for name in paper.NETWORK:
        if name not in state["flags"]:
            flag = name.replace("_", "-")
            raise ValueError(f"{path}: expected --{flag} among its flags, found none; write it again with --fresh")
    return {name: state["flags"][name] for name in paper.NETWORK}


def load_classifier(path: Path, state: dict, channels: int, points: int) -> SingleModalityModel:
    """The fine-tuned model of a checkpoint, for signals (n, channels, points); ValueError like `load_weights`."""
    flags = state["flags"]
    model = SingleModalityModel(
        channels,
        **network_of(path, state),
        classifier_hidden=flags["classifier_hidden"],
        points=points,
    )
    load_weights(model, path, state["model"])
    return model.eval()  # without requires_grad_(False), by which torch chooses another product, and other last bits


def versions() -> dict:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
