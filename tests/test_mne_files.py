"""Recordings in the formats of other recorders against MNE and pyxdf, and BIDS folders written by mne-bids."""

import shutil
from itertools import product

import numpy as np
import pytest

from datasets import folder, mne_files
from layouts import write_list, write_xdf
from prepared import done, refusal
from protocol.segments import open_segments
from recordings import BOTH, EEG, edf_signal, read_all, real, write_edf

RATE, SECONDS = 250, 30


def write_raw(path, marks=((), (), ())):
    """Write what `edf_signal` gives (uV) as MNE does, of which FIF calls O1 bad; return it as (11, n) in V."""
    mne, values = pytest.importorskip("mne"), edf_signal(0, SECONDS, RATE) * 1e-6
    pytest.importorskip({".vhdr": "pybv", ".set": "eeglabio"}.get(path.suffix, "mne"))
    info = mne.create_info([*EEG, "ECG"], RATE, ["eeg"] * 10 + ["ecg"])
    raw = mne.io.RawArray(values, info, first_samp=500, verbose="error")
    raw.set_annotations(mne.Annotations(*marks))
    raw.info["bads"] = ["O1"] * (path.suffix == ".fif")
    if path.suffix == ".fif":
        raw.save(path, fmt="double", verbose="error")
    else:
        mne.export.export_raw(path, raw, verbose="error")
    return values


@pytest.mark.parametrize("name", ["a.vhdr", "a.set", "a_raw.fif"])
def test_signals_and_marks_are_those_of_mne(tmp_path, name):
    mne = pytest.importorskip("mne")
    values = write_raw(tmp_path / name, ([4.0, 12.0, 20.0], [2.0, 3.0, 1.0], ["BAD_move", "boundary", "film"]))
    write_list(tmp_path, "file,subject,arousal", f"{name},A,3")
    [found] = read_all(folder, tmp_path)
    own = mne.io.read_raw(tmp_path / name, verbose="error").get_data()
    np.testing.assert_allclose(found.signals["eeg"][:, :], own[:10] * 1e6, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.signals["ecg"][:, 100:200], own[10:, 100:200] * 1e3, rtol=0, atol=1e-9)
    assert np.abs(own - values).max() <= 2**-23 * np.abs(values).max()  # float32
    assert (found.subject, found.trial, found.units) == ("A", name.split(".")[0], {})
    assert found.rate == {"eeg": RATE, "ecg": RATE}
    marks = [(round(first, 6), round(last, 6)) for first, last, _ in found.bad]
    # Of a boundary, the duration was left out, and the sample after it is bad.
    assert marks == [(4, 6), (12, 12.004)] + [(0, SECONDS)] * (name == "a_raw.fif")
    assert all(word in why for word, (*_, why) in zip(("BAD_move", "boundary", "O1"), found.bad))


def test_the_files_of_a_recording(tmp_path):
    for name in "a.set a.fdt b_raw.fif b_raw-1.fif b_rawer.fif c.cnt c.edf other.vmrk".split():
        (tmp_path / name).touch()
    (tmp_path / "d.vhdr").write_text("[Common Infos]\nDataFile=$b.dat\nMarkerFile = other.vmrk \n")
    (tmp_path / "e.mff").mkdir()
    (tmp_path / "e.mff" / "events.xml").touch()
    (tmp_path / "e.mff" / "signal1.bin").write_text("x")
    for name, expected in {
        "a.set": ["a.fdt", "a.set"],
        "b_raw.fif": ["b_raw.fif", "b_raw-1.fif"],
        "d.vhdr": ["d.dat", "other.vmrk", "d.vhdr"],
        "e.mff": ["signal1.bin", "events.xml"],
    }.items():
        assert [each.name for each in mne_files.files_of(tmp_path / name)] == expected
    write_list(tmp_path, "file,subject", "c.cnt,A", "c.edf,B", "a.set,A")
    assert [path.name for path in folder.sources(tmp_path)] == ["recordings.csv", "c.cnt", "a.set", "a.fdt", "c.edf"]


def test_a_missing_or_changed_companion_is_noticed(tmp_path):
    (tmp_path / "in").mkdir()
    write_raw(tmp_path / "in" / "raw.vhdr")
    write_list(tmp_path / "in", "file,subject", "raw.vhdr,A")
    flags = ("prepare_data.py", "--dataset", "folder", "--raw", "in", "--out", "out")
    done(*flags, cwd=tmp_path)
    sources = open_segments(tmp_path / "out" / "folder").manifest["sources"]
    assert [each["file"] for each in sources] == ["recordings.csv", "raw.vhdr", "raw.eeg", "raw.vmrk"]
    assert [each["trials"] for each in sources] == [[], [], [["A", "raw"]], []]
    with open(tmp_path / "in" / "raw.vmrk", "a") as file:
        file.write("Mk2=Comment,BAD_,251,250,0\n")
    assert "raw.vmrk in in has changed since it was prepared" in refusal(*flags, cwd=tmp_path)
    (tmp_path / "in" / "raw.eeg").unlink()
    assert "raw.vhdr: expected the file in/raw.eeg, found none" in refusal(*flags, "--fresh", cwd=tmp_path)


