"""This part measures the preparation of recordings: ours against MNE-Python."""

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
from common.script import positive
from datasets import bci2000, eegmat
from preparing import filters

READERS = {"eegmat": eegmat, "bci2000": bci2000}
LABELS = {  # as the files spell the channels of the reader's modalities, in the paper's order
    "eegmat": [f"EEG {name}" for name in "F7 F3 T3 T5 O1 O2 T6 T4 F4 F8".split()] + ["ECG ECG"],
    "bci2000": "F7.. F3.. T7.. P7.. O1.. O2.. P8.. T8.. F4.. F8..".split(),
}


def prepare_ours(path, dataset):
    """Return the paper's channels of one EDF file, filtered, at 128 Hz: (C, n) float64."""
    reader, prepared = READERS[dataset], []
    [recording] = reader.read(path, {name: paper.MODALITIES[name].channels for name in reader.MODALITIES})
    for name, signal in recording.signals.items():
        modality, rate = paper.MODALITIES[name], recording.rate[name]
        signal = filters.band_pass(signal, rate, modality.low, modality.high, paper.FILTER_ORDER)
        prepared.append(filters.resample(signal, 0, *filters.resampling_ratio(rate, paper.RATE))[1])
    return np.concatenate(prepared)


def prepare_mne(path, dataset, same_ends: bool):
    """Return the same by MNE-Python, in volts; with `same_ends` it also continues the recording as ours does."""
    import mne

    raw = mne.io.read_raw_edf(path, include=LABELS[dataset], preload=True, verbose="error")
    design, ends = {"order": paper.FILTER_ORDER, "ftype": "butter", "output": "sos"}, {}
    band = paper.MODALITIES["eeg"].low, paper.MODALITIES["eeg"].high  # one call filters all channels
    if same_ends:
        design["padlen"] = filters.extension_points(raw.info["sfreq"], *band, paper.FILTER_ORDER)
        ends["pad"] = "constant"
    raw.filter(*band, "all", method="iir", iir_params=design, verbose="error")
    raw.resample(paper.RATE, method="polyphase", verbose="error", **ends)
    return raw.get_data(LABELS[dataset])


def prepare_each(paths, dataset, prepare):
    """Prepare one file after the other."""
    for path in paths:
        prepare(path, dataset)


def prepare_in_two(paths, dataset, pool):
    """Prepare two files at a time, by the two processes of `pool`."""
    for done in [pool.submit(prepare_each, [path], dataset, prepare_ours) for path in paths]:
        done.result()


def largest_difference(paths, dataset) -> float:
    """Return how far ours and MNE with the same ends are apart, in SD of a channel."""
    difference = 0.0
    for path in paths:
        pair = prepare_ours(path, dataset), prepare_mne(path, dataset, same_ends=True)
        ours, other = (x / x.std(axis=1, keepdims=True) for x in pair)
        difference = max(difference, float(np.abs(ours - other).max()))
    return difference


def run(flags):
    """Read, filter and resample EDF files: ours and MNE-Python on one core, and ours by two processes, in turns."""
    try:
        import mne
    except ImportError as error:
        raise FileNotFoundError("MNE-Python, the rival of this part, is missing; pip install mne") from error
    dataset, reader = flags.dataset, READERS[flags.dataset]
    paths = reader.sources(flags.raw)
    if not paths:
        raise FileNotFoundError(f"{flags.raw}: no file of {dataset} below it; prepare_data.py --list has their names")
    # Forked, like the workers of prepare_data.py, which starts them once for all files: their start is not timed.
    pool = ProcessPoolExecutor(2, multiprocessing.get_context("fork"), threadpool_limits, (1,))
    theirs = [f"MNE {mne.__version__}", f"MNE {mne.__version__}, our ends"]
    rivals = {
        "ours": partial(prepare_each, prepare=prepare_ours),
        "ours, two workers": partial(prepare_in_two, pool=pool),
        theirs[0]: partial(prepare_each, prepare=partial(prepare_mne, same_ends=False)),
        theirs[1]: partial(prepare_each, prepare=partial(prepare_mne, same_ends=True)),
    }
    seconds = {name: [] for name in rivals}
    with pool, threadpool_limits(1):
        difference = largest_difference(paths, dataset)
        prepare_in_two(paths, dataset, pool)
        # The rivals take turns, so that a change of the clock's rate meets all of them.
        for _ in tqdm(range(flags.repeats), unit="round", disable=None):
            for name, rival in rivals.items():
                start = time.perf_counter()
                rival(paths, dataset)
                seconds[name].append(time.perf_counter() - start)
    print(f"Reading, filtering and resampling the {len(paths)} files of {dataset}, {flags.repeats} rounds")
    print(f"| | median s | its time / {theirs[0]} | its time / {theirs[1]} |\n|---|---|---|---|")
    for name, times in seconds.items():
        pairs = (zip(times, seconds[their]) for their in theirs)
        ratios = " | ".join(f"{statistics.median(a / b for a, b in pair):.2f}" for pair in pairs)
        print(f"| {name} | {statistics.median(times):.2f} | {ratios} |")
    print(f"Largest difference from MNE with our ends: {difference:.1e} SD")


def add_flags(part) -> None:
    """Add the flags of this part."""
    part.add_argument("--raw", type=Path, required=True, help="folder of its EDF files")
    part.add_argument("--dataset", choices=READERS, default="eegmat", help="what lies there (default: %(default)s)")
    part.add_argument("--repeats", type=positive(int), default=5, help="rounds (default: %(default)s)")
