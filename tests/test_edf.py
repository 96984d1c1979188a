"""EDF and BDF files as people have them: units, rates, records, gaps, annotations, names, copies and damage.

edfio writes the files, and then their bytes are changed; what is right is known by construction, or MNE says so.
"""

import edfio
import numpy as np
import pytest

from datasets import GAP, folder, normalise_name, pick_channels
from datasets.edf import read_edf
from layouts import write_list
from protocol.segments import open_segments
from recordings import BOTH, EEG, edf_signal, patch, prepare_data, read_all, write_edf

BOTH_KINDS = pytest.mark.parametrize("kind", ["edf", "bdf"])
READ = {"edf": edfio.read_edf, "bdf": edfio.read_bdf}
NAMES = [*EEG, "ECG"]
WIDTH = {"edf": 2, "bdf": 3}  # bytes of a sample


def write(path, kind, signals, names=NAMES, rate=160, units="uV", **more):
    return write_edf(path, signals, names, rate, units=units, kind=kind, **more)


def begin(second) -> bytes:
    return b"+%g\x14\x14\0" % second


def by_mne(path):
    """Channel -> V, n; annotations."""
    raw = pytest.importorskip("mne").io.read_raw(path, preload=True, verbose="error")
    return dict(zip(raw.ch_names, raw.get_data())), raw.annotations


def step(signals, kind) -> float:
    """The largest difference between a signal and its integers, in its unit; header fields have eight letters."""
    return np.ptp(signals, axis=1).max() * (2.0 ** (-8 * WIDTH[kind]) + 1e-6)


@pytest.mark.parametrize("unit", ["", "ADC"])
def test_an_unknown_unit_is_noted_and_goes_with_no_other(tmp_path, unit, capsys):
    flags = "--dataset", "folder", "--raw", tmp_path, "--out", tmp_path / "out", "--modalities", "eeg", "--workers", 1
    for i, each in enumerate([unit, unit, "uV", "Counts"]):
        write(tmp_path / f"{i}.edf", "edf", edf_signal(i, 20, 160), units=each)
    write_list(tmp_path, "file,subject", "0.edf,A", "1.edf,A", "2.edf,B", "3.edf,C")
    assert prepare_data(flags) == 0
    notes = open_segments(tmp_path / "out" / "folder").manifest["notes"]
    unknown = [(note["trial"], note["note"]) for note in notes if "unit" in note["note"]]
    assert unknown == [(t, f"eeg in the unknown unit {u!r}") for t, u in (("0", unit), ("1", unit), ("3", "Counts"))]
    for other, found in (("2", "uV"), ("3", "Counts")):
        write_list(tmp_path, "file,subject", "0.edf,A", f"{other}.edf,A")
        assert prepare_data([*flags, "--fresh"]) == 2
        words = f"{other}.edf: the eeg of subject A is in {found} here and in {unit or 'no unit'} in the files"
        assert words in capsys.readouterr().err


@BOTH_KINDS
@pytest.mark.parametrize("rate, record", [(160, 2.0), (250, 0.5), (128.5, 2.0), (160, 0.05)])
def test_rates_and_records_of_any_length(tmp_path, kind, rate, record):
    signals, ecg = edf_signal(0, 4, 514)[:, : int(4 * rate)], edf_signal(1, 4, 500)[10]
    path = write(tmp_path / f"a.{kind}", kind, [*signals[:10], ecg], rate=[rate] * 10 + [500], record=record)
    found = read_edf(path, BOTH)
    assert found.rate == {"eeg": rate, "ecg": 500}
    expected = {signal.label: signal.data for signal in READ[kind](path).signals}
    np.testing.assert_array_equal(found.signals["eeg"], [expected[name] for name in EEG])
    np.testing.assert_allclose(found.signals["ecg"], expected["ECG"][None] / 1000, rtol=1e-15)
    # Any slice is that of the whole.
    for part in (slice(0, 0), slice(7, 9), slice(100, 333), slice(399, 10**9), slice(3, None, 5)):
        np.testing.assert_array_equal(found.signals["ecg"][:, part], np.asarray(found.signals["ecg"])[:, part])
    with pytest.raises(ValueError, match=r"a.\w+: expected one rate above 0 Hz for F7 ECG"):
        read_edf(path, {"eeg": ["F7", "ECG"]})