def test_the_ecg_of_each_file(tmp_path):
    for name, ecg in (("a", "ECG"), ("b", "II")):
        write_edf(tmp_path / f"{name}.edf", edf_signal(ord(name), 2, 160), [*EEG, ecg], 160)
    write_list(tmp_path, "file,subject,ecg", "a.edf,A,", "b.edf,B,II")
    assert [each.channels["ecg"] for each in read_all(folder, tmp_path)] == [["ECG"], ["II"]]
    assert [list(each.signals) for each in read_all(folder, tmp_path, {"eeg": EEG})] == [["eeg"]] * 2


def test_xdf_by_construction(tmp_path):
    """EEG with a break of 4 s, and an ECG of another device that begins 2 s later."""
    pytest.importorskip("pyxdf")
    signal, ecg = edf_signal(0, 30, 200), edf_signal(1, 30, 100)[10:]
    times = 50 + np.arange(6000) / 200
    times[4000:] += 4
    streams = [
        (EEG, ["microvolts"] * 10, 200, times, signal[:10].T),
        (["x", "ECG"], ["", "mV"], 100, 52 + np.arange(3000) / 100, ecg[[0, 0]].T),
        (["nothing"], [""], 0, [], np.zeros((0, 1))),
        ([], [], 0, [52, 53], np.zeros((2, 1))),
    ]
    write_xdf(tmp_path / "a.xdf", streams)
    found = mne_files.read_any(tmp_path / "a.xdf", BOTH)
    assert {m: round(rate, 6) for m, rate in found.rate.items()} == {"eeg": 200, "ecg": 100} and found.units == {}
    expected = np.concatenate([signal[:10, 400:4000], np.full((10, 800), np.nan), signal[:10, 4000:]], axis=1)
    np.testing.assert_array_equal(found.signals["eeg"], expected)
    np.testing.assert_array_equal(found.signals["ecg"], ecg)
    [(first, last, why)] = found.bad
    assert (round(first, 6), round(last, 6), why) == (17.995, 22, "gap in the file")
    write_xdf(tmp_path / "b.xdf", [(names, ["uV"] * 5, 200, times, signal[:5].T) for names in (EEG[:5], EEG[5:])])
    with pytest.raises(ValueError, match="b.xdf: expected the eeg in one stream"):
        mne_files.read_any(tmp_path / "b.xdf", {"eeg": EEG})


def write_bids(top, tables):
    """One person's EDF of 60 s, which names no units, and `tables`: name -> lines, with blanks between the cells."""
    signal = edf_signal(0, 60, 160)
    write_edf(top / "sub-07" / "ses-2" / "eeg" / "sub-07_ses-2_task-film_run-1_eeg.edf", signal, [*EEG, "ECG"], 160)
    (top / "participants.tsv").write_text("participant_id\tage\nsub-07\t33\n")
    for name, lines in tables.items():
        (top / name).write_text("".join("\t".join(line.split()) + "\n" for line in lines))
    return signal


EEG_FOLDER = "sub-07/ses-2/eeg/"
EVENTS = EEG_FOLDER + "sub-07_ses-2_task-film_run-1_events.tsv"


def test_a_rated_event_is_a_trial(tmp_path):
    lines = ["onset duration trial_type arousal valence", "0 5 fixation n/a n/a", "5 20.5 sea 2 n/a"]
    lines += ["20 0 BAD_cough n/a n/a", "30 40 badminton 8 7.5", "-1 2 BAD_start n/a n/a", "90 2 BAD_end n/a n/a"]
    signal = write_bids(tmp_path, {EVENTS: lines})
    first, second = read_all(folder, tmp_path)
    assert [each.subject for each in (first, second)] == ["07", "07"]
    names = [(each.trial, each.video) for each in (first, second)]
    assert names == [("2_film_1_1", "sea"), ("2_film_1_2", "badminton")]
    assert second.ratings == {"arousal": 8, "valence": 7.5} and first.ratings["arousal"] == 2
    assert np.isnan(first.ratings["valence"]) and second.notes[-1] == "the event ends 10 s after the recording"
    step = np.ptp(signal, axis=1).max() / 2**16
    np.testing.assert_allclose(first.signals["eeg"][:, :], signal[:10, 800:4080], atol=2 * step)
    np.testing.assert_allclose(second.signals["ecg"][:, :], signal[10:, 4800:], atol=2 * step)
    [(start, stop, why)] = first.bad
    assert (start, round(stop, 6), why) == (15, 15.00625, "annotated 'BAD_cough'") and second.bad == ()


