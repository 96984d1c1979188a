"""Pre-training never holds a data set in memory: 20 GB of segments need no more than 1 GB of them does."""

import os
import time

import numpy as np
import pytest

from prepared import DTYPE, edit_manifest, start, write_set

# A row has as many bytes as the paper's 10 x 1280, but attention, quadratic in the points, is far cheaper.
CHANNELS, POINTS = 100, 128
ROW = CHANNELS * POINTS * 4
SMALL = "--cnn-kernels 1 --cnn-channels 2 --layers 1 --heads 1 --ffn 2 --mvp-hidden 2 --dropout 0".split()


def write_sparse_set(folder, name, rows, rated):
    """A prepared set of `rows` segments of zeros, which take no room on the disk."""
    write_set(folder, name)
    (folder / "ecg.npy").unlink()
    table = np.zeros(rows, DTYPE)
    table["subject"], table["video"] = "S0", "v"
    table["trial"] = np.arange(rows) // 100
    table["start"] = 10.0 * (np.arange(rows) % 100)
    for target in ("arousal", "valence"):
        table[target] = np.arange(rows) // 100 % 2 * 8 + 1 if rated else np.nan
    np.save(folder / "segments.npy", table)
    with open(folder / "eeg.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, CHANNELS, POINTS)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + rows * ROW)
    channels = {"eeg": [f"E{number}" for number in range(CHANNELS)]}
    edit_manifest(folder, lambda manifest: manifest.update(channels=channels, points=POINTS, sources=[]))


def resident_memory(pid) -> int:
    """Bytes of VmRSS: what belongs to the process, and the pages of files that it has mapped."""
    with open(f"/proc/{pid}/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def peak_of_an_epoch(work, size) -> int:
    """Largest resident memory in bytes while one epoch reads every segment of `size` bytes of signals."""
    rows = size // ROW
    write_sparse_set(work / "data" / "amigos", "rated", 200, rated=True)
    write_sparse_set(work / "data" / "large", "large", rows, rated=False)
    path = work / "data" / "large" / "eeg.npy"
    assert path.stat().st_size > size - ROW and path.stat().st_blocks * 512 < 1e6
    flags = "--modality eeg --fold 0 --extra data/large --epochs 1 --warmup-epochs 0 --batch-size 64".split()
    log, peak = work / "log", 0
    script = start("pretrain.py", *flags, *SMALL, cwd=work, output=log)
    while script.poll() is None:
        try:
            peak = max(peak, resident_memory(script.pid))
        except (OSError, StopIteration):  # it has just ended
            break
        time.sleep(0.02)
    assert script.wait() == 0, log.read_text()
    assert f"pre-training on {rows} of {rows} segments of data/large" in log.read_text()
    assert path.stat().st_blocks * 512 < 1e6
    return peak


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux' /proc")
def test_memory_does_not_grow_with_the_data(tmp_path):
    small = peak_of_an_epoch(tmp_path / "small", 10**9)
    large = peak_of_an_epoch(tmp_path / "large", 20 * 10**9)
    print(f"resident memory: {small / 1e6:.0f} MB for 1 GB of segments, {large / 1e6:.0f} MB for 20 GB")
    assert large < 2e9 and large < 1.1 * small
