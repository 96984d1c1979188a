"""The segment files of a prepared data set: `<modality>.npy` (n, C, L) float32, `segments.npy`, `manifest.json`.

Row i of each array is the same stretch of the same trial.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.files import sha256_of_file, sha256_of_json, sync
from paper import MODALITIES, TARGETS

SEGMENT_DTYPE = np.dtype(
    [
        ("subject", "U16"),
        ("trial", "U32"),  # unique within the subject
        ("video", "U16"),
        ("start", "f8"),  # s from the trial's start
        *((target, "f4") for target in TARGETS),  # rating as recorded, NaN where there is none
    ]
)
MANIFEST_KEYS = {"dataset": str, "simulated": bool, "channels": dict, "rate": int, "points": int, "preprocessing": dict}
MANIFEST_KEYS |= {"sources": list, "subjects": dict, "counts": dict, "dropped": list, "notes": list, "versions": dict}
ANEW = "prepare the data again"
MISSING = "missing; prepare the data with prepare_data.py, or say where they are now"


@dataclass(frozen=True)
class Segments:
    """One prepared data set; the signals stay on disk until they are indexed."""

    folder: Path
    signals: dict[str, np.memmap]  # modality -> (n, C, L) float32
    table: np.ndarray  # (n,) of SEGMENT_DTYPE
    manifest: dict
    segments_sha256: str  # of segments.npy
    preprocessing_sha256: str  # of manifest["preprocessing"] as canonical JSON
    hidden: np.ndarray = field(default_factory=lambda: np.empty(0, int))  # rows whose signals must not be read


class SegmentWriter:
    """Writes a (n, C, L) float32 .npy block by block, n known only at the end."""

    def __init__(self, path, channels: int, points: int):
        self.shape = (0, channels, points)
        self.file = open(path, "wb")
        self._write_header()
        self.header_bytes = self.file.tell()

    def write(self, block):
        """Append `block` (k, C, L)."""
        self.file.write(np.ascontiguousarray(block, dtype=np.float32))
        self.shape = (self.shape[0] + len(block), *self.shape[1:])

    def close(self):
        """Put the final shape into the header, and the bytes onto the disk."""
        with self.file:
            self.file.seek(0)
            self._write_header()
            if self.file.tell() != self.header_bytes:
                raise AssertionError("the header of the .npy file has changed its length")
            sync(self.file)

    def _write_header(self):
        # Numpy leaves room in the header for the first axis to grow.
        header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self.file, header)


def open_segments(folder, modality: str | None = None) -> Segments:
    """Open what prepare_data.py wrote, with `modality` its signals alone; the signals themselves are not read.

    Raises FileNotFoundError where a file is missing, and ValueError where one is damaged or does not fit the others.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    table = _load(folder / "segments.npy")
    if table.dtype != SEGMENT_DTYPE or table.ndim != 1 or len(table) == 0:
        raise ValueError(
            f"{folder / 'segments.npy'}: expected one row or more of {SEGMENT_DTYPE}, "
            f"found {table.shape} of {table.dtype}; {ANEW}"
        )
    if modality is not None and modality not in manifest["channels"]:
        raise ValueError(
            f"{folder}: holds {' and '.join(manifest['channels'])} but no {modality}; prepare it with --modalities"
        )
    signals = {}
    for name in [modality] if modality else manifest["channels"]:
        path = folder / f"{name}.npy"
        signals[name] = _load(path)
        shape = (len(table), len(manifest["channels"][name]), manifest["points"])
        if signals[name].shape != shape or signals[name].dtype != np.float32:
            raise ValueError(
                f"{path}: expected {shape} of float32 (rows of segments.npy, channels and points of manifest.json), "
                f"found {signals[name].shape} of {signals[name].dtype}; {ANEW}"
            )
    hashes = sha256_of_file(folder / "segments.npy"), sha256_of_json(manifest["preprocessing"])
    return Segments(folder, signals, table, manifest, *hashes)


