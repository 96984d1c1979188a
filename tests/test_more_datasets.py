"""The sets that are not at hand, in files of exactly their layouts, and a user's own recordings."""

import sys
import time
from pathlib import Path

import edfio
import numpy as np
import pytest
import scipy.io.matlab
from scipy.io import loadmat, savemat
from scipy.sparse import coo_array

from datasets import ascertain, dreamer, folder, large_eeg_bci, pspm, way_eeg_gal
from datasets.mat import read_mat
from layouts import (
    DREAMER_COLUMNS,
    KAYA_NAMES,
    WAY_NAMES,
    cell,
    write_ascertain,
    write_dreamer,
    write_kaya,
    write_list,
    write_pspm,
    write_pspm_hdf5,
    write_way,
    write_wfdb,
)
from recordings import EEG, edf_signal, real, write_edf

ECG = {"ecg": ["ECG"]}


def noise(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def only(reader, raw, channels, *side):
    """The single recording below `raw`."""
    [recording] = [r for path in reader.sources(raw) for r in reader.read(path, channels, *side)]
    return recording


# ---- WAY-EEG-GAL ----------------------------------------------------------------------------------------------------


def test_way_eeg_gal(tmp_path):
    """Names with blanks, units of 0.1 uV, and P2 before P10; windows and lists of lifts are left alone."""
    signal = noise(0, 700, 32)
    for name in ("P10/HS_P10_S1", "P2/HS_P2_S2", "P2/HS_P2_S1", "P2/WS_P2_S1", "P2/P2_AllLifts", "P2/HS_P2_ST"):
        write_way(tmp_path / f"{name}.mat", signal)
    paths = way_eeg_gal.sources(tmp_path)
    assert [path.stem for path in paths] == ["HS_P2_S1", "HS_P2_S2", "HS_P10_S1"]
    found = [r for path in paths for r in way_eeg_gal.read(path, {"eeg": EEG})]
    assert [(r.subject, r.trial) for r in found] == [("P2", "S1"), ("P2", "S2"), ("P10", "S1")]
    assert found[0].rate == {"eeg": 500} and found[0].ratings == {}
    expected = signal[:, [WAY_NAMES.index(name) for name in EEG]].T / 10
    np.testing.assert_allclose(found[0].signals["eeg"], expected, rtol=1e-14)


@pytest.mark.parametrize("spelled", ["cell", "characters", "codes"])
def test_names_as_cells_characters_or_bytes(tmp_path, spelled):
    padded = [name.ljust(6) for name in WAY_NAMES]
    names = {
        "cell": cell([f"  {name} " for name in WAY_NAMES]),
        "characters": np.array(padded),
        "codes": np.array([list(map(ord, name)) for name in padded], np.uint8),
    }[spelled]
    signal = noise(0, 700, 32)
    write_way(tmp_path / "HS_P1_S1.mat", signal, names=names, samplingrate=np.uint16(500))
    recording = only(way_eeg_gal, tmp_path, {"eeg": ["PO10", "Fp1"]})
    np.testing.assert_allclose(recording.signals["eeg"], signal[:, [31, 0]].T / 10, rtol=1e-14)


# ---- Large-EEG-BCI --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, rate, subject, trial, video",
    [
        ("CLA-SubjectA-160108-3St-LRHand", np.uint8(200), "A", "CLA-160108-3St-LRHand", "CLA"),
        ("5F-SubjectB-160408-5St-SGLHand-HFREQ", np.int16(1000), "B", "5F-160408-5St-SGLHand-HFREQ", "5F"),
    ],
)
def test_large_eeg_bci(tmp_path, name, rate, subject, trial, video):
    """Old names of four channels; a rate of 200 as uint8, whose double is 144."""
    signal = noise(0, 900, 22)
    write_kaya(tmp_path / f"{name}.mat", signal, rate)
    recording = only(large_eeg_bci, tmp_path, {"eeg": EEG})
    assert (recording.subject, recording.trial, recording.video) == (subject, trial, video)
    assert recording.rate["eeg"] == int(rate) and type(recording.rate["eeg"]) is float
    old = {"T7": "T3", "T8": "T4", "P7": "T5", "P8": "T6"}
    expected = signal[:, [KAYA_NAMES.index(old.get(name, name)) for name in EEG]].T
    np.testing.assert_array_equal(recording.signals["eeg"], expected)


