"""Ours and its rivals, side by side: the same work, in turns, in one run.

    python benchmark.py prepare --raw eegmat
    python benchmark.py cohort --folder /scratch
    python benchmark.py attention --batches 64 256
"""

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from tqdm import tqdm

import paper
import preprocessing
from datasets import bci2000, eegmat, simulated
from kernels.attention import attention

AMIGOS_SECONDS = [87] * 16 + [1114] * 4  # of the short and long videos: 97.5 minutes a subject, 65 hours for 40
LABELS = {  # as the files spell them, in the paper's order
    "eegmat": [f"EEG {name}" for name in "F7 F3 T3 T5 O1 O2 T6 T4 F4 F8".split()] + ["ECG ECG"],
    "bci2000": ["F7..", "F3..", "T7..", "P7..", "O1..", "O2..", "P8..", "T8..", "F4..", "F8.."],
}
READERS = {"eegmat": eegmat, "bci2000": bci2000}


def prepare_ours(path, dataset):
    """(C, n) float64: the ten EEG channels and the ECG, if any, of one EDF file, filtered, at 128 Hz."""
    names = {"eeg": paper.EEG_CHANNELS, "ecg": paper.ECG_CHANNELS}
    reader = READERS[dataset]
    [recording] = reader.read(path, {modality: names[modality] for modality in reader.MODALITIES})
    prepared = []
    for modality, signal in recording.signals.items():
        rate = recording.rate[modality]
        signal = preprocessing.band_pass(signal, rate, paper.LOW_HZ, paper.HIGH_HZ, paper.FILTER_ORDER)
        prepared.append(preprocessing.resample(signal, 0, *preprocessing.resampling_ratio(rate, paper.RATE))[1])
    return np.concatenate(prepared)


def prepare_mne(path, dataset, same_ends: bool):
    """What `prepare_ours` does, by MNE-Python in V; with `same_ends` also beyond the ends of the recording."""
    import mne

    raw = mne.io.read_raw_edf(path, include=LABELS[dataset], preload=True, verbose="error")
    design = {"order": paper.FILTER_ORDER, "ftype": "butter", "output": "sos"}
    ends = {}
    rate = raw.info["sfreq"]
    if same_ends:
        points = preprocessing.extension_points(rate, paper.LOW_HZ, paper.HIGH_HZ, paper.FILTER_ORDER)
        design["padlen"], ends["pad"] = points, "constant"
    raw.filter(paper.LOW_HZ, paper.HIGH_HZ, "all", method="iir", iir_params=design, verbose="error")
    raw.resample(paper.RATE, method="polyphase", verbose="error", **ends)
    return raw.get_data(LABELS[dataset])


def prepare_each(paths, dataset, rival):
    """`rival` on one file after the other."""
    for path in paths:
        rival(path, dataset)


def prepare_in_two(paths, dataset, pool):
    """`prepare_ours` on two files at a time, by the two processes of `pool`."""
    for done in [pool.submit(prepare_each, [path], dataset, prepare_ours) for path in paths]:
        done.result()


def prepare(flags):
    """Reading, filtering and resampling EDF files, ours against MNE-Python on one core, and ours by two processes."""
    try:
        import mne
    except ImportError as error:
        raise FileNotFoundError("MNE-Python, the rival of this row, is missing; pip install mne") from error
    dataset, reader = flags.dataset, READERS[flags.dataset]
    paths = reader.sources(flags.raw)
    if not paths:
        raise FileNotFoundError(f"{flags.raw}: no file of {dataset} below it; expected {reader.EXPECTED}")
    # Forked, like the workers of prepare_data.py, which starts them once for all files: their start is not timed.
    pool = ProcessPoolExecutor(2, multiprocessing.get_context("fork"), threadpool_limits, (1,))
    theirs, same = f"MNE {mne.__version__}", f"MNE {mne.__version__}, our ends"
    rivals = {
        "ours": partial(prepare_each, rival=prepare_ours),
        "ours, two workers": partial(prepare_in_two, pool=pool),
        theirs: partial(prepare_each, rival=partial(prepare_mne, same_ends=False)),
        same: partial(prepare_each, rival=partial(prepare_mne, same_ends=True)),
    }
    seconds = {name: [] for name in rivals}
    difference = 0.0
    with pool, threadpool_limits(1):
        for path in paths:
            pair = prepare_ours(path, dataset), prepare_mne(path, dataset, same_ends=True)
            ours, other = (x / x.std(axis=1, keepdims=True) for x in pair)
            difference = max(difference, float(np.abs(ours - other).max()))
        prepare_in_two(paths, dataset, pool)
        for _ in tqdm(range(flags.repeats), unit="round", disable=None):
            for name, rival in rivals.items():
                start = time.perf_counter()
                rival(paths, dataset)
                seconds[name].append(time.perf_counter() - start)
    mne_rows = (theirs, same)
    result = {
        "dataset": dataset,
        "files": len(paths),
        "largest_difference_in_sd": difference,
        "seconds": {name: {"median": statistics.median(t), "least": min(t)} for name, t in seconds.items()},
        "ratio": {
            ours: {row: statistics.median(a / b for a, b in zip(seconds[ours], seconds[row])) for row in mne_rows}
            for ours in ("ours", "ours, two workers")
        },
    }
    if flags.json:
        print(json.dumps(result))
        return
    print(f"Reading, filtering and resampling the {len(paths)} files of {dataset}, median of {flags.repeats} rounds")
    print(f"| | s | its time / {theirs} | its time / {same} |\n|---|---|---|---|")
    for name, times in result["seconds"].items():
        ratios = (f"{result['ratio'][name][row]:.2f}" if name in result["ratio"] else "" for row in mne_rows)
        print(f"| {name} | {times['median']:.2f} | {' | '.join(ratios)} |")
    print(f"Largest difference from MNE with our ends: {difference:.1e} SD")


