import json
import os
import subprocess
import sys

import edfio
import numpy as np
import pytest
from scipy import signal as sp

import paper
from datasets import amigos, eegmat
from layouts import WAY_NAMES, write_list, write_way
from prepared import ROOT, call, complaint, contents, done, script
from protocol.segments import open_segments
from recordings import AMIGOS_COLUMNS, BOTH, EEG, LONG, SHORT, amigos_signal, edf_signal, filtered_by_hand
from recordings import ratings, real, write_amigos, write_edf

OLD_NAMES = "F7 F3 T3 T5 O1 O2 T6 T4 F4 F8".split()
COLUMNS = [AMIGOS_COLUMNS.index(name) for name in [*EEG, "ECG_L"]]
AMIGOS, P01 = "--dataset amigos --raw raw".split(), "Data_Preprocessed_P01.mat"


def prepare(folder, *flags):
    """Run the script in `folder` as a user would, and open what it wrote."""
    print(done("prepare_data.py", *flags, cwd=folder), end="")
    given = dict(zip(flags, flags[1:]))
    return open_segments(folder / given.get("--out", "data") / given["--dataset"])


def refused(folder, *flags, words):
    """One line that holds `words`, exit code 2, nothing printed or written, but for an empty output folder."""
    before, out = contents(folder), dict(zip(flags, flags[1:])).get("--out", "data")
    finished = call("prepare_data.py", *flags, cwd=folder)
    assert words in complaint(finished, "prepare_data.py") and finished.stdout == ""
    assert contents(folder) in (before, {**before, out: None})


def by_hand(signals, rate, low=0.8, high=50):
    """The same, then at 128 Hz."""
    return sp.resample_poly(filtered_by_hand(signals, rate, low, high), 128, int(rate), axis=1)