@BOTH_KINDS
@pytest.mark.parametrize("name", ["a.edf", "a.bdf", "a.rec"])
def test_the_first_byte_says_what_it_is_and_the_header_need_not_count(tmp_path, kind, name):
    """Labels may be filled up with NUL."""
    signals = edf_signal(0, 5, 160)
    path = write(tmp_path / name, kind, signals)
    patch(path, 236, b"-1      ")
    patch(path, 256, b"".join(name.encode().ljust(16, b"\0") for name in NAMES))
    write_list(tmp_path, "file,subject", f"{name},A")
    [found] = read_all(folder, tmp_path)
    np.testing.assert_allclose(found.signals["eeg"], signals[:10], atol=step(signals, kind))
    assert found.notes == ()


@BOTH_KINDS
@pytest.mark.parametrize("plus", [b"+C", b"+D"])
@pytest.mark.parametrize("first", [0, 0.25, 7])
@pytest.mark.parametrize(
    "begins, gaps",
    [
        (range(40), []),
        ([i + 0.004 * (i % 2) for i in range(40)], []),  # less than 1.5 samples
        ([i + 30 * (i >= 15) for i in range(40)], [(15, 45)]),
        ([i + 2.5 * (i >= 10) + 0.0625 * (i >= 30) for i in range(40)], [(10, 12.5), (32.5, 32.5625)]),
    ],
)
def test_gaps_are_nan_and_bad(tmp_path, kind, plus, first, begins, gaps):
    signals = edf_signal(0, 40, 160)
    path = write(tmp_path / "a", kind, signals, marks=[begin(first + each) for each in begins])
    patch(path, 192, kind.upper().encode() + plus)
    assert READ[kind](path).is_continuous == (begins == range(40))
    found = read_edf(path, BOTH)
    assert [(start, stop, why) for start, stop, why in found.bad] == [(*gap, GAP) for gap in gaps] and found.notes == ()
    expected = np.full((10, round((40 + sum(b - a for a, b in gaps)) * 160)), np.nan)
    for second, place in enumerate(begins):
        place = round(160 * place) if gaps else 160 * second
        expected[:, place : place + 160] = signals[:10, 160 * second : 160 * (second + 1)]
    np.testing.assert_allclose(found.signals["eeg"], expected, atol=step(signals, kind))
    np.testing.assert_array_equal(found.signals["eeg"][:, 1500:2200], np.asarray(found.signals["eeg"])[:, 1500:2200])


@BOTH_KINDS
def test_what_no_gap_can_be(tmp_path, kind):
    signals = edf_signal(0, 5, 160)
    for fourth, words in ((1, "-2 s after .*record 4"), (90000, "89997 s after .*record 4")):
        path = write(tmp_path / "a", kind, signals, marks=[begin(each) for each in (0, 1, 2, fourth, fourth + 1)])
        if fourth == 1:
            # A file that calls itself continuous is taken at its word.
            assert read_edf(path, BOTH).bad == () and "go back" in read_edf(path, BOTH).notes[0]
            patch(path, 192, kind.upper().encode() + b"+D")
        with pytest.raises(ValueError, match=f"a: expected records in the order of time .*{words}"):
            read_edf(path, BOTH)
    found = read_edf(write(tmp_path / "a", kind, signals, marks=[begin(1.005 * i) for i in range(5)]), BOTH)
    assert found.bad == () and ["gains 0.02 s" in note for note in found.notes] == [True]
    # Where some or all records say nothing, they follow each other.
    for marks in ([begin(0), b"", b"", begin(3), b""], [b""] * 5):
        found = read_edf(write(tmp_path / "a", kind, signals, marks=marks), BOTH)
        assert found.bad == () and found.signals["eeg"].shape == (10, 800) and found.notes == ()
    path = write(tmp_path / "a", kind, signals)
    patch(path, 192, kind.upper().encode() + b"+D")
    assert "speaks of gaps" in read_edf(path, BOTH).notes[0]


