"""Band-pass, resampling and z-scores of signals (paper 4.1.2); a signal is (C, n) float64 throughout."""

from fractions import Fraction
from functools import lru_cache

import numpy as np
from scipy import fft
from scipy import signal as sp

# How far a signal is extended before it is filtered, in time constants of the slowest pole of the filter (1.05 s for
# the paper's filter, whose extension so lasts 21 s): by then its memory of the far end has faded to e-20 = 2e-9.
EXTENSION = 20
LARGEST_DENOMINATOR = 1000


@lru_cache(maxsize=64)
def extension_points(rate: float, low: float, high: float, order: int) -> int:
    """Return the number of points by which `band_pass` extends a signal at each end."""
    _, poles, _ = sp.butter(order, [low, high], "bandpass", fs=rate, output="zpk")
    return int(np.ceil(EXTENSION / -np.log(np.abs(poles).max())))


@lru_cache(maxsize=4)
def squared_gain(points: int, rate: float, low: float, high: float, order: int):
    """Return |H|^2 of the Butterworth band-pass at the frequencies of `rfft` over `points`, by its definition."""
    # The bilinear transform maps a frequency f to tan(pi f / rate).
    frequency = np.tan(np.pi * np.arange(points // 2 + 1) / points)
    first, last = np.tan(np.pi * low / rate), np.tan(np.pi * high / rate)
    with np.errstate(divide="ignore", over="ignore"):  # an infinite ratio is a gain of 0
        return 1 / (1 + ((frequency**2 - first * last) / (frequency * (last - first))) ** (2 * order))


def band_pass(signal, rate: float, low: float, high: float, order: int):
    """Run a Butterworth band-pass of design order `order` forward and backward (zero phase; paper 4.1.2, use assumed).
    Filtering there and back multiplies the spectrum by |H|^2, which is done here: it equals `scipy.signal.sosfiltfilt`
    on the signal, extended by point reflection, within 1e-8 of its SD, in half the time."""
    extra, points = extension_points(rate, low, high, order), signal.shape[1]
    length = fft.next_fast_len(points + 2 * extra, real=True)
    extended = np.pad(signal, ((0, 0), (extra, length - points - extra)), mode="reflect", reflect_type="odd")
    spectrum = fft.rfft(extended)
    spectrum *= squared_gain(length, rate, low, high, order)
    return fft.irfft(spectrum, length, overwrite_x=True)[:, extra : extra + points]


def resampling_ratio(rate: float, new_rate: float) -> tuple[int, int]:
    """Return `up` and `down` with new_rate / rate = up / down. They are exact for all common rates; for others they are
    the nearest fraction with a denominator up to 1000, whose error is at most 5e-4."""
    ratio = (Fraction(new_rate) / Fraction(rate)).limit_denominator(LARGEST_DENOMINATOR)
    return ratio.numerator, ratio.denominator


@lru_cache(maxsize=8)
def resampling_matrix(up: int, down: int):
    """Return what `scipy.signal.resample_poly` does to one block of k * down old points, with `reach` more at either
    end: (reach, matrix (k * down + 2 * reach, k * up))."""
    half, blocks = 10 * max(up, down), max(1, 128 // down)
    taps = up * sp.firwin(2 * half + 1, 1 / max(up, down), window=("kaiser", 5.0))  # resample_poly's own filter
    reach = half // up
    old, new = np.arange(-reach, blocks * down + reach) * up, np.arange(blocks * up) * down
    tap = half + new - old[:, None]
    return reach, np.where((tap >= 0) & (tap <= 2 * half), taps[tap.clip(0, 2 * half)], 0.0)


def resample(signal, start: int, up: int, down: int):
    """Resample a signal that begins at point `start` onto the grid of its recording; return the position of the first
    new point, and the new points (C, m): those of `scipy.signal.resample_poly`, in half the time."""
    if up == down:
        return start, signal
    reach, matrix = resampling_matrix(up, down)
    # Like resample_poly beyond the ends, zeros stand for the points since the last one that both grids share.
    missing = start % down
    points, step = missing + signal.shape[1], len(matrix) - 2 * reach
    padded = np.zeros((len(signal), -(-points // step) * step + 2 * reach))
    padded[:, reach + missing : reach + points] = signal
    blocks = np.lib.stride_tricks.sliding_window_view(padded, len(matrix), axis=1)[:, ::step]
    new = (np.ascontiguousarray(blocks) @ matrix).reshape(len(signal), -1)
    skipped = -(-missing * up // down)
    return (start - missing) // down * up + skipped, new[:, skipped : -(-points * up // down)]


class Moments:
    """Moments are mean and variance of each channel over everything added, merged as Chan et al. (1979) do."""

    def __init__(self, channels: int):
        self.points, self.mean, self.squares = 0, np.zeros(channels), np.zeros(channels)

    def add(self, signal):
        """Add `signal` (C, n)."""
        other = Moments(len(signal))
        other.points, other.mean = signal.shape[1], signal.mean(axis=1)
        other.squares = ((signal - other.mean[:, None]) ** 2).sum(axis=1)
        self.merge(other)

    def merge(self, other: "Moments"):
        """Add what was added to `other`."""
        if other.points == 0:
            return
        total, difference = self.points + other.points, other.mean - self.mean
        self.squares = self.squares + other.squares + difference**2 * (self.points * other.points / total)
        self.mean = self.mean + difference * (other.points / total)
        self.points = total

    def sd(self):
        """Return the population standard deviation (C,)."""
        return np.sqrt(self.squares / max(1, self.points))


def z_score(segments, mean, sd):
    """Return (segments - mean) / sd, (k, C, L), without a warning where sd is 0; mean and sd broadcast against them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (segments - mean) / sd