def read_manifest(folder) -> dict:
    """`manifest.json` of a prepared folder. Raises FileNotFoundError or ValueError like `open_segments`."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {MISSING}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found {error}; {ANEW}") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{path}: expected an object, found a {type(manifest).__name__}; {ANEW}")
    for key, kind in MANIFEST_KEYS.items():
        if not isinstance(manifest.get(key), kind):
            found = "nothing" if key not in manifest else repr(manifest[key])[:60]
            raise ValueError(f"{path}: expected {key} as {kind.__name__}, found {found}; {ANEW}")
    channels = manifest["channels"]
    if not channels or not all(name in MODALITIES and isinstance(channels[name], list) for name in channels):
        raise ValueError(f"{path}: expected lists of channels for {' and '.join(MODALITIES)}, found {channels}; {ANEW}")
    for source in manifest["sources"]:
        # The leak guard goes by these: a source it cannot read must not pass.
        for key, kind in (("file", str), ("sha256", str), ("trials", list)):
            if not isinstance(source, dict) or not isinstance(source.get(key), kind):
                found = f"found {repr(source)[:60]}; {ANEW}"
                raise ValueError(f"{path}: expected {key} as {kind.__name__} in each of the sources, {found}")
    return manifest


def _load(path) -> np.ndarray:
    """The array of a .npy file, mapped, not read."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {MISSING}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError) as error:
        reason = " ".join(str(error).split())  # numpy spreads its reasons over lines
        raise ValueError(f"{path}: expected a whole .npy file, found: {reason}; {ANEW}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: expected a .npy file, found an archive; {ANEW}")
    return array


class SignalRows:
    """Chosen rows of one or more data folders as one array of segments, read from disk batch by batch.

    parts: (data, rows) pairs; modality: one of paper.MODALITIES. Raises ValueError where channels, rates or lengths
    differ, where an array is not in C order, and where rows are among the hidden ones.
    """

    def __init__(self, parts: list[tuple[Segments, np.ndarray]], modality: str):
        layouts = [layout(data, modality) for data, _ in parts]
        for (data, _), found in zip(parts, layouts):
            if found != layouts[0]:
                raise ValueError(f"{data.folder}: expected {modality} with {layouts[0]}, found {found}")
        for data, rows in parts:
            if np.isin(rows, data.hidden).any():
                raise ValueError(f"{data.folder}: --validation-only hides the test segments, which were asked for")
        arrays = [(data.folder / f"{modality}.npy", data.signals[modality]) for data, _ in parts]
        for path, array in arrays:
            if not array.flags.c_contiguous:
                raise ValueError(f"{path}: expected an array in C order, found Fortran order; {ANEW}")
        # Read, not mapped: every page of a mapped file that was looked at would count as memory of this process.
        self.files = [(path, open(path, "rb", buffering=0), array.offset) for path, array in arrays]
        self.part = np.concatenate([np.full(len(rows), number) for number, (_, rows) in enumerate(parts)])
        self.row = np.concatenate([rows for _, rows in parts])
        self.channels, self.points = arrays[0][1].shape[1:]

    def __len__(self) -> int:
        return len(self.row)

    def batch(self, places: np.ndarray) -> np.ndarray:
        """(B, C, L) float32 signals at `places` (0 .. len - 1); ValueError where one is not finite or a file short."""
        signals = np.empty((len(places), self.channels, self.points), np.float32)
        for number, place in enumerate(places):
            path, file, start = self.files[self.part[place]]
            file.seek(start + int(self.row[place]) * signals[number].nbytes)
            if file.readinto(signals[number]) < signals[number].nbytes:
                raise ValueError(f"{path}: ends before row {self.row[place]}; prepare the data again with --fresh")
        if not np.isfinite(signals).all():
            place = places[np.flatnonzero(~np.isfinite(signals).all(axis=(1, 2)))[0]]
            path = self.files[self.part[place]][0]
            raise ValueError(f"{path}: row {self.row[place]} holds NaN or inf; prepare the data again with --fresh")
        return signals


def layout(data: Segments, modality: str) -> dict:
    """What segments must share to be trained on together; ValueError where there are none of `modality`."""
    if modality not in data.signals:
        raise ValueError(f"{data.folder}: expected {modality} signals, found none; prepare the data with --modalities")
    return {"channels": data.manifest["channels"][modality], **{key: data.manifest[key] for key in ("rate", "points")}}


def data_sha256(data: Segments) -> str:
    """One hash of the segments, of their pre-processing and of the recordings they were cut from."""
    recordings = sorted(source["sha256"] for source in data.manifest["sources"])
    return hashlib.sha256("".join([data.segments_sha256, data.preprocessing_sha256, *recordings]).encode()).hexdigest()
