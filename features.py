"""Classical features of EEG and ECG: band power, left-right asymmetry, heart rate and its variability.

Signals of prepared sets are z-scored per subject and channel, so a band power says how strong the band is relative to
the same subject's whole recording, and nothing in microvolts. A linear model gets nothing from an asymmetry that the
two powers do not hold, but regularisation then favours it over other differences.
"""

import re

import numpy as np
from scipy import signal as sp

BANDS = {"delta": (1, 4), "theta": (4, 8), "alpha": (8, 13), "beta": (13, 30), "gamma": (30, 45)}  # Hz; assumed
WELCH_SECONDS = 2  # assumed
SMALLEST_POWER = 1e-12  # of a flat channel, whose logarithm must be finite
SHORTEST_BEAT, LONGEST_BEAT = 0.3, 2.0  # s: 200 and 30 beats/min; intervals beyond are a beat missed or made up
HEART = ("heart rate", "mean interval", "SD of intervals", "RMSSD", "pNN50", "shortest interval", "longest interval")


def band_powers(signals: np.ndarray, rate: float, bands=BANDS.values(), seconds: float = WELCH_SECONDS) -> np.ndarray:
    """(..., L) signals -> (..., bands) natural logarithm of the power (units squared) from low up to below high Hz.

    Welch's method with Hann windows of `seconds`, half overlapping (assumed). Raises ValueError where the signals are
    too short for a band to hold a frequency.
    """
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
    """Positions (left, right) of the mirrored electrodes: in the 10-20 system F3 lies opposite F4, O1 opposite O2."""
    place = {name.upper(): number for number, name in enumerate(channels)}
    found = []
    for name, left in place.items():
        electrode = re.fullmatch(r"([A-Z]+)(\d+)", name)
        if electrode and int(electrode[2]) % 2:
            right = place.get(f"{electrode[1]}{int(electrode[2]) + 1}")
            if right is not None:
                found.append((left, right))
    return found


def eeg_features(signals: np.ndarray, rate: float, channels, bands=None) -> tuple[np.ndarray, list[str]]:
    """(n, C, L) EEG -> (n, F) log band powers of each channel and, for each pair, right minus left; and their names.

    bands: name -> (low, high) in Hz, by default BANDS.
    """
    bands = bands or BANDS
    powers = band_powers(signals, rate, bands.values())  # (n, C, bands)
    opposite = pairs(channels)
    left, right = ([pair[side] for pair in opposite] for side in (0, 1))
    asymmetry = powers[:, right] - powers[:, left]
    names = [f"{name} {band}" for name in channels for band in bands]
    names += [f"{channels[right]}-{channels[left]} {band}" for left, right in opposite for band in bands]
    return np.concatenate([powers.reshape(len(powers), -1), asymmetry.reshape(len(powers), -1)], axis=1), names


def find_beats(ecg: np.ndarray, rate: float) -> list[np.ndarray]:
    """(n, L) ECG -> the times of the R peaks of each row, in s; an empty array where there are none.

    Beats are bursts of 5-20 Hz energy, at least 0.3 s apart and 0.3 times the typical height; the peak of each is its
    sharpest deflection, up in some leads and down in others (all assumed).
    """
    slack, distance = round(0.06 * rate), round(SHORTEST_BEAT * rate)
    qrs = sp.sosfiltfilt(sp.butter(2, [5, 20], "bandpass", fs=rate, output="sos"), ecg, axis=-1)
    width = round(0.12 * rate)
    energy = sp.oaconvolve(np.gradient(qrs, axis=-1) ** 2, np.full((1, width), 1 / width), mode="same", axes=-1)
    # At the median of two-second stretches, a single artefact does not raise the threshold above the beats.
    stretches = np.array_split(energy, max(1, energy.shape[-1] // round(2 * rate)), axis=-1)
    typical = np.median([stretch.max(axis=-1) for stretch in stretches], axis=0)
    times = []
    for row, level, wave in zip(energy, typical, qrs):
        bursts, _ = sp.find_peaks(row, height=max(0.3 * level, SMALLEST_POWER), distance=distance)
        bursts = bursts[(bursts >= slack) & (bursts < len(wave) - slack)]
        around = wave[bursts[:, None] + np.arange(-slack, slack + 1)]  # (beats, 2 slack + 1)
        if len(bursts) and -np.median(around.min(axis=1)) > np.median(around.max(axis=1)):
            around = -around
        times.append((bursts - slack + around.argmax(axis=1)) / rate if len(bursts) else np.empty(0))
    return times


def intervals(beats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Beats (k,) in s -> the plausible intervals between neighbours, and the differences of successive ones, in s."""
    interval = np.diff(beats)
    plausible = (interval >= SHORTEST_BEAT) & (interval <= LONGEST_BEAT)
    return interval[plausible], np.diff(interval)[plausible[1:] & plausible[:-1]]


def heart_features(beats: np.ndarray) -> np.ndarray:
    """Beats (k,) in s -> (7,) HEART: beats/min, s, s, s, share of differences above 50 ms, s, s.

    NaN with fewer than two differences of successive intervals.
    """
    interval, difference = intervals(beats)
    if len(difference) < 2:
        return np.full(len(HEART), np.nan)
    return np.array(
        [
            60 / interval.mean(),
            interval.mean(),
            interval.std(ddof=1),
            np.sqrt((difference**2).mean()),
            (np.abs(difference) > 0.05).mean(),
            interval.min(),
            interval.max(),
        ]
    )


def ecg_features(signals: np.ndarray, rate: float) -> tuple[np.ndarray, list[str]]:
    """(n, 1, L) ECG -> (n, 7) heart-rate features, NaN where there are too few beats, and their names."""
    return np.stack([heart_features(beats) for beats in find_beats(signals[:, 0], rate)]), list(HEART)