def test_large_eeg_bci_subjects_are_contiguous(tmp_path):
    for name in ("HaLT-SubjectA-160223-6St-LRHandLegTongue", "CLA-SubjectB-151019-3St-LRHand", "5F-SubjectB-160309-x"):
        write_kaya(tmp_path / f"{name}.mat", noise(0, 10, 22), 200)
    write_kaya(tmp_path / "CLA-SubjectA-160108-3St-LRHand.mat", noise(0, 10, 22), 200)
    assert [path.name[:12] for path in large_eeg_bci.sources(tmp_path)] == [
        "CLA-SubjectA", "HaLT-Subject", "5F-SubjectB-", "CLA-SubjectB"
    ]  # fmt: skip


# ---- ASCERTAIN ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns, left", [(3, 1), (5, 1), (6, 4), (7, 4)])
def test_ascertain_has_two_widths(tmp_path, columns, left):
    data = noise(0, 800, columns)
    write_ascertain(tmp_path / "ECGData" / "Movie_P03" / "ECG_Clip7.mat", data, step=1000 / 256)
    for side, column in (("left", left), ("right", left + 1)):
        recording = only(ascertain, tmp_path, ECG, side)
        np.testing.assert_array_equal(recording.signals["ecg"], data[:, column : column + 1].T)
    assert (recording.subject, recording.trial, recording.video) == ("P03", "Clip7", "Clip7")


def test_ascertain_rate_is_that_of_the_median_step(tmp_path):
    data = noise(0, 800, 3)
    write_ascertain(tmp_path / "Movie_P01" / "ECG_Clip1.mat", data, step=1000 / 256)
    data[400:, 0] += 5000  # a jump in the clock moves the mean step, and not the median
    savemat(tmp_path / "Movie_P01" / "ECG_Clip1.mat", {"Data_ECG": data})
    assert only(ascertain, tmp_path, ECG, "left").rate["ecg"] == pytest.approx(256, rel=1e-9)


def test_ascertain_clips_in_order(tmp_path):
    for subject, clip in (("P02", 1), ("P01", 10), ("P01", 9)):
        write_ascertain(tmp_path / f"Movie_{subject}" / f"ECG_Clip{clip}.mat", noise(0, 99, 3), step=4)
    write_ascertain(tmp_path / "elsewhere" / "ECG_Clip1.mat", noise(0, 99, 3), step=4)
    found = [r for path in ascertain.sources(tmp_path) for r in ascertain.read(path, ECG, "left")]
    assert [(r.subject, r.trial) for r in found] == [("P01", "Clip9"), ("P01", "Clip10"), ("P02", "Clip1")]


@pytest.mark.parametrize("times", [np.zeros(99), -np.arange(99.0), np.full(99, np.nan)])
def test_ascertain_times_that_do_not_rise(tmp_path, times):
    data = noise(0, 99, 3)
    data[:, 0] = times
    write_ascertain(tmp_path / "Movie_P01" / "ECG_Clip1.mat", data)
    with pytest.raises(ValueError, match="ECG_Clip1.mat: Data_ECG: expected times in ms that rise"):
        only(ascertain, tmp_path, ECG, "left")


# ---- DREAMER --------------------------------------------------------------------------------------------------------