def cut_by_hand(trials, scope="subject"):
    """`trials` (C, n_i), each cut into whole ten-second segments, per channel z-scored over `scope`, by default over
    all of these; and the mean and the SD of these."""
    trials = [trial[:, : trial.shape[1] // 1280 * 1280] for trial in trials]
    segments = [trial[:, start : start + 1280] for trial in trials for start in range(0, trial.shape[1], 1280)]
    whole = np.concatenate(trials, axis=1)
    own = [trial for trial in trials for _ in range(0, trial.shape[1], 1280)]
    over = {"subject": [whole] * len(segments), "recording": own, "segment": segments}.get(scope)
    if over:
        z_scored = [(x - y.mean(1, keepdims=True)) / y.std(1, keepdims=True) for x, y in zip(segments, over)]
    return np.stack(z_scored if over else segments), (whole.mean(axis=1), whole.std(axis=1))


def both(segments):
    """Every channel of the segments, (k, 11, L)."""
    return np.concatenate([*segments.signals.values()], axis=1)


def labelled_signals(path):
    return {signal.label: signal.data for signal in edfio.read_edf(path).signals}


def test_real_eegmat_by_hand(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    files = [real("eegmat", f"Subject31_{n}.edf") for n in (1, 2)]
    for file in files:
        (raw / file.name).symlink_to(file)
    segments = prepare(tmp_path, "--dataset", "eegmat", "--raw", "raw")
    trials = []
    for file in files:
        signals = labelled_signals(file)
        names = [f"EEG {name}" for name in OLD_NAMES] + ["ECG ECG"]
        trials.append(by_hand([signals[name] for name in names], 500))
        [recording] = eegmat.read(raw / file.name, BOTH)
        found = np.concatenate([recording.signals["eeg"], recording.signals["ecg"]])
        np.testing.assert_array_equal(found, [signals[name] for name in names])
        assert (recording.units, recording.bad, recording.notes) == ({}, (), ())
    expected, (mean, sd) = cut_by_hand(trials)
    assert expected.shape == (8 + 6, 11, 1280)
    np.testing.assert_allclose(both(segments), expected, rtol=1e-6, atol=1e-6)
    assert segments.table["trial"].tolist() == ["Subject31_1"] * 8 + ["Subject31_2"] * 6
    assert segments.table["start"].tolist() == [*range(0, 80, 10), *range(0, 60, 10)]
    assert segments.table["video"].tolist() == ["rest"] * 8 + ["arithmetic"] * 6
    assert set(segments.table["arousal"]) == {1, 9} and np.isnan(segments.table["valence"]).all()

    for modality, rows in (("eeg", slice(0, 10)), ("ecg", slice(10, 11))):
        kept = segments.manifest["subjects"]["Subject31"][modality]
        np.testing.assert_allclose(kept["mean"], mean[rows], atol=1e-9 * sd.max())
        np.testing.assert_allclose(kept["sd"], sd[rows], rtol=1e-9)
        assert kept["points"] == [14 * 1280] * len(kept["mean"])
    [piece] = [p for p in segments.manifest["dropped"] if p["trial"] == "Subject31_2"]
    assert [*piece.values()] == ["Subject31", "Subject31_2", 60, 2, "shorter than a segment"]


def test_real_bci2000_by_hand(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "S001R01.edf").symlink_to(real("eegmmidb", "S001", "S001R01.edf"))
    segments = prepare(tmp_path, "--dataset", "bci2000", "--raw", "raw")
    signals = labelled_signals(tmp_path / "raw" / "S001R01.edf")
    expected, _ = cut_by_hand([by_hand([signals[f"{name.title():.<4}"] for name in EEG], 160)])
    assert len(expected) == 6 and list(segments.signals) == ["eeg"]
    np.testing.assert_allclose(segments.signals["eeg"], expected, rtol=1e-6, atol=1e-6)


def test_all_real_eegmat(tmp_path, capsys):
    """The share of each subject, and the one ECG without beats, which is reported."""
    flags = "--dataset", "eegmat", "--raw", real("eegmat"), "--max-seconds-per-trial", 62
    segments = prepare(tmp_path, *flags)
    assert segments.manifest["counts"] == {"subjects": 15, "trials": 30, "segments": 180, "hours": 0.5}
    assert "Subject20_2: ECG without plausible beats" in capsys.readouterr().out
    assert [n["trial"] for n in segments.manifest["notes"] if "beats" in n["note"]] == ["Subject20_2"]


@pytest.fixture
def amigos_raw(tmp_path):
    """Two subjects, two layouts, different orders of the videos; 35 s, 21 s and 10 s."""
    videos = {0: (amigos_signal(1, 4480), ratings(2, 8)), 3: (amigos_signal(2, 2688), ratings(7, 3))}
    write_amigos(tmp_path / "raw" / P01, videos)
    other = {v: (signal + 5, rated) for v, (signal, rated) in videos.items()} | {17: (amigos_signal(3, 1280), None)}
    name = "Data_Preprocessed_P02"
    write_amigos(tmp_path / "raw" / name / f"{name}.mat", other, SHORT[::-1] + LONG)
    return tmp_path / "raw"


@pytest.mark.parametrize("scope", ["subject", "recording", "segment", "none"])
def test_amigos_by_hand(amigos_raw, tmp_path, scope):
    segments = prepare(tmp_path, *AMIGOS, "--normalise", scope)
    assert segments.table["subject"].tolist() == ["P01"] * 5 + ["P02"] * 6
    assert segments.table["trial"].tolist() == ["4"] * 3 + ["10"] * 2 + ["138"] * 3 + ["36"] * 2 + ["P1"]
    np.testing.assert_array_equal(segments.table["arousal"], np.float32([2, 2, 2, 7, 7, 2, 2, 2, 7, 7, np.nan]))
    np.testing.assert_array_equal(segments.table["valence"], np.float32([8, 8, 8, 3, 3, 8, 8, 8, 3, 3, np.nan]))
    raw = amigos_signal(1, 4480), amigos_signal(2, 2688)
    expected, _ = cut_by_hand([by_hand(signal[:, COLUMNS].T, 128) for signal in raw], scope)
    np.testing.assert_allclose(both(segments)[:5], expected, rtol=1e-5, atol=1e-6)
    assert segments.manifest["simulated"] is False
    source = segments.manifest["sources"][1]
    assert source["subject"] == "P02" and source["trials"] == [["P02", "138"], ["P02", "36"], ["P02", "P1"]]
    assert source["size"] == (amigos_raw / source["file"]).stat().st_size


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize(
    "rate, dataset, names, trials",
    [(128, "amigos", AMIGOS_COLUMNS, SHORT[:2]), (500, "way_eeg_gal", WAY_NAMES, ["S1", "S2"])],
)
def test_one_bad_point_costs_one_segment(tmp_path, value, rate, dataset, names, trials):
    """Runs on either side are filtered alone."""
    raw, bad, (first, second) = tmp_path / "raw", round(13.37 * rate), trials
    signals = [np.tile(amigos_signal(seed, 35 * rate), 2).T[: len(names)] for seed in (1, 2)]
    signals[0][names.index("F3"), bad] = value
    if dataset == "amigos":
        write_amigos(raw / P01, {video: (signal.T, ratings(2, 2)) for video, signal in enumerate(signals)})
    else:
        for trial, signal in zip(trials, signals):
            write_way(raw / f"HS_P1_{trial}.mat", 10 * signal.T)  # in 0.1 uV
    segments = prepare(tmp_path, "--dataset", dataset, "--raw", "raw", "--normalise", "none")
    assert segments.table["trial"].tolist() == [first, first, second, second, second]
    assert segments.table["start"].tolist() == [0, 20, 0, 10, 20]
    [piece] = [p for p in segments.manifest["dropped"] if p["reason"] != "shorter than a segment"]
    assert piece["trial"] == first and (piece["start"], piece["seconds"]) == (10, 10)
    assert piece["reason"] == "NaN or infinite in F3"

    # Beside the bad point: each side alone by hand, zeros standing for the missing points when it is resampled.
    signal = signals[0][COLUMNS if dataset == "amigos" else [names.index(name) for name in EEG]]
    ups = np.zeros_like(signal)
    for start, stop in ((0, bad), (bad + 1, 35 * rate)):
        ups[:10, start:stop] = filtered_by_hand(signal[:10, start:stop], rate)
    ups[10:] = filtered_by_hand(signal[10:], rate)  # the ECG has no gap
    after = np.where(np.arange(35 * rate) > bad, ups, 0)
    after[10:] = ups[10:]
    for segment, run in ((0, ups), (1, after)):
        expected = sp.resample_poly(run, 128, rate, axis=1)[:, segment * 2560 :][:, :1280]
        scale = expected.std()
        near_gap = slice(0, 1270 if segment == 0 else 1280)  # where before and after mix in this way of resampling
        found = np.concatenate([array[segment] for array in segments.signals.values()])
        np.testing.assert_allclose(found[:, near_gap], expected[:, near_gap], rtol=1e-5, atol=1e-6 * scale)


def test_a_bad_column_costs_the_trial_and_a_constant_second_its_segments(amigos_raw, tmp_path):
    bad, flat = amigos_signal(1, 4480), amigos_signal(2, 4480)
    bad[:, 5] = np.nan
    flat[1270:1398, 12] = 3.0  # a second of F8, across the border of the first two segments
    flat[3000:3127, 12] = 3.0  # a point under a second
    flat[3000:4000, 3] = 1.0  # FC5, which nobody uses
    write_amigos(amigos_raw / P01, {0: (bad, ratings(2, 2)), 1: (flat, ratings(3, 3))})
    segments = prepare(tmp_path, *AMIGOS)
    own = segments.table["subject"] == "P01"
    assert segments.table[["trial", "start"]][own].tolist() == [("5", 20)] and len(own) == 7
    for array in segments.signals.values():  # what is dropped sets no scale
        np.testing.assert_allclose(array[own].mean(axis=(0, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(array[own].std(axis=(0, 2)), 1, rtol=1e-5)
    pieces = [(p["start"], p["seconds"], p["reason"]) for p in segments.manifest["dropped"] if p["seconds"] > 5]
    assert pieces == [(0, 30, "NaN or infinite in P7"), (0, 20, "constant in F8")]
    ecg = prepare(tmp_path, *AMIGOS, "--out", "ecg", "--modalities", "ecg")
    assert ecg.table["trial"][:6].tolist() == ["4"] * 3 + ["5"] * 3 and list(ecg.signals) == ["ecg"]


def test_baseline_limit_length_and_ecg_side(amigos_raw, tmp_path):
    segments = prepare(tmp_path, *AMIGOS, "--drop-baseline", 5, "--max-seconds-per-trial", 20)
    assert segments.table["start"].tolist() == [5, 15, 5, 5, 15, 5]  # 35 s, 21 s; the same again; 10 s hold none
    raw = amigos_signal(1, 4480), amigos_signal(2, 2688)
    trials = [by_hand(signal[640:3200, COLUMNS[:10]].T, 128) for signal in raw]
    np.testing.assert_allclose(segments.signals["eeg"][:3], cut_by_hand(trials)[0], rtol=1e-5, atol=1e-6)
    pieces = [p for p in segments.manifest["dropped"] if (p["subject"], p["trial"]) == ("P01", "4")]
    assert [(p["start"], p["seconds"]) for p in pieces] == [(0, 5), (25, 10)]

    flags = "--seconds-per-segment", 2.5, "--ecg-side", "right", "--normalise", "none", "--out", "b"
    short = prepare(tmp_path, *AMIGOS, *flags)
    assert short.signals["ecg"].shape == (14 + 8 + 14 + 8 + 4, 1, 320) and short.manifest["points"] == 320
    other = prepare(tmp_path, *AMIGOS, "--seconds-per-segment", 2.3, "--rate", 200, "--out", "c")
    assert other.manifest["points"] == 460
    right = by_hand(amigos_signal(1, 4480)[:, 14:15].T, 128)
    np.testing.assert_allclose(short.signals["ecg"][:14].reshape(-1), right[0, : 14 * 320], rtol=1e-5, atol=1e-5)


def test_a_third_modality_has_its_own_pass_band(amigos_raw, tmp_path, monkeypatch):
    """A line in paper.py and one in the reader; --low holds for every modality."""
    monkeypatch.setitem(paper.MODALITIES, "eda", paper.Modality("EDA", ("GSR",), low=0.05, high=5.0, fused=False))
    monkeypatch.setattr(amigos, "MODALITIES", ("eeg", "ecg", "eda"))
    segments = prepare(tmp_path, *AMIGOS)
    assert segments.manifest["channels"]["eda"] == ["GSR"] and segments.manifest["preprocessing"]["low"]["eda"] == 0.05
    assert len(segments.table) == 5 + 5  # the trial of ten seconds is shorter than one period of 0.05 Hz
    reasons = {piece["reason"] for piece in segments.manifest["dropped"]}
    assert "finite run of eda shorter than one period of --low" in reasons
    raw = amigos_signal(1, 4480), amigos_signal(2, 2688)
    expected = cut_by_hand([by_hand(signal[:, 16:17].T, 128, 0.05, 5) for signal in raw])[0]
    np.testing.assert_allclose(segments.signals["eda"][:5], expected, rtol=1e-5, atol=1e-5)
    both = prepare(tmp_path, *AMIGOS, "--out", "b", "--modalities", "eeg", "eda", "--low", 1, "--high", 4)
    assert both.manifest["preprocessing"]["high"] == {"eeg": 4, "eda": 4} and list(both.signals) == ["eeg", "eda"]
    refused(tmp_path, *AMIGOS, "--dataset", "dreamer", "--modalities", "eda", words="holds eeg and ecg alone")


def test_simulated_cohort_says_so_and_stays_apart(tmp_path, capsys):
    cohort = {"subjects": 2, "unrated_subjects": 1, "videos": 2, "seconds": 20.0, "effect": 0.5, "seed": 4}
    flags = [word for name, value in cohort.items() for word in (f"--{name.replace('_', '-')}", value)]
    raw = tmp_path / "raw"
    segments = prepare(tmp_path, "--dataset", "simulated", "--raw", "raw", *flags)
    assert segments.manifest["simulated"] is True and segments.manifest["dataset"] == "simulated"
    assert segments.manifest["counts"]["segments"] == 12 and not segments.manifest["notes"]
    assert "simulated" in capsys.readouterr().out
    assert json.loads((raw / "simulated.json").read_text()).items() >= cohort.items()
    assert np.isnan(segments.table["arousal"]).sum() == 4
    write_amigos(raw / "Data_Preprocessed_P99.mat", {0: (amigos_signal(1, 1280), None)})
    refused(tmp_path, *AMIGOS, words="simulated and real")


def test_the_same_command_again_returns_at_once(amigos_raw, tmp_path, capsys):
    prepare(tmp_path, *AMIGOS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "amigos").iterdir()}
    prepare(tmp_path, *AMIGOS)
    assert "nothing to do" in capsys.readouterr().out
    os.utime(amigos_raw / P01)  # touched, the same bytes
    prepare(tmp_path, *AMIGOS)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "amigos").iterdir()}

    refused(tmp_path, *AMIGOS, "--low", 1, words="--low eeg 0.8, ecg 0.8, not eeg 1.0, ecg 1.0; give --fresh")
    refused(tmp_path, *AMIGOS, "--modalities", "eeg", words="--modalities")
    assert json.loads(done("prepare_data.py", *AMIGOS, "--json", cwd=tmp_path))["segments"] == 11
    segments = prepare(tmp_path, *AMIGOS, "--low", 1, "--fresh")
    assert segments.manifest["preprocessing"]["low"] == {"eeg": 1, "ecg": 1}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["amigos"]

    write_amigos(amigos_raw / P01, {0: (amigos_signal(9, 4480), None)})
    refused(tmp_path, *AMIGOS, "--low", 1, words=P01)
    write_amigos(amigos_raw / "Data_Preprocessed_P05.mat", {})
    refused(tmp_path, *AMIGOS, "--low", 1, words="P01.mat")
    (amigos_raw / P01).unlink()
    refused(tmp_path, *AMIGOS, "--low", 1, words="is gone")

    # An older version had other targets.
    table = tmp_path / "data" / "amigos" / "segments.npy"
    np.save(table, np.load(table)[["subject", "trial", "video", "start", "arousal"]].copy())
    refused(tmp_path, *AMIGOS, words="prepare the data again, with --fresh")


BAD_AMIGOS = {
    "no folder": ("no such folder", lambda raw: raw.rename(raw.with_name("elsewhere"))),
    "no files": ("no file of amigos", lambda raw: [path.rename(path.with_suffix(".x")) for path in raw.rglob("*.mat")]),
    "cut behind the header": ("P01.mat", lambda raw: os.truncate(raw / P01, 130)),
    "cut in half": ("P01.mat", lambda raw: os.truncate(raw / P01, os.path.getsize(raw / P01) // 2)),
    "a folder for a file": ("P03.mat", lambda raw: (raw / "Data_Preprocessed_P03.mat").mkdir()),
}


@pytest.mark.parametrize("case", BAD_AMIGOS)
def test_bad_files_end_in_one_line(amigos_raw, tmp_path, case):
    words, damage = BAD_AMIGOS[case]
    damage(amigos_raw)
    refused(tmp_path, *AMIGOS, words=words)
    assert not list(tmp_path.glob("data/*"))


@pytest.mark.parametrize(
    "words, flags",
    [("--low 60", ["--low", 60]), ("--rate 100", ["--rate", 100]), ("whole number", ["--seconds-per-segment", 0.3333]),
     ("bci2000 holds eeg alone", ["--modalities", "ecg"]), ("--ecg-side left", ["--ecg-side", "left"]),
     ("--drop-unusable-ecg", ["--drop-unusable-ecg"]), ("--name mine: only for", ["--name", "mine"]),
     ("--name amigos: only", ["--dataset", "folder", "--name", "amigos"]),
     ("--name a/b: expected letters", ["--dataset", "folder", "--name", "a/b"]),
     ("--rating-scale: only for --dataset folder", ["--rating-scale", 1, 5]),
     ("--rating-scale 9.0 1.0: expected LOW below", ["--dataset", "folder", "--rating-scale", 9, 1]),
     ("--rate 40: heart beats", ["--dataset", "eegmat", "--rate", 40, "--high", 15])],
)  # fmt: skip
def test_contradicting_flags_end_in_one_line(tmp_path, words, flags):
    refused(tmp_path, "--dataset", "bci2000", "--raw", ".", *flags, words=words)


def test_any_other_flag_is_noticed(amigos_raw, tmp_path):
    prepare(tmp_path, *AMIGOS)
    for other in (
        "--low 1", "--high 40", "--filter-order 4", "--rate 160", "--seconds-per-segment 5", "--normalise none",
        "--drop-baseline 1", "--max-seconds-per-trial 11", "--drop-unusable-ecg", "--ecg-side right",
        "--modalities eeg", "--channels F7 F3",
    ):  # fmt: skip
        refused(tmp_path, *AMIGOS, *other.split(), words="prepared with")


def test_other_folders_are_never_replaced_and_must_be_such(amigos_raw, tmp_path):
    (tmp_path / "data" / "amigos").mkdir(parents=True)
    (tmp_path / "data" / "amigos" / "thesis.txt").write_text("mine")
    refused(tmp_path, *AMIGOS, words="manifest.json")
    refused(tmp_path, *AMIGOS, "--fresh", words="manifest.json")
    for out in (tmp_path / "data" / "amigos" / "thesis.txt", "/proc/nowhere"):
        refused(tmp_path, *AMIGOS, "--out", out, words=str(out))


def test_another_run_at_work(amigos_raw, tmp_path):
    import fcntl

    partial = tmp_path / "data" / ".amigos.partial"
    partial.mkdir(parents=True)
    handle = os.open(partial, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    refused(tmp_path, *AMIGOS, words="another run")
    os.close(handle)  # as when the other run was killed
    (partial / "eeg.npy").write_bytes(b"half")
    prepare(tmp_path, *AMIGOS)
    assert not partial.exists()


def test_full_disk_leaves_nothing(tmp_path, small_disk):
    """On a real file system of 200 kB; the segments need more than twice as much."""
    disk, _ = small_disk
    write_amigos(tmp_path / "raw" / P01, {0: (amigos_signal(1, 10240), ratings(2, 8))})
    line = complaint(script("prepare_data.py", *AMIGOS, "--out", disk / "data", cwd=tmp_path), "prepare_data.py")
    assert f"{disk / 'data' / 'amigos'}" in line and "No space left" in line
    assert not list((disk / "data").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("counts, minutes", [((4, 16), (3, 3)), ((1, 1), (10, 40))])
def test_memory_does_not_grow_with_the_recordings_of_a_subject_nor_with_their_length(tmp_path, counts, minutes):
    """Peak resident memory, all imports included, at 500 Hz, with blocks of 8 MB."""
    peaks = []
    # getrusage would count what this process had when it was forked.
    code = (
        "import re, sys, prepare_data, preparing.cutting\npreparing.cutting.BLOCK = prepare_data.BLOCK = 2**20\n"
        "prepare_data.main()\nprint(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    for name, count, length in zip("ab", counts, minutes):
        for number in range(count):
            path = tmp_path / name / f"S001R{number:02d}.edf"
            write_edf(path, edf_signal(number, 60 * length, 500)[:10], EEG, 500)
        flags = ["--dataset", "bci2000", "--raw", tmp_path / name, "--out", tmp_path / f"data-{name}", "--workers", "1"]
        run = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        peaks.append(int(run.stdout.split()[-1]))
        assert len(open_segments(tmp_path / f"data-{name}" / "bci2000").table) == 6 * length * count
    print(f"peak resident memory: {peaks} kB")
    assert peaks[1] < 1.1 * peaks[0]


def test_ratings_on_a_scale_of_ones_own(tmp_path):
    write_edf(tmp_path / "raw" / "a.edf", edf_signal(0, 12, 160), [*EEG, "ECG"], 160)
    write_list(tmp_path / "raw", "file,subject,valence", "a.edf,A,70")
    flags = "--dataset", "folder", "--raw", "raw"
    refused(tmp_path, *flags, words="line 2, a.edf: valence: expected a rating (--rating-scale) from 1 to 9")
    segments = prepare(tmp_path, *flags, "--rating-scale", -100, 100)
    assert segments.table["valence"].tolist() == [70] and np.isnan(segments.table["arousal"]).all()


def test_folder_with_channels_of_its_own(tmp_path):
    """The real Emotiv recording brought in as EDF beside a real ECG: channels by alias, the manifest's lists."""
    raw = tmp_path / "raw"
    rows = [line for line in real("eeg_eye_state", "eeg_eye_state.arff").read_text().splitlines() if line[:1].isdigit()]
    emotiv = np.array([line.split(",")[:14] for line in rows], float).T
    write_edf(raw / "emotiv" / "eye.edf", emotiv[:, : 128 * 117], [f"EEG {name}" for name in AMIGOS_COLUMNS[:14]], 128)
    write_list(raw, "file,subject,trial,video", "emotiv/eye.edf,one,eye state,rest")
    flags = "--dataset", "folder", "--raw", "raw", "--modalities", "eeg"
    segments = prepare(tmp_path, *flags, "--channels", "o2", "T3", "AF3")
    assert segments.manifest["channels"] == {"eeg": ["O2", "T7", "AF3"]}
    assert segments.signals["eeg"].shape == (11, 3, 1280)
    assert set(segments.table["trial"]) == {"eye state"} and set(segments.table["video"]) == {"rest"}
    signals = labelled_signals(raw / "emotiv" / "eye.edf")
    trial = by_hand([signals[f"EEG {name}"] for name in ("O2", "T7", "AF3")], 128)
    np.testing.assert_allclose(segments.signals["eeg"], cut_by_hand([trial])[0], rtol=1e-6, atol=1e-6)
    refused(tmp_path, *flags, "--channels", "O2", words="--channels")
    refused(tmp_path, *flags[:-2], "--out", "b", words="channel ECG is missing")
    refused(tmp_path, *flags, "--channels", "O2", "o2", words="there twice")
    write_list(raw, "file,subject", "emotiv/eye.edf,two")
    refused(tmp_path, *flags, "--channels", "o2", "T3", "AF3", words="recordings.csv")
