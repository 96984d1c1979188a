"""Cutting of one recording (paper 4.1.2): which ten seconds of it are kept, and these, filtered and resampled.

A signal is (C, n) float64 throughout.
"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from preparing.filters import band_pass, resample, resampling_ratio
from preparing.heart import has_beats

FASTEST_RATE = 20_000  # Hz; a file that says more is damaged


def runs(mask) -> list[tuple[int, int]]:
    """Return the first and the one-past-last index of each stretch where `mask` (n,) is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def finite(signal):
    """Return where a signal is not NaN, not infinite, and not infinite once it is float32: (C, n) bool."""
    return np.abs(signal) <= np.finfo(np.float32).max


def constant(signal, points: int):
    """Return where a signal stays at one value for `points` or longer, as a loose electrode leaves it: (C, n) bool."""
    mask = np.zeros(signal.shape, dtype=bool)
    for channel, same in zip(mask, signal[:, 1:] == signal[:, :-1]):
        for start, stop in runs(same):
            if stop - start + 1 >= points:
                channel[start : stop + 1] = True
    return mask


def clipped_points(signal, points: int = 3):
    """Return how many points of each channel (C,) stay at its largest or smallest value for `points` or longer."""
    counts = []
    for channel in signal:
        channel = channel[finite(channel)]
        ends = (channel.min(), channel.max()) if len(channel) else (0, 0)
        stretches = [stretch for end in set(ends) if ends[0] < ends[1] for stretch in runs(channel == end)]
        counts.append(sum(stop - start for start, stop in stretches if stop - start >= points))
    return np.array(counts)


@dataclass
class Judged:
    """A judgement is what the signals of one recording say about what to keep of it."""

    begin: float  # s, where the grid of segments begins ...
    end: float  # ... and where what may be used ends
    seconds: float  # of the whole recording
    length: float  # s, of a segment
    reasons: list[set[str]]  # of each segment: why it is dropped
    notes: list[str]

    def kept(self) -> list[int]:
        """Return the numbers of the segments that are kept."""
        return [i for i, reason in enumerate(self.reasons) if not reason]

    def dropped(self) -> list[dict]:
        """Return the pieces left out, each as its start, seconds and reason."""
        whole = len(self.reasons) * self.length
        pieces = [(0.0, self.begin, "before the stimulus (--drop-baseline)")]
        for reason, group in groupby(range(len(self.reasons)), key=lambda i: "; ".join(sorted(self.reasons[i]))):
            if reason:
                group = list(group)
                pieces.append((self.begin + group[0] * self.length, len(group) * self.length, reason))
        pieces.append((self.begin + whole, self.end - self.begin - whole, "shorter than a segment"))
        pieces.append((self.end, self.seconds - self.end, "beyond --max-seconds-per-trial"))
        return [dict(zip(("start", "seconds", "reason"), piece)) for piece in pieces if piece[1] > 1e-6]


def cut(recording, flags) -> tuple[Judged, dict[str, np.ndarray]]:
    """Filter, resample and cut one recording as the flags of prepare_data.py say (`points`: L).

    Return the judgement, and the kept segments of each modality (k, C, L) float64. Raise ValueError for a rate that
    cannot be.
    """
    for modality, rate in recording.rate.items():
        if not 2 * flags.high[modality] < rate <= FASTEST_RATE:
            raise ValueError(
                f"{recording.source}: expected {modality} at more than twice --high {flags.high[modality]:g} Hz and at "
                f"most {FASTEST_RATE} Hz, found {rate:g} Hz in trial {recording.trial}; lower --high or take the file "
                "out"
            )
    # The shortest modality ends the trial for all of them.
    seconds = min(signal.shape[1] / recording.rate[modality] for modality, signal in recording.signals.items())
    begin = min(flags.drop_baseline, seconds)
    end = min(seconds, begin + flags.max_seconds_per_trial) if flags.max_seconds_per_trial else seconds
    # The grid has as many segments as fit into every modality.
    signals = {
        m: signal[:, round(begin * recording.rate[m]) : round(end * recording.rate[m])]
        for m, signal in recording.signals.items()
    }
    ratio = {m: resampling_ratio(recording.rate[m], flags.rate) for m in signals}
    count = min(signal.shape[1] * ratio[m][0] // (ratio[m][1] * flags.points) for m, signal in signals.items())
    judged = Judged(begin, end, seconds, flags.points / flags.rate, [set() for _ in range(count)], [])
    for modality, signal in signals.items():
        _find_bad(judged, signal, recording.channels[modality], recording.rate[modality], ratio[modality], flags.points)
    segments = {}
    for modality, signal in signals.items():
        grid = _filtered(signal, count * flags.points, modality, recording.rate[modality], ratio[modality], flags)
        # Beats show in the filtered signal alone.
        filled = grid[0, ~np.isnan(grid[0])]
        if modality == "ecg" and len(filled) and not has_beats(filled, flags.rate):
            judged.notes.append("ECG without plausible beats")
            if flags.drop_unusable_ecg:
                for reason in judged.reasons:
                    reason.add("ECG without plausible beats (--drop-unusable-ecg)")
        segments[modality] = grid.reshape(len(grid), count, flags.points).swapaxes(0, 1)
        for reason, segment in zip(judged.reasons, segments[modality]):
            if not reason and np.isnan(segment).any():
                reason.add(f"finite run of {modality} shorter than one period of --low")
    kept = judged.kept()
    return judged, {modality: each[kept] for modality, each in segments.items()}


def _find_bad(judged, signal, names, rate, ratio, points):
    """Note at each segment of `points` new points why the raw signal of one modality is of no use there."""
    up, down = ratio
    bad = {"NaN or infinite": ~finite(signal), "constant": constant(signal, round(rate))}
    for what, mask in bad.items():
        for i, reason in enumerate(judged.reasons if mask.any() else []):
            touched = mask[:, i * points * down // up : -(-(i + 1) * points * down // up)].any(axis=1)
            reason.update(f"{what} in {names[channel]}" for channel in np.flatnonzero(touched))
    if counts := ", ".join(f"{name} {n}" for name, n in zip(names, clipped_points(signal)) if n):
        judged.notes.append(f"points of suspected clipping, kept: {counts}")


def _filtered(signal, length, modality, rate, ratio, flags):
    """Return a signal at the new rate, (C, length): each finite run filtered alone, NaN elsewhere."""
    low, grid = flags.low[modality], np.full((len(signal), length), np.nan)
    for first, last in runs(finite(signal).all(axis=0)):
        # A run shorter than one period of --low says nothing about the pass-band.
        if (last - first) * low >= rate:
            run = band_pass(signal[:, first:last], rate, low, flags.high[modality], flags.filter_order)
            start, run = resample(run, first, *ratio)
            run = run[:, : max(0, length - start)]
            grid[:, start : start + run.shape[1]] = run
    return grid