def resident_bytes(process) -> dict[int, int]:
    """Peak resident memory (bytes) of a process and of each of its children, by number, as Linux tells it."""
    peaks = {}
    for number in [process.pid, *Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]:
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{number}/status").read_text())
        peaks[int(number)] = 1024 * int(peak[1])
    return peaks


def cohort(flags):
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


BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-3}  # of an output or gradient, by its norm


def attention_rivals(seed):
    """{name: function of (q, k, v, dropout probability)}: ours, PyTorch's back ends and, if installed, flash-attn."""

    def back_end(name):
        def run(q, k, v, p):
            with sdpa_kernel(BACKENDS[name]):
                return scaled_dot_product_attention(q, k, v, dropout_p=p)
        return run

    rivals = {"ours": lambda q, k, v, p: attention(q, k, v, p, seed), **{name: back_end(name) for name in BACKENDS}}
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return rivals

    def flash_attn(q, k, v, p):
        return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), p).transpose(1, 2)

    return {**rivals, "flash-attn": flash_attn}


def attention_error(rival, q, k, v, gradient):
    """The largest error, relative to its norm, of output and gradients of the first sample, without dropout."""
    q, k, v = (x[:1].detach().requires_grad_() for x in (q, k, v))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    weights = torch.softmax(exact[0] @ exact[1].transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
    true = weights @ exact[2]
    found = rival(q, k, v, 0.0)
    trues = true, *torch.autograd.grad(true, exact, gradient[:1].double())
    founds = found, *torch.autograd.grad(found, (q, k, v), gradient[:1])
    return max(((x - y).norm() / y.norm()).item() for x, y in zip(founds, trues))


def timer(work, device):
    """A function that does the work once and returns the microseconds; on a GPU it replays a CUDA graph of it."""
    for _ in range(2):
        work()
    if device == "cpu":
        def run():
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) * 1e6
        return run
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        work()

    def run():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3
    return run


def attention_row(flags, batch, p):
    """{rival: {"forward", "backward", "both": median microseconds} or {"failed": why}} for one batch size and p."""
    dtype, device = getattr(torch, flags.dtype), flags.device
    shape = batch, flags.tokens, 3, flags.heads, flags.head_size
    packed = torch.randn(shape, device=device).to(dtype).transpose(1, 3)
    gradient = torch.randn(batch, flags.tokens, flags.heads, flags.head_size, device=device).to(dtype).transpose(1, 2)
    q, k, v = (x.requires_grad_() for x in packed.unbind(2))
    seed = torch.randint(2**62, (batch,), device=device)
    timers, row = {}, {}
    for name, rival in attention_rivals(seed).items():
        def forward(rival=rival):
            with torch.no_grad():
                rival(q, k, v, p)

        def both(rival=rival):
            torch.autograd.grad(rival(q, k, v, p), (q, k, v), gradient)

        try:
            error = attention_error(rival, q, k, v, gradient)
            if not error < TOLERANCE[dtype]:
                raise ValueError(f"its gradients are off by {error:.1e}")
            timers[name] = timer(forward, device), timer(both, device)
        except (RuntimeError, ValueError) as reason:
            row[name] = {"failed": str(reason).splitlines()[0][:80]}
            if device == "cuda":
                torch.cuda.empty_cache()
    times = {name: [] for name in timers}
    for _ in range(flags.repeats):
        for name, (forward, both) in timers.items():
            times[name].append((forward(), both()))
    for name, rounds in times.items():
        alone, whole = (statistics.median(column) for column in zip(*rounds))
        row[name] = {"forward": alone, "backward": whole - alone, "both": whole}
    return row


