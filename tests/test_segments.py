import json
import os

import numpy as np
import pytest

from common.files import sha256_of_file, sha256_of_json
from prepared import edit_manifest, write_set
from protocol.fingerprints import fingerprints
from protocol.segments import SEGMENT_DTYPE, open_segments

ROWS, POINTS = 5, 32


@pytest.fixture
def folder(tmp_path):
    """A prepared folder, written from the description of its files."""
    return write_set(tmp_path / "set", subjects=1, unrated=0, trials=1, segments=ROWS, channels=10, points=POINTS)


def test_opens_what_was_written(folder):
    segments = open_segments(folder)
    assert set(segments.signals) == {"eeg", "ecg"}
    assert isinstance(segments.signals["eeg"], np.memmap) and not segments.signals["eeg"].flags.writeable
    np.testing.assert_array_equal(segments.signals["eeg"], np.load(folder / "eeg.npy"))
    assert sha256_of_json({"a": 1, "b": 2}) == sha256_of_json({"b": 2, "a": 1}) != sha256_of_json({"a": 1, "b": 3})


def test_one_modality_needs_only_its_file(folder):
    (folder / "ecg.npy").unlink()
    assert set(open_segments(folder, "eeg").signals) == {"eeg"}
    with pytest.raises(FileNotFoundError, match="ecg.npy"):
        open_segments(folder)


def test_bytes_are_compared_with_their_hashes_once(folder, monkeypatch):
    read = []
    monkeypatch.setattr("common.files.sha256_of_file", lambda path: read.append(path.name) or sha256_of_file(path))
    arrays = ["segments.npy", "fingerprints.npy", "eeg.npy", "ecg.npy"]
    open_segments(folder, trust=True)
    assert read == []
    for expected in (arrays, []):
        open_segments(folder)
        assert read == expected
        read.clear()
    os.utime(folder / "eeg.npy", (1, 1))  # touched, and the same
    open_segments(folder)
    assert read == ["eeg.npy"]
    (folder / ".checked.json").unlink()
    (folder / ".checked.json").mkdir()  # nothing can be remembered
    open_segments(folder)
    np.lib.format.open_memmap(folder / "ecg.npy", "r+")[2, 0, 5] += 1e-6
    open_segments(folder, "eeg")
    with pytest.raises(ValueError, match="ecg.npy: not the file that prepare_data.py wrote; copy it again, or prepare"):
        open_segments(folder)


def test_fingerprints_know_a_signal_again_and_no_other():
    walk = np.cumsum(np.random.default_rng(0).standard_normal((400, 2, 1280)), axis=-1)
    one = fingerprints(walk)
    assert len(np.unique(one)) == 400
    assert np.array_equal(fingerprints((3 * walk - 7).astype("f8")), one)
    # A step of 16 bits over 20 SD moves one of 256 points across a border of half an SD in at most 16 % of segments.
    step = 20 * walk.std(axis=-1, keepdims=True) / 2**16
    assert np.mean(fingerprints(step * np.round(walk / step)) == one) > 1 - 256 * 20 / 2**16 / 0.5 - 4 * 0.16**0.5 / 20


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-4])


def with_channels(folder, channels):
    edit_manifest(folder, lambda manifest: manifest.update(channels=channels))


BROKEN = {  # beside what test_bad_input.py gives to the scripts
    "manifest is a list": ("manifest.json", lambda f: (f / "manifest.json").write_text("[]")),
    "manifest is binary": ("manifest.json", lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00")),
    "channels are no lists": ("channels", lambda f: with_channels(f, {"eeg": 10})),
    "unknown modality": ("channels", lambda f: with_channels(f, {"gsr": ["GSR"]})),
    "table cut short": ("segments.npy", lambda f: cut_short(f / "segments.npy")),
    "table without rows": ("segments.npy", lambda f: np.save(f / "segments.npy", np.empty(0, SEGMENT_DTYPE))),
    "signals cut short": ("eeg.npy", lambda f: cut_short(f / "eeg.npy")),
    "signals are no .npy": ("eeg.npy", lambda f: (f / "eeg.npy").write_bytes(b"x" * 999)),
    "signals of objects": ("eeg.npy", lambda f: np.save(f / "eeg.npy", np.full((ROWS, 10, POINTS), None))),
    "a row too few": ("eeg.npy", lambda f: np.save(f / "eeg.npy", np.zeros((ROWS - 1, 10, POINTS), "f4"))),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_refused_in_one_line(folder, case):
    named, damage = BROKEN[case]
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_segments(folder)
    assert named in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_every_manifest_key_is_required(folder):
    whole = json.loads((folder / "manifest.json").read_text())
    for key in whole:
        (folder / "manifest.json").write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        with pytest.raises(ValueError, match=key):
            open_segments(folder)
