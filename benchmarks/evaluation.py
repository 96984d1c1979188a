"""This part measures evaluate.py, on the predictions of a made-up run of the size of the paper's."""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import paper
from common.files import sha256_of_file, write_json
from common.script import positive
from protocol import run as runs
from protocol.fingerprints import fingerprint_dtype
from protocol.records import Model, identity_of, write_predictions
from protocol.segments import MANIFEST_KEYS, SEGMENT_DTYPE

SCRIPT = Path(__file__).parent.parent / "evaluate.py"
TRIALS, IN_TRIAL = 13, 45  # trials of a person, and segments of a trial
INITS = ("pretrained", "random")
MODELS = [  # nine, which write 180 files
    *(Model("network", (modality,), init=init) for modality in paper.MODALITIES for init in INITS),
    *(Model("classical", names) for names in (*((name,) for name in paper.MODALITIES), paper.FUSED)),
    *(Model("fusion", paper.FUSED, init=init) for init in INITS),
]


def add_flags(part) -> None:
    """Add the flag of this part."""
    part.add_argument("--people", type=positive(int), metavar="N", default=40, help="in the set (default: %(default)s)")


def write_set(folder: Path, people: int) -> None:
    """Write a prepared set whose signals are one zero a segment."""
    person, trial, place = (each.ravel() for each in np.indices((people, TRIALS, IN_TRIAL)))
    table, random = np.zeros(len(person), SEGMENT_DTYPE), np.random.default_rng(0)
    for name, letter, number in (("subject", "P", person), ("trial", "t", trial), ("video", "v", trial)):
        table[name] = np.char.add(letter, number.astype(str))
    table["start"] = paper.SECONDS * place
    for target in paper.TARGETS:
        table[target] = random.integers(1, 10, (people, TRIALS))[person, trial]
    arrays = dict.fromkeys(paper.MODALITIES, np.zeros((len(table), 1, 1), np.float32))
    arrays |= {"segments": table, "fingerprints": np.zeros(len(table), fingerprint_dtype(paper.MODALITIES))}
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    manifest = {key: kind() for key, kind in MANIFEST_KEYS.items()}
    manifest |= {"dataset": "made-up", "simulated": True, "channels": dict.fromkeys(paper.MODALITIES, ["one"])}
    manifest |= {"rate": 1, "points": 1, "sources": [{"file": "none", "sha256": "", "trials": []}]}
    manifest["files"] = {path.name: sha256_of_file(path) for path in folder.glob("*.npy")}
    write_json(folder / "manifest.json", manifest)


def write_run(folder: Path, data: Path) -> None:
    """Write predictions that are a little better than chance, of all models, in all folds and for both targets."""
    args = argparse.Namespace(run=folder, data=data, **dict.fromkeys(runs.SETTINGS))
    runs.resolve_flags(args)
    run, random = runs.open_run(args), np.random.default_rng(1)
    run.start()
    for fold in range(args.n_folds):
        rows = run.split(fold)
        for target in paper.TARGETS:
            labels = run.labels(target, rows["train"])
            for model in MODELS:
                record = {**identity_of(run, model, fold, target), "rows_sha256": {}, "parents": {}, "flags": {}}
                logit = labels[rows["test"]] - 0.5 + random.standard_normal(len(rows["test"]))
                path = model.path(folder, fold, target, ".npy")
                write_predictions(path, rows["test"], labels, 1 / (1 + np.exp(-logit)), record)


def run(args) -> None:
    """Evaluate a made-up run of the paper's size: CPU seconds, seconds and memory of evaluate.py."""
    with tempfile.TemporaryDirectory() as folder:
        data, made = Path(folder, "data"), Path(folder, "run")
        write_set(data, args.people)
        write_run(made, data)
        start = time.perf_counter()
        subprocess.run([sys.executable, SCRIPT, "--run", made, "--json"], stdout=subprocess.DEVNULL, check=True)
        seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    segments = args.people * TRIALS * IN_TRIAL
    print(f"evaluate.py, {args.people} people, {segments:,} segments, {20 * len(MODELS)} files of predictions")
    print("| CPU s | s | memory, GB |\n|---|---|---|")
    print(f"| {used.ru_utime + used.ru_stime:.1f} | {seconds:.1f} | {used.ru_maxrss / 1e6:.2f} |")
