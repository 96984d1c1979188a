import sys

import edfio
import numpy as np
import pytest
from scipy.io import savemat

from datasets import amigos, bci2000, eegmat, normalise_name, pick_channels
from recordings import (
    AMIGOS_COLUMNS,
    EEG,
    LONG,
    SHORT,
    amigos_signal,
    edf_signal,
    ratings,
    real,
    write_amigos,
    write_edf,
)

BOTH = {"eeg": EEG, "ecg": ["ECG"]}


@pytest.mark.parametrize(
    "spelling, name",
    [("EEG F7", "F7"), ("F7..", "F7"), ("Fp1.", "FP1"), (" t7 ", "T7"), ("EEG T3", "T7"), ("T4", "T8"),
     ("eeg t5", "P7"), ("T6..", "P8"), ("ECG ECG", "ECG"), ("EEG", "EEG"), ("T10.", "T10"), ("FT 7", "FT7")],
)  # fmt: skip
def test_names_are_normalised(spelling, name):
    assert normalise_name(spelling) == name


def test_missing_and_double_channels_print_both_lists():
    assert pick_channels(["O1", "T7"], ["EEG T3", "o1.", "Cz"], "x") == [1, 0]
    with pytest.raises(ValueError, match="x: channel O2 is missing; expected O1 O2, found EEG T3 o1."):
        pick_channels(["O1", "O2"], ["EEG T3", "o1."], "x")
    with pytest.raises(ValueError, match="channel T7 is there 2 times"):
        pick_channels(["T7"], ["T3", "T7"], "x")


def test_amigos_layout(tmp_path):
    """Missing videos, missing ratings, ids from VideoIDs instead of the position, NaN columns, both ECG sides."""
    order = LONG + SHORT[::-1]
    signal, damaged = amigos_signal(1, 1500), amigos_signal(2, 1300)
    damaged[:, 5] = np.nan
    videos = {0: (signal, ratings(2.5, 7)), 5: (damaged, ratings(9, 1)), 19: (amigos_signal(3, 200), None)}
    write_amigos(tmp_path / "Data_Preprocessed_P07.mat", videos, order)
    [path] = amigos.sources(tmp_path)
    found = list(amigos.read(path, BOTH))
    assert [r.trial for r in found] == [r.video for r in found] == [order[0], order[5], order[19]] == ["N1", "80", "4"]
    assert {r.subject for r in found} == {"P07"} and not found[0].simulated
    names = "arousal valence dominance liking familiarity".split()
    assert found[0].ratings == dict(zip(names, (2.5, 7, 5, 5, 5))) and found[2].ratings == {}
    assert (found[1].ratings["arousal"], found[1].ratings["valence"]) == (9, 1)
    for recording, cell in zip(found, (0, 5, 19)):
        assert recording.rate == {"eeg": 128, "ecg": 128}
        expected = videos[cell][0][:, [AMIGOS_COLUMNS.index(name) for name in EEG]].T
        np.testing.assert_array_equal(recording.signals["eeg"], expected)
        np.testing.assert_array_equal(recording.signals["ecg"], videos[cell][0][:, 15:16].T)
    [first, *_] = amigos.read(path, {"ecg": ["ECG"]}, "right")
    np.testing.assert_array_equal(first.signals["ecg"], signal[:, 14:15].T)


def test_an_amigos_rating_may_be_missing(tmp_path):
    path = tmp_path / "Data_Preprocessed_P01.mat"
    write_amigos(path, {0: (amigos_signal(0, 99), ratings(np.nan, 3))})
    [recording] = amigos.read(path, {"eeg": EEG})
    assert np.isnan(recording.ratings["arousal"]) and recording.ratings["valence"] == 3


def test_folders_that_are_links_are_searched(tmp_path):
    (tmp_path / "elsewhere" / "S002").mkdir(parents=True)
    (tmp_path / "raw" / "S001").mkdir(parents=True)
    for name in ("raw/S001/S001R14.edf", "raw/S001/S001R03.edf", "elsewhere/S002/S002R01.edf"):
        (tmp_path / name).touch()
    (tmp_path / "raw" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "raw")  # a ring
    assert [path.stem for path in bci2000.sources(tmp_path / "raw")] == ["S001R03", "S001R14", "S002R01"]


def test_amigos_folders_and_order(tmp_path):
    """Flat and foldered files, and nothing else, by subject."""
    for name in ("Data_Preprocessed_P10/Data_Preprocessed_P10", "Data_Preprocessed_P02", "Data_Original_P01"):
        write_amigos(tmp_path / f"{name}.mat", {})
    assert [path.name[-7:-4] for path in amigos.sources(tmp_path)] == ["P02", "P10"]


@pytest.mark.parametrize(
    "word, videos, order",
    [
        ("joined_data{3}", {2: (np.zeros((99, 16)), None)}, SHORT + LONG),
        ("joined_data{3}", {2: (np.array([["a"] * 17], object), None)}, SHORT + LONG),
        ("joined_data{3}", {2: (np.zeros((99, 17), complex) + 1j, None)}, SHORT + LONG),
        ("VideoIDs{3}", {2: (np.zeros((99, 17)), None)}, [*SHORT[:2], np.zeros((0, 0)), *SHORT[3:], *LONG]),
        ("VideoIDs{3}", {2: (np.zeros((99, 17)), None)}, [*SHORT[:2], "a name far too long", *SHORT[3:], *LONG]),
        ("labels_selfassessment{3}", {2: (np.zeros((99, 17)), [1, 2, 3])}, SHORT + LONG),
        ("labels_selfassessment{3}", {2: (np.zeros((99, 17)), ratings(1e300, 5))}, SHORT + LONG),
    ],
)
def test_amigos_cells_that_lie(tmp_path, word, videos, order):
    path = tmp_path / "Data_Preprocessed_P01.mat"
    write_amigos(path, videos, order)
    with pytest.raises(ValueError) as caught:
        list(amigos.read(path, BOTH))
    assert str(path) in str(caught.value) and word in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "variables", [{}, {"joined_data": np.zeros((1, 20))}, {"joined_data": np.full((20, 1), "a", object)}, {"x": 1}]
)
def test_amigos_without_its_variables(tmp_path, variables):
    savemat(tmp_path / "Data_Preprocessed_P01.mat", variables)
    with pytest.raises(ValueError, match="expected joined_data as a"):
        list(amigos.read(tmp_path / "Data_Preprocessed_P01.mat", BOTH))