MARKS = {"BAD_blink": (3.5, 2), "bad": (11, None), "Bad segment": (21, 0.5), "T0": (1, 30), "a bad day": (1, 30)}
LOOSE = [b"+0\x14New Segment/\x14\0", b"+2\x15\x14bad\x14\0", b"+3,5\x150,5\x14Comment/BAD\x14\0", b""]
LOOSE += [b"+5\x14boundary\x14\0", b"8\x15+1\x14Bad\x14\0"]


@BOTH_KINDS
def test_marks_written_loosely_and_a_width_that_the_first_byte_hides(tmp_path, kind):
    signals = edf_signal(0, 10, 160)
    marks = [b"\0" + begin(i).lstrip(b"+") + text for i, text in enumerate([*LOOSE, *[b""] * 4])]
    path = write(tmp_path / "a", kind, signals, marks=marks)
    patch(path, 0, b"0")
    found = read_edf(path, BOTH)
    assert [(start, round(stop, 6)) for start, stop, _ in found.bad] == [(2, 2.001), (3.5, 4), (5, 5.001), (8, 9)]
    np.testing.assert_allclose(found.signals["eeg"], signals[:10], atol=step(signals, kind))


@BOTH_KINDS
@pytest.mark.parametrize("first", [0, 0.5])
def test_annotations_call_stretches_bad(tmp_path, kind, first):
    signals, marks = edf_signal(0, 40, 160), [begin(first + second) for second in range(40)]
    for second, (text, (onset, duration)) in zip((3, 11, 21, 30, 31), MARKS.items()):
        length = b"" if duration is None else b"\x15%g" % duration
        marks[second] += b"+%g%s\x14%s\x14\0" % (first + onset, length, text.encode())
    path = write(tmp_path / "raw" / f"a.{kind}", kind, signals, marks=marks)
    found = read_edf(path, BOTH)
    called = [(start, stop) for start, stop, _ in found.bad]
    assert called == [(3.5, 5.5), (11, 11.001), (21, 21.5)]
    assert [why for *_, why in found.bad] == [f"annotated {text!r}" for text in list(MARKS)[:3]]
    _, annotations = by_mne(path)
    expected = [each["onset"] for each in annotations if each["description"].upper().startswith("BAD")]
    np.testing.assert_allclose([start for start, _ in called], expected, atol=1e-6)
    write_list(tmp_path / "raw", "file,subject", f"a.{kind},A")
    assert prepare_data(["--dataset", "folder", "--raw", tmp_path / "raw", "--out", tmp_path, "--workers", 1]) == 0
    segments = open_segments(tmp_path / "folder")
    assert segments.table["start"].tolist() == [30]
    dropped = [(piece["start"], piece["seconds"], piece["reason"]) for piece in segments.manifest["dropped"]]
    assert dropped == [(10.0 * i, 10, f"annotated {text!r}") for i, text in enumerate(list(MARKS)[:3])]


@pytest.mark.parametrize(
    "spelling, name",
    [("EEG F7", "F7"), ("F7..", "F7"), ("Fp1.", "FP1"), (" t7 ", "T7"), ("EEG T3", "T7"), ("T4", "T8"),
     ("eeg t5", "P7"), ("T6..", "P8"), ("ECG ECG", "ECG"), ("EEG", "EEG"), ("T10.", "T10"), ("FT 7", "FT7")],
)  # fmt: skip
def test_names_are_normalised(spelling, name):
    assert normalise_name(spelling) == name


