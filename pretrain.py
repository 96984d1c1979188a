"""Pre-training: masked value prediction on the signals of one modality (paper 3.2.1, 3.3).

    python pretrain.py --modality eeg --fold 3 --extra data/bci2000

It writes runs/paper/eeg/fold3/pretrain.pt, and pretrain.jsonl with one line an epoch. The same command goes on where it
stopped. It reads the whole of every --extra set, and of --data the fold's training units and the segments without a
rating. Of a --data set without any rating, it reads all but the validation units, which --fold chooses."""

from pathlib import Path

from common import script  # first: it says how the threads of PyTorch wait, and what Ctrl-C says
import numpy as np

import paper
from model import SingleModalityModel, parameter_count, sample_mask
from protocol import records
from protocol import run as runs
from protocol.leaks import check_leaks, seen
from protocol.segments import SignalRows, data_sha256, open_segments
from training import checkpoints, distributed, loop, machine, mvp_baselines
from training.watch import Watch


def masking(args, rate: float, points: int):
    """The function that draws masks of segments of `points` at `rate` (Hz): masks(count, generator) -> (count, L) bool.

    A span starts within 1 / 128 s with --mask-probability, at every rate. ValueError for one longer than a segment."""
    if args.mask_span * rate >= points + 0.5:
        most = f"{points / rate:g}"
        raise ValueError(f"--mask-span {args.mask_span:g}: expected seconds, at most the {most} of a segment")
    span, probability = max(1, round(args.mask_span * rate)), 1 - (1 - args.mask_probability) ** (paper.RATE / rate)
    return lambda count, generator: sample_mask(count, points, probability, span, generator)


def read_signals(run: runs.Run, rows: dict, extra: list, modality: str) -> tuple[SignalRows, np.ndarray, np.ndarray]:
    """The signals of training and validation as one array, and the places of both in it; says where they are from."""
    parts = [(run.data, rows["pretrain"]), *((data, np.arange(len(data.table))) for data in extra)]
    for data, part in parts:
        print(f"pre-training on {len(part)} of {len(data.table)} segments of {data.folder}")
        pair = (each.manifest["preprocessing"] for each in (run.data, data))
        if other := [f"{name} {theirs}" for name, _, theirs in checkpoints.differences(*pair, [modality])]:
            print(f"note: {data.folder} was prepared otherwise than {run.data.folder}: {', '.join(other)}")
    signals = SignalRows([*parts, (run.data, rows["validation"])], modality)
    train, validation = np.split(np.arange(len(signals)), [sum(len(part) for _, part in parts)])
    print(f"validation on {len(validation)} segments of {run.data.folder}")
    return signals, train, validation


def main() -> None:
    args = loop.parse(__doc__, "pretrain")
    script.resolve_hyperparameters(args, "pretrain", args.modality)
    machine.use(args)
    run = runs.open_run(args)
    rows = run.split(args.fold)
    if len(rows["test"]) == 0:
        print(f"note: no segment of {run.data.folder} has a rating, so that none is kept for a test")
    extra = [open_segments(folder, args.modality, args.trust_data) for folder in args.extra]
    # Before anything is read of the signals: nothing that is held out may be among them.
    check_leaks(run, rows, extra)

    model = records.pretraining(args.modality)
    record = records.record_of(run, model, args.fold, None, rows, extra_sha256=[data_sha256(data) for data in extra])
    path = loop.checkpoint_path(run, model, args)
    own = (run.data, np.concatenate([rows["pretrain"], rows["validation"]]))
    known = seen([own, *((data, np.arange(len(data.table))) for data in extra)])
    origin = checkpoints.origin(run.data, [args.modality], known)
    with checkpoints.only_training(path):
        if loop.is_finished(path, record, args):
            print(f"{path}: already done, nothing to do")
            return
        train_model(run, *read_signals(run, rows, extra, args.modality), path, record, origin, args)


def train_model(run, signals, train, validation, path: Path, record: dict, origin: dict, args) -> None:
    """Train on the places `train` of `signals`, and write the checkpoint `path`."""
    masks = masking(args, run.data.manifest["rate"], signals.points)
    # An earlier call may have measured them, and said so in its log.
    done = records.read_log(path.with_suffix(".jsonl")) if path.exists() and not args.fresh else []
    to_beat = done[0]["to_beat"] if done else mvp_baselines.baselines(signals, train, validation, masks, args)
    shown = [f"{to_beat[name]:.4f} by {words}" for name, words in mvp_baselines.NAMES.items()]
    print(f"validation loss to beat: {', '.join(shown)}", flush=True)

    loop.seed_step(args.seed, 0)
    model = SingleModalityModel(
        signals.channels,
        **{name: getattr(args, name) for name in paper.NETWORK},
        mvp_hidden=args.mvp_hidden,
        points=signals.points,
    ).to(*machine.device_and_dtype(args))
    print(f"{parameter_count(model):,} parameters, on {args.device} in {args.precision}")
    if args.warmup_epochs > args.epochs:
        highest = args.lr * args.epochs / args.warmup_epochs
        print(
            f"note: the learning rate comes no higher than {highest:.2g}, for --warmup-epochs {args.warmup_epochs} is "
            f"more than --epochs {args.epochs}"
        )

    def loss(places, generator, mine):
        batch = machine.tensor(signals.batch(places[mine]), args)
        mask = masks(len(places), generator)
        seeds = loop.layer_seeds(generator, len(places), mine, args)
        return model.reconstruction_loss(batch, mask[mine], seeds, mask.sum())

    schedule, watch = loop.warmup_then_linear(args), Watch(model, signals, validation, args)
    about = {"to_beat": to_beat}
    loop.Training(run, model, loss, train, validation, schedule, path, args, record, origin, watch, about).fit()


if __name__ == "__main__":
    script.run(main, distributed.together)
