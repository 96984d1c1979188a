import json
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from scipy.io import savemat

from datasets import amigos, bci2000, folder, not_read, plain_name, pspm
from layouts import write_list, write_pspm
from prepared import ROOT
from recordings import AMIGOS_COLUMNS, BOTH, EEG, LONG, SHORT, amigos_signal, edf_signal, ratings, read_all
from recordings import write_amigos, write_edf


def test_amigos_layout(tmp_path):
    """Missing videos, missing ratings, ids from VideoIDs instead of the position, NaN columns, both ECG sides."""
    order = LONG + SHORT[::-1]
    signal, damaged = amigos_signal(1, 1500), amigos_signal(2, 1300)
    damaged[:, 5] = np.nan
    videos = {0: (signal, ratings(2.5, 7)), 5: (damaged, ratings(np.nan, 1)), 19: (amigos_signal(3, 200), None)}
    write_amigos(tmp_path / "Data_Preprocessed_P07.mat", videos, order)
    [path] = amigos.sources(tmp_path)
    found = list(amigos.read(path, BOTH))
    assert [r.trial for r in found] == [r.video for r in found] == [order[0], order[5], order[19]] == ["N1", "80", "4"]
    assert {r.subject for r in found} == {"P07"} and not found[0].simulated
    names = "arousal valence dominance liking familiarity".split()
    assert found[0].ratings == dict(zip(names, (2.5, 7, 5, 5, 5))) and found[2].ratings == {}
    assert np.isnan(found[1].ratings["arousal"]) and found[1].ratings["valence"] == 1
    for recording, cell in zip(found, (0, 5, 19)):
        assert recording.rate == {"eeg": 128, "ecg": 128}
        expected = videos[cell][0][:, [AMIGOS_COLUMNS.index(name) for name in EEG]].T
        np.testing.assert_array_equal(recording.signals["eeg"], expected)
        np.testing.assert_array_equal(recording.signals["ecg"], videos[cell][0][:, 15:16].T)
    [first, *_] = amigos.read(path, {"ecg": ["ECG"]}, "right")
    np.testing.assert_array_equal(first.signals["ecg"], signal[:, 14:15].T)


def test_folders_that_are_links_are_searched(tmp_path):
    (tmp_path / "elsewhere" / "S002").mkdir(parents=True)
    (tmp_path / "raw" / "S001").mkdir(parents=True)
    for name in ("raw/S001/S001R14.edf", "raw/S001/S001R03.edf", "elsewhere/S002/S002R01.edf"):
        (tmp_path / name).touch()
    (tmp_path / "raw" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "raw")  # a ring
    assert [path.stem for path in bci2000.sources(tmp_path / "raw")] == ["S001R03", "S001R14", "S002R01"]


