"""Cutting of one recording (paper 4.1.2): which ten seconds of it are kept, and these, filtered and resampled.

A signal is (C, n) float64 throughout. It is read, judged and filtered a block at a time: memory is bounded by BLOCK."""

from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from preparing.filters import band_pass, extension_points, resample, resampling_ratio
from preparing.heart import has_beats, uprightness

FASTEST_RATE = 20_000  # Hz; a file that says more is damaged
BLOCK = 2**23  # values of all channels that are read at a time, 64 MB; a shorter recording is one block
MAINS = (50, 60)  # Hz
TOGGLING = 3  # s on two values that say that a channel holds no signal


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
            channel[start : stop + 1] |= stop - start + 1 >= points
    return mask


def toggles(channel, points: int) -> int:
    """Return how many of the stretches of `points` of a channel (n,) hold two values and no other."""
    stretches = channel[: len(channel) // points * points].reshape(-1, points)
    low, high = stretches.min(axis=1, keepdims=True), stretches.max(axis=1, keepdims=True)
    return int((((stretches == low) | (stretches == high)).all(axis=1) & (low < high)[:, 0]).sum())


def mains_power(channel, rate: float):
    """Return the power of a channel (n,) without that below 1 Hz, and at each of MAINS, over its finite seconds."""
    points = round(rate)
    seconds = channel[: len(channel) // points * points].reshape(-1, points)
    seconds = seconds[finite(seconds).all(axis=1)]
    seconds = seconds - seconds.mean(axis=1, keepdims=True)
    # A wave that is faster than half the rate is not there.
    phase = 2 * np.pi * np.outer(np.arange(points) / rate, [mains for mains in MAINS if mains < rate / 2])
    powers = 2 * ((seconds @ np.cos(phase)) ** 2 + (seconds @ np.sin(phase)) ** 2).sum(axis=0) / points**2
    return np.array([(seconds**2).sum() / points, *powers, *[0.0] * (len(MAINS) - len(powers))])


@dataclass
class Judged:
    """A judgement is what the signals of one recording say about what to keep of it."""

    begin: float  # s, where the grid of segments begins ...
    end: float  # ... and where what may be used ends
    seconds: float  # of the whole recording
    length: float  # s, of a segment
    reasons: list[set[str]]  # of each segment: why it is dropped
    notes: list[str]
    uprightness: list[float] = field(default_factory=list)  # of the ECG of each block that shows beats

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


class Track:
    """A track is what is used of one modality of a recording, from the beginning of the grid to the end of use."""

    def __init__(self, recording, modality: str, begin: float, end: float, flags):
        self.signal, self.names = recording.signals[modality], recording.channels[modality]
        self.rate, self.modality = recording.rate[modality], modality
        self.first = round(begin * self.rate)
        self.points = min(round(end * self.rate), self.signal.shape[1]) - self.first
        self.up, self.down = resampling_ratio(self.rate, flags.rate)
        self.new_points = flags.points  # of a segment
        self.count = self.points * self.up // (self.down * flags.points)  # of the segments that fit into it
        self.band = self.rate, flags.low[modality], flags.high[modality], flags.filter_order
        self.bad = [[round(edge * self.rate) - self.first for edge in stretch[:2]] for stretch in recording.bad]
        self.runs: list[tuple[int, int]] = []  # of points at which all channels are finite, once it is judged

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return the points of the segments from `first` to before `last`; the last segment has what is left over."""
        start, stop = (i * self.new_points * self.down // self.up for i in (first, last))
        return start, self.points if last == self.count else stop

    def read(self, start: int, stop: int):
        """Return the points `start` to before `stop`, (C, n), NaN where of no use, and where these are, (n,) bool."""
        signal = np.asarray(self.signal[:, self.first + start : self.first + stop], dtype=np.float64)
        useless = np.zeros(stop - start, dtype=bool)
        for first, last in self.bad:
            useless[max(0, first - start) : max(0, last - start)] = True
        return np.where(useless, np.nan, signal) if useless.any() else signal, useless


def cut(recording, flags):
    """Judge one recording, then filter, resample and cut it, as the flags of prepare_data.py say (`points`: L). Return
    the judgement, and an iterator over the kept segments of one block after the other, modality -> (k, C, L) float64;
    the judgement is complete when the iterator has ended. Raise ValueError for a rate that cannot be."""
    for modality, rate in recording.rate.items():
        if not 2 * flags.high[modality] < rate <= FASTEST_RATE:
            expected = f"{modality} at more than twice --high {flags.high[modality]:g} Hz and at most {FASTEST_RATE} Hz"
            found = f"{rate:g} Hz in trial {recording.trial}"
            raise ValueError(f"{recording.source}: expected {expected}, found {found}; lower --high or take it out")
    # The shortest modality ends the trial for all of them.
    seconds = min(signal.shape[1] / recording.rate[modality] for modality, signal in recording.signals.items())
    begin = min(flags.drop_baseline, seconds)
    end = min(seconds, begin + flags.max_seconds_per_trial) if flags.max_seconds_per_trial else seconds
    tracks = [Track(recording, modality, begin, end, flags) for modality in recording.signals]
    # The grid has as many segments as fit into every modality.
    count, length = min(track.count for track in tracks), flags.points / flags.rate
    for track in tracks:
        track.count = count
    judged = Judged(begin, end, seconds, length, [set() for _ in range(count)], [*recording.notes])
    judged.notes += [f"{modality} in the unknown unit {unit!r}" for modality, unit in recording.units.items()]
    for start, stop, why in recording.bad:
        for i in range(max(0, int((start - begin) // length)), min(count, int(-((begin - stop) // length)))):
            judged.reasons[i].add(why)
    # What is filtered beside a block and left out is at most half of the block.
    values = sum(len(track.names) * track.rate for track in tracks) * length
    beside = max(8 * extension_points(*track.band) / track.rate for track in tracks)
    step = max(1, int(BLOCK / values), int(beside / length))
    blocks = [(first, min(first + step, count)) for first in range(0, max(1, count), step)]
    for track in tracks:
        if len(blocks) == 1:  # it is read once
            track.signal, track.first = track.signal[:, track.first : track.first + track.points], 0
        _find_bad(judged, track, blocks)
    return judged, _segments(judged, tracks, blocks, flags)


def _find_bad(judged, track, blocks):
    """Note at each segment why the raw signal of one modality is of no use there, and what else the signal shows."""
    second, usable = max(1, round(track.rate)), np.zeros(track.points, dtype=bool)
    toggled, stretch = np.zeros(len(track.names)), max(100, TOGGLING * second)
    power = np.zeros((len(track.names), 1 + len(MAINS)))
    for first, last in blocks:
        start, stop = track.span(first, last)
        # A second at one value may lie on both sides of a block's end.
        before = min(start, second)
        signal, useless = track.read(start - before, min(track.points, stop + second))
        good = finite(signal)
        usable[start:stop] = good.all(axis=0)[before : before + stop - start]
        bad = {"NaN or infinite": ~good & ~useless, "constant": constant(signal, second)}
        for what, mask in bad.items():
            for i in range(first, last) if mask.any() else ():
                a, b = (edge * track.new_points * track.down for edge in (i, i + 1))
                touched = mask[:, a // track.up - start + before : -(-b // track.up) - start + before].any(axis=1)
                judged.reasons[i].update(f"{what} in {track.names[channel]}" for channel in np.flatnonzero(touched))
        for i, channel in enumerate(signal[:, before : before + stop - start]):
            toggled[i] += toggles(channel, stretch) * stretch / track.rate
            power[i] += mains_power(channel, track.rate)
    # A run shorter than one period of --low says nothing about the pass-band.
    rate, low = track.band[:2]
    track.runs = [(start, stop) for start, stop in runs(usable) if (stop - start) * low >= rate]
    share = (power[:, 1:] / np.maximum(power[:, :1], np.finfo(float).tiny)).T
    found = [("toggles by one bit, kept", toggled, 0, "{:g} s")]
    found += [(f"mains ({f} Hz) over half the power", part, 0.5, "{:.0%}") for f, part in zip(MAINS, share)]
    for what, values, most, form in found:
        if said := [f"{name} {form.format(value)}" for name, value in zip(track.names, values) if value > most]:
            judged.notes.append(f"{what}: {', '.join(said)}")


def _segments(judged, tracks, blocks, flags):
    """Yield the kept segments of one block after the other, modality -> (k, C, L) float64; see `cut`."""
    silent = []
    for first, last in blocks:
        reasons, segments = judged.reasons[first:last], {}
        for track in tracks:
            grid = _filtered(track, first, last)
            # Beats show in the filtered signal alone.
            filled = grid[0, ~np.isnan(grid[0])]
            if track.modality == "ecg" and len(filled):
                if has_beats(filled, flags.rate):
                    judged.uprightness.append(uprightness(filled, flags.rate))
                else:
                    silent.append((first, last))
                    for reason in reasons if flags.drop_unusable_ecg else ():
                        reason.add("ECG without plausible beats (--drop-unusable-ecg)")
            segments[track.modality] = grid.reshape(len(grid), last - first, flags.points).swapaxes(0, 1)
            for reason, segment in zip(reasons, segments[track.modality]):
                if not reason and np.isnan(segment).any():
                    reason.add(f"finite run of {track.modality} shorter than one period of --low")
        kept = [i for i, reason in enumerate(reasons) if not reason]
        yield {modality: each[kept] for modality, each in segments.items()}
    if silent:
        times = (f"{judged.begin + a * judged.length:g} to {judged.begin + b * judged.length:g} s" for a, b in silent)
        where = f" from {', '.join(times)}" if len(silent) < len(blocks) else ""
        judged.notes.append(f"ECG without plausible beats{where}")


def _filtered(track, first, last):
    """Return the segments from `first` to before `last` at the new rate, (C, points): each run of finite points is
    filtered alone, and NaN stands elsewhere."""
    begin, end = first * track.new_points, last * track.new_points
    grid = np.full((len(track.names), end - begin), np.nan)
    start, stop = track.span(first, last)
    # The filter has forgotten what was cut off twice its extension away.
    beside = 2 * extension_points(*track.band)
    for one, other in track.runs:
        if one < stop and other > start:
            one, other = max(one, start - beside), min(other, stop + beside)
            place, run = resample(band_pass(track.read(one, other)[0], *track.band), one, track.up, track.down)
            low, high = max(place, begin), min(place + run.shape[1], end)
            if low < high:
                grid[:, low - begin : high - begin] = run[:, low - place : high - place]
    return grid