def test_dreamer(tmp_path):
    """EEG and ECG at their own rates, both ECGs, ratings; the baseline is no trial."""
    people = write_dreamer(tmp_path / "DREAMER" / "DREAMER.mat", subjects=2)
    [path] = dreamer.sources(tmp_path)
    for side, column in (("left", 0), ("right", 1)):
        found = list(dreamer.read(path, {"eeg": EEG, **ECG}, side))
        assert len(found) == 36 and [r.subject for r in found] == ["S01"] * 18 + ["S02"] * 18
        assert [r.trial for r in found[:2]] == ["film01", "film02"] and found[20].video == "film03"
        for i, recording in enumerate(found):
            person, clip = people[i // 18], i % 18
            assert recording.rate == {"eeg": 128, "ecg": 256}
            expected = person["eeg"][clip][:, [DREAMER_COLUMNS.index(name) for name in EEG]].T
            np.testing.assert_array_equal(recording.signals["eeg"], expected)
            np.testing.assert_array_equal(recording.signals["ecg"], person["ecg"][clip][:, column : column + 1].T)
            rated = {"arousal": person["arousal"][clip], "valence": person["valence"][clip], "dominance": 3}
            assert recording.ratings == rated
    assert len(list(dreamer.read(path, ECG))) == 36


def test_a_dreamer_file_without_dominance(tmp_path):
    write_dreamer(tmp_path / "DREAMER.mat", subjects=1)
    whole = loadmat(tmp_path / "DREAMER.mat")["DREAMER"]
    person = {name: whole["Data"][0, 0][0, 0][name][0, 0] for name in ("EEG", "ECG", "ScoreArousal", "ScoreValence")}
    rates = {name: whole[name][0, 0] for name in ("EEG_SamplingRate", "ECG_SamplingRate")}
    savemat(tmp_path / "DREAMER.mat", {"DREAMER": {"Data": cell([person], column=False), **rates}})
    first, *_ = dreamer.read(tmp_path / "DREAMER.mat", ECG)
    assert "dominance" not in first.ratings and first.ratings["arousal"] == person["ScoreArousal"][0, 0]


# ---- PsPM -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_pspm, write_pspm_hdf5])
def test_pspm(tmp_path, write):
    """MAT 5 and 7.3; the ECG among other channels, never the one that holds the times of beats."""
    signal = noise(0, 3000)
    channels = [
        ("scr", "uS", 100, noise(1, 300)), ("ecg", "events", 1, np.arange(1, 3.0)), ("marker", "events", 1, np.ones(3)),
        ("ecg", "mV", 1000, signal), ("resp", "V", 100, noise(2, 300)),
    ]  # fmt: skip
    write(tmp_path / "FR" / "FR_spike_07.mat", channels, 3.0)
    savemat(tmp_path / "FR" / "FR_cogent_07.mat", {"subject": 7, "data": np.zeros((9, 3))})
    recording = only(pspm, tmp_path, ECG)
    assert (recording.subject, recording.trial, recording.video) == ("FR_07", "FR_spike_07", "FR")
    assert recording.rate == {"ecg": 1000} and recording.signals["ecg"].shape == (1, 3000)
    np.testing.assert_array_equal(recording.signals["ecg"][0], signal)


def test_pspm_subjects_of_two_sets_stay_apart(tmp_path):
    for name in ("SCRV_9_spike_02_a", "RRM1_spike_02", "SCRV_9_spike_02_b", "SCRV_9_spike_01"):
        write_pspm(tmp_path / f"{name}.mat", [("ecg", "mV", 100, noise(0, 300))], 3.0)
    found = [r for path in pspm.sources(tmp_path) for r in pspm.read(path, ECG)]
    assert [r.subject for r in found] == ["RRM1_02", "SCRV_9_01", "SCRV_9_02", "SCRV_9_02"]


def test_pspm_refuses_what_it_is_not(tmp_path):
    path = tmp_path / "FR_spike_01.mat"
    write_pspm(path, [("ecg", "events", 1, np.ones(3)), ("scr", "uS", 10, noise(0, 30))], 3.0)
    with pytest.raises(ValueError, match="expected a channel ecg, found ecg in events, scr in uS"):
        only(pspm, tmp_path, ECG)
    write_pspm(path, [("ecg", "mV", 10, noise(0, 300))], 3.0)  # a rate that the length contradicts
    with pytest.raises(ValueError, match="expected 3 s .*of one ECG at 10 Hz"):
        only(pspm, tmp_path, ECG)
    savemat(path, {"data": cell([1])})
    with pytest.raises(ValueError, match="no infos"):
        only(pspm, tmp_path, ECG)


def test_without_h5py_one_line_says_what_to_install(tmp_path, monkeypatch):
    write_pspm_hdf5(tmp_path / "FR_spike_01.mat", [("ecg", "mV", 100, noise(0, 300))], 3.0)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match="FR_spike_01.mat: a MAT 7.3 file, which needs h5py; pip install h5py"):
        only(pspm, tmp_path, ECG)