def test_a_scan_is_rated_and_its_channels_are_described(tmp_path):
    status = {"O2": "bad"}
    channels = ["name units status", *(f"{name} mV {status.get(name, 'good')}" for name in EEG), "ECG V n/a"]
    tables = {
        "sub-07/ses-2/sub-07_ses-2_scans.tsv": ["filename valence", "./eeg/sub-07_ses-2_task-film_run-1_eeg.edf 3"],
        "task-film_channels.tsv": channels,
        "task-arithmetic_channels.tsv": ["name", "x"],
    }
    signal = write_bids(tmp_path, tables)
    [found] = read_all(folder, tmp_path)
    assert (found.trial, found.video, found.ratings["valence"]) == ("2_film_1", "film", 3) and found.units == {}
    assert found.bad == ((0, 60, "O2 is marked as bad"),)
    step = np.ptp(signal, axis=1).max() / 2**16
    for modality, rows in (("eeg", signal[:10]), ("ecg", signal[10:])):
        np.testing.assert_allclose(found.signals[modality][:, :], rows * 1e3, atol=2e3 * step)
    known = {path.relative_to(tmp_path).as_posix() for path in folder.sources(tmp_path)}
    assert known == {*list(tables)[:2], EEG_FOLDER + "sub-07_ses-2_task-film_run-1_eeg.edf"}


@pytest.mark.parametrize(
    "lines, words",
    [
        (["onset duration arousal", "0 0 3"], "line 2: expected an onset and a duration above 0 s"),
        (["onset arousal", "0 3"], "line 2: expected an onset and a duration above 0 s"),
        (["onset duration arousal", "61 5 3"], "line 2: onset: expected a number from 0 to 60"),
        (["onset duration arousal", "0 5 30"], "line 2: arousal: expected a rating .* from 1 to 9"),
        (["onset duration arousal", "0 5"], "line 2: expected 3 values as in the header"),
        (["onset duration arousal", "0 5 3", "4 5 3"], "line 3: expected a rated event after the end of"),
    ],
)
def test_events_that_are_wrong(tmp_path, lines, words):
    write_bids(tmp_path, {EVENTS: lines})
    with pytest.raises(ValueError, match=f"_events.tsv: {words}"):
        read_all(folder, tmp_path)


def test_a_folder_without_recordings_and_one_whose_files_were_not_fetched(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected recordings.csv, or dataset_description.json"):
        folder.sources(tmp_path)
    (tmp_path / "dataset_description.json").touch()
    with pytest.raises(ValueError, match="expected sub-.*_eeg.* as in BIDS, found none; or write recordings.csv"):
        folder.sources(tmp_path)
    (tmp_path / "sub-1" / "eeg").mkdir(parents=True)
    (tmp_path / "sub-1" / "eeg" / "sub-1_task-x_eeg.edf").symlink_to(tmp_path / "annex")
    with pytest.raises(ValueError, match="sub-1_task-x_eeg.edf: expected a file .*, found none; download it"):
        folder.sources(tmp_path)


def test_a_real_bids_folder_of_mne_bids(tmp_path):
    """The EDFs of two people, by a list and as mne-bids files them."""
    mne, mne_bids = pytest.importorskip("mne"), pytest.importorskip("mne_bids")
    tables, signals = [], []
    (tmp_path / "listed").mkdir()
    lines = ["file,subject,trial,video"]
    for subject, (number, task) in product(("03", "04"), (("1", "rest"), ("2", "arithmetic"))):
        path = tmp_path / "listed" / f"Subject{subject}_{number}.edf"
        shutil.copy(real("eegmat", path.name), path)
        lines.append(f"{path.name},{subject},{task},{task}")
        where = mne_bids.BIDSPath(subject=subject, task=task, datatype="eeg", root=tmp_path / "bids")
        raw, form = mne.io.read_raw(path, verbose="error"), "BrainVision" if task == "rest" else "auto"
        mne_bids.write_raw_bids(raw, where, verbose="error", format=form)
    write_list(tmp_path / "listed", *lines)
    suffixes = {path.suffix for path in (tmp_path / "bids").rglob("*_eeg.*")}
    assert suffixes == {".edf", ".vhdr", ".eeg", ".vmrk", ".json"}
    for raw in (tmp_path / "listed", tmp_path / "bids"):
        done("prepare_data.py", "--dataset", "folder", "--raw", raw, "--out", raw, cwd=tmp_path)
        data = open_segments(raw / "folder")
        order = np.argsort(data.table, order=["subject", "trial", "start"])
        tables.append(data.table[["subject", "trial", "video", "start"]][order].tolist())
        signals.append([data.signals[modality][order] for modality in BOTH])
    assert tables[0] == tables[1]
    for listed, filed in zip(*signals):
        np.testing.assert_allclose(filed, listed, rtol=0, atol=1e-6)
