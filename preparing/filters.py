"""Pre-processing of one recording (paper 4.1.2): what to distrust in it, band-pass, resampling, cutting.

A signal is (C, n) float64 throughout.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import groupby

import numpy as np
from scipy import fft
from scipy import signal as sp

# How far a signal is extended before it is filtered, in time constants of the slowest pole of the filter (1.05 s for
# the paper's filter, whose extension so lasts 21 s): by then its memory of the far end has faded to e-20 = 2e-9.
EXTENSION = 20
LARGEST_DENOMINATOR = 1000
BEATS_TO_HZ = 20  # of the band in which heart beats are looked for
SHORTEST_BEAT, LONGEST_BEAT = 0.3, 2.0  # s: 200 and 30 beats/min; intervals beyond are a beat missed or made up
FASTEST_RATE = 20_000  # Hz; a file that says more is damaged


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


@lru_cache(maxsize=64)
def extension_points(rate: float, low: float, high: float, order: int) -> int:
    """Points by which `band_pass` extends a signal at each end."""
    _, poles, _ = sp.butter(order, [low, high], "bandpass", fs=rate, output="zpk")
    return int(np.ceil(EXTENSION / -np.log(np.abs(poles).max())))


@lru_cache(maxsize=4)
def squared_gain(points: int, rate: float, low: float, high: float, order: int):
    """|H|^2 of the Butterworth band-pass at the frequencies of `rfft` over `points`, by its definition.

    The bilinear transform maps a frequency f to tan(pi f / rate).
    """
    frequency = np.tan(np.pi * np.arange(points // 2 + 1) / points)
    first, last = np.tan(np.pi * low / rate), np.tan(np.pi * high / rate)
    with np.errstate(divide="ignore", over="ignore"):  # an infinite ratio is a gain of 0
        return 1 / (1 + ((frequency**2 - first * last) / (frequency * (last - first))) ** (2 * order))


def band_pass(signal, rate: float, low: float, high: float, order: int):
    """Butterworth band-pass of design order `order`, run forward and backward (zero phase; paper 4.1.2, use assumed).

    Both ends are extended by point reflection, over and over where the signal is shorter than the extension. Filtering
    there and back multiplies the spectrum by |H|^2, which is done here: it equals `scipy.signal.sosfiltfilt` on the
    extended signal within 1e-8 of its SD, in half the time.
    """
    extra, points = extension_points(rate, low, high, order), signal.shape[1]
    length = fft.next_fast_len(points + 2 * extra, real=True)
    extended = np.pad(signal, ((0, 0), (extra, length - points - extra)), mode="reflect", reflect_type="odd")
    spectrum = fft.rfft(extended)
    spectrum *= squared_gain(length, rate, low, high, order)
    return fft.irfft(spectrum, length, overwrite_x=True)[:, extra : extra + points]


def resampling_ratio(rate: float, new_rate: float) -> tuple[int, int]:
    """`up`, `down` with new_rate / rate = up / down.

    Exact for all common rates, which are fractions of small numbers; else the nearest fraction with a denominator up
    to 1000, whose error, at most 5e-4 and mostly below 1e-6, only misstates the rate.
    """
    ratio = (Fraction(new_rate) / Fraction(rate)).limit_denominator(LARGEST_DENOMINATOR)
    return ratio.numerator, ratio.denominator


@lru_cache(maxsize=8)
def resampling_matrix(up: int, down: int):
    """What `scipy.signal.resample_poly` does to one block of points, as a matrix.

    A block of k * down old points, with `reach` more at either end, times the matrix makes k * up new ones. Returns
    (reach, matrix (k * down + 2 * reach, k * up)).
    """
    half, blocks = 10 * max(up, down), max(1, 128 // down)
    taps = up * sp.firwin(2 * half + 1, 1 / max(up, down), window=("kaiser", 5.0))  # resample_poly's own filter
    reach = half // up
    old, new = np.arange(-reach, blocks * down + reach) * up, np.arange(blocks * up) * down
    tap = half + new - old[:, None]
    return reach, np.where((tap >= 0) & (tap <= 2 * half), taps[tap.clip(0, 2 * half)], 0.0)


def resample(signal, start: int, up: int, down: int):
    """Polyphase resampling, the numbers of `scipy.signal.resample_poly`, onto the grid that begins with the recording.

    `signal` begins at point `start` of the recording, so that its first point need not lie on the new grid. Returns
    the position on the new grid of the first new point, and the points (C, m). One matrix product takes half the time
    of resample_poly.
    """
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


def bursts(ecg, rate: float) -> tuple:
    """(k, n) ECG -> its 5-20 Hz band and the power of that over 0.12 s, both (k, n), and the typical power of a beat
    (k,): the median over stretches of two seconds, which a single artefact does not raise above the beats."""
    qrs = sp.sosfiltfilt(sp.butter(2, [5, BEATS_TO_HZ], "bandpass", fs=rate, output="sos"), ecg, axis=-1)
    width = round(0.12 * rate)
    power = sp.oaconvolve(np.gradient(qrs, axis=-1) ** 2, np.full((1, width), 1 / width), mode="same", axes=-1)
    stretches = np.array_split(power, max(1, power.shape[-1] // round(2 * rate)), axis=-1)
    return qrs, power, np.median([stretch.max(axis=-1) for stretch in stretches], axis=0)


def has_beats(ecg, rate: float) -> bool:
    """Whether one ECG channel (n,) shows plausible heart beats: at a human rate, and each shaped like the others.

    Beats are sought as `bursts`. They are plausible with a median interval of SHORTEST_BEAT to LONGEST_BEAT and a mean
    correlation of at least 0.85 with their median shape (the idea of Orphanidou et al. 2015; 0.85 lies between the
    0.95 or more of real recordings with beats and the 0.70 of noise, which aligning makes look alike).
    """
    half, slack = round(0.15 * rate), round(0.05 * rate)
    if len(ecg) < 3 * rate:
        return False
    qrs, power, typical = (each[0] for each in bursts(ecg[None], rate))
    found, _ = sp.find_peaks(power, height=0.3 * typical, distance=round(SHORTEST_BEAT * rate))
    found = found[(found >= half + slack) & (found < len(qrs) - half - slack)]
    if len(found) < 3 or not SHORTEST_BEAT <= np.median(np.diff(found)) / rate <= LONGEST_BEAT:
        return False
    likeness = []
    for upright in (qrs, -qrs):  # the sharpest deflection, whose sign depends on the lead, tells where the beat is
        beats = [burst - slack + np.argmax(upright[burst - slack : burst + slack + 1]) for burst in found]
        shapes = np.stack([qrs[beat - half : beat + half] for beat in beats])
        likeness.append(np.corrcoef(np.vstack([np.median(shapes, axis=0), shapes]))[0, 1:].mean())
    return bool(max(likeness) >= 0.85)


class Moments:
    """Mean and variance of each channel over everything added, merged as Chan et al. (1979) do."""

    def __init__(self, channels: int):
        self.points, self.mean, self.squares = 0, np.zeros(channels), np.zeros(channels)

    def add(self, signal):
        """Take in `signal` (C, n)."""
        mean = signal.mean(axis=1)
        self.merge(signal.shape[1], mean, ((signal - mean[:, None]) ** 2).sum(axis=1))

    def merge(self, points: int, mean, squares):
        """Take in `points` of mean (C,) and squared differences from it (C,), added up elsewhere."""
        if points == 0:
            return
        total, difference = self.points + points, mean - self.mean
        self.squares = self.squares + squares + difference**2 * (self.points * points / total)
        self.mean = self.mean + difference * (points / total)
        self.points = total

    def sd(self):
        """(C,) population standard deviation."""
        return np.sqrt(self.squares / max(1, self.points))


def z_score(segments, mean, sd):
    """(segments - mean) / sd of (k, C, L) and (C or k, C, 1); NaN or infinite, without a warning, where sd is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (segments - mean) / sd


