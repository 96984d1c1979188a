"""Preparing recordings: ours against MNE-Python."""

import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import paper
from datasets import bci2000, eegmat
from preparing import filters

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
        signal = filters.band_pass(signal, rate, paper.LOW_HZ, paper.HIGH_HZ, paper.FILTER_ORDER)
        prepared.append(filters.resample(signal, 0, *filters.resampling_ratio(rate, paper.RATE))[1])
    return np.concatenate(prepared)


def prepare_mne(path, dataset, same_ends: bool):
    """What `prepare_ours` does, by MNE-Python in V; with `same_ends` also beyond the ends of the recording."""
    import mne

    raw = mne.io.read_raw_edf(path, include=LABELS[dataset], preload=True, verbose="error")
    design = {"order": paper.FILTER_ORDER, "ftype": "butter", "output": "sos"}
    ends = {}
    rate = raw.info["sfreq"]
    if same_ends:
        points = filters.extension_points(rate, paper.LOW_HZ, paper.HIGH_HZ, paper.FILTER_ORDER)
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


def run(flags):
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


def add_flags(part) -> None:
    part.add_argument("--raw", type=Path, required=True, help="folder of its EDF files")
    part.add_argument("--dataset", choices=READERS, default="eegmat", help="what lies there (default: %(default)s)")
    part.add_argument("--repeats", type=paper.positive(int), default=5, help="rounds (default: %(default)s)")
    part.add_argument("--json", action="store_true", help="print the figures as JSON")
