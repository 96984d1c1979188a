"""Several files at a time, runs that are killed, and --check."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from datasets.readers import READERS
from layouts import write_list
from prepared import ROOT, contents
from preparing import cutting
from recordings import AMIGOS_COLUMNS, EEG, amigos_signal, edf_signal, prepare_data, ratings, write_amigos, write_edf

NAMES = ("eeg.npy", "ecg.npy", "segments.npy", "fingerprints.npy", "manifest.json")


def written(out):
    """The bytes of the four files, which are all there is."""
    assert sorted(path.name for path in out.iterdir()) == sorted(NAMES)
    return [(out / name).read_bytes() for name in NAMES]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Nine files: 7 subjects of 6 videos, one of them without heart beats, one copy of a file, one without a video."""
    folder = tmp_path_factory.mktemp("workers")
    for subject in range(1, 8):
        videos = {v: (amigos_signal(10 * subject + v, 128 * (21 + v)), ratings(2, v + 1)) for v in range(6)}
        if subject == 3:
            videos[2][0][700:900, 5] = np.nan
        if subject == 5:
            noise = np.random.default_rng(0).standard_normal(len(videos[1][0]))
            videos[1][0][:, AMIGOS_COLUMNS.index("ECG_L")] = noise
        write_amigos(folder / f"Data_Preprocessed_P{subject:02d}.mat", videos)
    write_amigos(folder / "Data_Preprocessed_P08.mat", {})
    (folder / "Data_Preprocessed_P09.mat").write_bytes((folder / "Data_Preprocessed_P02.mat").read_bytes())
    return folder


