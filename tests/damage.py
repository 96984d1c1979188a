"""Files damaged at random, read under limits on memory and time: `python damage.py LAYOUT COUNT SEED FOLDER [command]`.

Ends with code 0 if each of COUNT damaged files either ends in one line that names it, or is read as the undamaged file
was but for the damaged samples. What no reader can notice, such as another digit in the rate of a header, is only
asked to end well. A hang ends the process (SIGPROF), and so does a crash; the damaged file is then left in FOLDER.
Every twentieth file also goes through the whole script; with `command` each goes through the command itself, alone.
"""

import copy
import faulthandler
import resource
import shutil
import signal
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
from scipy.io import savemat

import layouts
import recordings
from datasets.readers import READERS
from prepare_data import parse_flags, resolve
from prepared import call, script
from preparing import cutting

MEMORY, SECONDS = 2**30, 10
BOTH, EEG, ECG = recordings.BOTH, {"eeg": recordings.EEG}, {"ecg": ["ECG"]}
FLAGS = parse_flags(["--dataset", "folder"])
resolve(FLAGS)
NAMES = [*recordings.EEG, "ECG"]


def noise(*shape):
    return np.random.default_rng(7).normal(size=shape)


def edf(path):
    recordings.write_edf(path, recordings.edf_signal(0, 25, 160), NAMES, 160)
    layouts.write_list(path.parent, "file,subject", f"{path.name},A")


def wfdb(path):
    signal = (10 * recordings.edf_signal(0, 25, 160).T).astype(int)
    layouts.write_wfdb(path.with_suffix(""), signal, NAMES, rate=160)
    layouts.write_list(path.parent, "file,subject", f"{path.with_suffix('.hea').name},A")


def amigos(path):
    videos = {v: (recordings.amigos_signal(v, 3200), recordings.ratings(2, 7)) for v in (0, 3)}
    recordings.write_amigos(path, videos)


def ascertain(path):
    layouts.write_ascertain(path, noise(6000, 3), 1000 / 256)


def pspm(path):
    channels = [("scr", "uS", 10, noise(250)), ("ecg", "events", 1, noise(3)), ("ecg", "mV", 200, noise(5000))]
    (layouts.write_pspm_hdf5 if "hdf5" in str(path) else layouts.write_pspm)(path, channels, 25.0)


# layout -> data set, file, what is read, how it is written
LAYOUTS = {
    "edf": ("bci2000", "S001R01.edf", EEG, edf),
    "bdf": ("folder", "x.bdf", BOTH, edf),
    "wfdb": ("folder", "x.dat", BOTH, wfdb),
    "mat-amigos": ("amigos", "Data_Preprocessed_P01.mat", BOTH, amigos),
    "mat-way": ("way_eeg_gal", "HS_P1_S1.mat", EEG, lambda path: layouts.write_way(path, noise(6000, 32))),
    "mat-kaya": ("large_eeg_bci", "CLASubjectA160108x.mat", EEG, lambda p: layouts.write_kaya(p, noise(5000, 22), 200)),
    "mat-ascertain": ("ascertain", "Movie_P01/ECG_Clip1.mat", ECG, ascertain),
    "mat-dreamer": ("dreamer", "DREAMER.mat", BOTH, lambda path: layouts.write_dreamer(path, 1, points=1400)),
    "mat-pspm": ("pspm", "FR_spike_01.mat", ECG, pspm),
    "hdf5-pspm": ("pspm", "FR_spike_01.mat", ECG, pspm),
}  # fmt: skip
LIES = ("0", "-1", "nan", "inf", "-inf", "1e300", "99999999", "4294967296", "0.001", "x", "", "1e-300")


def write(layout, path):
    """Write the undamaged file; returns the variables of a MAT 5 file."""
    kept = {}
    layouts.save = lambda path, variables, **options: kept.update(variables)
    recordings.savemat = lambda path, variables: kept.update(variables)
    path.parent.mkdir(parents=True, exist_ok=True)
    LAYOUTS[layout][3](path)
    if kept:
        savemat(path, kept)
    return kept


