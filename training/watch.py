"""The watch over a pre-training: whether weights fade, or outputs become the same for all segments as the loss falls.

A loss can fall while the Transformer dies: the 1D-CNN alone interpolates. The size of the weights shows it, and how
much the outputs differ from segment to segment."""

from pathlib import Path

import numpy as np
import torch

from protocol.records import WATCHED
from protocol.segments import SignalRows
from training import machine
from training.checkpoints import FRESH
from training.mvp_baselines import spaced

SEGMENTS = 128  # of validation, that outputs are compared over
FAINT = 0.1  # of the start: below it, something is spoken of
LOW_EPOCHS = 2  # in a row, before an output is spoken of: outputs move fast in the first steps

GROUPS = {  # group -> whether a weight belongs to it; q, k and v are thirds of one weight
    "out": lambda name: name.endswith("out_proj.weight"),
    "ffn": lambda name: name.endswith(("linear1.weight", "linear2.weight")),
    "cnn": lambda name: name.startswith("encoder.convolutions") and name.endswith("weight"),
    "cls": lambda name: name == "cls",
}
OUTPUTS = WATCHED[-2:]


class Watch:
    """What each epoch's line of the log says of weights and outputs, and what is said where they fade.

    state: what a checkpoint keeps: the values at the start, and how many epochs in a row each was below a tenth of it.
    """

    def __init__(self, model, signals: SignalRows, validation: np.ndarray, args):
        """validation: places of `signals`, of which SEGMENTS at equal distances are looked at."""
        self.model, self.args, self.state = model, args, {}
        chosen = spaced(validation, SEGMENTS)
        self.batches = [signals.batch(places) for places in np.array_split(chosen, -(-len(chosen) // 16))]

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """The root mean square of each group of weights, and the spread of two outputs over segments: the SD of each
        feature, of which the root mean square is taken."""
        parameters = dict(self.model.named_parameters())
        thirds = [value.chunk(3) for name, value in parameters.items() if name.endswith("in_proj_weight")]
        groups = {letter: [each[place] for each in thirds] for place, letter in enumerate("qkv")}
        groups |= {group: [value for name, value in parameters.items() if own(name)] for group, own in GROUPS.items()}
        found = {name: rms(torch.cat([each.flatten() for each in values])) for name, values in groups.items()}
        self.model.eval()
        outputs = []
        for batch in self.batches:
            with machine.autocast(self.args):
                tokens = self.model.encode(machine.tensor(batch, self.args)).float()
            outputs.append(torch.stack([tokens[:, 0], tokens[:, 1:].mean(dim=1)]))
        spread = torch.cat(outputs, dim=1).std(dim=1, correction=0)  # (2, D)
        return {**found, **{name: rms(each) for name, each in zip(OUTPUTS, spread)}}

    def begin(self) -> None:
        """Take the values before the first step as those that later ones are compared with."""
        self.state = {"start": self.look(), "low": dict.fromkeys(WATCHED, 0)}

    def take_up(self, path: Path, state: dict) -> None:
        """Go on from the state in the checkpoint `path`; ValueError where it is none."""
        if any(set(state.get(key, ())) != set(WATCHED) for key in ("start", "low")):
            raise ValueError(f"{path}: expected what the watch kept of {' '.join(WATCHED)}, found another; {FRESH}")
        self.state = state

    def after_epoch(self) -> tuple[dict[str, float], str]:
        """The values after an epoch, and the sentence to say, "" for none; what stays low is spoken of once."""
        found, low, faint = self.look(), self.state["low"], []
        for name, value in found.items():
            low[name] = low[name] + 1 if value < FAINT * self.state["start"][name] else 0
            if low[name] == (LOW_EPOCHS if name in OUTPUTS else 1):
                faint.append(f"{name} {self.state['start'][name]:.2g} -> {value:.2g}")
        if not faint:
            return found, ""
        decay = f"--decay {self.args.decay} --weight-decay {self.args.weight_decay:g}"
        coupled = self.args.decay == "coupled"
        cause = f"use --decay decoupled in place of {decay}" if coupled else f"look at --lr, {decay}"
        return found, f"below a tenth of the start: {', '.join(faint)} (RMS of weights, spread of outputs); {cause}"


def rms(values: torch.Tensor) -> float:
    """The root mean square of all values."""
    return values.double().square().mean().sqrt().item()
