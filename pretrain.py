"""Masked value prediction on the signals of one modality (paper 3.2.1, 3.3).

    python pretrain.py --modality eeg --fold 3 --data data/amigos --extra data/bci2000 --run runs/paper

writes runs/paper/eeg/fold3/pretrain.pt, and pretrain.jsonl with one line an epoch. The same command goes on where it
stopped. It reads the whole of every --extra set, and of --data the fold's training units and those without a rating.
"""

import argparse
from pathlib import Path

import numpy as np

import paper
from model import SingleModalityModel, parameter_count, sample_mask
from protocol import folds
from protocol.batches import SignalRows
from protocol.segments import open_segments
from training import checkpoints, distributed, loop


def parse() -> argparse.Namespace:
    parser = paper.Parser(description=__doc__)
    parser.add_argument("--modality", choices=paper.MODALITIES, required=True, help="signals to learn (paper 3)")
    parser.add_argument(
        "--extra", type=Path, nargs="*", default=[], metavar="DIR", help="further prepared data sets (paper 4.1.1)"
    )
    folds.add_flags(parser)
    loop.add_flags(parser)
    paper.add_flags(parser, "pretrain")
    args = parser.parse_args()
    folds.resolve_flags(args)
    paper.resolve_flags(args, "pretrain", args.modality)
    loop.finish_flags(args)
    return args


def baselines(signals: SignalRows, validation: np.ndarray, masks, args) -> tuple[float, float]:
    """Masked mean squared error on the validation segments, under the masks of the validation loss, of predicting
    zero and of linear interpolation between the points on either side of a span (held flat at the segment's ends)."""
    squared_zero, squared_line, count = 0.0, 0.0, 0
    points = np.arange(signals.points)
    for places, generator in loop.validation_batches(validation, args):
        batch = signals.batch(places, "cpu").numpy()
        for segment, mask in zip(batch, masks(len(places), generator).numpy()):
            if mask.all():
                continue
            lines = np.stack([np.interp(points[mask], points[~mask], channel[~mask]) for channel in segment])
            squared_zero += np.square(segment[:, mask], dtype=np.float64).sum()
            squared_line += np.square(segment[:, mask] - lines, dtype=np.float64).sum()
            count += lines.size
    if count == 0:
        raise ValueError(f"--mask-probability {args.mask_probability}: masks no point or all of them; take another")
    return squared_zero / count, squared_line / count


def main() -> None:
    args = parse()
    run = folds.open_run(args)
    rows = run.split(args.fold)
    extra = [open_segments(folder, args.modality) for folder in args.extra]
    folds.check_leaks(run, rows, extra)

    identity = {
        **run.identity,
        "fold": args.fold,
        "modality": args.modality,
        "extra_sha256": [folds.data_sha256(data) for data in extra],
    }
    path = (args.validation_only or args.run / args.modality / f"fold{args.fold}") / "pretrain.pt"
    if loop.is_done(path, None, identity, args):
        return

    parts = [(run.data, rows["pretrain"]), *((data, np.arange(len(data.table))) for data in extra)]
    for data, part in parts:
        print(f"pre-training on {len(part)} of {len(data.table)} segments of {data.folder}")
        ours, theirs = run.data.manifest["preprocessing"], data.manifest["preprocessing"]
        other = [f"{key} {theirs.get(key)}" for key in checkpoints.PREPROCESSING if theirs.get(key) != ours.get(key)]
        if other:
            print(f"note: {data.folder} was prepared otherwise than {run.data.folder}: {', '.join(other)}")
    signals = SignalRows([*parts, (run.data, rows["validation"])], args.modality)
    train, validation = np.split(np.arange(len(signals)), [sum(len(part) for _, part in parts)])
    print(f"validation on {len(validation)} segments of {run.data.folder}")

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
    ).to(*loop.device_and_dtype(args))
    print(f"{parameter_count(model):,} parameters, on {args.device} in {args.precision}")
    if args.warmup_epochs > args.epochs:
        print(
            f"note: the learning rate comes no higher than {args.lr * args.epochs / args.warmup_epochs:.2g}, for "
            f"--warmup-epochs {args.warmup_epochs} is more than --epochs {args.epochs}"
        )

    def loss(places, generator, mine):
        batch = signals.batch(places[mine], *loop.device_and_dtype(args))
        mask = masks(len(places), generator)
        seeds = loop.layer_seeds(generator, len(places), mine, args)
        return model.reconstruction_loss(batch, mask[mine], seeds, mask.sum())

    recordings = {source["sha256"] for data in extra for source in data.manifest["sources"]}
    origin = checkpoints.origin(run.data, [args.modality], recordings)
    if distributed.rank() == 0:
        run.start()
    loop.fit(model, loss, train, validation, loop.warmup_then_linear(args), path, args, identity, origin)


if __name__ == "__main__":
    loop.run_script(main, processes=True)