def parts_of(value, where=()):
    """The ways to all parts of nested structs and cells."""
    if where:
        yield where
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, np.ndarray) and value.dtype == object:
        items = [(index, value[index]) for index in np.ndindex(value.shape)]
    for key, item in items:
        yield from parts_of(item, (*where, key))


def part(tree, where):
    return reduce(getitem, where, tree)


def lie_in_variables(tree, rng):
    """One part of the variables is gone, or something else."""
    tree = copy.deepcopy(tree)
    ways = list(parts_of(tree))
    where = ways[rng.integers(len(ways))]
    parent, old = part(tree, where[:-1]), part(tree, where)
    array = np.atleast_2d(np.asarray(old))
    choices = [
        np.zeros((0, 0)), np.zeros((1, 0)), np.nan, 0, -1, np.inf, 1e300, 1e-300, 10**9, "x", np.zeros((3, 4, 5)),
        array.T, array[:, :-1], array[:-1], array[:1], layouts.cell([1, "x"]), {"a": 1}, np.array([["ab"], ["cd"]]),
    ]  # fmt: skip
    choice = rng.integers(len(choices) + 1)
    if choice < len(choices):
        parent[where[-1]] = choices[choice]
    elif isinstance(parent, dict):
        del parent[where[-1]]
    else:
        parent[where[-1]] = np.zeros((0, 0))
    return tree


def bad_values(tree, rng):
    """Up to three samples anywhere are NaN, infinite or too large for float32."""
    tree = copy.deepcopy(tree)
    ways = [where for where in parts_of(tree) if getattr(part(tree, where), "size", 0) > 1000]
    damaged = [where for where in ways if part(tree, where).dtype.kind == "f"]
    for _ in range(rng.integers(1, 4)):
        array = part(tree, damaged[rng.integers(len(damaged))])
        array[tuple(rng.integers(array.shape))] = rng.choice([np.nan, np.inf, -np.inf, 1e300])
    return tree


def lie_in_header(path, rng):
    """Another number in one field of an EDF or BDF header, or one word of a WFDB header."""
    lie = LIES[rng.integers(len(LIES))]
    if path.suffix == ".dat":
        header = path.with_suffix(".hea")
        words = header.read_text().split(" ")
        place = rng.integers(len(words))
        words[place] = lie + ("\n" if "\n" in words[place] else "")
        header.write_text(" ".join(words))
        return
    content, signals = path.read_bytes(), len(NAMES)
    fields = [(184, 8), (236, 8), (244, 8), (252, 4)]
    start = 256 + signals * 96
    for width, numeric in ((8, False), (8, True), (8, True), (8, True), (8, True), (80, False), (8, True)):
        fields += [(start + width * i, width) for i in range(signals) if numeric]
        start += width * signals
    offset, width = fields[rng.integers(len(fields))]
    path.write_bytes(content[:offset] + lie[:width].encode().ljust(width) + content[offset + width :])


def lie_in_hdf5(path, rng):
    import h5py

    with h5py.File(path, "r+") as file:
        names = []
        file.visit(names.append)
        name = names[rng.integers(len(names))]
        attributes = dict(file[name].attrs)
        del file[name]
        choices = [None, np.zeros((0, 0)), np.nan, -1.0, 1e300, np.zeros((3, 4, 5)), np.zeros((9, 2)), np.bytes_("x")]
        value = choices[rng.integers(len(choices))]
        if value is not None:
            file.create_dataset(name, data=value).attrs.update(attributes)
        elif rng.integers(2):
            file.create_dataset(name, shape=(10**6, 10**5), dtype="f8", chunks=(1000, 1000), compression="gzip")


def damage(path, tree, rng) -> tuple[str, int | None]:
    """Damages the file; returns how, and how many samples may differ (None: any)."""
    content = path.read_bytes()
    kind = rng.choice(["cut", "flip", "flip", "value", "lie", "lie"])
    if kind == "cut":
        path.write_bytes(content[: rng.integers(len(content))])
        return "cut", 0
    if kind == "flip" or (kind == "value" and not tree):
        changed = bytearray(content)
        # Half of the flips hit the first thousand bytes, where headers are.
        count, size = int(rng.integers(1, 9)), int(rng.choice([1000, len(content)]))
        for place in rng.integers(min(size, len(content)), size=count):
            changed[place] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        return f"flip {count} of the first {size}", None
    if tree:
        lie = lie_in_variables if kind == "lie" else bad_values
        savemat(path, lie(tree, rng), do_compression=bool(rng.integers(2)))
        return kind, (3 if kind == "value" else None)
    (lie_in_hdf5 if "hdf5" in str(path) else lie_in_header)(path, rng)
    return "lie", None


