import json
import os
import subprocess
import sys

import edfio
import numpy as np
import pytest
from scipy import signal as sp

import paper
from datasets import Recording, amigos, eegmat
from layouts import write_list
from prepare_data import parse_flags, resolve
from prepared import ROOT, call, complaint, contents, done, edit_manifest, script
from preparing import cutting
from protocol.segments import open_segments
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
OLD_NAMES = "F7 F3 T3 T5 O1 O2 T6 T4 F4 F8".split()
COLUMNS = [AMIGOS_COLUMNS.index(name) for name in [*EEG, "ECG_L"]]
AMIGOS = "--dataset amigos --raw raw".split()


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


def filtered_by_hand(signals, rate, low=0.8, high=50):
    """`signals` (C, n): FACTS of the paper with SciPy alone: order 8, 0.8-50 Hz, there and back, 21 s of extension."""
    sos = sp.butter(8, [low, high], "bandpass", fs=rate, output="sos")
    slowest = np.abs(sp.sos2zpk(sos)[1]).max()
    extra = int(np.ceil(-20 / np.log(slowest)))
    extended = np.pad(signals, ((0, 0), (extra, extra)), "reflect", reflect_type="odd")
    return sp.sosfiltfilt(sos, extended, padtype=None)[:, extra:-extra]


def by_hand(signals, rate, low=0.8, high=50):
    """The same, then at 128 Hz."""
    return sp.resample_poly(filtered_by_hand(signals, rate, low, high), 128, int(rate), axis=1)


