"""Pre-training by more processes, and on more data."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import paper
from benchmarking.cohort import resident_bytes
from segments import SEGMENT_DTYPE, SegmentWriter

# A segment has as many bytes as the paper's of 10 x 1280, but attention, quadratic in the points, is far cheaper.
SMALL = {"channels": 100, "points": 128}
SMALL_NETWORK = "--cnn-kernels 5 3 --cnn-channels 16 16 --layers 1 --heads 1 --ffn 16 --mvp-hidden 16"


def write_set(folder, segments, channels, points):
    """A prepared data set of noise, half of it rated high."""
    folder.mkdir(parents=True)
    table = np.zeros(segments, SEGMENT_DTYPE)
    table["subject"], table["video"] = "S0", "v"
    table["trial"] = np.arange(segments) // 10
    table["start"] = 10.0 * (np.arange(segments) % 10)
    for target in paper.TARGETS:
        table[target] = table["trial"].astype(int) % 2 * 8 + 1
    np.save(folder / "segments.npy", table)
    writer, random = SegmentWriter(folder / "eeg.npy", channels, points), np.random.default_rng(0)
    for start in tqdm(range(0, segments, 256), unit="block", desc=f"writing {folder.name}", disable=None):
        block = min(256, segments - start), channels, points
        writer.write(random.standard_normal(block, dtype=np.float32))
    writer.close()
    manifest = {"dataset": folder.name, "simulated": True, "rate": paper.RATE, "points": points}
    manifest["channels"] = {"eeg": [f"E{number}" for number in range(channels)]}
    manifest |= {key: {} for key in ("preprocessing", "subjects", "counts", "versions")}
    manifest |= {key: [] for key in ("sources", "dropped", "notes")}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def train(flags, size, processes, epochs) -> tuple[float, int]:
    """(seconds a step, peak resident bytes of the largest process) of pre-training afresh on `size` times the data."""
    out = flags.folder / f"run-{size}"
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--"]
    command += ["pretrain.py", "--modality", "eeg", "--fold", "0", "--data", flags.folder / f"{size}x", "--run", out]
    command += ["--epochs", epochs, "--warmup-epochs", 0, "--batch-size", flags.batch_size, "--device", flags.device]
    command += ["--threads", flags.threads, "--fresh", *flags.flags.split()]
    peaks = {}
    log = flags.folder / "log"
    with open(log, "w") as file, subprocess.Popen([*map(str, command)], stdout=file, stderr=file) as launcher:
        while launcher.poll() is None:
            with suppress(FileNotFoundError, ProcessLookupError, TypeError):  # a process that has just ended
                peaks |= resident_bytes(launcher)
            time.sleep(0.05)
    if launcher.returncode:
        raise ValueError(f"pretrain.py failed: {log.read_text()[-2000:]}")
    lines = map(json.loads, (out / "eeg" / "fold0" / "pretrain.jsonl").read_text().splitlines())
    seconds = [flags.batch_size / line["samples_per_s"] for line in lines]
    if processes > 1:
        peaks.pop(launcher.pid)
    return statistics.mean(seconds), max(peaks.values())


def run(flags):
    """Time of a step and memory of pretrain.py: by 1 to N processes at one global batch size, and on 1 to 64 times the
    data; in turns, medians."""
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    if flags.folder.exists():
        raise FileExistsError(f"{flags.folder}: already there; remove it or name another --folder")
    small = flags.device == "cpu"
    shape = SMALL if small else {"channels": len(paper.EEG_CHANNELS), "points": paper.POINTS}
    flags.flags = SMALL_NETWORK if small and flags.flags is None else flags.flags or ""
    # (size, processes, epochs): the same number of steps on each size of data.
    largest = max(flags.sizes)
    works = [(1, count, flags.epochs) for count in flags.processes]
    works += [(size, 1, max(1, largest // size)) for size in flags.sizes]
    found = {work: [] for work in works}
    try:
        for size in {1, *flags.sizes}:
            write_set(flags.folder / f"{size}x", size * flags.segments, **shape)
        for _ in tqdm(range(flags.repeats), unit="round", disable=None):
            for work in works:
                found[work].append(train(flags, *work))
    finally:
        shutil.rmtree(flags.folder, ignore_errors=True)
    rows = []
    for work, rounds in found.items():
        seconds, peak = zip(*rounds)
        rows.append({"size": work[0], "processes": work[1], "seconds": statistics.median(seconds), "bytes": max(peak)})
    base = {kind: each for kind, each in (("processes", rows[0]), ("sizes", rows[len(flags.processes)]))}
    for number, row in enumerate(rows):
        first = base["processes" if number < len(flags.processes) else "sizes"]
        row |= {"seconds_ratio": row["seconds"] / first["seconds"], "bytes_ratio": row["bytes"] / first["bytes"]}
    if flags.json:
        print(json.dumps({"flags": {**vars(flags), "folder": str(flags.folder)}, "rows": rows}))
        return
    print(f"batch {flags.batch_size}, {flags.threads} threads a process, {flags.device}; medians of {flags.repeats}")
    print(
        "| data | processes | ms a step | of the first | peak MB a process | of the first |\n|---|---|---|---|---|---|"
    )
    for row in rows:
        print(
            f"| {row['size']}x | {row['processes']} | {1e3 * row['seconds']:.1f} | {row['seconds_ratio']:.2f} | "
            f"{row['bytes'] / 1e6:.0f} | {row['bytes_ratio']:.2f} |"
        )


def add_flags(part) -> None:
    count = paper.positive(int)
    part.add_argument("--folder", type=Path, required=True, help="where to write data and remove it (1 GB)")
    part.add_argument("--processes", type=count, nargs="+", default=[1, 2], help="their numbers (default: 1 2)")
    part.add_argument("--sizes", type=count, nargs="+", default=[1, 64], help="times the data (default: 1 64)")
    part.add_argument("--segments", type=count, default=200, help="segments of 1x (default: %(default)s)")
    part.add_argument("--batch-size", type=count, default=16, help="of all processes together (default: %(default)s)")
    part.add_argument("--epochs", type=count, default=20, help="of each number of processes (default: %(default)s)")
    part.add_argument("--threads", type=count, default=1, help="of each process (default: %(default)s)")
    part.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    part.add_argument(
        "--flags", help="further flags of pretrain.py (default: the paper's network; a small one on a CPU)"
    )
    part.add_argument("--repeats", type=count, default=5, help="rounds (default: %(default)s)")
    part.add_argument("--json", action="store_true", help="print the figures as JSON")
