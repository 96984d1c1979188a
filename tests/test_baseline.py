"""Features against sums written out, beats against those of annotated and simulated hearts; the models against the
same done by hand."""

import json
import shutil
import sys

import numpy as np
import pytest
from scipy import signal as sp
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import StandardScaler

import baseline as script
import paper
from analysis import features
from datasets import amigos
from prepared import contents, done, edit_manifest, edit_table, labelled, refusal, sign, write_set
from protocol.records import PREDICTION_DTYPE
from protocol.run import Run
from protocol.segments import open_segments
from recordings import AMIGOS_COLUMNS, amigos_signal, ratings, real, write_amigos

RATE = 128
TIME = np.arange(1280) / RATE


def test_band_powers_are_those_of_welch():
    noise = np.random.default_rng(0).standard_normal((3, 2, 1280))
    frequency, density = sp.welch(noise, RATE, window="hann", nperseg=256, noverlap=128, detrend="constant")
    for number, (low, high) in enumerate(features.BANDS.values()):
        expected = density[..., (frequency >= low) & (frequency < high)].sum(axis=-1) * 0.5
        assert features.band_powers(noise, RATE)[..., number] == pytest.approx(np.log(expected), abs=1e-10)
    assert np.exp(features.band_powers(np.ones(1280), RATE)) == pytest.approx(1e-12)


def test_asymmetry_is_right_minus_left():
    channels = ["F7", "F3", "Cz", "F4", "T3", "T4"]
    random = np.random.default_rng(1)
    eeg = random.standard_normal((4, 6, 1280))
    eeg[:, 3] = np.e * eeg[:, 1]  # F4 is F3, e times as large: the logarithm of its power is greater by 2
    values, names = features.eeg_features(eeg, RATE, channels)
    assert values.shape == (4, 6 * 5 + 2 * 5) and len(names) == 40
    assert names[:2] == ["F7 delta", "F7 theta"] and names[30:35] == [f"F4-F3 {band}" for band in features.BANDS]
    assert names[35] == "T4-T3 delta"
    assert values[:, 30:35] == pytest.approx(2, abs=1e-12)
    assert values[:, 35:] == pytest.approx(values[:, 25:30] - values[:, 20:25], abs=1e-12)


def test_segments_too_short_are_refused_and_a_heart_without_beats_has_no_features():
    with pytest.raises(ValueError, match="32 points at 128 Hz are too short for the power from 1 to 4 Hz"):
        features.band_powers(np.ones(32), RATE)
    for ecg in (np.zeros(1280), ecg_of([2.0, 3.0])):
        assert np.isnan(features.ecg_features(ecg[None, None], RATE)[0]).all()


def ecg_of(beats, seconds=10):
    """A spike of 1 and a slower wave of 0.3 after each beat."""
    time = np.arange(seconds * RATE)[:, None] / RATE - np.asarray(beats)
    return (np.exp(-0.5 * (time / 0.012) ** 2) + 0.3 * np.exp(-0.5 * ((time - 0.25) / 0.04) ** 2)).sum(axis=1)


@pytest.mark.parametrize("rate", [48, 75, 132])
@pytest.mark.parametrize("sign", [1, -1])
def test_heart_rate_of_a_synthetic_ecg(rate, sign):
    noise = 0.05 * np.random.default_rng(rate).standard_normal(1280)
    ecg = sign * ecg_of(np.arange(0.4, 9.8, 60 / rate)) + noise + 0.5 * np.sin(2 * np.pi * 0.2 * TIME)
    values, names = features.ecg_features(ecg[None, None], RATE)
    assert names[0] == "heart rate" and values[0, 0] == pytest.approx(rate, abs=1)
    assert values[0, 3] < 0.012  # RMSSD of equal intervals, within the 8 ms of a point


def test_beats_of_an_annotated_recording():
    record = real("mitdb", "100.hea").with_suffix("")
    wfdb = pytest.importorskip("wfdb")
    ecg = wfdb.rdrecord(record, channels=[0]).p_signal[:, 0]
    notes = wfdb.rdann(str(record), "atr")
    truth = notes.sample[np.isin(notes.symbol, ["N", "A", "V"])] / 360
    found = features.find_beats(sp.resample_poly(ecg, 16, 45)[None], RATE)[0]
    distance = np.abs(truth[:, None] - found)
    assert (distance.min(axis=1) < 0.05).mean() > 0.995 and (distance.min(axis=0) < 0.05).mean() > 0.995