def read(layout, path):
    """What one file gives: recording by trial, and the starts of its segments."""
    name, _, channels, _ = LAYOUTS[layout]
    reader, found = READERS[name], {}
    for recording in reader.read(path, channels, "left" if hasattr(reader, "ECG_SIDES") else None):
        judged, blocks = cutting.cut(recording, FLAGS)
        assert all(cutting.finite(segments).all() for block in blocks for segments in block.values())
        found[recording.trial] = recording, {judged.begin + number * judged.length for number in judged.kept()}
    return found


def compare(found, expected, samples):
    """Raises AssertionError where more than `samples` samples differ, or a segment is lost that none of them is in."""
    if samples is None:
        return
    assert found.keys() == expected.keys(), "other trials"
    for trial, (recording, starts) in found.items():
        whole, all_starts = expected[trial]
        touched = set()
        for modality in recording.signals:
            assert recording.rate[modality] == whole.rate[modality]
            values, other = np.asarray(recording.signals[modality]), whole.signals[modality]
            # A file that is cut short is read as far as it goes, and says so.
            if recording.notes:
                other = other[:, : values.shape[1]]
                seconds = other.shape[1] / recording.rate[modality]
                all_starts = {start for start in all_starts if start + 10 <= seconds}
            where = np.argwhere(values != other)
            assert len(where) <= samples, f"{len(where)} samples differ"
            touched |= {10.0 * int(place // (10 * recording.rate[modality])) for _, place in where}
        assert starts == all_starts - touched, f"{starts} of {all_starts}, touched {touched}"


def prepare(layout, folder, command):
    """The whole command on one damaged file: a finished set, or one line that names the file and nothing written."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    name, _, channels, _ = LAYOUTS[layout]
    flags = ["--dataset", name, "--raw", folder / "raw", "--out", out, "--workers", 1, "--json"]
    finished = (script if command else call)("prepare_data.py", *flags, "--modalities", *channels, cwd=folder)
    code, lines = finished.returncode, finished.stderr.splitlines()
    assert not command or resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < MEMORY
    lines = [line for line in lines if "file/s" not in line and "?file" not in line and line.strip()]  # progress
    if code == 0:
        assert sorted(each.name for each in out.iterdir()) == [name] and (out / name / "manifest.json").exists()
    else:
        assert code == 2 and len(lines) == 1 and str(folder / "raw") in lines[0], (code, lines)
        assert not out.exists() or not list(out.iterdir())


def main(layout, count, seed, folder, command):
    faulthandler.enable()
    folder = folder / layout
    path = folder / "raw" / LAYOUTS[layout][1]
    tree = write(layout, path)
    undamaged = {each: each.read_bytes() for each in (folder / "raw").rglob("*") if each.is_file()}
    expected = read(layout, path)
    for recording, _ in expected.values():
        recording.signals.update({modality: np.asarray(each) for modality, each in recording.signals.items()})
    assert expected and all(starts for _, starts in expected.values())
    prepare(layout, folder, command)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if not command:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    outcomes = {"refused": 0, "read": 0}
    for number in range(count):
        for each, content in undamaged.items():
            each.write_bytes(content)
        how, samples = damage(path, tree, np.random.default_rng([seed, number]))
        try:
            if command or number % 20 == 0:
                prepare(layout, folder, command)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process alone, however busy the machine is
            compare(read(layout, path), expected, samples)
            outcomes["read"] += 1
        except (ValueError, OSError) as error:
            line = str(error)
            assert "\n" not in line and path.stem in line, (number, how, line)
            outcomes["refused"] += 1
        except BaseException as error:
            print(f"{layout} {number} {how}: {type(error).__name__} {error}", flush=True)
            raise
        signal.setitimer(signal.ITIMER_PROF, 0)
    print(layout, count, outcomes)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), "command" in sys.argv[5:])