def cut_by_hand(trials):
    """`trials` (C, n_i), each cut into whole ten-second segments, per channel z-scored over all of these."""
    whole = np.concatenate([trial[:, : trial.shape[1] // 1280 * 1280] for trial in trials], axis=1)
    mean, sd = whole.mean(axis=1, keepdims=True), whole.std(axis=1, keepdims=True)
    return [
        ((trial - mean) / sd)[:, i * 1280 : (i + 1) * 1280] for trial in trials for i in range(trial.shape[1] // 1280)
    ], (mean[:, 0], sd[:, 0])


def test_amigos_subjects_that_lack_something(tmp_path):
    """P08 saw no long video, P32 rated none: nobody is dropped."""
    raw = tmp_path / "raw"
    short = {v: (amigos_signal(v, 2560 + v), ratings(1 + v / 4, 9 - v / 4)) for v in range(16)}
    long = {v: (amigos_signal(v, 3900), ratings(5, 5)) for v in range(16, 20)}
    write_amigos(raw / "Data_Preprocessed_P08.mat", short)
    write_amigos(raw / "Data_Preprocessed_P32.mat", short | {v: (signal, None) for v, (signal, _) in long.items()})
    data = prepare(tmp_path, *AMIGOS)
    counts = {subject: np.sum(data.table["subject"] == subject) for subject in ("P08", "P32")}
    assert counts == {"P08": 16 * 2, "P32": 16 * 2 + 4 * 3}
    unrated = np.isnan(data.table["arousal"]) & np.isnan(data.table["valence"])
    np.testing.assert_array_equal(unrated, (data.table["subject"] == "P32") & np.isin(data.table["video"], LONG))


def test_real_eegmat_by_hand(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    files = [real("eegmat", f"Subject31_{n}.edf") for n in (1, 2)]
    for file in files:
        (raw / file.name).symlink_to(file)
    segments = prepare(tmp_path, "--dataset", "eegmat", "--raw", "raw")
    trials = []
    for file in files:
        signals = {signal.label: signal.data for signal in edfio.read_edf(file).signals}
        names = [f"EEG {name}" for name in OLD_NAMES] + ["ECG ECG"]
        trials.append(by_hand([signals[name] for name in names], 500))
    expected, (mean, sd) = cut_by_hand(trials)
    expected = np.stack(expected)
    assert expected.shape == (8 + 6, 11, 1280)
    np.testing.assert_allclose(segments.signals["eeg"], expected[:, :10], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(segments.signals["ecg"], expected[:, 10:], rtol=1e-6, atol=1e-6)
    assert segments.table["trial"].tolist() == ["Subject31_1"] * 8 + ["Subject31_2"] * 6
    assert segments.table["start"].tolist() == [*range(0, 80, 10), *range(0, 60, 10)]
    assert set(segments.table["arousal"]) == {1, 9} and np.isnan(segments.table["valence"]).all()

    for modality, rows in (("eeg", slice(0, 10)), ("ecg", slice(10, 11))):
        kept = segments.manifest["subjects"]["Subject31"][modality]
        np.testing.assert_allclose(kept["mean"], mean[rows], atol=1e-9 * sd.max())
        np.testing.assert_allclose(kept["sd"], sd[rows], rtol=1e-9)
        assert kept["points"] == [14 * 1280] * len(kept["mean"])
    [piece] = [p for p in segments.manifest["dropped"] if p["trial"] == "Subject31_2"]
    assert piece == {
        "subject": "Subject31", "trial": "Subject31_2", "start": 60, "seconds": 2, "reason": "shorter than a segment"
    }  # fmt: skip


def test_real_bci2000_by_hand(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "S001R01.edf").symlink_to(real("eegmmidb", "S001", "S001R01.edf"))
    segments = prepare(tmp_path, "--dataset", "bci2000", "--raw", "raw")
    edf = edfio.read_edf(tmp_path / "raw" / "S001R01.edf")
    signals = {signal.label.rstrip("."): signal.data for signal in edf.signals}
    expected, _ = cut_by_hand([by_hand([signals[name] for name in EEG], 160)])
    assert len(expected) == 6 and list(segments.signals) == ["eeg"]
    np.testing.assert_allclose(segments.signals["eeg"], expected, rtol=1e-6, atol=1e-6)


def test_all_real_eegmat(tmp_path, capsys):
    """The share of each subject, and the one ECG without beats: reported, and dropped only on demand."""
    raw = real("eegmat")
    flags = "--dataset", "eegmat", "--raw", raw, "--max-seconds-per-trial", 62
    segments = prepare(tmp_path, *flags)
    assert segments.manifest["counts"] == {"subjects": 15, "trials": 30, "segments": 180, "hours": 0.5}
    assert "Subject20_2: ECG without plausible beats" in capsys.readouterr().out
    assert [n["trial"] for n in segments.manifest["notes"] if "beats" in n["note"]] == ["Subject20_2"]
    dropped = prepare(tmp_path, *flags, "--out", "b", "--drop-unusable-ecg")
    assert len(dropped.table) == 174 and "Subject20_2" not in dropped.table["trial"]
    assert any(p["trial"] == "Subject20_2" and "beats" in p["reason"] for p in dropped.manifest["dropped"])


@pytest.fixture
def amigos_raw(tmp_path):
    """Two subjects, two layouts, different orders of the videos; 35 s, 21 s and 10 s."""
    videos = {0: (amigos_signal(1, 4480), ratings(2, 8)), 3: (amigos_signal(2, 2688), ratings(7, 3))}
    write_amigos(tmp_path / "raw" / "Data_Preprocessed_P01.mat", videos)
    other = {v: (signal + 5, rated) for v, (signal, rated) in videos.items()} | {17: (amigos_signal(3, 1280), None)}
    name = "Data_Preprocessed_P02"
    write_amigos(tmp_path / "raw" / name / f"{name}.mat", other, SHORT[::-1] + LONG)
    return tmp_path / "raw"


def test_amigos_by_hand(amigos_raw, tmp_path):
    segments = prepare(tmp_path, *AMIGOS)
    assert segments.table["subject"].tolist() == ["P01"] * 5 + ["P02"] * 6
    assert segments.table["trial"].tolist() == ["4"] * 3 + ["10"] * 2 + ["138"] * 3 + ["36"] * 2 + ["P1"]
    np.testing.assert_array_equal(segments.table["arousal"], np.float32([2, 2, 2, 7, 7, 2, 2, 2, 7, 7, np.nan]))
    np.testing.assert_array_equal(segments.table["valence"], np.float32([8, 8, 8, 3, 3, 8, 8, 8, 3, 3, np.nan]))
    raw = amigos_signal(1, 4480), amigos_signal(2, 2688)
    expected = np.stack(cut_by_hand([by_hand(signal[:, COLUMNS].T, 128) for signal in raw])[0])
    np.testing.assert_allclose(segments.signals["eeg"][:5], expected[:, :10], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(segments.signals["ecg"][:5], expected[:, 10:], rtol=1e-6, atol=1e-6)
    assert segments.manifest["simulated"] is False
    source = segments.manifest["sources"][1]
    assert source["subject"] == "P02" and source["trials"] == [["P02", "138"], ["P02", "36"], ["P02", "P1"]]
    assert source["size"] == (amigos_raw / source["file"]).stat().st_size


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("rate, dataset", [(128, "amigos"), (500, "eegmat")])
def test_one_bad_point_costs_one_segment(tmp_path, value, rate, dataset, monkeypatch):
    """Runs on either side are filtered alone; a damaged EDF cannot hold NaN, so the reader puts it there."""
    raw, trials = tmp_path / "raw", {}
    bad = round(13.37 * rate)
    if dataset == "amigos":
        trials = {"4": amigos_signal(1, 4480).T, "5": amigos_signal(2, 4480).T}
        trials["4"][2, bad] = value
        write_amigos(raw / "Data_Preprocessed_P01.mat", {i: (trials[t].T, ratings(2, 2)) for i, t in enumerate(trials)})
        rows = COLUMNS
    else:
        for number in (1, 2):
            write_edf(raw / f"Subject01_{number}.edf", edf_signal(number, 35, 500), [*EEG, "ECG ECG"], 500)
            signals = edfio.read_edf(raw / f"Subject01_{number}.edf").signals
            trials[f"Subject01_{number}"] = np.stack([signal.data for signal in signals])
        trials["Subject01_1"][1, bad] = value
        rows = list(range(11))
        read = eegmat.read

        def damaged(path, **rest):
            [recording] = read(path, **rest)
            if path.stem.endswith("_1"):
                recording.signals["eeg"][1, bad] = value
            yield recording

        monkeypatch.setattr(eegmat, "read", damaged)
    flags = "--dataset", dataset, "--raw", "raw", "--normalise", "none"
    segments = prepare(tmp_path, *flags, "--workers", 1)  # this process alone has the damaged reader
    first, second = trials
    assert segments.table["trial"].tolist() == [first, first, second, second, second]
    assert segments.table["start"].tolist() == [0, 20, 0, 10, 20]
    [piece] = [p for p in segments.manifest["dropped"] if p["reason"] != "shorter than a segment"]
    assert piece["trial"] == first and (piece["start"], piece["seconds"]) == (10, 10)
    assert piece["reason"] == "NaN or infinite in F3"

    # Beside the bad point: each side alone by hand, zeros standing for the missing points when it is resampled.
    ups, signals = np.zeros((11, 35 * rate)), trials[first][rows]
    for start, stop in ((0, bad), (bad + 1, 35 * rate)):
        ups[:10, start:stop] = filtered_by_hand(signals[:10, start:stop], rate)
    ups[10:] = filtered_by_hand(signals[10:], rate)  # the ECG has no gap
    after = np.where(np.arange(35 * rate) > bad, ups, 0)
    after[10] = ups[10]
    for segment, run in ((0, ups), (1, after)):
        expected = sp.resample_poly(run, 128, rate, axis=1)[:, segment * 2560 :][:, :1280]
        scale = expected.std()
        near_gap = slice(0, 1270 if segment == 0 else 1280)  # where before and after mix in this way of resampling
        found = np.concatenate([segments.signals["eeg"][segment], segments.signals["ecg"][segment]])
        np.testing.assert_allclose(found[:, near_gap], expected[:, near_gap], rtol=1e-5, atol=1e-6 * scale)


def test_a_bad_column_drops_the_trial_and_not_the_subject(amigos_raw, tmp_path):
    signal = amigos_signal(1, 4480)
    signal[:, 5] = np.nan
    videos = {0: (signal, ratings(2, 2)), 1: (amigos_signal(2, 4480), ratings(3, 3))}
    write_amigos(amigos_raw / "Data_Preprocessed_P01.mat", videos)
    segments = prepare(tmp_path, *AMIGOS)
    assert segments.table["trial"][:3].tolist() == ["5"] * 3 and len(segments.table) == 9
    piece = segments.manifest["dropped"][0]
    assert (piece["start"], piece["seconds"], piece["reason"]) == (0, 30, "NaN or infinite in P7")
    ecg = prepare(tmp_path, *AMIGOS, "--out", "ecg", "--modalities", "ecg")
    assert ecg.table["trial"][:6].tolist() == ["4"] * 3 + ["5"] * 3 and list(ecg.signals) == ["ecg"]


def test_constant_second_drops_its_segments_and_nothing_else(amigos_raw, tmp_path):
    signal = amigos_signal(1, 4480)
    signal[1250:1400, 12] = 3.0  # F8, across the border of the first two segments
    signal[3000:3100, 12] = 3.0  # under a second
    signal[3000:4000, 3] = 1.0  # FC5, which nobody uses
    write_amigos(amigos_raw / "Data_Preprocessed_P01.mat", {0: (signal, ratings(2, 2))})
    segments = prepare(tmp_path, *AMIGOS)
    assert segments.table["start"][segments.table["subject"] == "P01"].tolist() == [20]
    for array in segments.signals.values():  # what is dropped sets no scale
        kept = array[segments.table["subject"] == "P01"]
        np.testing.assert_allclose(kept.mean(axis=(0, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(kept.std(axis=(0, 2)), 1, rtol=1e-5)
    assert segments.manifest["dropped"][0]["reason"] == "constant in F8"
    assert (segments.manifest["dropped"][0]["start"], segments.manifest["dropped"][0]["seconds"]) == (0, 20)


def test_no_segment_crosses_a_trial(tmp_path):
    """Trials marked by a rhythm of their own: each segment has that of its trial alone, as loud as everywhere."""
    t, frequencies, videos = np.arange(128 * 37) / 128, (5, 9, 14, 20), {}
    for v, frequency in enumerate(frequencies):
        signal = amigos_signal(v, len(t)) * 1e-3
        signal[:, :14] += np.sin(2 * np.pi * frequency * t)[:, None]
        videos[v] = signal, ratings(2, 2)
    write_amigos(tmp_path / "raw" / "Data_Preprocessed_P01.mat", videos)
    segments = prepare(tmp_path, *AMIGOS)
    assert len(segments.table) == 12
    power = np.abs(np.fft.rfft(segments.signals["eeg"], axis=2)) ** 2
    for row, spectrum in zip(segments.table, power.mean(axis=1)):
        own = frequencies[SHORT.index(row["trial"])]
        assert spectrum[own * 10] > 0.99 * spectrum.sum()


@pytest.mark.parametrize("scope", ["recording", "segment", "none"])
def test_other_normalisations(amigos_raw, tmp_path, scope):
    segments = prepare(tmp_path, *AMIGOS, "--normalise", scope)
    trial = by_hand(amigos_signal(2, 2688)[:, COLUMNS[:10]].T, 128)
    pieces = np.stack([trial[:, :1280], trial[:, 1280:2560]])
    if scope == "recording":
        kept = trial[:, :2560]
        pieces = (pieces - kept.mean(axis=1)[:, None]) / kept.std(axis=1)[:, None]
    elif scope == "segment":
        pieces = (pieces - pieces.mean(axis=2, keepdims=True)) / pieces.std(axis=2, keepdims=True)
    np.testing.assert_allclose(segments.signals["eeg"][3:5], pieces, rtol=1e-5, atol=1e-6)


def test_baseline_limit_length_and_ecg_side(amigos_raw, tmp_path):
    segments = prepare(tmp_path, *AMIGOS, "--drop-baseline", 5, "--max-seconds-per-trial", 20)
    assert segments.table["start"].tolist() == [5, 15, 5, 5, 15, 5]  # 35 s, 21 s; the same again; 10 s hold none
    raw = amigos_signal(1, 4480), amigos_signal(2, 2688)
    trials = [by_hand(signal[640:3200, COLUMNS[:10]].T, 128) for signal in raw]
    np.testing.assert_allclose(segments.signals["eeg"][:3], np.stack(cut_by_hand(trials)[0]), rtol=1e-5, atol=1e-6)
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
    assert any(piece["reason"] == "finite run of eda shorter than one period of --low"
               for piece in segments.manifest["dropped"])  # fmt: skip
    raw = amigos_signal(1, 4480), amigos_signal(2, 2688)
    expected = cut_by_hand([by_hand(signal[:, 16:17].T, 128, 0.05, 5) for signal in raw])[0]
    np.testing.assert_allclose(segments.signals["eda"][:5], np.stack(expected), rtol=1e-5, atol=1e-5)
    both = prepare(tmp_path, *AMIGOS, "--out", "b", "--modalities", "eeg", "eda", "--low", 1, "--high", 4)
    assert both.manifest["preprocessing"]["high"] == {"eeg": 4, "eda": 4} and list(both.signals) == ["eeg", "eda"]
    refused(tmp_path, *AMIGOS, "--dataset", "dreamer", "--modalities", "eda", words="holds eeg and ecg alone")


def test_a_set_of_an_older_version_is_refused(amigos_raw, tmp_path):
    """It had one pass-band for all; and a table of other targets cannot be used either."""
    prepare(tmp_path, *AMIGOS)
    path = tmp_path / "data" / "amigos" / "segments.npy"
    table = np.load(path)
    np.save(path, table[["subject", "trial", "video", "start", "arousal"]].copy())
    refused(tmp_path, *AMIGOS, words="prepare the data again, with --fresh")
    np.save(path, table)
    edit_manifest(path.parent, lambda manifest: manifest["preprocessing"].update(low=0.8, high=50.0))
    refused(tmp_path, *AMIGOS, words="prepared with --low 0.8, not eeg 0.8, ecg 0.8; give --fresh to replace it")


def test_simulated_cohort_says_so_and_stays_apart(tmp_path, capsys):
    flags = "--subjects", 2, "--unrated-subjects", 1, "--videos", 2, "--seconds", 20
    raw = tmp_path / "raw"
    segments = prepare(tmp_path, "--dataset", "simulated", "--raw", "raw", *flags)
    assert segments.manifest["simulated"] is True and segments.manifest["dataset"] == "simulated"
    assert segments.manifest["counts"]["segments"] == 12 and not segments.manifest["notes"]
    assert "simulated" in capsys.readouterr().out
    assert np.isnan(segments.table["arousal"]).sum() == 4
    write_amigos(raw / "Data_Preprocessed_P99.mat", {0: (amigos_signal(1, 1280), None)})
    refused(tmp_path, *AMIGOS, words="simulated and real")


def test_the_same_command_again_returns_at_once(amigos_raw, tmp_path, capsys):
    prepare(tmp_path, *AMIGOS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "amigos").iterdir()}
    prepare(tmp_path, *AMIGOS)
    assert "nothing to do" in capsys.readouterr().out
    os.utime(amigos_raw / "Data_Preprocessed_P01.mat")  # touched, the same bytes
    prepare(tmp_path, *AMIGOS)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "amigos").iterdir()}

    refused(tmp_path, *AMIGOS, "--low", 1, words="--low eeg 0.8, ecg 0.8, not eeg 1.0, ecg 1.0; give --fresh")
    refused(tmp_path, *AMIGOS, "--modalities", "eeg", words="--modalities")
    assert json.loads(done("prepare_data.py", *AMIGOS, "--json", cwd=tmp_path))["segments"] == 11
    segments = prepare(tmp_path, *AMIGOS, "--low", 1, "--fresh")
    assert segments.manifest["preprocessing"]["low"] == {"eeg": 1, "ecg": 1}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["amigos"]

    write_amigos(amigos_raw / "Data_Preprocessed_P01.mat", {0: (amigos_signal(9, 4480), None)})
    refused(tmp_path, *AMIGOS, "--low", 1, words="Data_Preprocessed_P01.mat")
    write_amigos(amigos_raw / "Data_Preprocessed_P05.mat", {})
    refused(tmp_path, *AMIGOS, "--low", 1, words="P01.mat")
    (amigos_raw / "Data_Preprocessed_P01.mat").unlink()
    refused(tmp_path, *AMIGOS, "--low", 1, words="is gone")


def test_flags_are_the_papers(tmp_path):
    """FACTS: the left ECG, whole trials. Its numbers are in test_flags.py."""
    flags = json.loads(done("prepare_data.py", "--dataset", "amigos", "--print-flags", cwd=tmp_path))
    assert flags["modalities"] == ["eeg", "ecg"] and flags["ecg_side"] == "left" and flags["drop_baseline"] == 0


def overwrite(path, videos, **extra):
    write_amigos(path / "Data_Preprocessed_P01.mat", videos, **extra)


def edit(path, change):
    file = path / "Data_Preprocessed_P01.mat"
    file.write_bytes(change(file.read_bytes()))


NAN = np.full((4480, 17), np.nan)
BAD_AMIGOS = {
    "no folder": ("no such folder", lambda raw: raw.rename(raw.with_name("elsewhere"))),
    "no files": ("no file of amigos", lambda raw: [path.rename(path.with_suffix(".x")) for path in raw.rglob("*.mat")]),
    "empty file": ("P01.mat", lambda raw: edit(raw, lambda content: b"")),
    "cut behind the header": ("P01.mat", lambda raw: edit(raw, lambda content: content[:130])),
    "cut short": ("P01.mat", lambda raw: edit(raw, lambda content: content[:9999])),
    "cut in half": ("P01.mat", lambda raw: edit(raw, lambda content: content[: len(content) // 2])),
    "not a MAT file": ("P01.mat", lambda raw: edit(raw, lambda content: b"<html>" * 999)),
    "a folder for a file": ("P03.mat", lambda raw: (raw / "Data_Preprocessed_P03.mat").mkdir()),
    "wrong columns": ("(n, 17)", lambda raw: overwrite(raw, {0: (np.zeros((999, 14)), None)})),
    "wrong rating": ("from 1 to 9", lambda raw: overwrite(raw, {0: (amigos_signal(0, 1280), ratings(0, 5))})),
    "the same trial twice": (
        "already",
        lambda raw: overwrite(raw, {v: (amigos_signal(v, 1280), None) for v in (0, 1)}, order=["7"] * 20),
    ),
}


@pytest.mark.parametrize("case", BAD_AMIGOS)
def test_bad_files_end_in_one_line(amigos_raw, tmp_path, case):
    words, damage = BAD_AMIGOS[case]
    damage(amigos_raw)
    refused(tmp_path, *AMIGOS, words=words)
    assert not list(tmp_path.glob("data/*"))


@pytest.mark.parametrize(
    "words, signal",
    [
        ("no segment is left", NAN),
        ("no segment is left", np.ones((4480, 17))),
        ("no segment is left", np.zeros((1279, 17))),
        ("no segment is left", np.zeros((1, 17))),
        ("too large or too small for float32", amigos_signal(0, 1500) * 1e-200),
    ],
)
def test_nothing_usable_ends_in_one_line(tmp_path, words, signal):
    write_amigos(tmp_path / "raw" / "Data_Preprocessed_P01.mat", {0: (signal, None)})
    refused(tmp_path, *AMIGOS, words=words)


@pytest.mark.parametrize(
    "words, names, rate",
    [("channel F8 is missing", [*EEG[:-1], "Cz", "ECG"], 500), ("ECG is missing", [*EEG, "Cz"], 500),
     ("channel T7 is there 2 times", [*EEG, "T3"], 500), ("found 90 Hz", [*EEG, "ECG"], 90),
     ("found 25000 Hz", [*EEG, "ECG"], 25000)],
)  # fmt: skip
def test_wrong_channels_and_rates_end_in_one_line(tmp_path, words, names, rate):
    write_edf(tmp_path / "raw" / "Subject01_1.edf", edf_signal(0, 2, rate), names, rate)
    refused(tmp_path, "--dataset", "eegmat", "--raw", "raw", words=words)


@pytest.mark.parametrize(
    "words, flags",
    [("--low 60", ["--low", 60]), ("--rate 100", ["--rate", 100]), ("whole number", ["--seconds-per-segment", 0.3333]),
     ("bci2000 holds eeg alone", ["--modalities", "ecg"]), ("--ecg-side left", ["--ecg-side", "left"]),
     ("--drop-unusable-ecg", ["--drop-unusable-ecg"]), ("--name mine: only for", ["--name", "mine"]),
     ("--name amigos: only", ["--dataset", "folder", "--name", "amigos"]),
     ("--name a/b: expected letters", ["--dataset", "folder", "--name", "a/b"]),
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


def test_one_person_in_files_that_do_not_follow_each_other(tmp_path):
    for seed, name in enumerate(("S001R01", "S002R01", "s001R02")):
        write_edf(tmp_path / "raw" / f"{name}.edf", edf_signal(seed, 12, 160), [*EEG, "ECG"], 160)
    flags = "--dataset", "bci2000", "--raw", "raw"
    refused(tmp_path, *flags, words="subject S001 comes from files that do not follow each other")


def test_flags_of_the_cohort_reach_it(tmp_path):
    cohort = {"subjects": 3, "unrated_subjects": 1, "videos": 2, "seconds": 12.0, "effect": 0.5, "seed": 4}
    flags = [word for name, value in cohort.items() for word in (f"--{name.replace('_', '-')}", value)]
    prepare(tmp_path, "--dataset", "simulated", *flags, "--raw", "raw")
    found = json.loads((tmp_path / "raw" / "simulated.json").read_text())
    assert {name: found[name] for name in cohort} == cohort


def test_the_shorter_modality_ends_the_trial(tmp_path):
    flags = parse_flags(["--dataset", "folder"])
    resolve(flags)
    random = np.random.default_rng(0)
    signals = {"eeg": random.standard_normal((1, 128 * 25)), "ecg": random.standard_normal((1, 256 * 23))}
    rate, names = {"eeg": 128.0, "ecg": 256.0}, {"eeg": ("F7",), "ecg": ("ECG",)}
    recording = Recording("a", "t", "v", signals, rate, names, {}, tmp_path)
    judged, segments = cutting.cut(recording, flags)
    assert judged.kept() == [0, 1] and segments["ecg"].shape == (2, 1, 1280)
    assert judged.dropped() == [{"start": 20.0, "seconds": 3.0, "reason": "shorter than a segment"}]


def test_other_folders_are_never_replaced(amigos_raw, tmp_path):
    (tmp_path / "data" / "amigos").mkdir(parents=True)
    (tmp_path / "data" / "amigos" / "thesis.txt").write_text("mine")
    refused(tmp_path, *AMIGOS, words="manifest.json")
    refused(tmp_path, *AMIGOS, "--fresh", words="manifest.json")


def test_output_that_is_no_folder_or_cannot_be_written(amigos_raw, tmp_path):
    (tmp_path / "data").write_text("a file")
    refused(tmp_path, *AMIGOS, words="data")
    refused(tmp_path, *AMIGOS, "--out", "/proc/nowhere", words="/proc/nowhere")


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
    write_amigos(tmp_path / "raw" / "Data_Preprocessed_P01.mat", {0: (amigos_signal(1, 10240), ratings(2, 8))})
    line = complaint(script("prepare_data.py", *AMIGOS, "--out", disk / "data", cwd=tmp_path), "prepare_data.py")
    assert f"{disk / 'data' / 'amigos'}" in line and "No space left" in line
    assert not list((disk / "data").iterdir())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_recordings_of_a_subject(tmp_path):
    """Peak resident memory, all imports included, of 4 and of 16 recordings of three minutes at 500 Hz."""
    peaks = {}
    for count in (4, 16):
        for number in range(count):
            path = tmp_path / f"raw{count}" / f"S001R{number:02d}.edf"
            write_edf(path, edf_signal(number, 180, 500)[:10], EEG, 500)
        code = (
            "import re, sys, prepare_data\n"
            "prepare_data.main()\n"
            # getrusage would count what this process had when it was forked
            "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
        )
        flags = ["--dataset", "bci2000", "--raw", tmp_path / f"raw{count}", "--out", tmp_path / f"data{count}"]
        flags += ["--workers", "1"]  # all in this process
        run = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        peaks[count] = int(run.stdout.split()[-1])
        assert len(open_segments(tmp_path / f"data{count}" / "bci2000").table) == 18 * count
    print(f"peak resident memory: {peaks} kB")
    assert peaks[16] < 1.1 * peaks[4]


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
    signals = {signal.label: signal.data for signal in edfio.read_edf(raw / "emotiv" / "eye.edf").signals}
    trial = by_hand([signals[f"EEG {name}"] for name in ("O2", "T7", "AF3")], 128)
    np.testing.assert_allclose(segments.signals["eeg"], np.stack(cut_by_hand([trial])[0]), rtol=1e-6, atol=1e-6)
    refused(tmp_path, *flags, "--channels", "O2", words="--channels")
    refused(tmp_path, *flags[:-2], "--out", "b", words="channel ECG is missing")
    refused(tmp_path, *flags, "--channels", "O2", "o2", words="there twice")
    write_list(raw, "file,subject", "emotiv/eye.edf,two")
    refused(tmp_path, *flags, "--channels", "o2", "T3", "AF3", words="recordings.csv")


def test_folder_of_a_real_wfdb_record(tmp_path):
    """30 minutes of MLII are the ECG; the manifest calls it ECG, as every set does."""
    pytest.importorskip("wfdb")
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("100.hea", "100.dat"):
        (raw / name).symlink_to(real("mitdb", name))
    write_list(raw, "file,subject", "100.hea,100")
    flags = "--dataset", "folder", "--raw", "raw", "--modalities", "ecg", "--ecg-channel", "MLII"
    segments = prepare(tmp_path, *flags)
    assert segments.manifest["channels"] == {"ecg": ["ECG"]} and len(segments.table) == 180
    assert segments.manifest["preprocessing"]["ecg_channel"] == "MLII" and not segments.manifest["notes"]
    assert [entry["file"] for entry in segments.manifest["sources"]] == ["recordings.csv", "100.hea", "100.dat"]
    assert [entry["trials"] for entry in segments.manifest["sources"]] == [[], [], [["100", "100"]]]