@dataclass
class Judged:
    """What the raw signal of one recording says about what to keep of it."""

    begin: float  # s, where the grid of segments begins ...
    end: float  # ... and where what may be used ends
    seconds: float
    signals: dict[str, np.ndarray]  # modality -> (C, n) between begin and end
    ratio: dict[str, tuple[int, int]]  # modality -> up, down
    usable: dict[str, np.ndarray]  # modality -> (C, n) bool
    reasons: list[set[str]]  # of each segment: why it is dropped
    notes: list[str]

    def kept(self) -> list[int]:
        return [i for i, reason in enumerate(self.reasons) if not reason]

    def dropped(self, length: float) -> list[tuple[float, float, str]]:
        """The pieces left out as (start, seconds, reason); `length` is that of a segment in s."""
        whole = len(self.reasons) * length
        pieces = [(0.0, self.begin, "before the stimulus (--drop-baseline)")]
        for reason, group in groupby(range(len(self.reasons)), key=lambda i: "; ".join(sorted(self.reasons[i]))):
            if reason:
                group = list(group)
                pieces.append((self.begin + group[0] * length, len(group) * length, reason))
        pieces.append((self.begin + whole, self.end - self.begin - whole, "shorter than a segment"))
        pieces.append((self.end, self.seconds - self.end, "beyond --max-seconds-per-trial"))
        return [piece for piece in pieces if piece[1] > 1e-6]