# ---- MAT 5 ----------------------------------------------------------------------------------------------------------


def plain(value):
    """What SciPy loaded, in the objects of datasets/mat.py."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "OVU":
        return value
    if value.dtype.kind == "U" and value.size < 2:
        return "".join(value.ravel())
    if value.dtype.kind == "U":
        return value
    names = value.dtype.names
    items = [{name: plain(item[name]) for name in names} if names else plain(item) for item in value.ravel()]
    if names and len(items) == 1:
        return items[0]
    return cell(items).reshape(value.shape) if items else np.empty(value.shape, object)


def assert_same(found, expected):
    assert type(found) is type(expected), (found, expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name in found:
            assert_same(found[name], expected[name])
    elif isinstance(found, np.ndarray):
        assert found.shape == expected.shape
        if found.dtype == object:
            for one, other in zip(found.ravel(), expected.ravel()):
                assert_same(one, other)
        else:
            assert found.dtype.kind == expected.dtype.kind and found.dtype.itemsize == expected.dtype.itemsize
            np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


def everything():
    """Every kind of value that is read, in every type of number."""
    numbers = {f"x{kind}": np.arange(6).reshape(2, 3).astype(kind) for kind in "i1 u1 i2 u2 i4 u4 i8 u8 f4 f8".split()}
    people = np.array([[(1.5, "a"), (2.5, "bc"), (np.nan, "")]], [("age", object), ("name", object)])
    nested = cell([numbers, cell([np.ones((0, 4)), "text", np.array(["two ", "rows"])]), {"deep": {"er": people}}])
    return {**numbers, "z": np.array([[1 + 2j, 3]]), "cube": np.arange(24.0).reshape(2, 3, 4), "nested": nested}


@pytest.mark.parametrize("options", [{}, {"do_compression": True}])
def test_mat_5_equals_scipy(tmp_path, options):
    savemat(tmp_path / "x.mat", everything(), **options)
    found, expected = read_mat(tmp_path / "x.mat", list(everything())), loadmat(tmp_path / "x.mat")
    for name in everything():
        assert_same(found[name], plain(expected[name]))


def test_mat_5_equals_scipy_on_files_that_matlab_wrote():
    """SciPy's own test files: versions 5 to 7.4, both orders of bytes, compressed or not."""
    folder, compared = Path(scipy.io.matlab.__file__).parent / "tests" / "data", 0
    if not folder.exists():
        pytest.skip("SciPy is installed without its test files")
    unlike = ("nasty_duplicate_fieldnames.mat", "test_empty_struct.mat")  # where SciPy has objects of its own
    for path in sorted(folder.glob("*.mat")):
        if path.read_bytes()[124:128] not in (b"\x00\x01IM", b"\x01\x00MI") or path.name in unlike:
            continue
        try:
            expected = loadmat(path)
        except Exception:  # damaged for SciPy's tests
            continue
        names = [name for name in expected if not name.startswith("__")]
        found = read_mat(path, names)
        for name in names:
            if found.get(name) is not None:  # no function, object or sparse matrix
                assert_same(found[name], plain(expected[name]))
                compared += 1
    assert compared > 50


def test_two_thousand_lies_in_a_mat_5(tmp_path):
    """Wrong bits and wrong numbers anywhere: read or refused at once (SciPy may crash)."""
    path, random = tmp_path / "x.mat", np.random.default_rng(0)
    savemat(path, everything())
    whole = path.read_bytes()
    for number in range(2000):
        content = bytearray(whole)
        for place in random.integers(128, len(whole), random.integers(1, 6)):
            if random.integers(2):
                content[place] ^= 1 << random.integers(8)
            else:
                lie = random.choice([0, 1, 4, 14, 15, 10**6, 2**31 - 1, 2**31, 2**32 - 1])
                content[place - place % 4 : place - place % 4 + 4] = int(lie).to_bytes(4, "little")
        path.write_bytes(content)
        started = time.process_time()
        try:
            read_mat(path, list(everything()))
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        assert time.process_time() - started < 2, number