def test_heart_features_against_written_out_numbers():
    values = dict(zip(features.HEART, features.heart_features(np.array([0, 0.8, 1.7, 2.5, 3.5]))))
    # Intervals .8 .9 .8 1.0, mean .875; squared deviations .005625 .000625 .005625 .015625; differences .1 -.1 .2.
    assert values["heart rate"] == pytest.approx(60 / 0.875)
    assert values["SD of intervals"] == pytest.approx((0.0275 / 3) ** 0.5)
    assert values["RMSSD"] == pytest.approx((0.06 / 3) ** 0.5)
    assert values["pNN50"] == 1 and values["shortest interval"] == pytest.approx(0.8)
    # A pause of three seconds is a beat missed: it is no interval, and no difference reaches across it.
    interval, difference = features.intervals(np.array([0, 0.8, 1.7, 4.7, 5.5, 6.4]))
    assert interval == pytest.approx([0.8, 0.9, 0.8, 0.9]) and difference == pytest.approx([0.1, 0.1])


def test_fisher_score_against_a_number_and_the_f_statistic():
    # Means 2 and 7, variances 1 and 4: 25 / 5. A constant feature scores 0.
    x, y = np.array([[1, 3, 5, 9], [2, 2, 2, 2]], float).T, np.array([0, 0, 1, 1])
    assert features.fisher_score(x, y) == pytest.approx([5, 0])
    x, y = np.random.default_rng(0).standard_normal((40, 7)), np.arange(40) % 2
    # With 20 in each class, F = 20 d^2 / 2 / ((20 v + 20 w) / 38) = 19 d^2 / (v + w).
    assert features.fisher_score(x, y) == pytest.approx(f_classif(x, y)[0] / 19, rel=1e-12)


def test_features_of_amigos_are_those_listed():
    eeg = np.random.default_rng(0).standard_normal((14, 30 * RATE))
    eeg[3, 100] = np.nan
    values, names = features.amigos_eeg_features(eeg, RATE, script.AMIGOS_CHANNELS)
    assert script.AMIGOS_CHANNELS == AMIGOS_COLUMNS[:14]
    assert values.shape == (105,) and names[70] == "AF4-AF3 theta" and names[104].startswith("O2-O1")
    lost = [name for name, value in zip(names, values) if np.isnan(value)]
    assert {name.split()[0] for name in lost} == {"FC5", "FC6-FC5"} and len(lost) == 10

    time = np.arange(30 * RATE) / RATE
    wave = 2 * np.sin(2 * np.pi * 1.25 * time)
    values, names = features.amigos_ecg_features(wave, RATE)
    power = dict(zip(names[-60:], np.exp(values[-60:])))
    assert len(values) == 77 and np.isfinite(values[-60:]).all()
    around = power["power 1.1-1.2 Hz"] + power["power 1.2-1.3 Hz"] + power["power 1.3-1.4 Hz"]
    assert around == pytest.approx(2, rel=1e-3) and power["power 1.2-1.3 Hz"] > 1.6  # Hann: 4 and 1 of 6
    values = dict(zip(names, features.amigos_ecg_features(ecg_of(np.arange(0.5, 29.5, 0.75), 30), RATE)[0]))
    assert values["heart rate mean"] == pytest.approx(80, abs=0.5)
    assert values["interval mean"] == pytest.approx(0.75, abs=0.01)
    assert np.isnan(features.amigos_ecg_features(np.where(time < 1, np.nan, wave), RATE)[0]).all()


def test_skin_resistance_rises_and_falls():
    time = np.arange(60 * RATE) / RATE
    gsr = 2e5 + 10 * time + 1000 * np.cos(2 * np.pi * 0.1 * time)  # six periods, rising by 10 ohm/s
    gsr[:20] = np.nan  # AMIGOS's noisy start is not used
    values, names = features.amigos_gsr_features(gsr, RATE)
    values = dict(zip(names, values))
    assert values["mean"] == pytest.approx(2e5 + 300, abs=10) and values["mean slope"] == pytest.approx(10, abs=3)
    assert values["minima per s"] == pytest.approx(6 / 60, abs=0.005)
    # It falls while 1000 * 2 pi 0.1 sin > 10: 0.4949 of the time; mean slope there 10 - 628.3 * 2 / pi.
    assert values["share falling"] == pytest.approx(0.495, abs=0.01)
    assert values["mean falling slope"] == pytest.approx(10 - 628.3 * 2 / np.pi, rel=0.02)
    assert values["mean rise time"] == pytest.approx(5, abs=0.3)
    assert values["power 0.00-0.24 Hz"] == pytest.approx(np.log(1000**2 / 2), abs=0.05)
    assert values["power 0.48-0.72 Hz"] < np.log(1)