@pytest.mark.parametrize("rate", [128, 160])  # that of the header
def test_edf_channels_by_name_whatever_their_order_and_spelling(tmp_path, rate):
    spelled = ["Fz", "EEG F8", "f4..", "EEG T4", "T6", "o2", "O1.", "EEG T5", "T3..", "F3", "EEG F7", "ECG ECG"]
    signal = edf_signal(0, 3, rate, 12)
    write_edf(tmp_path / "S009" / "S009R14.edf", signal, spelled, rate)
    [path] = bci2000.sources(tmp_path)
    [recording] = bci2000.read(path, {"eeg": EEG})
    assert (recording.subject, recording.trial, recording.rate) == ("S009", "R14", {"eeg": rate})
    assert recording.ratings == {}
    step = np.ptp(signal[:11], axis=1).max() / 2**16
    np.testing.assert_allclose(recording.signals["eeg"], signal[10:0:-1], atol=2 * step)


def test_without_edfio_one_line_says_what_to_install(tmp_path, monkeypatch):
    write_edf(tmp_path / "S001R01.edf", edf_signal(0, 2, 160)[:10], EEG, 160)
    monkeypatch.setitem(sys.modules, "edfio", None)
    with pytest.raises(ValueError, match="S001R01.edf: an EDF file, which needs edfio; pip install edfio"):
        list(bci2000.read(tmp_path / "S001R01.edf", {"eeg": EEG}))


def test_real_eegmat_equals_edfio(tmp_path):
    paths = eegmat.sources(real("eegmat"))
    assert len(paths) == 30 and [path.stem for path in paths[:3]] == ["Subject03_1", "Subject03_2", "Subject04_1"]
    [rest], [task] = (list(eegmat.read(path, BOTH)) for path in paths[:2])
    assert (rest.subject, rest.trial, rest.video) == ("Subject03", "Subject03_1", "rest")
    assert (task.subject, task.trial, task.video) == ("Subject03", "Subject03_2", "arithmetic")
    assert rest.ratings == {"arousal": 1} and task.ratings == {"arousal": 9} and rest.rate == {"eeg": 500, "ecg": 500}
    signals = {signal.label: signal.data for signal in edfio.read_edf(paths[0]).signals}
    old = "F7 F3 T3 T5 O1 O2 T6 T4 F4 F8".split()
    np.testing.assert_array_equal(rest.signals["eeg"], [signals[f"EEG {name}"] for name in old])
    np.testing.assert_array_equal(rest.signals["ecg"], [signals["ECG ECG"]])


def field(content, offset, text, width=8):
    return content[:offset] + text.encode().ljust(width) + content[offset + width :]


# The header of the file below: 256 bytes, then 11 signals with label 16, transducer 80, unit 8, physical minimum 8,
# physical maximum 8, digital minimum 8, digital maximum 8, prefiltering 80, samples a record 8, reserved 32.
PHYSICAL_MIN, PHYSICAL_MAX, DIGITAL_MAX, SAMPLES = (256 + 11 * width for width in (104, 112, 128, 216))
DAMAGE = {
    "empty": lambda content: b"",
    "header cut": lambda content: content[:500],
    "data cut": lambda content: content[:-1000],
    "data cut at a record": lambda content: content[: -11 * 2 * 160],
    "more data": lambda content: content + b"\0" * 500,
    "not an EDF": lambda content: b"<html>" * 1000,
    "no records": lambda content: field(content, 236, "0"),
    "record of no length": lambda content: field(content, 244, "0"),
    "record of negative length": lambda content: field(content, 244, "-1"),
    "record of length NaN": lambda content: field(content, 244, "nan"),
    "more signals": lambda content: field(content, 252, "4000", 4),
    "no samples": lambda content: field(content, SAMPLES, "0"),
    "negative samples": lambda content: field(content, SAMPLES, "-160"),
    "samples no number": lambda content: field(content, SAMPLES, "many"),
    "physical range NaN": lambda content: field(content, PHYSICAL_MIN, "nan"),
    "physical range empty": lambda content: field(content, PHYSICAL_MAX, content[PHYSICAL_MIN:][:8].decode()),
    "physical range no number": lambda content: field(content, PHYSICAL_MIN, "x"),
    "digital range turned": lambda content: field(content, DIGITAL_MAX, "-32768"),
    "gaps": lambda content: field(content, 192, "EDF+D", 44),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_edf_is_refused_in_one_line(tmp_path, case):
    path = tmp_path / "S001R01.edf"
    write_edf(path, edf_signal(0, 4, 160), [*EEG, "ECG"], 160)
    path.write_bytes(DAMAGE[case](path.read_bytes()))
    with pytest.raises(ValueError) as caught:
        list(bci2000.read(path, {"eeg": EEG}))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
