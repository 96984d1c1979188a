"""Pre-processing of one continuous signal (paper 4.1.2): band-pass, resampling, and what to distrust in a recording.

A signal is (C, n) float64 throughout.
"""

from fractions import Fraction

import numpy as np
from scipy import signal as sp

# How far a signal is extended before it is filtered, in time constants of the slowest pole of the filter (1.05 s for
# the paper's filter, whose extension so lasts 21 s): by then its memory of the far end has faded to e-20 = 2e-9.
EXTENSION = 20
LARGEST_DENOMINATOR = 10_000


def finite(signal):
    """(C, n) bool: not NaN, not infinite, and not infinite once it is float32."""
    return np.abs(signal) <= np.finfo(np.float32).max


def runs(mask) -> list[tuple[int, int]]:
    """First and one-past-last index of each stretch where `mask` (n,) is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def constant(signal, points: int):
    """(C, n) bool: inside a stretch of at least `points` equal values, as a loose electrode leaves it."""
    mask = np.zeros(signal.shape, dtype=bool)
    for row, same in zip(mask, signal[:, 1:] == signal[:, :-1]):
        for start, stop in runs(same):
            if stop - start + 1 >= points:
                row[start : stop + 1] = True
    return mask


def clipped_points(signal, points: int = 3):
    """(C,) count of the points at a channel's largest or smallest value that stay there for `points` or longer."""
    counts = []
    for row in signal:
        row = row[finite(row)]
        counts.append(0)
        if len(row) and row.min() < row.max():
            extremes = runs(row == row.min()) + runs(row == row.max())
            counts[-1] = sum(stop - start for start, stop in extremes if stop - start >= points)
    return np.array(counts)


def extension_points(rate: float, low: float, high: float, order: int) -> int:
    """Points by which `band_pass` extends a signal at each end."""
    _, poles, _ = sp.butter(order, [low, high], "bandpass", fs=rate, output="zpk")
    return int(np.ceil(EXTENSION / -np.log(np.abs(poles).max())))


def band_pass(signal, rate: float, low: float, high: float, order: int):
    """Butterworth band-pass of design order `order`, run forward and backward (zero phase; paper 4.1.2, use assumed).

    Both ends are extended by point reflection, over and over where the signal is shorter than the extension.
    """
    sos = sp.butter(order, [low, high], "bandpass", fs=rate, output="sos")
    extra = extension_points(rate, low, high, order)
    extended = np.pad(signal, ((0, 0), (extra, extra)), mode="reflect", reflect_type="odd")
    return sp.sosfiltfilt(sos, extended, padtype=None)[:, extra : extra + signal.shape[1]]


def resampling_ratio(rate: float, new_rate: float) -> tuple[int, int]:
    """`up`, `down` with new_rate / rate = up / down.

    Exact for any rate that is a fraction of small numbers, as all common ones are; else the nearest fraction with a
    denominator up to 10,000, whose error of at most 1e-4 only misstates the rate.
    """
    ratio = (Fraction(new_rate) / Fraction(rate)).limit_denominator(LARGEST_DENOMINATOR)
    return ratio.numerator, ratio.denominator


def resample(signal, start: int, up: int, down: int):
    """Polyphase resampling (`scipy.signal.resample_poly`) onto the grid that begins with the recording.

    `signal` begins at point `start` of the recording, so that its first point need not lie on the new grid. Returns
    the position on the new grid of the first point, and the points (C, m).
    """
    missing = start % down
    if missing:
        # Zeros stand for what is missing since the last shared point, as resample_poly takes all beyond the ends to be.
        signal = np.pad(signal, ((0, 0), (missing, 0)))
    skipped = -(-missing * up // down)
    return (start - missing) // down * up + skipped, sp.resample_poly(signal, up, down, axis=-1)[:, skipped:]


def has_beats(ecg, rate: float) -> bool:
    """Whether one ECG channel (n,) shows plausible heart beats: at a human rate, and each shaped like the others.

    Beats are sought as bursts of 5-20 Hz energy. They count as plausible with a median interval of 0.3 to 2 s, and a
    mean correlation of at least 0.6 with their median shape (Orphanidou et al. 2015 ask for 0.66 in clean signals).
    """
    qrs = sp.sosfiltfilt(sp.butter(2, [5, 20], "bandpass", fs=rate, output="sos"), ecg)
    energy = np.convolve(np.gradient(qrs) ** 2, np.ones(max(1, round(0.12 * rate))), mode="same")
    typical = np.median([part.max() for part in np.array_split(energy, max(1, len(energy) // round(2 * rate)))])
    beats, _ = sp.find_peaks(energy, height=0.3 * typical, distance=round(0.3 * rate))
    half = round(0.15 * rate)
    beats = beats[(beats >= half) & (beats < len(qrs) - half)]
    if len(beats) < 3 or not 0.3 <= np.median(np.diff(beats)) / rate <= 2:
        return False
    shapes = np.stack([qrs[beat - half : beat + half] for beat in beats])
    shape = np.median(shapes, axis=0)
    likeness = np.corrcoef(np.vstack([shape, shapes]))[0, 1:]
    return bool(np.mean(likeness) >= 0.6)
