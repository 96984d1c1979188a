"""The sets that are not at hand, in files of exactly their layouts, and a user's own recordings."""

import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io.matlab
from scipy.io import loadmat, savemat

from datasets import amigos, ascertain, dreamer, folder, large_eeg_bci, pspm, way_eeg_gal
from datasets.mat import read_mat
from layouts import DREAMER_COLUMNS, KAYA_NAMES, WAY_NAMES, cell, write_ascertain, write_dreamer, write_kaya
from layouts import write_list, write_pspm, write_pspm_hdf5, write_way
from recordings import BOTH, EEG, edf_signal, read_all, write_edf

ECG = {"ecg": ["ECG"]}


def noise(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def only(reader, raw, channels, *side):
    """The single recording below `raw`."""
    [recording] = read_all(reader, raw, channels, *side)
    return recording


ORDERS = {  # the files of a set, subject by subject, numbers by value -> what is none of it
    way_eeg_gal: ("P2/HS_P2_S1 P2/HS_P2_S2 P10/HS_P10_S1", "P2/WS_P2_S1 P2/P2_AllLifts P2/HS_P2_ST"),
    large_eeg_bci: (
        "CLA-SubjectA-160108-3St-LRHand HaLT-SubjectA-160223-6St-LRHandLegTongue 5F-SubjectB-160309-x "
        "CLA-SubjectB-151019-3St-LRHand", "x/Subjects CLA-Subject1-x",
    ),
    ascertain: ("Movie_P01/ECG_Clip9 Movie_P01/ECG_Clip10 Movie_P02/ECG_Clip1", "elsewhere/ECG_Clip1"),
    pspm: ("RRM1_spike_02 SCRV_9_spike_01 SCRV_9_spike_02_a SCRV_9_spike_02_b", "SCRV_9_cogent_01"),
    amigos: ("Data_Preprocessed_P02 Data_Preprocessed_P10/Data_Preprocessed_P10", "Data_Original_P01"),
    dreamer: ("DREAMER/DREAMER", "DREAMER/other"),
}  # fmt: skip


@pytest.mark.parametrize("reader", ORDERS, ids=lambda reader: reader.__name__)
def test_the_files_of_a_set_in_order(tmp_path, reader):
    own, others = (words.split() for words in ORDERS[reader])
    for name in (own + others)[::-1]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.mat").touch()
    assert [path.relative_to(tmp_path).as_posix()[:-4] for path in reader.sources(tmp_path)] == own


@pytest.mark.parametrize("spelled", ["row", "cell", "characters", "codes"])
def test_way_eeg_gal(tmp_path, spelled):
    """Names as cells, characters or bytes, with blanks; units of 0.1 uV."""
    padded = [name.ljust(6) for name in WAY_NAMES]
    names = {
        "row": None,
        "cell": cell([f"  {name} " for name in WAY_NAMES]),
        "characters": np.array(padded),
        "codes": np.array([list(map(ord, name)) for name in padded], np.uint8),
    }[spelled]
    signal = noise(0, 700, 32)
    write_way(tmp_path / "HS_P1_S1.mat", signal, names=names, samplingrate=np.uint16(500))
    recording = only(way_eeg_gal, tmp_path, {"eeg": ["PO10", "Fp1"]})
    assert (recording.subject, recording.trial, recording.rate, recording.ratings) == ("P1", "S1", {"eeg": 500}, {})
    np.testing.assert_allclose(recording.signals["eeg"], signal[:, [31, 0]].T / 10, rtol=1e-14)


@pytest.mark.parametrize(
    "name, rate, subject, trial, video",
    [
        ("CLA-SubjectA-160108-3St-LRHand", np.uint8(200), "A", "CLA-160108-3St-LRHand", "CLA"),
        ("5F-SubjectB-160408-5St-SGLHand-HFREQ", np.int16(1000), "B", "5F-160408-5St-SGLHand-HFREQ", "5F"),
        ("CLASubjectA1601083StLRHand", 200.0, "A", "CLA-160108-3St-LRHand", "CLA"),
        ("HaLTSubjectA1602236StLRHandLegTongue", 200.0, "A", "HaLT-160223-6St-LRHandLegTongue", "HaLT"),
        ("CLA-SubjectJ-170504-3St-LRHand-Inter", 200.0, "J", "CLA-170504-3St-LRHand-Inter", "CLA"),
        ("5FSubjectB1604085StSGLHandHFREQ", 1000.0, "B", "5F-160408-5St-SGLHand-HFREQ", "5F"),
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


@pytest.mark.parametrize("columns, left", [(3, 1), (5, 1), (6, 4), (7, 4)])
def test_ascertain_has_two_widths(tmp_path, columns, left):
    data = noise(0, 800, columns)
    write_ascertain(tmp_path / "ECGData" / "Movie_P03" / "ECG_Clip7.mat", data, step=1000 / 256)
    for side, column in (("left", left), ("right", left + 1)):
        recording = only(ascertain, tmp_path, ECG, side)
        np.testing.assert_array_equal(recording.signals["ecg"], data[:, column : column + 1].T)
    assert (recording.subject, recording.trial, recording.video) == ("P03", "Clip7", "Clip7")


def write_hdf5(path, data):
    """Data_ECG as MAT 7.3 has it."""
    path.parent.mkdir(parents=True)
    with pytest.importorskip("h5py").File(path, "w", userblock_size=512) as file:
        file.create_dataset("Data_ECG", data=data.T).attrs["MATLAB_class"] = np.bytes_("double")


@pytest.mark.parametrize("rate", [250, 256, 300])  # where a rounded time still tells which sample it is
@pytest.mark.parametrize("rounded, write", [(False, write_ascertain), (True, write_ascertain), (True, write_hdf5)])
def test_ascertain_rate_is_that_of_the_whole_span_and_a_hole_is_a_hole(tmp_path, rate, rounded, write):
    """Times in whole ms tell a rate within some ms of the span. What was lost is NaN, and what follows is in time."""
    data = noise(0, 3600, 3)
    data[:, 0] = 1000 * np.arange(3600) / rate
    lost = np.r_[800:1600, 2000, 3000:3010]
    there = np.delete(data, lost, axis=0)
    times = np.round(there[:, 0]) if rounded else there[:, 0]
    write(tmp_path / "Movie_P01" / "ECG_Clip1.mat", np.column_stack([times, there[:, 1:]]))
    recording = only(ascertain, tmp_path, ECG, "left")
    assert recording.rate["ecg"] == pytest.approx(rate, rel=4 / times[-1] if rounded else 1e-9)
    expected = data[:, 1].copy()
    expected[lost] = np.nan
    np.testing.assert_array_equal(recording.signals["ecg"][0], expected)
    ends = [end for *stretch, why in recording.bad for end in stretch if why == "gap in the file"]
    np.testing.assert_allclose(ends, np.array([800, 1600, 2000, 2001, 3000, 3010]) / rate, atol=0.004)


@pytest.mark.parametrize(
    "times",
    [np.zeros(99), -np.arange(99.0), np.full(99, np.nan), np.r_[0:50, 40:89], np.r_[0:98, np.nan], np.r_[0:98, 1e300]],
)
def test_ascertain_times_that_do_not_rise(tmp_path, times):
    data = noise(0, 99, 3)
    data[:, 0] = times
    write_ascertain(tmp_path / "Movie_P01" / "ECG_Clip1.mat", data)
    with pytest.raises(ValueError, match="ECG_Clip1.mat: Data_ECG: expected times in ms that rise"):
        only(ascertain, tmp_path, ECG, "left")


@pytest.mark.parametrize("dominance", [True, False])
def test_dreamer(tmp_path, dominance):
    """EEG and ECG at their own rates, both ECGs, ratings; the baseline is no trial."""
    people = write_dreamer(tmp_path / "DREAMER" / "DREAMER.mat", subjects=2, dominance=dominance)
    [path] = dreamer.sources(tmp_path)
    for side, column in (("left", 0), ("right", 1)):
        found = list(dreamer.read(path, BOTH, side))
        assert len(found) == 36 and [r.subject for r in found] == ["S01"] * 18 + ["S02"] * 18
        assert [r.trial for r in found[:2]] == ["film01", "film02"] and found[20].video == "film03"
        for i, recording in enumerate(found):
            person, clip = people[i // 18], i % 18
            assert recording.rate == {"eeg": 128, "ecg": 256}
            expected = person["eeg"][clip][:, [DREAMER_COLUMNS.index(name) for name in EEG]].T
            np.testing.assert_array_equal(recording.signals["eeg"], expected)
            np.testing.assert_array_equal(recording.signals["ecg"], person["ecg"][clip][:, column : column + 1].T)
            rated = {"arousal": person["arousal"][clip], "valence": person["valence"][clip]}
            assert recording.ratings == (rated | {"dominance": 3} if dominance else rated)
    assert len(list(dreamer.read(path, ECG))) == 36


@pytest.mark.parametrize("write", [write_pspm, write_pspm_hdf5])
def test_pspm(tmp_path, write):
    """MAT 5 and 7.3; the ECG among other channels, never the one that holds the times of beats."""
    signal = noise(0, 3000)
    channels = [
        ("scr", "uS", 100, noise(1, 300)), ("ecg", "events", 1, np.arange(1, 3.0)), ("marker", "events", 1, np.ones(3)),
        ("ecg", "mV", 1000, signal), ("resp", "V", 100, noise(2, 300)),
    ]  # fmt: skip
    write(tmp_path / "a" / "SCRV_9_spike_07_a.mat", channels, 3.0)
    savemat(tmp_path / "a" / "SCRV_9_cogent_07.mat", {"subject": 7, "data": np.zeros((9, 3))})
    recording = only(pspm, tmp_path, ECG)
    assert (recording.subject, recording.trial, recording.video) == ("SCRV_9_07", "SCRV_9_spike_07_a", "SCRV_9")
    assert recording.rate == {"ecg": 1000} and recording.signals["ecg"].shape == (1, 3000)
    np.testing.assert_array_equal(recording.signals["ecg"][0], signal)


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


def assert_same(found, expected):
    """What we read is what SciPy loaded, whose structs are arrays of records, and strings arrays."""
    kind = expected.dtype.kind if isinstance(expected, np.ndarray) else ""
    if kind == "U" and expected.size < 2:
        expected = "".join(expected.ravel())
    elif kind == "V":
        names = expected.dtype.names
        records = [{name: record[name] for name in names} for record in expected.ravel()]
        expected = records[0] if len(records) == 1 else cell(records).reshape(expected.shape)
    assert type(found) is type(expected), (found, expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name in found:
            assert_same(found[name], expected[name])
    elif not isinstance(found, np.ndarray):
        assert found == expected
    elif found.dtype == object:
        assert found.shape == expected.shape
        for one, other in zip(found.ravel(), expected.ravel()):
            assert_same(one, other)
    else:
        kinds = [(each.shape, each.dtype.kind, each.dtype.itemsize) for each in (found, expected)]
        assert kinds[0] == kinds[1]
        np.testing.assert_array_equal(found, expected)


def everything():
    """Every kind of value that is read, in every type of number."""
    numbers = {f"x{kind}": np.arange(6).reshape(2, 3).astype(kind) for kind in "i1 u1 i2 u2 i4 u4 i8 u8 f4 f8".split()}
    people = np.array([[(1.5, "a"), (2.5, "bc"), (np.nan, "")]], [("age", object), ("name", object)])
    nested = cell([numbers, cell([np.ones((0, 4)), "text", np.array(["two ", "rows"])]), {"deep": {"er": people}}])
    return {**numbers, "z": np.array([[1 + 2j, 3]]), "cube": np.arange(24.0).reshape(2, 3, 4), "nested": nested}


@pytest.mark.parametrize("options", [{}, {"do_compression": True}])
def test_mat_5_equals_scipy(tmp_path, options):
    savemat(tmp_path / "x.mat", everything(), **options)
    (found, _), expected = read_mat(tmp_path / "x.mat", list(everything())), loadmat(tmp_path / "x.mat")
    for name in everything():
        assert_same(found[name], expected[name])


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
        found, _ = read_mat(path, names)
        for name in names:
            if found.get(name) is not None:  # no function, object or sparse matrix
                assert_same(found[name], expected[name])
                compared += 1
    assert compared > 50


def test_five_hundred_lies_in_a_mat_5(tmp_path):
    """Wrong bits and wrong numbers anywhere: read or refused at once (SciPy may crash)."""
    path, random = tmp_path / "x.mat", np.random.default_rng(0)
    savemat(path, everything())
    whole = path.read_bytes()
    for number in range(500):
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


def element(kind, content):
    """An element of a MAT 5 file; those of variables are not padded."""
    padding = bytes(-len(content) % 8 if kind < 14 else 0)
    return kind.to_bytes(4, "little") + len(content).to_bytes(4, "little") + content + padding


def unwanted(kind):
    """A variable `u` of a class that holds no data: of an unknown one, or one whose content is damaged."""
    flags, shape, name = element(6, kind.to_bytes(8, "little")), element(5, b"\1\0\0\0" * 2), element(1, b"u")
    opaque = element(1, b"MCOS") + element(1, b"table")
    return element(14, flags + (name + opaque if kind == 17 else shape + name) + element(14, b"\xff" * 24))


HANDLE = Path(scipy.io.matlab.__file__).parent / "tests" / "data" / "sqr.mat"
BESIDE = {  # what lies beside the variable that is wanted
    "handle": lambda: HANDLE.read_bytes()[128:],
    **{f"class {kind}": lambda kind=kind: unwanted(kind) for kind in (1, 2, 3, 5, 6, 16, 17, 99)},
    "compressed": lambda: element(15, zlib.compress(unwanted(17))),
    "damaged": lambda: element(15, zlib.compress(unwanted(6) + noise(0, 9999).tobytes())[:5000] + bytes(9)),
}


@pytest.mark.parametrize("options", [{}, {"do_compression": True}])
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("first", [True, False])
def test_variables_that_nobody_wants_are_skipped(tmp_path, beside, options, first):
    if beside == "handle" and not HANDLE.exists():
        pytest.skip("SciPy is installed without its test files")
    savemat(tmp_path / "x.mat", {"x": np.arange(9.0)}, **options)
    content, other = (tmp_path / "x.mat").read_bytes(), BESIDE[beside]()
    (tmp_path / "x.mat").write_bytes(content[:128] + other + content[128:] if first else content + other)
    found, notes = read_mat(tmp_path / "x.mat", ["x"])
    np.testing.assert_array_equal(found["x"], np.arange(9.0)[None])
    assert notes == ()


def spare_in_the_variable(content):
    size = int.from_bytes(content[132:136], "little")
    return content[:132] + (size + 9).to_bytes(4, "little") + content[136:] + bytes(9)


KEPT = {  # what a writer did -> how, and of how many bytes the note speaks
    "spare bytes": (spare_in_the_variable, ""),
    "spare zeros at the end": (lambda content: content + bytes(512), "512 "),
    "text at the end": (lambda content: content + b"written by a program", "20 "),
    "a few bytes at the end": (lambda content: content + b"\0\1\2", "3 "),
    "a variable that is damaged": (lambda content: content + element(15, b"damaged"), None),
    "the next variable cut": (lambda content: content + content[128:190], "62 "),
}


@pytest.mark.parametrize("case", KEPT)
def test_bytes_that_are_left_over_are_noted(tmp_path, case):
    change, count = KEPT[case]
    savemat(tmp_path / "x.mat", {"x": np.arange(9.0)}, do_compression=True)
    (tmp_path / "x.mat").write_bytes(change((tmp_path / "x.mat").read_bytes()))
    found, notes = read_mat(tmp_path / "x.mat", ["x"])
    np.testing.assert_array_equal(found["x"], np.arange(9.0)[None])
    assert [note.startswith(f"{count}bytes behind") for note in notes] == [True] * (count is not None)


def test_sizes_as_uint32_and_padding_that_is_missing(tmp_path):
    head = element(6, (9).to_bytes(8, "little")) + element(6, b"\1\0\0\0\3\0\0\0") + element(1, b"x")
    variable = element(14, head + element(2, b"\7\x08\xff")[:-5])
    (tmp_path / "x.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + variable)
    np.testing.assert_array_equal(read_mat(tmp_path / "x.mat", ["x"])[0]["x"], [[7, 8, 255]])


@pytest.mark.parametrize("userblock", [0, 512])
def test_a_mat_7_3_with_things_that_nobody_wants(tmp_path, userblock):
    """An object, a null reference in a cell, and a file without the block that MATLAB leaves before it."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.mat", "w", userblock_size=userblock) as file:
        file.create_dataset("x", data=np.arange(9.0)[:, None]).attrs["MATLAB_class"] = np.bytes_("double")
        file.create_dataset("u", data=np.zeros(6, np.uint32)).attrs["MATLAB_class"] = np.bytes_("table")
        file["link"] = h5py.SoftLink("/gone")
        file.create_dataset("c", data=np.array([[file["x"].ref], [h5py.Reference()]], h5py.ref_dtype))
    found, _ = read_mat(tmp_path / "x.mat", ["x", "c"])
    np.testing.assert_array_equal(found["x"], np.arange(9.0)[None])
    assert found["c"].shape == (1, 2) and found["c"][0, 1] is None


def test_a_list_in_another_encoding(tmp_path):
    (tmp_path / "recordings.csv").write_bytes("file,subject\na.edf,Zoé\n".encode("latin-1"))
    with pytest.raises(ValueError, match="recordings.csv: expected CSV in UTF-8"):
        folder.sources(tmp_path)


def test_folder_rows_of_one_subject_are_brought_together(tmp_path):
    for i in range(4):
        write_edf(tmp_path / f"{i}.edf", edf_signal(i, 1, 160), [*EEG, "ECG"], 160)
    rows = [f"{i}.edf,{'AB'[i % 2]},{'' if i else 'first'},film,{i + 1},{9 - i if i < 3 else ''}" for i in range(4)]
    write_list(tmp_path, "file,subject,trial,video,arousal,valence", *rows)
    found = read_all(folder, tmp_path, ECG)
    assert [(r.subject, r.trial, r.video, r.ratings["arousal"]) for r in found] == [
        ("A", "first", "film", 1), ("A", "2", "film", 3), ("B", "1", "film", 2), ("B", "3", "film", 4)
    ]  # fmt: skip
    np.testing.assert_array_equal([r.ratings["valence"] for r in found], [9, 7, 8, np.nan])


def test_a_list_below_the_list_is_named(tmp_path, monkeypatch):
    for name in ("inner/a.edf", "b.edf"):
        write_edf(tmp_path / name, edf_signal(0, 1, 160), [*EEG, "ECG"], 160)
    write_list(tmp_path, "file,subject", "inner/a.edf,A", "b.edf,B")
    write_list(tmp_path / "inner", "file,subject", "a.edf,other")
    with pytest.raises(ValueError, match="line 2, inner/a.edf: .*inner/recordings.csv is nearer"):
        folder.sources(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert only(folder, Path("../inner"), ECG).subject == "other"


LISTS = [["file;subject;arousal", "a.edf;A;7", ";;"], ["file\tsubject\tarousal", "a.edf\tA\t7.0"]]
LISTS += [["file, subject, arousal", 'a.edf, "A", 7', "", ",,"], ["\ufefffile,subject,arousal\r", "a.edf,A,7\r"]]


@pytest.mark.parametrize("lines", LISTS)
def test_lists_as_spreadsheets_write_them(tmp_path, lines):
    write_edf(tmp_path / "a.edf", edf_signal(0, 1, 160), [*EEG, "ECG"], 160)
    write_list(tmp_path, *lines)
    recording = only(folder, tmp_path, BOTH)
    assert (recording.subject, recording.ratings["arousal"]) == ("A", 7)


@pytest.mark.parametrize(
    "words, lines",
    [
        ("expected the columns file, subject", ["name,subject", "a.edf,A"]),
        ("expected the columns file, subject", ["file,subject,mood", "a.edf,A,1"]),
        ("expected a line for each recording", ["file,subject"]),
        ("line 3: expected 2 values", ["file,subject", "a.edf,A", "b.edf"]),
        ("line 2: expected a file and a subject", ["file,subject", "a.edf,"]),
        ("line 2: expected a file below", ["file,subject", "../a.edf,A"]),
        ("line 2: expected a file below", ["file,subject", "/a.edf,A"]),
        ("line 2, gone.edf: expected the file", ["file,subject", "gone.edf,A"]),
        ("line 3, gone.hea: expected the file", ["file,subject", "a.edf,A", "gone.hea,A"]),
        ("line 3, a.edf: the file is there twice", ["file,subject", "a.edf,A", "a.edf,B"]),
        *(
            (f"line 2, a.edf: arousal: expected .* from 1 to 9, .*{text}", ["file,subject,arousal", f"a.edf,A,{text}"])
            for text in ("high", "inf", "nan", "7_5", "-999", "0.99", "9.01", "1e300", "\u0667")
        ),
    ],
)
def test_lists_that_are_wrong(tmp_path, words, lines):
    write_edf(tmp_path / "a.edf", edf_signal(0, 1, 160), [*EEG, "ECG"], 160)
    write_list(tmp_path, *lines)
    with pytest.raises((ValueError, FileNotFoundError), match=f"recordings.csv: {words}") as caught:
        read_all(folder, tmp_path, ECG)
    assert "\n" not in str(caught.value)
