"""WFDB records, for the readers of the sets that come as such, through the package wfdb."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets import GAP, Signals, choice_notes, optional, pick_channels, plain_name, refuse_damage, unit_scales

# Format -> bits of a sample. How long a compressed file (the other formats) is, only its header says.
BITS = {"8": 8, "80": 8, "310": 32 / 3, "311": 32 / 3, "212": 12, "16": 16, "61": 16, "160": 16, "24": 24, "32": 32}
LONGEST_GAPS = 86400  # s, of a record in all; they take memory


class _Segment(NamedTuple):
    """A segment is a stretch of a record with a header of its own; a simple record is one. Its signals all have the
    same number of frames, and in each frame a signal has one sample or several."""

    header: Path
    start: int  # frames of the record before it
    frames: int  # that its files hold
    sampto: int | None  # the same for wfdb, which finds it out where the header does not tell
    keys: list[tuple[str, int]]  # of each signal: its name, and how many before it have the same
    samples: list[int]  # of each signal in a frame
    units: list[str]


def signal_files(header) -> list[Path]:
    """Return the files that hold the signals of a WFDB header, in its order, then the headers of its segments."""
    lines = _lines(header)
    segments = [header.with_name(f"{name}.hea") for name in _names(lines)] if lines and "/" in lines[0][0] else []
    inner = [_names(_lines(segment)) for segment in segments] or [_names(lines) or [f"{header.stem}.dat"]]
    return [*dict.fromkeys(header.with_name(name) for names in inner for name in names), *segments]


def read_wfdb(path, channels) -> Signals:
    """Return the signals of the named channels of the WFDB record whose header is `path`.

    channels: modality -> C names, as `pick_channels` takes them. What no segment of the record holds is NaN and bad.
    Another length than the header says is noted. Raise ValueError where the record is damaged, lacks a channel, has
    gaps of more than a day, or has segments or channels that do not go together."""
    wfdb = optional("wfdb", path, "a WFDB record")
    for name in (path.name, *(each.name for each in signal_files(path))):
        if not re.fullmatch(r"[-\w]+(\.\w+)?", name, re.ASCII):
            raise ValueError(f"{path}: wfdb reads no file with such a name as {name}; rename it, in the header, too")
    with refuse_damage(path, "a WFDB record", "download it again, or mend its header"):
        rate, length, segments, gaps, notes = _segments(wfdb, path)
    present = list(dict.fromkeys(key for segment in segments for key in segment.keys))
    labels = [name for name, _ in present]
    signals, rates, names, units, chosen = {}, {}, {}, {}, []  # chosen: (segment, place, row to fill, scale)
    for m, wanted in channels.items():
        found = pick_channels(wanted, labels, path)
        keys = [present[place] for place in found.values()]
        there = [(s, s.keys.index(key), row) for row, key in enumerate(keys) for s in segments if key in s.keys]
        scales, unknown = unit_scales([s.units[i] for s, i, _ in there], [s.keys[i][0] for s, i, _ in there], m, path)
        samples = {s.samples[i] for s, i, _ in there}
        if len(samples) != 1:
            raise ValueError(f"{path}: expected one rate of {' '.join(found)}, found {sorted(samples)} samples a frame")
        rates[m], names[m], units = rate * min(samples), list(found), units | unknown
        signals[m] = np.full((len(keys), length * min(samples)), np.nan)
        chosen += [(s, i, signals[m][row], scale) for (s, i, row), scale in zip(there, scales)]
        notes += choice_notes(wanted, found, labels)
    for segment in segments:
        own = [each for each in chosen if each[0] is segment]
        # Where one channel is missing, the others are of no use either.
        if len(own) < sum(map(len, names.values())):
            gaps.append((segment.start, segment.start + segment.frames))
        if own:
            with refuse_damage(path, "a WFDB record"), np.errstate(all="ignore"):  # a damaged gain may be anything
                places = sorted({place for _, place, *_ in own})
                stem = str(segment.header.with_suffix(""))
                values = wfdb.rdrecord(stem, channels=places, sampto=segment.sampto, smooth_frames=False).e_p_signal
                for _, place, row, scale in own:
                    samples = segment.samples[place]
                    first, last = segment.start * samples, (segment.start + segment.frames) * samples
                    row[first:last] = values[places.index(place)] * scale
    bad = tuple((start / rate, end / rate, GAP) for start, end in sorted(gaps))
    return Signals(signals, rates, names, units, bad, tuple(notes))


def _segments(wfdb, path) -> tuple[float, int, list[_Segment], list, list]:
    """Return the frames a second of a record, its length in frames, its segments, the ends of its gaps, and notes."""
    whole, segments, gaps, notes, start = wfdb.rdheader(str(path.with_suffix(""))), [], [], [], 0
    rate, several = float(whole.fs), isinstance(whole, wfdb.MultiRecord)
    first = _lines(path)[0]
    if len(first) > 2:
        said = re.match(r"[\d.,]+(e[-+]?\d+)?", first[2])
        if not said or float(said[0].replace(",", ".")) != rate:
            raise ValueError(f"a rate of {first[2]}")
    else:
        notes.append(f"the header has no rate; {rate:g} Hz, as WFDB has it then")
    for name, length in zip(whole.seg_name, whole.seg_len) if several else [(path.stem, None)]:
        if name != "~" and length != 0:  # the first of several may only tell the layout, in no samples
            header = path.with_name(f"{name}.hea")
            record = wfdb.rdheader(str(header.with_suffix(""))) if several else whole
            segments.append(_segment(record, header, rate, start, length, notes))
            length = length or segments[0].frames
        filled = segments[-1].start + segments[-1].frames if segments else 0
        start += length
        if filled < start:
            gaps.append((max(filled, start - length), start))
    if sum(end - first for first, end in gaps) > LONGEST_GAPS * rate or not 0 < rate < float("inf"):
        raise ValueError(f"{start} samples at {rate:g} Hz, with gaps of over {LONGEST_GAPS} s")
    return rate, start, segments, gaps, notes


def _segment(record, header, rate, start, length, notes) -> _Segment:
    """Return the segment that has this header, as wfdb reads it in `record`, and `length` frames, None for all that are
    there; add to `notes` where its files hold another number."""
    _, *lines = _lines(header)
    if record.n_sig != len(lines) or record.fs != rate:
        found = f"{record.n_sig} signals at {record.fs:g} Hz in {len(lines)} lines"
        raise ValueError(f"{header.name} of {found}, not at {rate:g} Hz")
    held = []
    for name in dict.fromkeys(record.file_name):
        own = [i for i, each in enumerate(record.file_name) if each == name]
        if bits := BITS.get(record.fmt[own[0]]):
            size = header.with_name(name).stat().st_size - (record.byte_offset[own[0]] or 0)
            held.append(int(size * 8 / bits) // sum(record.samps_per_frame[i] for i in own))
    held = min(held, default=None)  # frames that its files hold; None where they are compressed
    said = length or record.sig_len or held
    frames = min(each for each in (said, record.sig_len, held) if each is not None)
    if frames < said or held and held > said + 1:  # one more may be padding
        notes.append(f"{header.name}: the header says {said} samples, {held or frames} are there; {frames} were taken")
    names = [name or f"signal {i}" for i, name in enumerate(record.sig_name)]
    keys = [(name, names[:i].count(name)) for i, name in enumerate(names)]
    sampto = frames if record.sig_len else None
    return _Segment(header, start, frames, sampto, keys, record.samps_per_frame, [_unit(line) for line in lines])


def _unit(line) -> str:
    """Return the unit that the words of a signal's line name. wfdb leaves out a micro sign, so that uV were V."""
    gain, _, unit = line[2].partition("/") if len(line) > 2 else ("", "", "")
    return unit or "mV" if re.match(r"[-+]?[0.]*[1-9]", gain) else "no unit (not calibrated)"


def _names(lines) -> list[str]:
    """Return the names of files or segments in the lines of a header; ~ is a gap, or a signal without values."""
    return list(dict.fromkeys(Path(line[0]).name for line in lines[1:] if line[0] != "~"))


def _lines(header) -> list[list[str]]:
    """Return the words of the lines of a header, comments left out; none where it is missing."""
    text = plain_name(header.read_text("utf-8", "surrogateescape")) if header.is_file() else ""
    return [line.split() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