@pytest.fixture(scope="module")
def expected(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected")
    assert prepare_data(["--dataset", "amigos", "--raw", str(raw), "--out", str(out), "--workers", "1"]) == 0
    return written(out / "amigos")


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("normalise", ["subject", "recording"])
def test_any_number_of_workers_writes_the_same_bytes(raw, expected, tmp_path, workers, normalise):
    flags = ["--dataset", "amigos", "--raw", str(raw), "--normalise", normalise, "--out"]
    assert prepare_data([*flags, str(tmp_path / "a"), "--workers", str(workers)]) == 0
    if normalise != "subject":
        assert prepare_data([*flags, str(tmp_path / "b"), "--workers", "1"]) == 0
        expected = written(tmp_path / "b" / "amigos")
    assert written(tmp_path / "a" / "amigos") == expected


def kill_after(parts, flags, partial, delay=0.0, number=signal.SIGKILL):
    """Start the command, send it a signal once `parts` recordings of two segments are cut, and return how it ended."""
    # Tests that run in the background of a shell have been told to ignore Ctrl-C, which a child would inherit.
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler), "text": True}
    command = [sys.executable, ROOT / "prepare_data.py", *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
    size = parts * 2 * 11 * 1280 * 8
    while process.poll() is None and sum(path.stat().st_size for path in partial.glob("parts/*")) < size:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    # No worker is left behind.
    for _ in range(100):
        left = [pid for pid in os.listdir("/proc") if pid.isdigit() and str(partial.parent).encode() in cmdline(pid)]
        if not left:
            return process.returncode, error
        time.sleep(0.05)
    pytest.fail(f"processes {left} are still there")


def cmdline(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_killed_at_a_random_moment(raw, expected, tmp_path, seed):
    draw = random.Random(seed)
    flags = ["--dataset", "amigos", "--raw", raw, "--out", tmp_path, "--workers", draw.choice([1, 2])]
    code, _ = kill_after(draw.randint(3, 40), flags, tmp_path / ".amigos.partial", draw.uniform(0, 0.05))
    assert code == -signal.SIGKILL or ((tmp_path / "amigos").exists() and code == 0)
    assert prepare_data(flags) == 0
    assert written(tmp_path / "amigos") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["amigos"]


def test_interrupted_by_the_keyboard(raw, expected, tmp_path):
    flags = ["--dataset", "amigos", "--raw", raw, "--out", tmp_path, "--workers", 2]
    code, error = kill_after(5, flags, tmp_path / ".amigos.partial", number=signal.SIGINT)
    assert code == 130 and error.splitlines()[-1] == "prepare_data.py: interrupted; the same command goes on from here"
    assert "Traceback" not in error and not list(tmp_path.iterdir())
    assert prepare_data(flags) == 0
    assert written(tmp_path / "amigos") == expected


def test_a_killed_worker_ends_in_one_line(raw, tmp_path, capsys, monkeypatch):
    cut = cutting.cut

    def kill(recording, given):
        return os.kill(os.getpid(), 9) if recording.subject == "P05" else cut(recording, given)

    monkeypatch.setattr(cutting, "cut", kill)
    assert prepare_data(["--dataset", "amigos", "--raw", str(raw), "--out", str(tmp_path), "--workers", "2"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "a worker was killed" in line and "fewer --workers" in line and not list(tmp_path.iterdir())


def test_interrupted_while_it_replaces_a_set_the_old_one_is_there(raw, expected, tmp_path, monkeypatch):
    flags = ["--dataset", "amigos", "--raw", str(raw), "--out", str(tmp_path)]
    assert prepare_data([*flags, "--low", "2"]) == 0
    old, rename = written(tmp_path / "amigos"), Path.rename

    def interrupt(path, target):
        if path.name == ".amigos.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    assert prepare_data([*flags, "--fresh"]) == 130
    monkeypatch.undo()
    assert written(tmp_path / ".amigos.replaced") == old
    assert prepare_data([*flags, "--fresh"]) == 0
    assert written(tmp_path / "amigos") == expected and [path.name for path in tmp_path.iterdir()] == ["amigos"]


def test_an_error_in_a_worker_is_the_first_in_the_order_of_the_files(raw, tmp_path, capsys):
    copy = tmp_path / "raw"
    copy.mkdir()
    for path in raw.iterdir():
        (copy / path.name).write_bytes(path.read_bytes()[: 300 if path.stem[-1] in "47" else None])
    for workers in ("1", "2", "4"):
        flags = ["--dataset", "amigos", "--raw", str(copy), "--out", str(tmp_path / "data"), "--workers", workers]
        assert prepare_data(flags) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "P04.mat" in line and not list((tmp_path / "data").iterdir())


@pytest.fixture
def faulty(tmp_path):
    """One good recording and seven faults; what --check must say of each."""
    raw = tmp_path / "raw"

    def write(name, seconds=25, rate=160, flat=slice(0), seed=0):
        signal = edf_signal(seed, seconds, rate)
        signal[8, flat] = 3.0
        return write_edf(raw / name, signal, [*EEG, "ECG"], rate)

    for seed, name in enumerate(SPECIAL, start=1):
        write(f"{name}.edf", seed=seed)
    (raw / "copy.edf").write_bytes((raw / "good.edf").read_bytes())
    os.truncate(write("short-file.edf"), 2000)
    write("slow.edf", rate=90)
    write("flat.edf", flat=slice(1600, None))
    write("brief.edf", seconds=7)
    write_list(
        raw,
        "file,subject,trial,arousal",
        "good.edf,A,one,5",
        *(f"{path.name},A,{path.stem},5" for path in sorted(raw.glob("*.edf")) if path.stem not in SPECIAL),
        "rating.edf,A,rating,high",
        "again.edf,A,one,5",
        "name.edf,a name of more than sixteen letters,name,5",
    )
    return raw


SPECIAL = ("good", "rating", "again", "name")
FAULTS = {
    "short-file.edf": "expected an EDF file",
    "slow.edf": "found 90 Hz",
    "rating.edf": "from 1 to 9, or an empty cell where there is none, found high",
    "again.edf": "trial one of subject A is in",
    "copy.edf": "the same bytes as",
    "name.edf": "has over 16 letters",
    "brief": "7.0 s from 0.0 s dropped: shorter than a segment",
    "flat": "10.0 s from 10.0 s dropped: constant in F4",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_check_reports_every_fault_and_changes_nothing(faulty, tmp_path, capsys, workers):
    before = contents(tmp_path), {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    flags = "--dataset", "folder", "--raw", faulty, "--out", tmp_path / "data", "--workers", workers
    assert prepare_data([*flags, "--check"]) == 2
    out, error = capsys.readouterr()
    assert before == (contents(tmp_path), {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")})
    assert "5 problems would stop the preparation" in error
    for name, words in FAULTS.items():
        assert any(name in line and words in line for line in out.splitlines()), (name, out)
    assert prepare_data([*flags, "--check", "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 6


def runs(*names, seconds=12):
    return {name: edf_signal(seed, seconds, 160)[:10] for seed, name in enumerate(names)}


def trials(*signals, **rest):
    return {video: (signal, ratings(2, 3)) for video, signal in enumerate(signals)}, rest


SOUND = amigos_signal(1, 2600)
JUDGED = {  # what the preparation says -> the files of bci2000 or amigos
    "": {"P01": trials(SOUND), "P02": trials(amigos_signal(2, 2600))},
    "comes from files that do not follow each other": runs("S001R01", "S002R01", "s001r02"),
    "no segment is left (shorter than a segment)": runs("S001R01", "S001R02", seconds=9),
    "no segment is left (constant in": {"P01": trials(np.ones((2600, 17)), np.zeros((1, 17)))},
    "no segment is left (NaN or infinite": {"P01": trials(np.full((2600, 17), np.nan))},
    "too large or too small for float32 (SD": {"P01": trials(SOUND), "P02": trials(SOUND * 1e-200)},
    "trial 4 of subject P01 is in": {"P01": trials(SOUND, SOUND, order=["4"] * 20)},
    "expected a MAT file": {"P01": b"<html>" * 100, "P02": trials(SOUND)},
}


@pytest.mark.parametrize("words", JUDGED)
@pytest.mark.parametrize("normalise", ["subject", "recording"])
def test_check_and_the_preparation_say_the_same(tmp_path, capsys, words, normalise):
    """The first problem of --check is the line with which the preparation stops."""
    raw = tmp_path / "raw"
    for name, content in JUDGED[words].items():
        if isinstance(content, np.ndarray):
            write_edf(raw / f"{name}.edf", content, EEG, 160)
        elif isinstance(content, tuple):
            write_amigos(raw / f"Data_Preprocessed_{name}.mat", content[0], **content[1])
        else:
            raw.mkdir()
            (raw / f"Data_Preprocessed_{name}.mat").write_bytes(content)
    dataset = "bci2000" if "edf" in next(raw.iterdir()).name else "amigos"
    flags = ["--dataset", dataset, "--raw", str(raw), "--out", str(tmp_path / "data"), "--normalise", normalise]
    codes = [prepare_data([*flags, "--check", "--json"])]
    check, said = capsys.readouterr()
    codes.append(prepare_data([*flags, "--json"]))
    done, error = capsys.readouterr()
    check = json.loads(check)
    if words:
        assert codes == [2, 2] and f"{len(check['problems'])} problems would stop the preparation" in said
        assert words in error and error == f"prepare_data.py: {check['problems'][0]}\n"
        assert not list((tmp_path / "data").iterdir())
    else:
        assert codes == [0, 0] and check["segments"] == json.loads(done)["segments"] and not check["problems"]


@pytest.mark.parametrize("more", [[], ["--drop-unusable-ecg"]])
def test_check_foretells_what_is_kept(raw, tmp_path, capsys, more):
    flags = ["--dataset", "amigos", "--raw", str(raw), "--out", str(tmp_path), "--json", *more]
    assert prepare_data([*flags, "--check"]) == 0
    check = json.loads(capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
    assert prepare_data(flags) == 0
    counts = json.loads(capsys.readouterr().out)
    manifest = json.loads((tmp_path / "amigos" / "manifest.json").read_text())
    assert (check["segments"], check["hours"]) == (counts["segments"], counts["hours"])
    assert [piece for piece in manifest["dropped"] if piece["trial"]] == check["dropped"]
    assert any("beats" in piece["reason"] for piece in check["dropped"]) == bool(more)
    size = sum((tmp_path / "amigos" / name).stat().st_size for name in ("eeg.npy", "ecg.npy"))
    assert check["bytes"] == size - 2 * 128  # without the headers
    [problem] = check["problems"]
    said = "Data_Preprocessed_P09.mat has the same bytes as Data_Preprocessed_P02.mat"
    assert said in problem and any(said in piece["reason"] for piece in manifest["dropped"])
    assert "P09" not in manifest["subjects"] and len(manifest["sources"]) == 8
    assert prepare_data(flags) == 0 and json.loads(capsys.readouterr().out) == {**counts, "done_before": True}


def test_the_sets_are_named(capsys):
    assert prepare_data(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: " in out for name in READERS) and out.count("https://") + out.count("http://") >= 8
    assert prepare_data([]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--dataset" in line and "way_eeg_gal" in line
