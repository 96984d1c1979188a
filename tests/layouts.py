"""Small files in the layouts in which the other data sets are distributed, written without our readers."""

import struct

import numpy as np
import pytest
from scipy.io import savemat

WAY_NAMES = (
    "Fp1 Fp2 F7 F3 Fz F4 F8 FC5 FC1 FC2 FC6 T7 C3 Cz C4 T8 TP9 CP5 CP1 CP2 CP6 TP10 P7 P3 Pz P4 P8 PO9 O1 Oz O2 PO10"
).split()
KAYA_NAMES = "Fp1 Fp2 F3 F4 C3 C4 P3 P4 O1 O2 A1 A2 F7 F8 T3 T4 T5 T6 Fz Cz Pz X5".split()
DREAMER_COLUMNS = "AF3 F7 F3 FC5 T7 P7 O1 O2 P8 T8 FC6 F4 F8 AF4".split()


def cell(items, column=True):
    """A MATLAB cell array, (n, 1) or (1, n)."""
    array = np.empty((len(items), 1) if column else (1, len(items)), object)
    for i, item in enumerate(items):
        array.flat[i] = item
    return array


def save(path, variables, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, **options)


def write_way(path, signal, names=None, samplingrate=500.0, **options):
    names = cell([f"{name:<5}" for name in WAY_NAMES], column=False) if names is None else names
    eeg = {"sig": signal, "names": names, "samplingrate": samplingrate}
    save(path, {"hs": {"name": "HS", "eeg": eeg, "emg": {"sig": signal[:, :5]}}}, **options)


def write_kaya(path, signal, rate, **options):
    o = {
        "id": "x", "tag": "y", "nS": len(signal), "sampFreq": rate, "marker": np.zeros((len(signal), 1), np.uint8),
        "data": signal, "chnames": cell(KAYA_NAMES), "binsuV": np.uint8(1),
    }  # fmt: skip
    save(path, {"o": o}, **options)


def write_ascertain(path, data, step=None, **options):
    """With `step` (ms), column 0 becomes the time."""
    if step:
        data[:, 0] = 1000 + step * np.arange(len(data))
    save(path, {"Data_ECG": data}, **options)


def write_dreamer(path, subjects, points=200, dominance=True, **options):
    """Writes random signals and ratings; returns them, a dict a subject."""
    rng = np.random.default_rng(0)
    people = [
        {
            "eeg": [rng.normal(size=(points + i, 14)) for i in range(18)],
            "ecg": [rng.normal(size=(2 * (points + i), 2)) for i in range(18)],
            "arousal": rng.integers(1, 6, 18),
            "valence": rng.integers(1, 6, 18),
        }
        for _ in range(subjects)
    ]
    data = [
        {
            "Age": "22",
            "EEG": {"baseline": cell([np.ones((50, 14))] * 18), "stimuli": cell(person["eeg"])},
            "ECG": {"baseline": cell([np.ones((50, 2))] * 18), "stimuli": cell(person["ecg"])},
            "ScoreArousal": person["arousal"][:, None],
            "ScoreValence": person["valence"][:, None],
            **({"ScoreDominance": np.full((18, 1), 3)} if dominance else {}),
        }
        for person in people
    ]
    whole = {"Data": cell(data, column=False), "EEG_SamplingRate": np.uint8(128), "ECG_SamplingRate": np.uint16(256)}
    save(path, {"DREAMER": whole}, **options)
    return people


def write_pspm(path, channels, duration, **options):
    """`channels`: (chantype, units, sr, data (n,))."""
    data = [
        {"header": {"chantype": chantype, "sr": sr, "units": units}, "data": values[:, None]}
        for chantype, units, sr, values in channels
    ]
    save(path, {"infos": {"duration": duration, "source": "spike"}, "data": cell(data)}, **options)