@pytest.mark.parametrize(
    "label",
    "EEG F7-REF;F7-LE;EEG F7-RE;F7-A1;F7-A2;F7-M1;F7-M2;F7-Cz;F7-AVG;F7-Ave;EEG F7-Ref;F7-A1A2;F7-A1+A2;F7-(A1+A2)/2;"
    "F7 - M1M2;EEG.F7;f7..;EEG  F7;F7-REF1;F7-CAR;F7-Vref;F7\0\0".split(";"),
)
def test_names_with_a_common_reference(label):
    assert pick_channels(["F7"], ["Fz", label], "x") == {"F7": 1}
    assert pick_channels(["T7"], ["Fz", label.upper().replace("F7", "T3")], "x") == {"T7": 1}


@pytest.mark.parametrize("label", "F7-T3;EEG F7-T3;F7-F3;F7T3;F7-;F7-X;T3-F7;AF7;F7-Pz;F77;F7-Cz".split(";"))
def test_bipolar_channels_never_match(label):
    """Cz is no reference where it leads a bipolar channel."""
    with pytest.raises(ValueError, match="channel F7 is missing"):
        pick_channels(["F7"], ["Fz", label, "Cz-C3"], "x")


@pytest.mark.parametrize(
    "wanted, present, expected",
    [
        (["F7"], ["F7-REF", "F7"], {"F7": 1}),
        (["F7-LE"], ["F7-REF", "F7-LE"], {"F7-LE": 1}),
        (["F7", "F8"], ["F7-A2", "F8", "F8-A1"], {"F7": 0, "F8": 1}),
        (["ECG#2"], ["ECG", "F7", "ECG"], {"ECG#2": 2}),
        (["F7#2", "F8"], ["F7-A1", "F7-A2", "F8"], {"F7#2": 1, "F8": 2}),
        (["MLII|II|V5"], ["V5", "II"], {"II": 1}),
        (["ECG"], ["ECG", "ECG"], {"ECG": 0}),
        (["O1", "T7"], ["EEG T3", "o1.", "Cz"], {"O1": 1, "T7": 0}),
        (["O1", "O2"], ["EEG T3", "o1."], "O2 is missing; expected O1 O2, found EEG T3 o1."),
        (["T7"], ["T3", "T7"], "T7 is there 2 times"),
        (["F7", "F8"], ["F7-A1", "F7-A2", "F8"], "F7 is there 2 times.*F7#2 is the second"),
        (["F7", "F8"], ["F7", "F7", "F8"], "F7 is there 2 times"),
        (["EKG#1"], ["EKG#2", "EKG#1", "EKG"], {"EKG#1": 1}),
        (["ECG#3"], ["ECG", "ECG"], "ECG#3 is missing"),
        (["F7|F8", "F8"], ["F8"], "F8 is taken twice"),
    ],
)
def test_several_channels_of_one_name(wanted, present, expected):
    if isinstance(expected, dict):
        assert pick_channels(wanted, present, "x") == expected
    else:
        with pytest.raises(ValueError, match=f"x: channel {expected}"):
            pick_channels(wanted, present, "x")


@BOTH_KINDS
def test_names_by_flags(tmp_path, kind):
    """--rename, NAME#2 and --ecg-channel; the set bears the names that every set does."""
    signals = edf_signal(0, 20, 160, 13)
    names = ["F7-X1", "F3-REF", *EEG[2:], "F7-X1", "V5", "II"]
    write(tmp_path / "raw" / f"a.{kind}", kind, signals, names)
    write_list(tmp_path / "raw", "file,subject", f"a.{kind},A")
    flags = ["--dataset", "folder", "--raw", tmp_path / "raw", "--out", tmp_path, "--workers", 1, "--normalise", "none"]
    flags += ["--rename", "F7-X1#2=F7", "--ecg-channel", "MLII", "II", "V5"]
    assert prepare_data(flags) == 0 and prepare_data(flags) == 0
    segments = open_segments(tmp_path / "folder")
    assert segments.manifest["channels"] == BOTH
    about = segments.manifest["preprocessing"]
    assert (about["rename"], about["ecg_channel"]) == (["F7-X1#2=F7"], "MLII|II|V5")
    notes = [note["note"] for note in segments.manifest["notes"]]
    assert notes == ["channels by their names without the reference: F3-REF", "II in place of MLII, which is missing"]
    named = write(tmp_path / "named" / f"a.{kind}", kind, signals[[10, *range(1, 10), 12]])
    write_list(named.parent, "file,subject", f"{named.name},A")
    assert prepare_data([*flags[:2], "--raw", named.parent, "--out", tmp_path / "b", *flags[6:10]]) == 0
    expected = open_segments(tmp_path / "b" / "folder").signals
    for modality in BOTH:
        np.testing.assert_array_equal(segments.signals[modality], expected[modality])
    assert prepare_data(flags[:-2]) == 2 and prepare_data([*flags, "--rename", "F7-X1=Cz"]) == 2


