"""Pre-training: masked value prediction on the signals of one modality (paper 3.2.1, 3.3).

    python pretrain.py --modality eeg --fold 3 --extra data/bci2000

It writes runs/paper/eeg/fold3/pretrain.pt, and pretrain.jsonl with one line an epoch. The same command goes on where it
stopped. It reads the whole of every --extra set, and of --data the fold's training units and the segments without a
rating.
"""

import argparse
from pathlib import Path

import numpy as np

import paper
from common import script
from model import SingleModalityModel, parameter_count, sample_mask
from protocol import records
from protocol import run as runs
from protocol.leaks import check_leaks
from protocol.segments import SignalRows, data_sha256, open_segments
from training import checkpoints, distributed, loop, machine


def parse() -> argparse.Namespace:
    parser = script.Parser(__doc__)
    script.add_modality(parser)
    script.add_fold(parser)
    runs.add_flags(parser)
    parser.add_argument(
        "--extra", type=Path, nargs="*", default=[], metavar="DIR", help="further prepared data sets (paper 4.1.1)"
    )
    script.add_hyperparameters(parser, "pretrain")
    loop.add_flags(parser)
    args = parser.parse_args()
    runs.resolve_flags(args)
    script.resolve_hyperparameters(args, "pretrain", args.modality)
    loop.finish_flags(args)
    return args


def baselines(signals: SignalRows, validation: np.ndarray, masks, args) -> tuple[float, float]:
    """Masked mean squared error on the validation segments, under the masks of the validation loss, of predicting
    zero and of linear interpolation between the points on either side of a span (held flat at the segment's ends)."""
    squared_zero, squared_line, count = 0.0, 0.0, 0
    points = np.arange(signals.points)
    for places, generator in loop.validation_batches(validation, args):
        for segment, mask in zip(signals.batch(places), masks(len(places), generator).numpy()):
            # Without an unmasked point, there is no line to draw.
            if mask.all():
                continue
            lines = np.stack([np.interp(points[mask], points[~mask], channel[~mask]) for channel in segment])
            squared_zero += np.square(segment[:, mask], dtype=np.float64).sum()
            squared_line += np.square(segment[:, mask] - lines, dtype=np.float64).sum()
            count += lines.size
    if count == 0:
        raise ValueError(f"--mask-probability {args.mask_probability}: masks no point or all of them; take another")
    return squared_zero / count, squared_line / count


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
    args = parse()
    run = runs.open_run(args)
    rows = run.split(args.fold)
    extra = [open_segments(folder, args.modality) for folder in args.extra]
    # Before anything is read of the signals: nothing that is held out may be among them.
    check_leaks(run, rows, extra)

    model = records.pretraining(args.modality)
    record = records.record_of(run, model, args.fold, None, rows, extra_sha256=[data_sha256(data) for data in extra])
    path = loop.checkpoint_path(run, model, args)
    if loop.is_finished(path, record, args):
        print(f"{path}: already done, nothing to do")
        return
    recordings = {source["sha256"] for data in extra for source in data.manifest["sources"]}
    origin = checkpoints.origin(run.data, [args.modality], recordings)
    train_model(run, *read_signals(run, rows, extra, args.modality), path, record, origin, args)


def train_model(run, signals, train, validation, path: Path, record: dict, origin: dict, args) -> None:
    """Train on the places `train` of `signals`, and write the checkpoint `path`."""

    def masks(count, generator):
        return sample_mask(count, signals.points, args.mask_probability, args.mask_span, generator)

    zero, line = baselines(signals, validation, masks, args)
    print(f"validation loss to beat: {zero:.4f} by predicting zero, {line:.4f} by a straight line across each span")

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

    if distributed.rank() == 0:
        run.start()
    loop.fit(model, loss, train, validation, loop.warmup_then_linear(args), path, args, record, origin)


if __name__ == "__main__":
    script.run(main, distributed.together)