def test_variables_that_nobody_wants_are_no_reason_to_refuse(tmp_path):
    """A sparse matrix beside the data, and spare bytes behind a compressed variable."""
    savemat(tmp_path / "x.mat", {"sparse": coo_array(np.eye(3)), "x": np.arange(9.0)}, do_compression=True)
    content = (tmp_path / "x.mat").read_bytes()
    np.testing.assert_array_equal(read_mat(tmp_path / "x.mat", ["x"])["x"], np.arange(9.0)[None])
    size = int.from_bytes(content[132:136], "little")
    spare = content[:132] + (size + 8).to_bytes(4, "little") + content[136 : 136 + size] + b"\0" * 8
    (tmp_path / "x.mat").write_bytes(spare + content[136 + size :])
    np.testing.assert_array_equal(read_mat(tmp_path / "x.mat", ["x"])["x"], np.arange(9.0)[None])


# ---- a user's own recordings ----------------------------------------------------------------------------------------


def test_folder_of_edf_and_bdf(tmp_path):
    signal = edf_signal(0, 4, 160)
    names = [f"EEG {name}" for name in EEG] + ["ECG ECG"]
    write_edf(tmp_path / "a" / "one.edf", signal, names, 160)
    edfio.Bdf([edfio.BdfSignal(s, 160, label=n) for s, n in zip(signal, names)]).write(tmp_path / "two.bdf")
    write_list(tmp_path, "file,subject,arousal", "two.bdf,Bob,7.5", "a/one.edf,Ann,")
    paths = folder.sources(tmp_path)
    assert [path.name for path in paths] == ["recordings.csv", "two.bdf", "one.edf"]
    two, one = (r for path in paths for r in folder.read(path, {"eeg": ["F8", "F7"], "ecg": ["ECG"]}))
    assert (one.subject, one.trial, one.video, two.subject, two.trial) == ("Ann", "one", "", "Bob", "two")
    assert two.ratings["arousal"] == 7.5
    assert np.isnan([one.ratings["arousal"], one.ratings["valence"], two.ratings["valence"]]).all()
    for recording, bits in ((one, 16), (two, 24)):
        step = np.ptp(signal, axis=1).max() / 2**bits
        assert recording.rate == {"eeg": 160, "ecg": 160}
        np.testing.assert_allclose(recording.signals["eeg"], signal[[9, 0]], atol=2 * step)
        np.testing.assert_allclose(recording.signals["ecg"], signal[10:], atol=2 * step)


def test_a_recording_that_was_not_closed_and_one_cut_short(tmp_path):
    path = tmp_path / "a.edf"
    write_edf(path, edf_signal(0, 3, 160), [*EEG, "ECG"], 160)
    write_list(tmp_path, "file,subject", "a.edf,Ann")
    whole, content = only(folder, tmp_path, ECG).signals["ecg"], path.read_bytes()
    path.write_bytes(content[:236] + b"-1      " + content[244:])
    np.testing.assert_array_equal(only(folder, tmp_path, ECG).signals["ecg"], whole)
    path.write_bytes(content[:236] + b"-1      " + content[244:-100])
    with pytest.raises(ValueError, match="a.edf: expected an EDF file, found a damaged one"):
        only(folder, tmp_path, ECG)


def test_a_folder_that_is_named_from_elsewhere(tmp_path, monkeypatch):
    write_edf(tmp_path / "mine" / "a.edf", edf_signal(0, 1, 160), [*EEG, "ECG"], 160)
    write_list(tmp_path / "mine", "file,subject", "a.edf,Ann")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert only(folder, Path("../mine"), ECG).subject == "Ann"