COHORT = "--subjects 5 --unrated-subjects 1 --videos 6 --seconds 20 --effect 1.5".split()
FEWER = "--regularisation 0.01 1 --n-features 5 20 --inner-folds 2".split()  # so that the tests take seconds
PEOPLE = "--data data/simulated --split subject --n-folds 5 --threshold subject".split()
AMIGOS = "--model amigos --raw raw".split()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A small cohort, prepared, with the classical models and the AMIGOS baseline on it."""
    folder = tmp_path_factory.mktemp("planted")
    done("prepare_data.py", "--dataset", "simulated", "--raw", "raw", *COHORT, cwd=folder)
    for model in (PEOPLE, AMIGOS):
        baseline(*model, "--run", "runs/people", cwd=folder)
    return folder


@pytest.fixture
def copy(planted, tmp_path):
    return shutil.copytree(planted, tmp_path / "copy")


def baseline(*flags, cwd):
    return done("baseline.py", *FEWER, *flags, cwd=cwd)


def open_run(folder, name="people"):
    """The run as its files say, from the folder above `data` and `runs`."""
    settings = json.loads((folder / "runs" / name / "run.json").read_text())
    data = open_segments(folder / "data" / "simulated")
    return Run(folder / "runs" / name, settings, data, np.load(folder / "runs" / name / "folds.npy"))


def predictions(folder, model, target, run="people"):
    """Those of all folds, and the records beside them."""
    paths = sorted((folder / "runs" / run / model).glob(f"fold*/{target}.npy"))
    return [np.load(path) for path in paths], [json.loads(path.with_suffix(".json").read_text()) for path in paths]


def test_labels_and_rows_are_those_of_the_runs_folds(planted):
    run = open_run(planted)
    for model in ("classical-eeg", "classical-ecg", "classical-both", "amigos-ecg", "amigos-gsr", "amigos-fused"):
        for rows, each in zip(map(run.split, range(5)), predictions(planted, model, "valence")[0], strict=True):
            assert each.dtype == PREDICTION_DTYPE and np.array_equal(each["segment"], rows["test"])
            assert np.array_equal(each["label"], run.labels("valence", rows["train"])[rows["test"]])
            assert ((each["probability"] >= 0) & (each["probability"] <= 1)).all()
    for each in predictions(planted, "amigos-fused", "arousal")[0]:
        trials = run.data.table[["subject", "trial"]][each["segment"]].tolist()
        assert len(set(zip(trials, each["probability"].tolist()))) == len(set(trials))  # one probability a trial


def test_logistic_regression_is_that_done_by_hand(planted):
    run = open_run(planted)
    (found, *_), (record, *_) = predictions(planted, "classical-both", "arousal")
    rows = run.split(0)
    labels = run.labels("arousal", rows["train"])
    eeg, ecg = (run.data.signals[name][:].astype(float) for name in ("eeg", "ecg"))
    eeg, names = features.eeg_features(eeg, RATE, run.data.manifest["channels"]["eeg"])
    ecg, heart = features.ecg_features(ecg, RATE)
    assert record["features"] == [f"eeg {name}" for name in names] + [f"ecg {name}" for name in heart]
    train = rows["train"][labels[rows["train"]] >= 0]
    x = np.concatenate([eeg, ecg], axis=1)
    x = StandardScaler().fit(x[train]).transform(x)
    assert not np.isnan(x[train]).any() and record["train_segments"] == len(train)
    model = LogisticRegression(C=record["chosen"]["regularisation"], max_iter=1000).fit(x[train], labels[train])
    expected = 1 / (1 + np.exp(-(x[rows["test"]] @ model.coef_[0] + model.intercept_[0])))
    assert found["probability"] == pytest.approx(expected, abs=1e-5)


def test_naive_bayes_is_that_done_by_hand(planted):
    run = open_run(planted)
    table, rows = run.data.table, run.split(2)
    by_kind = {"eeg": {}, "ecg": {}, "gsr": {}}
    for path in amigos.sources(planted / "raw"):
        for video, signals, *_ in amigos.videos(path):
            key = amigos.FILE.fullmatch(path.name)[1], video
            by_kind["eeg"][key], _ = features.amigos_eeg_features(signals.T[:14], RATE, AMIGOS_COLUMNS[:14])
            by_kind["ecg"][key], _ = features.amigos_ecg_features(signals.T[15], RATE)
            by_kind["gsr"][key], _ = features.amigos_gsr_features(signals.T[16], RATE)
    label_of = dict(zip(table[["subject", "trial"]].tolist(), run.labels("arousal", rows["train"])))
    probability = {}
    for kind, values in by_kind.items():
        found, record = (each[2] for each in predictions(planted, f"amigos-{kind}", "arousal"))
        keys = [key for key in values if key[0] in table["subject"][run.folds >= 0]]
        x, subject, label = (np.array(each) for each in zip(*((values[k], k[0], label_of[k]) for k in keys)))
        assert not np.isnan(x).any()
        for each in set(subject):
            x[subject == each] = StandardScaler().fit_transform(x[subject == each])
        train = np.isin(subject, table["subject"][rows["train"]])
        assert record["train_trials"] == train.sum()
        x = StandardScaler().fit(x[train]).transform(x)
        score = features.fisher_score(x[train], label[train])
        kept = np.sort(np.argsort(-score)[: record["chosen"][kind]["n_features"]])
        assert len(kept) == len(record["chosen"][kind]["features"])
        bayes = GaussianNB().fit(x[train][:, kept], label[train])
        expected = dict(zip(keys, bayes.predict_proba(x[:, kept])[:, 1]))
        trials = table[["subject", "trial"]][found["segment"]].tolist()
        probability[kind] = np.array([expected[trial] for trial in trials])
        assert found["probability"] == pytest.approx(probability[kind], abs=1e-5), kind
    fused = predictions(planted, "amigos-fused", "arousal")[0][2]["probability"]
    assert fused == pytest.approx(np.mean(list(probability.values()), axis=0), abs=1e-5)


def test_regularisation_is_chosen_across_units():
    """Features that give the unit away and labels that follow the unit: within units, trusting them helps; across
    units it does not."""
    unit = np.repeat(np.arange(24), 8)
    random = np.random.default_rng(0)
    x = np.eye(24)[unit] + 0.1 * random.standard_normal((len(unit), 24))
    y = (random.permutation(24) % 2)[unit]
    model = script.pipeline(("regression", LogisticRegression(max_iter=1000)))
    grid = {"regression__C": [1e-4, 1.0, 100.0]}
    for groups, expected in ((unit, 1e-4), (np.arange(len(unit)), 100.0)):
        fitted, chosen = script.choose(model, grid, x, y, groups, 5, script.negative_log_loss)
        assert chosen == {"regression__C": expected} and fitted["regression"].C == expected


def test_wild_test_signals_change_nothing_but_their_own_predictions(copy):
    rows = open_run(copy).split(0)
    wild = rows["test"][::2]
    for modality in ("eeg", "ecg"):
        signals = np.load(copy / "data" / "simulated" / f"{modality}.npy", mmap_mode="r+")
        signals[wild] = 1e4 * np.random.default_rng(0).standard_normal(signals[wild].shape)
        signals[rows["validation"]] = -50 * signals[rows["validation"]] ** 3
        signals.flush()
    sign(copy / "data" / "simulated")
    baseline(*PEOPLE, "--run", "runs/wild", "--fold", 0, cwd=copy)
    for model in ("classical-eeg", "classical-both"):
        (before, *_), (record, *_) = predictions(copy, model, "arousal")
        (after,), (new,) = predictions(copy, model, "arousal", "wild")
        kept = ~np.isin(before["segment"], wild)
        assert np.array_equal(before[kept], after[kept]) and kept.any() and not np.array_equal(before, after)
        assert record["chosen"] == new["chosen"]


def test_a_test_subject_of_other_labels_changes_no_prediction(copy):
    """Nor selects a feature: flipped ratings of the test subject leave the AMIGOS baseline's probabilities alone."""
    run = open_run(copy)
    test = np.isin(np.arange(len(run.data.table)), run.split(3)["test"])
    flipped = {name: lambda t, name=name: np.where(test, 10 - t[name], t[name]) for name in ("arousal", "valence")}
    edit_table(copy / "data" / "simulated", **flipped)
    for flags in (AMIGOS, ()):
        baseline(*PEOPLE, "--run", "runs/flipped", "--fold", 3, *flags, cwd=copy)
    assert np.array_equal(open_run(copy, "flipped").folds, run.folds)
    for model in ("amigos-fused", "amigos-eeg", "classical-both"):
        before = predictions(copy, model, "arousal")[0][3]
        (after,) = predictions(copy, model, "arousal", "flipped")[0]
        assert np.array_equal(before["probability"], after["probability"])
        assert not np.array_equal(before["label"], after["label"])


