"""WFDB records of every kind, against the package wfdb itself and against the integers that were written."""

import numpy as np
import pytest

from datasets import folder, unit_scale
from layouts import write_list
from recordings import read_all

wfdb = pytest.importorskip("wfdb")
NAMES = ["F7", "F8", "ECG"]
CHANNELS = {"eeg": ["F8", "F7"], "ecg": ["ECG"]}
COUNTS = np.random.default_rng(0).integers(-2000, 2000, (600, 3))


def lines(file, *signals):
    """Lines of a header: of each signal its format, gain and unit, and name."""
    return "".join(f"{file} {form} {gain} 16 0 0 0 0 {name}\n" for form, gain, name in signals)


def write(folder, header, parts=None, more=None):
    """Write r.hea, the signal files `parts` (name -> integers) and other headers (`more`: name -> text)."""
    folder.mkdir(exist_ok=True)
    for name, text in {"r.hea": header, **(more or {})}.items():
        (folder / name).write_text(text)
    for name, counts in ({"r.dat": COUNTS} if parts is None else parts).items():
        (folder / name).write_bytes(counts if isinstance(counts, bytes) else np.asarray(counts, "<i2").tobytes())
    write_list(folder, "file,subject", "r.hea,Ann")


def only(raw, channels=CHANNELS):
    [recording] = read_all(folder, raw, channels)
    return recording


def same_as_wfdb(raw, channels=CHANNELS):
    """Compare our reading of a record with wfdb's, in the units of the modalities; return the recording."""
    recording, record = only(raw, channels), wfdb.rdrecord(str(raw / "r"), smooth_frames=False)
    for modality, wanted in channels.items():
        assert recording.signals[modality].dtype == np.float64
        for channel, values in zip(wanted, recording.signals[modality]):
            i = record.sig_name.index(channel)
            factor = unit_scale(record.units[i], modality) or 1
            np.testing.assert_array_equal(values, record.e_p_signal[i] * factor)
            assert recording.rate[modality] == record.fs * record.samps_per_frame[i]
    return recording


def encode(form, counts):
    """The bytes of integers (n, 3), by the WFDB manual (signal(5))."""
    flat = counts.ravel()
    if form == "8":
        return np.diff(counts, axis=0, prepend=0).astype("i1").tobytes()
    if form == "24":
        return flat.astype("<i4").view("u1").reshape(-1, 4)[:, :3].tobytes()
    if form == "212":
        a, b = (flat & 4095).reshape(-1, 2).T
        return np.stack([a & 255, a >> 8 | b >> 8 << 4, b & 255], axis=1).astype("u1").tobytes()
    if form in ("310", "311"):
        a, b, c = (flat & 1023).reshape(-1, 3).T
        words = a | b << 10 | c << 20 if form == "311" else a << 1 | c % 32 << 11 | b << 17 | c >> 5 << 27
        return words.astype("<u4").tobytes()
    offset = {"80": 128, "160": 2**15}.get(form, 0)
    kind = {"80": "u1", "160": "<u2", "61": ">i2", "32": "<i4"}.get(form, "<i2")
    return (flat + offset).astype(kind).tobytes()


def signals(gain="10(5)/uV", form="16", names=NAMES):
    return [(form, gain, name) for name in names]


def segments(count, unit="uV"):
    """Headers and signal files of segments of 200 samples."""
    more = {f"s{k}.hea": f"s{k} 3 250 200\n{lines(f's{k}.dat', *signals(f'10/{unit}'))}" for k in range(count)}
    return {f"s{k}.dat": COUNTS[k * 200 : k * 200 + 200] for k in range(count)}, more


def test_a_signal_that_was_not_calibrated(tmp_path):
    write(tmp_path, f"r 3 250 600\n{lines('r.dat', *signals('0/uV'))}")
    recording = only(tmp_path)
    assert recording.units == dict.fromkeys(CHANNELS, "no unit (not calibrated)")
    np.testing.assert_array_equal(recording.signals["ecg"][0], wfdb.rdrecord(str(tmp_path / "r")).p_signal[:, 2])


@pytest.mark.parametrize("several", [False, True])
def test_several_samples_a_frame(tmp_path, several):
    """The ECG four times as fast as the EEG, within one file or two; wfdb's own default would smooth it."""
    header = lines("r.dat", ("16", "10/uV", "F7"), ("16", "10/uV", "F8"))
    header += lines("e.dat" if several else "r.dat", ("16x4", "10/uV", "ECG"))
    parts = {"r.dat": COUNTS[:, :2], "e.dat": COUNTS.ravel()[:1200]} if several else {"r.dat": COUNTS}
    write(tmp_path, f"r 3 250 300\n{header}", parts)
    recording = same_as_wfdb(tmp_path)
    with pytest.raises(ValueError, match="expected one rate of F7 ECG, found .1, 4. samples a frame"):
        only(tmp_path, {"eeg": ["F7", "ECG"]})
    assert recording.rate == {"eeg": 250, "ecg": 1000} and recording.signals["ecg"].shape == (1, 1200)
    assert [path.name for path in folder.sources(tmp_path)][2:] == sorted(parts, reverse=True)