def judge(recording, flags) -> Judged:
    """Lay the grid of segments over one recording and find what is bad in it, as the flags of prepare_data.py say.

    Raises ValueError for a rate that cannot be.
    """
    notes, signals, ratio, usable = [], {}, {}, {}
    for modality, rate in recording.rate.items():
        if not 2 * flags.high < rate <= FASTEST_RATE:
            raise ValueError(
                f"{recording.source}: expected {modality} at more than twice --high {flags.high:g} Hz and at most "
                f"{FASTEST_RATE} Hz, found {rate:g} Hz in trial {recording.trial}; lower --high or take the file out"
            )
    seconds = min(signal.shape[1] / recording.rate[modality] for modality, signal in recording.signals.items())
    begin = min(flags.drop_baseline, seconds)
    end = min(seconds, begin + flags.max_seconds_per_trial) if flags.max_seconds_per_trial else seconds
    for modality, signal in recording.signals.items():
        rate = recording.rate[modality]
        signals[modality] = signal[:, round(begin * rate) : round(end * rate)]
        ratio[modality] = resampling_ratio(rate, flags.rate)
    count = min(signals[m].shape[1] * up // (down * flags.points) for m, (up, down) in ratio.items())
    reasons = [set() for _ in range(count)]
    for modality, signal in signals.items():
        (up, down), names = ratio[modality], recording.channels[modality]
        usable[modality] = finite(signal)
        bad = {"NaN or infinite": ~usable[modality], "constant": constant(signal, round(recording.rate[modality]))}
        for what, mask in bad.items():
            for i in range(count if mask.any() else 0):
                touched = mask[:, i * flags.points * down // up : -(-(i + 1) * flags.points * down // up)].any(axis=1)
                reasons[i].update(f"{what} in {names[channel]}" for channel in np.flatnonzero(touched))
        clipped = clipped_points(signal)
        if clipped.any():
            counts = ", ".join(f"{name} {n}" for name, n in zip(names, clipped) if n)
            notes.append(f"points of suspected clipping, kept: {counts}")
    return Judged(begin, end, seconds, signals, ratio, usable, reasons, notes)


def cut(recording, flags):
    """Filter, resample and cut one recording as the flags of prepare_data.py say (`points`: L).

    Returns the kept segments of each modality (k, C, L) float64, their starts (k,) in s, the moments of each modality
    over these, the pieces dropped as (start, seconds, reason), and the notes for the manifest. Raises ValueError like
    `judge`.
    """
    judged = judge(recording, flags)
    count, segments = len(judged.reasons), {}
    for modality, signal in judged.signals.items():
        rate, (up, down), names = recording.rate[modality], judged.ratio[modality], recording.channels[modality]
        grid = np.full((len(names), count * flags.points), np.nan)
        for first, last in runs(judged.usable[modality].all(axis=0)):
            # A run shorter than one period of --low says nothing about the pass-band.
            if (last - first) * flags.low >= rate:
                run = band_pass(signal[:, first:last], rate, flags.low, flags.high, flags.filter_order)
                start, run = resample(run, first, up, down)
                run = run[:, : max(0, grid.shape[1] - start)]
                grid[:, start : start + run.shape[1]] = run
        filled = grid[0, ~np.isnan(grid[0])]
        if modality == "ecg" and len(filled) and not has_beats(filled, flags.rate):
            judged.notes.append("ECG without plausible beats")
            if flags.drop_unusable_ecg:
                for reason in judged.reasons:
                    reason.add("ECG without plausible beats (--drop-unusable-ecg)")
        segments[modality] = grid.reshape(len(names), count, flags.points).swapaxes(0, 1)
        for reason, segment in zip(judged.reasons, segments[modality]):
            if not reason and np.isnan(segment).any():
                reason.add(f"finite run of {modality} shorter than one period of --low")
    kept, length = judged.kept(), flags.points / flags.rate
    starts = judged.begin + np.array(kept) * length
    segments, moments = {m: s[kept] for m, s in segments.items()}, {}
    for modality, kept_ones in segments.items():
        moments[modality] = Moments(kept_ones.shape[1])
        if len(kept_ones):
            moments[modality].add(kept_ones.swapaxes(0, 1).reshape(kept_ones.shape[1], -1))
    return segments, starts, moments, judged.dropped(length), judged.notes
