"""The simulated cohort: its files, its physiology and its labels, each measured by something that did not make them."""

import json
import resource

import numpy as np
import pytest
from scipy.io import loadmat
from scipy.signal import butter, find_peaks, sosfiltfilt, sosfreqz, welch

from datasets.simulated import EFFECTS, draw_person, draw_ratings, simulate_ecg, simulate_eeg, simulate_gsr
from datasets.simulated import write_cohort
from recordings import LONG, SHORT

F7, F3, O1, F4, F8 = 1, 2, 6, 11, 12
COHORT = {"subjects": 8, "unrated_subjects": 1, "videos": 16, "seconds": 20}
BAND_PASS = butter(8, [0.8, 50], "bandpass", fs=128, output="sos")


def person_and_drive(seconds, arousal=0.0, valence=0.0, seed=0):
    rng = np.random.default_rng(seed)
    person = draw_person(rng)
    return rng, person, np.full(seconds * 128, arousal), np.full(seconds * 128, valence)


def r_peaks(ecg):
    """Times (s) and heights of the R peaks: the local maxima above four tenths of the highest ones."""
    peaks, found = find_peaks(ecg, height=0.4 * np.percentile(ecg, 99.5), distance=40)
    return peaks / 128, found["peak_heights"]


def test_layout_is_that_of_amigos(tmp_path):
    write_cohort(tmp_path / "cohort", **COHORT)
    files = sorted((tmp_path / "cohort").glob("*.mat"))
    assert [path.name for path in files] == [f"Data_Preprocessed_P{subject:02d}.mat" for subject in range(1, 10)]
    for subject, path in enumerate(files, 1):
        assert path.read_bytes()[124:128] == b"\x00\x01IM"  # MAT 5, little endian
        mat = loadmat(path)
        assert json.loads(mat["simulated"][0]) == {**COHORT, "effect": 1.0, "seed": 0, "effects": EFFECTS}
        names = "joined_data", "labels_selfassessment", "labels_ext_annotation", "VideoIDs"
        assert all(mat[name].shape == (1, 20) and mat[name].dtype == object for name in names)
        ids = [str(cell[0]) for cell in mat["VideoIDs"][0]]
        assert set(ids[:16]) == set(SHORT) and set(ids[16:]) == set(LONG)
        signals, labels = mat["joined_data"][0], mat["labels_selfassessment"][0]
        for data, label in zip(signals[:16], labels[:16]):
            assert data.shape == (20 * 128, 17) and data.dtype == np.float64 and np.isfinite(data).all()
            assert label.shape == ((1, 12) if subject <= 8 else (1, 0))
            assert ((label[:, :5] >= 1) & (label[:, :5] <= 9)).all() and set(label[:, 5:].flat) <= {0, 1}
        assert {each.shape for each in signals[16:]} == {(0, 0)} and {each.shape for each in labels[16:]} == {(1, 0)}


def test_classes_balance_and_targets_are_independent():
    ratings = np.concatenate([draw_ratings(np.random.default_rng(seed), 16) for seed in range(40)])
    high = ratings > ratings.mean(axis=0)
    assert abs(high.mean(axis=0) - 0.5).max() < 0.01
    assert abs(np.corrcoef(high.T)[0, 1]) < 0.03
    assert ratings.min() >= 1 and ratings.max() <= 9


def test_the_seed_decides_everything(tmp_path):
    def files(name, seed):
        write_cohort(tmp_path / name, subjects=1, unrated_subjects=1, videos=2, seconds=10, seed=seed)
        return [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]

    first, again, other = files("a", 3), files("b", 3), files("c", 4)
    assert first == again and not set(first) & set(other)
    one, two = (loadmat(tmp_path / name / "Data_Preprocessed_P01.mat")["joined_data"][0, 0] for name in "ac")
    assert abs(np.corrcoef(one[:, O1], two[:, O1])[0, 1]) < 0.2


def test_a_finished_cohort_is_kept_and_another_is_refused(tmp_path):
    small = {"subjects": 1, "unrated_subjects": 0, "videos": 1, "seconds": 10}
    assert write_cohort(tmp_path / "cohort", **small)
    before = (tmp_path / "cohort" / "Data_Preprocessed_P01.mat").stat().st_mtime_ns
    assert not write_cohort(tmp_path / "cohort", **{**small, "seconds": 10.0})
    assert (tmp_path / "cohort" / "Data_Preprocessed_P01.mat").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="cohort: expected"):
        write_cohort(tmp_path / "cohort", **small, seed=1)
    with pytest.raises(ValueError, match="videos must be from 1 to 20, found 21"):
        write_cohort(tmp_path / "other", videos=21)
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]