def test_gaps_of_a_bdf(tmp_path):
    path = tmp_path / "a.bdf"
    edfio.Bdf([edfio.BdfSignal(s, 160, label=n) for s, n in zip(edf_signal(0, 4, 160), [*EEG, "ECG"])]).write(path)
    content = path.read_bytes()
    path.write_bytes(content[:192] + b"BDF+D".ljust(44) + content[236:])
    write_list(tmp_path, "file,subject", "a.bdf,A")
    with pytest.raises(ValueError, match="a.bdf: expected a continuous recording, found one with gaps"):
        only(folder, tmp_path, ECG)


def test_a_list_as_excel_writes_it(tmp_path):
    (tmp_path / "recordings.csv").write_bytes("\ufefffile,subject\r\na.edf,A\r\n".encode())
    (tmp_path / "a.edf").touch()
    assert [path.name for path in folder.sources(tmp_path)] == ["recordings.csv", "a.edf"]


def test_a_list_in_another_encoding(tmp_path):
    (tmp_path / "recordings.csv").write_bytes("file,subject\na.edf,Zoé\n".encode("latin-1"))
    with pytest.raises(ValueError, match="recordings.csv: expected CSV in UTF-8"):
        folder.sources(tmp_path)


def test_folder_rows_of_one_subject_are_brought_together(tmp_path):
    for i in range(4):
        write_edf(tmp_path / f"{i}.edf", edf_signal(i, 1, 160), [*EEG, "ECG"], 160)
    rows = [f"{i}.edf,{'AB'[i % 2]},trial {i},film,{i + 1},{9 - i}" for i in range(4)]
    write_list(tmp_path, "file,subject,trial,video,arousal,valence", *rows)
    found = [r for path in folder.sources(tmp_path) for r in folder.read(path, ECG)]
    assert [(r.subject, r.trial, r.video, r.ratings["arousal"], r.ratings["valence"]) for r in found] == [
        ("A", "trial 0", "film", 1, 9), ("A", "trial 2", "film", 3, 7),
        ("B", "trial 1", "film", 2, 8), ("B", "trial 3", "film", 4, 6),
    ]  # fmt: skip


def test_a_list_below_the_list_is_named(tmp_path):
    for name in ("inner/a.edf", "b.edf"):
        write_edf(tmp_path / name, edf_signal(0, 1, 160), [*EEG, "ECG"], 160)
    write_list(tmp_path, "file,subject", "inner/a.edf,A", "b.edf,B")
    write_list(tmp_path / "inner", "file,subject", "a.edf,other")
    with pytest.raises(ValueError, match="line 2, inner/a.edf: .*inner/recordings.csv is nearer"):
        folder.sources(tmp_path)
    assert only(folder, tmp_path / "inner", ECG).subject == "other"


def test_folder_of_wfdb(tmp_path):
    pytest.importorskip("wfdb")
    signal = np.random.default_rng(0).integers(-2000, 2000, (500, 2))
    write_wfdb(tmp_path / "r" / "rec7", signal, ["EEG F7", "II"], rate=250, gain=200, baseline=10, file="other.dat")
    write_list(tmp_path, "file,subject", "r/rec7.hea,Ann")
    paths = folder.sources(tmp_path)
    assert [path.name for path in paths] == ["recordings.csv", "rec7.hea", "other.dat"]
    [recording] = [r for path in paths for r in folder.read(path, {"eeg": ["F7"], "ecg": ["II"]})]
    assert recording.rate == {"eeg": 250, "ecg": 250} and recording.source == paths[2]
    np.testing.assert_allclose(recording.signals["eeg"][0], (signal[:, 0] - 10) / 200, rtol=1e-12)
    np.testing.assert_allclose(recording.signals["ecg"][0], (signal[:, 1] - 10) / 200, rtol=1e-12)


