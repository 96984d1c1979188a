import hashlib
import json

import numpy as np
import pytest

from common.files import sha256_of_json
from protocol.segments import SEGMENT_DTYPE, SegmentWriter, open_segments

ROWS, POINTS = 5, 32


@pytest.fixture
def folder(tmp_path):
    """A prepared folder written by hand from the description of its files."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "eeg.npy", rng.normal(size=(ROWS, 10, POINTS)).astype("f4"))
    np.save(tmp_path / "ecg.npy", rng.normal(size=(ROWS, 1, POINTS)).astype("f4"))
    rows = [("P01", "9", "9", 10.0 * i, 3, 4) for i in range(ROWS)]
    np.save(tmp_path / "segments.npy", np.array(rows, SEGMENT_DTYPE))
    manifest = {
        "dataset": "amigos",
        "simulated": False,
        "channels": {"eeg": "F7 F3 T7 P7 O1 O2 P8 T8 F4 F8".split(), "ecg": ["ECG"]},
        "rate": 128,
        "points": POINTS,
        "preprocessing": {"rate": 128, "low": 0.8},
        "subjects": {},
        "counts": {},
        "versions": {},
        **{key: [] for key in ("sources", "dropped", "notes")},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def edit_manifest(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_opens_what_was_written(folder):
    segments = open_segments(folder)
    assert set(segments.signals) == {"eeg", "ecg"}
    assert isinstance(segments.signals["eeg"], np.memmap) and not segments.signals["eeg"].flags.writeable
    np.testing.assert_array_equal(segments.signals["eeg"], np.load(folder / "eeg.npy"))
    assert segments.segments_sha256 == hashlib.sha256((folder / "segments.npy").read_bytes()).hexdigest()
    assert segments.preprocessing_sha256 == hashlib.sha256(b'{"low":0.8,"rate":128}').hexdigest()
    assert sha256_of_json({"a": 1, "b": 2}) == sha256_of_json({"b": 2, "a": 1}) != sha256_of_json({"a": 1, "b": 3})


def test_one_modality_needs_only_its_file(folder):
    (folder / "ecg.npy").unlink()
    assert set(open_segments(folder, "eeg").signals) == {"eeg"}
    with pytest.raises(FileNotFoundError, match="ecg.npy"):
        open_segments(folder)


def test_segment_writer_equals_numpy(tmp_path):
    blocks = [np.random.default_rng(i).normal(size=(i, 3, 7)) for i in (2, 0, 5)]
    writer = SegmentWriter(tmp_path / "a.npy", 3, 7)
    for block in blocks:
        writer.write(block)
    writer.close()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.concatenate(blocks).astype("f4"))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-4])


BROKEN = {
    "no manifest": ("manifest.json", lambda f: (f / "manifest.json").unlink()),
    "manifest cut short": ("manifest.json", lambda f: cut_short(f / "manifest.json")),
    "manifest is a list": ("manifest.json", lambda f: (f / "manifest.json").write_text("[]")),
    "manifest is binary": ("manifest.json", lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00")),
    "key of the wrong type": ("points", lambda f: edit_manifest(f, points="1280")),
    "channels are no lists": ("channels", lambda f: edit_manifest(f, channels={"eeg": 10})),
    "unknown modality": ("channels", lambda f: edit_manifest(f, channels={"gsr": ["GSR"]})),
    "no table": ("segments.npy", lambda f: (f / "segments.npy").unlink()),
    "table cut short": ("segments.npy", lambda f: cut_short(f / "segments.npy")),
    "table of other fields": ("segments.npy", lambda f: np.save(f / "segments.npy", np.zeros(ROWS))),
    "table without rows": ("segments.npy", lambda f: np.save(f / "segments.npy", np.empty(0, SEGMENT_DTYPE))),
    "table of objects": ("segments.npy", lambda f: np.save(f / "segments.npy", np.array([{}], object))),
    "signals missing": ("eeg.npy", lambda f: (f / "eeg.npy").unlink()),
    "signals empty": ("eeg.npy", lambda f: (f / "eeg.npy").write_bytes(b"")),
    "signals cut short": ("eeg.npy", lambda f: cut_short(f / "eeg.npy")),
    "signals are no .npy": ("eeg.npy", lambda f: (f / "eeg.npy").write_bytes(b"x" * 999)),
    "signals in an archive": ("eeg.npy", lambda f: np.savez(open(f / "eeg.npy", "wb"), a=np.zeros(3))),
    "signals float64": ("eeg.npy", lambda f: np.save(f / "eeg.npy", np.zeros((ROWS, 10, POINTS)))),
    "signals of objects": ("eeg.npy", lambda f: np.save(f / "eeg.npy", np.full((ROWS, 10, POINTS), None))),
    "a row too few": ("eeg.npy", lambda f: np.save(f / "eeg.npy", np.zeros((ROWS - 1, 10, POINTS), "f4"))),
    "a channel too few": ("eeg.npy", lambda f: np.save(f / "eeg.npy", np.zeros((ROWS, 9, POINTS), "f4"))),
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


def test_a_modality_that_was_not_prepared(folder):
    edit_manifest(folder, channels={"ecg": ["ECG"]})
    with pytest.raises(ValueError, match="no eeg"):
        open_segments(folder, "eeg")
