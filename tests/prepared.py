"""Small prepared data sets, written from the file contract and not by prepare_data.py."""

import hashlib
import io
import json
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch

import paper
from common.files import sha256_of_file
from kernels import attention
from protocol import folds, records
from protocol.fingerprints import fingerprint_dtype, fingerprints
from protocol.records import Model
from protocol.run import SETTINGS, Run
from protocol.segments import open_segments

ROOT = Path(__file__).parent.parent
POINTS = 96
DTYPE = [("subject", "U16"), ("trial", "U32"), ("video", "U16"), ("start", "f8"), ("arousal", "f4"), ("valence", "f4")]
NETWORK = "--cnn-kernels 5 3 --cnn-channels 6 8 --layers 1 --heads 2 --ffn 12".split()
PRETRAIN = (*NETWORK, *"--mvp-hidden 8 --mask-probability 0.2 --epochs 2 --warmup-epochs 1 --batch-size 32".split())
FINETUNE = "--classifier-hidden 6 --epochs 2 --batch-size 32".split()
FUSE = "--fusion-hidden 6 --epochs 2 --batch-size 32".split()


def write_set(
    folder, name="mini", subjects=6, unrated=1, trials=4, segments=5, signal=True, seed=0, channels=2, points=POINTS
) -> Path:
    """Rated subjects S0.., then unrated ones; EEG of `channels`, ECG of one; a class moves the mean of both."""
    random = np.random.default_rng([seed, *("" if name == "mini" else name).encode()])  # no two sets share a signal
    rows, sources = [], []
    for subject in range(subjects + unrated):
        ratings = random.permutation(np.arange(trials) % 2) * 4 + 2, random.permutation(np.arange(trials) % 2) * 4 + 2
        for trial in range(trials):
            rating = [np.nan] * 2 if subject >= subjects else [ratings[0][trial], ratings[1][trial]]
            rows += [(f"S{subject}", f"t{trial}", f"v{trial}", 10.0 * place, *rating) for place in range(segments)]
        sha256 = hashlib.sha256(f"{name} {seed} {subject}".encode()).hexdigest()
        own = [[f"S{subject}", f"t{trial}"] for trial in range(trials)]
        sources.append(
            {"file": f"S{subject}.mat", "size": 1, "sha256": sha256, "subject": f"S{subject}", "trials": own}
        )
    table = np.array(rows, dtype=DTYPE)
    folder.mkdir(parents=True)
    names = {"eeg": list(paper.MODALITIES["eeg"].channels[:channels]), "ecg": ["ECG"]}
    arousal, valence = (np.nan_to_num(table[target] - 4)[:, None, None] / 4 for target in ("arousal", "valence"))
    for modality in names:
        array = random.standard_normal((len(table), len(names[modality]), points))
        if signal:
            array += arousal + valence * np.linspace(-1, 1, points)
        np.save(folder / f"{modality}.npy", array.astype(np.float32))
    np.save(folder / "segments.npy", table)
    low, high = dict.fromkeys(names, 0.8), dict.fromkeys(names, 50.0)
    manifest = {
        **{"dataset": name, "simulated": True, "channels": names, "rate": 128, "points": points, "sources": sources},
        "preprocessing": {"low": low, "high": high, "normalise": "subject"},
        "counts": {"subjects": subjects + unrated, "trials": len(table) // segments, "segments": len(table)},
        **{"subjects": {}, "dropped": [], "notes": [], "versions": {}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sign(folder)
    return folder


def sign(folder) -> None:
    """Write the fingerprints and hashes of the arrays as they are now: what was changed in them was prepared so."""
    manifest = json.loads((folder / "manifest.json").read_text())
    arrays = {modality: np.load(folder / f"{modality}.npy") for modality in manifest["channels"]}
    found = np.empty(len(np.load(folder / "segments.npy")), fingerprint_dtype(arrays))
    for modality, array in arrays.items():
        found[modality][: len(array)] = fingerprints(array)[: len(found)]
    np.save(folder / "fingerprints.npy", found)
    manifest["files"] = {path.name: sha256_of_file(path) for path in sorted(folder.glob("*.npy"))}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_table(folder, **columns) -> np.ndarray:
    """Put columns into segments.npy, as if the set had been prepared with them; column: function of the table."""
    table = np.load(folder / "segments.npy")
    for name, values in columns.items():
        table[name] = values(table)
    np.save(folder / "segments.npy", table)
    sign(folder)
    return table


def stored_anew(work, name, dataset, source="amigos", rounding=1e-3) -> Path:
    """A set of the signals of data/<source> in other files, of other people, scaled and rounded as another format would
    (to `rounding` of their unit)."""
    folder = shutil.copytree(work / "data" / source, work / "data" / name)
    for modality in ("eeg", "ecg"):
        signals = np.load(folder / f"{modality}.npy")
        np.save(folder / f"{modality}.npy", (2.5 * rounding * np.round(signals / rounding) + 1).astype("f4"))
    edit_table(folder, subject=lambda table: np.char.add("P", table["subject"]))
    edit_manifest(folder, lambda m: m.update(dataset=dataset))
    edit_manifest(folder, lambda m: [each.update(sha256=each["sha256"][::-1], trials=[]) for each in m["sources"]])
    return folder


def reproduce(folder, **variables) -> subprocess.CompletedProcess:
    """A copy of reproduce.sh in `folder` that only says what it would call."""
    shutil.copy(ROOT / "reproduce.sh", folder)
    flags = {"env": {**os.environ, "PYTHON": "echo", **variables}, "capture_output": True, "text": True}
    return subprocess.run(["bash", folder / "reproduce.sh"], **flags)


def open_run(work, split="segment", n_folds=4, seed=0):
    """The run of data/amigos in `work`, made without a script."""
    data = open_segments(work / "data" / "amigos")
    settings = {**SETTINGS, "split": split, "n_folds": n_folds, "seed": seed}
    return Run(work / "runs" / "new", settings, data, folds.assign_folds(data.table, split, n_folds, 0))


def labelled(run, fold, target, **variant):
    """Rows and labels of a fold for a fine-tuned model, or for a `variant` of it."""
    return run.labelled(fold, target, Model("network", ("eeg",), **variant))


def predicted(run, model, fold, target, rows, labels, probability, **more) -> Path:
    """Write predictions and the record beside them, as the script of `model` would; `more` goes into the record."""
    path = model.path(run.folder, fold, target, ".npy")
    record = {**records.identity_of(run, model, fold, target), "rows_sha256": {}, "parents": {}, "flags": {}, **more}
    records.write_predictions(path, rows, labels, probability, record)
    return path


def replace_predictions(path, predictions, **more) -> None:
    """Write other predictions into a file, and their hash, and `more`, into its record."""
    np.save(path, predictions)
    describe(path, **more)


def describe(path, **more) -> None:
    """Write the hash of predictions as they are now, and `more`, into the record beside them."""
    record = {**json.loads(path.with_suffix(".json").read_text()), "predictions_sha256": sha256_of_file(path), **more}
    path.with_suffix(".json").write_text(json.dumps(record))


def edit_manifest(folder, change) -> None:
    """Apply `change(manifest)` to a manifest on disk."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def script(name, *flags, cwd, **options) -> subprocess.CompletedProcess:
    """Run one of our scripts as its user would."""
    command = [sys.executable, str(ROOT / name), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, **options)


def start(name, *flags, cwd, output) -> subprocess.Popen:
    """One of our scripts, running, its output in a file."""
    with open(output, "w") as file:
        command = [sys.executable, str(ROOT / name), *map(str, flags)]
        return subprocess.Popen(command, cwd=cwd, stdout=file, stderr=subprocess.STDOUT)


def fork(name, *flags, cwd, output, environment=()):
    """The same as a process of multiprocessing, without the seconds that importing PyTorch takes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed", "tqdm", "scipy", "triton"])
    arguments = name, list(map(str, flags)), str(cwd), str(output), dict(environment)
    process = context.Process(target=in_a_fork, args=arguments)
    process.start()
    return process


def in_a_fork(name, flags, cwd, output, environment) -> None:
    """Run a script in this process, its output in a file."""
    os.environ.update(environment)
    os.chdir(cwd)
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [name, *flags]
    runpy.run_path(str(ROOT / name), run_name="__main__")


def call(name, *flags, cwd) -> subprocess.CompletedProcess:
    """The script in this process, without the seconds that importing PyTorch takes; a traceback passes through."""
    argv, threads, code = sys.argv, torch.get_num_threads(), 0
    out, error = io.StringIO(), io.StringIO()
    sys.argv = [name, *map(str, flags)]
    try:
        with chdir(cwd), redirect_stdout(out), redirect_stderr(error):
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
        torch.set_num_threads(threads)
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), error.getvalue())


def done(name, *flags, cwd) -> str:
    """Call a script that must succeed; what it printed."""
    finished = call(name, *flags, cwd=cwd)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def complaint(finished, name) -> str:
    """The one line on stderr of a script that refused what it was given."""
    assert finished.returncode == 2, finished.stdout
    assert finished.stderr.startswith(f"{name}: ") and len(finished.stderr.splitlines()) == 1, finished.stderr
    return finished.stderr


def refusal(name, *flags, cwd, says=()) -> str:
    """Call a script that must end in one line on stderr, which holds each of `says`, and leave all below `cwd` as it
    was; that line."""
    before = contents(cwd)
    line = complaint(call(name, *flags, cwd=cwd), name)
    assert not isinstance(says, str) and all(words in line for words in says), line
    assert contents(cwd) == before
    return line


HIDE = """
import importlib.machinery, runpy, sys

class Some(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {packages} else super().find_spec(name, path, target)

sys.meta_path = [Some if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
sys.path.insert(0, {root!r})
sys.argv[0] = {name!r}
runpy.run_path({root!r} + "/" + {name!r}, run_name="__main__")
"""


def without(packages, name, *flags, cwd) -> subprocess.CompletedProcess:
    """Run a script where these packages are not installed."""
    code = HIDE.format(packages=list(packages), root=str(ROOT), name=name)
    command = [sys.executable, "-c", code, *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def read_log(path) -> list[dict]:
    """The epochs of a log of training."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def dropout_mask(seed, heads: int, rows, columns: int, p: float) -> torch.Tensor:
    """The mask (B, heads, rows, columns) of `attention` and `dropout`, True where a value is kept; seed: (B,); rows:
    their number, or their positions (B, Nq)."""
    count, positions = (rows, None) if isinstance(rows, int) else (rows.shape[1], rows)
    row_hash, column_hash = attention._hashes(seed, heads, count, columns, positions)
    return row_hash[..., :, None] * column_hash[..., None, :] >= attention.threshold(p)


def assert_same_weights(found, expected) -> None:
    """Those of two checkpoints, in every bit."""
    assert found["model"].keys() == expected["model"].keys()
    for name, value in found["model"].items():
        assert torch.equal(value, expected["model"][name]), name


def contents(folder) -> dict[str, bytes | None]:
    """Every path below a folder but what is remembered of checks, with what a file holds."""
    paths = [path for path in folder.rglob("*") if path.name != ".checked.json"]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}