def test_controls_have_files_of_their_own_and_true_labels(copy):
    plain, plain_record = (each[1] for each in predictions(copy, "classical-eeg", "arousal"))
    for flags, variant in ((["--shuffle-labels"], "-shuffled"), (["--label-fraction", 0.5], "-fraction0.5")):
        baseline("--run", "runs/people", "--target", "arousal", "--fold", 1, *flags, cwd=copy)
        (found,), (record,) = predictions(copy, "classical-eeg", f"arousal{variant}")
        assert np.array_equal(found["label"], plain["label"]) and np.array_equal(found["segment"], plain["segment"])
        assert not np.array_equal(found["probability"], plain["probability"])
    parts, _ = labelled(open_run(copy), 1, "arousal", label_fraction=0.5)
    assert record["train_segments"] == len(parts["train"]) < plain_record["train_segments"]


def test_done_work_is_skipped_and_fresh_gives_the_same_bytes(copy):
    before = contents(copy / "runs")
    lines = [line for line in baseline("--run", "runs/people", cwd=copy).splitlines() if line.startswith("runs/")]
    assert len(lines) == 30 and all(line.endswith("already done, nothing to do") for line in lines)
    assert contents(copy / "runs") == before
    text = baseline("--run", "runs/people", "--fold", 2, "--fresh", cwd=copy)
    assert contents(copy / "runs") == before
    written = [line for line in text.splitlines() if line.endswith("test predictions")]
    assert len(written) == 6 and all("/fold2/" in line for line in written)
    # Killed between the two files of a prediction, or the predictions lost: written again.
    path = copy / "runs" / "people" / "classical-ecg" / "fold2" / "arousal.npy"
    for damage in (path.unlink, path.with_suffix(".json").unlink, lambda: path.write_bytes(b"half")):
        damage()
        baseline("--run", "runs/people", cwd=copy)
        assert contents(copy / "runs") == before


