from itertools import groupby

import edfio
import numpy as np
import pytest
from scipy import signal as sp

from datasets import eegmat
from preparing import cutting, filters, heart
from recordings import real

LOW, HIGH, ORDER = 0.8, 50, 8


@pytest.mark.parametrize("rate, points", [(500, 31000), (160, 2003), (128, 128), (1000, 1300), (250.5, 5000)])
def test_band_pass_equals_forward_and_backward_sections(rate, points):
    """SciPy's second-order sections, run both ways over the extended signal; signals down to a twentieth of it."""
    signal = np.random.default_rng(0).normal(size=(3, points)).cumsum(axis=1) + 100
    sos = sp.butter(ORDER, [LOW, HIGH], "bandpass", fs=rate, output="sos")
    extra = filters.extension_points(rate, LOW, HIGH, ORDER)
    assert extra / rate == pytest.approx(21, abs=0.5)
    extended = np.pad(signal, ((0, 0), (extra, extra)), mode="reflect", reflect_type="odd")
    expected = sp.sosfiltfilt(sos, extended, padtype=None)[:, extra:-extra]
    found = filters.band_pass(signal, rate, LOW, HIGH, ORDER)
    assert np.abs(found - expected).max() < 1e-7 * expected.std()
    if points > extra:  # SciPy's own way of the same extension
        np.testing.assert_allclose(
            found, sp.sosfiltfilt(sos, signal, padlen=extra), rtol=1e-6, atol=1e-7 * expected.std()
        )


@pytest.mark.parametrize("rate", [500, 160, 128, 1000, 360, 256, 200, 512, 250, 256.03, 101])
def test_resample_equals_polyphase(rate):
    """A run that begins later stays on the grid of the recording."""
    up, down = filters.resampling_ratio(rate, 128)
    for start, points in ((0, 1), (0, 7), (0, 129), (0, 5000), (1, 9000), (1001, 9000), (5000, 9000)):
        whole = np.random.default_rng(points).normal(size=(2, points))
        whole[:, :start] = 0
        position, found = filters.resample(whole[:, start:], start, up, down)
        assert position == np.ceil(start * up / down)
        np.testing.assert_allclose(found, sp.resample_poly(whole, up, down, axis=1)[:, position:], atol=1e-12)


def test_ratio_is_exact_for_common_rates_and_close_for_others():
    assert [filters.resampling_ratio(rate, 128) for rate in (128, 160, 500, 1000, 512, 2048, 250)] == [
        (1, 1), (4, 5), (32, 125), (16, 125), (1, 4), (1, 16), (64, 125)
    ]  # fmt: skip
    for rate in np.random.default_rng(0).uniform(101, 5000, 500):
        up, down = filters.resampling_ratio(rate, 128)
        assert down <= 1000 and up / down == pytest.approx(128 / rate, rel=5e-4)


def test_constant_stretches():
    signal = np.random.default_rng(0).normal(size=(2, 1000))
    signal[0, 100:200], signal[0, 500:599], signal[1, 900:] = 3, 4, 5
    expected = np.zeros((2, 1000), bool)
    expected[0, 100:200] = expected[1, 900:] = True
    np.testing.assert_array_equal(cutting.constant(signal, 100), expected)


def test_moments_equal_numpy():
    rng = np.random.default_rng(0)
    parts = [rng.normal(i, 1 + i, size=(3, n)) for i, n in enumerate((5, 1, 4000, 70))]
    moments, half = filters.Moments(3), filters.Moments(3)
    for part in parts[:2]:
        moments.add(part)
    for part in parts[2:]:
        half.add(part)
    moments.merge(half)
    moments.merge(filters.Moments(3))
    whole = np.concatenate(parts, axis=1)
    assert moments.points == whole.shape[1]
    np.testing.assert_allclose(moments.mean, whole.mean(axis=1), rtol=1e-13)
    np.testing.assert_allclose(moments.sd(), whole.std(axis=1), rtol=1e-13)


def ecg_at_128(signal, rate):
    filtered = filters.band_pass(signal[None], rate, LOW, HIGH, ORDER)
    return filters.resample(filtered, 0, *filters.resampling_ratio(rate, 128))[1][0]


def test_beats_in_real_recordings():
    """All recordings at hand have beats, either way up, but Subject20_2."""
    verdicts = {}
    for path in eegmat.sources(real("eegmat")):
        [recording] = eegmat.read(path, {"ecg": ["ECG"]})
        ecg = ecg_at_128(recording.signals["ecg"][0], 500)
        verdicts[path.stem] = heart.has_beats(ecg, 128)
        assert heart.has_beats(-ecg, 128) == verdicts[path.stem]
    assert [name for name, beats in verdicts.items() if not beats] == ["Subject20_2"]


def test_beats_in_a_half_hour_of_mitdb():
    packed = np.fromfile(real("mitdb", "100.dat"), np.uint8).reshape(-1, 3).astype(int)  # WFDB format 212
    leads = packed[:, 0] | (packed[:, 1] & 15) << 8, packed[:, 2] | (packed[:, 1] >> 4) << 8
    for lead in leads:
        lead = np.where(lead > 2047, lead - 4096, lead).astype(float)
        assert heart.has_beats(ecg_at_128(lead, 360), 128)


@pytest.mark.parametrize("seed", range(5))
def test_no_beats_in_noise(seed):
    rng = np.random.default_rng(seed)
    noise, t = rng.normal(size=30000), np.arange(30000) / 500
    for signal in (noise, noise.cumsum(), np.sin(100 * np.pi * t) + 0.01 * noise, np.zeros(30000), noise[:800]):
        assert not heart.has_beats(ecg_at_128(signal, 500), 128)


def test_real_edf_of_scalp_eeg_is_not_taken_for_an_ecg():
    edf = edfio.read_edf(real("eegmmidb", "S001", "S001R03.edf"))
    beats = [heart.has_beats(ecg_at_128(signal.data, 160), 128) for signal in edf.signals[:64:4]]
    assert not any(beats)


def test_clipping_is_counted_at_both_ends():
    signal = np.random.default_rng(0).normal(size=(3, 5000))
    clipped = np.clip(signal, -1.5, 1)
    counts = cutting.clipped_points(np.vstack([signal[0], clipped[1], np.full(5000, np.nan)]))
    at_an_end = np.flatnonzero(np.abs(np.diff(clipped[1])) == 0)  # pairs; runs of three are two pairs in a row
    assert counts[0] == counts[2] == 0 and counts[1] > 0
    assert counts[1] == sum(n for n in (len(list(same)) for _, same in groupby(clipped[1])) if n >= 3) <= 3 * len(at_an_end)
