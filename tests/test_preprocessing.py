import json

import edfio
import numpy as np
import pytest
from scipy import signal as sp

from datasets import Recording, eegmat
from prepare_data import parse_flags, resolve
from preparing import cutting, filters, heart
from layouts import write_list
from recordings import filtered_by_hand, mitdb, prepare_data, real, write_edf

LOW, HIGH, ORDER = 0.8, 50, 8


@pytest.mark.parametrize("rate, points", [(500, 31000), (160, 2003), (128, 128), (1000, 1300), (250.5, 5000)])
def test_band_pass_equals_forward_and_backward_sections(rate, points):
    """SciPy's second-order sections, run both ways over the extended signal; signals down to a twentieth of it."""
    signal = np.random.default_rng(0).normal(size=(3, points)).cumsum(axis=1) + 100
    extra, expected = filters.extension_points(rate, LOW, HIGH, ORDER), filtered_by_hand(signal, rate)
    assert extra / rate == pytest.approx(21, abs=0.5)
    found = filters.band_pass(signal, rate, LOW, HIGH, ORDER)
    assert np.abs(found - expected).max() < 1e-7 * expected.std()
    if points > extra:  # SciPy's own way of the same extension
        sos = sp.butter(ORDER, [LOW, HIGH], "bandpass", fs=rate, output="sos")
        scipys = sp.sosfiltfilt(sos, signal, padlen=extra)
        np.testing.assert_allclose(found, scipys, rtol=1e-6, atol=1e-7 * expected.std())


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
    assert all(heart.has_beats(ecg_at_128(lead, 360), 128) for lead in mitdb())


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


def cut(signals, rates, *flags, **about):
    """The judgement of a recording of `signals` {modality: (C, n)}, its kept segments, {modality: (k, C, L)}, and the
    number of blocks."""
    given = parse_flags(["--dataset", "folder", *flags])
    resolve(given)
    names = {modality: [f"{modality}{i}" for i in range(len(signal))] for modality, signal in signals.items()}
    rates = dict.fromkeys(signals, rates) if np.isscalar(rates) else rates
    judged, blocks = cutting.cut(Recording("a", "t", "v", signals, rates, names, {}, None, **about), given)
    blocks = list(blocks)
    segments = {modality: np.concatenate([block[modality] for block in blocks]) for modality in signals}
    return judged, segments, len(blocks)


def ecg(rate, seconds, seed=0):
    """(1, n): a beat every 0.8 s in noise."""
    t = np.arange(round(rate * seconds)) / rate
    return 900 * np.exp(-((t % 0.8 - 0.4) ** 2) / 2e-4)[None] + np.random.default_rng(seed).normal(size=(1, len(t)))


@pytest.mark.parametrize("rate", [128.0, 160.0, 250.5])
@pytest.mark.parametrize("seed", range(2))
def test_blocks_give_what_the_whole_gives(monkeypatch, rate, seed):
    """Faults at random and across the ends of blocks, in signals that drift: the same judgement, and the same values
    within the bound of `band_pass`, whose extension reaches 20 time constants far in either case."""
    rng = np.random.default_rng(seed)
    eeg = rng.normal(size=(2, round(rate * 700))).cumsum(axis=1)
    for place in rng.integers(0, eeg.shape[1], 3):
        eeg[rng.integers(2), place : place + rng.integers(1, 400)] = rng.choice([np.nan, np.inf, 1e300])
    first = round(163 * rate)  # the end of a block
    some = round(0.6 * rate)
    eeg[0, first - some : first + some] = 3.0  # for over a second in both blocks together
    signals, flags = {"eeg": eeg, "ecg": ecg(rate, 699)}, ("--drop-baseline", "3")
    whole, expected, count = cut(signals, rate, *flags, bad=((333.3, 335.0, "bad"),))
    monkeypatch.setattr(cutting, "BLOCK", 1)
    judged, found, blocks = cut(signals, rate, *flags, bad=((333.3, 335.0, "bad"),))
    assert (count, blocks) == (1, 5) and (judged.reasons, judged.notes) == (whole.reasons, whole.notes)
    assert "constant in eeg0" in judged.reasons[15] & judged.reasons[16] and judged.reasons[33] == {"bad"}
    for modality, segments in expected.items():
        np.testing.assert_allclose(found[modality], segments, rtol=0, atol=1e-7 * segments.std())