@pytest.mark.parametrize("unit", ["uV", "mV"])
def test_segments_of_a_fixed_layout(tmp_path, unit):
    parts, more = segments(3)
    more |= {name: text for name, text in segments(1, unit)[1].items()}
    write(tmp_path, "r/3 3 250 600\ns0 200\ns1 200\ns2 200\n", parts, more)
    recording = same_as_wfdb(tmp_path) if unit == "uV" else only(tmp_path)  # wfdb takes the first unit for all
    factor = np.repeat([unit_scale(unit, "eeg"), 1, 1], 200)
    np.testing.assert_allclose(recording.signals["eeg"], COUNTS[:, [1, 0]].T / 10 * factor, rtol=1e-15)
    assert recording.bad == () and recording.notes == ()
    names = [path.name for path in folder.sources(tmp_path)]
    assert names == ["recordings.csv", "r.hea", "s0.dat", "s1.dat", "s2.dat", "s0.hea", "s1.hea", "s2.hea"]


def test_segments_of_a_variable_layout(tmp_path):
    """A gap, and a segment without ECG and with the others in another order: NaN as in wfdb, and bad."""
    parts, more = segments(3)
    more["s1.hea"] = "s1 2 250 200\n" + lines("s1.dat", *signals("10/uV", names=["F8", "F7"]))
    more["l.hea"] = "l 3 250 0\n" + lines("~", *signals("10/uV", "0"))
    header = "r/5 3 250 900\nl 0\ns0 200\n~ 300\ns1 200\ns2 200\n"
    write(tmp_path, header, parts | {"s1.dat": COUNTS[200:400, :2]}, more)
    recording = same_as_wfdb(tmp_path)
    assert recording.bad == ((0.8, 2, "gap in the file"), (2, 2.8, "gap in the file"))
    assert np.isnan(recording.signals["eeg"]).sum() == 2 * 300 and np.isnan(recording.signals["ecg"]).sum() == 500


@pytest.mark.parametrize(
    "words, header, name, rate, count",
    [
        ("s1.dat, found none", "r/2 3 250 400\ns0 200\ns1 200", "s1", 250, 3),
        ("line 2, r.hea: expected the file .*gone.hea", "r/2 3 250 400\ns0 200\ngone 200", "x", 250, 3),
        ("s0.hea of 3 signals at 500 Hz", "r/1 3 250 200\ns0 200", "s0", 500, 3),
        ("gaps of over 86400 s", "r/2 3 250 29999999\ns0 200\n~ 29999799", "x", 250, 3),
        ("found none", "r/1 3 250 200\nr 200", "x", 250, 3),
        ("250 Hz in 2 lines", "r/1 3 250 200\ns0 200", "s0", 250, 2),
    ],
)
def test_segments_that_do_not_fit(tmp_path, words, header, name, rate, count):
    """The header of a record of segments, and that of one of them, with the lines of `count` signals."""
    parts, more = segments(1)
    text = f"{name} 3 {rate} 200\n" + lines(f"{name}.dat", *signals()[:count])
    write(tmp_path, header + "\n", parts, more | {f"{name}.hea": text})
    with pytest.raises((ValueError, OSError), match=words) as caught:
        only(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said, kept", [(700, 600), (500, 500), ("", 600)])
def test_another_length_than_the_header_says(tmp_path, said, kept):
    write(tmp_path, f"r 3 250 {said}\n{lines('r.dat', *signals('10/uV'))}", {"r.dat": [*COUNTS.ravel(), 7]})
    recording = only(tmp_path)
    np.testing.assert_array_equal(recording.signals["eeg"], COUNTS[:kept, [1, 0]].T / 10)
    note = f"r.hea: the header says {said} samples, 600 are there; {kept} were taken"
    assert list(recording.notes) == [note] * bool(said)


def test_a_header_of_no_rate_and_no_names(tmp_path):
    write(tmp_path, "r 3\n" + "r.dat 16 10/uV\n" * 3)
    recording = only(tmp_path, {"eeg": ["signal 1"]})
    assert recording.rate == {"eeg": 250} and "no rate; 250 Hz" in recording.notes[0]
    np.testing.assert_array_equal(recording.signals["eeg"], COUNTS[:, 1:2].T / 10)


@pytest.mark.parametrize("form", ["16", "24", "32", "80", "212", "310", "311", "61", "160", "8"])
def test_every_format_and_its_invalid_samples(tmp_path, form):
    counts = COUNTS // 50
    invalid = {"8": None, "80": -128, "212": -2048, "310": -512, "311": -512, "24": -(2**23), "32": -(2**31)}
    marks = invalid.get(form, -(2**15))
    if marks:
        counts[[3, 70], [0, 2]] = marks
    write(tmp_path, f"r 3 250 600\n{lines('r.dat', *signals('10/uV', form))}", {"r.dat": encode(form, counts)})
    recording = same_as_wfdb(tmp_path)
    assert np.isnan(recording.signals["ecg"]).sum() == bool(marks) and recording.notes == ()
    expected = np.where(counts == (marks or 999), np.nan, counts / 10).T
    np.testing.assert_array_equal(recording.signals["eeg"], expected[[1, 0]])