def refused(folder, *flags, says) -> None:
    """The call ends in one line that holds these words; nothing was written."""
    refusal("baseline.py", *FEWER, *flags, cwd=folder, says=[says])


@pytest.mark.parametrize(
    "flags, expected",
    [
        (("--regularisation", 3), "was made with --regularisation [0.01, 1.0], found [3.0]"),
        (("--fold", 5), "--fold 5: expected 0 to 4"),
        (("--inner-folds", 1), "argument --inner-folds: expected 2 or more, found 1"),
        (("--threshold", "global"), "this run was started with --threshold subject, found global"),
        (("--model", "amigos"), "needs --raw"),
        ((*AMIGOS, "--fresh", "--run", "runs/new", "--data", "data/simulated"), "expects a run with --split subject"),
        ((*AMIGOS, "--run", "runs/new", *PEOPLE[:-1], "global"), "--n-folds 5 --threshold subject; use another"),
        ((*AMIGOS, "--run", "runs/new", *PEOPLE, "--n-folds", 3), "--n-folds 5 --threshold subject; use another"),
        ((*AMIGOS[:2], "--raw", "elsewhere", "--fresh"), "Data_Preprocessed_P01.mat, from which the set was prepared"),
        (("--label-fraction", 0.01), "--label-fraction"),
        (("--run", "runs/none", "--data", "data/none"), "data/none/manifest.json"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(planted, flags, expected):
    refused(planted, "--run", "runs/people", *flags, says=expected)


def test_files_that_are_not_as_they_were_are_refused(copy):
    record = copy / "runs" / "people" / "classical-ecg" / "fold0" / "arousal.json"
    other = json.dumps({**json.loads(record.read_text()), "family": "network"})
    damaged = dict.fromkeys(("[1]", "{}", '{"predictions_sha256": ""}'), "fold as int, found None")
    for text, expected in {"{": "JSON, found", **damaged, other: "family classical, found network"}.items():
        record.write_text(text)
        refused(copy, "--run", "runs/people", says=f"{record.relative_to(copy)}: expected {expected}")
    cells = {video: (np.ones((20 * RATE, 17)), ratings(3, 7)) for video in range(6)}
    write_amigos(copy / "raw" / "Data_Preprocessed_P02.mat", cells)
    expected = "raw/Data_Preprocessed_P02.mat: not the file that the set was prepared from"
    refused(copy, "--run", "runs/people", *AMIGOS, "--fresh", says=expected)
    signals = np.load(copy / "data" / "simulated" / "eeg.npy", mmap_mode="r+")
    signals[7, 3, 100] = np.nan
    signals.flush()
    refused(copy, "--run", "runs/people", "--fresh", says="eeg.npy: not the file that prepare_data.py wrote")
    refused(copy, "--run", "runs/people", "--fresh", "--trust-data", says="eeg.npy: row 7 holds NaN")


def test_trials_with_holes_are_imputed_and_said(tmp_path):
    """As AMIGOS has them: NaN in single columns of some videos."""
    for subject in range(1, 4):
        videos = {}
        for video in range(6):
            signal = amigos_signal(10 * subject + video, 20 * RATE)
            if (subject, video) == (2, 1):
                signal[500:600, 3] = np.nan  # FC5, which the network does not use
            videos[video] = signal, ratings(2 + 5 * (video % 2), 2 + 5 * (video // 3))
        write_amigos(tmp_path / "raw" / f"Data_Preprocessed_P{subject:02d}.mat", videos)
    done("prepare_data.py", "--dataset", "amigos", "--raw", "raw", cwd=tmp_path)
    flags = "--split", "subject", "--n-folds", 3, "--threshold", "subject", "--target", "arousal"
    text = baseline(*AMIGOS, *flags, cwd=tmp_path)
    assert "2 of 36 segments lack eeg features" in text and "gsr features" not in text
    found = np.concatenate([np.load(path) for path in tmp_path.glob("runs/paper/amigos-eeg/fold*/arousal.npy")])
    assert len(found) == 36 and np.isfinite(found["probability"]).all()


def test_only_what_the_data_hold_is_done(tmp_path):
    folder = write_set(tmp_path / "data" / "amigos", points=1280)
    (folder / "ecg.npy").unlink()
    edit_manifest(folder, lambda manifest: manifest["channels"].pop("ecg"))
    edit_table(folder, valence=lambda table: np.nan)
    refused(tmp_path, "--n-folds", 3, "--target", "valence", says="no valence rating")
    assert "nothing is rated for valence; skipped" in baseline("--n-folds", 3, cwd=tmp_path)
    found = [path.parts[-3:] for path in tmp_path.glob("runs/paper/*/*/*.npy")]
    assert sorted(found) == [("classical-eeg", f"fold{fold}", "arousal.npy") for fold in range(3)]


def test_a_modality_without_features_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setitem(paper.MODALITIES, "eda", paper.Modality("EDA", ("EDA",), 0.01, 5.0, fused=False))
    folder = write_set(tmp_path / "data" / "amigos", points=1280)
    shutil.copy(folder / "ecg.npy", folder / "eda.npy")
    edit_manifest(folder, lambda manifest: manifest["channels"].update(eda=["EDA"]))
    sign(folder)
    flags = "--n-folds", 3, "--target", "arousal", "--fold", 0
    said = "no classical features of EDA; left out, add them to analysis/features.py"
    assert baseline(*flags, cwd=tmp_path).count(said) == 1
    found = {path.parts[-3] for path in tmp_path.glob("runs/paper/*/*/*.npy")}
    assert found == {"classical-eeg", "classical-ecg", "classical-both"}


def test_without_scikit_learn_one_line_says_what_to_install(planted, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    refused(planted, "--run", "runs/people", says="pip install scikit-learn")


def test_one_training_subject_leaves_nothing_to_choose_by(tmp_path):
    write_set(tmp_path / "data" / "amigos", subjects=3, unrated=0, points=1280)
    flags = "--split", "subject", "--n-folds", 3, "--validation-parts", 2, "--fold", 0
    assert "too few units in training to choose by" in baseline(*flags, cwd=tmp_path)