def test_the_shorter_modality_ends_the_trial():
    eeg = np.random.default_rng(0).normal(size=(1, 128 * 25))
    judged, found, _ = cut({"eeg": eeg, "ecg": ecg(256, 23)}, {"eeg": 128.0, "ecg": 256.0})
    assert judged.kept() == [0, 1] and found["ecg"].shape == (2, 1, 1280)
    assert judged.dropped() == [{"start": 20.0, "seconds": 3.0, "reason": "shorter than a segment"}]


@pytest.mark.parametrize("rate", [90.0, 100.0, 25000.0])
def test_rates_that_cannot_be(rate):
    with pytest.raises(ValueError, match=f"expected eeg at more than twice --high 50 Hz .*, found {rate:g} Hz"):
        cut({"eeg": np.zeros((1, 9))}, rate, "--modalities", "eeg")


def test_beats_are_looked_for_block_by_block(monkeypatch):
    monkeypatch.setattr(cutting, "BLOCK", 1)
    signal = ecg(128.0, 680)
    signal[0, 340 * 128 :] = np.random.default_rng(0).normal(size=340 * 128)
    judged, found, count = cut({"ecg": signal}, 128.0, "--modalities", "ecg")
    silent = [note for note in judged.notes if "beats" in note]
    assert silent == ["ECG without plausible beats from 320 to 480 s, 480 to 640 s, 640 to 680 s"], silent
    dropped = cut({"ecg": signal}, 128.0, "--modalities", "ecg", "--drop-unusable-ecg")[1]["ecg"]
    np.testing.assert_array_equal(dropped, found["ecg"][:32])


def sine(frequency, power, t):
    return np.sqrt(2 * power) * np.sin(2 * np.pi * frequency * t)


@pytest.mark.parametrize(
    "words, change",  # of noise of SD 20
    [
        ("", lambda x, t: x),
        ("", lambda x, t: np.round(x / 5) * 5),  # coarse steps of a quarter SD
        ("", lambda x, t: x + sine(50, 361, t)),  # 47 % of the power
        ("", lambda x, t: x + sine(40, 125000, t)),
        ("mains (50 Hz) over half the power: eeg1 5", lambda x, t: x + sine(50, 450, t)),
        ("mains (60 Hz) over half the power: eeg1 8", lambda x, t: x + 1e5 + 9 * t + sine(60, 1600, t)),
        ("toggles by one bit, kept: eeg1 6 s", lambda x, t: np.where(abs(t - 14.5) < 4.5, 0.1 * (x > 0), x)),
        ("", lambda x, t: np.where(abs(t - 14.5) < 2.5, 0.1 * (x > 0), x)),
        ("", lambda x, t: np.where(abs(t - 14.5) < 4.5, 0.1 * np.sign(np.round(x / 20)), x)),  # three values
    ],
)
def test_notes_on_mains_and_on_channels_that_toggle(words, change):
    eeg, t = np.random.default_rng(1).normal(0, 20, (3, 30 * 256)), np.arange(30 * 256) / 256
    eeg[1] = change(eeg[1], t)
    judged, found, _ = cut({"eeg": eeg}, 256.0, "--modalities", "eeg")
    assert len(judged.notes) == bool(words) and "".join(judged.notes).startswith(words) and len(found["eeg"]) == 3


def test_a_real_ecg_that_was_turned_over_is_noted_beside_the_others(tmp_path, capsys):
    """Of the fifteen people of eegmat, whose ECGs stay as they are, nobody's; nor mains or toggling. Turned over, all
    but those of three people, whose ECG reaches about as far up as down."""
    raw, paths, noted = tmp_path / "raw", eegmat.sources(real("eegmat")), {}
    for path in paths:
        [signal] = [signal for signal in edfio.read_edf(path).signals if "ECG" in signal.label]
        write_edf(raw / "turned" / path.name, [-signal.data], ["ECG"], 500, units=signal.physical_dimension)
        (raw / path.name).symlink_to(path)
    names = [path.name for path in paths]
    flags = ["--dataset", "folder", "--raw", raw, "--modalities", "ecg", "--check", "--json"]
    for folder in ("", "turned/"):
        lines = [f"{folder if name.endswith('_2.edf') else ''}{name},{name[:9]}" for name in names]
        write_list(raw, "file,subject", *lines)
        assert prepare_data(flags) == 0
        notes = json.loads(capsys.readouterr().out)["notes"]
        noted[folder] = [note["subject"] for note in notes if "upside down" in note["note"]]
        assert not [note for note in notes if "mains" in note["note"] or "toggles" in note["note"]]
    people = {name[:9] for name in names}
    assert noted[""] == [] and sorted(people - set(noted["turned/"])) == ["Subject06", "Subject20", "Subject24"]
