"""This part measures the preparation of recordings: ours against MNE-Python, of a long one and of many short ones."""

import statistics
import subprocess
import sys
import tempfile
import time
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


def largest_difference(paths, dataset) -> float:
    """Return how far ours and MNE with the same ends are apart, in SD of a channel."""
    difference = 0.0
    for path in paths:
        pair = prepare_ours(path, dataset), prepare_mne(path, dataset, same_ends=True)
        ours, other = (x / x.std(axis=1, keepdims=True) for x in pair)
        difference = max(difference, float(np.abs(ours - other).max()))
    return difference


def write_recordings(raw, count, seconds, rate, modalities) -> int:
    """Write EDF files of noise, the ECG with peaks, for --dataset folder; return their bytes in all."""
    import edfio

    random, piece = np.random.default_rng(0), min(seconds, 60)
    names = [name for modality in modalities for name in paper.MODALITIES[modality].channels]
    peaks = 900 * np.exp(-(((np.arange(piece * rate) / rate % 0.8) - 0.4) ** 2) / 2e-4)
    raw.mkdir()
    for number in range(count):
        path, noise = raw / f"{number}.edf", random.normal(0, 20, (len(names), piece * rate))
        noise[-1] += peaks
        signals = [edfio.EdfSignal(each, rate, label=name, physical_dimension="uV") for each, name in zip(noise, names)]
        edfio.Edf(signals).write(path)
        # A longer one repeats its first minute: no more of it is in memory.
        content, header, times = path.read_bytes(), 256 * (len(names) + 1), seconds // piece
        with open(path, "wb") as file:
            file.write(content[:236] + f"{times * piece:<8}".encode() + content[244:header])
            file.writelines(content[header:] for _ in range(times))
    lines = ["file,subject", *(f"{number}.edf,{number}" for number in range(count))]
    (raw / "recordings.csv").write_text("\n".join(lines) + "\n")
    return sum(path.stat().st_size for path in raw.glob("*.edf"))


def prepare_folder(raw, workers, modalities) -> tuple[float, int]:
    """Prepare recordings by prepare_data.py; return the seconds it took, and its largest memory in bytes."""
    code = "import re, prepare_data; prepare_data.main(); "
    code += "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    flags = f"--dataset folder --raw {raw} --out {raw}-{workers} --workers {workers} --json --modalities".split()
    command, start = [sys.executable, "-c", code, *flags, *modalities], time.perf_counter()
    done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - start, 1024 * int(done.stdout.split()[-1])


def measure_sizes(flags):
    """Print the memory that a long recording takes, and the time that many short ones take."""
    both, hours = ("eeg", "ecg"), flags.files * 30 / 3600
    with tempfile.TemporaryDirectory() as folder:
        long, many = Path(folder) / "long", Path(folder) / "many"
        size = write_recordings(long, 1, round(3600 * flags.hours), 512, both)
        seconds, peak = prepare_folder(long, 1, both)
        print("| | memory of a worker, MB | times the file | s an hour of signal |\n|---|---|---|---|")
        row = f"{peak / 1e6:.0f} | {peak / size:.2f} | {seconds / flags.hours:.2f} |"
        print(f"| {flags.hours:g} h of 11 channels at 512 Hz, one worker | {row}")
        write_recordings(many, flags.files, 30, 300, ("ecg",))
        for workers in (1, 2):
            seconds, _ = prepare_folder(many, workers, ("ecg",))
            print(f"| {flags.files} ECGs of 30 s at 300 Hz, {workers} workers | | | {seconds / hours:.2f} |")


def run(flags):
    """Read, filter and resample EDF files on one core: ours and MNE-Python, in turns."""
    try:
        import mne
    except ImportError as error:
        raise FileNotFoundError("MNE-Python, the rival of this part, is missing; pip install mne") from error
    dataset, reader = flags.dataset, READERS[flags.dataset]
    paths = reader.sources(flags.raw)
    if not paths:
        raise FileNotFoundError(f"{flags.raw}: no file of {dataset} below it; prepare_data.py --list has their names")
    theirs = [f"MNE {mne.__version__}", f"MNE {mne.__version__}, our ends"]
    own_ends, our_ends = (partial(prepare_mne, same_ends=same) for same in (False, True))
    rivals = {"ours": prepare_ours, theirs[0]: own_ends, theirs[1]: our_ends}
    seconds = {name: [] for name in rivals}
    with threadpool_limits(1):
        difference = largest_difference(paths, dataset)
        # The rivals take turns, so that a change of the clock's rate meets all of them.
        for _ in tqdm(range(flags.repeats), unit="round", disable=None):
            for name, rival in rivals.items():
                start = time.perf_counter()
                for path in paths:
                    rival(path, dataset)
                seconds[name].append(time.perf_counter() - start)
    print(f"Reading, filtering and resampling the {len(paths)} files of {dataset}, {flags.repeats} rounds")
    print(f"| | median s | its time / {theirs[0]} | its time / {theirs[1]} |\n|---|---|---|---|")
    for name, times in seconds.items():
        pairs = (zip(times, seconds[their]) for their in theirs)
        ratios = " | ".join(f"{statistics.median(a / b for a, b in pair):.2f}" for pair in pairs)
        print(f"| {name} | {statistics.median(times):.2f} | {ratios} |")
    print(f"Largest difference from MNE with our ends: {difference:.1e} SD\n")
    measure_sizes(flags)


def add_flags(part) -> None:
    """Add the flags of this part."""
    part.add_argument("--raw", type=Path, required=True, help="folder of its EDF files")
    part.add_argument("--dataset", choices=READERS, default="eegmat", help="what lies there (default: %(default)s)")
    part.add_argument("--repeats", type=positive(int), default=5, help="rounds (default: %(default)s)")
    part.add_argument("--hours", type=positive(float), default=24.0, help="of the long one (default: %(default)s)")
    part.add_argument("--files", type=positive(int), default=2000, help="short ones (default: %(default)s)")