def test_a_failed_write_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # one recording is larger
    try:
        with pytest.raises(OSError):
            write_cohort(tmp_path / "cohort", subjects=1, videos=2, seconds=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arousal", [-1.0, 1.0])
def test_peak_finder_sees_the_beats_and_the_intended_rate(arousal):
    rng, person, drive, zero = person_and_drive(120, arousal)
    ecg, beats = simulate_ecg(rng, person, drive, zero)
    assert ecg.shape == (120 * 128, 2)
    for lead in (0, 1):
        times, _ = r_peaks(sosfiltfilt(BAND_PASS, ecg[:, lead]))
        inner = beats[(beats > 0.1) & (beats < 119.9)]
        assert abs(len(times) - len(beats)) <= 2
        assert abs(times[:, None] - inner).min(axis=0).max() < 1 / 128
    intended = person["heart_rate"] + arousal * person["response"]["heart_rate"]
    assert 60 / np.diff(times).mean() == pytest.approx(intended, abs=1)


def test_responses_scatter_around_the_documented_effects_and_vanish_with_them():
    for effect in (0, 0.5, 2):
        people = [draw_person(np.random.default_rng(seed), effect)["response"] for seed in range(300)]
        for name, size in EFFECTS.items():
            assert np.median([person[name] for person in people]) == pytest.approx(effect * size, rel=0.05)


def test_beats_stay_beats_at_the_strongest_effect():
    for seed in range(20):
        for felt in (-1.5, 1.5):
            rng = np.random.default_rng(seed)
            person, drive = draw_person(rng, effect=2), np.full(60 * 128, felt)
            ecg, beats = simulate_ecg(rng, person, -drive, drive)
            assert np.isfinite(ecg).all() and 0.3 < np.diff(beats).min() and np.diff(beats).max() < 4


def rate_spectrum(ecg):
    """(frequency (Hz), power) of the heart rate over its mean."""
    times, _ = r_peaks(sosfiltfilt(BAND_PASS, ecg))
    rate = np.interp(np.arange(2, 598, 0.25), times[1:], 1 / np.diff(times))
    return welch(rate / rate.mean(), 4, nperseg=400)


def test_interval_spectrum_has_the_slow_and_the_respiratory_peak():
    rng, person, zero, _ = person_and_drive(600)
    frequency, power = rate_spectrum(simulate_ecg(rng, person, zero, zero)[0][:, 1])
    slow, fast = (frequency > 0.04) & (frequency < 0.15), (frequency > 0.15) & (frequency < 0.4)
    assert frequency[slow][power[slow].argmax()] == pytest.approx(0.1, abs=0.011)
    assert frequency[fast][power[fast].argmax()] == pytest.approx(person["breathing"], abs=0.03)


def test_arousal_and_valence_move_variability_and_respiratory_modulation():
    def measured(arousal, valence):
        rng, person, arousal, valence = person_and_drive(600, arousal, valence)
        ecg = simulate_ecg(rng, person, arousal, valence)[0][:, 1]
        frequency, power = rate_spectrum(ecg)
        slow, breath = abs(frequency - 0.1) < 0.02, abs(frequency - person["breathing"]) < 0.06
        _, heights = r_peaks(sosfiltfilt(BAND_PASS, ecg))
        return np.log(power[slow].sum()) / 2, np.log(power[breath].sum()) / 2, heights.std() / heights.mean()

    response = person_and_drive(0)[1]["response"]
    (slow_low, *_), (slow_high, *_) = measured(-1, 0), measured(1, 0)
    assert slow_high - slow_low == pytest.approx(2 * response["heart_rate_variability"], abs=0.15)
    (_, breath_low, height_low), (_, breath_high, height_high) = measured(0, -1), measured(0, 1)
    assert breath_high - breath_low == pytest.approx(2 * response["respiratory_modulation"], abs=0.15)
    assert height_high > 1.3 * height_low


def test_eeg_spectrum_is_one_over_f_with_the_persons_alpha_and_filtered_like_amigos():
    rng, person, zero, _ = person_and_drive(600)
    eeg = simulate_eeg(rng, person, zero, zero)
    assert eeg.shape == (600 * 128, 14)
    frequency, power = welch(eeg[:, O1], 128, nperseg=1024)
    assert power[frequency < 2].max() < 0.01 * power.max()  # AMIGOS keeps 4-45 Hz
    _, kept = sosfreqz(butter(4, [4, 45], "bandpass", fs=128, output="sos"), frequency, fs=128)
    outside = ((frequency > 3.5) & (frequency < 6)) | ((frequency > 36) & (frequency < 46))
    background = np.log(power[outside] / abs(kept[outside]) ** 4)  # the filter ran both ways
    slope = np.polyfit(np.log(frequency[outside]), background, 1)[0]
    assert -slope == pytest.approx(person["slope"], abs=0.1)
    band = (frequency > 7) & (frequency < 13)
    assert frequency[band][power[band].argmax()] == pytest.approx(person["alpha_frequency"], abs=0.5)
    assert 3 < eeg.std(axis=0).min() and eeg.std(axis=0).max() < 30  # uV


def test_arousal_and_valence_move_the_eeg_bands_as_intended():
    def log_amplitude(arousal, valence, channel, low, high):
        rng, person, arousal, valence = person_and_drive(300, arousal, valence)
        frequency, power = welch(simulate_eeg(rng, person, arousal, valence)[:, channel], 128, nperseg=512)
        return np.log(power[(frequency > low) & (frequency < high)].sum()) / 2

    response = person_and_drive(0)[1]["response"]
    for name, band in (("alpha_power", (8, 12)), ("beta_power", (17, 23))):
        rise = log_amplitude(1, 0, O1, *band) - log_amplitude(-1, 0, O1, *band)
        assert 0.5 < rise / (2 * response[name]) < 1.1  # the background dilutes it
    for left, right in ((F3, F4), (F7, F8)):
        low, high = (log_amplitude(0, v, right, 8, 12) - log_amplitude(0, v, left, 8, 12) for v in (-1, 1))
        assert 0.5 < (high - low) / (4 * response["frontal_asymmetry"]) < 1.1


def test_skin_resistance_dips_more_often_when_aroused():
    counts = []
    for arousal in (-1.5, 1.5):
        rng, person, drive, _ = person_and_drive(1200, arousal)
        gsr = simulate_gsr(rng, person, drive)
        assert 5e4 < gsr.min() and gsr.max() < 5e5
        counts.append(len(find_peaks(-gsr, prominence=0.01 * gsr.mean())[0]))
    assert counts[1] > 1.5 * counts[0]