SPELLINGS = {
    "composed": "Zo\u00e9".encode(),
    "decomposed": unicodedata.normalize("NFD", "Zo\u00e9").encode(),
    "latin-1": "Zo\u00e9".encode("latin-1"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_name_is_one_in_every_spelling(tmp_path, spelling):
    """The list has the composed form: of the file, whatever is on disk, and of a person named in two forms."""
    name = os.fsdecode(SPELLINGS[spelling])
    assert plain_name(name) == "Zo\u00e9"
    for path in (tmp_path / name / f"{name}.edf", tmp_path / "b.edf"):
        write_edf(path, edf_signal(0, 1, 160), [*EEG, "ECG"], 160)
    write_pspm(tmp_path / f"{name}_spike_01.mat", [("ecg", "mV", 100, np.arange(300.0))], 3.0)
    decomposed = SPELLINGS["decomposed"].decode()
    write_list(tmp_path, "file,subject", "Zo\u00e9/Zo\u00e9.edf,Zo\u00e9", f"b.edf,{decomposed}")
    found = read_all(folder, tmp_path)
    assert [(r.subject, plain_name(r.trial)) for r in found] == [("Zo\u00e9", "Zo\u00e9"), ("Zo\u00e9", "b")]
    assert [r.subject for r in read_all(pspm, tmp_path, {"ecg": ["ECG"]})] == ["Zo\u00e9_01"]


@pytest.mark.parametrize("flags", [["--check"], [], ["--json"]])
def test_names_that_are_no_utf_8_are_prepared_and_printed(tmp_path, flags):
    raw = tmp_path / os.fsdecode(SPELLINGS["latin-1"])
    for number in (1, 2):  # the second is a copy, which is named
        write_edf(raw / f"S00{number}R01.edf", edf_signal(0, 20, 160)[:10], EEG, 160)
    (raw / os.fsdecode(b"\xe9.txt")).touch()
    command = [sys.executable, ROOT / "prepare_data.py", "--dataset", "bci2000", "--raw", raw, "--out", raw, *flags]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    finished = subprocess.run([*command, "--workers", "1"], capture_output=True, text=True, env=strict)
    assert finished.returncode == 0, finished.stderr
    printed = json.loads(finished.stdout)["not_read"] if "--json" in flags else finished.stdout
    assert "not read: 1 .txt: \u00e9.txt" in printed
    if "--check" not in flags:
        manifest = json.loads((raw / "bci2000" / "manifest.json").read_text())
        assert manifest["not_read"] == "not read: 1 .txt: \u00e9.txt" and len(manifest["duplicates"]) == 1
        assert manifest["sources"][0]["trials"] == [["S001", "R01"]]


def test_what_is_not_read_is_counted_and_what_begins_with_a_dot_left_alone(tmp_path):
    for name in ("S001R01.edf", "S001R01.edf.event", "RECORDS", "x/notes.txt", "x/b.edf", "x/A.EDF", "x/._S001R02.edf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "S002R01.edf").touch()
    paths = bci2000.sources(tmp_path)
    assert [path.name for path in paths] == ["S001R01.edf"]
    assert not_read(tmp_path, paths) == "not read: 2 .edf, 1 .event, 1 .txt, 1 without ending: A.EDF, b.edf"
    for number in range(99):
        (tmp_path / f"a long name {number}.edf").touch()
    line = not_read(tmp_path, paths)
    assert line.startswith("not read: 101 .edf, 1 .event, ") and line.endswith(" ...") and len(line) <= 80
    assert not_read(tmp_path / "x", list((tmp_path / "x").iterdir())) == ""


ZEROS = np.zeros((99, 17))


@pytest.mark.parametrize(
    "word, signal, rated, video",
    [
        ("joined_data.3.", np.zeros((99, 16)), None, "9"),
        ("joined_data.3.", np.array([["a"] * 17], object), None, "9"),
        ("joined_data.3.", ZEROS + 1j, None, "9"),
        ("VideoIDs.3.", ZEROS, None, np.zeros((0, 0))),
        ("VideoIDs.3.", ZEROS, None, "a name far too long"),
        ("labels_selfassessment.3.", ZEROS, [1, 2, 3], "9"),
        ("labels_selfassessment.3.", ZEROS, ratings(1e300, 5), "9"),
        ("labels_selfassessment.3.", ZEROS, ratings(0, 5), "9"),
    ],
)
def test_amigos_cells_that_lie(tmp_path, word, signal, rated, video):
    path = tmp_path / "Data_Preprocessed_P01.mat"
    write_amigos(path, {2: (signal, rated)}, [*SHORT[:2], video, *SHORT[3:], *LONG])
    with pytest.raises(ValueError, match=f"P01.mat: .*{word}") as caught:
        list(amigos.read(path, BOTH))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("joined", [None, np.zeros((1, 20)), np.full((20, 1), "a", object)])
def test_amigos_without_its_variables(tmp_path, joined):
    savemat(tmp_path / "Data_Preprocessed_P01.mat", {"x": 1} if joined is None else {"joined_data": joined})
    with pytest.raises(ValueError, match="expected joined_data as a"):
        read_all(amigos, tmp_path)