def attention_part(flags):
    """Our attention beside every back end of PyTorch's, in turns, dropout included; useful FLOPs alone are counted."""
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    versions = {"device": torch.cuda.get_device_name() if flags.device == "cuda" else platform.processor() or "CPU",
                "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(),
                "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None}
    warnings.filterwarnings("ignore", message=".*kernel|.*attention", category=UserWarning)
    work = 4 * flags.tokens**2 * flags.head_size * flags.heads  # FLOPs a sample, forward; the backward pass 2.5 times
    rows = []
    for batch in flags.batches:
        for p in flags.dropouts:
            rows.append({"batch": batch, "p": p, "rivals": attention_row(flags, batch, p)})
            if flags.device == "cuda":
                torch.cuda.empty_cache()
    if flags.json:
        print(json.dumps({"versions": versions, "flags": {**vars(flags), "run": None}, "rows": rows}))
        return
    print(", ".join(f"{name} {value}" for name, value in versions.items()))
    print(f"{flags.tokens} tokens, {flags.heads} heads of {flags.head_size}, {flags.dtype}; medians of {flags.repeats}")
    print("| batch | p | | forward us | backward us | both us | forward TFLOP/s | backward | both | both / ours |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        ours = row["rivals"].get("ours", {}).get("both", float("nan"))
        for name, times in row["rivals"].items():
            head = f"| {row['batch']} | {row['p']} | {name} |"
            if "failed" in times:
                print(head, f"{times['failed']} | | | | | | |")
                continue
            rates = (work * row["batch"] * share / times[key] / 1e6
                     for key, share in (("forward", 1), ("backward", 2.5), ("both", 3.5)))
            print(head, " | ".join(f"{times[key]:.0f}" for key in ("forward", "backward", "both")), "|",
                  " | ".join(f"{rate:.1f}" if flags.device == "cpu" else f"{rate:.0f}" for rate in rates),
                  f"| {times['both'] / ours:.2f} |")


def parse_flags(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("prepare", help=prepare.__doc__, description=prepare.__doc__)
    part.add_argument("--raw", type=Path, required=True, help="folder of its EDF files")
    part.add_argument("--dataset", choices=READERS, default="eegmat", help="what lies there (default: %(default)s)")
    part.add_argument("--repeats", type=paper.positive(int), default=5, help="rounds (default: %(default)s)")
    part.add_argument("--json", action="store_true", help="print the figures as JSON")
    part.set_defaults(run=prepare)
    part = parts.add_parser("cohort", help=cohort.__doc__, description=cohort.__doc__)
    part.add_argument("--folder", type=Path, required=True, help="where to write it and remove it (7 GB)")
    part.add_argument("--subjects", type=paper.positive(int), default=40, help="people (default: %(default)s)")
    part.add_argument("--workers", type=paper.positive(int), default=2, help="processes (default: %(default)s)")
    part.add_argument("--json", action="store_true", help="print the figures as JSON")
    part.set_defaults(run=cohort)
    part = parts.add_parser("attention", help=attention_part.__doc__, description=attention_part.__doc__)
    count = paper.positive(int)
    part.add_argument("--batches", type=count, nargs="+", default=[1, 16, 64, 256], help="samples (default: 1 to 256)")
    part.add_argument("--dropouts", type=float, nargs="+", default=[0.0, 0.1, 0.125],
                      help="dropout probabilities (default: 0, the paper's, and one that is a multiple of 1/16)")
    part.add_argument("--tokens", type=count, default=1281, help="tokens a sample (default: %(default)s)")
    part.add_argument("--heads", type=count, default=2, help="heads (default: %(default)s)")
    part.add_argument("--head-size", type=count, default=128, help="features a head (default: %(default)s)")
    part.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16",
                      help="precision (default: %(default)s)")
    part.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device (default: %(default)s)")
    part.add_argument("--repeats", type=count, default=15, help="rounds (default: %(default)s)")
    part.add_argument("--json", action="store_true", help="print the figures as JSON")
    part.set_defaults(run=attention_part)
    return parser.parse_args(argv)


def main(argv=None) -> int:
    flags = parse_flags(argv)
    try:
        flags.run(flags)
    except (ValueError, OSError) as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
