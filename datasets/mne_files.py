"""Recordings in formats of all kinds, for the readers: EDF and BDF, and through the package MNE BrainVision, EEGLAB,
FIF, GDF and what else mne.io.read_raw opens."""

import re
import warnings
from functools import partial

import numpy as np

from datasets import BAD, GAP, JUMP, FileSignal, Signals, choose, optional, path_on_disk, refuse_damage, unit_scale
from datasets.edf import read_edf

EDF_BEGINS = (b"0       ", b"\xffBIOSEMI")


def files_of(path) -> list:
    """Return the files of a recording, first the one with its signals, which is that of no other recording; all files
    of a folder, the largest first. The signals that a BrainVision header names may be missing."""
    if path.is_dir():
        files = (each for each in path.rglob("[!.]*") if each.is_file())
        return sorted(files, key=lambda each: (-each.stat().st_size, each)) or [path]
    if path.suffix.lower() in (".edf", ".bdf", ".rec"):
        return [path]
    if path.suffix.lower() in (".vhdr", ".ahdr") and path.is_file():
        content = path.read_bytes()
        text = content.decode("utf-8" if b"Codepage=UTF-8" in content else "latin-1", errors="replace")
        named = re.findall(r"^(DataFile|MarkerFile)[ \t]*=[ \t]*(\S.*?)\s*$", text, re.MULTILINE)
        files = {path_on_disk(path.parent, name.replace("$b", path.stem)): kind for kind, name in named}
        # MNE does without the markers.
        return [*(each for each, kind in files.items() if kind == "DataFile" or each.is_file()), path]
    # The .fdt of a .set, the further parts of a long .fif and the like bear the name of the recording.
    same = re.compile(re.escape(path.stem) + r"(-\d+)?\.[^.]+(\.[^.]+)?")
    beside = {each for each in path.parent.glob("*") if same.fullmatch(each.name) and each.is_file()}
    signals = path.with_suffix(".fdt") if path.suffix.lower() == ".set" else path
    return sorted({path, *beside}, key=lambda each: (each != signals, each != path, each))


def read_any(path, channels) -> Signals:
    """Do what `read_edf` does, for a file or folder of any kind but WFDB."""
    begin = b""
    if path.is_file():
        with open(path, "rb") as file:
            begin = file.read(8)
    # An EDF file may have another ending (.rec).
    ending = path.suffix.lower()
    is_edf = begin in EDF_BEGINS or ending in (".edf", ".bdf")
    return (read_edf if is_edf else read_xdf if ending in (".xdf", ".xdfz") else read_mne)(path, channels)


def read_mne(path, channels) -> Signals:
    """Return the signals of the named channels of a file or folder that mne.io.read_raw opens. MNE gives volts, which
    become uV or mV; values in another or unknown unit stay. Raise ValueError where MNE is missing or opens no such
    file, where the file is damaged, and where it lacks a channel."""
    mne = optional("mne", path, "neither EDF, BDF nor WFDB (unless you convert it)")
    with warnings.catch_warnings(record=True) as said, _refuse(path, "MNE"):
        warnings.simplefilter("always")
        raw = mne.io.read_raw(path, verbose="warning")
        units = [_unit(raw, place, mne.io.constants.FIFF.FIFF_UNIT_V) for place in range(len(raw.ch_names))]
    chosen, names, units, notes = choose(channels, raw.ch_names, units, path)
    signals = {}
    for modality, (places, factors) in chosen.items():
        read = partial(_points, path, raw, places, np.array(factors)[:, None])
        signals[modality] = FileSignal((len(places), len(raw)), read)
    # MNE warns of what it assumes; what other packages warn of is no matter of the file.
    said = [f"MNE: {' '.join(str(each.message).split())[:200]}" for each in said if each.category is RuntimeWarning]
    bad = _bad(raw, {raw.ch_names[place] for places, _ in chosen.values() for place in places})
    rate = dict.fromkeys(channels, float(raw.info["sfreq"]))
    return Signals(signals, rate, names, units, bad, tuple(dict.fromkeys(said + notes)))


