"""Classical features of EEG and ECG: band power, left-right asymmetry, heart rate and its variability.

Signals of prepared sets are z-scored per subject and channel, so a band power says how strong the band is relative to
the same subject's whole recording, and nothing in microvolts. A new modality needs a function here, and its line in
FEATURES."""

import re

import numpy as np
from scipy import signal as sp

from preparing.heart import LONGEST_BEAT, SHORTEST_BEAT, bursts

BANDS = {"delta": (1, 4), "theta": (4, 8), "alpha": (8, 13), "beta": (13, 30), "gamma": (30, 45)}  # Hz; assumed
WELCH_SECONDS = 2  # assumed
SMALLEST_POWER = 1e-12  # of a flat channel, whose logarithm must be finite
HEART = ("heart rate", "mean interval", "SD of intervals", "RMSSD", "pNN50", "shortest interval", "longest interval")


def band_powers(signals: np.ndarray, rate: float, bands=BANDS.values(), seconds: float = WELCH_SECONDS) -> np.ndarray:
    """Return the natural logarithm (..., bands) of the power of `signals` (..., L), in units squared, from low up to
    below high Hz, by Welch's method with Hann windows of `seconds`, half overlapping (assumed). Raises ValueError where
    the signals are too short for a band to hold a frequency."""
    points = min(round(seconds * rate), signals.shape[-1])
    frequency, density = sp.welch(signals, rate, nperseg=points, axis=-1)
    powers = []
    for low, high in bands:
        inside = (frequency >= low) & (frequency < high)
        if not inside.any():
            raise ValueError(f"{points} points at {rate:g} Hz are too short for the power from {low} to {high} Hz")
        powers.append(density[..., inside].sum(axis=-1) * frequency[1])
    return np.log(np.maximum(np.stack(powers, axis=-1), SMALLEST_POWER))


def pairs(channels) -> list[tuple[int, int]]:
    """Return the positions (left, right) of electrodes that mirror each other in the 10-20 system, as F3 and F4 do."""
    place = {name.upper(): number for number, name in enumerate(channels)}
    odd = [(left, re.fullmatch(r"([A-Z]+)(\d*[13579])", name)) for name, left in place.items()]
    mirrored = [(left, f"{name[1]}{int(name[2]) + 1}") for left, name in odd if name]
    return [(left, place[right]) for left, right in mirrored if right in place]


def eeg_features(signals: np.ndarray, rate: float, channels, bands=BANDS) -> tuple[np.ndarray, list[str]]:
    """Return features (n, F) of EEG segments (n, C, L), and their F names: the log band powers of each channel and, for
    each pair of electrodes, right minus left. bands: name -> (low, high) in Hz."""
    powers = band_powers(signals, rate, bands.values())  # (n, C, bands)
    opposite = pairs(channels)
    left, right = ([pair[side] for pair in opposite] for side in (0, 1))
    asymmetry = powers[:, right] - powers[:, left]
    names = [f"{name} {band}" for name in channels for band in bands]
    names += [f"{channels[right]}-{channels[left]} {band}" for left, right in opposite for band in bands]
    return np.concatenate([powers.reshape(len(powers), -1), asymmetry.reshape(len(powers), -1)], axis=1), names


def find_beats(ecg: np.ndarray, rate: float) -> list[np.ndarray]:
    """Return the times of the R peaks in each ECG segment of `ecg` (n, L), in s: of `bursts`, at least 0.3 s apart and
    0.3 times the typical height, the sharpest deflection, up or down as the lead has it (all assumed)."""
    slack, distance = round(0.06 * rate), round(SHORTEST_BEAT * rate)
    times = []
    for wave, power, typical in zip(*bursts(ecg, rate)):
        found, _ = sp.find_peaks(power, height=max(0.3 * typical, SMALLEST_POWER), distance=distance)
        found = found[(found >= slack) & (found < len(wave) - slack)]
        around = wave[found[:, None] + np.arange(-slack, slack + 1)]  # (beats, 2 slack + 1)
        if len(found) and -np.median(around.min(axis=1)) > np.median(around.max(axis=1)):
            around = -around
        times.append((found - slack + around.argmax(axis=1)) / rate if len(found) else np.empty(0))
    return times


