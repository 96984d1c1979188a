"""EDF, EDF+ and BDF files, for the readers of the sets that come as such.

A header of 256 bytes, and 256 more for each signal, tells how a data record is laid out; the records follow, each with
the samples of all signals, of 2 bytes (EDF) or 3 (BDF). One signal of an EDF+ or BDF+ file holds annotations; the first
of each record says when the record begins. These files are read here and not by edfio, which loads a BDF file whole and
refuses files of another length than their header says."""

import os
import re
import struct
from functools import partial

import numpy as np

from datasets import BAD, GAP, JUMP, FileSignal, Signals, choose, plain_name, refuse_damage

FIELDS = {  # in the header of all signals -> letters of each
    "label": 16, "transducer": 80, "unit": 8, "low": 8, "high": 8, "digital_low": 8, "digital_high": 8, "filter": 80,
    "samples": 8, "reserved": 32,
}  # fmt: skip
RANGES = "low", "high", "digital_low", "digital_high"
BEGIN = re.compile(rb"\0*([+-]?\d+\.?\d*)(?:\x15[^\x14\0]*)?\x14\x14")
ANNOTATION = re.compile(rb"([+-]?\d+[.,]?\d*)(?:\x15\+?([\d.,e]*))?\x14([^\0]*)\x14\0")
MARKS = re.compile(rb"bad|boundary|new segment", re.IGNORECASE)  # a quick look, for most files have none
LONGEST_GAPS = 86400  # s, of a file in all; they take memory


def read_edf(path, channels) -> Signals:
    """Return the signals of the named channels of an EDF or BDF file; the other channels are left on disk.

    channels: modality -> C names, as `pick_channels` takes them. Gaps between records are NaN and bad; a stretch whose
    annotation begins with "bad" is bad. Another length than the header says is noted. Raise ValueError where the file
    is damaged, lacks a channel, goes back in time, has gaps of more than a day, or has the channels of a modality at
    different rates or in units that do not go together."""
    header, present, size = _read_header(path)
    labels, units = ([signal[key] for signal in present] for key in ("label", "unit"))
    chosen, names, units, notes = choose(channels, labels, units, path)
    parts, rate = {}, {}
    for m, (places, factors) in chosen.items():
        signals = [present[place] for place in places]
        rates = {signal["samples"] / header["duration"] if header["duration"] else 0.0 for signal in signals}
        if len(rates) != 1 or not 0 < min(rates) < float("inf"):
            raise ValueError(f"{path}: expected one rate above 0 Hz for {' '.join(names[m])}, found {sorted(rates)}")
        rate[m] = rates.pop()
        parts[m] = [(signal, *_calibration(signal, *each, path)) for signal, *each in zip(signals, names[m], factors)]
    records = _count_records(header, size, path, notes)
    marks = _read_marks(path, header, present, records)
    origin, jumps = _time_keeping(marks, header, records, 1.5 / min(rate.values()), path, notes)
    begins, gaps = np.arange(records) * header["duration"] + np.cumsum(jumps), np.flatnonzero(jumps).tolist()
    # Rounded, so that a gap that ends with a segment does not reach into the next.
    bad = [(round(begins[r] - jumps[r], 6), round(begins[r], 6), GAP) for r in gaps] + _called_bad(marks, origin)
    arrays = {}
    for m, signals in parts.items():
        # Each stretch of records begins at the point of its time.
        ends = zip([0, *gaps], [*gaps, records])
        stretches = [(round(begins[first] * rate[m]), first, last) for first, last in ends]
        point, first, last = stretches[-1]
        points = point + (last - first) * signals[0][0]["samples"]
        arrays[m] = FileSignal((len(signals), points), partial(_points, path, header, signals, stretches))
    return Signals(arrays, rate, names, units, tuple(bad), tuple(notes))


def _points(path, header, signals, stretches, start, stop) -> np.ndarray:
    """Return the points from `start` to `stop` of signals, (C, stop - start), NaN where there is a gap."""
    found, count, size = np.full((len(signals), stop - start), np.nan), signals[0][0]["samples"], header["record"]
    for point, first, last in stretches:
        low, high = max(start, point), min(stop, point + (last - first) * count)
        if low < high:
            # Whole records are read, of which the first may begin before the slice.
            a, b, spare = first + (low - point) // count, first - (point - high) // count, (low - point) % count
            raw = np.memmap(path, np.uint8, "r", header["bytes"] + a * size, (b - a, size))
            for channel, (signal, offset, gain) in zip(found, signals):
                values = _integers(raw[:, signal["place"]], header["width"])[spare : spare + high - low]
                part = np.add(values, offset, out=channel[low - start : high - start])
                part *= gain
    return found


def _read_header(path) -> tuple[dict, list[dict], int]:
    """Return what the header says of the file and of each of its signals, and the size of the file."""
    with refuse_damage(path, "an EDF file"), open(path, "rb") as file:
        fixed = file.read(256)
        count = int(_text(fixed[252:]))
        rest = file.read(256 * count)
        header = {
            "bytes": int(_text(fixed[184:192])),
            "kind": _text(fixed[192:236])[:5],
            "records": int(_number(_text(fixed[236:244]) or "-1")),
            "duration": _number(_text(fixed[244:252])),
            "width": 3 if fixed[0] == 255 or _text(fixed[192:195]) in ("24B", "BDF") else 2,
        }
        if not 256 + len(rest) == 256 * (count + 1) == header["bytes"] or header["records"] < -1:
            raise ValueError(f"{256 + len(rest)} bytes of header for {count} signals and {header['records']} records")
        # All labels, then all transducers, and so on.
        cells = struct.unpack("".join(f"{width}s" * count for width in FIELDS.values()), rest)
        signals = [dict(zip(FIELDS, map(_text, cells[i::count]))) for i in range(count)]
        end = 0
        for signal in signals:
            signal["samples"] = int(_number(signal["samples"]))
            if signal["samples"] < 0:
                raise ValueError(f"{signal['samples']} samples of {signal['label']} a record")
            signal["place"] = slice(end, end := end + signal["samples"] * header["width"])
        header["record"] = end
        return header, signals, file.seek(0, 2)