@BOTH_KINDS
@pytest.mark.parametrize(
    "cut, stated, seconds, words",
    [
        (-100, 4, 3, ["the header counts 4 records of 1 s, 3 are there", "bytes after the last"]),
        (-100, -1, 3, ["bytes after the last whole record, left out"]),
        (100, 4, 4, ["100 bytes after the last whole record, left out"]),
        (100, -1, 4, ["100 bytes after the last whole record, left out"]),
        (0, 3, 4, ["the header counts 3 records of 1 s, 4 are there and read"]),
        (0, 6, 4, ["the header counts 6 records of 1 s, 4 are there and read"]),
    ],
)
def test_whole_records_are_read_and_the_rest_is_noted(tmp_path, kind, cut, stated, seconds, words):
    signals = edf_signal(0, 4, 160)
    path = write(tmp_path / f"a.{kind}", kind, signals)
    content = path.read_bytes()
    path.write_bytes(content[:cut] if cut < 0 else content + bytes(cut))
    patch(path, 236, b"%-8d" % stated)
    found = read_edf(path, BOTH)
    np.testing.assert_allclose(found.signals["eeg"], signals[:10, : 160 * seconds], atol=step(signals, kind))
    assert len(found.notes) == len(words) and all(word in note for word, note in zip(words, found.notes))
    expected, _ = by_mne(path)
    for name, channel in zip(EEG, found.signals["eeg"]):
        np.testing.assert_allclose(channel, 1e6 * expected[name], rtol=1e-9, atol=1e-9 * np.ptp(channel))


# The header of a file of 11 signals has labels of 16 letters from 256, units from 1312, and fields of 8 letters.
PHYSICAL_MIN, PHYSICAL_MAX, DIGITAL_MAX, SAMPLES = (256 + 11 * width for width in (104, 112, 128, 216))
LIES = [(244, "0"), (244, "-1"), (244, "nan"), (252, "4000"), (SAMPLES, "0"), (SAMPLES, "-160"), (SAMPLES, "many")]
LIES += [(PHYSICAL_MIN, "nan"), (PHYSICAL_MAX, "-1"), (PHYSICAL_MIN, "x"), (DIGITAL_MAX, "x")]


@BOTH_KINDS
@pytest.mark.parametrize("place, text", [*((size, "") for size in (0, 100, 256, 500, 3000, 3072, 3500)), *LIES])
def test_damage_is_refused_in_one_line(tmp_path, kind, place, text):
    """Another field in the header, or what is left of a file has no whole record."""
    path = write(tmp_path / "a", kind, edf_signal(0, 4, 160))
    patch(path, PHYSICAL_MIN, b"-1      ")
    patch(path, place, text.ljust(4 if place == 252 else 8).encode())
    if not text:
        path.write_bytes(path.read_bytes()[:place])
    with pytest.raises(ValueError, match="/a: ") as caught:
        read_edf(path, BOTH)
    assert "\n" not in str(caught.value) and ("download" in str(caught.value) or place in (244, SAMPLES))
