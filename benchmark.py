"""Ours and its rivals, side by side: the same work, in turns, in one run.

    python benchmark.py prepare --raw eegmat
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import paper
import preprocessing
from datasets import eegmat

EEGMAT_CHANNELS = {"eeg": paper.EEG_CHANNELS, "ecg": paper.ECG_CHANNELS}
EEGMAT_LABELS = [f"EEG {name}" for name in "F7 F3 T3 T5 O1 O2 T6 T4 F4 F8".split()] + ["ECG ECG"]  # the same, in order


def prepare_ours(path):
    """(11, n) float64: the ten EEG channels and the ECG of one file of eegmat, filtered, at 128 Hz."""
    [recording] = eegmat.read(path, EEGMAT_CHANNELS)
    prepared = []
    for modality, signal in recording.signals.items():
        rate = recording.rate[modality]
        signal = preprocessing.band_pass(signal, rate, paper.LOW_HZ, paper.HIGH_HZ, paper.FILTER_ORDER)
        prepared.append(preprocessing.resample(signal, 0, *preprocessing.resampling_ratio(rate, paper.RATE))[1])
    return np.concatenate(prepared)


def prepare_mne(path, same_ends: bool):
    """What `prepare_ours` does, by MNE-Python in V; with `same_ends` also beyond the ends of the recording."""
    import mne

    raw = mne.io.read_raw_edf(path, include=EEGMAT_LABELS, preload=True, verbose="error")
    design = {"order": paper.FILTER_ORDER, "ftype": "butter", "output": "sos"}
    ends = {}
    if same_ends:
        rate = raw.info["sfreq"]
        points = preprocessing.extension_points(rate, paper.LOW_HZ, paper.HIGH_HZ, paper.FILTER_ORDER)
        design["padlen"], ends["pad"] = points, "constant"
    raw.filter(paper.LOW_HZ, paper.HIGH_HZ, "all", method="iir", iir_params=design, verbose="error")
    raw.resample(paper.RATE, method="polyphase", verbose="error", **ends)
    return raw.get_data(EEGMAT_LABELS)


def prepare(flags):
    """Reading, filtering and resampling every file of eegmat on one core, ours against MNE-Python."""
    try:
        import mne
    except ImportError as error:
        raise FileNotFoundError("MNE-Python, the rival of this row, is missing; pip install mne") from error
    paths = eegmat.sources(flags.raw)
    if not paths:
        raise FileNotFoundError(f"{flags.raw}: no file of eegmat below it; expected {eegmat.EXPECTED}")
    rivals = {
        "ours": prepare_ours,
        f"MNE {mne.__version__}": lambda path: prepare_mne(path, same_ends=False),
        f"MNE {mne.__version__}, our ends": lambda path: prepare_mne(path, same_ends=True),
    }
    seconds = {name: [] for name in rivals}
    difference = 0.0
    with threadpool_limits(1):
        for path in paths:
            ours, theirs = prepare_ours(path), prepare_mne(path, same_ends=True)
            ours, theirs = (x / x.std(axis=1, keepdims=True) for x in (ours, theirs))
            difference = max(difference, float(np.abs(ours - theirs).max()))
        for _ in tqdm(range(flags.repeats), unit="round", disable=None):
            for name, times in seconds.items():
                times.append(0.0)
            for path in paths:
                for name, rival in rivals.items():
                    start = time.perf_counter()
                    rival(path)
                    seconds[name][-1] += time.perf_counter() - start
    result = {
        "files": len(paths),
        "largest_difference_in_sd": difference,
        "seconds": {name: {"median": statistics.median(t), "least": min(t)} for name, t in seconds.items()},
        "ratio": {
            name: statistics.median(ours / theirs for ours, theirs in zip(seconds["ours"], times))
            for name, times in seconds.items()
        },
    }
    if flags.json:
        print(json.dumps(result))
        return
    print(f"Reading, filtering and resampling {len(paths)} files on one core, median of {flags.repeats} rounds")
    print("| | s | ours / it |\n|---|---|---|")
    for name, times in result["seconds"].items():
        print(f"| {name} | {times['median']:.2f} | {result['ratio'][name]:.2f} |")
    print(f"Largest difference from MNE with our ends: {difference:.1e} SD")


def parse_flags(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("prepare", help=prepare.__doc__, description=prepare.__doc__)
    part.add_argument("--raw", type=Path, required=True, help="folder of the eegmat files")
    part.add_argument("--repeats", type=paper.positive(int), default=5, help="rounds (default: %(default)s)")
    part.add_argument("--json", action="store_true", help="print the figures as JSON")
    part.set_defaults(run=prepare)
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