def test_every_signal_file_of_a_wfdb_record_is_known(tmp_path):
    pytest.importorskip("wfdb")
    for name, channel in (("a", "EEG F7"), ("b", "II")):
        write_wfdb(tmp_path / name, noise(0, 500)[:, None] // 1, [channel], rate=250)
    lines = [(tmp_path / f"{name}.hea").read_text().splitlines()[1] for name in "ab"]
    (tmp_path / "both.hea").write_text("\n".join(["both 2 250 500", *lines]) + "\n")
    write_list(tmp_path, "file,subject", "both.hea,Ann")
    paths = folder.sources(tmp_path)
    assert [path.name for path in paths] == ["recordings.csv", "both.hea", "a.dat", "b.dat"]
    [recording] = [r for path in paths for r in folder.read(path, {"eeg": ["F7"], "ecg": ["II"]})]
    assert recording.signals["eeg"].shape == recording.signals["ecg"].shape == (1, 500)


def test_real_wfdb_equals_its_bytes(tmp_path):
    """Format 212: two integers of 12 bits in three bytes."""
    pytest.importorskip("wfdb")
    lines = real("mitdb", "100.hea").read_text().splitlines()
    header = [line.split() for line in lines if line and not line.startswith("#")]
    assert header[0][:3] == ["100", "2", "360"] and header[1][1] == "212"
    for name in ("100.hea", "100.dat"):
        (tmp_path / name).write_bytes(real("mitdb", name).read_bytes())
    write_list(tmp_path, "file,subject", "100.hea,100")
    recording = only(folder, tmp_path, {"ecg": ["MLII"]})
    low, middle, _ = np.frombuffer((tmp_path / "100.dat").read_bytes(), np.uint8).reshape(-1, 3).T.astype(int)
    counts = low + (middle % 16) * 256
    counts -= 4096 * (counts >= 2048)
    expected = (counts - int(header[1][4])) / float(header[1][2])
    np.testing.assert_allclose(recording.signals["ecg"][0], expected, rtol=1e-12)
    assert recording.rate == {"ecg": 360}


def test_without_wfdb_one_line_says_what_to_install(tmp_path, monkeypatch):
    write_wfdb(tmp_path / "rec", np.zeros((9, 1), int), ["ECG"], rate=250)
    write_list(tmp_path, "file,subject", "rec.hea,Ann")
    monkeypatch.setitem(sys.modules, "wfdb", None)
    with pytest.raises(ValueError, match="rec.hea: a WFDB record, which needs wfdb; pip install wfdb"):
        only(folder, tmp_path, ECG)


@pytest.mark.parametrize(
    "words, lines",
    [
        ("expected the columns file, subject", ["name,subject", "a.edf,A"]),
        ("expected the columns file, subject", ["file;subject", "a.edf;A"]),
        ("expected the columns file, subject", ["file,subject,mood", "a.edf,A,1"]),
        ("expected a line for each recording", ["file,subject"]),
        ("line 3: expected 2 values", ["file,subject", "a.edf,A", "b.edf"]),
        ("line 2: expected a file and a subject", ["file,subject", "a.edf,"]),
        ("line 2: expected a file below", ["file,subject", "../a.edf,A"]),
        ("line 2: expected a file below", ["file,subject", "/a.edf,A"]),
        ("line 2, gone.edf: expected the file", ["file,subject", "gone.edf,A"]),
        ("line 3, gone.hea: expected the file", ["file,subject", "a.edf,A", "gone.hea,A"]),
        ("line 3, a.edf: the file is there twice", ["file,subject", "a.edf,A", "a.edf,B"]),
        ("line 2, a.txt: expected an .edf, .bdf or .hea file", ["file,subject", "a.txt,A"]),
        ("line 2, a.edf: arousal: expected a number or nothing, found high", ["file,subject,arousal", "a.edf,A,high"]),
        ("line 2, a.edf: valence: expected a number or nothing, found inf", ["file,subject,valence", "a.edf,A,inf"]),
    ],
)
def test_lists_that_are_wrong(tmp_path, words, lines):
    write_edf(tmp_path / "a.edf", edf_signal(0, 1, 160), [*EEG, "ECG"], 160)
    (tmp_path / "a.txt").write_text("0 1 2")
    write_list(tmp_path, *lines)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        [r for path in folder.sources(tmp_path) for r in folder.read(path, ECG)]
    assert words in str(caught.value) and "recordings.csv" in str(caught.value) and "\n" not in str(caught.value)