def _text(field: bytes) -> str:
    """Return a field of the header, which blanks or NULs fill up."""
    return plain_name(field.replace(b"\0", b" ").decode("utf-8", "surrogateescape")).strip()


def _number(text: str) -> float:
    """Return the number that a field of the header holds, perhaps with a decimal comma."""
    return float(text.replace(",", "."))


def _calibration(signal, name, scale, path) -> tuple[float, float]:
    """Return the offset and the gain that turn the integers of a signal into its unit, times `scale`."""
    with refuse_damage(path, "an EDF file"):
        low, high, digital_low, digital_high = (_number(signal[field]) for field in RANGES)
    if not (np.isfinite(high - low) and high != low and 0 < abs(digital_high - digital_low) < float("inf")):
        ranges = f"the physical range {low:g} to {high:g} for the digital range {digital_low:g} to {digital_high:g}"
        raise ValueError(f"{path}: channel {name} has {ranges}; download the file again")
    gain = (high - low) / (digital_high - digital_low)
    return high / gain - digital_high, gain * scale


def _count_records(header, size, path, notes) -> int:
    """Return how many whole records there are; add to `notes` where the header says another number."""
    stated, (there, spare) = header["records"], divmod(size - header["bytes"], header["record"])
    if not there:
        raise ValueError(f"{path}: expected records of {header['record']} bytes, found none; download it again")
    if stated not in (-1, there):
        notes.append(f"the header counts {stated} records of {header['duration']:g} s, {there} are there and read")
    if spare:
        notes.append(f"{spare} bytes after the last whole record, left out")
    return there


def _read_marks(path, header, present, records) -> list[list[bytes]]:
    """Return what each signal of annotations holds, record by record."""
    places = [each["place"] for each in present if each["label"] in ("EDF Annotations", "BDF Annotations")]
    begins = [header["bytes"] + record * header["record"] for record in range(records)]
    with open(path, "rb") as file:
        read = partial(os.pread, file.fileno())
        return [[read(place.stop - place.start, begin + place.start) for begin in begins] for place in places]


def _time_keeping(marks, header, records, tolerance, path, notes) -> tuple[float, np.ndarray]:
    """Return the time of the first record, and the gap before each, (records,), both in s. A record that does not say
    when it begins, or is up to `tolerance` s off, follows the one before it; where that adds up, it is noted. Raise
    ValueError where the times go back, or have gaps of over a day."""
    said = max(([*map(BEGIN.match, each)] for each in marks), key=lambda each: sum(map(bool, each)), default=[])
    known = np.array([r for r, match in enumerate(said) if match], int)
    times, jumps = np.array([float(said[r][1]) for r in known]), np.zeros(records)
    if not len(known):
        if header["kind"].endswith("+D"):
            notes.append("the header speaks of gaps and nothing says where; taken as one stretch")
        return 0.0, jumps
    found, tolerance = np.diff(times) - np.diff(known) * header["duration"], max(tolerance, 1.5e-3)  # rounded to 1 ms
    jumps[known[1:]] = np.where(np.abs(found) > tolerance, found, 0)
    if abs(drift := found.sum() - jumps.sum()) > tolerance:
        notes.append(f"the clock of the records gains {drift:.3g} s on their samples; the header's rate is kept")
    if jumps.min() < 0 and not header["kind"].endswith("+D"):
        notes.append("the times of the records go back; taken as one stretch, as the header says")
        return 0.0, np.zeros(records)
    if jumps.min() < 0 or jumps.sum() > LONGEST_GAPS:
        record = jumps.argmin() if jumps.min() < 0 else jumps.argmax()
        found = f"one that begins {jumps[record]:g} s after the end of the one before it (record {record + 1})"
        expected = "records in the order of time with gaps of at most a day"
        raise ValueError(f"{path}: expected {expected}, found {found}; split the file there")
    return times[0] - known[0] * header["duration"], jumps


def _called_bad(marks, origin) -> list[tuple[float, float, str]]:
    """Return the stretches that annotations call bad, in s from `origin`, the time of the first record."""
    stretches = []
    for raw in map(b"".join, marks):
        for begin, length, texts in ANNOTATION.findall(raw) if MARKS.search(raw) else []:
            for text in texts.decode(errors="replace").split("\x14"):
                start, jump = _number(begin.decode()) - origin, JUMP.fullmatch(text.strip())
                if jump and start > 0 or not jump and BAD.fullmatch(text.strip()):
                    # A moment costs what is there, too; after a jump, the length is that of what was left out.
                    seconds = 0 if jump else _number(length.decode() or "0")
                    stretches.append((start, start + max(1e-3, seconds), f"annotated {text[:60]!r}"))
    return stretches


def _integers(raw, width) -> np.ndarray:
    """Return the little-endian integers of `width` bytes that an array of bytes holds."""
    if width == 2:
        return np.ascontiguousarray(raw).view("<i2").ravel()
    wide = np.zeros((raw.size // 3, 4), np.uint8)
    wide[:, 1:] = raw.reshape(-1, 3)
    return wide.view("<i4").ravel() >> 8