def intervals(beats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the plausible intervals (k,) between neighbouring beats, and the differences of successive ones, in s."""
    interval = np.diff(beats)
    plausible = (interval >= SHORTEST_BEAT) & (interval <= LONGEST_BEAT)
    return interval[plausible], np.diff(interval)[plausible[1:] & plausible[:-1]]


def variability(difference: np.ndarray) -> tuple[float, float]:
    """Return RMSSD (s) and pNN50, the share above 50 ms, of the differences (k,) of successive intervals in s."""
    return np.sqrt((difference**2).mean()), (np.abs(difference) > 0.05).mean()


def heart_features(beats: np.ndarray) -> np.ndarray:
    """Return the features HEART (7,) of beats (k,) in s: in beats/min, s, s, s, as a share, in s, s. They are NaN with
    fewer than two differences of successive intervals."""
    interval, difference = intervals(beats)
    if len(difference) < 2:
        return np.full(len(HEART), np.nan)
    mean, sd = interval.mean(), interval.std(ddof=1)
    return np.array([60 / mean, mean, sd, *variability(difference), interval.min(), interval.max()])


def ecg_features(signals: np.ndarray, rate: float, channels=()) -> tuple[np.ndarray, list[str]]:
    """Return `heart_features` (n, 7) of ECG segments (n, 1, L), and their names, in which no channel appears."""
    return np.stack([heart_features(beats) for beats in find_beats(signals[:, 0], rate)]), list(HEART)


# modality -> function(signals (n, C, L), rate in Hz, C names of channels) -> features (n, F), F names
FEATURES = {"eeg": eeg_features, "ecg": ecg_features}


# The kinds of features are those of Miranda-Correa et al. (2018), reference [6] of the paper; how exactly they are
# computed is assumed throughout. The features of a signal that holds NaN are NaN.

AMIGOS_BANDS = {"theta": (3, 7), "slow alpha": (8, 10), "alpha": (8, 13), "beta": (14, 29), "gamma": (30, 47)}  # Hz
INTERVAL_BANDS = ((0, 0.04), (0.04, 0.15), (0.15, 0.4))  # Hz
SHORTEST_FOR_INTERVAL_POWER = 10  # s, below which a band may hold no frequency
INTERVAL_RATE = 4  # Hz, to which the intervals between beats are interpolated
SLOW_SECONDS = 20  # Welch windows for the power of ECG and skin resistance
ECG_EDGES = np.arange(61) / 10  # Hz, 60 bins from 0 to 6
GSR_EDGES = np.arange(11) * 0.24  # Hz, 10 bins from 0 to 2.4
GSR_NOISY_POINTS = 20  # at the start of a recording of AMIGOS
SHAPE = ("mean", "SD", "skewness", "kurtosis", "share above mean + SD", "share below mean - SD")


def shape_statistics(values: np.ndarray) -> list[float]:
    """Return SHAPE of `values` (n,): mean, SD, third and fourth standardised moment, and the shares beyond one SD."""
    mean, sd = values.mean(), values.std()
    standard = (values - mean) / max(sd, 1e-9)
    return [mean, sd, (standard**3).mean(), (standard**4).mean(), (standard > 1).mean(), (standard < -1).mean()]


def amigos_eeg_features(eeg: np.ndarray, rate: float, channels) -> tuple[np.ndarray, list[str]]:
    """Return features (105,) of EEG (14, n), and their names: log powers in 5 bands, and asymmetries of 7 pairs."""
    values, names = eeg_features(eeg[None], rate, channels, AMIGOS_BANDS)
    return values[0], names


def amigos_ecg_features(ecg: np.ndarray, rate: float) -> tuple[np.ndarray, list[str]]:
    """Return features (77,) of ECG (n,), and their names: statistics of the intervals between beats (s) and of the
    heart rate (beats/min), and log powers."""
    names = [f"{what} {statistic}" for what in ("interval", "heart rate") for statistic in SHAPE]
    names += ["RMSSD", "pNN50", *(f"interval power {low:g}-{high:g} Hz" for low, high in INTERVAL_BANDS)]
    names += [f"power {low:g}-{high:g} Hz" for low, high in zip(ECG_EDGES, ECG_EDGES[1:])]
    if not np.isfinite(ecg).all():
        return np.full(len(names), np.nan), names
    interval, difference = intervals(find_beats(ecg[None], rate)[0])
    values, before, after = np.full(len(names), np.nan), 2 * len(SHAPE) + 2, 1 - len(ECG_EDGES)
    values[after:] = band_powers(ecg, rate, zip(ECG_EDGES, ECG_EDGES[1:]), SLOW_SECONDS)
    if len(difference) >= 2:
        values[:before] = *shape_statistics(interval), *shape_statistics(60 / interval), *variability(difference)
        ends = np.cumsum(interval)  # implausible intervals are closed up
        time = np.arange(ends[0], ends[-1], 1 / INTERVAL_RATE)
        seconds = len(time) / INTERVAL_RATE
        if seconds >= SHORTEST_FOR_INTERVAL_POWER:
            even = np.interp(time, ends, interval)
            values[before:after] = band_powers(even, INTERVAL_RATE, INTERVAL_BANDS, seconds)
    return values, names


def amigos_gsr_features(gsr: np.ndarray, rate: float) -> tuple[np.ndarray, list[str]]:
    """Return features (16,) of skin resistance (n,) in ohm, and their names: level, slope (ohm/s; below 2.4 Hz, for
    noise alternates from point to point), falls and rises, and log powers."""
    names = ["mean", "mean slope", "mean falling slope", "share falling", "minima per s", "mean rise time"]
    names += [f"power {low:.2f}-{high:.2f} Hz" for low, high in zip(GSR_EDGES, GSR_EDGES[1:])]
    gsr = gsr[GSR_NOISY_POINTS:]
    if not np.isfinite(gsr).all():
        return np.full(len(names), np.nan), names
    slope = np.diff(sp.sosfiltfilt(sp.butter(2, GSR_EDGES[-1], fs=rate, output="sos"), gsr)) * rate
    falls, rises = slope < 0, slope > 0
    falling = slope[falls].mean() if falls.any() else 0.0
    minima = np.count_nonzero(falls[:-1] & rises[1:]) / len(gsr) * rate
    rise_time = np.count_nonzero(rises) / rate / max(np.count_nonzero(rises & np.r_[True, ~rises[:-1]]), 1)
    values = [gsr.mean(), slope.mean(), falling, falls.mean(), minima, rise_time]
    return np.concatenate([values, band_powers(gsr, rate, zip(GSR_EDGES, GSR_EDGES[1:]), SLOW_SECONDS)]), names


def fisher_score(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Fisher scores (F,) of x (n, F), y (n,) 0 or 1: squared distance of the means over the sum of variances."""
    low, high = x[y == 0], x[y == 1]
    spread = low.var(axis=0) + high.var(axis=0)
    return (high.mean(axis=0) - low.mean(axis=0)) ** 2 / np.where(spread > 0, spread, np.inf)


def z_score(x: np.ndarray) -> np.ndarray:
    """Return `x` (n, F) with zero mean and unit variance in each column, NaN left out; 0 in a constant column."""
    values = np.ma.masked_invalid(x)
    sd = values.std(axis=0).filled(0)
    return ((values - values.mean(axis=0)) / np.where(sd > 0, sd, 1)).filled(np.nan)
