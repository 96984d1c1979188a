"""Pre-training by more processes, and on more data."""

import argparse
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
from benchmarks.cohort import resident_bytes
from model import SingleModalityModel, sample_mask
from protocol.batches import SignalRows
from protocol.segments import SEGMENT_DTYPE, SegmentWriter, open_segments
from training.loop import autocast, seed_step

PAPER_SHAPE = {"channels": len(paper.EEG_CHANNELS), "points": paper.POINTS}
PAPER_NETWORK = {name: paper.PRETRAIN[name][0] for name in (*paper.NETWORK, "mvp_hidden")}
# A segment has as many bytes as the paper's, but attention, quadratic in the points, is far cheaper.
SMALL_SHAPE = {"channels": 100, "points": 128}
SMALL_NETWORK = {
    "cnn_kernels": [5, 3],
    "cnn_channels": [16, 16],
    "mvp_hidden": [16],
    "layers": 1,
    "heads": 1,
    "ffn": 16,
    "dropout": 0.1,
}


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
    """(seconds a step, peak resident bytes of the largest process) of pretrain.py, afresh, on `size` times the data."""
    out, log = flags.folder / "run" / str(size), flags.folder / "log"
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--"]
    command += ["pretrain.py", "--modality", "eeg", "--fold", "0", "--data", flags.folder / f"{size}x", "--run", out]
    command += ["--epochs", epochs, "--warmup-epochs", 0, "--batch-size", flags.batch_size, "--device", flags.device]
    command += ["--threads", flags.threads, "--fresh"]
    for name, value in flags.network.items():
        command += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    peaks = {}
    with open(log, "w") as file, subprocess.Popen([*map(str, command)], stdout=file, stderr=file) as process:
        while process.poll() is None:
            with suppress(FileNotFoundError, ProcessLookupError, TypeError):  # a process that has just ended
                peaks |= resident_bytes(process)
            time.sleep(0.05)
    if process.returncode:
        raise ValueError(f"pretrain.py failed: {log.read_text()[-2000:]}")
    lines = map(json.loads, (out / "eeg" / "fold0" / "pretrain.jsonl").read_text().splitlines())
    seconds = [flags.batch_size / line["samples_per_s"] for line in lines]
    if processes > 1:
        peaks.pop(process.pid)  # of torchrun itself
    return statistics.median(seconds), max(peaks.values())


def steps_in_turns(flags) -> dict[int, float]:
    """Median seconds of a step of pre-training on each size of data, the sizes in turns within this process."""
    torch.set_num_threads(flags.threads)
    rows = {}
    for size in flags.sizes:
        data = open_segments(flags.folder / f"{size}x", "eeg")
        rows[size] = SignalRows([(data, np.arange(len(data.table)))], "eeg")
    model = SingleModalityModel(flags.shape["channels"], **flags.network, points=flags.shape["points"])
    model.to(flags.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    args = argparse.Namespace(device=flags.device, precision="bf16" if flags.device == "cuda" else "fp32")
    seconds = {size: [] for size in flags.sizes}
    masking = [default for default, *_ in paper.MASKING.values()]
    for step in tqdm(range(flags.steps), unit="step", disable=None):
        for size, signals in rows.items():
            places = np.random.default_rng(step).integers(len(signals), size=flags.batch_size)
            start, generator = time.perf_counter(), seed_step(0, step)
            batch = signals.batch(places, flags.device)
            mask = sample_mask(len(places), signals.points, *masking, generator)
            with autocast(args):
                loss = model.reconstruction_loss(batch, mask)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # waits for a GPU
            seconds[size].append(time.perf_counter() - start)
    return {size: statistics.median(times[flags.steps // 10 :]) for size, times in seconds.items()}


def run(flags):
    """Time of a step and peak memory of pre-training, in turns: on 1 to 64 times the data, and by 1 to N processes at
    one global batch size."""
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    if flags.folder.exists():
        raise FileExistsError(f"{flags.folder}: already there; remove it or name another --folder")
    small = flags.device == "cpu"
    flags.shape, flags.network = (SMALL_SHAPE, SMALL_NETWORK) if small else (PAPER_SHAPE, PAPER_NETWORK)
    found = {count: [] for count in flags.processes}
    try:
        for size in sorted({1, *flags.sizes}):
            write_set(flags.folder / f"{size}x", size * flags.segments, **flags.shape)
        steps = steps_in_turns(flags)
        peaks = {size: train(flags, size, 1, 1)[1] for size in flags.sizes}
        for _ in tqdm(range(flags.repeats), unit="round", disable=None):
            for count in flags.processes:
                found[count].append(train(flags, 1, count, flags.epochs))
    finally:
        shutil.rmtree(flags.folder, ignore_errors=True)
    by_size = [{"size": size, "processes": 1, "seconds": steps[size], "bytes": peaks[size]} for size in flags.sizes]
    by_processes = []
    for count, rounds in found.items():
        seconds, largest = zip(*rounds)
        row = {"size": 1, "processes": count, "seconds": statistics.median(seconds), "bytes": max(largest)}
        by_processes.append(row)
    for rows in (by_size, by_processes):
        for row in rows:
            row["ratio"] = {key: row[key] / rows[0][key] for key in ("seconds", "bytes")}
    if flags.json:
        print(json.dumps({"by_size": by_size, "by_processes": by_processes}))
        return
    print(f"batch {flags.batch_size} of all processes together, {flags.threads} threads a process, {flags.device}")
    print(
        "| data | processes | ms a step | of the first | peak MB a process | of the first |\n|---|---|---|---|---|---|"
    )
    for row in by_size + by_processes:
        print(
            f"| {row['size']}x | {row['processes']} | {1e3 * row['seconds']:.1f} | {row['ratio']['seconds']:.2f} | "
            f"{row['bytes'] / 1e6:.0f} | {row['ratio']['bytes']:.2f} |"
        )


def add_flags(part) -> None:
    count = paper.positive(int)
    part.add_argument("--folder", type=Path, required=True, help="where to write data and remove it (1 GB)")
    part.add_argument("--processes", type=count, nargs="+", default=[1, 2], help="their numbers (default: 1 2)")
    part.add_argument("--sizes", type=count, nargs="+", default=[1, 64], help="times the data (default: 1 64)")
    part.add_argument("--segments", type=count, default=200, help="segments of 1x (default: %(default)s)")
    part.add_argument("--batch-size", type=count, default=16, help="of all processes together (default: %(default)s)")
    part.add_argument("--steps", type=count, default=200, help="on each size of data (default: %(default)s)")
    part.add_argument("--epochs", type=count, default=20, help="by each number of processes (default: %(default)s)")
    part.add_argument("--threads", type=count, default=1, help="of each process (default: %(default)s)")
    part.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="the paper's network on cuda, a small one on cpu (default: cuda if there is one)",
    )
    part.add_argument("--repeats", type=count, default=5, help="rounds of the processes (default: %(default)s)")
    part.add_argument("--json", action="store_true", help="print the figures as JSON")
