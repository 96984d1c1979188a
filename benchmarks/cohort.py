"""Preparing a cohort of the size of AMIGOS."""

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

import paper
from datasets import simulated

AMIGOS_SECONDS = [87] * 16 + [1114] * 4  # of the short and long videos: 97.5 minutes a subject, 65 hours for 40


def resident_bytes(process) -> dict[int, int]:
    """Peak resident memory (bytes) of a process and of each of its children, by number, as Linux tells it."""
    peaks = {}
    for number in [process.pid, *Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]:
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{number}/status").read_text())
        peaks[int(number)] = 1024 * int(peak[1])
    return peaks


def run(flags):
    """Preparing a simulated cohort of the size of AMIGOS: time, disk, and the memory of each process."""
    raw, out = flags.folder / "cohort-raw", flags.folder / "cohort-data"
    for folder in (raw, out):
        if folder.exists():
            raise FileExistsError(f"{folder}: already there; remove it or name another --folder")
    raw.mkdir(parents=True)
    try:
        for subject in tqdm(range(flags.subjects), unit="subject", desc="writing", disable=None):
            path = raw / f"Data_Preprocessed_P{subject + 1:02d}.mat"
            simulated.write_person(path, np.random.default_rng([0, subject]), True, AMIGOS_SECONDS, 1.0, "benchmark")
        command = [sys.executable, "prepare_data.py", "--dataset", "amigos", "--raw", raw, "--out", out, "--json"]
        start, peaks = time.perf_counter(), {}
        with subprocess.Popen([*command, "--workers", str(flags.workers)], stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                with suppress(FileNotFoundError, ProcessLookupError, TypeError):  # a process that has just ended
                    peaks |= resident_bytes(process)
                time.sleep(0.05)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise ValueError(f"prepare_data.py failed with exit code {process.returncode}")
        hours = flags.subjects * sum(AMIGOS_SECONDS) / 3600
        raw_bytes, bytes_ = (sum(p.stat().st_size for p in f.rglob("*") if p.is_file()) for f in (raw, out))
    finally:
        for folder in (raw, out):
            shutil.rmtree(folder, ignore_errors=True)
    result = {
        "subjects": flags.subjects,
        "hours": hours,
        "workers": flags.workers,
        "seconds": seconds,
        "seconds_per_hour": seconds / hours,
        "raw_bytes": raw_bytes,
        "prepared_bytes": bytes_,
        "parent_bytes": peaks.pop(process.pid),
        "worker_bytes": list(peaks.values()),
    }
    if flags.json:
        print(json.dumps(result))
        return
    print(f"{flags.subjects} subjects, {hours:.1f} hours of signals, {flags.workers} workers")
    print(f"{seconds:.0f} s, {seconds / hours:.2f} s an hour of signals")
    print(f"{raw_bytes / 1e9:.2f} GB of raw files -> {bytes_ / 1e9:.2f} GB of segments")
    workers = ", ".join(f"{peak / 1e6:.0f}" for peak in result["worker_bytes"])
    print(f"peak resident memory: {result['parent_bytes'] / 1e6:.0f} MB, of the workers {workers} MB")


def add_flags(part) -> None:
    part.add_argument("--folder", type=Path, required=True, help="where to write it and remove it (8 GB)")
    part.add_argument("--subjects", type=paper.positive(int), default=40, help="people (default: %(default)s)")
    part.add_argument("--workers", type=paper.positive(int), default=2, help="processes (default: %(default)s)")
    part.add_argument("--json", action="store_true", help="print the figures as JSON")