def _points(path, raw, places, factors, start, stop) -> np.ndarray:
    """Return the points from `start` to `stop` of the channels at `places`, times `factors` (C, 1)."""
    with _refuse(path, "MNE"):
        return raw.get_data(places, start, stop, verbose="error") * factors


def read_xdf(path, channels) -> Signals:
    """Do what `read_edf` does, for an XDF file in which each modality is in one stream. All begin with the stream that
    begins last. Breaks within a stream are NaN and bad."""
    pyxdf = optional("pyxdf", path, "an XDF file (unless you convert it)")
    with _refuse(path, "pyxdf"):
        streams = [each for each in pyxdf.load_xdf(str(path), verbose=False)[0] if len(each["time_stamps"])]
        present = []
        for stream in streams:
            described = (stream["info"]["desc"][0] or {}).get("channels") or [None]
            present += [(stream, *each) for each in enumerate((described[0] or {}).get("channel", []))]
        labels = [about["label"][0] for *_, about in present]
        units = [(about.get("unit") or [None])[0] or "unknown" for *_, about in present]
    chosen, names, units, notes = choose(channels, labels, units, path)
    begin = max(present[places[0]][0]["time_stamps"][0] for places, _ in chosen.values())
    signals, rate, bad = {}, {}, []
    for modality, (places, factors) in chosen.items():
        (stream, *others), columns, _ = zip(*(present[place] for place in places))
        times, rate[modality] = stream["time_stamps"] - begin, float(stream["info"]["effective_srate"])
        if not rate[modality] > 0 or (np.diff(times) < 0).any() or any(each is not stream for each in others):
            expected = f"the {modality} in one stream of one rate, in the order of time"
            raise ValueError(f"{path}: expected {expected}, found others; convert it")
        points = np.round(times * rate[modality]).astype(int)
        signals[modality] = np.full((len(columns), points[-1] + 1), np.nan)
        signals[modality][:, points[points >= 0]] = (stream["time_series"][points >= 0][:, columns] * factors).T
        ends = [last for _, last in stream["info"]["segments"][:-1]]
        bad += [(max(0.0, times[last]), times[last + 1], GAP) for last in ends if times[last + 1] > 0]
    return Signals(signals, rate, names, units, tuple(bad), tuple(notes))


def _refuse(path, package):
    """Do as `refuse_damage` does, for a file that may be of any format."""
    advice = "mend or unpack it, or convert it to EDF (mne.export.export_raw)"
    return refuse_damage(path, f"EDF, BDF, WFDB or what {package} opens", advice)


def _unit(raw, place, volt) -> str:
    """Return the unit of the values that MNE gives for a channel: V, or what the file says."""
    # In some formats, such as EEGLAB and FIF, no channel has a unit of its own.
    said = (raw._orig_units or {}).get(raw.ch_names[place], "V")
    # Of GDF, MNE knows uV and mV, and takes the rest for V.
    if type(raw).__name__ == "RawGDF" and raw._raw_extras[0]["units"][place] == 1:
        said = "unknown"
    if unit_scale(said, "eeg") is None:
        return said.replace("n/a", "unknown")
    return "V" if raw.info["chs"][place]["unit"] == volt else "unknown"


def _bad(raw, taken) -> tuple:
    """Return the stretches of no use: what annotations call bad, the sample after each jump in time, and the whole
    recording for each channel of `taken` that the file calls bad."""
    rate, bad = raw.info["sfreq"], []
    for mark in raw.annotations:
        start, what = mark["onset"] - raw.first_time, f"annotated {mark['description'][:60]!r}"
        if JUMP.fullmatch(mark["description"]):
            # Its duration is that of what was left out.
            start = np.ceil(start * rate - 1e-6) / rate
            bad += [(start, start + 1 / rate, what)] * bool(start > 0)
        elif BAD.fullmatch(mark["description"]):
            bad.append((start, start + max(np.nan_to_num(mark["duration"]), 1 / rate), what))
    bad += [(0.0, len(raw) / rate, f"{name} is marked as bad") for name in raw.info["bads"] if name in taken]
    return tuple(bad)
