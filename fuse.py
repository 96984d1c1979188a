"""Late fusion of the fine-tuned EEG and ECG models by a fully-connected network on their features (paper 3.4, 4.4).

    python fuse.py --target arousal --fold 3

writes runs/paper/fused/fold3/arousal.pt, .jsonl and .npy. `--init random` fuses the models trained without
pre-training; so does every flag that names a variant, and the fusion then learns from the same labels as they did.
Both models stay frozen, so their features are computed once.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F

import folds
import paper
import training
from model import FusionModel, parameter_count
from segments import sha256_of_file


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=paper.TARGETS, required=True, help="what to recognise (paper 3.4)")
    training.add_variant_flags(parser)
    folds.add_flags(parser)
    training.add_flags(parser)
    paper.add_flags(parser, paper.FUSE)
    args = parser.parse_args()
    folds.resolve_flags(args)
    paper.resolve_flags(args, paper.FUSE)
    training.finish_flags(args)
    return args


def main() -> None:
    args = parse()
    run = folds.open_run(args)
    rows, labels = run.labelled(args.fold, args.target, args.shuffle_labels, args.label_fraction)
    name = args.target + training.variant(args)
    places = [rows[part] for part in ("train", "validation", "test")]
    all_rows = np.concatenate(places)
    train, validation, test = np.split(np.arange(len(all_rows)), np.cumsum([len(part) for part in places])[:-1])
    truth = torch.from_numpy(labels[all_rows].astype(np.float32)).to(args.device)

    identity = {**run.identity, "fold": args.fold, "target": args.target}
    identity |= {"threshold": args.threshold, **{name: getattr(args, name) for name in training.VARIANT}}
    bases = []
    for modality in paper.MODALITIES:
        path = args.run / modality / f"fold{args.fold}" / f"{name}.pt"
        state = training.load_checkpoint(path, f"run finetune.py --modality {modality} with the same flags first")
        training.check_identity(path, state["identity"], {**identity, "modality": modality})
        if state["epoch"] < state["flags"]["epochs"]:
            raise ValueError(
                f"{path}: training stopped after {state['epoch']} of {state['flags']['epochs']} epochs; "
                "call finetune.py again to finish it"
            )
        bases.append((modality, path, state))
    identity["base_sha256"] = [sha256_of_file(path) for _, path, _ in bases]
    out = args.run / "fused" / f"fold{args.fold}"
    path, predictions = out / f"{name}.pt", out / f"{name}.npy"
    if training.is_done(path, predictions, identity, args):
        return

    features = []
    for modality, base_path, state in bases:
        signals = training.SignalRows([(run.data, all_rows)], modality)
        base = training.load_classifier(base_path, state, signals.channels, signals.points).to(args.device)
        # Each part alone: predict.py then makes the same batches of the test part, and so the same bits.
        parts = [training.predict(base.features, base, signals, part, args) for part in (train, validation, test)]
        features.append(torch.cat(parts))
    features = torch.cat(features, dim=1)  # (n, 64 + 512)

    training.seed_step(args.seed, 0)
    model = FusionModel(features.shape[1], args.fusion_hidden, args.fusion_dropout).to(args.device)
    print(f"{parameter_count(model):,} parameters, on {args.device} in {args.precision}")

    def loss(places, generator):
        return F.binary_cross_entropy_with_logits(model(features[places]).float(), truth[places])

    origin = training.origin(run.data, paper.MODALITIES)
    run.start()
    training.fit(model, loss, train, validation, training.step_decay(args), path, args, identity, origin)
    with torch.no_grad(), training.autocast(args):
        logits = model.eval()(features[test]).float()
    training.write_predictions(predictions, rows["test"], labels, logits)


if __name__ == "__main__":
    training.run_script(main)