def write_pspm_hdf5(path, channels, duration):
    """The same as MATLAB writes it with -v7.3: transposed, strings as codes, cells as references into #refs#."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)

    def put(group, name, value):
        text = isinstance(value, str)
        array = np.array([list(map(ord, value))], np.uint16) if text else np.atleast_2d(np.asarray(value, float))
        group.create_dataset(name, data=array.T).attrs["MATLAB_class"] = np.bytes_("char" if text else "double")

    with h5py.File(path, "w", userblock_size=512) as file:
        infos = file.create_group("infos")
        infos.attrs["MATLAB_class"] = np.bytes_("struct")
        put(infos, "duration", duration)
        put(infos, "source", "spike")
        references = []
        for i, (chantype, units, sr, values) in enumerate(channels):
            channel = file.create_group(f"#refs#/{i}")
            channel.attrs["MATLAB_class"] = np.bytes_("struct")
            header = channel.create_group("header")
            for name, value in (("chantype", chantype), ("sr", sr), ("units", units)):
                put(header, name, value)
            put(channel, "data", values[:, None])
            references.append(channel.ref)
        data = file.create_dataset("data", data=np.array([references], dtype=h5py.ref_dtype))
        data.attrs["MATLAB_class"] = np.bytes_("cell")
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + b" " * 8 + b"\x00\x02IM")


def write_wfdb(stem, signal, names, rate, gain=200, baseline=0, file=None, units="mV"):
    """`signal` (n, C) of integers in format 16; `file` is the name of the signal file; `units`: one or several."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    file = file or f"{stem.name}.dat"
    lines = [f"{stem.name} {len(names)} {rate} {len(signal)}"]
    signal = np.asarray(signal, "<i2")
    units = [units] * len(names) if isinstance(units, str) else units
    for column, name, unit in zip(signal.T, names, units):
        checksum = int(column.astype(int).sum()) % 65536
        checksum -= 65536 * (checksum > 32767)
        lines.append(f"{file} 16 {gain}({baseline})/{unit} 16 0 {column[0]} {checksum} 0 {name}")
    header = "\n".join(lines) + "\n"
    stem.with_name(stem.name + ".hea").write_bytes(header.encode("utf-8", "surrogateescape"))
    stem.with_name(file).write_bytes(signal.tobytes())


def write_vhdr(path, counts, names, rate, units):
    """A BrainVision recording of int16 (C, n), 1 of the channel's unit a step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = "\n".join(f"Ch{i}={name},,1,{unit}" for i, (name, unit) in enumerate(zip(names, units), 1))
    path.write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={path.stem}.eeg\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\nNumberOfChannels={len(names)}\n"
        f"SamplingInterval={1e6 / rate:g}\n[Binary Infos]\nBinaryFormat=INT_16\n[Channel Infos]\n{channels}\n"
    )
    path.with_suffix(".eeg").write_bytes(counts.T.astype("<i2").tobytes())


def write_gdf(path, counts, names, rate, units):
    """GDF 1.25 of int16 (C, n), 1 s a record, 1 of the channel's unit a step."""
    channels, points = counts.shape
    begin = (b"GDF 1.25", b"", b"", b"2020010100000000", 256 * (channels + 1), b"", b"", b"", b"")
    parts = [struct.pack("<8s80s80s16sq8s8s8s20sqIII", *begin, points // rate, 1, 1, channels)]
    parts += [struct.pack("<16s", name.encode()) for name in names] + [struct.pack("<80s", b"")] * channels
    parts += [struct.pack("<8s", unit.encode()) for unit in units]
    for kind, value in zip(["d", "d", "q", "q", "80s", "i", "i", "32s"], [-32768, 32767] * 2 + [b"", rate, 3, b""]):
        parts += [struct.pack("<" + kind, value)] * channels
    no_events = bytes([1, 100, 0, 0, 0, 0, 0, 0])
    samples = counts.reshape(channels, -1, rate).swapaxes(0, 1).astype("<i2").tobytes()
    path.write_bytes(b"".join([*parts, samples, no_events]))


def chunk(tag, content):
    return b"\x04" + struct.pack("<IH", len(content) + 2, tag) + content


def write_xdf(path, streams):
    """`streams`: (names, units, rate, times (n,), values (n, C))."""
    parts = [b"XDF:", chunk(1, b'<?xml version="1.0"?><info><version>1.0</version></info>')]
    for number, (names, units, rate, times, values) in enumerate(streams, 1):
        which, about = struct.pack("<I", number), zip(names, units)
        channels = "".join(f"<channel><label>{name}</label><unit>{unit}</unit></channel>" for name, unit in about)
        header = (
            f"<info><name>s{number}</name><type>EEG</type><channel_count>{values.shape[1]}</channel_count><nominal_srate>{rate}"
            f"</nominal_srate><channel_format>double64</channel_format><desc><channels>{channels}</channels></desc></info>"
        )
        rows = zip(times, values.astype("<f8"))
        samples = b"".join(b"\x08" + struct.pack("<d", time) + row.tobytes() for time, row in rows)
        parts += [chunk(2, which + header.encode()), chunk(6, which + b"<info></info>")]
        parts.insert(-1, chunk(3, which + b"\x04" + struct.pack("<I", len(times)) + samples))
    path.write_bytes(b"".join(parts))


def write_list(folder, *lines):
    (folder / "recordings.csv").write_text("\n".join(lines) + "\n")
